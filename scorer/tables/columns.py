"""The columns of a table in one of its files: found by name or id, renamed, cast, or absent.

    table       file            rows
    id          col-173b…       renamed, without a copy
    price       price: int32    cast to the type of the table, if that loses nothing
    added       -               nulls of its type

A file that has the table's columns as they are is read as it is. Only `open_as_table` decides that.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from scorer.arrow import common_type
from scorer.display.words import quoted_list
from scorer.errors import InputError
from scorer.storage.footers import flat_leaves
from scorer.tables.snapshot import DEFAULT, FIELD_ID, IN_FILES, NO_NAMES, STORED, value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    import pyarrow.parquet as pq

    Convert = Callable[[pa.Array], pa.Array]


_INTEGERS = (pa.int8(), pa.int16(), pa.int32(), pa.int64())
_EXACT_FLOATS = {pa.int8(): 24, pa.int16(): 24, pa.int32(): 53}
"""Integers that every double holds, and the bits of the smallest float type that does."""


def open_as_table(
    parquet: pq.ParquetFile, columns: pa.Schema, path: str, must_have: Iterable[str] = ()
) -> pq.ParquetFile | TableColumns:
    """Return a file as one with these columns of its table, which are those without the keys.

    Raises InputError for a column that is stored in another type, or is not there and may not be null, or in which the
    file `must_have` values of its own.
    """
    found = TableColumns(parquet, columns, path)
    for name in must_have:
        if found.is_absent(name):
            raise _only_in_partition(name, path)
    return parquet if found.is_plain else found


class TableColumns:
    """A Parquet file under the names and types of its table, with those methods of ParquetFile that scorer uses."""

    def __init__(self, parquet: pq.ParquetFile, columns: pa.Schema, path: str) -> None:
        self._parquet = parquet
        stored = parquet.schema_arrow
        self.metadata = parquet.metadata
        self.num_row_groups = parquet.num_row_groups
        self._stored: dict[str, str] = {}
        self._convert: dict[str, Convert | None] = {}
        self._absent: dict[str, pa.Scalar] = {}
        fields = []
        by_id = _has_ids(stored)
        for field in columns:
            own = _find(field, stored, by_id=by_id)
            if own is None:
                self._absent[field.name] = _absent(field, stored, path)
                fields.append(_bare(field))
                continue
            kind, self._convert[field.name] = _fit(field, own, by_id, path, field.name)
            self._stored[field.name] = own.name
            fields.append(pa.field(field.name, kind, own.nullable))
        self.schema_arrow = pa.schema(fields, stored.metadata)
        self.is_plain = stored.names == columns.names == list(self._stored.values()) and not any(self._convert.values())
        """Whether the file has just these columns, in their order and under their names."""

    def __enter__(self) -> Self:
        """Return the file."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._parquet.close()

    def close(self) -> None:
        """Close the file."""
        self._parquet.close()

    def is_absent(self, name: str) -> bool:
        """Return whether the file does not have a column of the table."""
        return name in self._absent

    def stored(self, names: Iterable[str]) -> list[str]:
        """Return the columns of the file that are read for these columns and fields of the table."""
        return list(dict.fromkeys(self._stored[name] for name in self._whole(names) if name in self._stored))

    def flat_leaves(self) -> dict[str, int]:
        """Return the column index in a row group of each flat column that is read as it is stored."""
        leaves = flat_leaves(self._parquet.schema_arrow, self.metadata)
        as_stored = {name: own for name, own in self._stored.items() if self._convert[name] is None and own in leaves}
        flat = {field.name for field in self.schema_arrow if not pa.types.is_nested(field.type)}
        return {name: leaves[own] for name, own in as_stored.items() if name in flat}

    def read_row_groups(
        self, groups: Sequence[int], columns: Sequence[str] | None = None, *, use_threads: bool = True
    ) -> pa.Table:
        """Return whole row groups; a field of a struct comes with its whole column."""
        names = self._whole(columns)
        table = self._parquet.read_row_groups(groups, columns=self.stored(names), use_threads=use_threads)
        rows = sum(self.metadata.row_group(group).num_rows for group in groups)
        return pa.Table.from_arrays(
            [self._column(table, name, rows) for name in names], schema=pa.schema(map(self.schema_arrow.field, names))
        )

    def iter_batches(
        self, batch_size: int = 65_536, row_groups: Sequence[int] | None = None,
        columns: Sequence[str] | None = None, *, use_threads: bool = True,
    ) -> Iterator[pa.RecordBatch]:  # fmt: skip
        """Yield the rows in batches; a field of a struct comes with its whole column."""
        names = self._whole(columns)
        stored, schema = self.stored(names), pa.schema(map(self.schema_arrow.field, names))
        if not stored:  # Arrow yields nothing for no columns
            groups = range(self.num_row_groups) if row_groups is None else row_groups
            yield from self._nulls(schema, sum(self.metadata.row_group(group).num_rows for group in groups), batch_size)
            return
        for batch in self._parquet.iter_batches(batch_size, row_groups, stored, use_threads=use_threads):
            arrays = [self._array(batch, name) for name in names]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _nulls(self, schema: pa.Schema, rows: int, batch_size: int) -> Iterator[pa.RecordBatch]:
        for start in range(0, rows, batch_size):
            n = min(batch_size, rows - start)
            arrays = [_repeat(self._absent[field.name], n) for field in schema]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _whole(self, names: Iterable[str] | None) -> list[str]:
        """Return the columns of the table that hold these columns and fields."""
        if names is None:
            return list(self.schema_arrow.names)
        there = set(self.schema_arrow.names)
        return list(dict.fromkeys(name if name in there else _column_of(name, there) for name in names))

    def _column(self, table: pa.Table, name: str, rows: int) -> pa.ChunkedArray:
        kind = self.schema_arrow.field(name).type
        if name not in self._stored:
            return pa.chunked_array([_repeat(self._absent[name], rows)])
        column, convert = table.column(self._stored[name]), self._convert[name]
        return column if convert is None else pa.chunked_array([convert(chunk) for chunk in column.chunks], kind)

    def _array(self, batch: pa.RecordBatch, name: str) -> pa.Array:
        if name not in self._stored:
            return _repeat(self._absent[name], batch.num_rows)
        column, convert = batch.column(self._stored[name]), self._convert[name]
        return column if convert is None else convert(column)


AnyParquet = Any
"""A ParquetFile, or `TableColumns`."""


def stored_names(parquet: AnyParquet, names: Sequence[str]) -> list[str]:
    """Return the names under which a file stores these columns, as its footer has them."""
    return parquet.stored(names) if isinstance(parquet, TableColumns) else list(names)


def _column_of(name: str, there: Collection[str]) -> str:
    """Return the column of a path such as geo.lat, whose names may contain dots."""
    parts = name.split(".")
    return next((one for i in range(len(parts), 0, -1) if (one := ".".join(parts[:i])) in there), name)


def _inner(kind: pa.DataType) -> list[pa.Field]:
    if pa.types.is_map(kind):
        return [kind.key_field, kind.item_field]
    return [kind.field(i) for i in range(kind.num_fields)]


def _has_ids(fields: Iterable[pa.Field]) -> bool:
    return any(FIELD_ID in (field.metadata or {}) for field in fields)


def _find(field: pa.Field, stored: Iterable[pa.Field], *, by_id: bool) -> pa.Field | None:
    """Return the field of a file that a field of the table is stored in."""
    metadata = field.metadata or {}
    stored = list(stored)
    if by_id and FIELD_ID in metadata:
        wanted = metadata[FIELD_ID]
        return next((one for one in stored if (one.metadata or {}).get(FIELD_ID) == wanted), None)
    names = json.loads(metadata[STORED]) or [] if STORED in metadata else [field.name]
    return next((one for name in names for one in stored if one.name == name), None)


def _fit(wanted: pa.Field, own: pa.Field, by_id: bool, path: str, name: str) -> tuple[pa.DataType, Convert | None]:  # noqa: FBT001
    """Return the type in which a column is read, and what converts it; None if it is read as it is stored."""
    kind, stored = wanted.type, own.type
    inner = partial(_fit, by_id=by_id, path=path)
    if pa.types.is_struct(kind) and pa.types.is_struct(stored):
        return _fit_struct(kind, stored, by_id, path, name)
    if pa.types.is_map(kind) and pa.types.is_map(stored):
        key, of_key = inner(kind.key_field, stored.key_field, name=f"{name}.key")
        item, of_item = inner(kind.item_field, stored.item_field, name=f"{name}.value")
        if of_key is None and of_item is None:
            return stored, None
        found = pa.map_(key, stored.item_field.with_type(item))
        return found, lambda array: _map(array, found, of_key, of_item)
    if _is_list(kind) and _is_list(stored):
        item, of_item = inner(kind.value_field, stored.value_field, name=f"{name}.element")
        if of_item is None:
            return stored, None
        make = pa.large_list if pa.types.is_large_list(stored) else pa.list_
        listed = make(stored.value_field.with_type(item))
        return listed, lambda array: _list(array, listed, of_item)
    if common_type(kind, stored) is not None:
        return stored, None
    if getattr(kind, "storage_type", None) == stored:  # such as a UUID that is stored as 16 bytes
        return kind, lambda array: pa.ExtensionArray.from_storage(kind, array)
    if not _promotes(stored, kind):
        raise InputError(
            f"the column {name!r} has another type in a file than in the table",
            where=path,
            expected=str(kind),
            found=str(stored),
            hint="let the table's own tools rewrite this file, or leave the column out",
        )
    return kind, lambda array: pc.cast(array, kind)


def _fit_struct(
    kind: pa.StructType, stored: pa.StructType, by_id: bool, path: str, name: str  # noqa: FBT001
) -> tuple[pa.DataType, Convert | None]:  # fmt: skip
    own_fields = [stored.field(i) for i in range(stored.num_fields)]
    fields: list[pa.Field] = []
    places: list[int] = []
    converts: list[Convert | None] = []
    absent: dict[int, pa.Scalar] = {}
    by_id = by_id and _has_ids(own_fields)
    for i in range(kind.num_fields):
        wanted = kind.field(i)
        own = _find(wanted, own_fields, by_id=by_id)
        if own is None:
            absent[i] = _absent(wanted, own_fields, path)
            fields.append(_bare(wanted))
            places.append(-1)
            converts.append(None)
            continue
        type_, convert = _fit(wanted, own, by_id, path, f"{name}.{wanted.name}")
        fields.append(pa.field(wanted.name, type_, own.nullable))
        places.append(own_fields.index(own))
        converts.append(convert)
    same = [field.name for field in fields] == [field.name for field in own_fields]
    if same and places == list(range(len(own_fields))) and not any(converts):
        return stored, None
    found = pa.struct(fields)
    return found, lambda array: _struct(array, found, places, converts, absent)


def _struct(
    array: Any, kind: pa.StructType, places: Sequence[int], converts: Sequence[Convert | None],  # noqa: ANN401
    absent: Mapping[int, pa.Scalar],
) -> pa.Array:  # fmt: skip
    children = []
    for i, (place, convert) in enumerate(zip(places, converts, strict=True)):
        child = _repeat(absent[i], len(array)) if place < 0 else array.field(place)
        children.append(child if convert is None else convert(child))
    mask = array.is_null() if array.null_count else None
    return pa.StructArray.from_arrays(children, fields=[kind.field(i) for i in range(kind.num_fields)], mask=mask)


def _list(array: Any, kind: pa.DataType, of_item: Convert) -> pa.Array:  # noqa: ANN401
    array = _from_start(array)
    mask = array.is_null() if array.null_count else None
    return type(array).from_arrays(array.offsets, of_item(array.values), type=kind, mask=mask)


def _map(array: Any, kind: pa.MapType, of_key: Convert | None, of_item: Convert | None) -> pa.Array:  # noqa: ANN401
    array = _from_start(array)
    keys = array.keys if of_key is None else of_key(array.keys)
    items = array.items if of_item is None else of_item(array.items)
    mask = array.is_null() if array.null_count else None
    return pa.MapArray.from_arrays(array.offsets, keys, items, type=kind, mask=mask)


def _from_start(array: pa.Array) -> pa.Array:
    """Return the array without an offset in its buffers, as lists with a mask need it."""
    return array if not array.offset else pa.concat_arrays([array, array.slice(0, 0)])


def _promotes(stored: pa.DataType, kind: pa.DataType) -> bool:
    """Return whether every value of the stored type has an equal one in the type of the table."""
    if stored in _INTEGERS and kind in _INTEGERS:
        return bool(stored.bit_width <= kind.bit_width)
    if pa.types.is_decimal(stored) and pa.types.is_decimal(kind):
        grown = kind.precision - stored.precision
        return bool(kind.scale >= stored.scale and grown >= kind.scale - stored.scale)
    if pa.types.is_timestamp(stored) and pa.types.is_timestamp(kind):
        return stored.unit in {"s", "ms", kind.unit}  # times of type INT96 have no zone in the file
    if stored == pa.date32() and pa.types.is_timestamp(kind):
        return kind.tz is None
    return (stored, kind) == (pa.float32(), pa.float64()) or (
        kind in {pa.float32(), pa.float64()} and _EXACT_FLOATS.get(stored, 99) <= {32: 24, 64: 53}[kind.bit_width]
    )


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _bare(field: pa.Field) -> pa.Field:
    """Return a field that no file has under the names of the table, without its metadata."""
    return pa.field(field.name, _bare_type(field.type), nullable=True)


def _bare_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(one.name, _bare_type(one.type), one.nullable) for one in _inner(kind)])
    if pa.types.is_map(kind):
        return pa.map_(_bare_type(kind.key_type), _bare_type(kind.item_type))
    if _is_list(kind):
        return pa.list_(_bare_type(kind.value_type))
    return kind


def _absent(field: pa.Field, stored: Iterable[pa.Field], path: str) -> pa.Scalar:
    """Return the value of a column that a file does not have; raise InputError if there is none."""
    metadata = field.metadata or {}
    if not _has_ids(stored) and metadata.get(STORED) == NO_NAMES:
        raise InputError(
            "a file of the table has no field ids, by which its columns are found",
            where=path,
            expected="field ids, or a schema.name-mapping.default of the table",
            found="neither",
            hint="let the table's own tools rewrite this file, or set the name mapping",
        )
    if DEFAULT in metadata:
        return value_of(metadata[DEFAULT])
    if IN_FILES in metadata:
        raise _only_in_partition(field.name, path)
    if not field.nullable:
        raise _missing(field, path)
    return pa.scalar(None, _bare_type(field.type))


def _only_in_partition(name: str, path: str) -> InputError:
    return InputError(
        f"a file of the table has no column {name!r}, whose value in the table's partitions is not read",
        where=path,
        expected=f"a file with the column {name!r}",
        found="no such column",
        hint="let the table's own tools rewrite this file, then score",
    )


def _repeat(value: pa.Scalar, rows: int) -> pa.Array:
    return pa.repeat(value, rows) if value.is_valid else pa.nulls(rows, value.type)


def _missing(field: pa.Field, path: str) -> InputError:
    return InputError(
        f"a file of the table has no column {field.name!r}, which may not be null",
        where=path,
        expected=quoted_list([field.name]),
        found="no such column",
        hint="repair the table with its own tools, or write its rows to a plain folder",
    )
