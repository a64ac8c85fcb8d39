"""Look at the input: which files, which schema, how many rows and bytes.

Reads footers only; knows nothing about models or Dask. `reader` reads the rows.
"""

from __future__ import annotations

import glob
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from scorer.errors import InputError, InputNotFound, ScorerError, UnreadableFile, some

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SUFFIXES = (".parquet", ".parq", ".pq")
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_FOOTER_THREADS = 8
_SAMPLED_GROUPS = 4
_DICTIONARY_PAYS = 0.8  # of the plain size; measured on flights: 0.00-0.21 pays, ids 1.26 do not
_WIDTHS = {"BOOLEAN": 0.125, "INT32": 4, "INT64": 8, "FLOAT": 4, "DOUBLE": 8, "INT96": 12}
_TABLE_FORMATS = {
    "_delta_log": ("a Delta table", "list its live files, for example with deltalake's DeltaTable(...).file_uris()"),
    ".hoodie": ("a Hudi table", "list the files of its latest commit"),
    "_temporary": ("an unfinished Spark or Hadoop job's output", "wait for that job, or remove _temporary"),
}


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
    def rows(self) -> int:
        """All rows of the input."""
        return sum(file.rows for file in self.files)

    @property
    def columns(self) -> pa.Schema:
        """What a feed or a filter may name: columns of files, then keys of paths."""
        own = [f for f in self.hive if f.name not in self.schema.names]
        return pa.schema([*self.schema, *own])


def look(inputs: Sequence[str], ignore: Sequence[str] = ()) -> Dataset:
    """The dataset behind `inputs`, in their order; `ignore` are folders of our own output.

    Raises one `InputError`, or several as an ExceptionGroup-free list via `problems_of`.
    """
    found, skipped = _listing(inputs, {os.path.realpath(path) for path in ignore})
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        footers = list(pool.map(lambda item: _footer(*item), found))
    problems = [footer for footer in footers if isinstance(footer, ScorerError)]
    if problems:
        rest = f" (and {len(problems) - 1} more files)" if len(problems) > 1 else ""
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


def open_parquet(path: str) -> pq.ParquetFile:
    """The one way files are opened, so that plan and workers see one schema."""
    return pq.ParquetFile(path, pre_buffer=False, coerce_int96_timestamp_unit="us")


def unreadable(path: str, error: Exception) -> UnreadableFile:
    """What a library's complaint about a file means to a person."""
    what, hint = "a file cannot be read as Parquet", "write it again, or leave it out of the input"
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UnreadableFile(what, path, "a complete Parquet file", first[:200], hint)


def problems_of(dataset: Dataset, columns: Sequence[str]) -> list[ScorerError]:
    """Columns in use that are not the same in every file."""
    problems: list[ScorerError] = []
    hint = "make the files agree, drop the column with --keep, or score the files apart"
    for path, schema in dataset.variants:
        for name in columns:
            if name not in dataset.schema.names:
                continue
            ours, theirs = values_type(dataset.schema.field(name).type), None
            if schema.get_field_index(name) >= 0:
                theirs = values_type(schema.field(name).type)
            if ours != theirs:
                what = f"column {name!r} is not the same in every file"
                expected = f"{ours}, as in {dataset.files[0].path}"
                problems.append(InputError(what, path, expected, str(theirs or "no such column"), hint))
    twice = {name for name in columns if dataset.schema.names.count(name) > 1}
    if twice:
        what, hint = f"columns share one name: {some(sorted(twice))}", "rename them, or leave them out with --keep"
        problems.append(InputError(what, dataset.files[0].path, "one column of a name", "several", hint))
    return problems


def values_type(kind: pa.DataType) -> pa.DataType:
    """A dictionary's values, else the type itself."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def natural(path: str) -> list[list[tuple[int, int, str]]]:
    """Sort key: folders first by name, digits as numbers."""
    return [
        [(1, int(bit), "") if bit.isdigit() else (0, 0, bit) for bit in re.split(r"([0-9]+)", part)]
        for part in path.split("/")
    ]


def is_glob(text: str) -> bool:
    """Whether a path is a pattern (and no file of that very name exists)."""
    return any(c in text for c in "*?[") and not os.path.lexists(text)


def _listing(inputs: Sequence[str], ignore: set[str]) -> tuple[list[tuple[str, str]], int]:
    """(path, folder inside its input) of every file in order, and how many were passed over."""
    found: list[tuple[str, str]] = []
    skipped = 0
    seen: dict[str, str] = {}
    for text in inputs:
        for path in _expand(text):
            listed, passed = _under(path, ignore)
            skipped += passed
            found += listed
        if not found:
            what, hint = "there is no Parquet file in the input", f"files end in {', '.join(SUFFIXES)}"
            raise InputNotFound(what, text, "at least one Parquet file", f"none; {skipped} others", hint)
    for path, _ in found:
        real = os.path.realpath(path)
        if real in seen:
            what, hint = "one file is reached twice", "every row would be scored twice; name it once"
            raise InputError(what, path, "each file once", f"also as {seen[real]}", hint)
        seen[real] = path
    return found, skipped


def _expand(text: str) -> list[str]:
    if re.match(r"^[a-z][a-z0-9+.-]+://", text):
        what, hint = "the input is a URL", "copy it to a local or shared file system first"
        raise InputError(what, text, "a local path", text.split(":", 1)[0] + ":// is not supported yet", hint)
    if is_glob(text):
        matches = sorted(glob.glob(text, recursive=True), key=natural)
        if not matches:
            what, hint = "the pattern matches nothing", "quote the pattern, and check the folder"
            raise InputNotFound(what, text, "at least one file", "none", hint)
        return [os.path.abspath(match) for match in matches]
    if not os.path.exists(text):
        parent = Path(text).absolute().parent
        near = some(sorted(p.name for p in parent.iterdir())[:5]) if parent.is_dir() else "no such folder"
        what, hint = "the input is not there", "check the path; relative paths start at the current folder"
        raise InputNotFound(
            what, text, "a file, a folder or a pattern", f"nothing; beside it: {near or 'nothing'}", hint
        )
    return [os.path.abspath(text)]


def _under(path: str, ignore: set[str]) -> tuple[list[tuple[str, str]], int]:
    """The files of one input, sorted, and how many were passed over."""
    if not os.path.isdir(path):
        return [(path, "")], 0
    found: list[tuple[str, str]] = []
    skipped = 0
    for folder, names in _walk(path, ignore):
        inside = os.path.relpath(folder, path).replace(os.sep, "/")
        inside = "" if inside == "." else inside
        good = [n for n in names if n.lower().endswith(SUFFIXES) and n[0] not in "._"]
        skipped += len(names) - len(good)
        found += [(os.path.join(folder, name), inside) for name in good]
    found.sort(key=lambda item: natural(os.path.relpath(item[0], path)))
    return found, skipped


def _walk(top: str, ignore: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Folders with their files, leaving out hidden ones and outputs of scorer."""
    entered: set[str] = set()
    for folder, folders, names in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        _refuse_table_format(folder, folders)
        ours = {name.removesuffix(".scorer") for name in folders if name.endswith(".scorer")}
        folders[:] = [
            name
            for name in folders
            if name[0] not in "._"
            and not name.endswith(".scorer")
            and name not in ours
            and os.path.realpath(os.path.join(folder, name)) not in ignore
        ]
        yield folder, names


def _refuse_table_format(folder: str, folders: list[str]) -> None:
    """A folder that a table format manages holds deleted rows too: refuse it."""
    kind, hint = next((_TABLE_FORMATS[name] for name in folders if name in _TABLE_FORMATS), ("", ""))
    metadata = os.path.join(folder, "metadata")
    if "metadata" in folders and glob.glob(os.path.join(glob.escape(metadata), "*.metadata.json")):
        kind, hint = "an Iceberg table", "list its live files, for example with pyiceberg's table.scan().plan_files()"
    if kind:
        what = "the folder is managed by a table format; read plainly it may show deleted rows"
        raise InputError(what, folder, "a plain folder of Parquet files", kind, hint)


def _footer(path: str, folder: str) -> tuple[File, pa.Schema, pq.FileMetaData] | ScorerError:
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
                width = _WIDTHS.get(column.physical_type, 0) * column.num_values
                name = _top(column.path_in_schema, sizes)
                sizes[name] = sizes.get(name, 0.0) + max(width, column.total_uncompressed_size if not width else 0)
    return {name: size / rows if rows else 8.0 for name, size in sizes.items()}


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
