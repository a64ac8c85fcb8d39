"""Columns as float64 numbers, as texts or as groups of equal values, whatever their Arrow type is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from scorer.arrow import is_text, values_type

if TYPE_CHECKING:
    from collections.abc import Sequence


def is_number(kind: pa.DataType) -> bool:
    """Return whether a gate can compute with values of this type; truth values are 0 and 1."""
    kind = values_type(kind)
    test = pa.types
    return bool(test.is_boolean(kind) or test.is_integer(kind) or test.is_floating(kind) or test.is_decimal(kind))


def is_value(kind: pa.DataType) -> bool:
    """Return whether equal values of this type are counted: texts and truth values."""
    return bool(is_text(values_type(kind)) or pa.types.is_boolean(kind))


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column without a dictionary."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column as float64 numbers; nulls are NaN."""
    column = plain(column)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    found = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.asarray(found, np.float64)


def missing(column: pa.ChunkedArray) -> np.ndarray:
    """Return which values are null or NaN."""
    return np.asarray(column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False), bool)


def values_at(column: pa.ChunkedArray, rows: Sequence[int]) -> list[Any]:
    """Return some values as JSON holds them: numbers, texts and null; NaN and infinities are texts."""
    taken = plain(column.take(pa.array(rows, pa.int64()))).to_pylist()
    return [_as_json(value) for value in taken]


def _as_json(value: Any) -> Any:  # noqa: ANN401 - any value of a column
    if value is None or isinstance(value, bool | int | str):
        return value
    return float(value) if np.isfinite(float(value)) else str(float(value))
