"""Look at the input: which files, which schema, how many rows and bytes.

Reads footers only; knows nothing about models or Dask. `reader` reads the rows.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from scorer.crash import doing
from scorer.errors import InputError, ScorerError, UnreadableFile, some
from scorer.listing import files_of

if TYPE_CHECKING:
    from collections.abc import Sequence

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_FOOTER_THREADS = 8
_SAMPLED_GROUPS = 4
_DICTIONARY_PAYS = 0.8  # of the plain size; measured on flights: 0.00-0.21 pays, ids 1.26 do not
_OFFSET_BYTES = 4  # where a text begins, for each
_WIDTHS = {"BOOLEAN": 0.125, "INT32": 4, "INT64": 8, "FLOAT": 4, "DOUBLE": 8, "INT96": 12}


WHY = pa.schema([("_error", pa.string()), ("_stage", pa.string())])
PLACE = pa.schema([("_file", pa.string()), ("_row", pa.int64())])
ERRORS = pa.schema([*WHY, *PLACE])
"""What quarantine adds to a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One input file as the plan saw it."""

    path: str
    folder: str
    """Folder inside the input, mirrored in the output; '' at its top."""
    size: int
    mtime_ns: int
    row_groups: tuple[int, ...]
    """Rows of each."""

    @property
    def rows(self) -> int:
        """All rows of the file."""
        return sum(self.row_groups)

    @property
    def hive(self) -> dict[str, str | None]:
        """Keys that live in the path."""
        pairs = (part.partition("=")[::2] for part in self.folder.split("/") if "=" in part)
        return {key: None if value == HIVE_NULL else unquote(value) for key, value in pairs}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """What the footers say."""

    files: tuple[File, ...]
    schema: pa.Schema
    """Columns in the files; a dictionary in one file and plain values in another count as values."""
    hive: pa.Schema
    """Columns that live in the paths."""
    variants: tuple[tuple[str, pa.Schema], ...]
    """Files whose schema differs from the first one's."""
    skipped: int
    """Files passed over: hidden, not Parquet, or outputs of earlier runs."""
    row_bytes: float
    """Decoded bytes of a row, estimated from the footers."""
    column_bytes: dict[str, float]
    """The same by top-level column."""
    codec: str
    dictionaries: tuple[str, ...]
    """Leaf paths of fixed width whose dictionary paid in the source."""
    nulls: dict[str, int]
    """Nulls by flat column, where every sampled footer counts them."""

    @property
    def folder(self) -> str:
        """Where the (first) input begins; paths that stand in columns are relative to it."""
        return _root(self.files[0])

    @property
    def folders(self) -> set[str]:
        """Where the inputs begin."""
        return {_root(file) for file in self.files}

    @property
    def rows(self) -> int:
        """All rows of the input."""
        return sum(file.rows for file in self.files)

    @property
    def columns(self) -> pa.Schema:
        """What a feed or a filter may name: columns of files, then keys of paths."""
        names, twice = set(self.schema.names), self.twice
        keys = [field for field in self.hive if field.name not in names]
        return pa.schema([*(f for f in self.schema if f.name not in twice), *keys], metadata=self.schema.metadata)

    @property
    def twice(self) -> set[str]:
        """Names that several columns share: none of them can be asked for."""
        return {name for name, count in Counter(self.schema.names).items() if count > 1}


def look(inputs: Sequence[str], ignore: Sequence[str] = ()) -> Dataset:
    """The dataset behind `inputs`, in their order; `ignore` are folders of our own output.

    Raises one `InputError`, or several as an ExceptionGroup-free list via `problems_of`.
    """
    found, skipped = files_of(inputs, {os.path.realpath(path) for path in ignore})
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        footers = list(pool.map(lambda item: _footer(*item), found))
    problems = [footer for footer in footers if isinstance(footer, ScorerError)]
    if problems:
        more = len(problems) - 1
        rest = f" (and {more} more file{'s' if more > 1 else ''})" if more else ""
        first = problems[0]
        raise type(first)(first.what + rest, first.where, first.expected, first.found, first.hint)
    good = [footer for footer in footers if not isinstance(footer, ScorerError)]
    files = tuple(file for file, _, _ in good)
    schema, variants = _one_schema([(file.path, schema) for file, schema, _ in good])
    sample = [metadata for _, _, metadata in good[:_SAMPLED_GROUPS]]
    sizes = _column_bytes(schema, sample)
    return Dataset(
        files=files,
        schema=schema,
        hive=_hive_schema(files),
        variants=variants,
        skipped=skipped,
        row_bytes=sum(sizes.values()),
        column_bytes=sizes,
        codec=_codec(sample),
        dictionaries=_paid(sample),
        nulls=_nulls([metadata for _, _, metadata in good]) if len(good) <= _SAMPLED_GROUPS else {},
    )


def _root(file: File) -> str:
    """The input that a file was found in."""
    here = os.path.dirname(file.path)
    return here.removesuffix(file.folder).rstrip("/") or "/" if file.folder else here


def open_parquet(path: str, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """The one way files are opened, so that plan and workers see one schema.

    With its metadata at hand the footer is not parsed again.
    """
    return pq.ParquetFile(path, metadata=metadata, pre_buffer=False, coerce_int96_timestamp_unit="us")


def from_quarantine(schema: pa.Schema) -> bool:
    """Whether these are rows that could not be scored before."""
    return all(
        schema.get_field_index(field.name) >= 0 and schema.field(field.name).type == field.type for field in ERRORS
    )


def unreadable(path: str, error: Exception) -> UnreadableFile:
    """What a library's complaint about a file means to a person."""
    what, hint = "a file cannot be read as Parquet", "write it again, or leave it out of the input"
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UnreadableFile(what, path, "a complete Parquet file", first[:200], hint)


def problems_of(dataset: Dataset, columns: Sequence[str]) -> list[ScorerError]:
    """Columns in use that are not the same in every file; one problem per file."""
    first = dataset.files[0].path
    problems: list[ScorerError] = []
    hint = "make the files agree, drop the columns with --keep, or score the files apart"
    types = {field.name: field.type for field in dataset.schema}
    for path, schema in dataset.variants:
        ours = {name: types[name] for name in columns if name in types}
        other = Counter(schema.names)
        theirs = {name: schema.field(name).type if other[name] == 1 else None for name in ours}
        odd = [name for name in ours if theirs[name] is None or values_type(ours[name]) != values_type(theirs[name])]
        if odd:
            what = f"columns are not the same in every file: {some(odd)}"
            expected = ", ".join(f"{name}: {ours[name]}" for name in odd[:3]) + f", as in {first}"
            found = ", ".join(f"{name}: {theirs[name] or 'no such column'}" for name in odd[:3])
            problems.append(InputError(what, path, expected, found, hint))
    return problems


def shared_name(dataset: Dataset, tokens: Sequence[str], *, keep_all: bool) -> list[ScorerError]:
    """A name that several columns have, if anything asks for it."""
    asked = sorted(name for name in dataset.twice if keep_all or any(name in token for token in tokens))
    if not asked:
        return []
    what, hint = f"columns share one name: {some(asked)}", "rename them, or leave them out with --keep"
    return [InputError(what, dataset.files[0].path, "one column of a name", "several", hint)]


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


def plain_table(table: pa.Table) -> pa.Table:
    """The table without view layouts; itself where it has none."""
    _check_categories(table)
    schema = plain_schema(table.schema)
    if schema.equals(table.schema, check_metadata=False):
        return table
    columns = [column.cast(field.type) for column, field in zip(table.columns, schema, strict=True)]
    return pa.Table.from_arrays(columns, schema=schema)


def plain_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """As `plain_table`."""
    _check_categories(batch)
    schema = plain_schema(batch.schema)
    if schema.equals(batch.schema, check_metadata=False):
        return batch
    columns = [column.cast(field.type) for column, field in zip(batch.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _check_categories(rows: pa.Table | pa.RecordBatch) -> None:
    """Codes that no category has come out of a damaged file unseen; whoever looks them up reads past the end."""
    for column in rows.columns:
        if pa.types.is_dictionary(column.type):
            column.validate(full=True)


def flat_leaves(schema: pa.Schema, metadata: pq.FileMetaData) -> dict[str, int]:
    """Where in a row group the statistics of each flat top-level column are."""
    paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    nested = any(pa.types.is_nested(field.type) for field in schema)
    if not nested:
        return {path: i for i, path in enumerate(paths)}
    once = Counter(paths)
    flat = {field.name for field in schema if not pa.types.is_nested(field.type)}
    return {path: i for i, path in enumerate(paths) if path in flat and once[path] == 1}


def _is_listed(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def values_type(kind: pa.DataType) -> pa.DataType:
    """A dictionary's values, else the type itself."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _footer(path: str, folder: str) -> tuple[File, pa.Schema, pq.FileMetaData] | ScorerError:
    doing(f"reading the footer of {path}")
    try:
        stat = os.stat(path)
        with open_parquet(path) as parquet:
            metadata, schema = parquet.metadata, parquet.schema_arrow
        groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        return unreadable(path, error)
    if min(groups, default=0) < 0 or sum(groups) != metadata.num_rows:
        return unreadable(path, ValueError(f"row counts that do not add up: {groups[:5]}, {metadata.num_rows}"))
    file = File(path=path, folder=folder, size=stat.st_size, mtime_ns=stat.st_mtime_ns, row_groups=groups)
    return file, schema, metadata


def _one_schema(schemas: list[tuple[str, pa.Schema]]) -> tuple[pa.Schema, tuple[tuple[str, pa.Schema], ...]]:
    """The common schema, and the files that differ from the first."""
    first = schemas[0][1].remove_metadata().with_metadata(_own_metadata(schemas[0][1]))
    variants = tuple((path, schema) for path, schema in schemas[1:] if not schema.equals(first, check_metadata=False))
    fields = list(first)
    for _, schema in variants:
        for i, ours in enumerate(fields):
            at = schema.get_field_index(ours.name)
            if at >= 0:
                fields[i] = _joined(ours, schema.field(at))
    return pa.schema(fields, metadata=first.metadata), variants


def _joined(ours: pa.Field, theirs: pa.Field) -> pa.Field:
    """A column as both files can hold it; types that differ for real are refused where they are used."""
    if ours.type != theirs.type and values_type(ours.type) == values_type(theirs.type):
        ours = ours.with_type(values_type(ours.type))
    return ours.with_nullable(ours.nullable or theirs.nullable)


def _own_metadata(schema: pa.Schema) -> dict[bytes, bytes]:
    """Schema metadata that still holds for the output: all but what pandas wrote about its frame."""
    return {k: v for k, v in (schema.metadata or {}).items() if k not in {b"pandas", b"ARROW:schema"}}


def _hive_schema(files: Sequence[File]) -> pa.Schema:
    keys = [tuple(file.hive) for file in files]
    if len(set(keys)) > 1:
        other = next(file for file, own in zip(files, keys, strict=True) if own != keys[0])
        what, hint = "the folders name different keys", "use one key=value layout for all files"
        raise InputError(what, other.path, f"the keys {some(keys[0])}", some(tuple(other.hive)) or "none", hint)
    fields = []
    for key in keys[0]:
        values = {file.hive[key] for file in files} - {None}
        whole = values and all(re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", v or "") for v in values)
        fields.append(pa.field(key, pa.int64() if whole else pa.string()))
    return pa.schema(fields)


def _column_bytes(schema: pa.Schema, sample: list[pq.FileMetaData]) -> dict[str, float]:
    """Decoded bytes of a row, by top-level column."""
    sizes = dict.fromkeys(schema.names, 0.0)
    rows = 0
    for metadata in sample:
        for g in range(min(metadata.num_row_groups, _SAMPLED_GROUPS)):
            group = metadata.row_group(g)
            rows += group.num_rows
            for c in range(metadata.num_columns):
                column = group.column(c)
                name = _top(column.path_in_schema, sizes)
                sizes[name] = sizes.get(name, 0.0) + _decoded_bytes(column, metadata.schema.column(c).length)
    return {name: size / rows if rows else 8.0 for name, size in sizes.items()}


def _decoded_bytes(column: pq.ColumnChunkMetaData, length: int) -> float:
    """Bytes of a column chunk once decoded; texts by the longest that the footer tells, as a dictionary hides them."""
    width = _WIDTHS.get(column.physical_type, 0)
    if column.physical_type == "FIXED_LEN_BYTE_ARRAY":
        width = length
    statistics = column.statistics if not width else None
    if statistics is not None and statistics.has_min_max:
        width = _OFFSET_BYTES + max(len(statistics.min_raw), len(statistics.max_raw))
        return max(float(width * column.num_values), float(column.total_uncompressed_size))
    return float(width * column.num_values) if width else float(column.total_uncompressed_size)


def _top(path: str, names: dict[str, float]) -> str:
    """The top-level column of a leaf; names may hold dots themselves."""
    if path in names:
        return path
    parts = path.split(".")
    return next((p for i in range(len(parts), 0, -1) if (p := ".".join(parts[:i])) in names), parts[0])


def _codec(sample: list[pq.FileMetaData]) -> str:
    """The codec of the source's first column, which is nearly always that of all."""
    for metadata in sample:
        if metadata.num_row_groups and metadata.num_columns:
            codec = str(metadata.row_group(0).column(0).compression).lower()
            return {"uncompressed": "none", "lz4_raw": "lz4", "unknown": "snappy"}.get(codec, codec)
    return "snappy"


def _paid(sample: list[pq.FileMetaData]) -> tuple[str, ...]:
    """Fixed-width leaves that the source stored well below their plain size."""
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
    return tuple(sorted(path for path, size in stored.items() if size < _DICTIONARY_PAYS * plain[path]))


def _nulls(footers: list[pq.FileMetaData]) -> dict[str, int]:
    """Nulls by flat column, for those that every row group counts."""
    nulls: dict[str, int] = {}
    unknown: set[str] = set()
    for metadata in footers:
        for g in range(metadata.num_row_groups):
            for c in range(metadata.num_columns):
                column = metadata.row_group(g).column(c)
                path, statistics = column.path_in_schema, column.statistics
                if statistics is None or not statistics.has_null_count:
                    unknown.add(path)
                else:
                    nulls[path] = nulls.get(path, 0) + statistics.null_count
    return {path: count for path, count in nulls.items() if path not in unknown}
