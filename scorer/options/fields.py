"""The fields of a request: one for each flag and TOML key, with its default, its help and its rule."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from scorer.options import values as rules

if TYPE_CHECKING:
    from scorer.options.grammar import FeedText
    from scorer.options.models import ModelPath


PART_BYTES = 64 * 2**20  # decoded; large enough that Dask's 3 ms per part do not matter, and small in memory


def option(
    default: Any,  # noqa: ANN401 - as dataclasses.field
    help_: str,
    rule: rules.Rule,
    *,
    metavar: str = "",
    completes: str = "",
    short: str = "",
    scores: bool = False,
) -> Any:  # noqa: ANN401 - as dataclasses.field
    """Return a dataclass field that is also a flag, a TOML key and a keyword of `run`.

    `rule` parses its value; None is allowed if it is the default. A field without a metavar is a switch.
    `completes` is "file" or "dir" if a shell completes such paths. `short` is the flag's other form, such as -o.
    `scores` is true if the value affects the output.
    """
    rule = rules.optional(rule) if default is None else rule
    metadata = {
        "help": help_,
        "rule": rule,
        "metavar": metavar,
        "completes": completes,
        "short": short,
        "scores": scores,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputOptions:
    """Which rows are scored."""

    where: tuple[str, ...] = option(
        (), "Score only rows that match: 'COLUMN op LITERAL', 'COLUMN in (...)' or 'COLUMN is [not] null'. "
        "Repeatable; a row must match all conditions.", rule=rules.TEXTS, metavar="CONDITION", scores=True,
    )  # fmt: skip
    join: tuple[str, ...] = option(
        (), "Add the columns of a table to rows of the same key, as NAME.COLUMN. TABLE is Parquet files, a Delta or an "
        "Iceberg table, and fits into memory; KEYS are columns, or COLUMN = COLUMN_OF_TABLE. A key that the table "
        "does not have gives nulls, with 'or error' a bad row. Repeatable.",
        rule=rules.JOINS, metavar="'NAME=TABLE on KEYS'", scores=True,
    )  # fmt: skip
    base: str | None = option(
        None,
        "Folder below which key=value folder names are columns. Default: those in the input and directly above it.",
        rule=rules.PLACE,
        completes="dir",
        metavar="DIR",
        scores=True,
    )
    input_version: str | None = option(
        None, "Read a Delta table as it was at this version or time. Default: the current version, to which a repeated "
        "command keeps.", rule=rules.VERSION, metavar="N|TIME",
    )  # fmt: skip
    input_snapshot: str | None = option(
        None, "Read an Iceberg table at this snapshot, branch or tag. Default: the current snapshot, to which a "
        "repeated command keeps.", rule=rules.SNAPSHOT, metavar="ID|REF",
    )  # fmt: skip
    input_format: str = option(
        "auto",
        "What the input must be: auto (a table if it has a log), parquet, delta or iceberg. Default: auto.",
        rule=rules.one_of("auto", "parquet", "delta", "iceberg"),
        metavar="auto|parquet|delta|iceberg",
    )
    limit: int | None = option(
        None,
        "Score only the first N rows of the input, counted before --where.",
        rule=rules.LIMIT,
        metavar="N",
        scores=True,
    )
    part_bytes: int | None = option(
        None,
        "Decoded size of one part, such as 64MiB. Smaller parts need less memory.",
        rule=rules.PART_SIZE,
        metavar="SIZE",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BindingOptions:
    """How columns feed tensors, and which columns are written."""

    feed: tuple[FeedText, ...] = option(
        (), "Columns that feed an input tensor: names, lists, globs and ranges, such as f0..f27, 'a b' or "
        "x_*. Repeatable.", rule=rules.FEEDS, completes="file", metavar="TENSOR=COLUMNS", scores=True,
    )  # fmt: skip
    by_position: bool = option(
        default=False,
        help_="Feed float columns in the input's order if no name says another order.",
        rule=rules.SWITCH,
        scores=True,
    )
    transform: str | None = option(
        None, "Python function that takes a pandas frame and returns one with the same rows; its columns feed "
        "the model. It runs in worker processes unless you set --cluster.",
        rule=rules.FUNCTION, metavar="MODULE:FUNCTION", scores=True,
    )  # fmt: skip
    fetch: tuple[str, ...] = option(
        (), "Write only this output, under a new name if you give one. An output of width n becomes the "
        "columns NAME_0 to NAME_n-1; TENSOR[1] and TENSOR['late'] are one of its elements. Repeatable. "
        "Default: all outputs.", rule=rules.TEXTS,
        metavar="TENSOR[=COLUMN]", scores=True,
    )  # fmt: skip
    labels: tuple[str, ...] = option(
        (), "Class names for a model that has none, in its order: a,b,c, or a file with a name in each line or a JSON "
        "list. They name columns, and are what label and topk give. Repeatable, for one output each.",
        rule=rules.LABELS, completes="file", metavar="[TENSOR=]NAMES", scores=True,
    )  # fmt: skip
    batch_axis: tuple[str, ...] = option(
        (), "The axis that holds the rows of an input or an output, counted from 0, as in TENSOR=1 for [steps, batch, "
        "classes]. Repeatable. Default: the first axis, or the one that the model's shapes show.",
        rule=rules.AXES, metavar="TENSOR=AXIS", scores=True,
    )  # fmt: skip
    keep: tuple[str, ...] = option(
        ("all",), "Input columns to keep in the output: all, none, or names and globs. Default: all.", rule=rules.KEEP,
        metavar="COLUMNS", scores=True,
    )  # fmt: skip
    row_id: bool = option(
        default=False,
        help_="Add the columns _file and _row, which say where each row came from.",
        rule=rules.SWITCH,
        scores=True,
    )
    prefix: str = option(
        "", "Text to put before the name of every output column.", rule=rules.ANY_TEXT, metavar="TEXT", scores=True
    )
    on_null: tuple[str, ...] = option(
        (), "What to do with a null in a fed column: error, nan or a constant, for all tensors or for one. "
        "Default: nan for floats, error for other types.", rule=rules.TEXTS, metavar="[TENSOR=]POLICY", scores=True,
    )  # fmt: skip
    on_lossy: str = option(
        "error", "What to do with a value that a cast would change: error makes a bad row, warn counts it. "
        "Default: error.", rule=rules.one_of("error", "warn"),
        metavar="error|warn", scores=True,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringOptions:
    """Batch size and error limits."""

    batch_rows: int | None = option(
        None, "Rows per ONNX call. Default: chosen by a short probe.", rule=rules.COUNT, metavar="N", scores=True
    )
    max_bad_rows: str = option(
        "0",
        "Publish if at most this many rows (N or P%) are bad. Bad rows go to quarantine. Default: 0.",
        rule=rules.BUDGET,
        metavar="N|P%",
    )
    max_nan_rows: str | None = option(
        None,
        "Fail if more than this many rows (N or P%) have a NaN score. Default: warn above half.",
        rule=rules.BUDGET,
        metavar="N|P%",
    )
    gate: tuple[str, ...] = option(
        (), "Publish only if this holds for the scores, such as 'mean(p) between 0.05 and 0.2' or 'psi(p, "
        "baseline=OUT) <= 0.2'. Otherwise the run fails, and keeps the scored parts. Repeatable.",
        rule=rules.GATES, metavar="CONDITION",
    )  # fmt: skip
    gate_warn: tuple[str, ...] = option(
        (), "As --gate, but only warn if it does not hold. Repeatable.", rule=rules.GATES_WARN, metavar="CONDITION",
    )  # fmt: skip
    batch_timeout: float | None = option(
        None, "Time limit of one ONNX call. A call that hangs longer ends its worker process, or the run if it "
        "scores in its own process. Default: no limit.", rule=rules.SECONDS, metavar="SECONDS",
    )  # fmt: skip
    strict: bool = option(default=False, help_="Turn warnings that question the scores into errors.", rule=rules.SWITCH)
    tune: bool = option(default=True, help_="Choose the batch size with a short probe.", rule=rules.SWITCH)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """The device and the runtime."""

    device: str = option(
        "auto", "auto, cpu, cuda, tensorrt, ...; cuda:1 selects one of several GPUs, cuda:0,1 starts a process for "
        "each. If the device you name does not work, the run fails. Default: auto.",
        rule=rules.TEXT, metavar="DEVICE", scores=True,
    )  # fmt: skip

    trees: str = option(
        "auto", "How tree ensembles are scored: auto (compiled where possible, with the same scores) or runtime "
        "(always by ONNX Runtime). Default: auto.", rule=rules.one_of("auto", "runtime"), metavar="auto|runtime",
    )  # fmt: skip
    pack: bool = option(
        default=True, help_="Let the processes of a host share one copy of the weights of a model of at least 64 MB on "
        "the CPU, in a cache folder, with the same scores.", rule=rules.SWITCH,
    )  # fmt: skip
    ort_library: str | None = option(
        None, "Shared library with custom operators for ONNX Runtime. Every worker must be able to read it.",
        rule=rules.PLACE, completes="file", metavar="PATH", scores=True,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """Where and how the output is written."""

    output: str | None = option(
        None, "Folder for the result. Default: beside the input, as NAME.scored.", rule=rules.PLACE, completes="dir",
        metavar="DIR", short="-o",
    )  # fmt: skip
    overwrite: bool = option(
        default=False, rule=rules.SWITCH,
        help_="Replace the output of another run, in one step at the end. Files that scorer did not publish are never "
        "replaced.",
    )  # fmt: skip
    new_only: bool = option(
        default=False, rule=rules.SWITCH,
        help_="Score only the input files that the output does not have yet, and add them to it. The first run scores "
        "all files. --on-changed and --on-gone say what happens to rows that were scored before.",
    )  # fmt: skip
    on_changed: str = option(
        "error", "With --new-only, what happens if files or rows changed since they were scored: error refuses the "
        "run; rescore scores them again and replaces their earlier rows. Default: error.",
        rule=rules.one_of("error", "rescore"), metavar="ACTION",
    )  # fmt: skip
    on_gone: str = option(
        "keep", "With --new-only, what happens if files were removed from the input since they were scored: keep "
        "keeps their rows in the output; remove removes them; error refuses the run. Default: keep.",
        rule=rules.one_of("keep", "remove", "error"), metavar="ACTION",
    )  # fmt: skip
    since: str | None = option(
        None, "With --new-only and a table as the input, score only what was added after this version or time (Delta) "
        "or snapshot (Iceberg): older rows count as scored. Default: the version that was scored last.",
        rule=rules.SINCE, metavar="N|TIME|ID",
    )  # fmt: skip
    format: str = option(
        "parquet", "What the output is: parquet (a folder of files), delta (a Delta table) or iceberg (an Iceberg "
        "table; its output is iceberg://CATALOG/NAMESPACE.TABLE). A table shows all rows of a run at once, or none. "
        "Default: parquet.", rule=rules.one_of(*rules.FORMATS),
        metavar="FORMAT", scores=True,
    )  # fmt: skip
    mode: str | None = option(
        None, "What the rows do to a table that exists: append adds them, overwrite replaces all rows, and "
        '"replace day = \'2026-01-31\'" replaces whole partitions. Default: the table must not exist.', rule=rules.MODE,
        metavar="MODE", scores=True,
    )  # fmt: skip
    partition_by: tuple[str, ...] = option(
        (), "Partition columns of a new table, in this order; they are the keys in the input's folder names "
        "(key=value). Default: all of these keys.", rule=rules.NAMES, metavar="COLUMNS", scores=True,
    )  # fmt: skip
    compression: str = option(
        "source", "Parquet codec: source (the input's; kept columns are copied), none, snappy, zstd, lz4, gzip or "
        "brotli. Default: source.", rule=rules.one_of(*rules.COMPRESSIONS),
        metavar="CODEC", scores=True,
    )  # fmt: skip
    row_group_rows: int | None = option(
        None, "Rows per row group of the output. Default: as in the input, from 16,384 to 1,048,576.",
        rule=rules.COUNT, metavar="N", scores=True,
    )  # fmt: skip
    file_rows: int | None = option(
        None, "Rows of an output file, at most. Small input files of one folder are joined, and large ones are cut. "
        "Default: chosen by the speed, the number of rows and --part-bytes.", rule=rules.COUNT,
        metavar="N", scores=True,
    )  # fmt: skip
    file_bytes: int | None = option(
        None, "Size of an output file, such as 128MiB, estimated from the first rows. Use it instead of --file-rows.",
        rule=rules.PART_SIZE, metavar="SIZE", scores=True,
    )  # fmt: skip
    work_dir: str | None = option(
        None, "Folder for staging and proof, on the output's file system. Default: OUT.scorer.",
        rule=rules.PLACE, completes="dir", metavar="DIR",
    )  # fmt: skip
    success_file: bool = option(
        default=False,
        help_="Put an empty file _SUCCESS into an output on an object store, after everything else. dask.dataframe "
        "cannot read such a folder as Parquet without naming the files.",
        rule=rules.SWITCH,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """Object stores."""

    store_option: tuple[str, ...] = option(
        (), "How stores are reached, for all or for one bucket: endpoint, region, profile, request_payer, "
        "skip_signature, allow_http, virtual_hosted_style_request, account_name, project. Repeatable. Credentials "
        "come from the environment.", rule=rules.STORE_OPTIONS, metavar="[URL:]KEY=VALUE",
    )  # fmt: skip
    sole_writer: bool = option(
        default=False,
        help_="Write to an object store without conditional writes. You promise that no other program writes to this "
        "output, because the store would not keep two of them apart.",
        rule=rules.SWITCH,
    )

    @property
    def settings(self) -> tuple[str, ...]:
        """What `scorer.storage.stores.configure` takes."""
        return (*self.store_option, *(["sole_writer=true"] if self.sole_writer else []))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """The workers that score."""

    cluster: str | None = option(
        None, "Where parts are scored: embedded (threads in this process), processes, synchronous (one thread, "
        "for debugging), jobs of a queue: slurm, pbs, sge, lsf, htcondor, oar, or a cluster of any Dask class, as "
        "MODULE:CLASS, such as dask_kubernetes.operator:KubeCluster. Default: embedded, or processes if a probe "
        "shows that threads block each other.", rule=rules.CLUSTER, metavar="KIND",
    )  # fmt: skip
    cluster_option: tuple[str, ...] = option(
        (), "Argument for the class of --cluster, such as n_workers=0; VALUE is JSON, or else text. Repeatable. "
        "Passwords belong in Dask's configuration.", rule=rules.CLUSTER_OPTIONS, metavar="NAME=VALUE",
    )  # fmt: skip
    cluster_name: str | None = option(
        None, "Name of a running cluster of the class of --cluster, to connect to and leave running.", rule=rules.TEXT,
        metavar="NAME",
    )  # fmt: skip
    scheduler: str | None = option(
        None, "Address of a running Dask scheduler to use.", rule=rules.TEXT, metavar="ADDRESS"
    )
    scheduler_file: str | None = option(
        None,
        "File that contains the address of a running Dask scheduler, as under MPI.",
        rule=rules.PLACE,
        completes="file",
        metavar="FILE",
    )
    workers: int | None = option(
        None,
        "Number of worker processes, jobs or workers of a class. Default: by the number of cores, one job, or as many "
        "as the class starts.",
        rule=rules.COUNT,
        metavar="N",
    )
    threads: int | None = option(
        None, "Scoring threads per worker. Default: the usable cores.", rule=rules.COUNT, metavar="N"
    )
    ahead: int | None = option(
        None, "Parts that each worker reads or writes beside those that it scores. Default: 1; on a store, twice the "
        "scoring threads, at most 16.", rule=rules.COUNT, metavar="N",
    )  # fmt: skip
    adapt: str | None = option(
        None,
        "Fewest and most processes or jobs; the number follows the remaining work. Use it instead of --workers.",
        rule=rules.SPAN,
        metavar="MIN:MAX",
    )
    queue: str | None = option(
        None, "Queue or partition for the jobs. Default: from Dask's jobqueue.yaml.", rule=rules.TEXT, metavar="NAME"
    )
    walltime: str | None = option(
        None, "Time limit of a job, as [DAYS-]HOURS:MINUTES:SECONDS. A worker takes no part that it could not "
        "finish in time.", rule=rules.WALLTIME,
        metavar="TIME",
    )  # fmt: skip
    memory: int | None = option(None, "Memory of a job, such as 16GiB.", rule=rules.MEMORY_SIZE, metavar="SIZE")
    interface: str | None = option(
        None, "Network interface that the jobs and this machine share, such as ib0.", rule=rules.TEXT, metavar="NAME"
    )
    job_extra: tuple[str, ...] = option(
        (), "Directive to add to the job script, such as --account=abc. Repeatable.", rule=rules.TEXTS, metavar="TEXT"
    )
    forward_env: tuple[str, ...] = option(
        (), "Environment variables that the jobs get with their values from here, such as AWS_PROFILE,AWS_REGION. "
        "The values stand in the job script, so names of secrets are refused. Repeatable.", rule=rules.VARIABLES,
        metavar="NAMES",
    )  # fmt: skip
    tls: bool | None = option(
        None,
        "Encrypt connections between processes and authenticate both ends, with keys created for the run. With "
        "--no-tls, every user who can reach this machine's ports can run code as you. Default: --tls.",
        rule=rules.SWITCH,
    )
    dashboard: bool = option(
        default=False, help_="Serve Dask's dashboard and metrics on this machine's loopback address and print the "
        "URL. They are not encrypted, and every user of this machine can open them. From another machine: ssh -L "
        "PORT:127.0.0.1:PORT HOST.", rule=rules.SWITCH,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """A complete, checked request."""

    input: tuple[str, ...]
    model: tuple[ModelPath, ...]
    """The only model, or several with a name each."""
    rows: InputOptions = InputOptions()
    binding: BindingOptions = BindingOptions()
    scoring: ScoringOptions = ScoringOptions()
    session: SessionOptions = SessionOptions()
    out: OutputOptions = OutputOptions()
    stores: StoreOptions = StoreOptions()
    cluster: ClusterOptions = ClusterOptions()
    implied: frozenset[str] = frozenset()
    """Names of options whose value was not given but follows from others, such as the cluster from --transform."""

    def to_dict(self) -> dict[str, Any]:
        """Return all values as one flat mapping, with the keys of a job.toml."""
        models = [str(model) for model in self.model]
        flat: dict[str, Any] = {"input": list(self.input), "model": models[0] if len(models) == 1 else models}
        for group in GROUPS:
            flat |= dataclasses.asdict(getattr(self, group))
        return flat | {"feed": tuple(feed.value for feed in self.binding.feed)}

    def non_defaults(self) -> dict[str, Any]:
        """Return the input, the model and the values that were given and differ from their defaults."""
        return {
            name: value
            for name, value in self.to_dict().items()
            if name not in FIELDS or (value != FIELDS[name].default and name not in self.implied)
        }


GROUPS: dict[str, type] = {
    "rows": InputOptions,
    "binding": BindingOptions,
    "scoring": ScoringOptions,
    "session": SessionOptions,
    "out": OutputOptions,
    "stores": StoreOptions,
    "cluster": ClusterOptions,
}
FIELDS: dict[str, dataclasses.Field[Any]] = {f.name: f for group in GROUPS.values() for f in fields(group)}
KEYS = ("input", "model", *FIELDS)
