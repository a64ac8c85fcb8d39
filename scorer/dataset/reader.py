"""Read the rows of one part: its row groups, its slice of a large one or several whole files, its filter.

The batch grid of a model restarts at each row group and is cut every so many rows of the input, which `batch_rows` has
for each model. A row's batch therefore always contains the same rows, whichever part or worker scores it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from scorer.arrow import cast_layout, common_type, plain_rows
from scorer.dataset import conditions as conditions_
from scorer.dataset import fields
from scorer.dataset.cursors import decoded, opened_at_first_rows
from scorer.errors import InputChanged, UnreadableFile
from scorer.locations import is_url
from scorer.storage.files import Changed, retry
from scorer.storage.footers import flat_leaves, group_bytes, naming_damage, only_leaf, unreadable
from scorer.storage.stores import identity
from scorer.tables.columns import TableColumns, stored_names
from scorer.tables.deleted import NONE, first_live

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from scorer.dataset.cursors import InputCache
    from scorer.dataset.summary import Dataset
    from scorer.storage.fetched import Fetched
    from scorer.storage.files import FileId
    from scorer.tables.columns import AnyParquet
    from scorer.tables.deleted import Slice


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Rows start..stop of one file at the time of planning: the rows of a part, or some of them."""

    id: FileId
    start: int
    stop: int
    hive: tuple[tuple[str, str | None], ...] = ()
    """The keys of its path, or of its table, with their values as text."""
    deleted: Slice | None = None
    """Where the numbers of the file's deleted rows are; None if it has none."""

    @property
    def path(self) -> str:
        """The file's path."""
        return self.id.path


@dataclass(frozen=True, slots=True)
class Places:
    """The row numbers of a part's rows in their files, as ranges: few callers need each number."""

    ranges: tuple[tuple[int, int], ...] = ()
    mask: np.ndarray | None = None
    """Which rows of the ranges meet the conditions and are not deleted; None if that is not asked."""

    def __len__(self) -> int:
        """Number of rows."""
        if self.mask is not None:
            return int(np.count_nonzero(self.mask))
        return sum(high - low for low, high in self.ranges)

    def numbers(self) -> np.ndarray:
        """Return the row number in the file, for each row."""
        every = np.concatenate([np.empty(0, np.int64), *(np.arange(low, high) for low, high in self.ranges)])
        return every if self.mask is None else every[self.mask]


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a part: a table in input order, with their row numbers, batch edges and counts."""

    table: pa.Table
    places: Places
    edges: tuple[np.ndarray, ...]
    """For each model, the row offsets at which batches begin and end, from 0 to the number of rows."""
    filtered: int
    bytes_read: int
    counts: tuple[int, ...]
    """How many of the table's rows each source has."""
    groups: tuple[tuple[int, ...], ...] = ()
    """The row groups that make up each source, if only the `lean` columns were read; otherwise empty."""
    deleted: int = 0
    """How many rows of the sources are deleted in the table; they are not among the filtered ones."""
    unmatched: np.ndarray | None = None
    """Which rows of the table have a key that a joined table does not have; None if no table is joined."""
    bad: Mapping[int, str] | None = None
    """Why rows are bad whose keys a joined table does not have, by their numbers in the table."""


def read_all(
    sources: Sequence[Source],
    schema: pa.Schema,
    conditions: Sequence[conditions_.Condition],
    batch_rows: Sequence[int],
    cache: InputCache,
    lean: pa.Schema | None = None,
    fetched: Mapping[str, Fetched] | None = None,
) -> Rows:
    """Return the rows of all sources, one after the other, as `read` returns those of one.

    If there are several, each is a whole file. So `lean` holds for all of them or for none. It does for none if a row
    is deleted, because whole row groups are copied.
    """
    lean = lean if any(source.start < source.stop for source in sources) else None
    lean = None if lean is None or any(len(cache.deleted(source)) for source in sources) else lean
    held = fetched or {}
    pieces = [read(source, schema, conditions, batch_rows, cache, lean, held.get(source.path)) for source in sources]
    if len(pieces) == 1:
        return pieces[0]
    firsts = [0, *accumulate(piece.table.num_rows for piece in pieces)]
    return Rows(
        pa.concat_tables([piece.table for piece in pieces]),
        _joined([piece.places for piece in pieces]),
        tuple(_joined_edges(edges, firsts) for edges in zip(*(piece.edges for piece in pieces), strict=True)),
        sum(piece.filtered for piece in pieces),
        sum(piece.bytes_read for piece in pieces),
        tuple(piece.table.num_rows for piece in pieces),
        tuple(chain.from_iterable(piece.groups for piece in pieces)),
        sum(piece.deleted for piece in pieces),
    )


def filtered(rows: Rows, keep: np.ndarray) -> Rows:
    """Return only some of the rows."""
    left = np.concatenate(([0], np.cumsum(keep)))
    mask = keep
    if rows.places.mask is not None:
        mask = rows.places.mask.copy()
        mask[mask] = keep
    ends = left[np.cumsum(rows.counts)]
    return replace(
        rows,
        table=rows.table.filter(pa.array(keep)),
        places=replace(rows.places, mask=mask),
        edges=tuple(np.unique(left[edges]) for edges in rows.edges),
        filtered=rows.filtered + len(keep) - int(left[-1]),
        counts=tuple(np.diff(ends, prepend=0).tolist()),
        unmatched=None if rows.unmatched is None else rows.unmatched[keep],
        bad={int(left[row]): why for row, why in (rows.bad or {}).items() if keep[row]},
    )


def read(
    source: Source,
    schema: pa.Schema,
    conditions: Sequence[conditions_.Condition],
    batch_rows: Sequence[int],
    cache: InputCache,
    lean: pa.Schema | None = None,
    fetched: Fetched | None = None,
) -> Rows:
    """Return the source's rows with the columns of `schema`, filtered.

    If `lean` is given and the source consists of whole row groups, only the columns of `lean` are read: the others
    are copied without decoding. Columns that the file does not have come from the Hive keys of its path.
    """
    with naming_errors(source, cache):
        check_unchanged(source, cache)
        deleted = cache.deleted(source)
        rows = retry(
            lambda: _rows(source, schema, conditions, batch_rows, cache, lean, fetched, deleted),
            lambda: cache.forget(source.path),
        )
    check_unchanged(source, cache)
    return rows


@contextmanager
def naming_errors(source: Source, cache: InputCache) -> Iterator[None]:
    """Convert what may happen while a source is read to `InputChanged` or `UnreadableFile`."""
    try:
        with naming_changes([source]):
            yield
    except FileNotFoundError:
        raise gone(source, cache) from None
    except UnreadableFile:
        check_unchanged(source, cache)
        raise
    except (OSError, MemoryError, pa.ArrowException, UnicodeDecodeError) as error:
        check_unchanged(source, cache)  # it may have changed while it was read
        raise unreadable(source.path, error) from error


def check_unchanged(source: Source, cache: InputCache) -> None:
    """Raise `InputChanged` if the file changed since it was planned or is another one, `UnreadableFile` if unknown.

    It asks no store about an object with an ETag: each range of it asks for that ETag, see `naming_changes`.
    """
    if source.id.version and is_url(source.path):
        return
    try:
        current = retry(lambda: identity(source.path))
    except (FileNotFoundError, NotADirectoryError):
        raise gone(source, cache) from None
    except OSError as error:
        raise unreadable(source.path, error) from error
    if current != source.id:
        raise changed(source, f"{current.size} bytes, changed since")
    if not cache.is_planned(source.id, current):
        raise changed(source, f"{current.size} bytes, but replaced, rewritten or given other permissions")


@contextmanager
def naming_changes(sources: Sequence[Source]) -> Iterator[None]:
    """Convert the error of a store, that another object is there now, to `InputChanged` with what is there."""
    try:
        yield
    except Changed as error:
        source = next((one for one in sources if one.path == error.filename), sources[0])
        try:
            current = identity(source.path)
        except OSError:
            raise changed(source, "nothing") from None
        raise changed(source, f"{current.size} bytes with ETag {current.version}") from None


def gone(source: Source, cache: InputCache) -> InputChanged:
    """Return the error for a file that is not there any more; the tools of a table remove those of old versions."""
    if cache.table is None:
        return changed(source, "nothing")
    return InputChanged(
        "a file of the table is gone",
        where=source.path,
        expected=f"the files of {cache.table.name}",
        found="nothing: they were vacuumed",
        hint="start again on a newer version with --overwrite",
    )


def changed(source: Source, found: str) -> InputChanged:
    """Return the error for an input that changed after it was planned."""
    tag = f" with ETag {source.id.version}" if isinstance(source.id.version, str) and source.id.version else ""
    return InputChanged(
        "the input changed after it was planned",
        where=source.path,
        expected=f"the {source.id.size} bytes{tag} that were planned",
        found=found,
        hint="restore the file, or start again with --overwrite",
    )


def _rows(
    source: Source, schema: pa.Schema, conditions: Sequence[conditions_.Condition], batch_rows: Sequence[int],
    cache: InputCache, lean: pa.Schema | None, fetched: Fetched | None, deleted: np.ndarray,
) -> Rows:  # fmt: skip
    file = cache.file(source.id, fetched=fetched)
    groups = None if lean is None else _whole_groups(source, file.starts)
    schema = lean if lean is not None and groups is not None else schema
    with file.parquet as parquet:
        file_schema = parquet.schema_arrow  # pyarrow converts the schema on every access
        there = set(file_schema.names)
        own = own_columns(schema.names, file_schema, there, dict(source.hive))
        known = {*own, *dict(source.hive)}
        missing = [name for name in schema.names if name not in known]
        if missing:
            raise changed(source, f"no column {missing[0]!r}")
        if file.starts[-1] < source.stop:
            raise changed(source, f"{file.starts[-1]} rows")
        stored = fields.stored(own, there)
        as_stored = stored_names(parquet, stored) if fetched else None
        pieces: list[pa.Table] = []
        spans: list[tuple[int, int, int]] = []  # first row of the group; first and last row of the part in it
        whole: list[int] = []
        bytes_read = fetched.nbytes if fetched else 0

        one_by_one = any(name not in there or pa.types.is_nested(file_schema.field(name).type) for name in own)

        def decode_whole() -> None:
            if whole:
                with naming_damage(source.path, parquet, whole, stored):
                    pieces.append(plain_rows(decoded(parquet, whole, own, there)))
                whole.clear()

        for span in spans_of(source, file.starts, parquet, conditions, own, deleted):
            group, first, _, low, high = span
            if span.whole:
                whole.append(group)  # several in one call: a sixth faster than one call each
                if one_by_one:  # Arrow cannot combine dictionaries inside lists from several groups
                    decode_whole()
            else:
                decode_whole()
                cursor = cache.cursor(source.id, group, own, fetched and fetched.holding(group))
                pieces.append(cursor.take(low - first, high - first).select(own))
            spans.append((first, low, high))
            if not (fetched and span.whole):
                size = group_bytes(parquet.metadata, group, as_stored)
                bytes_read += size * (high - low) // span.rows
        decode_whole()
    rows = _assemble(pieces, spans, source, schema, conditions, batch_rows, bytes_read, deleted)
    return rows if groups is None else replace(rows, groups=(groups,))


class Span(NamedTuple):
    """The rows of a source in one row group, counted in the file; `first` and `rows` are the row group's."""

    group: int
    first: int
    rows: int
    low: int
    high: int

    @property
    def whole(self) -> bool:
        """Whether the source has all rows of the row group."""
        return self.high - self.low == self.rows


def spans_of(
    source: Source, starts: Sequence[int], parquet: AnyParquet, conditions: Sequence[conditions_.Condition],
    own: Sequence[str], deleted: np.ndarray = NONE,
) -> Iterator[Span]:  # fmt: skip
    """Yield the rows of a source by row group, without row groups in which no row is live and meets the conditions."""
    for group in range(bisect_right(starts, source.start) - 1, len(starts) - 1):
        first, end = starts[group : group + 2]
        low, high = max(source.start, first), min(source.stop, end)
        if low >= source.stop:
            return
        gone = np.searchsorted(deleted, high) - np.searchsorted(deleted, low) if len(deleted) else 0
        if gone < high - low and not _excluded(parquet, group, conditions, own):
            yield Span(group, first, end - first, low, high)


def own_columns(
    names: Sequence[str], schema: pa.Schema, there: Collection[str], hive: Mapping[str, str | None]
) -> list[str]:
    """Return the names that are columns of the file, or fields of its structs; `there` are its columns."""
    return [n for n in names if n in there or (n not in hive and fields.find(schema, n) is not None)]


def _whole_groups(source: Source, starts: Sequence[int]) -> tuple[int, ...] | None:
    """Return the row groups that make up the source, without empty ones; None if it starts or ends inside one."""
    first, end = bisect_left(starts, source.start), bisect_left(starts, source.stop)
    if end == len(starts) or starts[first] != source.start or starts[end] != source.stop:
        return None
    return tuple(group for group in range(first, end) if starts[group] < starts[group + 1])


def _assemble(
    pieces: list[pa.Table],
    spans: list[tuple[int, int, int]],
    source: Source,
    schema: pa.Schema,
    conditions: Sequence[conditions_.Condition],
    batch_rows: Sequence[int],
    bytes_read: int,
    deleted: np.ndarray,
) -> Rows:
    """Combine pieces of row groups into one filtered table with its batch edges."""
    rows = sum(high - low for _, low, high in spans)
    table = _planned_columns(pieces, rows, schema, source)
    edges = [_edges(spans, rows, each) for each in batch_rows]
    places = Places(tuple((low, high) for _, low, high in spans))
    if (conditions or len(deleted)) and rows:
        keep = np.ones(rows, bool) if not conditions else conditions_.mask(conditions, table).to_numpy()
        if len(deleted):
            keep = keep & ~np.isin(places.numbers(), deleted, assume_unique=True)
        table, places = table.filter(pa.chunked_array([keep])), replace(places, mask=keep)
        left = np.concatenate(([0], np.cumsum(keep)))
        edges = [left[each] for each in edges]
    if table.num_rows != len(places):
        found = pa.ArrowInvalid(f"{table.num_rows} rows where the footer has {len(places)}")
        raise unreadable(source.path, found)
    filtered = source.stop - source.start - len(deleted) - table.num_rows
    return Rows(
        table, places, tuple(map(np.unique, edges)), filtered, bytes_read, (table.num_rows,), deleted=len(deleted)
    )  # fmt: skip


def _edges(spans: Sequence[tuple[int, int, int]], rows: int, batch_rows: int) -> np.ndarray:
    """Return the row offsets at which batches of so many rows begin and end; `spans` are those of `_rows`."""
    cuts = [np.arange(low - (low - start) % batch_rows, high, batch_rows) for start, low, high in spans]
    offsets = np.cumsum([0] + [high - low for _, low, high in spans])
    grid = [
        np.clip(cut - low, 0, None) + offset for cut, (_, low, _), offset in zip(cuts, spans, offsets, strict=False)
    ]
    return np.append(np.concatenate(grid), rows) if grid else np.zeros(1, np.int64)


def _joined_edges(edges: Sequence[np.ndarray], firsts: Sequence[int]) -> np.ndarray:
    """Return the edges of several tables as those of one; `firsts` are the offsets of the tables' first rows."""
    return np.unique(np.concatenate([each + first for each, first in zip(edges, firsts, strict=False)]))


def _joined(places: Sequence[Places]) -> Places:
    ranges = tuple(chain.from_iterable(one.ranges for one in places))
    if all(one.mask is None for one in places):
        return Places(ranges)
    return Places(ranges, np.concatenate([np.ones(len(p), bool) if p.mask is None else p.mask for p in places]))


def _planned_columns(pieces: list[pa.Table], rows: int, schema: pa.Schema, source: Source) -> pa.Table:
    """Return the planned columns in the planned types, with the Hive keys of the path."""
    if pieces and len({piece.schema for piece in pieces}) > 1:  # dictionary types may differ between row groups
        pieces = [pieces[0], *(piece.cast(pieces[0].schema) for piece in pieces[1:])]
    table = pa.concat_tables(pieces) if pieces else None
    columns = []
    hive = dict(source.hive)
    names = set(table.column_names) if table is not None else set()
    for field in schema:
        if table is None or rows == 0:
            columns.append(pa.chunked_array([], field.type))
        elif field.name in names:
            columns.append(_cast_to_plan(table[field.name], field, source))
        else:
            value = hive.get(field.name)
            scalar = pa.scalar(value).cast(field.type) if value is not None else pa.scalar(None, field.type)
            columns.append(pa.chunked_array([pa.repeat(scalar, rows)]))
    return pa.Table.from_arrays(columns, schema=schema)


def _cast_to_plan(column: pa.ChunkedArray, field: pa.Field, source: Source) -> pa.ChunkedArray:
    if common_type(column.type, field.type) is not None:
        return cast_layout(column, field.type)
    raise changed(source, f"column {field.name!r} of type {column.type} instead of {field.type}")


def _excluded(parquet: AnyParquet, group: int, conditions: Sequence[conditions_.Condition], own: Sequence[str]) -> bool:
    """Return whether the footer's statistics prove that no row of the row group meets the conditions."""
    if not conditions:
        return False
    schema, of_table = parquet.schema_arrow, isinstance(parquet, TableColumns)
    leaves = parquet.flat_leaves() if of_table else flat_leaves(schema, parquet.metadata)
    for condition in conditions:
        name = condition.column
        field = fields.find(schema, name) if name in own else None
        inner = field is not None and name not in schema.names
        if (
            inner and not of_table and condition.op not in conditions_.NULLS
        ):  # writers may not count the nulls of a struct as its field's
            leaf = only_leaf(parquet.metadata, ".".join(fields.path_of(name)))
        else:
            leaf = None if inner else leaves.get(name)
        row_group = parquet.metadata.row_group(group)
        if field is not None and leaf is not None and conditions_.excludes(condition, row_group, field.type, leaf):
            return True
    return False


_SAMPLED_FILES = 6


def first_rows(dataset: Dataset, schema: pa.Schema, rows: int) -> pa.Table:
    """Return the first rows of the input with the columns of `schema`, which may include Hive keys."""
    pieces: list[pa.Table] = []
    left, there = rows, set(dataset.schema.names)
    columns_ = None if dataset.table is None else dataset.table.columns
    for file in dataset.files:
        if left <= 0 or len(pieces) >= _SAMPLED_FILES:
            break
        own = own_columns(schema.names, dataset.schema, there, file.hive)
        stored = fields.stored(own, there)
        deleted = dataset.deleted_rows(file)
        footer = dataset.footer if file is dataset.files[0] and is_url(file.path) else None
        wanted = first_live(deleted, min(left, file.rows - len(deleted)))
        try:
            with (
                opened_at_first_rows(file.id, stored, wanted, columns_, footer) as parquet,
                naming_damage(file.path, parquet, range(parquet.num_row_groups), stored),
            ):
                batch = next(parquet.iter_batches(batch_size=max(wanted, 1), columns=stored, use_threads=True), None)
        except (OSError, MemoryError, pa.ArrowException) as error:
            raise unreadable(file.path, error) from error
        if batch is None or not batch.num_rows or not wanted:
            continue
        batch = fields.select(plain_rows(batch), own)
        batch = _without(batch, deleted) if len(deleted) else batch
        columns = []
        for field in schema:
            if field.name in batch.schema.names:
                columns.append(cast_layout(pa.chunked_array([batch[field.name]]), field.type))
            else:
                value = file.hive.get(field.name)
                scalar = pa.scalar(None, field.type) if value is None else pa.scalar(value).cast(field.type)
                columns.append(pa.chunked_array([pa.repeat(scalar, batch.num_rows)]))
        pieces.append(pa.Table.from_arrays(columns, schema=schema))
        left -= batch.num_rows
    return pa.concat_tables(pieces) if pieces else schema.empty_table()


def _without(batch: pa.RecordBatch, deleted: np.ndarray) -> pa.RecordBatch:
    """Return the first rows of a file without the deleted ones."""
    return batch.filter(pa.array(~np.isin(np.arange(batch.num_rows), deleted, assume_unique=True)))
