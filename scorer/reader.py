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
from scorer.dataset import open_parquet, unreadable, values_type
from scorer.errors import InputChanged

if TYPE_CHECKING:
    from collections.abc import Sequence

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


class Cursor:
    """One pass over a large row group, shared by the slices that one process reads.

    Slices are taken nearly in order; rows that were passed on the way are kept for a while.
    A late or repeated slice that finds its rows gone starts a pass of its own.
    """

    def __init__(self, path: str, group: int, columns: Sequence[str]) -> None:
        self._path, self._group, self._columns = path, group, list(columns)
        self._lock = threading.Lock()
        self._batches = self._open()
        self._decoded = 0
        self._kept: deque[_Piece] = deque()

    def _open(self) -> pa.RecordBatchReader:
        parquet = open_parquet(self._path)
        return parquet.iter_batches(
            batch_size=_DECODE_ROWS, row_groups=[self._group], columns=self._columns, use_threads=False
        )

    def take(self, start: int, stop: int) -> pa.Table:
        """Rows start..stop of the row group."""
        with self._lock:
            first = self._kept[0].first if self._kept else self._decoded
            late = start < first
            if not late:
                self._advance(stop)
                pieces = self._overlap(start, stop)
                self._forget(_LOOK_AHEAD * max(stop - start, _DECODE_ROWS))
        if late:
            fresh = Cursor(self._path, self._group, self._columns)
            fresh._skip(start)
            return fresh.take(start, stop)
        return pa.Table.from_batches(pieces)

    def _advance(self, stop: int) -> None:
        while self._decoded < stop:
            batch = next(self._batches)
            self._kept.append(_Piece(self._decoded, batch.num_rows, batch))
            self._decoded += batch.num_rows

    def _skip(self, start: int) -> None:
        """Decode and drop everything before `start`."""
        while True:
            batch = next(self._batches)
            self._decoded += batch.num_rows
            if self._decoded > start:
                self._kept.append(_Piece(self._decoded - batch.num_rows, batch.num_rows, batch))
                return

    def _overlap(self, start: int, stop: int) -> list[pa.RecordBatch]:
        pieces = []
        for piece in self._kept:
            low, high = max(start, piece.first), min(stop, piece.first + piece.batch.num_rows)
            if low < high:
                pieces.append(piece.batch.slice(low - piece.first, high - low))
                piece.left -= high - low
        return pieces

    def _forget(self, rows: int) -> None:
        """Drop what every slice has taken, and the oldest beyond `rows`."""
        self._kept = deque(piece for piece in self._kept if piece.left > 0)
        while sum(piece.batch.num_rows for piece in self._kept) > rows:
            self._kept.popleft()


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
    own = [name for name in schema.names if name in parquet.schema_arrow.names]
    pieces: list[pa.Table] = []
    spans: list[tuple[int, int, int]] = []  # first row of the group, and the rows of it in this part
    bytes_read = first = 0
    for g in range(metadata.num_row_groups):
        rows = metadata.row_group(g).num_rows
        low, high = max(source.start, first), min(source.stop, first + rows)
        if low < high and not _excluded(parquet, g, conditions, own):
            whole = high - low == rows
            piece = (
                parquet.read_row_groups([g], columns=own, use_threads=False)
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
    total = source.stop - source.start
    return Rows(table, positions, np.unique(edges), total - table.num_rows, bytes_read)


def _as_planned(pieces: list[pa.Table], rows: int, schema: pa.Schema, source: Source) -> pa.Table:
    """The planned columns in the planned types, keys of the path added."""
    if pieces and len({piece.schema for piece in pieces}) > 1:  # dictionaries may differ in type by group
        pieces = [pieces[0], *(piece.cast(pieces[0].schema) for piece in pieces[1:])]
    table = pa.concat_tables(pieces) if pieces else None
    columns = []
    hive = dict(source.hive)
    for field in schema:
        if table is None or rows == 0:
            columns.append(pa.chunked_array([], field.type))
        elif field.name in table.column_names:
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
        return column.cast(field.type)
    raise changed(source, f"column {field.name!r} of type {column.type} instead of {field.type}")


def _excluded(parquet: pq.ParquetFile, group: int, conditions: Sequence[where.Condition], own: Sequence[str]) -> bool:
    """Whether the footer alone rules the row group out."""
    metadata = parquet.metadata
    if not conditions:
        return False
    leaves = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}
    return any(
        where.excludes(c, metadata.row_group(group), parquet.schema_arrow.field(c.column).type, leaves[c.column])
        for c in conditions
        if c.column in own and c.column in leaves
    )
