"""Try a few hundred rows through the real path: output shapes, batch rows, the forecast."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scorer import partition
from scorer.dataset import open_parquet, plain_batch, unreadable
from scorer.errors import BatchError, BindingError, ScorerError, ShapeMismatch
from scorer.features import Fetch, pack, steps
from scorer.fetching import fetch_of
from scorer.plan import BATCH_ROWS, Forecast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.binding import Binding
    from scorer.dataset import Dataset
    from scorer.features import Packed
    from scorer.fetching import Wanted
    from scorer.model import ModelSpec
    from scorer.session import Session

SAMPLE_ROWS = 256
_FEW = 8  # rows show an output's shape
PROBE_ROWS = 16_384
PROBED_FROM = 50_000  # rows: below, a probe costs more than it can save
_CANDIDATES = (256, 1024, 4096, 16_384)
_ROUNDS = 5
_TIE = 1.03  # a larger batch must be this much faster
_BUDGET_S = 0.5
_SPREAD = (0.7, 2.0)  # a sample of the first rows on a shared machine says no more
HEAVY_BATCH_ROWS = 8
_HEAVY_S = 0.5e-3  # a row
_BASE_BYTES = 250 * 2**20  # the process with its imports
_COPIES = 3  # a part decoded, packed and encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What tuning found."""

    batch_rows: int
    rows_per_s: float | None
    """Of scoring, one thread; None when nothing was timed."""
    trials: tuple[str, ...] = ()


def sample(dataset: Dataset, schema: pa.Schema, rows: int) -> pa.Table:
    """The first rows of the input, planned columns only; keys of paths included."""
    pieces: list[pa.Table] = []
    left, there = rows, set(dataset.schema.names)
    for file in dataset.files:
        if left <= 0 or len(pieces) > _ROUNDS:
            break
        own = [name for name in schema.names if name in there]
        try:
            with open_parquet(file.path) as parquet:
                batch = next(parquet.iter_batches(batch_size=left, columns=own, use_threads=False), None)
        except (OSError, pa.ArrowException) as error:
            raise unreadable(file.path, error) from error
        if batch is None or not batch.num_rows:
            continue
        batch = plain_batch(batch)
        columns = []
        for field in schema:
            if field.name in there:
                columns.append(pa.chunked_array([batch[field.name]]).cast(field.type))
            else:
                value = file.hive.get(field.name)
                scalar = pa.scalar(None, field.type) if value is None else pa.scalar(value).cast(field.type)
                columns.append(pa.chunked_array([pa.repeat(scalar, batch.num_rows)]))
        pieces.append(pa.Table.from_arrays(columns, schema=schema))
        left -= batch.num_rows
    return pa.concat_tables(pieces) if pieces else schema.empty_table()


def outputs(
    session: Session, binding: Binding, wanted: Sequence[Wanted], table: pa.Table, model: ModelSpec, prefix: str
) -> tuple[tuple[Fetch, ...], list[ScorerError]]:
    """How each wanted output becomes columns, learnt from rows that really went through."""
    few = table.slice(0, SAMPLE_ROWS if all(feed.kind != "image" for feed in binding.feeds) else _FEW)
    rows = binding.fixed_batch or max(2, min(_FEW, few.num_rows))
    asked = [Fetch(tensor=one.tensor, kind="", columns=(), type="") for one in wanted]
    tried = _tried(binding, few, rows)
    batches = _ran(session, asked, tried, many=any(feed.kind == "text" for feed in binding.feeds))
    if not batches:
        what, hint = (
            "the model refuses the first rows of the input",
            "check --feed: order, types and values of the columns",
        )
        raise BindingError(what, model.path, "a batch that runs", _complaint(session, asked, tried[0]), hint)
    problems: list[ScorerError] = []
    fetches: list[Fetch] = []
    for i, one in enumerate(wanted):
        raw = [(feeds, results[i]) for feeds, results in batches]
        try:
            _check_padding(one, [values for _, values in raw])
            stepped = [(feeds, steps.apply(one.steps, values, feeds)) for feeds, values in raw]
            ragged = _ragged(one, binding, stepped)
            fetches.append(fetch_of(one, stepped[0][1], rows, model, prefix, ragged=ragged))
        except ScorerError as error:
            problems.append(error)
    return tuple(fetches), problems


def _ran(
    session: Session, asked: Sequence[Fetch], tried: Sequence[dict[str, np.ndarray]], *, many: bool
) -> list[tuple[dict[str, np.ndarray], list[Any]]]:
    """Batches that the model takes, with what it gave: the first, or all; rows that it refuses are the run's affair."""
    ran: list[tuple[dict[str, np.ndarray], list[Any]]] = []
    for feeds in tried:
        if many or not ran:
            with suppress(BatchError):
                ran.append((feeds, partition.call(session, asked, feeds, None)))
    return ran


def _complaint(session: Session, asked: Sequence[Fetch], feeds: dict[str, np.ndarray]) -> str:
    try:
        partition.call(session, asked, feeds, None)
    except BatchError as error:
        return error.found
    return ""


def _ragged(one: Wanted, binding: Binding, batches: Sequence[tuple[dict[str, np.ndarray], Any]]) -> bool:
    """Whether rows are as long as their texts; refused where no single axis says how long."""
    texts = {
        (f.columns, f.setting("tokenizer"), f.setting("max_length")): f.tensor
        for f in binding.feeds
        if f.kind == "text"
    }
    arrays = [(feeds, values) for feeds, values in batches if isinstance(values, np.ndarray)]
    if not texts or len({values.shape[1:] for _, values in arrays}) <= 1:
        return False
    tensor = next(iter(texts.values()))
    second = all(v.ndim > 1 and v.shape[1] == feeds[tensor].shape[-1] for feeds, v in arrays)
    others = {values.shape[2:] for _, values in arrays}
    if len(texts) > 1 or not second or len(others) > 1:
        what, hint = (
            f"output {one.tensor!r} changes its shape with the length of the texts",
            "pool it, or leave it out with --fetch",
        )
        shapes = " and ".join(sorted({str(list(values.shape)) for _, values in arrays}))
        raise ShapeMismatch(what, f"--fetch {one.tensor}", "[N, tokens, ...] of one text", shapes, hint)
    return True


def _check_padding(one: Wanted, batches: Sequence[Any]) -> None:
    """Refuse steps that would take padding for values: those over a last axis that is as long as the longest row."""
    step = next((step for step in one.steps if step.startswith(steps.OVER_VALUES)), None)
    lengths = {batch.shape[-1] for batch in batches if isinstance(batch, np.ndarray) and batch.ndim > 1}
    if step is not None and len(lengths) > 1:
        what = f"step {step} would count padding: the last axis of {one.tensor!r} is that of tokens"
        hint = "leave the step out: rows come without their padding"
        raise ShapeMismatch(what, f"--fetch {one.tensor}|{step}", "[N, ..., k]", f"k from {sorted(lengths)}", hint)


def probe(session: Session, binding: Binding, table: pa.Table) -> Probe:
    """The batch rows that score the sample fastest: interleaved, one thread, best of five."""
    best = dict.fromkeys((n for n in _CANDIDATES if n <= max(table.num_rows, _CANDIDATES[0])), float("inf"))
    began = time.perf_counter()
    for turn in range(_ROUNDS):
        for batch_rows in best:
            rows = min(table.num_rows, max(batch_rows, 4 * _CANDIDATES[0]))
            started = time.perf_counter()
            partition.score(table.slice(0, rows), partition.grid(rows, batch_rows), binding, session)
            best[batch_rows] = min(best[batch_rows], (time.perf_counter() - started) / rows)
        if time.perf_counter() - began > _BUDGET_S and turn:
            break
    chosen = min(best)
    for batch_rows in sorted(best):
        if best[batch_rows] * _TIE < best[chosen]:
            chosen = batch_rows
    trials = tuple(f"{n} rows: {1 / seconds:,.0f} rows/s" for n, seconds in best.items())
    return Probe(batch_rows=chosen, rows_per_s=1 / best[chosen], trials=trials)


def untuned(binding: Binding, asked: int | None, row_s: float | None) -> Probe:
    """What is used when nothing is probed: heavy rows want small batches, which need less memory and padding."""
    usual = HEAVY_BATCH_ROWS if heavy(binding, row_s) else BATCH_ROWS
    return Probe(batch_rows=binding.fixed_batch or asked or usual, rows_per_s=1 / row_s if row_s else None)


def heavy(binding: Binding, row_s: float | None) -> bool:
    """Whether a row is so much work that a large batch gains nothing."""
    converted = any(feed.kind in {"text", "image"} for feed in binding.feeds)
    return converted or (row_s or 0) > _HEAVY_S


def forecast(
    rows: int, row_bytes: float, out: pa.Table, codec: str, rows_per_s: float, threads: int, part_rows: int
) -> Forecast:
    """Ranges for the whole run, given the sample's speed and its encoded size."""
    encoded = pa.BufferOutputStream()
    started = time.perf_counter()
    pq.write_table(out, encoded, compression=codec, use_dictionary=False)
    write_s = (time.perf_counter() - started) / max(out.num_rows, 1)
    seconds = rows * (1 / rows_per_s + write_s) / threads
    out_bytes = encoded.tell() / max(out.num_rows, 1) * rows
    memory = _BASE_BYTES + threads * part_rows * row_bytes * _COPIES
    low, high = _SPREAD
    return Forecast(
        seconds=(seconds * low, seconds * high),
        memory_bytes=(int(memory * low), int(memory * high)),
        output_bytes=(int(out_bytes * low), int(out_bytes * 1.3)),
        rows_per_s=rows_per_s,
    )


def as_output(few: pa.Table, fed: pa.Table, binding: Binding, session: Session, schema: pa.Schema) -> pa.Table:
    """A few rows as the output will hold them, to learn their encoded size."""
    scored = partition.score(fed, partition.grid(fed.num_rows, max(fed.num_rows, 1)), binding, session)
    columns = {name: few[name] for name in binding.kept}
    columns |= dict(zip(binding.outputs, scored.columns, strict=True))
    return pa.table({name: columns[name] for name in schema.names if name in columns})


def dictionaries(fixed: Sequence[str], rows: pa.Table, kept: Sequence[str]) -> tuple[str, ...]:
    """Leaf paths of kept columns worth a dictionary: it paid in the source, or the sample's texts repeat."""
    chosen = {path for path in fixed if path in kept or path.split(".")[0] in kept}
    for name in kept:
        column = rows[name]
        text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        repeats = text and len(column) and len(column.unique()) < len(column) / 2
        if repeats or pa.types.is_dictionary(column.type):
            chosen.add(name)
    return tuple(sorted(chosen))


def _tried(binding: Binding, table: pa.Table, rows: int) -> list[dict[str, np.ndarray]]:
    """Batches to learn shapes from: the first rows that can be fed, then made-up ones; of texts, several lengths."""
    made = [partition.fabricated(binding, rows, length) for length in (2, 3)]
    if all(feed.kind != "text" or feed.shape != (None,) for feed in binding.feeds):
        del made[1:]
    if not table.num_rows:
        return made
    packs = pack(binding.feeds, table)
    for packed in packs.values():
        packed.batch(slice(0, table.num_rows))  # some find out only now that a row is bad
    lost = {row for packed in packs.values() for row in packed.bad}
    good = [row for row in range(table.num_rows) if row not in lost]
    if not good:
        return made
    order = partition.by_length(packs)
    if order is None:
        chosen = [[good[i % len(good)] for i in range(rows)]]
        return [*_batches(packs, chosen), *made]
    ranked = [row for row in order.tolist() if row not in lost]
    return [*_batches(packs, [[ranked[0]] * rows, [ranked[-1]] * rows]), *made]


def _batches(packs: dict[str, Packed], chosen: list[list[int]]) -> list[dict[str, np.ndarray]]:
    return [{name: packed.batch(np.array(some)) for name, packed in packs.items()} for some in chosen]
