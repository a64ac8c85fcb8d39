"""Once nothing is wrong: batch rows, parts, how the output is stored, and the forecast."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from scorer.arrow import encode_schema
from scorer.binding import spec as spec_
from scorer.cluster.connect import elsewhere, local_threads, planned_threads
from scorer.host import cache, devices
from scorer.host.versions import versions
from scorer.options.request import FIELDS, PART_BYTES
from scorer.plan.frozen import FORMAT, FrozenPlan, _hash
from scorer.plan.prepared import as_json_value
from scorer.preflight import encodings, trial, tuning
from scorer.preflight.cutting import Size, least_rows, part_rows, plan_files
from scorer.preflight.forecast import Measured, footprint, forecast
from scorer.preflight.tuning import Probe
from scorer.storage import copying, encoding
from scorer.storage.footers import open_parquet

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa

    from scorer.binding.spec import Binding, Transform
    from scorer.dataset.summary import Dataset
    from scorer.model.session import Session
    from scorer.model.spec import ModelSpec, SessionSpec
    from scorer.options.request import Options
    from scorer.plan.prepared import Forecast
    from scorer.storage.encoding import Storage


def request_of(options: Options, dataset: Dataset, model: ModelSpec, files: dict[str, str]) -> dict[str, Any]:
    """What is hashed: inputs, model, other files by digest, and the options that change scores or output."""
    asked = options.to_dict()
    inputs = [[f.path, f.folder, f.id.size, f.id.version, _hash(f.row_groups)] for f in dataset.files]
    asked["device"] = devices.parse(options.session.device).name  # which of several makes no difference
    chosen = {name: as_json_value(asked[name]) for name, field in FIELDS.items() if field.metadata["scores"]}
    return {"format": FORMAT, "input": _hash(inputs), "model": model.digest, "files": files, **chosen}


_LOOKED_AT = 4  # files, for the size of their row groups
_WORTH = 0.5  # of the bytes that are encoded beside copied ones, and go through memory once more for it
_SAMPLE_BYTES = 32 << 20  # pictures are large


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The model as it is loaded in this process, and what loads it elsewhere."""

    session: Session
    spec: SessionSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Columns matched to tensors, and the schemas that follow from the match."""

    binding: Binding
    """Without fetches until rows have been tried."""
    transform: Transform | None
    read_schema: pa.Schema
    output_schema: pa.Schema
    """Empty until rows have been tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The first rows of the input."""

    rows: pa.Table
    """As they are read."""
    fed: pa.Table
    """As they are fed."""
    process_bytes: int
    """Memory of the process before the model got a batch of them."""


def rows_ahead(options: Options, dataset: Dataset) -> int:
    """How many rows the run will read."""
    limit = options.rows.limit
    return dataset.rows if limit is None else min(dataset.rows, limit)


def sample_rows(options: Options, dataset: Dataset, schema: pa.Schema) -> int:
    """How many first rows to look at, when these columns are read."""
    if not options.scoring.tune or rows_ahead(options, dataset) < tuning.PROBED_FROM:
        return trial.SAMPLE_ROWS
    return max(
        trial.SAMPLE_ROWS, min(tuning.PROBE_ROWS, int(_SAMPLE_BYTES / _decoded_row_bytes(dataset, schema.names)))
    )


def choose_batch(
    options: Options, dataset: Dataset, loaded: Loaded, bound: Bound, sample: Sample, row_s: float | None
) -> Probe:
    """The batch rows: as asked, as the model has them fixed, or as they were fastest, now or the last time."""
    binding, asked, device = bound.binding, options.scoring.batch_rows, loaded.spec.device
    rows, threads = rows_ahead(options, dataset), planned_threads(options.cluster)
    if row_s is None or not options.scoring.tune or not tuning.worthwhile(binding, row_s, rows, threads, device):
        return tuning.untuned(binding, asked, row_s, device=device)
    grows = device != "cpu"
    here = local_threads(options.cluster)
    key = cache.key_of(
        here,
        loaded.spec.key,
        asdict(binding),
        sample.fed.schema.to_string(),
        versions(),
        tuning.METHOD,
        tuning.PROBE_ROWS,
        *(devices.cards() if grows else []),
    )
    found = cache.load(key)
    if found is None:
        if grows:
            timed = tuning.grow_batches(loaded.session, binding, sample.fed, row_s)
        else:
            timed = tuning.probe(loaded.session, binding, sample.fed, row_s, rows / threads, here)
        if timed.trials:  # a longer run has more to gain
            cache.store(key, asdict(timed))
    else:
        timed = Probe(**{**found, "trials": (*found["trials"], "as remembered")})
    pinned = binding.fixed_batch or asked
    return replace(timed, batch_rows=pinned, batch_tokens=None) if pinned else timed


def freeze(
    options: Options, request: dict[str, Any], dataset: Dataset, loaded: Loaded, bound: Bound, sample: Sample,
    probe: Probe,
) -> tuple[FrozenPlan, Forecast | None]:  # fmt: skip
    """The plan, and what it will take where the probe tells."""
    binding = bound.binding
    total = rows_ahead(options, dataset)
    threads = planned_threads(options.cluster)
    shown = tuning.rows_to_encode(sample.fed.num_rows, probe.rows_per_s)
    first, fed = sample.rows.slice(0, shown), sample.fed.slice(0, shown)
    out = trial.as_output(first, fed, binding, loaded.session, bound.output_schema)
    kept, scores = sample.rows.select(list(binding.kept)), out.select(list(binding.outputs))
    reads = set(spec_.reads(bound.transform, binding.fed))
    chosen, copied = _copied(
        options, dataset, bound, sample, encodings.choose(dataset, options.out, kept, scores), reads
    )
    unread = frozenset(set(chosen.copied) - reads)
    size = _part_size(options, dataset, bound, probe, unread)
    chosen = replace(chosen, stretch_rows=size.target if chosen.copied else 0)
    frozen = FrozenPlan(
        request=request,
        files=plan_files(dataset.files, size, options.rows.limit),
        conditions=tuple(options.rows.where),
        binding=binding,
        session=loaded.spec,
        batch_rows=probe.batch_rows,
        batch_tokens=probe.batch_tokens,
        read_schema=encode_schema(bound.read_schema),
        output_schema=encode_schema(bound.output_schema),
        storage=chosen,
        transform=bound.transform,
        fed_schema=encode_schema(sample.fed.schema) if bound.transform is not None else "",
        trials=probe.trials,
        together=probe.together,
        versions=versions(),
    )
    if probe.rows_per_s is None:
        return frozen, None
    measured = Measured(
        rows=sample.rows, out=out, scores=len(binding.outputs), storage=chosen, unread=unread, copied=copied
    )
    filtered = bool(options.rows.where)
    groups = dataset.row_group_rows
    held = footprint(frozen.most_rows, size.target, groups, measured, filtered=filtered, loaded=sample.process_bytes)
    return frozen, forecast(total, measured, probe.rows_per_s, threads, held)


def _copied(
    options: Options, dataset: Dataset, bound: Bound, sample: Sample, chosen: Storage, reads: set[str]
) -> tuple[Storage, float]:
    """Which kept columns are copied as they are stored, and what a row of them takes.

    None where they are to be stored otherwise, where rows are left out, and where row groups are better put together.
    What is decoded anyway is encoded where that takes less room than the input's own; and if that is most of it,
    everything is.
    """
    asked, kept = options.out, bound.binding.kept
    tiny = not all(copying.worth_copying(file.rows, len(file.row_groups)) for file in dataset.files[:_LOOKED_AT])
    otherwise = asked.compression != "source" or asked.row_group_rows is not None or bool(options.rows.where)
    if otherwise or tiny or dataset.footer is None or not kept:
        return chosen, 0.0
    with open_parquet(dataset.files[0].path, dataset.footer) as parquet:
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
    beside = sum(size for name, size in encoded.items() if name not in columns)
    return (replace(chosen, copied=tuple(columns)), copied) if copied > _WORTH * beside else (chosen, 0.0)


def _part_size(options: Options, dataset: Dataset, bound: Bound, probe: Probe, unread: frozenset[str]) -> Size:
    """How large parts are; more rows fit where some columns are copied unread."""
    total, threads = rows_ahead(options, dataset), planned_threads(options.cluster)
    most, speed = options.rows.part_bytes or PART_BYTES, probe.rows_per_s
    names = bound.read_schema.names
    row_bytes = _decoded_row_bytes(dataset, names)
    target = part_rows(total, row_bytes, most, threads, speed)
    least = least_rows(target, row_bytes, speed, threads)
    if probe.batch_tokens is not None:
        least = max(least, target // 4)  # texts are sorted by length inside a part
    lean = _decoded_row_bytes(dataset, [name for name in names if name not in unread])
    whole = part_rows(total, lean, most, threads, speed) if unread else 0
    return Size(target, probe.batch_rows, threads, least, 2 if elsewhere(options.cluster) else 1, whole)


def _decoded_row_bytes(dataset: Dataset, names: Iterable[str]) -> float:
    """Decoded bytes of a row of these columns."""
    return max(1.0, sum(dataset.column_bytes.get(name, 8.0) for name in names))
