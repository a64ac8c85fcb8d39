"""Arrow types, schemas and columns: plain layouts, type checks, nested lists, schemas as text, digests.

Arrow stores the same values in several layouts: plain, views, dictionaries. Few of its functions accept views.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scorer.errors import CommitError

if TYPE_CHECKING:
    from collections.abc import Sequence


def values_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a dictionary's values; any other type unchanged."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:  # noqa: PLR0911 - one line for each kind
    """Return a type that holds the values of both types, or None if their values differ in kind.

    They may differ in layout (dictionaries, views, offsets of 64 bits) and in what may be null inside them.
    """
    if one == other:
        return one
    if pa.types.is_dictionary(one) and pa.types.is_dictionary(other) and one.value_type == other.value_type:
        return _common_dictionary(one, other)
    one, other = plain(values_type(one)), plain(values_type(other))
    for pair in ((pa.string(), pa.large_string()), (pa.binary(), pa.large_binary())):
        if one in pair and other in pair:
            return pair[1] if pair[1] in {one, other} else pair[0]
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        same = [field.name for field in one] == [field.name for field in other]
        fields = [common_field(*pair) for pair in zip(one, other, strict=True)] if same else [None]
        return None if any(field is None for field in fields) else pa.struct(fields)
    if pa.types.is_map(one) and pa.types.is_map(other):
        key, item = common_type(one.key_type, other.key_type), common_field(one.item_field, other.item_field)
        return None if key is None or item is None else pa.map_(key, item)
    if is_list(one) and is_list(other) and sizes(one)[0] == sizes(other)[0]:
        inner = common_field(one.value_field, other.value_field)
        if inner is None:
            return None
        if pa.types.is_large_list(one) or pa.types.is_large_list(other):
            return pa.large_list(inner)
        return pa.list_(inner, sizes(one)[0] or -1)
    return one if one == other else None


def _common_dictionary(one: pa.DictionaryType, other: pa.DictionaryType) -> pa.DataType:
    """Return a dictionary with the wider index; it is ordered only if both are."""
    found = np.promote_types(one.index_type.to_pandas_dtype(), other.index_type.to_pandas_dtype())
    index = pa.from_numpy_dtype(found) if found.kind in "iu" else pa.int64()  # no integer holds int64 and uint64
    return pa.dictionary(index, one.value_type, one.ordered and other.ordered)


def common_field(one: pa.Field, other: pa.Field) -> pa.Field | None:
    """Return a field for the values of both fields, nulls included; None if `common_type` is None."""
    kind = common_type(one.type, other.type)
    return None if kind is None else one.with_type(kind).with_nullable(one.nullable or other.nullable)


def cast_layout(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return the column in another layout of its type, such as the one that `common_type` returned."""
    steps = [kind] if pa.types.is_dictionary(kind) else [values_type(column.type), plain(kind), kind]
    for step in steps if column.type != kind else ():
        column = column if column.type == step else column.cast(step)  # Arrow fails for some casts to the same type
    return column


def plain(kind: pa.DataType) -> pa.DataType:
    """Return the type with every view layout, nested ones included, replaced by the plain one."""
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
    """Return the schema with plain types instead of views."""
    return pa.schema([field.with_type(plain(field.type)) for field in schema], metadata=schema.metadata)


def plain_rows(rows: pa.Table | pa.RecordBatch) -> Any:  # noqa: ANN401 - a table for a table, a batch for a batch
    """Return the rows with plain columns instead of views; the same object if there are none."""
    _check_categories(rows)
    schema = plain_schema(rows.schema)
    if schema.equals(rows.schema, check_metadata=False):
        return rows
    columns = [column.cast(field.type) for column, field in zip(rows.columns, schema, strict=True)]
    return type(rows).from_arrays(columns, schema=schema)


def python_values(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """Return the values as Python objects. A text that is not UTF-8, or a list with such a text, is given as bytes."""
    try:
        return column.to_pylist()  # type: ignore[no-any-return]  # pyarrow is untyped
    except UnicodeDecodeError:
        if len(column) == 1:
            return [_python_value(column[0])]
    half = len(column) // 2
    return python_values(column.slice(0, half)) + python_values(column.slice(half))


def _python_value(value: pa.Scalar) -> Any:  # noqa: ANN401 - any value
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return error.object


def _check_categories(rows: pa.Table | pa.RecordBatch) -> None:
    """Raise if a dictionary code is out of range: Arrow reads past the end for a code from a damaged file."""
    for column in rows.columns:
        if not pa.types.is_dictionary(column.type):
            continue
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:  # a category that is not UTF-8 is no reason: it concerns only the rows that have it
            for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
                pa.DictionaryArray.from_arrays(chunk.indices, pa.nulls(len(chunk.dictionary)))  # checks the codes


def _is_listed(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_number(kind: pa.DataType) -> bool:
    """Return whether a type is an integer, a float or a boolean, which NumPy holds as numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def is_decimal(kind: pa.DataType) -> bool:
    """Return whether a type is a decimal, of any width."""
    return bool(pa.types.is_decimal(kind))


def is_text(kind: pa.DataType) -> bool:
    """Return whether a type holds text, in any layout."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_encoded(kind: pa.DataType) -> bool:
    """Return whether a type holds bytes, in any layout."""
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return bool(binary or pa.types.is_fixed_size_binary(kind))


def as_lists(kind: pa.DataType) -> pa.DataType:
    """Return a fixed-shape tensor type as the equal fixed-size lists; any other type unchanged."""
    if not isinstance(kind, pa.FixedShapeTensorType):
        return kind
    lists = kind.value_type
    for axis in reversed(kind.permutation or range(len(kind.shape))):
        lists = pa.list_(lists, kind.shape[axis])
    return lists


def is_list(kind: pa.DataType) -> bool:
    """Return whether each value is a list, in any layout."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def depth(kind: pa.DataType) -> int:
    """Return the number of nested list levels; 0 for a type without lists."""
    return 1 + depth(kind.value_type) if is_list(kind) else 0


def values_in(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values in the innermost lists."""
    return values_in(kind.value_type) if is_list(kind) else values_type(kind)


def sizes(kind: pa.DataType) -> tuple[int | None, ...]:
    """Return the fixed list size of each level, outermost first; None where lists may have any length."""
    if not is_list(kind):
        return ()
    return (kind.list_size if pa.types.is_fixed_size_list(kind) else None, *sizes(kind.value_type))


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table with exactly this schema, nullability and metadata included; raise if that is impossible."""
    columns = []
    for field in schema:
        column = table[field.name]
        if column.type != field.type:
            column = column.cast(field.type)
        if column.null_count and not field.nullable:
            raise CommitError(
                f"column {field.name!r} has nulls, but the input's schema declares it as not null",
                expected="no nulls",
                found=f"{column.null_count} nulls",
                hint="leave the column out with --keep",
            )
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def join_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of tables with the same columns, which are nullable if they are so in one of the tables.

    Columns are joined by their place, because two may have the same name.
    """
    names = tables[0].column_names
    places = list(map(str, range(len(names))))
    joined = pa.concat_tables([table.rename_columns(places) for table in tables], promote_options="default")
    return joined.rename_columns(names)


def digest(column: pa.ChunkedArray | pa.Array) -> str:
    """Return a digest of the values; it does not depend on chunks, encoding or layout."""
    hasher = hashlib.sha256()
    if isinstance(column, pa.ChunkedArray):  # combining would copy a single chunk
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    _feed_digest(column, hasher)
    return hasher.hexdigest()[:32]


def encode_schema(schema: pa.Schema) -> str:
    """Return an Arrow schema as base64 text."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def decode_schema(text: str) -> pa.Schema:
    """Return the schema that `encode_schema` wrote."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def _feed_digest(array: pa.Array, hasher: hashlib._Hash) -> None:
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _feed_digest(array.cast(kind.value_type), hasher)
    listed = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    name = "list" if listed else str(kind)  # Parquet renames a list's child field, so its name must not count
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
