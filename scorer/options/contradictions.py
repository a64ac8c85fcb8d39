"""Options that contradict each other: one function for each rule."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from scorer.display.words import quoted_list
from scorer.errors import OptionsError, ScorerError
from scorer.host import devices
from scorer.options.grammar import parse_join
from scorer.options.values import QUEUES, is_class

if TYPE_CHECKING:
    from collections.abc import Mapping


_FOR_QUEUES = ("queue", "walltime", "memory", "interface", "job_extra", "forward_env")
"""Options that only the jobs of a queue use."""


def contradictions(options: Mapping[str, Any]) -> list[ScorerError]:
    """Return one error for each contradiction; `options` are checked values by their keys."""
    found = (
        _two_clusters(options),
        _workers_without_processes(options, "workers"),
        _workers_without_processes(options, "adapt"),
        _ahead_without_workers(options),
        _dashboard_without_scheduler(options),
        _fixed_and_adapted_workers(options),
        _devices_without_processes(options),
        _jobs_without_queue(options),
        _options_without_class(options),
        _keys_for_class(options),
        _two_sizes_of_files(options),
        _limited_and_new_only(options),
        _joins_of_one_name(options),
        *_only_with_new_only(options),
        *_for_tables(options),
        *_not_for_tables(options),
    )
    return [problem for problem in found if problem is not None]


def _two_clusters(options: Mapping[str, Any]) -> OptionsError | None:
    kind, schedulers = _cluster(options), _schedulers(options)
    if not schedulers or (kind == "embedded" and len(schedulers) == 1):
        return None
    found = [f"{_flag(name)} {options[name]}" for name in schedulers]
    found += [f"--cluster {kind}"] if kind != "embedded" else []
    return OptionsError(
        "two clusters are requested",
        where="--scheduler, --cluster",
        expected="one of them",
        found=" and ".join(found),
        hint="give only one of --scheduler, --scheduler-file and --cluster",
    )


def _workers_without_processes(options: Mapping[str, Any], name: Literal["workers", "adapt"]) -> OptionsError | None:
    kind, number = _cluster(options), options.get(name)
    if number is None or kind in {"processes", *QUEUES} or (name == "workers" and number == 1 and not is_class(kind)):
        return None
    if is_class(kind) and not options.get("cluster_name"):
        return None
    return OptionsError(
        f"{_flag(name)} needs worker processes",
        where=_flag(name),
        expected="--cluster processes, a job queue, or a class that scorer starts",
        found=f"{_flag(name)} {number} with {'--cluster-name' if is_class(kind) else f'--cluster {kind}'}",
        hint=(
            f"leave {_flag(name)} out; the workers that it has are used"
            if _schedulers(options) or is_class(kind)
            else f"add --cluster processes or {QUEUES[0]}, or use --threads"
        ),
    )


def _ahead_without_workers(options: Mapping[str, Any]) -> OptionsError | None:
    schedulers, kind = _schedulers(options), _cluster(options)
    if options.get("ahead") is None or not (schedulers or kind == "synchronous" or is_class(kind)):
        return None
    found = _flag(schedulers[0]) if schedulers else f"--cluster {kind}"
    return OptionsError(
        "--ahead needs workers that scorer starts",
        where="--ahead",
        expected="--cluster embedded, processes or a job queue",
        found=found,
        hint="leave --ahead out" + ("; start those workers with more threads" if schedulers or is_class(kind) else ""),
    )


def _dashboard_without_scheduler(options: Mapping[str, Any]) -> OptionsError | None:
    if not options.get("dashboard") or _cluster(options) != "synchronous":
        return None
    return OptionsError(
        "--cluster synchronous has no dashboard",
        where="--dashboard",
        expected="a cluster with a scheduler",
        found="--cluster synchronous",
        hint="leave --dashboard out",
    )


def _fixed_and_adapted_workers(options: Mapping[str, Any]) -> OptionsError | None:
    if not options.get("workers") or not options.get("adapt"):
        return None
    return OptionsError(
        "--workers and --adapt cannot be combined",
        where="--workers, --adapt",
        expected="one of them",
        found=f"--workers {options['workers']} and --adapt {options['adapt']}",
        hint="give --workers or --adapt, not both",
    )


def _devices_without_processes(options: Mapping[str, Any]) -> OptionsError | None:
    kind = _cluster(options)
    with suppress(OptionsError):  # the device is checked later, and the error about its name is raised there
        if len(devices.parse(options.get("device", "auto")).ids) > 1 and kind != "processes":
            return OptionsError(
                "several devices need one process each",
                where="--device",
                expected="--cluster processes",
                found=f"--device {options['device']} with --cluster {kind}",
                hint="add --cluster processes, or name one device: a job of a queue sees only its own",
            )
    return None


def _jobs_without_queue(options: Mapping[str, Any]) -> OptionsError | None:
    names = [name for name in _FOR_QUEUES if options.get(name)]
    if not names or _cluster(options) in QUEUES:
        return None
    return OptionsError(
        f"{quoted_list(names)} can only be used with a job queue",
        where=", ".join(map(_flag, names)),
        expected="a job queue",
        found=f"--cluster {_cluster(options)}",
        hint=(
            "give the options of the class with --cluster-option"
            if is_class(_cluster(options))
            else f"add --cluster {QUEUES[0]}, {QUEUES[1]}, ..."
        ),
    )


def _options_without_class(options: Mapping[str, Any]) -> OptionsError | None:
    names = [name for name in ("cluster_option", "cluster_name") if options.get(name)]
    if not names or is_class(_cluster(options)):
        return None
    return OptionsError(
        f"{_flag(names[0])} needs the class of a cluster",
        where=", ".join(map(_flag, names)),
        expected="--cluster MODULE:CLASS",
        found=f"--cluster {_cluster(options)}",
        hint="add the class, such as --cluster dask_kubernetes.operator:KubeCluster",
    )


def _keys_for_class(options: Mapping[str, Any]) -> OptionsError | None:
    if options.get("tls") is None or not is_class(_cluster(options)):
        return None
    flag = "--tls" if options["tls"] else "--no-tls"
    return OptionsError(
        f"{flag} does not apply to the class of a cluster",
        where=flag,
        expected="--cluster processes, or a job queue",
        found=f"--cluster {_cluster(options)}",
        hint=f"leave {flag} out; the class has its own options for encryption",
    )


def _two_sizes_of_files(options: Mapping[str, Any]) -> OptionsError | None:
    if not options.get("file_rows") or not options.get("file_bytes"):
        return None
    return OptionsError(
        "--file-rows and --file-bytes cannot be combined",
        where="--file-rows, --file-bytes",
        expected="one of them",
        found=f"--file-rows {options['file_rows']} and --file-bytes {options['file_bytes']}",
        hint="give --file-rows or --file-bytes, not both",
    )


def _limited_and_new_only(options: Mapping[str, Any]) -> OptionsError | None:
    if not options.get("new_only") or options.get("limit") is None:
        return None
    return OptionsError(
        "--limit and --new-only cannot be combined",
        where="--limit, --new-only",
        expected="all rows of each new file",
        found=f"--limit {options['limit']}",
        hint="leave out --limit, or give it an --output of its own without --new-only",
    )


def _only_with_new_only(options: Mapping[str, Any]) -> list[OptionsError]:
    return [
        OptionsError(
            f"{_flag(name)} needs --new-only",
            where=_flag(name),
            expected="--new-only, which compares the input with what was scored before",
            found="a run that scores all of its input",
            hint=f"add --new-only, or leave {_flag(name)} out",
        )
        for name, default in (("on_changed", "error"), ("on_gone", "keep"), ("since", None))
        if options.get(name, default) != default and not options.get("new_only")
    ]


def _for_tables(options: Mapping[str, Any]) -> list[OptionsError]:
    if options.get("format", "parquet") != "parquet":
        return []
    return [
        OptionsError(
            f"{_flag(name)} is for tables",
            where=_flag(name),
            expected="--format delta or iceberg",
            found="a folder of Parquet files",
            hint=f"add --format delta, or leave {_flag(name)} out",
        )
        for name in ("mode", "partition_by")
        if options.get(name)
    ]


def _not_for_tables(options: Mapping[str, Any]) -> list[OptionsError]:
    kind, output = options.get("format", "parquet"), str(options.get("output") or "")
    if output.startswith("iceberg://") != (kind == "iceberg"):
        wanted = "--format iceberg" if kind != "iceberg" else "--output iceberg://CATALOG/NAMESPACE.TABLE"
        return [
            OptionsError(
                "an Iceberg table is named by its catalog",
                where="--output, --format",
                expected="--format iceberg with --output iceberg://CATALOG/NAMESPACE.TABLE",
                found=f"--format {kind} with {f'--output {output}' if output else 'no --output'}",
                hint=f"add {wanted}",
            )
        ]
    if kind == "parquet":
        return []
    instead = {"success_file": "leave it out: the rows of a table appear all at once"}
    if not options.get("new_only"):
        instead["overwrite"] = "use --mode overwrite; `scorer clean OUT` discards an unfinished run"
    elif options.get("mode") not in {None, "append"}:
        instead["mode"] = "leave it out: --new-only adds rows, and --overwrite scores everything again"
    return [
        OptionsError(
            f"{_flag(name)} cannot be used with a table" + (" and --new-only" if name == "mode" else ""),
            where=_flag(name),
            expected=f"an output without {_flag(name)}",
            found=f"--format {kind}" + (f" --mode {options['mode']}" if name == "mode" else ""),
            hint=hint,
        )
        for name, hint in instead.items()
        if options.get(name)
    ]


def _joins_of_one_name(options: Mapping[str, Any]) -> OptionsError | None:
    names = [join.name for join in map(parse_join, options.get("join") or ()) if join is not None]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not twice:
        return None
    return OptionsError(
        f"two joined tables have one name: {quoted_list(twice)}",
        where="--join",
        expected="a name for each table",
        found=quoted_list(names),
        hint=f"give one of them another name, such as {twice[0]}_2=TABLE on KEYS",
    )


def _cluster(options: Mapping[str, Any]) -> str:
    return options.get("cluster") or "embedded"


def _schedulers(options: Mapping[str, Any]) -> list[str]:
    """Return the options that name a running scheduler."""
    return [name for name in ("scheduler", "scheduler_file") if options.get(name)]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
