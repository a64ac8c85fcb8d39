"""Convert output tensors into Arrow columns. Where a step found no class, the value is null; in a list, the list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scorer.binding.features.steps import is_masked, map_value
from scorer.errors import ShapeMismatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.binding.spec import Fetch


_TYPES = {
    "bfloat16": "float",
    "float16": "float",
    "float32": "float",
    "float64": "double",
    "bool": "bool",
    "object": "string",
}
TOPK = {"topk": pa.string(), "topk_numbers": pa.int64()}
"""The type of the classes by the kind of the fetch: names, or numbers where the classes have no names."""
_HINT = "the model returns another shape for some rows; fetch another tensor with --fetch"


def arrow_name(dtype: np.dtype) -> str | None:
    """Return Arrow's name for a numpy type. float16 and bfloat16 are widened, because few readers support them."""
    if dtype.kind in "iu":
        return dtype.name
    return _TYPES.get(dtype.name if dtype.kind not in "OU" else "object")


def column_types(fetch: Fetch) -> list[pa.DataType]:
    """Return the type of each column of one output."""
    kind = pa.type_for_alias(fetch.type)
    if fetch.kind == "list":
        return [_fixed_size_list(kind, fetch.width)]
    if fetch.kind == "ragged":
        return [
            pa.list_(
                pa.field("item", kind if fetch.width == 1 else _fixed_size_list(kind, fetch.width), nullable=False)
            )
        ]
    if fetch.kind in TOPK:
        return [TOPK[fetch.kind], kind] * (len(fetch.columns) // 2)
    return [kind] * len(fetch.columns)


def unpack(fetch: Fetch, batches: Sequence[Any]) -> list[pa.Array]:
    """Return the columns of one output from the values that the batches returned."""
    types = column_types(fetch)
    if fetch.kind == "zipmap":
        rows = [row for batch in batches for row in batch]
        return [pa.array([map_value(row, label) for row in rows], types[0]) for label in fetch.labels]
    if not batches:
        return [pa.array([], kind) for kind in types]
    if fetch.kind == "ragged":
        return [_ragged_column(fetch, [row for batch in batches for row in batch], types[0])]
    if fetch.kind in TOPK:
        best = np.concatenate([batch.reshape(len(batch), -1) for batch in batches])
        return [_objects(best[:, i], kind) for i, kind in enumerate(types)]
    flat = [batch.reshape(len(batch), -1) for batch in batches]
    unequal = next((batch for batch in flat if batch.shape[1] != fetch.width), None)
    if unequal is not None:
        raise ShapeMismatch(
            f"output {fetch.tensor!r} changed its width",
            expected=f"{fetch.width} values in a row",
            found=str(unequal.shape[1]),
            hint=_HINT,
        )
    values = flat[0] if len(flat) == 1 else _joined(flat)
    if fetch.kind == "list":
        return [_fixed_size_lists(_value_array(values.reshape(-1), types[0].value_type), types[0])]
    return [_value_array(values[:, i], kind) for i, kind in enumerate(types)]


def _objects(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    return pa.array(map(_text, values) if pa.types.is_string(kind) else list(values), kind)


def _fixed_size_list(kind: pa.DataType, width: int) -> pa.DataType:
    return pa.list_(pa.field("item", kind, nullable=False), width)


def _ragged_column(fetch: Fetch, rows: list[np.ndarray], kind: pa.DataType) -> pa.Array:
    """Return a list column of rows of any length; each item is a value, or a list of values."""
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    values = _value_array(_joined([row.reshape(-1) for row in rows]), pa.type_for_alias(fetch.type))
    if len(values) != offsets[-1] * fetch.width:
        raise ShapeMismatch(
            f"output {fetch.tensor!r} changed the shape of its items",
            expected=f"{fetch.width} values in an item",
            found=" and ".join(sorted({str(list(row.shape[1:])) for row in rows})),
            hint=_HINT,
        )
    mask = None
    if values.null_count:
        places = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False)) // fetch.width
        mask = np.zeros(len(rows), bool)
        mask[np.searchsorted(offsets, places, side="right") - 1] = True
        values, mask = _without_nulls(values), pa.array(mask)
    items = values if fetch.width == 1 else _fixed_size_lists(values, kind.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items, mask=mask).cast(kind)


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return the arrays as one; numpy's own function would drop the masks."""
    if any(is_masked(array) for array in arrays):
        return np.ma.concatenate(arrays)  # type: ignore[no-any-return,no-untyped-call]  # untyped
    return np.concatenate(arrays)


def _value_array(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    if is_masked(values):
        return pa.array(np.ascontiguousarray(values), kind, mask=np.ma.getmaskarray(values), from_pandas=False)
    if values.dtype == np.float16 or values.dtype.name == "bfloat16":
        values = values.astype(np.float32)
    if values.dtype.kind in "OU":
        return pa.array([_text(value) for value in values], kind)
    return pa.array(np.ascontiguousarray(values), kind, from_pandas=False)


def _fixed_size_lists(flat: pa.Array, kind: pa.DataType) -> pa.FixedSizeListArray:
    """Return the values as lists; a list is null if one of its values is."""
    if not flat.null_count:
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    mask = flat.is_null().to_numpy(zero_copy_only=False).reshape(-1, kind.list_size).any(axis=1)
    return pa.FixedSizeListArray.from_arrays(_without_nulls(flat), type=kind, mask=pa.array(mask))


def _without_nulls(values: pa.Array) -> pa.Array:
    """Return the values with nulls replaced, because the values of lists are not nullable."""
    return pc.fill_null(values, pa.scalar("" if pa.types.is_string(values.type) else 0, values.type))


def _text(value: object) -> str | None:
    """Return a text as Arrow stores it; None is null."""
    if value is None:
        return None
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
