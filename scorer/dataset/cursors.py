"""What the parts of one process share about the input: parsed footers, and passes over large row groups.

A footer is parsed once per file and process, not once per part: with 10,000 row groups of 28 columns it is
23 MB and takes a quarter of a second. A row group that several parts slice is decoded once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

import pyarrow as pa

from scorer.arrow import plain_rows
from scorer.storage.footers import open_parquet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow.parquet as pq


_DECODE_ROWS = 65_536
_BUNCH_BYTES = 4 << 20  # decoded: enough to make a call worth its while
_LEAST_WIDTH = 4  # bytes of a value, decoded
_WHOLE_BYTES = 32 << 20  # of a row group's columns that are decoded together though parts are slices of it
_OPEN_CURSORS = 4
_LOOK_AHEAD = 8  # slices; two per thread on a common laptop, and memory stays bounded
_FOOTERS = 16  # files that parts in flight may be spread over; parsed, each takes some 200 kB, and is soon parsed again
_FOOTER_BYTES = 32 << 20  # of footers as they are stored; parsed, they take about six times that


@dataclass(slots=True)
class _Footer:
    """One file's footer; whoever comes first parses it, the others wait."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    metadata: pq.FileMetaData | None = None
    starts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file to read from, in one thread."""

    parquet: pq.ParquetFile
    starts: tuple[int, ...]
    """First row of each row group, and the number of rows behind the last."""


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

    def __init__(self, opened: InputCache, path: str, group: int, columns: Sequence[str], first: int = 0) -> None:
        self._opened, self._path, self._group, self._columns = opened, path, group, list(columns)
        self._lock = threading.Lock()
        self._first = first
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._decoded = self._rows = 0
        self._kept: deque[_Piece] = deque()
        self._taken: set[tuple[int, int]] = set()
        self._broken: Exception | None = None

    def _open(self) -> Iterator[pa.RecordBatch]:
        parquet = self._opened.file(self._path, len(self._columns)).parquet
        self._rows = parquet.metadata.row_group(self._group).num_rows
        if not self._first and _bytes(parquet, self._group, self._columns) <= _WHOLE_BYTES:
            return iter(decoded(parquet, [self._group], self._columns).to_batches())  # threads of Arrow's would wait
        return parquet.iter_batches(  # type: ignore[no-any-return]  # pyarrow is untyped
            batch_size=_DECODE_ROWS, row_groups=[self._group], columns=self._columns, use_threads=True
        )

    def take(self, start: int, stop: int) -> pa.Table:
        """Rows start..stop of the row group."""
        keep = _LOOK_AHEAD * max(stop - start, _DECODE_ROWS)
        with self._lock:
            if self._batches is None:
                self._batches = self._open()
                self._advance(self._first, self._first, 0)
            self._advance(start, stop, keep)
            pieces = self._overlap(start, stop)
            self._forget((start, stop))
        if sum(piece.num_rows for piece in pieces) == stop - start:
            return pa.Table.from_batches(pieces)
        return Cursor(self._opened, self._path, self._group, self._columns, start).take(start, stop)

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
            batch = next(self._batches or iter(()), None)
            if batch is not None:
                if self._decoded + batch.num_rows >= self._rows:
                    self._batches = iter(())  # Arrow holds a page of each column until its iterator is gone
                return plain_rows(batch)
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


class InputCache:
    """The footers and cursors of one run in one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._footers: OrderedDict[str, _Footer] = OrderedDict()
        self._cursors: OrderedDict[tuple[str, int], Cursor] = OrderedDict()

    def file(self, path: str, columns: int = 1) -> OpenFile:
        """The file, its footer parsed by the first part that asks; so many columns will be read at once."""
        with self._lock:
            footer = self._footers.setdefault(path, _Footer())
            self._footers.move_to_end(path)
        with footer.lock:
            parquet = open_parquet(path, footer.metadata, columns)
            if footer.metadata is None:
                metadata = parquet.metadata
                rows = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
                footer.starts = tuple(accumulate(rows, initial=0))
                footer.metadata = metadata
                self._trim()
        return OpenFile(parquet, footer.starts)

    def cursor(self, path: str, group: int, columns: Sequence[str]) -> Cursor:
        """The cursor of a row group, made at its first slice."""
        with self._lock:
            key = (path, group)
            if key not in self._cursors:
                self._cursors[key] = Cursor(self, path, group, columns)
            self._cursors.move_to_end(key)
            while len(self._cursors) > _OPEN_CURSORS:
                self._cursors.popitem(last=False)
            return self._cursors[key]

    def forget(self, path: str) -> None:
        """Open the file anew next time: something went wrong while it was read."""
        with self._lock:
            self._footers.pop(path, None)
            for key in [key for key in self._cursors if key[0] == path]:
                del self._cursors[key]

    def _trim(self) -> None:
        """Forget the footers that were not asked for of late; the newest stays, however large."""
        with self._lock:
            sizes = [0 if f.metadata is None else f.metadata.serialized_size for f in self._footers.values()]
            total = sum(sizes)
            for size in sizes[:-1]:
                if total <= _FOOTER_BYTES and len(self._footers) <= _FOOTERS:
                    return
                self._footers.popitem(last=False)
                total -= size


def _bytes(parquet: pq.ParquetFile, group: int, columns: Sequence[str]) -> float:
    """Decoded bytes of a row group's columns; more than there is memory where that is not certain."""
    kinds = [parquet.schema_arrow.field(name).type for name in columns]
    if not all(pa.types.is_primitive(kind) for kind in kinds):
        return float("inf")
    return float(parquet.metadata.row_group(group).num_rows * sum(kind.bit_width for kind in kinds) / 8)


def decoded(parquet: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Whole row groups, some columns at a time.

    Arrow keeps the buffers of all columns that it reads until the last one is decoded: 137 MB for 58 MB of rows.
    In bunches it is 61 MB, and a tenth faster, as less memory is touched.
    """
    metadata = parquet.metadata
    stored = sum(metadata.row_group(group).total_byte_size for group in groups) / max(metadata.num_columns, 1)
    rows = sum(metadata.row_group(group).num_rows for group in groups)
    step = max(1, int(_BUNCH_BYTES / max(stored, _LEAST_WIDTH * rows, 1)))  # a dictionary hides how much it will be
    if step >= len(columns):
        return parquet.read_row_groups(groups, columns=columns, use_threads=False).select(columns)
    bunches = (columns[at : at + step] for at in range(0, len(columns), step))
    tables = [parquet.read_row_groups(groups, columns=bunch, use_threads=False).select(bunch) for bunch in bunches]
    return pa.Table.from_arrays(
        [column for table in tables for column in table.columns],
        schema=pa.schema([field for table in tables for field in table.schema]),
    )
