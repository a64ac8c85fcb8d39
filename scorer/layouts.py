"""Arrow's layouts of the same values: views and dictionaries, beside the plain ones that every function takes."""

from __future__ import annotations

from typing import Any

import pyarrow as pa


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
