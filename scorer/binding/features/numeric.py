"""Columns of numbers, one per value of the tensor's row.

Zero-copy up to the batch: the one copy is the stack that makes rows of columns.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scorer.arrow import values_type
from scorer.binding.features.packed import Packed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.binding.features.packed import Rows
    from scorer.binding.spec import Feed


EXACT = {"bfloat16": 2**8, "float16": 2**11, "float32": 2**24, "float64": 2**53}
"""Whole numbers up to here survive in the float type."""
_LARGEST = {"bfloat16": 3.3895313892515355e38} | {
    name: float(np.finfo(name).max) for name in ("float16", "float32", "float64")
}


_FEW = 2  # columns


class Numbers(Packed):
    """Numeric columns as numpy views, chunk by chunk."""

    def __init__(self, feed: Feed, table: pa.Table) -> None:
        super().__init__()
        self._dtype = numpy_type(feed.dtype)
        self._shape = tuple(size or 1 for size in feed.shape)
        self._starts: list[int] = []
        self._chunks: list[list[np.ndarray]] = []
        self._batches: list[pa.RecordBatch | None] = []
        self._whole: list[np.ndarray] | None = None
        self._place = np.empty(0, self._dtype)
        checks = [Check(feed, name, table[name]) for name in feed.columns]
        at = 0
        for batch in table.select(list(feed.columns)).to_batches():
            self._starts.append(at)
            self._chunks.append(
                [check.as_numpy(array, at, self.bad) for check, array in zip(checks, batch.columns, strict=True)]
            )
            self._batches.append(_batch(self._chunks[-1], self._dtype))
            at += batch.num_rows
        self.lossy = sum(check.lossy for check in checks)

    def batch(self, rows: Rows) -> np.ndarray:
        """Those rows, C-ordered, in the tensor's type."""
        if not isinstance(rows, slice):
            return self._stack([column[rows] for column in self._columns()])
        start, stop = rows.start, rows.stop
        first = bisect_right(self._starts, start) - 1
        last = bisect_right(self._starts, max(stop - 1, start)) - 1
        if first == last:
            return self._cut(first, start, stop, again=self.one_place)
        pieces = []
        for i in range(first, last + 1):
            end = self._starts[i + 1] if i + 1 < len(self._starts) else stop
            pieces.append(self._cut(i, max(start, self._starts[i]), min(stop, end)))
        return np.concatenate(pieces)

    def _cut(self, chunk: int, start: int, stop: int, *, again: bool = False) -> np.ndarray:
        at, batch = self._starts[chunk], self._batches[chunk]
        if batch is not None:
            rows = batch.slice(start - at, stop - start).to_tensor(row_major=True).to_numpy()
            return rows.reshape(-1, *self._shape)  # type: ignore[no-any-return]  # pyarrow is untyped
        return self._stack([view[start - at : stop - at] for view in self._chunks[chunk]], again=again)

    def _columns(self) -> list[np.ndarray]:
        """Each column in one piece, for rows in any order."""
        if self._whole is None:
            with np.errstate(over="ignore", invalid="ignore"):  # what overflows was counted by Check
                self._whole = [
                    np.concatenate([view.astype(self._dtype, copy=False) for view in views])
                    for views in zip(*self._chunks, strict=True)
                ]
        return self._whole

    def _stack(self, views: list[np.ndarray], *, again: bool = False) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows was counted by Check
            if len(views) > 1:
                rows = np.stack(views, axis=1, out=self._room(len(views[0]), len(views), again=again), casting="unsafe")
            else:
                rows = np.ascontiguousarray(views[0], dtype=self._dtype)
        return rows.reshape(-1, *self._shape)

    def _room(self, rows: int, columns: int, *, again: bool) -> np.ndarray:
        """Where a batch goes: new pages cost more than filling them."""
        size = rows * columns
        if not again:
            return np.empty((rows, columns), self._dtype)
        if len(self._place) < size:
            self._place = np.empty(size, self._dtype)
        return self._place[:size].reshape(rows, columns)


class Check:
    """What one column may hold, and how its values are seen by numpy."""

    def __init__(self, feed: Feed, name: str, column: pa.ChunkedArray) -> None:
        self.lossy = 0
        self._feed, self._name = feed, name
        self._dtype = numpy_type(feed.dtype)
        self._source = values_type(column.type)
        self._suspect = self._may_lose(column.cast(self._source))

    def as_numpy(self, array: pa.Array, at: int, bad: dict[int, str]) -> np.ndarray:
        """The chunk as numpy; rows that cannot be fed go to `bad`, counted from `at`."""
        if array.type != self._source:
            array = array.cast(self._source)
        if array.null_count:
            return self._filled(array, at, bad)
        values = array.to_numpy(zero_copy_only=False)
        if self._suspect:
            self._check(values, at, bad)
        return values  # type: ignore[no-any-return]  # pyarrow is untyped

    def _filled(self, array: pa.Array, at: int, bad: dict[int, str]) -> np.ndarray:
        """A chunk with nulls, in the tensor's type, by the null policy."""
        nulls = array.is_null().to_numpy(zero_copy_only=False)
        values = pc.fill_null(array, pa.scalar(0).cast(array.type)).to_numpy(zero_copy_only=False)
        if self._suspect:
            self._check(values, at, bad)
        with np.errstate(over="ignore", invalid="ignore"):
            filled = values.astype(self._dtype)
        policy = self._feed.on_null
        if policy == "error":
            reason = f"null in column {self._name!r} (tensor {self._feed.tensor!r})"
            for row in np.flatnonzero(nulls):
                bad.setdefault(at + int(row), reason)
        else:
            whole = self._dtype.kind in "iu"
            filled[nulls] = int(float(policy)) if whole else float(policy)
        return filled  # type: ignore[no-any-return]  # pyarrow is untyped

    def _may_lose(self, column: pa.ChunkedArray) -> bool:
        """Whether any value of the column might not survive the cast."""
        source, target = self._source, self._dtype
        if pa.types.is_boolean(source) or not len(column):
            return False
        if pa.types.is_floating(source):
            wide = not is_float(target) or source.bit_width > target.itemsize * 8
            return bool(wide and (not is_float(target) or _limit(column) > _LARGEST[target.name]))
        low, high = _extremes(column)
        if is_float(target):
            return bool(max(-low, high) > EXACT[target.name])
        info = np.iinfo(target)
        return bool(low < info.min or high > info.max)

    def _check(self, values: np.ndarray, at: int, bad: dict[int, str]) -> None:
        """Blame, or count, the values that change."""
        with np.errstate(over="ignore", invalid="ignore"):
            changed = _changed(values, self._dtype)
        if self._feed.on_lossy == "warn":
            self.lossy += int(np.count_nonzero(changed))
            return
        for row in np.flatnonzero(changed):
            bad.setdefault(
                at + int(row),
                f"{values[row]} in column {self._name!r} does not survive as {self._dtype} "
                f"(tensor {self._feed.tensor!r})",
            )


def _changed(values: np.ndarray, target: np.dtype) -> np.ndarray:
    """Which values do not survive; rounding of fractions is what float types are for and does not count."""
    if is_float(target):
        cast = values.astype(target)
        if values.dtype.kind == "f":
            return np.asarray(np.isinf(cast) & np.isfinite(values))
        back = cast.astype(np.float64)
        info = np.iinfo(values.dtype)
        held = np.isfinite(back) & (back >= float(info.min)) & (back < float(info.max + 1))
        return np.asarray(~held | (np.where(held, back, 0).astype(values.dtype) != values))
    info = np.iinfo(target)
    if values.dtype.kind == "f":
        exact = values.astype(np.float64)
        return np.asarray(~((exact >= float(info.min)) & (exact < float(info.max + 1)) & (exact == np.trunc(exact))))
    own = np.iinfo(values.dtype)
    return np.asarray((values < max(info.min, own.min)) | (values > min(info.max, own.max)))


def _batch(views: Sequence[np.ndarray], dtype: np.dtype) -> pa.RecordBatch | None:
    """Columns that are of the tensor's type already: Arrow makes rows of them in one call.

    numpy's stack gives the interpreter's lock back once for each column, and threads wait for each other there.
    """
    if len(views) < _FEW or dtype.kind not in "fiu" or any(view.dtype != dtype for view in views):
        return None
    return pa.RecordBatch.from_arrays([pa.array(view) for view in views], [str(i) for i in range(len(views))])


def numpy_type(name: str) -> np.dtype:
    """The type in numpy; the small floats come with a package of their own."""
    if name == "bfloat16":
        import ml_dtypes  # noqa: PLC0415 - comes with onnx; few models need it

        return np.dtype(ml_dtypes.bfloat16)  # type: ignore[no-any-return]  # untyped
    return np.dtype(name)


def is_float(kind: np.dtype) -> bool:
    """Whether the type rounds; numpy itself does not know the small ones."""
    return kind.name in EXACT


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
