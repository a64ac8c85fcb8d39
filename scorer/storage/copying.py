"""Copy columns of whole row groups into a new file as they are stored, without decoding their pages.

    sources  | group 0: a b c | group 1: a b c |          checksums of pages are checked, or added if missing
    part     | group 0: a b c score | group 1: a b c score |     scores are encoded and added

A column that is not stored as the plan would store it (another type, other levels, an unknown codec) raises
`NotCopyable`. It is then decoded and encoded again.
"""

from __future__ import annotations

import os
import re
import struct
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from scorer.storage import _thrift as thrift
from scorer.storage._pages import DICTIONARY, WINDOW, FetchedPages, Pages
from scorer.storage._pages import NotCopyable as NotCopyable  # noqa: PLC0414 - raised here, caught by the writer
from scorer.storage._thrift import BINARY, I16, I32, I64, LIST, STRUCT
from scorer.storage.footers import start_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from scorer.storage.encoding import Storage
    from scorer.storage.fetched import Fetched
    from scorer.storage.files import FileId


MEMORY = WINDOW
"""Bytes that a copy keeps in memory, unless a page is larger."""
_TYPES = ("BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
_CODECS = {"UNCOMPRESSED": 0, "SNAPPY": 1, "GZIP": 2, "BROTLI": 4, "ZSTD": 6, "LZ4": 7}
_ENCODINGS = {
    "PLAIN": 0, "PLAIN_DICTIONARY": 2, "RLE": 3, "BIT_PACKED": 4, "DELTA_BINARY_PACKED": 5,
    "DELTA_LENGTH_BYTE_ARRAY": 6, "DELTA_BYTE_ARRAY": 7, "RLE_DICTIONARY": 8, "BYTE_STREAM_SPLIT": 9,
}  # fmt: skip
_FIXED = _TYPES[-1]
_LIMITS = {"BOOLEAN": "?", "INT32": "<i", "INT64": "<q", "FLOAT": "<f", "DOUBLE": "<d"}
"""How the minimum and maximum of a column are written."""
_FAULTY_WRITERS = re.compile(r"parquet-mr(?! version (1\.([89]|\d\d)|[2-9]))|parquet-cpp(?!-arrow)|impala version 1\.")
"""Writers with faulty pages or statistics. Readers recognise them by the writer's name, which a copy would lose."""
_MAGIC = b"PAR1"
_KEY_VALUES = 5
"""Field of a footer: its key-value metadata."""
_SAMPLED_GROUPS = 4
MOST_ROWS = 1 << 20  # of a row group: Arrow writes no larger ones
_LEAST_ROWS = 1 << 14  # average of several row groups; smaller ones are better combined into one
_MAX_PIECES = 256  # of one writev call; some systems allow at most 1,024


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A Parquet leaf column."""

    name: str
    """Name of its top-level column."""
    path: tuple[str, ...]
    kind: tuple[Any, ...]
    """All that decides what its bytes mean, in one notation: writers describe the same type in several ways."""
    flat: bool
    """Whether it has exactly one value for each row."""


@dataclass(frozen=True, slots=True)
class FileForm:
    """What all files of one output have in common: schema, storage and the constant parts of the footer."""

    schema: pa.Schema
    storage: Storage
    leaves: tuple[_Leaf, ...]
    footer: dict[int, tuple[int, bytes]]
    """Footer fields that do not depend on the rows: (type, value) by number."""
    key_values: tuple[bytes, ...]
    """Key-value metadata that Arrow writes."""

    @classmethod
    def of(cls, schema: pa.Schema, storage: Storage) -> FileForm:
        """Return the form of files with this schema, as Arrow writes them."""
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, schema, **storage.options()):
            pass
        data = sink.getvalue().to_pybytes()
        length = int.from_bytes(data[-8:-4], "little")
        at = len(data) - 8 - length
        found, _ = thrift.fields(data, at)
        footer = {number: (kind, data[start:end]) for number, (kind, start, end) in found.items()}
        with pq.ParquetFile(pa.BufferReader(data)) as parquet:
            return cls(schema, storage, _leaves(parquet, schema), footer, _key_values(data, found))


@dataclass(frozen=True, slots=True)
class CopiedGroups:
    """Row groups of an input file whose columns are copied into a part."""

    file: FileId
    metadata: pq.FileMetaData
    groups: tuple[int, ...]
    columns: Mapping[str, tuple[int, ...]]
    """Leaf indices in the file, by copied column."""
    fetched: Fetched | None = None
    """What was fetched of a file on a store."""

    def pages(self) -> AbstractContextManager[Pages | FetchedPages]:
        """Return the pages of the file, as a context manager."""
        return Pages.opened(self.file) if self.fetched is None else nullcontext(FetchedPages(self.fetched))


def copyable(form: FileForm, parquet: pq.ParquetFile, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the columns of `names` that can be copied from the file, with their leaf indices in it."""
    if _FAULTY_WRITERS.match(parquet.metadata.created_by or ""):
        return {}
    schema = parquet.schema_arrow
    count = Counter(schema.names)
    unique = [name for name in names if count[name] == 1]
    planned: dict[str, list[tuple[Any, ...]]] = {}
    for leaf in form.leaves:
        planned.setdefault(leaf.name, []).append(leaf.kind)
    stored: dict[str, list[tuple[Any, ...]]] = {}
    places: dict[str, list[int]] = {}
    for i, leaf in enumerate(_leaves(parquet, schema)):
        stored.setdefault(leaf.name, []).append(leaf.kind)
        places.setdefault(leaf.name, []).append(i)
    return {
        name: tuple(places[name])
        for name in unique
        if planned.get(name)
        and planned[name] == stored.get(name)
        and _known_encodings(parquet.metadata, places[name])
        and _same_levels(form.schema.field(name), schema.field(name))
    }


def worth_copying(rows: int, groups: int) -> bool:
    """Return whether the row groups are large enough to be copied rather than combined."""
    return rows >= _LEAST_ROWS * (groups - 1)


def compressed_row_bytes(metadata: pq.FileMetaData, columns: Mapping[str, tuple[int, ...]]) -> float:
    """Return the stored bytes of a row of these columns, measured on the first row groups."""
    groups = [metadata.row_group(i) for i in range(min(metadata.num_row_groups, _SAMPLED_GROUPS))]
    size = sum(group.column(i).total_compressed_size for group in groups for own in columns.values() for i in own)
    return float(size / max(1, sum(group.num_rows for group in groups)))


def write(
    path: str | os.PathLike[str],
    table: pa.Table,
    form: FileForm,
    copied: Sequence[CopiedGroups],
    key_values: Mapping[bytes, bytes],
) -> None:
    """Write a file of this form: encode the columns of `table` and copy all others; both have the same rows."""
    done = 0
    with open(path, "wb", buffering=0) as file:
        into = _File(file.fileno())
        into.write([_MAGIC])
        groups: list[bytes] = []
        for taken in copied:
            with taken.pages() as source:
                for group in taken.groups:
                    found = taken.metadata.row_group(group)
                    rows = table.slice(done, found.num_rows)
                    groups.append(_group(_columns(into, source, taken, found, rows, form), found.num_rows, len(groups)))
                    done += found.num_rows
        _write_footer(into, form, groups, done, key_values)


def _columns(
    into: _File,
    source: Pages | FetchedPages,
    taken: CopiedGroups,
    found: pq.RowGroupMetaData,
    rows: pa.Table,
    form: FileForm,
) -> list[_Column]:
    """Write the columns of a row group, in the order of the schema: copy those that are taken, encode the others."""
    fresh, encoded = _encoded(rows, form.storage)
    copied = {name: iter(places) for name, places in taken.columns.items()}
    encoded_columns = iter(range(fresh.num_columns))
    return [
        _copy_column(source, into, found.column(next(copied[leaf.name])), leaf, found.num_rows)
        if leaf.name in copied
        else _write_column(encoded, into, fresh.column(next(encoded_columns)), leaf.path)
        for leaf in form.leaves
    ]


def _encoded(rows: pa.Table, storage: Storage) -> tuple[pq.RowGroupMetaData, memoryview]:
    """Return the rows as a Parquet file in memory with one row group, and the metadata of that group."""
    sink = pa.BufferOutputStream()
    collected: list[pq.FileMetaData] = []
    with pq.ParquetWriter(sink, rows.schema, metadata_collector=collected, **storage.options()) as writer:
        writer.write_table(rows, row_group_size=rows.num_rows)
    return collected[0].row_group(0), memoryview(sink.getvalue())


@dataclass(frozen=True, slots=True)
class _Column:
    """A column chunk of the new file: its footer entry, and its size before and after compression."""

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


def _write_footer(
    into: _File, form: FileForm, groups: Sequence[bytes], rows: int, key_values: Mapping[bytes, bytes]
) -> None:
    """Write the footer."""
    added = [
        thrift.struct([(1, BINARY, thrift.binary(key)), (2, BINARY, thrift.binary(value))])
        for key, value in key_values.items()
    ]
    own = {
        3: (I64, thrift.number(rows)),
        4: (LIST, thrift.listed(STRUCT, groups)),
        _KEY_VALUES: (LIST, thrift.listed(STRUCT, [*form.key_values, *added])),
    }
    footer = thrift.struct((number, *value) for number, value in sorted((form.footer | own).items()))
    into.write([footer, len(footer).to_bytes(4, "little"), _MAGIC])


def _copy_column(
    source: Pages | FetchedPages, into: _File, column: pq.ColumnChunkMetaData, leaf: _Leaf, rows: int
) -> _Column:
    """Copy a column chunk page by page."""
    start, dictionary, data, added, values = into.at, None, None, 0, 0
    for pages in source.chunk(start_of(column), column.total_compressed_size, column.compression):
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


def _write_column(encoded: memoryview, into: _File, column: pq.ColumnChunkMetaData, path: Sequence[str]) -> _Column:
    """Write a column chunk that was encoded in memory."""
    begin, start = start_of(column), into.at
    into.write([encoded[begin : begin + column.total_compressed_size]])
    dictionary = start if begin != column.data_page_offset else None
    return _column(column, path, (column.data_page_offset - begin + start, dictionary), into.at - start, 0)


def _column(
    column: pq.ColumnChunkMetaData, path: Sequence[str], places: tuple[int, int | None], stored: int, added: int
) -> _Column:
    """Return the footer entry of a chunk; `places` are the offsets of its data and of its dictionary."""
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
    """Return the chunk's statistics from the input's footer, if Arrow considers them valid."""
    known = column.statistics if column.is_stats_set else None
    if known is None:
        return []
    own = [(3, I64, thrift.number(known.null_count))] if known.has_null_count else []
    if known.has_min_max:
        own += [(5, BINARY, _encoded_limit(column, known.max_raw)), (6, BINARY, _encoded_limit(column, known.min_raw))]
    return [(12, STRUCT, thrift.struct(own))]


def _encoded_limit(column: pq.ColumnChunkMetaData, value: Any) -> bytes:  # noqa: ANN401 - of any type
    form = _LIMITS.get(column.physical_type)
    return thrift.binary(bytes(value) if form is None else struct.pack(form, value))


class _File:
    """A file being written, with a queue of pieces for the next write; `at` is its end including the queue."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._waiting: list[Any] = []
        self.at = 0

    def add(self, pieces: Sequence[Any]) -> None:
        """Queue pieces for the next flush; they must not change before it."""
        self._waiting += pieces
        self.at += sum(map(len, pieces))

    def write(self, pieces: Sequence[Any]) -> None:
        """Write pieces now."""
        self.add(pieces)
        self.flush()

    def flush(self) -> None:
        """Write all queued pieces in as few calls as possible."""
        waiting, self._waiting = self._waiting, []
        while waiting:
            pieces, waiting = waiting[:_MAX_PIECES], waiting[_MAX_PIECES:]
            done, size = os.writev(self._handle, pieces), sum(map(len, pieces))
            if done < size:  # interrupted or disk full: writing the rest succeeds or raises the error
                rest = memoryview(b"".join(pieces))[done:]
                waiting = [rest, *waiting]


def _leaves(parquet: pq.ParquetFile, schema: pa.Schema) -> tuple[_Leaf, ...]:
    """Return all leaf columns in the file's order; none if they do not fit the schema's types."""
    found: list[_Leaf] = []
    for field in schema:
        for _ in range(_leaf_count(field.type)):
            if len(found) == len(parquet.schema):
                return ()
            own = parquet.schema.column(len(found))
            path = tuple(own.path.split(".")) if pa.types.is_nested(_storage_type(field.type)) else (field.name,)
            kind = (
                own.path,
                own.max_definition_level,
                own.max_repetition_level,
                own.physical_type,
                *_logical_type(own),
            )
            found.append(_Leaf(field.name, path, kind, own.max_repetition_level == 0))
    return tuple(found) if len(found) == len(parquet.schema) else ()


def _logical_type(column: pq.ColumnSchema) -> tuple[str, int]:
    """Return a leaf's logical type in one notation, and the length of its values if fixed."""
    written = str(column.logical_type).split(", is_from_converted_type")[0]
    default = {"INT32": "Int(bitWidth=32, isSigned=true)", "INT64": "Int(bitWidth=64, isSigned=true)"}
    logical = "None" if written == default.get(column.physical_type) else written
    return logical, column.length if column.physical_type == _FIXED else 0


def _leaf_count(kind: pa.DataType) -> int:
    """Return the number of leaf columns of a type."""
    kind = _storage_type(kind)
    if pa.types.is_map(kind):
        return _leaf_count(kind.key_type) + _leaf_count(kind.item_type)
    if pa.types.is_struct(kind):
        return sum(_leaf_count(kind.field(i).type) for i in range(kind.num_fields))
    return _leaf_count(kind.value_type) if pa.types.is_nested(kind) else 1


def _same_levels(one: pa.Field, other: pa.Field) -> bool:
    """Return whether nested columns have the same levels, and no dots in their names: dots separate path parts."""
    if not pa.types.is_nested(_storage_type(one.type)):
        return True
    return one.type.equals(other.type) and one.nullable == other.nullable and "." not in "".join(_field_names(one))


def _field_names(field: pa.Field) -> Iterator[str]:
    yield field.name
    kind = _storage_type(field.type)
    if pa.types.is_nested(kind):
        for i in range(kind.num_fields):
            yield from _field_names(kind.field(i))


def _storage_type(kind: pa.DataType) -> pa.DataType:
    """Return the storage type of an extension type, else the type itself."""
    return getattr(kind, "storage_type", kind)


def _known_encodings(metadata: pq.FileMetaData, leaves: Sequence[int]) -> bool:
    """Return whether all codecs and encodings of the leaves in the first row group are known here."""
    if not metadata.num_row_groups:
        return True
    columns = [metadata.row_group(0).column(i) for i in leaves]
    return all(column.compression in _CODECS and _ENCODINGS.keys() >= set(column.encodings) for column in columns)


def _key_values(data: bytes, found: Mapping[int, thrift.Span]) -> tuple[bytes, ...]:
    """Return the key-value metadata of a footer, each entry encoded."""
    if _KEY_VALUES not in found:
        return ()
    _, count, at = thrift.items(data, found[_KEY_VALUES][1])
    key_values = []
    for _ in range(count):
        _, end = thrift.fields(data, at)
        key_values.append(data[at:end])
        at = end
    return tuple(key_values)
