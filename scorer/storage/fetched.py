"""Read column chunks of a file on a store ahead of their decoding: in pieces, over several connections, into memory.

    Fetched     all chunks that a part needs, requested at once
    Window      the chunks of a large row group, of which only the next blocks are requested and held

Arrow sees both as a file: what lies inside one piece is not copied. Each request says which contents it expects.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, TypeVar

from scorer.storage import stores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future

    import pyarrow.parquet as pq

    from scorer.storage.files import FileId


T = TypeVar("T")
R = TypeVar("R")
HOLE_BYTES = 256 << 10  # unwanted bytes between two chunks that cost less than a further request
_PIECE_BYTES = 2 << 20  # at 30 ms and 25 MB/s a connection: one connection is busy for a tenth of a second
_LARGE_PIECE_BYTES, _LARGE_FROM_BYTES = 4 << 20, 64 << 20
_CONNECTIONS = 32
_BLOCK_BYTES, _LEAST_BLOCK_BYTES = 512 << 10, 128 << 10
_NEXT_BLOCKS = 2  # requested behind the one in use; with one, the network waits for the decoder in between
_WINDOW_BYTES = 48 << 20  # of all blocks that a window holds, unless it has very many columns
_LEAST_MEASURED_BYTES = 4 << 20  # fewer bytes tell more of the latency than of the speed
_PADDING = 100  # bytes that Arrow reads behind a chunk that an old parquet-mr wrote

Range = tuple[int, int]
"""Where bytes of a file begin and end."""


def pieces(wanted: Iterable[Range], size: int) -> list[Range]:
    """Return the requests for these bytes of a file of `size` bytes, in the order of the file.

    Chunks that are near to each other are read with the hole between them, and then cut into equal pieces.
    """
    joined: list[list[int]] = []
    for start, stop in sorted(wanted):
        if joined and start - joined[-1][1] <= HOLE_BYTES:
            joined[-1][1] = max(joined[-1][1], stop)
        else:
            joined.append([start, stop])
    for one in joined:
        one[1] = min(one[1] + _PADDING, size)
    total = sum(stop - start for start, stop in joined)
    most = _PIECE_BYTES if total <= _LARGE_FROM_BYTES else _LARGE_PIECE_BYTES
    found = []
    for start, stop in joined:
        step = -(-(stop - start) // max(1, -(-(stop - start) // most)))
        found += [(at, min(at + step, stop)) for at in range(start, stop, max(step, 1))]
    return found


class Fetched:
    """The column chunks that a part needs of a file on a store, requested when this is created."""

    buffer_bytes = 0
    """What Arrow reads of a column at once: all of it, since it is in memory."""

    def __init__(self, file: FileId, metadata: pq.FileMetaData, groups: Iterable[int], wanted: Iterable[Range]) -> None:
        """Request what is `wanted` of these row groups."""
        self.file, self.metadata, self.groups = file, metadata, frozenset(groups)
        ranges = pieces(wanted, file.size)
        self.nbytes = sum(stop - start for start, stop in ranges)
        self._starts = [start for start, _ in ranges]
        self._stops = [stop for _, stop in ranges]
        self._pieces = [_request(file, *one) for one in ranges]

    def holding(self, group: int) -> Fetched | None:
        """Return this if it has the row group, else None."""
        return self if group in self.groups else None

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until all bytes are in memory; return whether they are. Raises the error of the first failed piece."""
        done, left = wait(self._pieces, timeout_s, "FIRST_EXCEPTION")
        for piece in done:
            piece.result()
        return not left

    def cancel(self) -> None:
        """Give up the pieces that are not requested yet."""
        for piece in self._pieces:
            piece.cancel()

    def read_at(self, start: int, stop: int) -> memoryview:
        """Return bytes start..stop; those of several pieces are joined, which copies them."""
        i = bisect_right(self._starts, start) - 1
        found: list[memoryview] = []
        at = start
        while at < stop and 0 <= i < len(self._starts) and self._starts[i] <= at < self._stops[i]:
            found.append(self._pieces[i].result()[at - self._starts[i] : stop - self._starts[i]])
            at += len(found[-1])
            i += 1
        if at < stop or not found:
            return _get(self.file, start, stop)  # nobody foresaw that these bytes are needed
        return found[0] if len(found) == 1 else memoryview(b"".join(found))


class Window:
    """Column chunks that are read from their beginnings to their ends, side by side, a few blocks at a time."""

    buffer_bytes = 64 << 10

    def __init__(
        self, file: FileId, metadata: pq.FileMetaData, wanted: Iterable[Range], *, first_rows: bool = False
    ) -> None:
        """Request the first block of each of these chunks, and the next ones unless only the `first_rows` are read.

        How many blocks the first rows of a chunk take is not known before. As soon as one chunk needs a further one,
        it is requested of all chunks and no block is given up: else each column would wait for requests of its own.
        """
        self.file, self.metadata, self._first_rows = file, metadata, first_rows
        self._following = 0 if first_rows else _NEXT_BLOCKS
        ordered = sorted(wanted)
        self._starts = [start for start, _ in ordered]
        self._stops = [min(stop + _PADDING, file.size) for _, stop in ordered]
        self._block = _block_bytes(len(ordered))
        self._lock = threading.Lock()
        self._held: list[dict[int, Future[memoryview]]] = [{} for _ in ordered]
        """The blocks of each chunk that are requested, by number."""
        for i in range(len(ordered)):
            self._blocks(i, 0, 0)

    def read_at(self, start: int, stop: int) -> memoryview:
        """Return bytes of one chunk; request the next blocks, and release those before them."""
        i = bisect_right(self._starts, start) - 1
        if i < 0 or not start < stop <= self._stops[i]:
            return _get(self.file, start, stop)
        begin = start - self._starts[i]
        first, last = begin // self._block, (stop - 1 - self._starts[i]) // self._block
        found = [block.result() for block in self._blocks(i, first, last)]
        joined = found[0] if len(found) == 1 else memoryview(b"".join(found))
        begin -= first * self._block
        return joined[begin : begin + stop - start]

    def _blocks(self, i: int, first: int, last: int) -> list[Future[memoryview]]:
        """Return blocks of a chunk; request them and the next ones, and give up all others."""
        numbers = range(first, 1 + max(last, first + self._following))
        with self._lock:
            held = self._held[i]
            for one in range(len(self._held)) if self._first_rows else [i]:
                self._request_blocks(one, numbers)
            if not self._first_rows:
                for number in [number for number in held if number not in numbers]:
                    held.pop(number).cancel()
            return [held[number] for number in range(first, last + 1)]

    def _request_blocks(self, i: int, numbers: range) -> None:
        """Request the blocks of a chunk that it has and that are not requested yet."""
        held, start, stop = self._held[i], self._starts[i], self._stops[i]
        for number in numbers:
            at = start + number * self._block
            if number not in held and at < stop:
                held[number] = _request(self.file, at, min(at + self._block, stop))


def window_bytes(columns: int) -> int:
    """Return what a window on so many columns holds at most."""
    return (1 + _NEXT_BLOCKS) * _block_bytes(columns) * columns


def _block_bytes(columns: int) -> int:
    return max(_LEAST_BLOCK_BYTES, min(_BLOCK_BYTES, _WINDOW_BYTES // ((1 + _NEXT_BLOCKS) * max(columns, 1))))


def _get(file: FileId, start: int, stop: int) -> memoryview:
    return stores.of(file.path).read_range(file, start, stop)


def side_by_side(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return the result for each item, in their order. Each may wait for the threads that read ranges."""
    with ThreadPoolExecutor(_CONNECTIONS, "scorer-side") as threads:
        return list(threads.map(work, items))


class _Meter:
    """Counts the bytes that arrive, and the time in which at least one request is on its way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes = self._requests = 0
        self._busy_s = self._since = 0.0

    def get(self, file: FileId, start: int, stop: int) -> memoryview:
        """Read a range."""
        with self._lock:
            if not self._requests:
                self._since = time.perf_counter()
            self._requests += 1
        try:
            return _get(file, start, stop)
        finally:
            with self._lock:
                self._requests -= 1
                self._bytes += stop - start
                if not self._requests:
                    self._busy_s += time.perf_counter() - self._since

    @property
    def bytes_per_s(self) -> float | None:
        """How fast the bytes arrived; None if there were too few to tell."""
        with self._lock:
            return self._bytes / self._busy_s if self._bytes >= _LEAST_MEASURED_BYTES and self._busy_s else None


def bytes_per_s() -> float | None:
    """Return how fast stores have given column chunks to this process; None if it read too few to tell."""
    return _meter.bytes_per_s


_meter = _Meter()
_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()


def _request(file: FileId, start: int, stop: int) -> Future[memoryview]:
    """Begin to read a range, on one of this process's connections."""
    return _threads().submit(_meter.get, file, start, stop)


def _threads() -> ThreadPoolExecutor:
    global _pool  # noqa: PLW0603 - made for the first request
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(_CONNECTIONS, "scorer-fetch")
        return _pool


def _forget_after_fork() -> None:
    global _lock, _meter, _pool
    _lock, _meter, _pool = threading.Lock(), _Meter(), None


os.register_at_fork(after_in_child=_forget_after_fork)
