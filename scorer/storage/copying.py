"""Columns of whole row groups, put into a new file as they are stored: no page is taken apart.

    source   | group 0: a b c | group 1: a b c |          pages are checked, and given a checksum where they have none
    part     | group 0: a b c score | group 1: a b c score |     scores are encoded beside them

What is not stored as the plan would store it (another type, other levels, an unknown codec) is `NotCopyable`, and is
decoded and encoded as everywhere else.
"""

from __future__ import annotations

import os
import re
import struct
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from scorer.storage import _thrift as thrift
from scorer.storage._pages import DICTIONARY, WINDOW, Pages
from scorer.storage._pages import NotCopyable as NotCopyable  # noqa: PLC0414 - copying raises it; the writer catches it
from scorer.storage._thrift import BINARY, I16, I32, I64, LIST, STRUCT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from scorer.storage.encoding import Storage


MEMORY = WINDOW
"""Bytes that a copy holds at once, unless a page is larger."""
_TYPES = ("BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
_CODECS = {"UNCOMPRESSED": 0, "SNAPPY": 1, "GZIP": 2, "BROTLI": 4, "ZSTD": 6, "LZ4": 7}
_ENCODINGS = {
    "PLAIN": 0, "PLAIN_DICTIONARY": 2, "RLE": 3, "BIT_PACKED": 4, "DELTA_BINARY_PACKED": 5,
    "DELTA_LENGTH_BYTE_ARRAY": 6, "DELTA_BYTE_ARRAY": 7, "RLE_DICTIONARY": 8, "BYTE_STREAM_SPLIT": 9,
}  # fmt: skip
_FIXED = _TYPES[-1]
_LIMITS = {"BOOLEAN": "?", "INT32": "<i", "INT64": "<q", "FLOAT": "<f", "DOUBLE": "<d"}
"""How the least and the largest value of a column are written."""
_OLD = re.compile(r"parquet-mr(?! version (1\.([89]|\d\d)|[2-9]))|parquet-cpp(?!-arrow)|impala version 1\.")
"""Writers whose pages or statistics have faults that readers know by the writer's name, and ours would be another."""
_MAGIC = b"PAR1"
_NOTES = 5
"""Field of a footer: keys and values."""
_SAMPLED_GROUPS = 4
MOST_ROWS = 1 << 20  # of a row group: Arrow writes none that is larger
_LEAST_ROWS = 1 << 14  # of several, on average: smaller ones are better put together
_AT_ONCE = 256  # pieces that are written; some systems take no more than 1,024


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A column of values, as Parquet sees it."""

    name: str
    """Of the top-level column that it is in."""
    path: tuple[str, ...]
    kind: tuple[Any, ...]
    """All that decides what its bytes mean, nothing else: writers say the same in several ways."""
    flat: bool
    """Whether it has a value for each row."""


@dataclass(frozen=True, slots=True)
class FileForm:
    """What all files of one output have in common."""

    schema: pa.Schema
    storage: Storage
    leaves: tuple[_Leaf, ...]
    footer: dict[int, tuple[int, bytes]]
    """Fields that do not depend on the rows: (type, value) by number."""
    notes: tuple[bytes, ...]
    """Keys with their values."""

    @classmethod
    def of(cls, schema: pa.Schema, storage: Storage) -> FileForm:
        """The form of files with this schema, as Arrow would write them."""
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, schema, **storage.options()):
            pass
        data = sink.getvalue().to_pybytes()
        length = int.from_bytes(data[-8:-4], "little")
        at = len(data) - 8 - length
        found, _ = thrift.fields(data, at)
        footer = {number: (kind, data[start:end]) for number, (kind, start, end) in found.items()}
        with pq.ParquetFile(pa.BufferReader(data)) as parquet:
            return cls(schema, storage, _leaves(parquet, schema), footer, _notes(data, found))


@dataclass(frozen=True, slots=True)
class CopiedGroups:
    """Row groups of a file whose columns are put into a part as they are stored."""

    path: str
    metadata: pq.FileMetaData
    groups: tuple[int, ...]
    columns: Mapping[str, tuple[int, ...]]
    """The leaves in the file of each column that is taken."""


def copyable(form: FileForm, parquet: pq.ParquetFile, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Of these columns, those that the file stores as the form has them, with their leaves in the file."""
    if _OLD.match(parquet.metadata.created_by or ""):
        return {}
    schema = parquet.schema_arrow
    once = Counter(schema.names)
    there = [name for name in names if once[name] == 1]
    mine: dict[str, list[tuple[Any, ...]]] = {}
    for leaf in form.leaves:
        mine.setdefault(leaf.name, []).append(leaf.kind)
    theirs: dict[str, list[tuple[Any, ...]]] = {}
    places: dict[str, list[int]] = {}
    for i, leaf in enumerate(_leaves(parquet, schema)):
        theirs.setdefault(leaf.name, []).append(leaf.kind)
        places.setdefault(leaf.name, []).append(i)
    return {
        name: tuple(places[name])
        for name in there
        if mine.get(name)
        and mine[name] == theirs.get(name)
        and _known(parquet.metadata, places[name])
        and _same(form.schema.field(name), schema.field(name))
    }


def worth_copying(rows: int, groups: int) -> bool:
    """Whether so many row groups, of so many rows in all, are copied rather than put together."""
    return rows >= _LEAST_ROWS * (groups - 1)


def compressed_row_bytes(metadata: pq.FileMetaData, columns: Mapping[str, tuple[int, ...]]) -> float:
    """What a row of these columns takes as it is stored, by the first row groups."""
    groups = [metadata.row_group(i) for i in range(min(metadata.num_row_groups, _SAMPLED_GROUPS))]
    size = sum(group.column(i).total_compressed_size for group in groups for own in columns.values() for i in own)
    return float(size / max(1, sum(group.num_rows for group in groups)))


def write(
    path: str | os.PathLike[str], table: pa.Table, form: FileForm, taken: CopiedGroups, notes: Mapping[bytes, bytes]
) -> None:
    """A file of the form: columns of `table` encoded, all others taken; the rows of both are the same."""
    done = 0
    with open(path, "wb", buffering=0) as file, Pages.opened(taken.path) as source:
        into = _Into(file.fileno())
        into.write([_MAGIC])
        groups = []
        for i, group in enumerate(taken.groups):
            found = taken.metadata.row_group(group)
            fresh, encoded = _encoded(table.slice(done, found.num_rows), form.storage)
            theirs = {name: iter(places) for name, places in taken.columns.items()}
            mine = iter(range(fresh.num_columns))
            columns = [
                _take(source, into, found.column(next(theirs[leaf.name])), leaf, found.num_rows)
                if leaf.name in theirs
                else _put(encoded, into, fresh.column(next(mine)), leaf.path)
                for leaf in form.leaves
            ]
            groups.append(_group(columns, found.num_rows, i))
            done += found.num_rows
        _finish(into, form, groups, done, notes)


def _encoded(rows: pa.Table, storage: Storage) -> tuple[pq.RowGroupMetaData, memoryview]:
    """The rows as a file in memory, of one row group."""
    sink = pa.BufferOutputStream()
    collected: list[pq.FileMetaData] = []
    with pq.ParquetWriter(sink, rows.schema, metadata_collector=collected, **storage.options()) as writer:
        writer.write_table(rows, row_group_size=rows.num_rows)
    return collected[0].row_group(0), memoryview(sink.getvalue())


@dataclass(frozen=True, slots=True)
class _Column:
    """A column chunk in the new file: its entry in the footer, and its bytes before and after compression."""

    entry: bytes
    plain: int
    stored: int


def _group(columns: Sequence[_Column], rows: int, number: int) -> bytes:
    return thrift.struct(
        [
            (1, LIST, thrift.listed(STRUCT, [column.entry for column in columns])),
            (2, I64, thrift.number(sum(column.plain for column in columns))),
            (3, I64, thrift.number(rows)),
            (6, I64, thrift.number(sum(column.stored for column in columns))),
            (7, I16, thrift.number(number)),
        ]
    )


def _finish(into: _Into, form: FileForm, groups: Sequence[bytes], rows: int, notes: Mapping[bytes, bytes]) -> None:
    """The footer."""
    said = [
        thrift.struct([(1, BINARY, thrift.binary(key)), (2, BINARY, thrift.binary(value))])
        for key, value in notes.items()
    ]
    own = {
        3: (I64, thrift.number(rows)),
        4: (LIST, thrift.listed(STRUCT, groups)),
        _NOTES: (LIST, thrift.listed(STRUCT, [*form.notes, *said])),
    }
    footer = thrift.struct((number, *value) for number, value in sorted((form.footer | own).items()))
    into.write([footer, len(footer).to_bytes(4, "little"), _MAGIC])


def _take(source: Pages, into: _Into, column: pq.ColumnChunkMetaData, leaf: _Leaf, rows: int) -> _Column:
    """A column chunk of the source, page by page."""
    start, dictionary, data, added, values = into.at, None, None, 0, 0
    for pages in source.of(_begin(column), column.total_compressed_size, column.compression):
        for page in pages:
            if page.kind == DICTIONARY and dictionary is None and data is None:
                dictionary = into.at
            elif page.kind != DICTIONARY:
                data = into.at if data is None else data
                values += page.values
            else:
                raise NotCopyable(page.kind)
            added += page.added
            into.add(page.pieces)
        into.flush()
    if data is None or values != column.num_values or (leaf.flat and values != rows) or column.file_path:
        raise NotCopyable(leaf.path)
    return _column(column, leaf.path, (data, dictionary), into.at - start, added)


def _put(encoded: memoryview, into: _Into, column: pq.ColumnChunkMetaData, path: Sequence[str]) -> _Column:
    """A column chunk that was encoded in memory."""
    begin, start = _begin(column), into.at
    into.write([encoded[begin : begin + column.total_compressed_size]])
    dictionary = start if begin != column.data_page_offset else None
    return _column(column, path, (column.data_page_offset - begin + start, dictionary), into.at - start, 0)


def _begin(column: pq.ColumnChunkMetaData) -> int:
    dictionary = column.dictionary_page_offset or 0
    return int(dictionary if 0 < dictionary < column.data_page_offset else column.data_page_offset)


def _column(
    column: pq.ColumnChunkMetaData, path: Sequence[str], places: tuple[int, int | None], stored: int, added: int
) -> _Column:
    """The footer's entry for a chunk whose data, and whose dictionary, begin at these places."""
    try:
        codec, encodings = _CODECS[column.compression], [_ENCODINGS[one] for one in column.encodings]
    except KeyError as error:
        raise NotCopyable(error) from error
    plain = column.total_uncompressed_size + added
    own = [
        (1, I32, thrift.number(_TYPES.index(column.physical_type))),
        (2, LIST, thrift.listed(I32, [thrift.number(one) for one in encodings])),
        (3, LIST, thrift.listed(BINARY, [thrift.binary(part.encode()) for part in path])),
        (4, I32, thrift.number(codec)),
        (5, I64, thrift.number(column.num_values)),
        (6, I64, thrift.number(plain)),
        (7, I64, thrift.number(stored)),
        (9, I64, thrift.number(places[0])),
        *([] if places[1] is None else [(11, I64, thrift.number(places[1]))]),
        *_statistics(column),
    ]
    entry = thrift.struct([(2, I64, thrift.number(0)), (3, STRUCT, thrift.struct(own))])
    return _Column(entry, plain, stored)


def _statistics(column: pq.ColumnChunkMetaData) -> list[tuple[int, int, bytes]]:
    """What the source says of the chunk's values, as far as Arrow believes it."""
    known = column.statistics if column.is_stats_set else None
    if known is None:
        return []
    own = [(3, I64, thrift.number(known.null_count))] if known.has_null_count else []
    if known.has_min_max:
        own += [(5, BINARY, _limit(column, known.max_raw)), (6, BINARY, _limit(column, known.min_raw))]
    return [(12, STRUCT, thrift.struct(own))]


def _limit(column: pq.ColumnChunkMetaData, value: Any) -> bytes:  # noqa: ANN401 - of any type
    form = _LIMITS.get(column.physical_type)
    return thrift.binary(bytes(value) if form is None else struct.pack(form, value))


class _Into:
    """A file that grows: where it ends, and what is still to be written."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._waiting: list[Any] = []
        self.at = 0

    def add(self, pieces: Sequence[Any]) -> None:
        """To be written soon; they must not change before."""
        self._waiting += pieces
        self.at += sum(map(len, pieces))

    def write(self, pieces: Sequence[Any]) -> None:
        """Written now."""
        self.add(pieces)
        self.flush()

    def flush(self) -> None:
        """Write what waits, in as few calls as there can be."""
        waiting, self._waiting = self._waiting, []
        while waiting:
            some, waiting = waiting[:_AT_ONCE], waiting[_AT_ONCE:]
            done, whole = os.writev(self._handle, some), sum(map(len, some))
            if done < whole:  # interrupted, or the disk is nearly full: the rest tells
                rest = memoryview(b"".join(some))[done:]
                waiting = [rest, *waiting]


def _leaves(parquet: pq.ParquetFile, schema: pa.Schema) -> tuple[_Leaf, ...]:
    """All columns of values, in the file's order; none if it has others than these types should have."""
    found: list[_Leaf] = []
    for field in schema:
        for _ in range(_width(field.type)):
            if len(found) == len(parquet.schema):
                return ()
            own = parquet.schema.column(len(found))
            path = tuple(own.path.split(".")) if pa.types.is_nested(_held(field.type)) else (field.name,)
            kind = (own.path, own.max_definition_level, own.max_repetition_level, own.physical_type, *_meaning(own))
            found.append(_Leaf(field.name, path, kind, own.max_repetition_level == 0))
    return tuple(found) if len(found) == len(parquet.schema) else ()


def _meaning(column: pq.ColumnSchema) -> tuple[str, int]:
    """What the bytes of a value stand for, however its writer says so; and how many there are, where that is fixed."""
    said = str(column.logical_type).split(", is_from_converted_type")[0]
    usual = {"INT32": "Int(bitWidth=32, isSigned=true)", "INT64": "Int(bitWidth=64, isSigned=true)"}
    logical = "None" if said == usual.get(column.physical_type) else said
    return logical, column.length if column.physical_type == _FIXED else 0


def _width(kind: pa.DataType) -> int:
    """Columns of values in a column of this type."""
    kind = _held(kind)
    if pa.types.is_map(kind):
        return _width(kind.key_type) + _width(kind.item_type)
    if pa.types.is_struct(kind):
        return sum(_width(kind.field(i).type) for i in range(kind.num_fields))
    return _width(kind.value_type) if pa.types.is_nested(kind) else 1


def _same(one: pa.Field, other: pa.Field) -> bool:
    """Whether nested columns have the same levels: no name in them may hold a dot, which divides names in a path."""
    if not pa.types.is_nested(_held(one.type)):
        return True
    return one.type.equals(other.type) and one.nullable == other.nullable and "." not in "".join(_names(one))


def _names(field: pa.Field) -> Iterator[str]:
    yield field.name
    kind = _held(field.type)
    if pa.types.is_nested(kind):
        for i in range(kind.num_fields):
            yield from _names(kind.field(i))


def _held(kind: pa.DataType) -> pa.DataType:
    """What an extension's values are held as."""
    return getattr(kind, "storage_type", kind)


def _known(metadata: pq.FileMetaData, leaves: Sequence[int]) -> bool:
    """Whether the first row group stores them in ways that have a name here."""
    if not metadata.num_row_groups:
        return True
    columns = [metadata.row_group(0).column(i) for i in leaves]
    return all(column.compression in _CODECS and _ENCODINGS.keys() >= set(column.encodings) for column in columns)


def _notes(data: bytes, found: Mapping[int, thrift.Span]) -> tuple[bytes, ...]:
    """Keys and values that Arrow writes."""
    if _NOTES not in found:
        return ()
    _, many, at = thrift.items(data, found[_NOTES][1])
    notes = []
    for _ in range(many):
        _, end = thrift.fields(data, at)
        notes.append(data[at:end])
        at = end
    return tuple(notes)
