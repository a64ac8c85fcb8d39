"""Score one table: columns to tensors, batches through the session, tensors to columns.

Knows no files and no Dask. If a batch fails, it is halved until each bad row is alone; all other rows are scored.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scorer.binding import axes
from scorer.binding.features import steps
from scorer.binding.features.numeric import numpy_type
from scorer.binding.features.pack import pack
from scorer.binding.features.unpack import unpack
from scorer.errors import BatchError, OutOfMemory, ShapeMismatch
from scorer.events import Stages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from scorer.binding.features.packed import Packed
    from scorer.binding.spec import Binding, Feed, Fetch
    from scorer.model.resident import Engine


RowNumbers = np.ndarray | range
"""Row numbers in the table. A range where possible, because the single numbers are rarely needed."""
_MIN_BAD_ROWS = 4  # fewer do not show the share of bad rows
_MAX_TEXTS = 64  # rows of one batch, even if their texts are short
_GROUP_BAD_ROWS = 0.7  # expected bad rows of a group that fails half the time: ln 2


@dataclass(slots=True)
class Scored:
    """The scores of one table; rows are numbered as in the table."""

    columns: list[pa.Array]
    """Output columns in the binding's order, null in bad rows."""
    bad: dict[int, tuple[str, str]]
    """(stage, reason) of each bad row, by its number."""
    rows: int
    nan: int
    """Number of good rows with a NaN in any score, or without a class because of one."""
    lossy: int
    truncated: int
    calls: int
    smallest_batch: int
    """Number of rows of the smallest halved batch; 0 if none was halved."""
    stages: Stages

    def good(self) -> pa.ChunkedArray | None:
        """Return which rows were scored; None if all were."""
        if not self.bad:
            return None
        good = np.ones(self.rows, bool)
        good[list(self.bad)] = False
        return pa.chunked_array([good])


@dataclass(slots=True)
class _BatchRunner:
    """Runs batches, pads and halves them if necessary, and counts the calls."""

    session: Engine
    binding: Binding
    packs: dict[str, Packed]
    calls: int = 0
    smallest_batch: int = 0
    infer_s: float = 0.0
    failed: dict[int, str] = field(default_factory=dict)

    def run(self, feeds: dict[str, np.ndarray], rows: RowNumbers) -> Iterator[tuple[RowNumbers, list[Any]]]:
        """Yield the numbers of good rows with the result of each fetch; record the others in `failed`."""
        waiting = [slice(0, len(rows))]
        good = bad = 0
        while waiting:
            span = waiting.pop()
            batch = rows[span]
            if len(batch) > (self.session.fits or len(batch)):
                waiting += self._split(span, self.session.fits or 1)
                continue
            try:
                chosen = feeds if len(batch) == len(rows) else take_rows(feeds, span, batch, self.packs)
                result = self._call(chosen, batch)
            except OutOfMemory:
                if len(batch) == 1:
                    raise
                self.session.fits = min(self.session.fits or len(batch), len(batch) // 2)
                waiting.append(span)
            except BatchError as error:
                if len(batch) > 1:
                    waiting += self._split(span, _smaller(len(batch), bad, good))
                    continue
                self.failed[int(batch[0])] = error.found
                bad += 1
            else:
                good += len(batch)
                yield batch, result

    def _split(self, span: slice, step: int) -> list[slice]:
        """Return the span in pieces of at most `step` rows, in reverse order because `run` takes the last one first."""
        if step < span.stop - span.start:
            self.smallest_batch = min(self.smallest_batch or step, step)
        starts = range(span.start, span.stop, step)
        return [slice(at, min(at + step, span.stop)) for at in reversed(starts)]

    def _call(self, feeds: dict[str, np.ndarray], rows: RowNumbers) -> list[Any]:
        n, fixed = len(rows), self.binding.fixed_batch
        if fixed is not None and n < fixed:
            feeds = {name: v if self.packs[name].shared else _padded(v, fixed) for name, v in feeds.items()}
        start = time.perf_counter()
        self.calls += 1
        try:
            results = call(self.session, self.binding, feeds, fixed or n)
        finally:
            self.infer_s += time.perf_counter() - start
        results = [_detached(values, feeds) for values in results]
        padded = next((name for name, packed in self.packs.items() if packed.lengths is not None), "")
        return [
            _without_padding(values[:n], self.packs[padded], rows, feeds[padded].shape[1])
            if padded and fetch.kind == "ragged"
            else values[:n]
            for fetch, values in zip(self.binding.fetches, results, strict=True)
        ]


def call(session: Engine, binding: Binding, feeds: dict[str, np.ndarray], rows: int) -> list[Any]:
    """Run the model on one batch and return the result of each fetch, after its steps.

    Raises `ShapeMismatch` if an output does not have `rows` rows.
    """
    results = run_model(session, binding, feeds)
    for name, result in results.items():
        got = 0 if result is None else len(result) if isinstance(result, list) or result.ndim else 0
        if got != rows:
            raise ShapeMismatch(
                f"output {name!r} does not have one row per input row",
                where=session.spec.path,
                expected=f"{rows} rows",
                found=f"{got} rows",
                hint=axes.axis_advice(name, np.shape(result) if isinstance(result, np.ndarray) else (), rows)
                + "the model mixes its rows; select other outputs with --fetch",
            )
    return [apply_steps(fetch, results, feeds) for fetch in binding.fetches]


class Runs(Protocol):
    """What runs the model, as `Session` does."""

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any], /) -> list[Any]:
        """Return the model's outputs for one batch, in the order of `outputs`."""


def run_model(session: Runs, binding: Binding, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the outputs that are fetched, by name; rows are on the first axis of feeds and outputs."""
    names = list(dict.fromkeys(fetch.tensor for fetch in binding.fetches))
    if not binding.batch_axes:
        return dict(zip(names, session.run(names, feeds), strict=True))
    on = dict(binding.batch_axes)
    results = dict(zip(names, session.run(names, axes.to_model(feeds, on)), strict=True))
    return axes.from_model(results, on, "--batch-axis")


def apply_steps(fetch: Fetch, results: Mapping[str, Any], feeds: Mapping[str, np.ndarray]) -> Any:  # noqa: ANN401 - arrays or maps
    """Return the tensor of one fetch after its steps."""
    return steps.apply(fetch.steps, results[fetch.tensor], feeds)


def score(
    table: pa.Table, edges: np.ndarray, binding: Binding, session: Engine,
    failed: Mapping[int, tuple[str, str]] | None = None,
    tokens: int | None = None, count: Callable[[int], None] | None = None,
) -> Scored:  # fmt: skip
    """Score every row of `table`, in batches cut at `edges`.

    Rows of different lengths are sorted by length first. If `tokens` is given, their batches have at most that many
    tokens instead. `failed` are rows that are bad already, with stage and reason. `count` gets the number of rows of
    each batch that is finished.
    """
    failed = failed or {}
    started = time.perf_counter()
    packs = pack(binding.feeds, table)
    order, lengths = order_by_length(packs), lengths_of(packs)
    if order is not None and lengths is not None and tokens is not None:
        edges = token_edges(lengths[order], tokens)
    for packed in packs.values():
        packed.reuse_buffer = True
    runner = _BatchRunner(session, binding, packs)
    bad: dict[int, str] = {}
    done: list[RowNumbers] = []
    results: list[list[Any]] = [[] for _ in binding.fetches]
    pack_s = time.perf_counter() - started
    for start, stop in pairwise(edges.tolist()):
        began = time.perf_counter()
        chosen = slice(start, stop) if order is None else order[start:stop]
        feeds = {name: packed.batch(chosen) for name, packed in packs.items()}
        rows: RowNumbers = range(start, stop) if isinstance(chosen, slice) else chosen
        lost = [*failed, *(row for packed in packs.values() for row in packed.bad)]
        if lost:
            every = np.arange(start, stop) if isinstance(rows, range) else rows
            good = ~np.isin(every, lost)
            if not good.all():
                rows = every[good]
                feeds = take_rows(feeds, good, rows, packs)
        pack_s += time.perf_counter() - began
        if len(rows):
            for scored, result in runner.run(feeds, rows):
                done.append(scored)
                for into, values in zip(results, result, strict=True):
                    into.append(values)
        if count is not None:
            count(stop - start)
    began = time.perf_counter()
    for packed in packs.values():
        bad = packed.bad | bad
    columns = [c for fetch, batches in zip(binding.fetches, results, strict=True) for c in unpack(fetch, batches)]
    nan = _nan_rows(columns)
    whys = {row: ("feed", reason) for row, reason in bad.items()}
    whys |= failed
    whys |= {row: ("infer", reason) for row, reason in runner.failed.items()}
    return Scored(
        columns=_realign(columns, done, table.num_rows) if whys or order is not None else columns,
        bad=whys,
        rows=table.num_rows,
        nan=nan,
        lossy=sum(packed.lossy for packed in packs.values()),
        truncated=sum(packed.truncated for packed in packs.values()),
        calls=runner.calls,
        smallest_batch=runner.smallest_batch,
        stages=Stages(pack=pack_s, infer=runner.infer_s, unpack=time.perf_counter() - began),
    )


def merged(names: Sequence[str], each: Sequence[Scored]) -> Scored:
    """Return the scores of several models for the same rows as one; a row that one of them cannot score is bad.

    `names` are those of the models. A single model's scores stay as they are.
    """
    if len(each) == 1:
        return each[0]
    bad: dict[int, tuple[str, str]] = {}
    for name, one in zip(names, each, strict=True):
        for row, (stage, reason) in one.bad.items():
            bad.setdefault(row, (stage, f"{name}: {reason}" if stage in {"feed", "infer"} else reason))
    found = replace(
        each[0],
        columns=[column for one in each for column in one.columns],
        bad=bad,
        lossy=sum(one.lossy for one in each),
        truncated=sum(one.truncated for one in each),
        calls=sum(one.calls for one in each),
        smallest_batch=min((one.smallest_batch for one in each if one.smallest_batch), default=0),
        stages=sum((one.stages for one in each), Stages()),
    )
    if any(one.nan for one in each):  # a row may have a NaN of two models, or be bad for one of them
        good = found.good()
        columns = found.columns if good is None else [column.filter(good.combine_chunks()) for column in found.columns]
        found = replace(found, nan=_nan_rows(columns))
    return found


def _smaller(rows: int, bad: int, good: int) -> int:
    """Return how many rows to try together next: half, or fewer if so many rows are bad that halves would fail too."""
    half = -(-rows // 2)
    return half if bad < _MIN_BAD_ROWS else max(1, min(half, int(_GROUP_BAD_ROWS * (bad + good) / bad)))


def order_by_length(packs: dict[str, Packed]) -> np.ndarray | None:
    """Return the row numbers in the order of their lengths; None if lengths do not matter."""
    lengths = lengths_of(packs)
    return None if lengths is None else np.argsort(lengths, kind="stable")


def token_edges(lengths: np.ndarray, tokens: int) -> np.ndarray:
    """Return the edges of batches, each with at most `tokens` tokens and `_MAX_TEXTS` rows.

    `lengths` are sorted, and padding counts. A batch has at least one row.
    """
    edges = [0]
    while edges[-1] < len(lengths):
        start = edges[-1]
        padded = np.arange(1, _MAX_TEXTS + 1)[: len(lengths) - start] * lengths[start : start + _MAX_TEXTS]
        edges.append(start + max(1, int(np.searchsorted(padded, tokens, side="right"))))
    return np.array(edges)


def lengths_of(packs: dict[str, Packed]) -> np.ndarray | None:
    """Return the length of each row; None if no tensor is scored by length."""
    return next((packed.lengths for packed in packs.values() if packed.lengths is not None), None)


def take_rows(
    feeds: dict[str, np.ndarray], pick: slice | np.ndarray, rows: RowNumbers, packs: dict[str, Packed]
) -> dict[str, np.ndarray]:
    """Return some rows of a batch. Shared tensors stay as they are; padded ones are padded again, to the rows left."""
    fewer = {}
    for name, value in feeds.items():
        if packs[name].shared or not len(rows):
            fewer[name] = value if packs[name].shared else value[:0]
        else:
            fewer[name] = value[pick] if packs[name].lengths is None else packs[name].batch(np.asarray(rows))
    return fewer


def placeholder_feeds(binding: Binding, rows: int, length: int = 1) -> dict[str, np.ndarray]:
    """Return tensors that show the shapes of outputs without a good row: zeros, empty texts or `length` tokens.

    A picture of any width is `length` times as wide as it is high.
    """
    empty = pa.table({name: pa.nulls(0) for name in binding.fed})
    return {feed.tensor: _placeholder(feed, rows, length, empty) for feed in binding.feeds}


def _placeholder(feed: Feed, rows: int, length: int, empty: pa.Table) -> np.ndarray:
    if feed.kind == "const":
        return pack([feed], empty)[feed.tensor].batch(slice(0, rows))
    free = length if feed.kind == "text" else 1
    if feed.kind == "image":
        free = length * max(size or 1 for size in feed.shape)
    shape = (rows, *(size or free for size in feed.shape))
    if feed.dtype == "string":
        return np.full(shape, "", dtype=object)
    fill = 1 if feed.kind == "text" else 0  # a valid token, and a mask that is set
    return np.full(shape, fill, numpy_type(feed.dtype))


def grid(rows: int, batch_rows: int) -> np.ndarray:
    """Return the edges of batches of `batch_rows` rows."""
    return np.append(np.arange(0, rows, batch_rows), rows) if rows else np.zeros(1, np.int64)


def _padded(value: np.ndarray, rows: int) -> np.ndarray:
    """Return the batch padded with copies of its last row; they change no score if rows are independent."""
    return np.concatenate([value, np.repeat(value[-1:], rows - len(value), axis=0)])


def _detached(values: Any, feeds: Mapping[str, np.ndarray]) -> Any:  # noqa: ANN401 - arrays or maps
    """Return the values, copied if they share memory with the feeds, because the next batch overwrites those."""
    if isinstance(values, np.ndarray) and any(np.may_share_memory(values, fed) for fed in feeds.values()):
        return values.copy()
    return values


def _without_padding(values: np.ndarray, packed: Packed, rows: RowNumbers, width: int) -> list[np.ndarray]:
    """Return the rows without the items of padded tokens; `width` is that of the padded tensor."""
    if packed.lengths is None or values.shape[1] != width:
        return list(values)
    return [
        row[width - length :] if packed.pads_left else row[:length]
        for row, length in zip(values, packed.lengths[rows].tolist(), strict=True)
    ]


def _realign(columns: list[pa.Array], done: list[RowNumbers], rows: int) -> list[pa.Array]:
    """Return the columns in the order of the table, with nulls in bad rows."""
    scored = np.concatenate(done) if done else np.empty(0, np.int64)
    places, bad = np.zeros(rows, np.int64), np.ones(rows, bool)
    places[scored], bad[scored] = np.arange(len(scored)), False
    where = pa.array(places, mask=bad)
    return [column.take(where) for column in columns]


def _has_nan(values: pa.Array) -> bool:
    """Return whether a value is NaN; the minimum is then NaN, which is faster than a test of each value."""
    if values.null_count or not len(values):
        return bool(pc.any(pc.is_nan(values)).as_py())
    return bool(np.isnan(values.to_numpy().min()))


def _nan_rows(columns: list[pa.Array]) -> int:
    """Return the number of rows with a NaN in any column, at any depth, or with a null in its place."""
    found: set[int] = set()
    for column in columns:
        if column.null_count:
            found.update(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist())
        levels = [column]
        while pa.types.is_list(levels[-1].type) or pa.types.is_fixed_size_list(levels[-1].type):
            levels.append(levels[-1].flatten())
        if not pa.types.is_floating(levels[-1].type) or not _has_nan(levels[-1]):
            continue
        places = np.flatnonzero(pc.is_nan(levels[-1]).to_numpy(zero_copy_only=False))
        for lists in reversed(levels[:-1]) if len(places) else ():
            if pa.types.is_fixed_size_list(lists.type):
                places //= lists.type.list_size
            else:
                offsets = lists.offsets.to_numpy()
                places = np.searchsorted(offsets - offsets[0], places, side="right") - 1
        found.update(places.tolist())
    return len(found)
