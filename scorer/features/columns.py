"""What turns output tensors into columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from scorer.errors import ShapeMismatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.features import Fetch

_TYPES = {"float16": "float", "float32": "float", "float64": "double", "bool": "bool", "object": "string"}
_HINT = "the model gives another shape for some rows; fetch another tensor with --fetch"


def arrow_name(dtype: np.dtype) -> str | None:
    """Arrow's name for a numpy type; float16 is widened, because few readers know it."""
    if dtype.kind in "iu":
        return dtype.name
    return _TYPES.get(dtype.name if dtype.kind not in "OU" else "object")


def unpack(fetch: Fetch, batches: Sequence[Any]) -> list[pa.Array]:
    """The columns of one output, given what each batch returned for it."""
    kind = pa.type_for_alias(fetch.type)
    if fetch.kind == "zipmap":
        rows = [row for batch in batches for row in batch]
        return [pa.array([_of(row, label) for row in rows], kind) for label in fetch.labels]
    if not batches:
        empty = pa.array([], kind)
        return [_lists(empty, fetch.width)] if fetch.kind == "list" else [empty] * len(fetch.columns)
    flat = [batch.reshape(len(batch), -1) for batch in batches]
    strange = next((batch for batch in flat if batch.shape[1] != fetch.width), None)
    if strange is not None:
        what = f"output {fetch.tensor!r} changed its width"
        raise ShapeMismatch(what, "", f"{fetch.width} values in a row", str(strange.shape[1]), _HINT)
    values = flat[0] if len(flat) == 1 else np.concatenate(flat)
    if fetch.kind == "list":
        return [_lists(_array(np.ascontiguousarray(values).reshape(-1), kind), fetch.width)]
    return [_array(values[:, i], kind) for i in range(fetch.width)]


def _array(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    if values.dtype.kind in "OU":
        return pa.array([_text(value) for value in values], kind)
    return pa.array(np.ascontiguousarray(values), kind, from_pandas=False)


def _lists(flat: pa.Array, width: int) -> pa.FixedSizeListArray:
    field = pa.field("item", flat.type, nullable=False)
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(field, width))


def _of(row: dict[Any, float], label: str) -> float:
    """A map's value by its label, which may be a whole number."""
    return row[label] if label in row else row[int(label)]


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
