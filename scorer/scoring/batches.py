"""Score one table: columns to tensors, batches through the session, tensors to columns.

No files and no Dask. A row that fails costs only itself: its batch is halved until it stands alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scorer.binding.features import steps
from scorer.binding.features.numeric import numpy_type
from scorer.binding.features.pack import pack
from scorer.binding.features.unpack import unpack
from scorer.errors import BatchError, OutOfMemory, ShapeMismatch
from scorer.events import Stages

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from scorer.binding.features.packed import Packed
    from scorer.binding.spec import Binding, Feed, Fetch
    from scorer.model.session import Session


RowNumbers = np.ndarray | range
"""Of rows, as they are counted in the table; few ask for each of them."""
_ENOUGH_BAD = 4  # rows before their share is believed
_MOST_ROWS = 64  # of short texts in one batch
_GOOD_LUCK = 0.7  # bad rows expected in a group that fails every second time


@dataclass(slots=True)
class Scored:
    """What came of one table; rows are counted as in it."""

    columns: list[pa.Array]
    """Output columns in the binding's order, null in bad rows."""
    bad: dict[int, tuple[str, str]]
    """Row to (stage, reason)."""
    rows: int
    nan: int
    """Good rows with a NaN in any score."""
    lossy: int
    truncated: int
    calls: int
    smallest: int
    """Rows in the smallest halved batch, 0 if none was halved."""
    stages: Stages

    def good(self) -> pa.ChunkedArray | None:
        """Return which rows were scored; None if all were."""
        if not self.bad:
            return None
        good = np.ones(self.rows, bool)
        good[list(self.bad)] = False
        return pa.chunked_array([good])


@dataclass(slots=True)
class _Caller:
    """Runs batches, padding and halving as needed, and keeps count."""

    session: Session
    binding: Binding
    packs: dict[str, Packed]
    calls: int = 0
    smallest: int = 0
    infer_s: float = 0.0
    failed: dict[int, str] = field(default_factory=dict)

    def run(self, feeds: dict[str, np.ndarray], rows: RowNumbers) -> Iterator[tuple[RowNumbers, list[Any]]]:
        """Good rows with what each fetch made of them; `rows` are their numbers, failures go to `failed`."""
        waiting = [slice(0, len(rows))]
        good = bad = 0
        while waiting:
            span = waiting.pop()
            some = rows[span]
            if len(some) > (self.session.fits or len(some)):
                waiting += self._cut(span, self.session.fits or 1)
                continue
            try:
                result = self._call(feeds if len(some) == len(rows) else take_rows(feeds, span, some, self.packs), some)
            except OutOfMemory:
                if len(some) == 1:
                    raise
                self.session.fits = min(self.session.fits or len(some), len(some) // 2)
                waiting.append(span)
            except BatchError as error:
                if len(some) > 1:
                    waiting += self._cut(span, _smaller(len(some), bad, good))
                    continue
                self.failed[int(some[0])] = error.found
                bad += 1
            else:
                good += len(some)
                yield some, result

    def _cut(self, span: slice, step: int) -> list[slice]:
        """The span in pieces of at most `step` rows, the first one last."""
        if step < span.stop - span.start:
            self.smallest = min(self.smallest or step, step)
        starts = range(span.start, span.stop, step)
        return [slice(at, min(at + step, span.stop)) for at in reversed(starts)]

    def _call(self, feeds: dict[str, np.ndarray], rows: RowNumbers) -> list[Any]:
        n, fixed = len(rows), self.binding.fixed_batch
        if fixed is not None and n < fixed:
            feeds = {name: v if self.packs[name].shared else _padded(v, fixed) for name, v in feeds.items()}
        start = time.perf_counter()
        self.calls += 1
        try:
            results = call(self.session, self.binding.fetches, feeds, fixed or n)
        finally:
            self.infer_s += time.perf_counter() - start
        results = [_own(values, feeds) for values in results]
        padded = next((name for name, packed in self.packs.items() if packed.lengths is not None), "")
        return [
            _trimmed(values[:n], self.packs[padded], rows, feeds[padded].shape[1])
            if padded and fetch.kind == "ragged"
            else values[:n]
            for fetch, values in zip(self.binding.fetches, results, strict=True)
        ]


def call(session: Session, fetches: Sequence[Fetch], feeds: dict[str, np.ndarray], rows: int | None) -> list[Any]:
    """What each fetch gives for one batch of so many rows, unless that is to be seen; its steps taken."""
    names = list(dict.fromkeys(fetch.tensor for fetch in fetches))
    results = dict(zip(names, session.run(names, feeds), strict=True))
    for name, result in results.items():
        got = 0 if result is None else len(result) if isinstance(result, list) or result.ndim else 0
        if rows is not None and got != rows:
            what = f"output {name!r} gave another number of rows than it got"
            hint = "such a model mixes its rows; leave the output out with --fetch"
            raise ShapeMismatch(what, session.spec.path, f"{rows} rows", f"{got} rows", hint)
    return [stepped(fetch, results, feeds) for fetch in fetches]


def stepped(fetch: Fetch, results: Mapping[str, Any], feeds: Mapping[str, np.ndarray]) -> Any:  # noqa: ANN401 - arrays or maps
    """What one fetch makes of what the model gave."""
    return steps.apply(fetch.steps, results[fetch.tensor], feeds)


def score(
    table: pa.Table, edges: np.ndarray, binding: Binding, session: Session, spoilt: Mapping[int, str] | None = None,
    tokens: int | None = None,
) -> Scored:  # fmt: skip
    """Every row of `table`, in batches cut at `edges`.

    Rows whose lengths differ are sorted by them first, and then a batch has so many tokens if that is given.
    Rows that a transform spoilt are bad already.
    """
    spoilt = spoilt or {}
    started = time.perf_counter()
    packs = pack(binding.feeds, table)
    order, lengths = by_length(packs), lengths_of(packs)
    if order is not None and lengths is not None and tokens is not None:
        edges = budgeted(lengths[order], tokens)
    for packed in packs.values():
        packed.one_place = True
    caller = _Caller(session, binding, packs)
    bad: dict[int, str] = {}
    done: list[RowNumbers] = []
    results: list[list[Any]] = [[] for _ in binding.fetches]
    pack_s = time.perf_counter() - started
    for start, stop in pairwise(edges.tolist()):
        began = time.perf_counter()
        chosen = slice(start, stop) if order is None else order[start:stop]
        feeds = {name: packed.batch(chosen) for name, packed in packs.items()}
        rows: RowNumbers = range(start, stop) if isinstance(chosen, slice) else chosen
        lost = [*spoilt, *(row for packed in packs.values() for row in packed.bad)]
        if lost:
            every = np.arange(start, stop) if isinstance(rows, range) else rows
            good = ~np.isin(every, lost)
            if not good.all():
                rows = every[good]
                feeds = take_rows(feeds, good, rows, packs)
        pack_s += time.perf_counter() - began
        if len(rows):
            for scored, result in caller.run(feeds, rows):
                done.append(scored)
                for into, values in zip(results, result, strict=True):
                    into.append(values)
    began = time.perf_counter()
    for packed in packs.values():
        bad = packed.bad | bad
    columns = [c for fetch, batches in zip(binding.fetches, results, strict=True) for c in unpack(fetch, batches)]
    nan = _nan_rows(columns)
    whys = {row: ("feed", reason) for row, reason in bad.items()}
    whys |= {row: ("transform", reason) for row, reason in spoilt.items()}
    whys |= {row: ("infer", reason) for row, reason in caller.failed.items()}
    return Scored(
        columns=_realign(columns, done, table.num_rows) if whys or order is not None else columns,
        bad=whys,
        rows=table.num_rows,
        nan=nan,
        lossy=sum(packed.lossy for packed in packs.values()),
        truncated=sum(packed.truncated for packed in packs.values()),
        calls=caller.calls,
        smallest=caller.smallest,
        stages=Stages(pack=pack_s, infer=caller.infer_s, unpack=time.perf_counter() - began),
    )


def _smaller(rows: int, bad: int, good: int) -> int:
    """Rows to try together next: half of them, or fewer where so many are bad that halves would fail again."""
    half = -(-rows // 2)
    return half if bad < _ENOUGH_BAD else max(1, min(half, int(_GOOD_LUCK * (bad + good) / bad)))


def by_length(packs: dict[str, Packed]) -> np.ndarray | None:
    """Rows in the order in which they are scored; None when that is their own."""
    lengths = lengths_of(packs)
    return None if lengths is None else np.argsort(lengths, kind="stable")


def budgeted(lengths: np.ndarray, tokens: int) -> np.ndarray:
    """Edges of batches of rising lengths, padding counted: no more than so many tokens, nor too many rows, in each."""
    edges = [0]
    while edges[-1] < len(lengths):
        start = edges[-1]
        padded = np.arange(1, _MOST_ROWS + 1)[: len(lengths) - start] * lengths[start : start + _MOST_ROWS]
        edges.append(start + max(1, int(np.searchsorted(padded, tokens, side="right"))))
    return np.array(edges)


def lengths_of(packs: dict[str, Packed]) -> np.ndarray | None:
    """Of each row, where rows of like length should be scored together."""
    return next((packed.lengths for packed in packs.values() if packed.lengths is not None), None)


def take_rows(
    feeds: dict[str, np.ndarray], pick: slice | np.ndarray, rows: RowNumbers, packs: dict[str, Packed]
) -> dict[str, np.ndarray]:
    """Some rows of a batch: what all rows share stays whole, what was padded is padded anew to what is left."""
    fewer = {}
    for name, value in feeds.items():
        if packs[name].shared or not len(rows):
            fewer[name] = value if packs[name].shared else value[:0]
        else:
            fewer[name] = value[pick] if packs[name].lengths is None else packs[name].batch(np.asarray(rows))
    return fewer


def fabricated(binding: Binding, rows: int, length: int = 1) -> dict[str, np.ndarray]:
    """Tensors of zeros, empty texts and so many tokens, to learn output shapes where there is no row to show."""
    empty = pa.table({name: pa.nulls(0) for name in binding.fed})
    return {feed.tensor: _fabricated(feed, rows, length, empty) for feed in binding.feeds}


def _fabricated(feed: Feed, rows: int, length: int, empty: pa.Table) -> np.ndarray:
    if feed.kind == "const":
        return pack([feed], empty)[feed.tensor].batch(slice(0, rows))
    shape = (rows, *(size or (length if feed.kind == "text" else 1) for size in feed.shape))
    if feed.dtype == "string":
        return np.full(shape, "", dtype=object)
    fill = 1 if feed.kind == "text" else 0  # a token, attended to
    return np.full(shape, fill, numpy_type(feed.dtype))


def grid(rows: int, batch_rows: int) -> np.ndarray:
    """Edges of batches over `rows` rows."""
    return np.append(np.arange(0, rows, batch_rows), rows) if rows else np.zeros(1, np.int64)


def _padded(value: np.ndarray, rows: int) -> np.ndarray:
    """The last row repeated: neutral for every model whose rows do not mix."""
    return np.concatenate([value, np.repeat(value[-1:], rows - len(value), axis=0)])


def _own(values: Any, feeds: Mapping[str, np.ndarray]) -> Any:  # noqa: ANN401 - arrays or maps
    """The values, away from what was fed: the next batch is made there."""
    if isinstance(values, np.ndarray) and any(np.may_share_memory(values, fed) for fed in feeds.values()):
        return values.copy()
    return values


def _trimmed(values: np.ndarray, packed: Packed, rows: RowNumbers, width: int) -> list[np.ndarray]:
    """Rows without what only padding gave them; `width` is that of the padded tensor."""
    if packed.lengths is None or values.shape[1] != width:
        return list(values)
    return [
        row[width - length :] if packed.left else row[:length]
        for row, length in zip(values, packed.lengths[rows].tolist(), strict=True)
    ]


def _realign(columns: list[pa.Array], done: list[RowNumbers], rows: int) -> list[pa.Array]:
    """Values back at their rows, with nulls where a row is bad."""
    scored = np.concatenate(done) if done else np.empty(0, np.int64)
    places, bad = np.zeros(rows, np.int64), np.ones(rows, bool)
    places[scored], bad[scored] = np.arange(len(scored)), False
    where = pa.array(places, mask=bad)
    return [column.take(where) for column in columns]


def _has_nan(values: pa.Array) -> bool:
    """A quick look: the smallest of values is NaN if one of them is."""
    if values.null_count or not len(values):
        return bool(pc.any(pc.is_nan(values)).as_py())
    return bool(np.isnan(values.to_numpy().min()))


def _nan_rows(columns: list[pa.Array]) -> int:
    """Rows with a NaN in any column, at any depth."""
    found: set[int] = set()
    for column in columns:
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
