"""Once nothing is wrong: batch rows, parts, how the output is stored, and the forecast."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from scorer import devices, remembered, sampling, storage, tuning
from scorer.cluster import elsewhere, local_threads, planned_threads
from scorer.forecast import footprint, forecast
from scorer.options import PART_BYTES
from scorer.parts import Size, least_rows, part_rows, plan_files
from scorer.plan import FrozenPlan
from scorer.sink import encode_schema
from scorer.tuning import Probe

if TYPE_CHECKING:
    import pyarrow as pa

    from scorer.binding import Binding
    from scorer.dataset import Dataset
    from scorer.forecast import Forecast
    from scorer.options import Options
    from scorer.session import Session, SessionSpec
    from scorer.transforming import Transform


_SAMPLE_BYTES = 32 << 20  # pictures are large


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What is settled before the parts are cut."""

    dataset: Dataset
    binding: Binding
    session: Session
    spec: SessionSpec
    request: dict[str, Any]
    read_schema: pa.Schema
    output_schema: pa.Schema
    rows: pa.Table
    """The first rows of the input, as they are kept."""
    fed: pa.Table
    """And as they are fed."""
    versions: dict[str, str]
    loaded: int
    """Bytes that the process held before the model saw its first batch."""
    transform: Transform | None = None


def rows_ahead(options: Options, dataset: Dataset) -> int:
    """How many rows the run will read."""
    limit = options.rows.limit
    return dataset.rows if limit is None else min(dataset.rows, limit)


def sample_rows(options: Options, dataset: Dataset, schema: pa.Schema) -> int:
    """How many first rows to look at, when these columns are read."""
    if not options.scoring.tune or rows_ahead(options, dataset) < tuning.PROBED_FROM:
        return sampling.SAMPLE_ROWS
    return max(sampling.SAMPLE_ROWS, min(tuning.PROBE_ROWS, int(_SAMPLE_BYTES / _row_bytes(dataset, schema))))


def probed(options: Options, known: Settled, row_s: float | None) -> Probe:
    """The batch rows: as asked, as the model has them fixed, or as they were fastest, now or the last time."""
    binding, asked, device = known.binding, options.scoring.batch_rows, known.spec.device
    rows, threads = rows_ahead(options, known.dataset), planned_threads(options.cluster)
    if row_s is None or not options.scoring.tune or not tuning.worthwhile(binding, row_s, rows, threads, device):
        return tuning.untuned(binding, asked, row_s, device=device)
    grows = device != "cpu"
    here = local_threads(options.cluster)
    key = remembered.key_of(
        here,
        known.spec.key,
        asdict(binding),
        known.fed.schema.to_string(),
        known.versions,
        tuning.METHOD,
        tuning.PROBE_ROWS,
        *(devices.cards() if grows else []),
    )
    found = remembered.recall(key)
    if found is None:
        if grows:
            timed = tuning.grown(known.session, binding, known.fed, row_s)
        else:
            timed = tuning.probe(known.session, binding, known.fed, row_s, rows / threads, here)
        remembered.keep(key, asdict(timed))
    else:
        timed = Probe(**{**found, "trials": (*found["trials"], "as remembered")})
    pinned = binding.fixed_batch or asked
    return replace(timed, batch_rows=pinned, batch_tokens=None) if pinned else timed


def freeze(options: Options, known: Settled, probe: Probe) -> tuple[FrozenPlan, Forecast | None]:
    """The plan, and what it will take where the probe tells."""
    dataset, binding = known.dataset, known.binding
    total = rows_ahead(options, dataset)
    row_bytes = _row_bytes(dataset, known.read_schema)
    threads = planned_threads(options.cluster)
    target = part_rows(total, row_bytes, options.rows.part_bytes or PART_BYTES, threads, probe.rows_per_s)
    least = least_rows(target, row_bytes, probe.rows_per_s, threads)
    if probe.batch_tokens is not None:
        least = max(least, target // 4)  # texts are sorted by length inside a part
    size = Size(target, probe.batch_rows, threads, least, 2 if elsewhere(options.cluster) else 1)
    shown = tuning.worth_showing(known.fed.num_rows, probe.rows_per_s)
    first, fed = known.rows.slice(0, shown), known.fed.slice(0, shown)
    out = sampling.as_output(first, fed, binding, known.session, known.output_schema)
    kept, scores = known.rows.select(list(binding.kept)), out.select(list(binding.outputs))
    stored = storage.choose(dataset, options.out, kept, scores)
    frozen = FrozenPlan(
        request=known.request,
        files=plan_files(dataset.files, size, options.rows.limit),
        conditions=tuple(options.rows.where),
        binding=binding,
        session=known.spec,
        batch_rows=probe.batch_rows,
        batch_tokens=probe.batch_tokens,
        read_schema=encode_schema(known.read_schema),
        output_schema=encode_schema(known.output_schema),
        storage=stored,
        transform=known.transform,
        fed_schema=encode_schema(known.fed.schema) if known.transform is not None else "",
        trials=probe.trials,
        together=probe.together,
        versions=known.versions,
    )
    if probe.rows_per_s is None:
        return frozen, None
    filtered = bool(options.rows.where)
    held = footprint(
        frozen.most_rows, known.rows, out, len(binding.outputs), stored, filtered=filtered, loaded=known.loaded
    )
    return frozen, forecast(total, out, stored, probe.rows_per_s, threads, held)


def _row_bytes(dataset: Dataset, schema: pa.Schema) -> float:
    """Decoded bytes of a row of these columns."""
    return max(1.0, sum(dataset.column_bytes.get(name, 8.0) for name in schema.names))
