"""Share the input between the parts of one process: parsed footers, and decoded rows of large row groups.

A footer is parsed once per file and process, not once per part: with 10,000 row groups of 28 columns it is
23 MB and takes a quarter of a second. A row group that several parts read slices of is decoded once.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from scorer.arrow import plain_rows
from scorer.dataset.fields import find, select, stored
from scorer.errors import UnreadableFile
from scorer.locations import is_url
from scorer.storage.footers import chunk_ranges, naming_damage, open_parquet
from scorer.tables.columns import open_as_table, stored_names
from scorer.tables.deleted import NONE, DeletedRows

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    import numpy as np
    import pyarrow.parquet as pq

    from scorer.storage.fetched import Fetched, Window
    from scorer.storage.files import FileId
    from scorer.tables.columns import AnyParquet
    from scorer.tables.deleted import Slice
    from scorer.tables.snapshot import TableState


DECODE_ROWS = 65_536
_BUNCH_BYTES = 4 << 20  # decoded bytes of the columns that one call reads; less does not repay the call
_LEAST_WIDTH = 4  # decoded bytes of a value, assumed at least
_WHOLE_BYTES = 32 << 20  # up to this decoded size, a row group is decoded at once although parts need slices of it
_OPEN_CURSORS = 4
_KEPT_SLICES = 8  # two per thread on a common laptop; bounds memory
_MAX_FOOTERS = 16  # cached files, enough for the parts in progress; a typical parsed footer takes 200 kB
_MAX_FOOTER_BYTES = 32 << 20  # stored size of all cached footers; parsed, they take about six times that


@dataclass(slots=True)
class _Footer:
    """One file's footer. The first thread parses it while the others wait for the lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    metadata: pq.FileMetaData | None = None
    starts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An open file, for one thread."""

    parquet: AnyParquet
    starts: tuple[int, ...]
    """First row of each row group, then the number of rows in the file."""


@dataclass(slots=True)
class _Piece:
    """Decoded rows that some slice has not taken yet."""

    first: int
    left: int
    batch: pa.RecordBatch

    @property
    def last(self) -> int:
        """End of the piece: the row after its last one."""
        return self.first + int(self.batch.num_rows)


class Cursor:
    """One pass over a large row group, shared by all slices that a process reads of it.

    Slices are taken nearly in order; rows that were decoded but not yet taken are kept for a while.
    If the rows of a late or repeated slice are no longer kept, that slice starts its own pass.
    """

    def __init__(
        self, cache: InputCache, file: FileId, group: int, columns: Sequence[str], fetched: Fetched | None = None,
        first: int = 0,
    ) -> None:  # fmt: skip
        self._cache, self._file, self._group, self._columns = cache, file, group, list(columns)
        self._given = fetched
        self._fetched: Fetched | Window | None = fetched
        self._lock = threading.Lock()
        self._first = first
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._decoded = self._rows = 0
        self._kept: deque[_Piece] = deque()
        self._taken: set[tuple[int, int]] = set()
        self._error: Exception | None = None

    def start(self) -> None:
        """Begin to read the row group from a store, if that has not begun."""
        if self._fetched is not None or self._batches is not None:
            return  # without the lock, which is held while rows are decoded: who waits for it may be late for its slice
        with self._lock:
            if self._fetched is None and self._batches is None:
                self._fetch()

    def _fetch(self) -> None:
        """Begin to read the columns: all at once if they will be decoded at once, else the first blocks of each."""
        from scorer.storage import fetched  # noqa: PLC0415 - only for stores

        with self._cache.file(self._file).parquet as parquet:
            schema, metadata = parquet.schema_arrow, parquet.metadata
            at_once = self._at_once(parquet, schema)
            names = stored_names(parquet, stored(self._columns, set(schema.names)))
        wanted = chunk_ranges(metadata, [self._group], names)
        if at_once:
            self._fetched = fetched.Fetched(self._file, metadata, [self._group], wanted)
        else:
            self._fetched = fetched.Window(self._file, metadata, wanted)

    def _at_once(self, parquet: AnyParquet, schema: pa.Schema) -> bool:
        """Return whether the row group is so small that it is decoded at once, although parts need slices of it."""
        return not self._first and _decoded_bytes(parquet, self._group, schema, self._columns) <= _WHOLE_BYTES

    def _decode(self) -> Iterator[pa.RecordBatch]:
        if self._fetched is None and is_url(self._file.path):
            self._fetch()
        parquet = self._cache.file(self._file, len(self._columns), self._fetched).parquet
        self._rows = parquet.metadata.row_group(self._group).num_rows
        schema = parquet.schema_arrow
        there = set(schema.names)
        names = stored(self._columns, there)
        with naming_damage(self._file.path, parquet, [self._group], names):
            if self._at_once(parquet, schema):
                # one thread: Arrow's pool would only wait
                yield from decoded(parquet, [self._group], self._columns, there).to_batches()
            else:
                batches = parquet.iter_batches(
                    batch_size=DECODE_ROWS, row_groups=[self._group], columns=names, use_threads=True
                )
                yield from (select(batch, self._columns) for batch in batches)

    def take(self, start: int, stop: int) -> pa.Table:
        """Return rows start..stop of the row group."""
        keep = _KEPT_SLICES * max(stop - start, DECODE_ROWS)
        with self._lock:
            if self._batches is None:
                self._batches = self._decode()
                self._advance(self._first, self._first, 0)
            self._advance(start, stop, keep)
            pieces = self._overlap(start, stop)
            self._drop_taken((start, stop))
        if sum(piece.num_rows for piece in pieces) == stop - start:
            return pa.Table.from_batches(pieces)
        again = Cursor(self._cache, self._file, self._group, self._columns, self._given, start)
        return again.take(start, stop)

    def _advance(self, start: int, stop: int, keep: int) -> None:
        """Decode up to `stop`; keep at most `keep` rows before `start`."""
        while self._decoded < stop:
            batch = self._next()
            self._kept.append(_Piece(self._decoded, batch.num_rows, batch))
            self._decoded += batch.num_rows
            while self._kept and self._kept[0].last <= start and self._decoded - self._kept[0].first > keep:
                self._kept.popleft()

    def _next(self) -> pa.RecordBatch:
        """Return the next rows; after a damaged page, every later slice gets the same error."""
        if self._error is not None:
            raise self._error
        try:
            batch = next(self._batches or iter(()), None)
            if batch is not None:
                if self._decoded + batch.num_rows >= self._rows:
                    self._batches = iter(())  # Arrow holds a page of each column until its iterator is gone
                    self._fetched = self._given
                return plain_rows(batch)
            self._error = OSError(f"row group {self._group} ends after {self._decoded} rows")
        except (OSError, pa.ArrowException, UnreadableFile) as error:
            self._error = error
        raise self._error

    def _overlap(self, start: int, stop: int) -> list[pa.RecordBatch]:
        bounds = ((piece, max(start, piece.first), min(stop, piece.last)) for piece in self._kept)
        return [piece.batch.slice(low - piece.first, high - low) for piece, low, high in bounds if low < high]

    def _drop_taken(self, taken: tuple[int, int]) -> None:
        """Drop pieces whose rows have all been taken; a repeated slice counts once."""
        if taken in self._taken:
            return
        self._taken.add(taken)
        for piece in self._kept:
            piece.left -= max(0, min(taken[1], piece.last) - max(taken[0], piece.first))
        self._kept = deque(piece for piece in self._kept if piece.left > 0)


class _Source(Protocol):
    """Some rows of a file, as `reader.Source`."""

    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...
    @property
    def deleted(self) -> Slice | None: ...


class InputCache:
    """The cached footers and cursors of one run in one process, and which files it reads."""

    def __init__(
        self, *, same_mounts: bool = False, table: TableState | None = None, deleted: DeletedRows | None = None
    ) -> None:  # fmt: skip
        self._lock = threading.Lock()
        self.table = table
        """The table that is read; None if the input are plain files."""
        self._columns = None if table is None else table.schema
        self._deleted = deleted
        self._same_mounts = same_mounts
        """Whether this process sees files as the driver does, so that inodes can be compared with the planned ones."""
        self._inodes: dict[str, tuple[int, int, int] | None] = {}
        self._footers: OrderedDict[str, _Footer] = OrderedDict()
        self._cursors: OrderedDict[tuple[str, int], Cursor] = OrderedDict()

    def is_planned(self, planned: FileId, current: FileId) -> bool:
        """Return whether the file is still the planned one, and the one that this process read before."""
        if self._same_mounts and planned.inode is not None:
            return current == planned and current.inode == planned.inode
        return current == planned and current.inode == self._inodes.setdefault(planned.path, current.inode)

    def file(self, file: FileId, columns: int = 1, fetched: Fetched | Window | None = None) -> OpenFile:
        """Open the file, parsing its footer only the first time; `columns` is how many will be read at once.

        What was `fetched` of a file on a store is read from memory; it has the footer, too.
        """
        if fetched is not None:
            opened = open_parquet(file, fetched.metadata, columns, fetched)
            return OpenFile(self._as_table(opened, file), _starts(fetched.metadata))
        with self._lock:
            footer = self._footers.setdefault(file.path, _Footer())
            self._footers.move_to_end(file.path)
        with footer.lock:
            parquet = open_parquet(file, footer.metadata, columns)
            if footer.metadata is None:
                footer.starts = _starts(parquet.metadata)
                footer.metadata = parquet.metadata
                self._trim()
        return OpenFile(self._as_table(parquet, file), footer.starts)

    def _as_table(self, parquet: pq.ParquetFile, file: FileId) -> AnyParquet:
        return parquet if self._columns is None else open_as_table(parquet, self._columns, file.path)

    def deleted(self, source: _Source) -> np.ndarray:
        """Return the numbers of the source's deleted rows, as rows of the file."""
        if source.deleted is None or self._deleted is None:
            return NONE
        return self._deleted.between(source.deleted, source.start, source.stop)

    def cursor(self, file: FileId, group: int, columns: Sequence[str], fetched: Fetched | None = None) -> Cursor:
        """Return the cursor of a row group, created for its first slice."""
        with self._lock:
            key = (file.path, group)
            if key not in self._cursors:
                self._cursors[key] = Cursor(self, file, group, columns, fetched)
            self._cursors.move_to_end(key)
            while len(self._cursors) > _OPEN_CURSORS:
                self._cursors.popitem(last=False)
            return self._cursors[key]

    def forget(self, path: str) -> None:
        """Drop all that is cached of a file, so that it is opened again after a read error."""
        with self._lock:
            self._footers.pop(path, None)
            for key in [key for key in self._cursors if key[0] == path]:
                del self._cursors[key]

    def _trim(self) -> None:
        """Drop the least recently used footers; the newest stays, however large."""
        with self._lock:
            sizes = [0 if f.metadata is None else f.metadata.serialized_size for f in self._footers.values()]
            total = sum(sizes)
            for size in sizes[:-1]:
                if total <= _MAX_FOOTER_BYTES and len(self._footers) <= _MAX_FOOTERS:
                    return
                self._footers.popitem(last=False)
                total -= size


def opened_at_first_rows(
    file: FileId, columns: Sequence[str], rows: int, table: pa.Schema | None = None,
    footer: pq.FileMetaData | None = None,
) -> AnyParquet:  # fmt: skip
    """Open a file to read the first rows of some columns, which are requested all at once if it is on a store.

    `table` are the columns of the table that the file belongs to; `footer` is the file's, if it was read before.
    """

    def as_table(parquet: pq.ParquetFile) -> AnyParquet:
        return parquet if table is None else open_as_table(parquet, table, file.path)

    opened = as_table(open_parquet(file, footer, columns=len(columns)))
    if not is_url(file.path):
        return opened
    from scorer.storage.fetched import Window  # noqa: PLC0415 - only for stores

    with opened:
        metadata, columns = opened.metadata, stored_names(opened, columns)
    groups = range(bisect_left(_starts(metadata), min(rows, metadata.num_rows)))
    wanted = chunk_ranges(metadata, groups, columns)
    return as_table(open_parquet(file, metadata, len(columns), Window(file, metadata, wanted, first_rows=True)))


def _starts(metadata: pq.FileMetaData) -> tuple[int, ...]:
    """Return the first row of each row group, then the number of rows."""
    rows = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    return tuple(accumulate(rows, initial=0))


def _decoded_bytes(parquet: AnyParquet, group: int, schema: pa.Schema, columns: Sequence[str]) -> float:
    """Return the decoded bytes of a row group's columns; infinity if a column has no fixed width."""
    kinds = [field.type for name in columns if (field := find(schema, name)) is not None]
    if not all(pa.types.is_primitive(kind) for kind in kinds):
        return float("inf")
    return float(parquet.metadata.row_group(group).num_rows * sum(kind.bit_width for kind in kinds) / 8)


def decoded(parquet: AnyParquet, groups: Sequence[int], columns: Sequence[str], there: Collection[str]) -> pa.Table:
    """Return whole row groups, read a few columns at a time; `there` are the file's columns.

    Arrow keeps the buffers of all columns of a call until the last one is decoded: 137 MB for 58 MB of rows.
    In bunches of columns it is 61 MB, and a tenth faster because less memory is touched.
    """
    metadata = parquet.metadata
    stored = sum(metadata.row_group(group).total_byte_size for group in groups) / max(metadata.num_columns, 1)
    rows = sum(metadata.row_group(group).num_rows for group in groups)
    step = max(
        1, int(_BUNCH_BYTES / max(stored, _LEAST_WIDTH * rows, 1))
    )  # dictionary pages may be much smaller than the decoded values
    if step >= len(columns):
        return _read_groups(parquet, groups, columns, there)
    bunches = (columns[at : at + step] for at in range(0, len(columns), step))
    tables = [_read_groups(parquet, groups, bunch, there) for bunch in bunches]
    return pa.Table.from_arrays(
        [column for table in tables for column in table.columns],
        schema=pa.schema([field for table in tables for field in table.schema]),
    )


def _read_groups(
    parquet: AnyParquet, groups: Sequence[int], columns: Sequence[str], there: Collection[str]
) -> pa.Table:
    return select(parquet.read_row_groups(groups, columns=stored(columns, there), use_threads=False), columns)
