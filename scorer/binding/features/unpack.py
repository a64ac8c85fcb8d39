"""What turns output tensors into columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

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
_HINT = "the model gives another shape for some rows; fetch another tensor with --fetch"


def arrow_name(dtype: np.dtype) -> str | None:
    """Arrow's name for a numpy type; the small floats are widened, because few readers know them."""
    if dtype.kind in "iu":
        return dtype.name
    return _TYPES.get(dtype.name if dtype.kind not in "OU" else "object")


def column_types(fetch: Fetch) -> list[pa.DataType]:
    """The type of each column of one output."""
    kind = pa.type_for_alias(fetch.type)
    if fetch.kind == "list":
        return [_fixed(kind, fetch.width)]
    if fetch.kind == "ragged":
        return [pa.list_(pa.field("item", kind if fetch.width == 1 else _fixed(kind, fetch.width), nullable=False))]
    if fetch.kind == "topk":
        return [pa.string(), kind] * (len(fetch.columns) // 2)
    return [kind] * len(fetch.columns)


def unpack(fetch: Fetch, batches: Sequence[Any]) -> list[pa.Array]:
    """The columns of one output, given what each batch returned for it."""
    types = column_types(fetch)
    if fetch.kind == "zipmap":
        rows = [row for batch in batches for row in batch]
        return [pa.array([_of(row, label) for row in rows], types[0]) for label in fetch.labels]
    if not batches:
        return [pa.array([], kind) for kind in types]
    if fetch.kind == "ragged":
        return [_ragged(fetch, [row for batch in batches for row in batch], types[0])]
    if fetch.kind == "topk":
        best = np.concatenate([batch.reshape(len(batch), -1) for batch in batches])
        return [pa.array(list(best[:, i]), kind) for i, kind in enumerate(types)]
    flat = [batch.reshape(len(batch), -1) for batch in batches]
    strange = next((batch for batch in flat if batch.shape[1] != fetch.width), None)
    if strange is not None:
        what = f"output {fetch.tensor!r} changed its width"
        raise ShapeMismatch(what, "", f"{fetch.width} values in a row", str(strange.shape[1]), _HINT)
    values = flat[0] if len(flat) == 1 else np.concatenate(flat)
    if fetch.kind == "list":
        return [_lists(_array(np.ascontiguousarray(values).reshape(-1), types[0].value_type), types[0])]
    return [_array(values[:, i], kind) for i, kind in enumerate(types)]


def _fixed(kind: pa.DataType, width: int) -> pa.DataType:
    return pa.list_(pa.field("item", kind, nullable=False), width)


def _ragged(fetch: Fetch, rows: list[np.ndarray], kind: pa.DataType) -> pa.Array:
    """Rows of any length; each item is a value, or a list of them."""
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    flat = np.concatenate([np.ascontiguousarray(row).reshape(-1) for row in rows])
    values = _array(flat, pa.type_for_alias(fetch.type))
    items = values if fetch.width == 1 else _lists(values, kind.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items).cast(kind)


def _array(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    if values.dtype == np.float16 or values.dtype.name == "bfloat16":
        values = values.astype(np.float32)
    if values.dtype.kind in "OU":
        return pa.array([_text(value) for value in values], kind)
    return pa.array(np.ascontiguousarray(values), kind, from_pandas=False)


def _lists(flat: pa.Array, kind: pa.DataType) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(flat, type=kind)


def _of(row: dict[Any, float], label: str) -> float:
    """A map's value by its label, which may be a whole number."""
    return row[label] if label in row else row[int(label)]


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
