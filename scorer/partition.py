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

from scorer.errors import BatchError, OutOfMemory, ShapeMismatch
from scorer.events import Stages
from scorer.features import pack
from scorer.features.columns import unpack

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scorer.binding import Binding
    from scorer.session import Session


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
    calls: int
    smallest: int
    """Rows in the smallest halved batch, 0 if none was halved."""
    stages: Stages


@dataclass(slots=True)
class _Caller:
    """Runs batches, padding and halving as needed, and keeps count."""

    session: Session
    outputs: Sequence[str]
    fixed: int | None
    calls: int = 0
    smallest: int = 0
    infer_s: float = 0.0
    failed: dict[int, str] = field(default_factory=dict)

    def run(self, feeds: dict[str, np.ndarray], rows: np.ndarray) -> Iterator[list[Any]]:
        """Outputs of the good rows in order; `rows` are their numbers, failures go to `failed`."""
        try:
            yield self._call(feeds, len(rows))
        except BatchError as error:
            if len(rows) == 1:
                if isinstance(error, OutOfMemory):
                    raise
                self.failed[int(rows[0])] = error.found
                return
            half = len(rows) // 2
            self.smallest = min(self.smallest or half, half)
            for part in (slice(0, half), slice(half, None)):
                yield from self.run({name: value[part] for name, value in feeds.items()}, rows[part])

    def _call(self, feeds: dict[str, np.ndarray], n: int) -> list[Any]:
        if self.fixed is not None and n < self.fixed:
            feeds = {name: _padded(value, self.fixed) for name, value in feeds.items()}
        start = time.perf_counter()
        results = self.session.run(self.outputs, feeds)
        self.infer_s += time.perf_counter() - start
        self.calls += 1
        expected = self.fixed or n
        for name, result in zip(self.outputs, results, strict=True):
            got = len(result) if isinstance(result, list) or result.ndim else 0
            if got != expected:
                what = f"output {name!r} gave another number of rows than it got"
                hint = "such a model mixes its rows; leave the output out with --fetch"
                raise ShapeMismatch(what, self.session.spec.path, f"{expected} rows", f"{got} rows", hint)
        return [result[:n] for result in results] if expected != n else results


def score(table: pa.Table, edges: np.ndarray, binding: Binding, session: Session) -> Scored:
    """Every row of `table`, in batches cut at `edges`."""
    started = time.perf_counter()
    packs = {feed.tensor: pack(feed, table) for feed in binding.feeds}
    bad = {row: ("feed", reason) for packed in packs.values() for row, reason in packed.bad.items()}
    good = np.ones(table.num_rows, bool)
    good[list(bad)] = False
    names = [fetch.tensor for fetch in binding.fetches]
    caller = _Caller(session, names, binding.fixed_batch)
    results: list[list[Any]] = [[] for _ in names]
    pack_s = time.perf_counter() - started
    for start, stop in pairwise(edges.tolist()):
        began = time.perf_counter()
        feeds = {name: packed.batch(start, stop) for name, packed in packs.items()}
        rows = np.arange(start, stop)
        if bad and not good[start:stop].all():
            pick = good[start:stop]
            feeds, rows = {name: value[pick] for name, value in feeds.items()}, rows[pick]
        pack_s += time.perf_counter() - began
        if len(rows):
            for result in caller.run(feeds, rows):
                for into, values in zip(results, result, strict=True):
                    into.append(values)
    began = time.perf_counter()
    bad |= {row: ("infer", reason) for row, reason in caller.failed.items()}
    good[list(caller.failed)] = False
    columns = [c for fetch, batches in zip(binding.fetches, results, strict=True) for c in unpack(fetch, batches)]
    nan = _nan_rows(columns)
    return Scored(
        columns=_spread(columns, good) if bad else columns,
        bad=bad,
        rows=table.num_rows,
        nan=nan,
        lossy=sum(packed.lossy for packed in packs.values()),
        calls=caller.calls,
        smallest=caller.smallest,
        stages=Stages(pack=pack_s, infer=caller.infer_s, unpack=time.perf_counter() - began),
    )


def fabricated(binding: Binding, rows: int) -> dict[str, np.ndarray]:
    """Tensors of zeros and empty texts, to learn output shapes where there is no row to show."""
    return {
        feed.tensor: np.full((rows,) if feed.rank == 1 else (rows, feed.width or 1), "", dtype=object)
        if feed.dtype == "string"
        else np.zeros((rows,) if feed.rank == 1 else (rows, feed.width or 1), feed.dtype)
        for feed in binding.feeds
    }


def grid(rows: int, batch_rows: int) -> np.ndarray:
    """Edges of batches over `rows` rows."""
    return np.append(np.arange(0, rows, batch_rows), rows) if rows else np.zeros(1, np.int64)


def _padded(value: np.ndarray, rows: int) -> np.ndarray:
    """The last row repeated: neutral for every model whose rows do not mix."""
    return np.concatenate([value, np.repeat(value[-1:], rows - len(value), axis=0)])


def _spread(columns: list[pa.Array], good: np.ndarray) -> list[pa.Array]:
    """Values back at their rows, with nulls where a row is bad."""
    places = pa.array(np.cumsum(good) - 1, mask=~good)
    return [column.take(places) for column in columns]


def _nan_rows(columns: list[pa.Array]) -> int:
    found = None
    for column in columns:
        flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        if not pa.types.is_floating(flat.type) or not len(flat):
            continue
        nan = pc.is_nan(flat).to_numpy(zero_copy_only=False)
        if flat is not column:
            nan = nan.reshape(len(column), -1).any(axis=1)
        found = nan if found is None else found | nan
    return 0 if found is None else int(np.count_nonzero(found))
