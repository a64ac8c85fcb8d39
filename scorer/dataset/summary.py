"""Summarise the input from its files' footers: schema, rows, bytes and nulls.

Reads footers only; `reader` reads the rows.
"""

from __future__ import annotations

import os
import shlex
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from scorer.arrow import common_field, common_type, values_type
from scorer.dataset import keys as keys_
from scorer.dataset import tables as tables_
from scorer.dataset.fields import find
from scorer.dataset.listing import list_files, trees
from scorer.display.words import plural, quoted_list
from scorer.errors import InputError, ScorerError, UnreadableFile
from scorer.host.crash import note_step
from scorer.locations import is_url, normal
from scorer.storage.footers import (
    codec_of,
    decoded_column_bytes,
    dictionary_encoded,
    flat_leaves,
    largest_group_bytes,
    null_counts,
    open_parquet,
    unreadable,
    value_range,
)
from scorer.storage.stores import identity
from scorer.tables.columns import TableColumns, open_as_table
from scorer.tables.deleted import NONE, first_live

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    import numpy as np

    from scorer.dataset.conditions import Condition
    from scorer.dataset.listing import Listed
    from scorer.dataset.tables import Wanted
    from scorer.storage.files import FileId
    from scorer.tables.snapshot import Snapshot, TableFile


_FOOTER_THREADS = 8
_REQUESTS = 64  # footers of objects that are asked for at once
_OF_ONE_FILE = frozenset({b"pandas", b"ARROW:schema", b"scorer", b"_scorer_model", b"_scorer_lineage"})
"""Keys of a footer's metadata that hold only for that file."""
_SAMPLED_FILES = 4
_MOST_CHUNKS, _MOST_FOOTERS = 50_000, 500  # that are read again for the ranges of columns: well under a second
_TIMED_FILES = 8  # more files than these show how long one takes to open


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One input file at the time of planning."""

    id: FileId
    folder: str
    """Folder inside the input, repeated in the output, with the key=value folders above the input; '' at the top."""
    top: str
    """Folder of the input; relative paths in columns start here."""
    row_groups: tuple[int, ...]
    """Number of rows in each row group."""
    unlike_path: tuple[tuple[str, str], ...] = ()
    """Columns with the name of a key in the path that may hold another value, each with its values in words."""
    of_table: TableFile | None = None
    """What the log of a table says of it."""
    deleted: int = 0
    """How many of its rows are deleted in the table."""

    @property
    def path(self) -> str:
        """The file's path."""
        return self.id.path

    @property
    def rows(self) -> int:
        """Number of rows in the file, the deleted ones included."""
        return sum(self.row_groups)

    @property
    def hive(self) -> dict[str, str | None]:
        """Keys with their values as text: partition values of a table, or key=value folders in the path."""
        return keys_.keys_of(self.folder) if self.of_table is None else dict(self.of_table.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The input, as described by its files' footers."""

    files: tuple[File, ...]
    schema: pa.Schema
    """Columns in the files. If files store a column in different layouts, its type is one that holds all of them."""
    hive: pa.Schema
    """Columns from Hive keys in the paths, or the partition columns of a table."""
    variants: tuple[tuple[str, pa.Schema], ...]
    """(path, schema) of the files whose schema differs from the first file's."""
    skipped: int
    """Number of skipped files: hidden, not Parquet, or outputs of earlier runs."""
    column_bytes: dict[str, float]
    """Estimated decoded bytes of a row in each top-level column."""
    largest_bytes: dict[str, float]
    """Estimated decoded bytes of the largest row group in the first files, in each top-level column."""
    codec: str
    row_group_rows: int
    """Rows of the largest row group in the first files."""
    dictionaries: tuple[str, ...]
    """Paths of fixed-width leaves whose dictionary saves space in the input."""
    nulls: dict[str, int]
    """Number of nulls by flat column, where every row group counts them; empty if some footers were not kept."""
    footer: pq.FileMetaData | None = None
    """Footer of the first file."""
    left_out: tuple[str, ...] = ()
    """Paths of the files that --where rules out by their keys; they were not opened."""
    unused_keys: tuple[str, ...] = ()
    """Keys in the paths above the inputs that are no columns, because not all files have them."""
    open_s: float = 0.0
    """Mean seconds in which a footer was read, several at a time; 0 if there are too few files to tell."""
    table: Snapshot | None = None
    """The table that the files belong to."""
    joined: tuple[pa.Field, ...] = ()
    """Columns of tables that --join adds, such as customers.age; `JOIN` in their metadata is the name of the table."""

    @property
    def folder(self) -> str:
        """Folder of the first input; relative paths in columns start here."""
        return self.files[0].top

    @property
    def folders(self) -> set[str]:
        """Folders of all inputs."""
        return {file.top for file in self.files}

    @property
    def rows(self) -> int:
        """Number of rows in the input, without deleted ones."""
        return sum(file.rows - file.deleted for file in self.files)

    @property
    def has_deleted(self) -> bool:
        """Whether a row in the files is deleted in the table."""
        return any(file.deleted for file in self.files)

    def deleted_rows(self, file: File) -> np.ndarray:
        """Return the numbers of the file's deleted rows."""
        return NONE if self.table is None else self.table.deleted.get(file.path, NONE)

    def stored_limit(self, limit: int | None) -> int | None:
        """Return how many rows of the files hold the first `limit` rows that are not deleted."""
        if limit is None or not self.has_deleted:
            return limit
        stored, left = 0, limit
        for file in self.files:
            live = file.rows - file.deleted
            if left <= live:
                return stored + first_live(self.deleted_rows(file), left)
            stored, left = stored + file.rows, left - live
        return stored

    @property
    def columns(self) -> pa.Schema:
        """Columns that a feed or a filter may name: those of the files, then the Hive keys, then the joined ones."""
        names, duplicates = set(self.schema.names), self.duplicates
        keys = [field for field in self.hive if field.name not in names]
        own = [f for f in self.schema if f.name not in duplicates]
        return pa.schema([*own, *keys, *self.joined], metadata=self.schema.metadata)

    @property
    def duplicates(self) -> set[str]:
        """Names that several columns share; such columns cannot be used."""
        return {name for name, count in Counter(self.schema.names).items() if count > 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """The files of the input before any is opened."""

    files: tuple[Listed, ...]
    """Those to open, with the key=value folders that are columns."""
    hive: pa.Schema
    """The keys of all files of the input."""
    skipped: int
    unused_keys: tuple[str, ...]
    table: Snapshot | None = None
    """The table that the files belong to."""

    def identities(self) -> list[FileId]:
        """Return which contents each file has now. Without an object, a file's size and time are looked up."""
        with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
            return list(pool.map(lambda file: file.id or identity(file.path), self.files))


def list_input(
    inputs: Sequence[str], ignore: Sequence[str] = (), base: str | None = None, wanted: Wanted | None = None
) -> Input:
    """List the input's files in the order of `inputs`, but not the folders in `ignore`; a table as it is `wanted`.

    Keys are read from the folders below `base`; by default, from those inside the inputs and directly above them.
    """
    both = trees()
    table = tables_.snapshot_of(inputs, both, wanted or tables_.Wanted(), base)
    if table is not None:
        files, hive = tables_.listed(table, both), tables_.keys_of(table)
        return Input(files=tuple(files), hive=hive, skipped=0, unused_keys=(), table=table)
    passed = {normal(path) if is_url(path) else os.path.realpath(path) for path in ignore}
    listed, skipped = list_files(inputs, passed, both)
    listed, unused_keys = keys_.below(listed, base)
    return Input(files=tuple(listed), hive=keys_.schema_of(listed), skipped=skipped, unused_keys=unused_keys)


def summarise(
    inputs: Sequence[str], ignore: Sequence[str] = (), *, base: str | None = None,
    conditions: Sequence[Condition] = (), wanted: Wanted | None = None,
) -> Dataset:  # fmt: skip
    """Return the summary of the input's files, listed as by `list_input`.

    Files that the conditions rule out by their keys are not opened. Raises `InputError` for the first unreadable file.
    """
    return summarise_files(list_input(inputs, ignore, base, wanted), conditions)


def summarise_files(found: Input, conditions: Sequence[Condition] = ()) -> Dataset:
    """Return the summary of these files."""
    listed, hive, table = found.files, found.hive, found.table
    started = time.perf_counter()
    good = _footers_of_matching(listed, conditions, hive, table)
    open_s = (time.perf_counter() - started) / len(good) if len(good) > _TIMED_FILES else 0.0
    files = tuple(footer.file for footer in good)
    schema, variants = _one_schema(good)
    sample = [footer.metadata for footer in good if footer.metadata is not None]
    plain = all(footer.plain for footer in good)
    opened = {file.path for file in files}
    return Dataset(
        files=files,
        schema=schema,
        hive=hive,
        variants=variants,
        skipped=found.skipped,
        column_bytes=decoded_column_bytes(schema, sample),
        largest_bytes=largest_group_bytes(schema, sample),
        codec=codec_of(sample),
        row_group_rows=max((max(file.row_groups, default=0) for file in files[:_SAMPLED_FILES]), default=0),
        dictionaries=dictionary_encoded(sample),
        nulls=null_counts(sample) if len(good) == len(sample) and plain and not any(f.deleted for f in files) else {},
        footer=good[0].metadata if plain else None,
        left_out=tuple(file.path for file in listed if file.path not in opened),
        unused_keys=found.unused_keys,
        open_s=open_s,
        table=table,
    )


def _footers_of_matching(
    listed: Sequence[Listed], conditions: Sequence[Condition], hive: pa.Schema, table: Snapshot | None
) -> list[_Footer]:
    """Return the footers of the files that the conditions do not rule out by their keys.

    A key that the files hold too has their type, which is known only from a footer.
    """
    matching = keys_.matching(listed, conditions, hive)
    footers = _footers(matching, table)
    schema = _one_schema(footers)[0] if len(matching) < len(listed) else pa.schema([])
    types = pa.schema([schema.field(at) if (at := schema.get_field_index(key.name)) >= 0 else key for key in hive])
    if types == hive:
        return footers
    wanted = {*matching, *keys_.matching(listed, conditions, types)}
    return footers if len(wanted) == len(matching) else _footers([file for file in listed if file in wanted], table)


def _footers(listed: Sequence[Listed], table: Snapshot | None) -> list[_Footer]:
    """Return the footer of every file, or raise the first error."""
    remote = any(is_url(file.path) for file in listed)
    with ThreadPoolExecutor(min(_REQUESTS if remote else _FOOTER_THREADS, len(listed))) as pool:
        asked = pool.submit(_footer, listed[0], table)
        rest = pool.map(lambda file: _footer(file, table, asked), listed[1:])
        first = asked.result()
        others = (footer if i < _SAMPLED_FILES else _without_metadata(footer) for i, footer in enumerate(rest, 1))
        footers = [first, *others]
    problems = [footer for footer in footers if isinstance(footer, ScorerError)]
    if problems:
        more = len(problems) - 1
        too = f" (and {more} more file{'s' if more > 1 else ''})" if more else ""
        from scorer.dataset.to_parquet import named  # noqa: PLC0415 - only for an error

        one = named(problems)
        raise type(one)(one.what + too, one.where, one.expected, one.found, one.hint)
    return [footer for footer in footers if not isinstance(footer, ScorerError)]


def ranges(dataset: Dataset, columns: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Return the smallest and largest value of flat columns of numbers, where all footers state them.

    NaN does not count. Reads the footers again; returns nothing if there are too many.
    """
    if dataset.table is not None and (dataset.footer is None or dataset.has_deleted):
        return {}
    types = {field.name: values_type(field.type) for field in dataset.schema}
    wanted = [n for n in columns if n in types and (pa.types.is_floating(types[n]) or pa.types.is_integer(types[n]))]
    chunks = len(wanted) * sum(len(file.row_groups) for file in dataset.files)
    if not 0 < chunks <= _MOST_CHUNKS or len(dataset.files) > _MOST_FOOTERS:
        return {}
    first, *others = dataset.files
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        rest = pool.map(lambda file: _ranges(file, wanted), others)
        found = [_ranges(first, wanted, dataset.footer), *rest]
    stated = [name for name in wanted if all(name in one for one in found)]
    return {name: (min(one[name][0] for one in found), max(one[name][1] for one in found)) for name in stated}


def _ranges(file: File, columns: Sequence[str], footer: pq.FileMetaData | None = None) -> dict[str, tuple[Any, Any]]:
    """Return the smallest and largest value of these columns in one file, where its footer states them."""
    try:
        with open_parquet(file.id if is_url(file.path) else file.path, footer) as parquet:
            metadata, leaves = parquet.metadata, flat_leaves(parquet.schema_arrow, parquet.metadata)
    except (ScorerError, OSError, MemoryError, pa.ArrowException):
        return {}  # whoever reads the rows reports it
    found = {name: value_range(metadata, leaves[name]) for name in columns if name in leaves}
    return {name: one for name, one in found.items() if one is not None}


def problems_of(dataset: Dataset, columns: Sequence[str]) -> list[ScorerError]:
    """Return one problem for each file in which a used column is missing or has another type."""
    first = dataset.files[0].path
    problems: list[ScorerError] = []
    found = {name: find(dataset.schema, name) for name in columns} if dataset.variants else {}
    planned = {name: field.type for name, field in found.items() if field is not None}
    for path, schema in dataset.variants:
        actual = {name: None if (field := find(schema, name)) is None else field.type for name in planned}
        odd = [name for name in planned if actual[name] is None or common_type(planned[name], actual[name]) is None]
        if odd:
            problem = InputError(
                f"columns are not the same in every file: {quoted_list(odd)}",
                where=path,
                expected=", ".join(f"{name}: {planned[name]}" for name in odd[:3]) + f", as in {first}",
                found=", ".join(f"{name}: {actual[name] or 'no such column'}" for name in odd[:3]),
                hint="make the files agree, leave the columns out with --keep, or score the files separately",
            )
            problems.append(problem)
    return problems


def keys_with_other_values(dataset: Dataset, columns: Sequence[str]) -> list[ScorerError]:
    """Return a problem if a used column has the name of a key in the folder names, but not surely its value."""
    found = [(file, name, values) for file in dataset.files for name, values in file.unlike_path if name in columns]
    return [
        InputError(
            f"column {name!r} is in the files and in the folder names, with values that may differ",
            where=file.path,
            expected=f"only {file.hive[name]!r}, as in the folder name",
            found=values,
            hint=f"leave {name!r} out with --keep if it is not needed, {_ignoring(file, name)}rename it in the files",
        )
        for file, name, values in found[:1]
    ]


def _ignoring(file: File, key: str) -> str:
    """Return how to ignore a key that is not inside the input, but in the path above it."""
    inside = keys_.keys_of(os.path.relpath(os.path.dirname(file.path), file.top))
    return "or " if key in inside else f"pass --base {shlex.quote(file.top)} to ignore the folder name, or "


@dataclass(frozen=True, slots=True)
class _Footer:
    """What is kept of one file's footer. There may be 100,000 files, so most keep no metadata."""

    file: File
    schema: pa.Schema | None
    """None if equal to the first file's."""
    metadata: pq.FileMetaData | None
    plain: bool = True
    """Whether it has the columns of its table as they are."""


def _without_metadata(footer: _Footer | ScorerError) -> _Footer | ScorerError:
    return footer if isinstance(footer, ScorerError) else replace(footer, metadata=None)


def _footer(
    listed: Listed, table: Snapshot | None, first: Future[_Footer | ScorerError] | None = None
) -> _Footer | ScorerError:
    path = listed.path
    note_step(f"reading the footer of {path}")
    columns = None if table is None else table.columns
    try:
        found = listed.id or identity(path)
        with open_parquet(found if listed.id else path) as parquet:
            must_have = () if listed.of_table is None else listed.of_table.must_have
            seen = parquet if columns is None else open_as_table(parquet, columns, path, must_have)
            metadata, schema = parquet.metadata, seen.schema_arrow
        groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
    except (UnreadableFile, InputError) as error:
        return error
    except (OSError, MemoryError, pa.ArrowException, UnicodeDecodeError) as error:
        gone = table is not None and isinstance(error, FileNotFoundError)
        return tables_.vacuumed(table, path) if table is not None and gone else unreadable(path, error)
    if min(groups, default=0) < 0 or sum(groups) != metadata.num_rows:
        return unreadable(path, ValueError(f"row counts that do not add up: {groups[:5]}, {metadata.num_rows}"))
    if listed.of_table is not None and listed.of_table.id.size != found.size:
        return tables_.rewritten(listed.of_table, found)
    deleted = NONE if table is None else table.deleted.get(path, NONE)
    file = File(
        id=found, folder=listed.folder, top=listed.top, row_groups=groups, of_table=listed.of_table,
        deleted=len(deleted),
    )  # fmt: skip
    if len(deleted) and int(deleted[-1]) >= file.rows:
        return unreadable(path, ValueError(f"row {deleted[-1]} is deleted, and the file has {file.rows} rows"))
    if table is None and "=" in file.folder and not file.hive.keys().isdisjoint(schema.names):
        file = replace(file, unlike_path=_unlike_path(file, schema, metadata))
    one = None if first is None else first.result()
    known = one.schema if isinstance(one, _Footer) else None
    same = known is not None and schema.equals(known, check_metadata=False)
    return _Footer(file, None if same else schema, metadata, plain=not isinstance(seen, TableColumns))


def _unlike_path(file: File, schema: pa.Schema, metadata: pq.FileMetaData) -> tuple[tuple[str, str], ...]:
    """Return the columns named like keys of the path, unless statistics prove that they hold the path's value."""
    leaves = flat_leaves(schema, metadata)
    found = []
    for name, text in file.hive.items():
        if name not in schema.names:
            continue
        if name not in leaves:
            found.append((name, "lists or structs"))
            continue
        chunks = [metadata.row_group(g).column(leaves[name]) for g in range(metadata.num_row_groups)]
        values = next((w for c in chunks if (w := _other_values(c, text, schema.field(name).type))), "")
        found += [(name, values)] if values else []
    return tuple(found)


def _other_values(chunk: pq.ColumnChunkMetaData, text: str | None, kind: pa.DataType) -> str:
    """Describe the values of a column chunk; '' if its statistics prove that all are the one in the path."""
    statistics, rows = chunk.statistics, chunk.num_values
    if statistics is None or not statistics.has_null_count:
        return "no statistics that show its values" if rows else ""
    nulls = statistics.null_count
    if text is None or nulls:
        return f"{plural(nulls, 'null')} in {plural(rows, 'row')}" if (text is not None or nulls < rows) else ""
    if not statistics.has_min_max:
        return "no statistics that show its values" if rows else ""
    try:
        low, high = statistics.min, statistics.max
    except (pa.ArrowException, ValueError, OverflowError):  # such as a time beyond the year 9999
        return "statistics that Python cannot read"
    if pa.types.is_floating(values_type(kind)):
        return f"{low!r} to {high!r}, and perhaps NaN, which statistics leave out"
    try:
        value = pa.scalar(text).cast(values_type(kind)).as_py()
    except (pa.ArrowException, ValueError, OverflowError):  # a text that is no value of the column's type
        value = None
    return "" if low == high == value else f"{low!r}" if low == high else f"{low!r} to {high!r}"


def _one_schema(footers: Sequence[_Footer]) -> tuple[pa.Schema, tuple[tuple[str, pa.Schema], ...]]:
    """Return the common schema, and the files whose schema differs from the first."""
    schemas = [(footer.file.path, footer.schema) for footer in footers if footer.schema is not None]
    first = schemas[0][1].with_metadata(_kept_metadata(schemas[0][1], footers[0].metadata))
    variants = tuple(schemas[1:])
    fields = list(first)
    for _, schema in variants:
        for i, field in enumerate(fields):
            at = schema.get_field_index(field.name)
            if at >= 0:
                other = schema.field(at)
                # types that really differ are refused later, if the column is used
                both = common_field(field, other)
                fields[i] = field.with_nullable(field.nullable or other.nullable) if both is None else both
    return pa.schema(fields, metadata=first.metadata), variants


def _kept_metadata(schema: pa.Schema, footer: pq.FileMetaData | None) -> dict[bytes, bytes]:
    """Return the metadata that the output keeps: what pandas wrote about its frame, and scorer's proof, are left out.

    Arrow's schema does not have what a writer added to the file after it.
    """
    added = {} if footer is None else footer.metadata or {}
    found = dict(schema.metadata or {})
    found |= {key: value for key, value in added.items() if key not in found}
    return {key: value for key, value in found.items() if key not in _OF_ONE_FILE}
