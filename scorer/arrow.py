"""Arrow's layouts of the same values: views and dictionaries, beside the plain ones that every function takes."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scorer.errors import CommitError


def values_type(kind: pa.DataType) -> pa.DataType:
    """A dictionary's values, else the type itself."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def plain(kind: pa.DataType) -> pa.DataType:
    """The type without Arrow's view layouts, which few of its own functions can handle."""
    views = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    if kind in views:
        return views[kind]
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(plain(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(plain(kind.key_type), kind.item_field.with_type(plain(kind.item_type)))
    inner = kind.value_field.with_type(plain(kind.value_type)) if _is_listed(kind) else None
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(inner, kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(inner)
    return pa.list_(inner) if pa.types.is_list(kind) else kind


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Every column without view layouts."""
    return pa.schema([field.with_type(plain(field.type)) for field in schema], metadata=schema.metadata)


def plain_rows(rows: pa.Table | pa.RecordBatch) -> Any:  # noqa: ANN401 - a table for a table, a batch for a batch
    """The rows without view layouts; themselves where they have none."""
    _check_categories(rows)
    schema = plain_schema(rows.schema)
    if schema.equals(rows.schema, check_metadata=False):
        return rows
    columns = [column.cast(field.type) for column, field in zip(rows.columns, schema, strict=True)]
    return type(rows).from_arrays(columns, schema=schema)


def _check_categories(rows: pa.Table | pa.RecordBatch) -> None:
    """Codes that no category has come out of a damaged file unseen; whoever looks them up reads past the end."""
    for column in rows.columns:
        if pa.types.is_dictionary(column.type):
            column.validate(full=True)


def _is_listed(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_number(kind: pa.DataType) -> bool:
    """Whether numpy knows it as a number."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def is_text(kind: pa.DataType) -> bool:
    """Return whether a type holds text, in any layout."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_encoded(kind: pa.DataType) -> bool:
    """Whether each value holds bytes."""
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return bool(binary or pa.types.is_fixed_size_binary(kind))


def as_lists(kind: pa.DataType) -> pa.DataType:
    """A tensor column as the fixed-size lists that it stands for; any other type as it is."""
    if not isinstance(kind, pa.FixedShapeTensorType):
        return kind
    lists = kind.value_type
    for axis in reversed(kind.permutation or range(len(kind.shape))):
        lists = pa.list_(lists, kind.shape[axis])
    return lists


def is_list(kind: pa.DataType) -> bool:
    """Whether each value is a list."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def depth(kind: pa.DataType) -> int:
    """How many lists are inside each other."""
    return 1 + depth(kind.value_type) if is_list(kind) else 0


def values_in(kind: pa.DataType) -> pa.DataType:
    """What the innermost lists hold."""
    return values_in(kind.value_type) if is_list(kind) else values_type(kind)


def sizes(kind: pa.DataType) -> tuple[int | None, ...]:
    """Fixed sizes by level, None where lists may be of any length."""
    if not is_list(kind):
        return ()
    return (kind.list_size if pa.types.is_fixed_size_list(kind) else None, *sizes(kind.value_type))


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table in the planned schema, nullability and metadata included; anything else is an error."""
    columns = []
    for field in schema:
        column = table[field.name]
        if column.type != field.type:
            column = column.cast(field.type)
        if column.null_count and not field.nullable:
            what = f"column {field.name!r} has nulls and the input's schema says it has none"
            raise CommitError(what, "", "no nulls", f"{column.null_count} nulls", "drop the column with --keep")
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def digest(column: pa.ChunkedArray | pa.Array) -> str:
    """A digest of the values alone: the same however they are chunked, encoded or stored."""
    hasher = hashlib.sha256()
    if isinstance(column, pa.ChunkedArray):  # to put one chunk together would copy it
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    _feed_digest(column, hasher)
    return hasher.hexdigest()[:32]


def encode_schema(schema: pa.Schema) -> str:
    """An Arrow schema as text."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def decode_schema(text: str) -> pa.Schema:
    """The inverse of `encode_schema`."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def _feed_digest(array: pa.Array, hasher: hashlib._Hash) -> None:
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _feed_digest(array.cast(kind.value_type), hasher)
    listed = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    name = "list" if listed else str(kind)  # a list's child is renamed on its way through Parquet
    hasher.update(f"{name}:{len(array)}:{array.null_count};".encode())
    if array.null_count:
        hasher.update(np.packbits(array.is_null().to_numpy(zero_copy_only=False)).tobytes())
        array = array.drop_null()
    if listed:
        hasher.update(pc.list_value_length(array).cast(pa.int64()).to_numpy().tobytes())
        return _feed_digest(array.flatten(), hasher)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        hasher.update(pc.binary_length(array).cast(pa.int64()).to_numpy().tobytes())
        for text in array.to_pylist():
            hasher.update(text.encode())
        return None
    hasher.update(np.ascontiguousarray(array.to_numpy(zero_copy_only=False)).data)
    return None
