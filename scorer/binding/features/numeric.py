"""Convert columns of numbers: each column is one value of the tensor's row.

Nothing is copied before the batch. The only copy is the stack that turns columns into rows.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scorer.arrow import is_decimal, values_type
from scorer.binding.features.packed import Packed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scorer.binding.features.packed import Rows
    from scorer.binding.spec import Feed


EXACT = {"bfloat16": 2**8, "float16": 2**11, "float32": 2**24, "float64": 2**53}
"""The largest magnitude up to which a float type holds every whole number."""
_LARGEST_FINITE = {"bfloat16": 3.3895313892515355e38} | {
    name: float(np.finfo(name).max) for name in ("float16", "float32", "float64")
}


_FEWEST_COLUMNS = 2  # a single column needs no stack
_EXACT_DIGITS, _EXACT_POWER = 15, 22  # a float64 holds whole numbers of 15 digits, and 10 to the 22nd, exactly
_MOST_DIGITS = 20  # of the largest integer that a tensor holds


def as_stored(feed: Feed, table: pa.Table, packed: Packed) -> list[pa.ChunkedArray]:
    """Return the columns of the feed, which hold numbers already; decimals become integers or floats."""
    return [without_decimals(feed, name, table[name], packed) for name in feed.read]


def without_decimals(feed: Feed, name: str, column: pa.ChunkedArray, packed: Packed) -> pa.ChunkedArray:
    """Return a column of decimals as integers if all are whole, else as floats; any other column unchanged.

    The rounding of fractions to a float type does not count as a change, as for columns of floats. Other changes are
    added to `packed`: whole numbers that the type does not hold, and fractions that an integer tensor cuts off.
    """
    if not is_decimal(values_type(column.type)):
        return column
    column = column.cast(values_type(column.type))
    dtype = numpy_type(feed.dtype)
    for kind in (pa.int64(), pa.uint64()):
        with suppress(pa.ArrowInvalid):  # raised for a fraction, and for a number outside the range
            return column.cast(kind)
    numbers, changed = _as_floats(column, dtype) if is_float(dtype) else _as_integers(column, dtype)
    if feed.on_lossy == "warn":
        packed.lossy += len(changed)
    else:
        problem = f"in column {name!r} cannot be stored exactly as {dtype} (tensor {feed.tensor!r})"
        for row in changed:
            packed.bad.setdefault(row, f"{column[row].as_py()} {problem}")
    return pa.chunked_array([pa.array(numbers, mask=column.is_null().to_numpy())])


def _as_floats(column: pa.ChunkedArray, dtype: np.dtype) -> tuple[np.ndarray, list[int]]:
    """Return decimals as the nearest float64, and the rows in which `dtype` changes more than the fraction."""
    column = pc.fill_null(column, pa.scalar(Decimal(0), column.type))
    numbers = _nearest_floats(column)
    with np.errstate(over="ignore"):
        cast = numbers.astype(dtype).astype(np.float64)
    large = np.flatnonzero(np.abs(numbers) > EXACT[dtype.name]).tolist()
    changed = [row for row in large if cast[row] != column[row].as_py()]
    infinite = np.isinf(cast)
    return (np.where(infinite, cast, numbers) if infinite.any() else numbers), changed


def _nearest_floats(column: pa.ChunkedArray) -> np.ndarray:
    """Return each decimal as the nearest float64. Arrow's own cast may be off in the last digit."""
    kind = column.type
    if not 0 <= kind.scale <= _EXACT_POWER or kind.precision > _EXACT_DIGITS:
        return column.cast(pa.string()).cast(pa.float64()).to_numpy()  # type: ignore[no-any-return]  # pyarrow is untyped
    if not pa.types.is_decimal128(kind):
        column = column.cast(pa.decimal128(kind.precision, kind.scale))
    halves = [np.frombuffer(c.buffers()[1], np.int64)[2 * c.offset :][: 2 * len(c)] for c in column.chunks if len(c)]
    digits = np.concatenate([np.empty(0, np.int64), *(both[::2] for both in halves)])  # the other half is the sign
    return np.asarray(digits / 10.0**kind.scale)  # a quotient of two exact floats is the nearest one


def _as_integers(column: pa.ChunkedArray, dtype: np.dtype) -> tuple[np.ndarray, list[int]]:
    """Return decimals cut off to whole numbers within the type's range, and the rows in which that changes them."""
    info = np.iinfo(dtype)
    values = column.to_pylist()
    numbers = [0 if value is None else min(max(int(value), info.min), info.max) for value in values]
    changed = [i for i, (value, number) in enumerate(zip(values, numbers, strict=True)) if value not in {None, number}]
    return np.array(numbers, dtype), changed


class Numbers(Packed):
    """Numeric columns as numpy views, chunk by chunk.

    `convert` returns one column of numbers for each column of the feed that is read. It adds to `bad` and `lossy` what
    it finds. Columns that are not read are zero.
    """

    def __init__(
        self,
        feed: Feed,
        table: pa.Table,
        convert: Callable[[Feed, pa.Table, Packed], list[pa.ChunkedArray]] = as_stored,
    ) -> None:
        super().__init__()
        self._dtype = numpy_type(feed.dtype)
        self._shape = tuple(size or 1 for size in feed.shape)
        self._starts: list[int] = []
        self._chunks: list[list[np.ndarray]] = []
        self._batches: list[pa.RecordBatch | None] = []
        self._joined: list[np.ndarray] | None = None
        self._memory = np.empty(0, self._dtype)
        self._width, self._gaps = len(feed.columns), bool(feed.unused)
        unused = set(feed.unused)
        self._places = [at for at in range(self._width) if at not in unused]
        columns = convert(feed, table, self)
        checks = [Check(feed, name, column) for name, column in zip(feed.read, columns, strict=True)]
        at = 0
        for batch in pa.Table.from_arrays(columns, names=[str(i) for i in range(len(columns))]).to_batches():
            self._starts.append(at)
            self._chunks.append(
                [check.as_numpy(array, at, self.bad) for check, array in zip(checks, batch.columns, strict=True)]
            )
            self._batches.append(None if self._gaps else _record_batch(self._chunks[-1], self._dtype))
            at += batch.num_rows
        self.lossy += sum(check.lossy for check in checks)

    def batch(self, rows: Rows) -> np.ndarray:
        """Return the tensor of these rows, C-ordered, in the tensor's type."""
        if not self._places:
            n = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
            return np.zeros((n, *self._shape), self._dtype)
        if not isinstance(rows, slice):
            return self._stack([column[rows] for column in self._joined_columns()])
        start, stop = rows.start, rows.stop
        first = bisect_right(self._starts, start) - 1
        last = bisect_right(self._starts, max(stop - 1, start)) - 1
        if first == last:
            return self._take_slice(first, start, stop, reuse=self.reuse_buffer)
        pieces = []
        for i in range(first, last + 1):
            end = self._starts[i + 1] if i + 1 < len(self._starts) else stop
            pieces.append(self._take_slice(i, max(start, self._starts[i]), min(stop, end)))
        return np.concatenate(pieces)

    def _take_slice(self, chunk: int, start: int, stop: int, *, reuse: bool = False) -> np.ndarray:
        at, batch = self._starts[chunk], self._batches[chunk]
        if batch is not None:
            rows = batch.slice(start - at, stop - start).to_tensor(row_major=True).to_numpy()
            return rows.reshape(-1, *self._shape)  # type: ignore[no-any-return]  # pyarrow is untyped
        return self._stack([view[start - at : stop - at] for view in self._chunks[chunk]], reuse=reuse)

    def _joined_columns(self) -> list[np.ndarray]:
        """Return each column as one array, for batches of rows in any order."""
        if self._joined is None:
            with np.errstate(over="ignore", invalid="ignore"):  # Check has already reported the values that overflow
                self._joined = [
                    np.concatenate([view.astype(self._dtype, copy=False) for view in views])
                    for views in zip(*self._chunks, strict=True)
                ]
        return self._joined

    def _stack(self, views: list[np.ndarray], *, reuse: bool = False) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # Check has already reported the values that overflow
            if self._gaps:
                rows = self._buffer(len(views[0]), reuse=reuse)
                for place, view in zip(self._places, views, strict=True):
                    rows[:, place] = view
            elif len(views) > 1:
                rows = np.stack(views, axis=1, out=self._buffer(len(views[0]), reuse=reuse), casting="unsafe")
            else:
                rows = np.ascontiguousarray(views[0], dtype=self._dtype)
        return rows.reshape(-1, *self._shape)

    def _buffer(self, rows: int, *, reuse: bool) -> np.ndarray:
        """Return the array to fill, reused where allowed, because page faults cost more than the copy.

        Columns that are not read are zero in it, and are never written.
        """
        new = np.zeros if self._gaps else np.empty
        size = rows * self._width
        if not reuse:
            return new((rows, self._width), self._dtype)
        if len(self._memory) < size:
            self._memory = new(size, self._dtype)
        return self._memory[:size].reshape(rows, self._width)


class Check:
    """Converts one column to numpy and finds the values that cannot be fed."""

    def __init__(self, feed: Feed, name: str, column: pa.ChunkedArray) -> None:
        self.lossy = 0
        self._feed, self._name = feed, name
        self._dtype = numpy_type(feed.dtype)
        self._source = values_type(column.type)
        self._may_change = self._cast_may_change(column.cast(self._source))

    def as_numpy(self, array: pa.Array, at: int, bad: dict[int, str]) -> np.ndarray:
        """Return the chunk as numpy; add rows that cannot be fed to `bad`, numbered from `at`."""
        if array.type != self._source:
            array = array.cast(self._source)
        if array.null_count:
            return self._fill_nulls(array, at, bad)
        return self._without_changes(array.to_numpy(zero_copy_only=False), at, bad)

    def _fill_nulls(self, array: pa.Array, at: int, bad: dict[int, str]) -> np.ndarray:
        """Return a chunk in the tensor's type, its nulls replaced by the null policy."""
        nulls = array.is_null().to_numpy(zero_copy_only=False)
        values = pc.fill_null(array, pa.scalar(0).cast(array.type)).to_numpy(zero_copy_only=False)
        values = self._without_changes(values, at, bad)
        with np.errstate(over="ignore", invalid="ignore"):
            filled = values.astype(self._dtype)
        policy = self._feed.on_null
        if policy == "error":
            reason = f"null in column {self._name!r} (tensor {self._feed.tensor!r})"
            for row in np.flatnonzero(nulls):
                bad.setdefault(at + int(row), reason)
        else:
            filled[nulls] = null_constant(policy, self._dtype)
        return filled

    def _cast_may_change(self, column: pa.ChunkedArray) -> bool:
        """Return whether the cast may change a value of the column, judged by its types and its range."""
        source, target = self._source, self._dtype
        if pa.types.is_boolean(source) or not len(column):
            return False
        if pa.types.is_floating(source):
            wide = not is_float(target) or source.bit_width > target.itemsize * 8
            return bool(wide and (not is_float(target) or _largest_magnitude(column) > _LARGEST_FINITE[target.name]))
        low, high = _min_max(column)
        if is_float(target):
            return bool(max(-low, high) > EXACT[target.name])
        info = np.iinfo(target)
        return bool(low < info.min or high > info.max)

    def _without_changes(self, values: np.ndarray, at: int, bad: dict[int, str]) -> np.ndarray:
        """Report the values that the cast changes as bad rows.

        With --on-lossy warn, count them instead, and cast them to integers here: the result of numpy's cast depends
        on the platform and on the length of the array.
        """
        if not self._may_change:
            return values
        with np.errstate(over="ignore", invalid="ignore"):
            changed = _changed_values(values, self._dtype)
        if self._feed.on_lossy == "warn":
            count = int(np.count_nonzero(changed))
            self.lossy += count
            if not count or is_float(self._dtype):
                return values
            policy = self._feed.on_null
            return _saturated(values, self._dtype, 0 if policy == "error" else null_constant(policy, self._dtype))
        for row in np.flatnonzero(changed):
            bad.setdefault(
                at + int(row),
                f"{values[row]} in column {self._name!r} cannot be stored exactly as {self._dtype} "
                f"(tensor {self._feed.tensor!r})",
            )
        return values


def cast_keeps(kind: pa.DataType, target: np.dtype, known: tuple[Any, Any] | None) -> bool:
    """Return whether the cast to a float type changes no value of a column.

    `known` are the column's smallest and largest value, if they are known. The rounding of fractions does not count.
    """
    source = values_type(kind)
    if pa.types.is_boolean(source):
        return True
    if pa.types.is_floating(source):
        most = _LARGEST_FINITE[target.name]
        if source.bit_width <= target.itemsize * 8:
            return True
    elif pa.types.is_integer(source):
        most = EXACT[target.name]
        info = np.iinfo(source.to_pandas_dtype())
        known = known or (info.min, info.max)
    else:
        return False
    return known is not None and bool(-most <= known[0] <= known[1] <= most)


def _changed_values(values: np.ndarray, target: np.dtype) -> np.ndarray:
    """Return which values the cast changes. The rounding of fractions to a float type does not count."""
    if is_float(target):
        cast = values.astype(target)
        if values.dtype.kind == "f":
            return np.asarray(np.isinf(cast) & np.isfinite(values))
        back = cast.astype(np.float64)
        info = np.iinfo(values.dtype)
        in_range = np.isfinite(back) & (back >= float(info.min)) & (back < float(info.max + 1))
        return np.asarray(~in_range | (np.where(in_range, back, 0).astype(values.dtype) != values))
    info = np.iinfo(target)
    if values.dtype.kind == "f":
        exact = values.astype(np.float64)
        return np.asarray(~((exact >= float(info.min)) & (exact < float(info.max + 1)) & (exact == np.trunc(exact))))
    source = np.iinfo(values.dtype)
    return np.asarray((values < max(info.min, source.min)) | (values > min(info.max, source.max)))


def _saturated(values: np.ndarray, target: np.dtype, nan: float) -> np.ndarray:
    """Cast to an integer type: cut fractions off, take the nearest limit for values out of range, `nan` for NaN."""
    info = np.iinfo(target)
    if values.dtype.kind != "f":
        source = np.iinfo(values.dtype)
        return np.asarray(np.clip(values, max(info.min, source.min), min(info.max, source.max)).astype(target))
    exact = np.trunc(values.astype(np.float64))
    missing, low, high = np.isnan(exact), exact < float(info.min), exact >= float(info.max + 1)
    cast = np.where(missing | low | high, 0, exact).astype(target)
    cast[missing], cast[low], cast[high] = nan, info.min, info.max
    return cast


def null_constant(policy: str, kind: np.dtype) -> int | float:
    """Return the constant that replaces a null; ValueError or OverflowError if the type does not hold it exactly."""
    if is_float(kind):
        return parse_float(policy, kind)
    try:
        number = Decimal(policy)
    except InvalidOperation:
        raise ValueError(policy) from None
    if not number.is_finite() or number.adjusted() > _MOST_DIGITS or number != number.to_integral_value():
        raise ValueError(policy)
    low, high = (0, 1) if kind.kind == "b" else (np.iinfo(kind).min, np.iinfo(kind).max)
    if not low <= number <= high:
        raise OverflowError(policy)
    return int(number)


def parse_float(text: str, kind: np.dtype) -> float:
    """Parse a number; OverflowError if the type makes it infinite, or changes a whole number."""
    number = float(text)
    with np.errstate(over="ignore"):
        cast = float(np.float64(number).astype(kind))
    if not math.isfinite(cast) and math.isfinite(number):
        raise OverflowError(text)
    if text.strip().lstrip("+-").isdecimal() and cast != int(text):
        raise OverflowError(text)
    return number


def _record_batch(views: Sequence[np.ndarray], dtype: np.dtype) -> pa.RecordBatch | None:
    """Return columns that already have the tensor's type as a batch, which Arrow turns into rows in one call.

    numpy's stack releases the GIL once for each column, and threads then wait for each other to get it back.
    """
    if len(views) < _FEWEST_COLUMNS or dtype.kind not in "fiu" or any(view.dtype != dtype for view in views):
        return None
    return pa.RecordBatch.from_arrays([pa.array(view) for view in views], [str(i) for i in range(len(views))])


def numpy_type(name: str) -> np.dtype:
    """Return the numpy type; bfloat16 comes from the package ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes  # noqa: PLC0415 - comes with onnx; few models need it

        return np.dtype(ml_dtypes.bfloat16)  # type: ignore[no-any-return]  # untyped
    return np.dtype(name)


def is_float(kind: np.dtype) -> bool:
    """Return whether the type is a float; numpy itself does not count bfloat16 as one."""
    return kind.name in EXACT


def _min_max(column: pa.Array | pa.ChunkedArray) -> tuple[Any, Any]:
    found = pc.min_max(column)
    low, high = found["min"].as_py(), found["max"].as_py()
    return (0, 0) if low is None else (low, high)


def _largest_magnitude(column: pa.Array | pa.ChunkedArray) -> Any:  # noqa: ANN401 - an int or a float
    """Return the largest magnitude of the column; infinite if it has an infinite value."""
    low, high = _min_max(column)
    if pa.types.is_floating(column.type) and (np.isinf(low) or np.isinf(high)):
        return float("inf")
    return max(abs(low), abs(high))
