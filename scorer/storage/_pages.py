"""Read the stored pages of a column chunk: check their checksums, and add the missing ones.

| header | values, compressed | header | values, compressed | ...       a column chunk, starting with its dictionary
"""

from __future__ import annotations

import os
import threading
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from scorer.locations import is_url
from scorer.storage import _thrift as thrift
from scorer.storage import stores
from scorer.storage._thrift import I32
from scorer.storage.files import Changed, retry
from scorer.storage.footers import unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from scorer.storage.fetched import Fetched
    from scorer.storage.files import FileId


WINDOW = 8 << 20  # bytes of a column chunk in memory at once, unless a page is larger
DATA, DICTIONARY, DATA_V2 = 0, 2, 3
"""Page types."""
_DETAILS = {DATA: 5, DICTIONARY: 7, DATA_V2: 8}
"""Field of a page header with the details of each page type, such as the number of values."""
_TYPE, _UNCOMPRESSED_SIZE, _COMPRESSED_SIZE, _CHECKSUM = 1, 2, 3, 4
"""Other fields of a page header: type, uncompressed size, compressed size, checksum."""
_HEADER = {_TYPE, _UNCOMPRESSED_SIZE, _COMPRESSED_SIZE, _CHECKSUM, *_DETAILS.values()}
_LEVELS, _COMPRESSED = (5, 6), 7
"""Fields in the details of a DATA_V2 page."""
_ABSENT = (0, 0, 0)
_UNCOMPRESSED = "UNCOMPRESSED"


class NotCopyable(Exception):
    """A column cannot be copied: it is not stored in the form that the plan needs."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page with its header, ready to be written."""

    kind: int
    values: int
    pieces: tuple[Any, ...]
    added: int
    """Bytes added to the input's page: those of a new checksum."""


class Pages:
    """A file to copy from; its pages pass through one buffer of this thread."""

    def __init__(self, path: str, read: Callable[[memoryview, int], int]) -> None:
        """`read(buffer, at)` reads bytes from `at` on into a buffer, and returns how many."""
        self._path, self._read = path, read

    @classmethod
    @contextmanager
    def opened(cls, file: FileId) -> Iterator[Pages]:
        """Open the file, and close it at the end."""
        path = file.path
        if is_url(path):
            yield cls(path, _reading_ranges(file))
            return
        with _map_read_errors(path):
            handle = retry(lambda: os.open(path, os.O_RDONLY))
        try:
            yield cls(path, lambda buffer, at: os.preadv(handle, [buffer], at))
        finally:
            os.close(handle)

    def chunk(self, begin: int, size: int, codec: str) -> Iterator[list[Page]]:
        """Yield the pages of a column chunk, as many at once as the buffer holds; the next ones overwrite them."""
        buffer, held, left = _buffer(min(size, WINDOW)), 0, size
        while left or held:
            step = min(left, len(buffer) - held)
            self._fill(memoryview(buffer)[held : held + step], begin + size - left)
            held, left = held + step, left - step
            found, done = _split_pages(buffer, held, codec)
            if not done and not left:
                raise NotCopyable(self._path)
            if not done and held == len(buffer):  # one page is larger than the buffer
                full = buffer
                buffer = _buffer(2 * held)
                buffer[:held] = full[:held]
                continue
            yield found
            buffer[: held - done] = buffer[done:held]
            held -= done

    def _fill(self, buffer: memoryview, at: int) -> None:
        """Fill the buffer with the file's bytes from `at` on."""
        done = 0
        while done < len(buffer):
            with _map_read_errors(self._path):
                got = retry(partial(self._read, buffer[done:], at + done))
            if not got:
                raise NotCopyable(self._path)
            done += got


class FetchedPages:
    """What was fetched of a file on a store, to copy from."""

    def __init__(self, fetched: Fetched) -> None:
        self._fetched = fetched

    def chunk(self, begin: int, size: int, codec: str) -> Iterator[list[Page]]:
        """Yield the pages of a column chunk, all at once: they are in memory."""
        with _map_read_errors(self._fetched.file.path):
            chunk = self._fetched.read_at(begin, begin + size)
        found, done = _split_pages(chunk, size, codec)
        if done != size:
            raise NotCopyable(self._fetched.file.path)
        yield found


def _reading_ranges(file: FileId) -> Callable[[memoryview, int], int]:
    """Return a function that reads an object on a store into a buffer."""
    source = stores.source_of(file)

    def read(buffer: memoryview, at: int) -> int:
        found = source(at, min(at + len(buffer), file.size)) if at < file.size else b""
        buffer[: len(found)] = found
        return len(found)

    return read


_BUFFERS = threading.local()


def _buffer(size: int) -> bytearray:
    """Return this thread's buffer of at least `size` bytes: page faults on fresh memory cost more than the copy."""
    held: bytearray = getattr(_BUFFERS, "held", bytearray())
    if len(held) < size:
        _BUFFERS.held = held = bytearray(size)
    return held


def _split_pages(buffer: bytearray | memoryview, held: int, codec: str) -> tuple[list[Page], int]:
    """Return the complete pages in the first `held` bytes, and the end of the last one."""
    found, at = [], 0
    view = memoryview(buffer)
    while at < held:
        try:
            fields, body = thrift.fields(buffer, at)
        except (IndexError, ValueError, RecursionError):
            break  # the header is incomplete, or damaged
        if body > held:
            break
        if any(fields.get(number, _ABSENT)[0] != I32 for number in (_TYPE, _UNCOMPRESSED_SIZE, _COMPRESSED_SIZE)):
            raise NotCopyable(at)
        size = thrift.integer(buffer, fields[_COMPRESSED_SIZE][1])[0]
        if size < 0:
            raise NotCopyable(at)
        if body + size > held:
            break
        try:
            found.append(_page(view, fields, at, body, body + size, codec))
        except (IndexError, ValueError, RecursionError, pa.ArrowException, OSError) as error:
            raise NotCopyable(at) from error
        at = body + size
    return found, at


def _page(view: memoryview, fields: Mapping[int, thrift.Span], at: int, body: int, end: int, codec: str) -> Page:
    """Return the page whose header begins at `at` and ends at `body`."""
    kind = thrift.integer(view, fields[_TYPE][1])[0]
    own = fields.get(_DETAILS.get(kind, 0), _ABSENT)
    if own[0] != thrift.STRUCT or not fields.keys() <= _HEADER:
        raise NotCopyable(kind)
    head, _ = thrift.fields(view, own[1])
    values = thrift.integer(view, head[1][1])[0] if 1 in head else -1
    content = view[body:end]
    checksum = zlib.crc32(content)
    if _CHECKSUM in fields:
        if thrift.integer(view, fields[_CHECKSUM][1])[0] & 0xFFFFFFFF != checksum:
            raise NotCopyable(checksum)
        return Page(kind, values, (view[at:end],), 0)
    plain = thrift.integer(view, fields[_UNCOMPRESSED_SIZE][1])[0]
    if kind == DATA_V2:  # the levels come first and are not compressed
        levels = sum(thrift.integer(view, head[number][1])[0] for number in _LEVELS if number in head)
        codec = _UNCOMPRESSED if head.get(_COMPRESSED, _ABSENT)[0] == thrift.NO else codec
        _check_content(content[levels:], plain - levels, codec)
    else:
        _check_content(content, plain, codec)
    signed = checksum - (1 << 32) if checksum >> 31 else checksum
    header = thrift.struct(
        sorted(
            [(n, k, bytes(view[a:b])) for n, (k, a, b) in fields.items()] + [(_CHECKSUM, I32, thrift.number(signed))]
        )
    )
    return Page(kind, values, (header, content), len(header) - (body - at))


def _check_content(content: memoryview, plain: int, codec: str) -> None:
    """Raise if the codec finds the content damaged: a new checksum must not make damaged bytes look valid.

    Levels and values are not decoded: that would make a copy a third slower.
    """
    if codec == _UNCOMPRESSED:
        if len(content) != plain:
            raise NotCopyable(plain)
    elif plain and codec == "LZ4":
        pa.decompress(content, plain, codec="lz4_raw")
        with suppress(pa.ArrowException, OSError):  # damaged LZ4 often ends early without an error
            pa.decompress(content, plain - 1, codec="lz4_raw")
            raise NotCopyable(plain)
    elif plain:
        pa.decompress(content, plain, codec=codec.lower())


@contextmanager
def _map_read_errors(path: str) -> Iterator[None]:
    """Convert OSErrors of a read to `UnreadableFile`."""
    try:
        yield
    except Changed:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
