"""Turn a checked request into a frozen plan: choose batch rows, storage and parts, and forecast the run."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from functools import partial
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any

from scorer.arrow import encode_schema
from scorer.cluster.kinds.sizes import (
    ahead_of,
    local_threads,
    planned_threads,
    process_threads,
    uses_jobs,
    uses_other_machines,
)
from scorer.cluster.scripts import can_spawn
from scorer.dataset.joins.requests import held_bytes
from scorer.display.words import plural
from scorer.host import cache, devices
from scorer.host.versions import versions
from scorer.locations import is_url
from scorer.options.fields import FIELDS, PART_BYTES
from scorer.plan.frozen import FORMAT, FrozenPlan, hash_of
from scorer.plan.lineage import entry_bytes
from scorer.plan.parts import PlannedFile
from scorer.plan.prepared import as_json_value, as_one, cluster_of
from scorer.plan.scorers import Scorer
from scorer.preflight import encodings, trial, tuning
from scorer.preflight import forecast as forecast_
from scorer.preflight.cutting import Size, joined_files, least_rows, part_rows, plan_files, together
from scorer.preflight.forecast import Measured, Parts, forecast, part_seconds
from scorer.preflight.tuning import Probe
from scorer.storage import copying, encoding
from scorer.storage.footers import open_parquet
from scorer.tables import deleted as deleted_
from scorer.tables.snapshot import TableState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import pyarrow as pa

    from scorer.binding.spec import Binding
    from scorer.dataset.summary import Dataset, File
    from scorer.model.resident import Engine
    from scorer.options.fields import Options
    from scorer.plan.prepared import Forecast
    from scorer.preflight.models.bound import Bound, Sample
    from scorer.preflight.models.loading import Loaded
    from scorer.preflight.models.requested import Model
    from scorer.storage.encoding import Storage
    from scorer.tables.snapshot import Snapshot


_LEFT_OUT = {
    "by_position": False, "labels": (), "batch_axis": (), "base": None, "file_rows": None, "file_bytes": None,
    "format": "parquet", "mode": None, "partition_by": (), "join": (),
}  # fmt: skip
"""Values of newer options that are no part of a request, so that requests without them keep their hash."""
_RENAMED = {"format": "output_format"}
"""Options whose name means something else in a request."""


def request_of(options: Options, dataset: Dataset, models: Sequence[Model], files: dict[str, str]) -> dict[str, Any]:
    """Return what identifies a request: input, models, other files by digest, options that change scores or output."""
    inputs = [*map(as_input, dataset.files), *dataset.left_out]
    return request_for(options, inputs, dataset.table, models, files)


def request_for(
    options: Options, inputs: Sequence[Any], table: Snapshot | None, models: Sequence[Model], files: dict[str, str]
) -> dict[str, Any]:
    """Return what identifies a request.

    `inputs` are what `as_input` returns for each file, and the paths of the files that --where rules out.
    """
    values = options.to_dict()
    values["device"] = devices.parse(options.session.device).name  # which GPU of several does not change scores
    chosen = {
        _RENAMED.get(name, name): as_json_value(values[name])
        for name, field in FIELDS.items()
        if field.metadata["scores"] and (name not in _LEFT_OUT or values[name] != _LEFT_OUT[name])
    }
    return {
        "format": FORMAT,
        "input": digest_of_input(inputs),
        **({} if table is None else {"table": [table.kind, table.table_id, table.version]}),
        "model": [[one.name, one.spec.digest] for one in models] if models[0].name else models[0].spec.digest,
        **_tracked_names(models),
        "files": files,
        **chosen,
    }


def _tracked_names(models: Sequence[Model]) -> dict[str, Any]:
    """Return the names that models have in a tracking store; nothing if none has one."""
    found = {one.name: one.spec.name for one in models if one.spec.name}
    return {"model_name": as_one(found)} if found else {}


def as_input(file: File | PlannedFile) -> list[Any]:
    """Return what identifies a file in a request."""
    groups = file.row_groups
    if isinstance(file, PlannedFile):
        groups = tuple(rows for rows, times in file.row_groups for _ in range(times))
    more = [] if isinstance(file, PlannedFile) else _by_log(file)
    return [file.path, file.folder, file.id.size, file.id.version, hash_of(groups), *more]


def digest_of_input(inputs: Sequence[Any]) -> str:
    """Return the hash of the input for a request."""
    return hash_of(inputs)


def _by_log(file: File) -> list[Any]:
    """Return what the log of a table says of a file; nothing for a plain file, so that its request keeps its hash."""
    return [] if file.of_table is None else [file.of_table.keys, file.of_table.deletes]


def deleted_rows(files: Sequence[PlannedFile], dataset: Dataset) -> bytes:
    """Return the contents of the file with the numbers of deleted rows; nothing if there are none."""
    numbers = {file.path: dataset.deleted_rows(file) for file in dataset.files if file.deleted}
    found = [numbers.get(file.path, deleted_.NONE)[: file.deleted[1]] for file in files if file.deleted]
    return deleted_.as_file(found) if found else b""


_INSPECTED_PARTS = 4  # the first files, or those of the first parts: their row groups must be worth copying
_MIN_COPIED_SHARE = 0.5
"""Copied bytes per encoded byte: with fewer it costs more to pass the encoded columns through memory once more."""
MOST_STORE_BYTES = (1 << 30) // 2
"""Encoded bytes of a file on a store, as estimated: a file of whole row groups may be half as large again, and stays
below 1 GiB."""
_SAMPLE_BYTES = 32 << 20  # of decoded rows: pictures are large


def rows_ahead(options: Options, dataset: Dataset) -> int:
    """Return how many rows the run will read, before any filter."""
    limit = options.rows.limit
    return dataset.rows if limit is None else min(dataset.rows, limit)


def sample_rows(options: Options, dataset: Dataset, schema: pa.Schema) -> int:
    """Return how many first rows to read: more if batch sizes will be timed, up to 32 MB of these columns."""
    if not options.scoring.tune or rows_ahead(options, dataset) < tuning.PROBED_FROM:
        return trial.SAMPLE_ROWS
    return max(
        trial.SAMPLE_ROWS, min(tuning.PROBE_ROWS, int(_SAMPLE_BYTES / _decoded_row_bytes(dataset, schema.names)))
    )


def choose_batch(
    options: Options, dataset: Dataset, session: Engine, binding: Binding, sample: Sample, row_s: float | None
) -> Probe:
    """Choose a model's batch rows: its fixed ones, the requested ones, or the fastest, timed now or cached."""
    requested, device = options.scoring.batch_rows, session.spec.device
    rows, threads = rows_ahead(options, dataset), planned_threads(options.cluster)
    if row_s is None:
        return tuning.untuned(binding, requested, None, device=device)
    busy_s = tuning.row_seconds(session, binding, sample.fed)
    nominal = tuning.nominal_rate(binding, busy_s)
    if not options.scoring.tune or not tuning.worthwhile(binding, busy_s, rows, threads, device):
        default = tuning.untuned(binding, requested, busy_s, device=device)
        seconds = row_s if binding.texts or device != "cpu" else busy_s  # tokenizers have threads of their own
        return replace(default, rows_per_s=1 / seconds, nominal_rows_per_s=nominal)
    accelerator = device != "cpu"
    here = local_threads(options.cluster)
    key = cache.key_of(
        here,
        session.spec.key,
        session.trees,
        asdict(binding),
        sample.fed.schema.to_string(),
        versions(),
        tuning.METHOD,
        tuning.PROBE_ROWS,
        *(devices.cards() if accelerator else []),
    )
    cached = cache.load(key)
    if cached is None:
        if accelerator:
            timed = tuning.grow_batches(session, binding, sample.fed, row_s)
        else:
            timed = tuning.probe(session, binding, sample.fed, busy_s, rows / threads, here)
        if timed.confirmed:
            cache.store(key, asdict(timed))
    else:
        timed = Probe(**{**cached, "trials": (*cached["trials"], "cached")})
    timed = replace(timed, nominal_rows_per_s=nominal)
    pinned = binding.fixed_batch or requested
    return replace(timed, batch_rows=pinned, batch_tokens=None) if pinned else timed


def freeze(
    options: Options, request: dict[str, Any], dataset: Dataset, loaded: Loaded, bound: Bound, sample: Sample,
    probes: Sequence[Probe], *, on_store: bool = False,
) -> tuple[FrozenPlan, Forecast | None, list[str]]:  # fmt: skip
    """Return the frozen plan, a forecast if the probes measured the speed, and notes.

    If the output is `on_store`, its files have names of their own and a limited size.
    """
    probe = tuning.combined(probes)
    out = _first_output(loaded, bound, sample, probe)
    kept, scores = sample.rows.select(list(bound.kept.columns)), out.select(list(bound.outputs))
    chosen = encodings.choose(dataset, options.out, kept, scores)
    file_rows = _file_rows(options, out, chosen, 0.0)
    size = part_size(options, dataset, bound, probe, frozenset(), file_rows)
    chosen, copied = _copied(options, dataset, bound, sample, chosen, size)
    unread = frozenset(set(chosen.copied) - bound.reads)
    if chosen.copied:
        file_rows = _file_rows(options, out, chosen, copied)
        size = part_size(options, dataset, bound, probe, unread, file_rows)
    if on_store:
        size = size.at_most(_store_rows(out, chosen, copied))
    chosen = replace(chosen, stretch_rows=size.target if chosen.copied else 0)
    planned = planned_files(options, dataset, size)
    frozen = FrozenPlan(
        request=request,
        files=planned,
        table=table_state(planned, dataset),
        left_out=dataset.left_out,
        conditions=tuple(options.rows.where),
        scorers=_scorers(loaded, bound, probes),
        kept=bound.kept.columns,
        row_id=bound.kept.row_id,
        read_schema=encode_schema(bound.read_schema),
        output_schema=encode_schema(bound.output_schema),
        storage=chosen,
        joins=bound.joins,
        transform=bound.transform,
        fed_schema=encode_schema(sample.fed.schema) if bound.transform is not None else "",
        generation=int(options.out.new_only),
        own_names=on_store or bound.target is not None,
        target=bound.target,
        versions=versions(),
    )
    notes = [] if file_rows is None else _file_notes(options, file_rows, size, frozen)
    if probe.rows_per_s is None:
        return frozen, None, notes
    measured = Measured(
        rows=sample.rows, out=out, scores=len(bound.outputs), storage=chosen,
        unread=frozenset() if frozen.deleted else unread, copied=copied,
        held=forecast_.held_row_bytes(bound.transform, bound.bindings, sample.rows, sample.fed),
        batch=sum(map(_batch_bytes, loaded.sessions, bound.bindings, repeat(sample), sample.first_row_bytes, probes)),
        largest_group=_largest_group_bytes(dataset, bound.read_schema.names, unread),
    )  # fmt: skip
    memory = forecast_.Loading.in_turn(loaded.memory, held_bytes(bound.joins))
    remote = _remote(options, dataset, bound, measured)
    footprint = partial(
        forecast_.footprint, frozen.most_rows, size.target, dataset.row_group_rows, measured, memory,
        filtered=bool(options.rows.where), remote=remote,
    )  # fmt: skip
    ahead, needs, lowered = _fitting(options, lambda ahead: footprint(_workers(options, probe, frozen.n_parts, ahead)))
    estimated = _forecast(options, dataset, frozen, measured, needs, probe.rows_per_s, remote)
    return frozen, replace(estimated, ahead=ahead), [*notes, *lowered]


def _scorers(loaded: Loaded, bound: Bound, probes: Sequence[Probe]) -> tuple[Scorer, ...]:
    return tuple(
        Scorer(
            name=name, binding=binding, session=spec, batch_rows=one.batch_rows, batch_tokens=one.batch_tokens,
            trials=one.trials, together=one.together,
        )
        for name, binding, spec, one in zip(loaded.names, bound.bindings, loaded.specs, probes, strict=True)
    )  # fmt: skip


def _forecast(
    options: Options, dataset: Dataset, frozen: FrozenPlan, measured: Measured, needs: forecast_.Footprint,
    rows_per_s: float, remote: forecast_.Remote | None,
) -> Forecast:  # fmt: skip
    n_parts = max(1, frozen.n_parts)
    part_s = part_seconds(dataset.open_s, 1 + sum(file.joined for file in frozen.files) / n_parts)
    total, threads = rows_ahead(options, dataset), min(planned_threads(options.cluster), n_parts)
    parts = Parts(frozen.n_parts, part_s, entry_bytes(frozen))
    return forecast(total, parts, measured, rows_per_s, threads, needs, _network(options, total, remote))


def _network(options: Options, rows: int, remote: forecast_.Remote | None) -> forecast_.Network:
    """Return what the run reads from stores; each job of a queue is taken to have a link of its own."""
    if remote is None or not remote.read_row:
        return forecast_.Network()
    from scorer.storage.fetched import bytes_per_s  # noqa: PLC0415 - only for stores

    links = planned_threads(options.cluster) // process_threads(options.cluster) if uses_jobs(options.cluster) else 1
    return forecast_.Network(remote.read_row * rows, (bytes_per_s() or math.inf) * max(links, 1))


def planned_files(options: Options, dataset: Dataset, size: Size) -> tuple[PlannedFile, ...]:
    """Return every file with its parts."""
    limit, unlike = dataset.stored_limit(options.rows.limit), dict(dataset.variants)
    return plan_files(dataset.files, size, limit, unlike, dataset.deleted_rows)


def table_state(files: Sequence[PlannedFile], dataset: Dataset) -> TableState | None:
    """Return what a plan has of the table of these files; None if they are plain files."""
    if dataset.table is None:
        return None
    data = deleted_rows(files, dataset)
    return TableState.of(dataset.table, deleted_.digest(data) if data else "")


def _first_output(loaded: Loaded, bound: Bound, sample: Sample, probe: Probe) -> pa.Table:
    """Return first rows as the output will contain them: the most that are scored already or quickly.

    Only their sizes matter, not which row is beside which.
    """
    rows = forecast_.usual_rows(sample.rows)
    shown = min(tuning.rows_to_encode(sample.fed.num_rows, probe.nominal_rows_per_s), rows.num_rows)
    scores: list[pa.Array] = []
    for at, (binding, session) in enumerate(zip(bound.bindings, loaded.sessions, strict=True)):
        own = sample.scores[at] if sample.scores else ()
        if not own or len(own[0]) < shown:
            own = trial.scores_of(sample.fed.slice(0, shown), binding, session)
        scores += own
    n = min((*map(len, scores), rows.num_rows)) if scores else shown
    few = [one.slice(0, n) for one in scores]
    return trial.as_output(rows.slice(0, n), bound.kept.columns, dict(zip(bound.outputs, few, strict=True)),
                           bound.output_schema)  # fmt: skip


def _batch_bytes(session: Engine, binding: Binding, sample: Sample, first_row_bytes: float, probe: Probe) -> int:
    """Return the memory of one batch: a few texts or pictures show it best in the first, numbers in a full one."""
    first = first_row_bytes * probe.batch_rows if binding.texts or binding.pictures else 0.0
    full = forecast_.batch_bytes(session, binding, sample.fed, probe.batch_rows, probe.batch_tokens)
    return max(int(first), full)


def _fitting(
    options: Options, footprint: Callable[[int | None], forecast_.Footprint]
) -> tuple[int | None, forecast_.Footprint, list[str]]:
    """Return how many parts ahead fit into --memory, if not as many as usual, with the footprint and a note.

    Without --memory, with --ahead, and if not even one part fits, the number stays as it is.
    """
    needs, memory = footprint(None), options.cluster.memory
    if memory is None or options.cluster.ahead is not None or not needs.remote or forecast_.most(needs) <= memory:
        return None, needs, []
    usual = ahead_of(options.cluster, _locations(options))
    for ahead in range(usual - 1, 0, -1):
        less = footprint(ahead)
        if forecast_.most(less) <= memory:
            return ahead, less, [f"--memory leaves room for {plural(ahead, 'part')} ahead, instead of {usual}"]
    return None, needs, []


def _workers(options: Options, probe: Probe, n_parts: int, ahead: int | None) -> forecast_.Workers:
    """Return how the run's threads will be divided into processes, with so many parts ahead; None: as usual."""
    cluster = cluster_of(options, probe.together, spawns=can_spawn())
    separate = cluster not in {"embedded", "synchronous"} or uses_other_machines(options.cluster)
    requested = replace(options.cluster, cluster=cluster)
    if ahead is not None:
        requested = replace(requested, ahead=ahead)
    alone = options.cluster.cluster is None and cluster == "processes"
    threads = (1 if alone else process_threads(requested)) + separate
    waiting = process_threads(requested) + ahead_of(requested, _locations(options))
    return forecast_.Workers(
        parts=min(threads, max(1, n_parts)), separate=separate, waiting=min(waiting, max(1, n_parts))
    )


def _locations(options: Options) -> tuple[str, ...]:
    """Return where the input is, and the output if it is said."""
    return (*options.input, options.out.output or "")


def _remote(options: Options, dataset: Dataset, bound: Bound, measured: Measured) -> forecast_.Remote | None:
    """Return what passes between a worker and stores; None if input and output are local."""
    reads, writes = any(map(is_url, options.input)), any(map(is_url, (options.input[0], options.out.output or "")))
    if not (reads or writes):
        return None
    names, footer = bound.read_schema.names, dataset.footer
    leaves = (
        []
        if footer is None
        else [i for i in range(footer.num_columns) if footer.schema.column(i).path.partition(".")[0] in names]
    )
    read_row = copying.compressed_row_bytes(footer, {"": tuple(leaves)}) if reads and footer is not None else 0.0
    written_row = measured.encoded()[0] + measured.copied if writes else 0.0
    return forecast_.Remote(read_row=read_row, columns=len(leaves), written_row=written_row)


def _largest_group_bytes(dataset: Dataset, names: Iterable[str], unread: frozenset[str]) -> float:
    """Return the decoded bytes of the largest row group in the first files, in the columns that are decoded."""
    return sum(dataset.largest_bytes.get(name, 0.0) for name in names if name not in unread)


def _copied(
    options: Options, dataset: Dataset, bound: Bound, sample: Sample, chosen: Storage, size: Size
) -> tuple[Storage, float]:
    """Choose the kept columns that are copied as they are stored; return their compressed bytes per row, too.

    No column is copied if another compression or row group size is requested, if rows are filtered out, or if the
    row groups of a part are so small that they are better merged. A column that is decoded anyway is encoded again if
    that makes it clearly smaller than in the input. If most bytes would be encoded, all columns are.
    """
    out, kept, reads = options.out, bound.kept.columns, bound.reads
    limit = dataset.stored_limit(options.rows.limit)
    parts = islice(together(dataset.files, size, limit, dict(dataset.variants)), _INSPECTED_PARTS)
    tiny = not all(
        copying.worth_copying(sum(file.rows for file in files), sum(len(file.row_groups) for file in files))
        for files in parts
    )
    rewritten = out.compression != "source" or out.row_group_rows is not None or bool(options.rows.where)
    if rewritten or tiny or dataset.footer is None or not kept:
        return chosen, 0.0
    with open_parquet(dataset.files[0].id, dataset.footer) as parquet:
        columns = copying.copyable(copying.FileForm.of(bound.output_schema, chosen), parquet, kept)
    if not columns:
        return chosen, 0.0
    encoded = encoding.encoded_column_bytes(sample.rows.select([name for name in kept if name in reads]), chosen)
    for name in encoded.keys() & columns.keys():
        if encoded[name] < encoding.GAIN_THRESHOLD * copying.compressed_row_bytes(
            dataset.footer, {name: columns[name]}
        ):
            del columns[name]
    copied = copying.compressed_row_bytes(dataset.footer, columns)
    others = sum(size for name, size in encoded.items() if name not in columns)
    worth = copied > _MIN_COPIED_SHARE * others
    return (replace(chosen, copied=tuple(columns)), copied) if worth else (chosen, 0.0)


def part_size(
    options: Options, dataset: Dataset, bound: Bound, probe: Probe, unread: frozenset[str], file_rows: int | None
) -> Size:
    """Return how large parts are; a part of whole row groups may have more rows if `unread` columns are copied.

    If a number of rows is requested for a file, only memory makes parts smaller.
    """
    total, threads = rows_ahead(options, dataset), planned_threads(options.cluster)
    most, speed = options.rows.part_bytes or PART_BYTES, probe.nominal_rows_per_s
    names = bound.names
    row_bytes = _decoded_row_bytes(dataset, names)
    decoded_bytes = _decoded_row_bytes(dataset, [name for name in names if name not in unread])
    if file_rows is not None:
        target, whole = (max(1, min(file_rows, int(most / size))) for size in (row_bytes, decoded_bytes))
        return Size(target, probe.batch_rows, whole=whole, joined=whole, strict=True)
    target = part_rows(total, row_bytes, most, threads, speed)
    # texts are sorted by length within a part: small parts would pad more
    least = max(least_rows(target, row_bytes, speed, threads), target // (8 if probe.batch_tokens is None else 4))
    return Size(
        target, probe.batch_rows, threads, least, 2 if uses_other_machines(options.cluster) else 1,
        whole=part_rows(total, decoded_bytes, most, threads, speed) if unread and not dataset.has_deleted else 0,
        joined=min(target, max(1, int(PART_BYTES / row_bytes))),  # larger files are not joined
        files=joined_files(len(dataset.files), threads),
    )  # fmt: skip


def _store_rows(out: pa.Table, storage: Storage, copied: float) -> int:
    """Return the most rows of a file on a store: it is encoded in memory, and written with one request."""
    encoded = out.select([name for name in out.column_names if name not in storage.copied])
    row_bytes = encoding.encoded_growth(encoded, storage)[0] + copied
    return max(1, int(MOST_STORE_BYTES / max(row_bytes, 1e-9)))


def _file_rows(options: Options, out: pa.Table, storage: Storage, copied: float) -> int | None:
    """Return the requested rows of an output file, or those that make up its requested size; None by default.

    `copied` are the compressed bytes of a row of the copied columns.
    """
    if options.out.file_bytes is None:
        return options.out.file_rows
    encoded = out.select([name for name in out.column_names if name not in storage.copied])
    row_bytes, file_bytes = encoding.encoded_growth(encoded, storage)
    return max(1, int((options.out.file_bytes - file_bytes) / max(row_bytes + copied, 1e-9)))


def _file_notes(options: Options, file_rows: int, size: Size, frozen: FrozenPlan) -> list[str]:
    """Return a note if files have other sizes than requested, because of memory or of the batch size."""
    flag = "--file-rows" if options.out.file_bytes is None else "--file-bytes"
    most = max(size.target, size.whole)
    if most < min(file_rows, frozen.rows):
        return [f"{flag}: a file has at most {most:,} rows; --part-bytes allows no more, because a file is one part"]
    if frozen.most_rows > file_rows:
        batch = plural(frozen.batch_rows, "row")
        return [f"{flag}: a file may have {frozen.most_rows:,} rows; a batch has {batch} and is not divided"]
    return []


def _decoded_row_bytes(dataset: Dataset, names: Iterable[str]) -> float:
    """Return the average decoded bytes of a row of these columns."""
    return max(1.0, sum(dataset.column_bytes.get(name, 8.0) for name in names))
