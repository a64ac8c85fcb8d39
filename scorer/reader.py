"""Read the rows of one part: its row groups, its slice of a large one, its filter.

The batch grid restarts at each row group and is cut every `batch_rows` rows of the input,
so a row's batch-mates never depend on who scores it. Knows nothing about models or Dask.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from scorer import where
from scorer.dataset import flat_leaves, open_parquet, plain, plain_batch, plain_table, unreadable, values_type
from scorer.errors import InputChanged

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow.parquet as pq

_DECODE_ROWS = 65_536
_OPEN_CURSORS = 4
_LOOK_AHEAD = 8  # slices; two per thread on a common laptop, and memory stays bounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a part's rows are: rows start..stop of one file, as the plan saw it."""

    path: str
    size: int
    mtime_ns: int
    start: int
    stop: int
    hive: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Rows:
    """What was read: a table in input order, and what batches and counts need to know."""

    table: pa.Table
    positions: np.ndarray
    """Row number in the file, for each row of the table."""
    edges: np.ndarray
    """Where batches are cut, from 0 to the number of rows."""
    filtered: int
    bytes_read: int


@dataclass(slots=True)
class _Piece:
    """Rows that a cursor has decoded and not every slice has taken."""

    first: int
    left: int
    batch: pa.RecordBatch

    @property
    def last(self) -> int:
        """The row behind its last one."""
        return self.first + int(self.batch.num_rows)


class Cursor:
    """One pass over a large row group, shared by the slices that one process reads.

    Slices are taken nearly in order; rows that were passed on the way are kept for a while.
    A late or repeated slice that finds its rows gone starts a pass of its own.
    """

    def __init__(self, path: str, group: int, columns: Sequence[str], first: int = 0) -> None:
        self._path, self._group, self._columns = path, group, list(columns)
        self._lock = threading.Lock()
        self._batches = self._open()
        self._decoded = 0
        self._kept: deque[_Piece] = deque()
        self._taken: set[tuple[int, int]] = set()
        self._broken: Exception | None = None
        self._advance(first, first, 0)

    def _open(self) -> Iterator[pa.RecordBatch]:
        parquet = open_parquet(self._path)
        return parquet.iter_batches(  # type: ignore[no-any-return]  # pyarrow is untyped
            batch_size=_DECODE_ROWS, row_groups=[self._group], columns=self._columns, use_threads=False
        )

    def take(self, start: int, stop: int) -> pa.Table:
        """Rows start..stop of the row group."""
        keep = _LOOK_AHEAD * max(stop - start, _DECODE_ROWS)
        with self._lock:
            self._advance(start, stop, keep)
            pieces = self._overlap(start, stop)
            self._forget((start, stop))
        if sum(piece.num_rows for piece in pieces) == stop - start:
            return pa.Table.from_batches(pieces)
        return Cursor(self._path, self._group, self._columns, start).take(start, stop)

    def _advance(self, start: int, stop: int, keep: int) -> None:
        """Decode up to `stop`; before `start`, keep no more rows than `keep`."""
        while self._decoded < stop:
            batch = self._next()
            self._kept.append(_Piece(self._decoded, batch.num_rows, batch))
            self._decoded += batch.num_rows
            while self._kept and self._kept[0].last <= start and self._decoded - self._kept[0].first > keep:
                self._kept.popleft()

    def _next(self) -> pa.RecordBatch:
        """The next rows; a broken page is the same complaint for every slice behind it."""
        if self._broken is not None:
            raise self._broken
        try:
            return plain_batch(next(self._batches))
        except StopIteration:
            self._broken = OSError(f"row group {self._group} ends after {self._decoded} rows")
        except (OSError, pa.ArrowException) as error:
            self._broken = error
        raise self._broken

    def _overlap(self, start: int, stop: int) -> list[pa.RecordBatch]:
        bounds = ((piece, max(start, piece.first), min(stop, piece.last)) for piece in self._kept)
        return [piece.batch.slice(low - piece.first, high - low) for piece, low, high in bounds if low < high]

    def _forget(self, taken: tuple[int, int]) -> None:
        """Drop what every slice has taken, each counted once."""
        if taken in self._taken:
            return
        self._taken.add(taken)
        for piece in self._kept:
            piece.left -= max(0, min(taken[1], piece.last) - max(taken[0], piece.first))
        self._kept = deque(piece for piece in self._kept if piece.left > 0)


class Cursors:
    """The open cursors of one run in one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[str, int], Cursor] = OrderedDict()

    def of(self, path: str, group: int, columns: Sequence[str]) -> Cursor:
        """The cursor of a row group, made at its first slice."""
        with self._lock:
            key = (path, group)
            if key not in self._open:
                self._open[key] = Cursor(path, group, columns)
            self._open.move_to_end(key)
            while len(self._open) > _OPEN_CURSORS:
                self._open.popitem(last=False)
            return self._open[key]


def read(
    source: Source,
    schema: pa.Schema,
    conditions: Sequence[where.Condition],
    batch_rows: int,
    cursors: Cursors,
) -> Rows:
    """The part's rows with the columns of `schema`, filtered.

    Columns that the file does not have are keys of its path.
    """
    try:
        stat = os.stat(source.path)
        if (stat.st_size, stat.st_mtime_ns) != (source.size, source.mtime_ns):
            raise changed(source, f"{stat.st_size} bytes, changed since")
        with open_parquet(source.path) as parquet:
            return _rows(parquet, source, schema, conditions, batch_rows, cursors)
    except FileNotFoundError:
        raise changed(source, "nothing") from None
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise unreadable(source.path, error) from error


def changed(source: Source, found: str) -> InputChanged:
    """The input is not what the plan saw."""
    what, hint = "the input changed after it was planned", "restore the file, or start again with --overwrite"
    return InputChanged(what, source.path, f"the {source.size} bytes that were planned", found, hint)


def _rows(
    parquet: pq.ParquetFile,
    source: Source,
    schema: pa.Schema,
    conditions: Sequence[where.Condition],
    batch_rows: int,
    cursors: Cursors,
) -> Rows:
    metadata = parquet.metadata
    there = set(parquet.schema_arrow.names)
    missing = [field.name for field in schema if field.name not in there and field.name not in dict(source.hive)]
    if missing:
        raise changed(source, f"no column {missing[0]!r}")
    own = [name for name in schema.names if name in there]
    pieces: list[pa.Table] = []
    spans: list[tuple[int, int, int]] = []  # first row of the group, and the rows of it in this part
    bytes_read = first = 0
    for g in range(metadata.num_row_groups):
        rows = metadata.row_group(g).num_rows
        low, high = max(source.start, first), min(source.stop, first + rows)
        if low < high and not _excluded(parquet, g, conditions, own):
            whole = high - low == rows
            piece = (
                plain_table(parquet.read_row_groups([g], columns=own, use_threads=False))
                if whole
                else cursors.of(source.path, g, own).take(low - first, high - first)
            )
            pieces.append(piece.select(own))
            spans.append((first, low, high))
            bytes_read += metadata.row_group(g).total_byte_size * (high - low) // rows
        first += rows
    if first < source.stop:
        raise changed(source, f"{first} rows")
    return _assemble(pieces, spans, source, schema, conditions, batch_rows, bytes_read)


def _assemble(
    pieces: list[pa.Table],
    spans: list[tuple[int, int, int]],
    source: Source,
    schema: pa.Schema,
    conditions: Sequence[where.Condition],
    batch_rows: int,
    bytes_read: int,
) -> Rows:
    """Pieces of row groups as one filtered table on the batch grid."""
    rows = sum(high - low for _, low, high in spans)
    table = _as_planned(pieces, rows, schema, source)
    cuts = [np.arange(low - (low - start) % batch_rows, high, batch_rows) for start, low, high in spans]
    offsets = np.cumsum([0] + [high - low for _, low, high in spans])
    grid = [
        np.clip(cut - low, 0, None) + offset for cut, (_, low, _), offset in zip(cuts, spans, offsets, strict=False)
    ]
    edges = np.append(np.concatenate(grid), rows) if grid else np.zeros(1, np.int64)
    positions = np.concatenate([np.arange(low, high) for _, low, high in spans]) if spans else np.empty(0, np.int64)
    if conditions and rows:
        held = where.mask(conditions, table)
        keep = held.to_numpy()
        table, positions = table.filter(held), positions[keep]
        edges = np.concatenate(([0], np.cumsum(keep)))[edges]
    if table.num_rows != len(positions):
        msg = f"{table.num_rows} rows for {len(positions)} positions of {source}"
        raise AssertionError(msg)
    total = source.stop - source.start
    return Rows(table, positions, np.unique(edges), total - table.num_rows, bytes_read)


def _as_planned(pieces: list[pa.Table], rows: int, schema: pa.Schema, source: Source) -> pa.Table:
    """The planned columns in the planned types, keys of the path added."""
    if pieces and len({piece.schema for piece in pieces}) > 1:  # dictionaries may differ in type by group
        pieces = [pieces[0], *(piece.cast(pieces[0].schema) for piece in pieces[1:])]
    table = pa.concat_tables(pieces) if pieces else None
    columns = []
    hive = dict(source.hive)
    names = set(table.column_names) if table is not None else set()
    for field in schema:
        if table is None or rows == 0:
            columns.append(pa.chunked_array([], field.type))
        elif field.name in names:
            columns.append(_typed(table[field.name], field, source))
        else:
            value = hive.get(field.name)
            scalar = pa.scalar(value).cast(field.type) if value is not None else pa.scalar(None, field.type)
            columns.append(pa.chunked_array([pa.repeat(scalar, rows)]))
    return pa.Table.from_arrays(columns, schema=schema)


def _typed(column: pa.ChunkedArray, field: pa.Field, source: Source) -> pa.ChunkedArray:
    if column.type == field.type:
        return column
    if values_type(column.type) == values_type(field.type):
        return column.cast(plain(field.type)).cast(field.type)
    raise changed(source, f"column {field.name!r} of type {column.type} instead of {field.type}")


def _excluded(parquet: pq.ParquetFile, group: int, conditions: Sequence[where.Condition], own: Sequence[str]) -> bool:
    """Whether the footer alone rules the row group out."""
    if not conditions:
        return False
    schema = parquet.schema_arrow
    leaves = flat_leaves(schema, parquet.metadata)
    return any(
        where.excludes(c, parquet.metadata.row_group(group), schema.field(c.column).type, leaves[c.column])
        for c in conditions
        if c.column in own and c.column in leaves
    )
