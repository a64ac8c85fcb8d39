"""Open Parquet files, and read from their footers each column's decoded size, codec, dictionary, nulls and range."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from scorer.display.words import cut, quoted_list
from scorer.errors import StoreUnavailable, UnreadableFile
from scorer.host.limits import MORE_FILES
from scorer.locations import is_url
from scorer.storage import _thrift as thrift
from scorer.storage import stores

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from scorer.storage.fetched import Fetched, Window
    from scorer.storage.files import FileId
    from scorer.storage.objects import RangeFile


_NO_THREAD = "Failed to launch worker thread"  # Arrow's words
_HINTS = {
    errno.EACCES: "get permission to read it, or leave it out of the input",
    errno.EPERM: "get permission to read it, or leave it out of the input",
    errno.ENOENT: "restore it, or leave it out of the input",
    errno.EAGAIN: "end other programs, or raise the limit on processes with `ulimit -u`",
    errno.EMFILE: MORE_FILES,
    errno.ENOMEM: "free memory or request more",
}
_SAMPLED_GROUPS = 4
_DICTIONARY_GAIN = 0.8  # of the plain size; measured on flights: 0.00-0.21 where a dictionary helps, 1.26 for ids
_OFFSET_BYTES = 4  # Arrow's offset of each text
_WIDTHS = {"BOOLEAN": 0.125, "INT32": 4, "INT64": 8, "FLOAT": 4, "DOUBLE": 8, "INT96": 12}
_UNKNOWN_TO_ARROW = frozenset({"Geometry", "Geography", "Interval", "Enum", "BSON"})
_VARIANT = re.compile(r"^  \w+ group field_id=\S+ (.*) \(Variant\b.*\) \{$", re.MULTILINE)
"""A top-level column of type VARIANT, as Arrow prints a schema; its leaves do not show it."""
_BUFFER, _LEAST_BUFFER = 1 << 18, 1 << 14
_BUFFERS = 8 << 20  # buffers of all columns that are read at once
_REMOTE = 4  # times these sizes on a store, where each buffer is a request
_TAIL = 8  # bytes after the footer: its size, and PAR1
_ROW_GROUPS, _ENCRYPTION = 4, 8
"""Fields of a footer: its row groups, and the algorithm that encrypts some of its columns."""
_CHUNKS, _CHUNK_ENCRYPTION = 1, 8
"""Fields of a row group and of its column chunks: the chunks, and how one is encrypted."""


def open_parquet(
    file: str | FileId,
    metadata: pq.FileMetaData | None = None,
    columns: int = 1,
    fetched: Fetched | Window | None = None,
) -> pq.ParquetFile:
    """Open a Parquet file; all code opens files here, so that plan and workers see the same schema.

    If `metadata` is given, the footer is not parsed again. `columns` is the number of columns read at once: each gets
    a buffer. Without buffers, a whole stored row group would be in memory before its first row is decoded.
    Pages with a checksum are checked when they are read.

    An object on a store is read by ranges, unless it was `fetched`. They raise `Changed` if it is not this one.
    """
    path = file if isinstance(file, str) else file.path
    buffer = max(_LEAST_BUFFER, min(_BUFFER, _BUFFERS // max(columns, 1)))
    ranges = _ranges_of(file, fetched) if is_url(path) else None
    if ranges is not None:
        buffer = _REMOTE * buffer if fetched is None else fetched.buffer_bytes
    parquet = pq.ParquetFile(
        path if ranges is None else pa.PythonFile(ranges, mode="r"), metadata=metadata, pre_buffer=False,
        buffer_size=buffer, coerce_int96_timestamp_unit="us",
        page_checksum_verification=True,
    )  # fmt: skip
    if metadata is None:
        _refuse_encrypted_columns(path, parquet.metadata, ranges)
    return parquet


def _ranges_of(file: str | FileId, fetched: Fetched | Window | None) -> RangeFile:
    """Return an object on a store as a file."""
    from scorer.storage.objects import RangeFile  # noqa: PLC0415 - only for stores

    found = stores.identity(file) if isinstance(file, str) else file
    return RangeFile(found.size, stores.source_of(found) if fetched is None else fetched.read_at)


def _refuse_encrypted_columns(path: str, metadata: pq.FileMetaData, ranges: RangeFile | None) -> None:
    """Raise `UnreadableFile` if columns are encrypted: Arrow ends the process when their metadata is looked at."""
    footer = _unusual_footer(path, metadata) if ranges is None else _unusual_footer_of(ranges, metadata)
    if footer is None:
        return  # the footer is not signed; with encrypted columns it is
    encrypted, columns = _encrypted_columns(footer, metadata)
    if encrypted:
        raise UnreadableFile(
            "a file has encrypted columns",
            where=path,
            expected="columns without encryption",
            found=quoted_list(columns) or "an encrypted file without rows",
            hint="write it without encryption, or leave it out of the input",
        )


def _unusual_footer(path: str, metadata: pq.FileMetaData) -> bytes | None:
    """Return the bytes of a file's footer if they are not only this metadata."""
    handle = os.open(path, os.O_RDONLY)
    try:
        end = os.lseek(handle, -_TAIL, os.SEEK_END)
        size = int.from_bytes(os.pread(handle, 4, end), "little")
        return None if size == metadata.serialized_size else os.pread(handle, size, end - size)
    finally:
        os.close(handle)


def _unusual_footer_of(ranges: RangeFile, metadata: pq.FileMetaData) -> bytes | None:
    """Return the bytes of an object's footer if they are not only this metadata."""
    end = ranges.seek(-_TAIL, os.SEEK_END)
    size = int.from_bytes(ranges.read(4), "little")
    return None if size == metadata.serialized_size else bytes(ranges.read_at(end - size, end))


def _encrypted_columns(footer: bytes, metadata: pq.FileMetaData) -> tuple[bool, list[str]]:
    """Return whether a file has encrypted columns, and their paths in the first row group."""
    columns: list[str] = []
    try:
        fields, _ = thrift.fields(footer, 0)
        if _ENCRYPTION in fields and metadata.num_row_groups:
            _, _, group = thrift.items(footer, fields[_ROW_GROUPS][1])
            _, count, at = thrift.items(footer, thrift.fields(footer, group)[0][_CHUNKS][1])
            for i in range(count):
                chunk, at = thrift.fields(footer, at)
                columns += [metadata.schema.column(i).path] if _CHUNK_ENCRYPTION in chunk else []
    except (IndexError, ValueError, RecursionError):  # damaged in a way that Arrow accepts
        return False, []
    return _ENCRYPTION in fields, columns


def unreadable(path: str, error: Exception, place: str = "") -> UnreadableFile:
    """Return the error for a file that cannot be read, with the reason of the system or of the library."""
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, MemoryError):
        return UnreadableFile(
            "memory ran out while a file was read",
            where=path,
            expected="enough memory",
            found=cut(first),
            hint="free memory or request more; if there is plenty, the file is damaged: write it again",
        )
    number = errno.EAGAIN if _NO_THREAD in first else getattr(error, "errno", None)
    if number is not None:
        remote = is_url(path)
        reason = cut(str(getattr(error, "strerror", ""))) if remote else os.strerror(number)
        where = "store" if remote else "file system"
        kind = StoreUnavailable if remote and number == errno.EREMOTEIO else UnreadableFile
        return kind(
            "a file cannot be read",
            where=path,
            expected="a file that can be read",
            found="no further thread can be started" if _NO_THREAD in first else reason,
            hint=_HINTS.get(number, f"repeat the command; if it fails again, check the {where}"),
        )
    return UnreadableFile(
        "a file cannot be read as Parquet",
        where=path,
        expected="a complete Parquet file",
        found=place + cut(first),
        hint="write it again, or leave it out of the input",
    )


@contextmanager
def naming_damage(path: str, parquet: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str]) -> Iterator[None]:
    """Convert an error from decoding these row groups to `UnreadableFile` with the first damaged column."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise  # nothing is wrong with the contents
        raise _damage(path, parquet, groups, columns, error) from error


def _damage(
    path: str, parquet: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str], error: Exception
) -> UnreadableFile:
    """Return the error for row groups that cannot be decoded. Decodes column by column to find the damaged one."""
    for group in groups:
        for name in columns:
            try:
                for _ in parquet.iter_batches(row_groups=[group], columns=[name], use_threads=False):
                    pass
            except (OSError, pa.ArrowException) as alone:
                place = f"column {name!r} in row group {group}"
                if "checksum" not in str(alone).lower():
                    return unreadable(path, alone, f"{place}: ")
                return UnreadableFile(
                    "a page is damaged",
                    where=path,
                    expected="pages that match their checksums",
                    found=f"another checksum for a page of {place}",
                    hint="restore the file, or leave it out of the input",
                )
    return unreadable(path, error)


def flat_leaves(schema: pa.Schema, metadata: pq.FileMetaData) -> dict[str, int]:
    """Return the column index in a row group of each flat top-level column."""
    paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    nested = any(pa.types.is_nested(field.type) for field in schema)
    if not nested:
        return {path: i for i, path in enumerate(paths)}
    once = Counter(paths)
    flat = {field.name for field in schema if not pa.types.is_nested(field.type)}
    return {path: i for i, path in enumerate(paths) if path in flat and once[path] == 1}


def only_leaf(metadata: pq.FileMetaData, path: str) -> int | None:
    """Return the column index in a row group of the leaf with this path; None if there is none, or several."""
    found = [i for i in range(metadata.num_columns) if metadata.schema.column(i).path == path]
    return found[0] if len(found) == 1 else None


def chunk_ranges(
    metadata: pq.FileMetaData, groups: Iterable[int], columns: Collection[str] | None = None
) -> list[tuple[int, int]]:
    """Return where the column chunks of these row groups begin and end.

    `columns` are names of columns, or paths of their fields; None stands for all.
    """
    paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    leaves = [i for i, path in enumerate(paths) if columns is None or _is_in(path, columns)]
    found = []
    for group in groups:
        row_group = metadata.row_group(group)
        for i in leaves:
            chunk = row_group.column(i)
            start = start_of(chunk)
            found.append((start, start + chunk.total_compressed_size))
    return found


def group_bytes(metadata: pq.FileMetaData, group: int, columns: Collection[str] | None) -> int:
    """Return the stored bytes of these columns of a row group; for None, those of all, before compression."""
    if columns is None:
        return int(metadata.row_group(group).total_byte_size)
    return sum(stop - start for start, stop in chunk_ranges(metadata, [group], columns))


def _is_in(path: str, columns: Collection[str]) -> bool:
    """Return whether a leaf belongs to one of these columns; names may contain dots."""
    parts = path.split(".")
    return any(".".join(parts[:n]) in columns for n in range(len(parts), 0, -1))


def start_of(column: pq.ColumnChunkMetaData) -> int:
    """Return where a column chunk begins in its file: with its dictionary, if it has one."""
    dictionary = column.dictionary_page_offset or 0
    return int(dictionary if 0 < dictionary < column.data_page_offset else column.data_page_offset)


def decoded_column_bytes(schema: pa.Schema, sample: list[pq.FileMetaData]) -> dict[str, float]:
    """Return the decoded bytes of a row by top-level column."""
    sizes = dict.fromkeys(schema.names, 0.0)
    rows = 0
    for metadata in sample:
        for g in range(min(metadata.num_row_groups, _SAMPLED_GROUPS)):
            group = metadata.row_group(g)
            rows += group.num_rows
            for c in range(metadata.num_columns):
                column = group.column(c)
                name = _top_level_column(column.path_in_schema, sizes)
                sizes[name] = sizes.get(name, 0.0) + _decoded_bytes(column, metadata.schema.column(c).length)
    return {name: size / rows if rows else 8.0 for name, size in sizes.items()}


def largest_group_bytes(schema: pa.Schema, sample: list[pq.FileMetaData]) -> dict[str, float]:
    """Return the stored, uncompressed bytes of each top-level column in the row group that has most of all columns."""
    names = dict.fromkeys(schema.names)
    largest: dict[str, float] = {}
    groups = ((metadata, g) for metadata in sample for g in range(metadata.num_row_groups))
    found = max(groups, key=lambda one: one[0].row_group(one[1]).total_byte_size, default=None)
    if found is not None:
        group = found[0].row_group(found[1])
        for c in range(group.num_columns):
            column = group.column(c)
            name = _top_level_column(column.path_in_schema, names)
            largest[name] = largest.get(name, 0.0) + float(column.total_uncompressed_size)
    return largest


def _decoded_bytes(column: pq.ColumnChunkMetaData, length: int) -> float:
    """Return the decoded bytes of a column chunk; texts count as the longer of the footer's minimum and maximum."""
    width = _WIDTHS.get(column.physical_type, 0)
    if column.physical_type == "FIXED_LEN_BYTE_ARRAY":
        width = length
    statistics = column.statistics if not width else None
    if statistics is not None and statistics.has_min_max:
        # a dictionary stores each text once, so that the stored size may be far too low
        width = _OFFSET_BYTES + max(len(statistics.min_raw), len(statistics.max_raw))
        return max(float(width * column.num_values), float(column.total_uncompressed_size))
    return float(width * column.num_values) if width else float(column.total_uncompressed_size)


def _top_level_column(path: str, names: Mapping[str, object]) -> str:
    """Return the top-level column of a leaf; column names may contain dots."""
    if path in names:
        return path
    parts = path.split(".")
    return next((p for i in range(len(parts), 0, -1) if (p := ".".join(parts[:i])) in names), parts[0])


def special_types(schema: pa.Schema, metadata: pq.FileMetaData) -> dict[str, str]:
    """Return the top-level columns that Arrow reads as something simpler, with their type: INT96, Geometry, Variant."""
    names = {field.name: None for field in schema if not isinstance(field.type, pa.BaseExtensionType)}
    found = dict.fromkeys(_VARIANT.findall(str(metadata.schema)), "Variant")
    for i in range(metadata.num_columns):
        leaf = metadata.schema.column(i)
        kind = "INT96" if leaf.physical_type == "INT96" else str(leaf.logical_type).partition("(")[0]
        if kind == "INT96" or kind in _UNKNOWN_TO_ARROW:
            found[_top_level_column(leaf.path, names)] = kind
    return {name: kind for name, kind in found.items() if name in names}


def codec_of(sample: list[pq.FileMetaData]) -> str:
    """Return the codec of the input's first column, which nearly always is that of all columns."""
    for metadata in sample:
        if metadata.num_row_groups and metadata.num_columns:
            codec = str(metadata.row_group(0).column(0).compression).lower()
            return {"uncompressed": "none", "lz4_raw": "lz4", "unknown": "snappy"}.get(codec, codec)
    return "snappy"


def dictionary_encoded(sample: list[pq.FileMetaData]) -> tuple[str, ...]:
    """Return the fixed-width leaves that a dictionary stores well below their plain size."""
    stored: dict[str, float] = {}
    plain: dict[str, float] = {}
    for metadata in sample:
        for g in range(min(metadata.num_row_groups, _SAMPLED_GROUPS)):
            for c in range(metadata.num_columns):
                column = metadata.row_group(g).column(c)
                width = _WIDTHS.get(column.physical_type, 0)
                if width and column.has_dictionary_page:
                    path = column.path_in_schema
                    stored[path] = stored.get(path, 0) + column.total_uncompressed_size
                    plain[path] = plain.get(path, 0) + width * column.num_values
    return tuple(sorted(path for path, size in stored.items() if size < _DICTIONARY_GAIN * plain[path]))


def null_counts(footers: list[pq.FileMetaData]) -> dict[str, int]:
    """Return the number of nulls by flat column, or path of a field, for those that every row group counts.

    A path that is also the name of a column with a dot is left out.
    """
    nulls: dict[str, int] = {}
    unknown: set[str] = set()
    for metadata in footers:
        paths = Counter(metadata.schema.column(c).path for c in range(metadata.num_columns))
        unknown |= {path for path, count in paths.items() if count > 1}
        for g in range(metadata.num_row_groups):
            for c in range(metadata.num_columns):
                column = metadata.row_group(g).column(c)
                path, statistics = column.path_in_schema, column.statistics
                if statistics is None or not statistics.has_null_count:
                    unknown.add(path)
                else:
                    nulls[path] = nulls.get(path, 0) + statistics.null_count
    return {path: count for path, count in nulls.items() if path not in unknown}


def value_range(metadata: pq.FileMetaData, leaf: int) -> tuple[Any, Any] | None:
    """Return the smallest and largest value of a column of numbers, without NaN.

    None if a row group does not state them; (0, 0) if all values are null.
    """
    low: Any = None
    high: Any = None
    for g in range(metadata.num_row_groups):
        statistics = metadata.row_group(g).column(leaf).statistics
        if statistics is None:
            return None
        if statistics.has_min_max:
            if not statistics.min <= statistics.max:  # a writer that does not leave out NaN
                return None
            low = statistics.min if low is None else min(low, statistics.min)
            high = statistics.max if high is None else max(high, statistics.max)
        elif not statistics.has_null_count or statistics.num_values:
            return None
    return (0, 0) if low is None else (low, high)
