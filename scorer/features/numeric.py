"""Columns of numbers, one per value of the tensor's row.

Zero-copy up to the batch: the one copy is the stack that makes rows of columns.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scorer.dataset import values_type

if TYPE_CHECKING:
    from scorer.features import Feed

_EXACT = {"float16": 2**11, "float32": 2**24, "float64": 2**53}
"""Whole numbers up to here survive in the float type."""


class Numbers:
    """Numeric columns as numpy views, chunk by chunk."""

    def __init__(self, feed: Feed, table: pa.Table) -> None:
        self.bad: dict[int, str] = {}
        self.lossy = 0
        self._dtype = np.dtype(feed.dtype)
        self._rank = feed.rank
        self._starts: list[int] = []
        self._chunks: list[list[np.ndarray]] = []
        checks = [Check(feed, name, table[name]) for name in feed.columns]
        at = 0
        for batch in table.select(list(feed.columns)).to_batches():
            self._starts.append(at)
            self._chunks.append(
                [check.view(array, at, self.bad) for check, array in zip(checks, batch.columns, strict=True)]
            )
            at += batch.num_rows
        self.lossy = sum(check.lossy for check in checks)

    def batch(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop, C-ordered, in the tensor's type."""
        first = bisect_right(self._starts, start) - 1
        last = bisect_right(self._starts, max(stop - 1, start)) - 1
        if first == last:
            return self._cut(first, start, stop)
        pieces = []
        for i in range(first, last + 1):
            end = self._starts[i + 1] if i + 1 < len(self._starts) else stop
            pieces.append(self._cut(i, max(start, self._starts[i]), min(stop, end)))
        return np.concatenate(pieces)

    def _cut(self, chunk: int, start: int, stop: int) -> np.ndarray:
        at = self._starts[chunk]
        views = [view[start - at : stop - at] for view in self._chunks[chunk]]
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows was counted by Check
            if len(views) > 1:
                return np.stack(views, axis=1, dtype=self._dtype, casting="unsafe")
            one = np.ascontiguousarray(views[0], dtype=self._dtype)
        return one if self._rank == 1 else one.reshape(-1, 1)


class Check:
    """What one column may hold, and how its values are seen by numpy."""

    def __init__(self, feed: Feed, name: str, column: pa.ChunkedArray) -> None:
        self.lossy = 0
        self._feed, self._name = feed, name
        self._dtype = np.dtype(feed.dtype)
        self._source = values_type(column.type)
        self._suspect = self._may_lose(column)

    def view(self, array: pa.Array, at: int, bad: dict[int, str]) -> np.ndarray:
        """The chunk as numpy; rows that cannot be fed go to `bad`, counted from `at`."""
        if array.type != self._source:
            array = array.cast(self._source)
        if array.null_count:
            array = self._without_nulls(array, at, bad)
        values = array.to_numpy(zero_copy_only=False)
        if self._suspect:
            self._check(values, at, bad)
        return values  # type: ignore[no-any-return]  # pyarrow is untyped

    def _without_nulls(self, array: pa.Array, at: int, bad: dict[int, str]) -> pa.Array:
        policy = self._feed.on_null
        if policy == "error":
            reason = f"null in column {self._name!r} (tensor {self._feed.tensor!r})"
            for row in np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)):
                bad.setdefault(at + int(row), reason)
            return pc.fill_null(array, pa.scalar(0).cast(array.type))
        if policy == "nan":
            if pa.types.is_floating(array.type):
                return pc.fill_null(array, pa.scalar(float("nan")).cast(array.type))
            kind = pa.float64() if _limit(array) <= _EXACT["float64"] else array.type
            filled = pc.fill_null(array, pa.scalar(0).cast(array.type))
            if kind == array.type:  # larger than a double holds: the check below sees the integers
                self._check(filled.to_numpy(zero_copy_only=False), at, bad)
                filled = filled.cast(pa.float64(), safe=False)
            return pc.if_else(array.is_valid(), filled.cast(pa.float64()), pa.scalar(float("nan")))
        return pc.fill_null(array, pa.scalar(float(policy)).cast(array.type))

    def _may_lose(self, column: pa.ChunkedArray) -> bool:
        """Whether any value of the column might not survive the cast."""
        source, target = self._source, self._dtype
        if pa.types.is_boolean(source) or not len(column):
            return False
        if pa.types.is_floating(source):
            if target.kind != "f":
                return True
            wide = source.bit_width > target.itemsize * 8
            return bool(wide and _limit(column) > float(np.finfo(target).max))
        if target.kind == "f":
            return bool(_limit(column) > _EXACT[target.name])
        low, high = _extremes(column)
        info = np.iinfo(target)
        return bool(low < info.min or high > info.max)

    def _check(self, values: np.ndarray, at: int, bad: dict[int, str]) -> None:
        """Blame, or count, the values that change."""
        with np.errstate(over="ignore", invalid="ignore"):
            cast = values.astype(self._dtype)
            if self._dtype.kind == "f" and values.dtype.kind == "f":
                changed = np.isinf(cast) & np.isfinite(values)
            elif self._dtype.kind == "f":
                changed = _differs_from_integers(cast, values)
            else:
                changed = cast.astype(values.dtype) != values
                if values.dtype.kind in "iu":
                    info = np.iinfo(self._dtype)
                    changed |= (values < info.min) | (values > info.max)
                else:
                    top = float(np.iinfo(self._dtype).max)
                    changed |= ~(np.abs(values) < top)
        if self._feed.on_lossy == "warn":
            self.lossy += int(np.count_nonzero(changed))
            return
        for row in np.flatnonzero(changed):
            bad.setdefault(
                at + int(row),
                f"{values[row]} in column {self._name!r} does not survive as {self._dtype} "
                f"(tensor {self._feed.tensor!r})",
            )


def pack(feed: Feed, table: pa.Table) -> Numbers:
    """The numeric columns of one feed."""
    return Numbers(feed, table)


def _differs_from_integers(cast: np.ndarray, values: np.ndarray) -> Any:  # noqa: ANN401 - a mask
    """Whole numbers that the float type rounded; compared as Python integers where doubles end."""
    rounded = np.abs(values.astype(np.float64)) > _EXACT[cast.dtype.name]
    for row in np.flatnonzero(rounded):
        rounded[row] = not np.isfinite(cast[row]) or int(cast[row]) != int(values[row])
    return rounded


def _extremes(column: pa.Array | pa.ChunkedArray) -> tuple[Any, Any]:
    found = pc.min_max(column)
    low, high = found["min"].as_py(), found["max"].as_py()
    return (0, 0) if low is None else (low, high)


def _limit(column: pa.Array | pa.ChunkedArray) -> Any:  # noqa: ANN401 - an int or a float
    """The largest finite magnitude; infinite only if nothing else is there."""
    low, high = _extremes(column)
    if pa.types.is_floating(column.type) and (np.isinf(low) or np.isinf(high)):
        return float("inf")
    return max(abs(low), abs(high))
