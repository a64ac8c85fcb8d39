"""Pages of a file as they are stored: checked by their checksum, or decompressed once and given one.

| header | values, compressed | header | values, compressed | ...       a column chunk, from its dictionary on
"""

from __future__ import annotations

import os
import threading
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from scorer.storage import _thrift as thrift
from scorer.storage._thrift import I32
from scorer.storage.files import patiently
from scorer.storage.footers import unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


WINDOW = 8 << 20  # of a column chunk that is in memory at once, unless a page is larger
DATA, DICTIONARY, DATA_V2 = 0, 2, 3
"""Kinds of pages."""
_HEADS = {DATA: 5, DICTIONARY: 7, DATA_V2: 8}
"""Field of a page's header that tells more of this kind, such as how many values it has."""
_KIND, _PLAIN, _SIZE, _CHECKSUM = 1, 2, 3, 4
"""Other fields."""
_HEADER = {_KIND, _PLAIN, _SIZE, _CHECKSUM, *_HEADS.values()}
_LEVELS, _COMPRESSED = (5, 6), 7
"""Fields of what is told of a second kind of data page."""
_ABSENT = (0, 0, 0)
_UNCOMPRESSED = "UNCOMPRESSED"


class NotCopyable(Exception):
    """A column is not stored as it has to be."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page with its header, as it will be written."""

    kind: int
    values: int
    pieces: tuple[Any, ...]
    added: int
    """Bytes that the source's page does not have."""


class Pages:
    """A file to copy from, through one buffer of this thread."""

    def __init__(self, path: str, handle: int) -> None:
        self._path, self._handle = path, handle

    @classmethod
    @contextmanager
    def opened(cls, path: str) -> Iterator[Pages]:
        """The file, closed at the end."""
        with _complaints(path):
            handle = patiently(lambda: os.open(path, os.O_RDONLY))
        try:
            yield cls(path, handle)
        finally:
            os.close(handle)

    def of(self, begin: int, size: int, codec: str) -> Iterator[list[Page]]:
        """The pages of a column chunk, as many at once as the buffer holds; they are gone with the next ones."""
        buffer, held, left = _buffer(min(size, WINDOW)), 0, size
        while left or held:
            more = min(left, len(buffer) - held)
            self._fill(memoryview(buffer)[held : held + more], begin + size - left)
            held, left = held + more, left - more
            found, done = _cut(buffer, held, codec)
            if not done and not left:
                raise NotCopyable(self._path)
            if not done and held == len(buffer):  # a page that is larger than the buffer
                whole = buffer
                buffer = _buffer(2 * held)
                buffer[:held] = whole[:held]
                continue
            yield found
            buffer[: held - done] = buffer[done:held]
            held -= done

    def _fill(self, buffer: memoryview, at: int) -> None:
        """Bytes of the file from here on."""
        done = 0
        while done < len(buffer):
            with _complaints(self._path):
                got = patiently(partial(os.preadv, self._handle, [buffer[done:]], at + done))
            if not got:
                raise NotCopyable(self._path)
            done += got


_BUFFERS = threading.local()


def _buffer(size: int) -> bytearray:
    """Of this thread, and at least so large; to touch new memory each time would cost more than to copy."""
    held: bytearray = getattr(_BUFFERS, "held", bytearray())
    if len(held) < size:
        _BUFFERS.held = held = bytearray(size)
    return held


def _cut(buffer: bytearray, held: int, codec: str) -> tuple[list[Page], int]:
    """Whole pages at the beginning of what is held, and where they end."""
    found, at = [], 0
    view = memoryview(buffer)
    while at < held:
        try:
            fields, body = thrift.fields(buffer, at)
        except (IndexError, ValueError, RecursionError):
            break  # the header goes on behind what is held, or is none
        if body > held:
            break
        if any(fields.get(number, _ABSENT)[0] != I32 for number in (_KIND, _PLAIN, _SIZE)):
            raise NotCopyable(at)
        size = thrift.integer(buffer, fields[_SIZE][1])[0]
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
    """A page that begins at `at`, whose header ends at `body`."""
    kind = thrift.integer(view, fields[_KIND][1])[0]
    own = fields.get(_HEADS.get(kind, 0), _ABSENT)
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
    plain = thrift.integer(view, fields[_PLAIN][1])[0]
    if kind == DATA_V2:  # its levels come first, and are not compressed
        levels = sum(thrift.integer(view, head[number][1])[0] for number in _LEVELS if number in head)
        codec = _UNCOMPRESSED if head.get(_COMPRESSED, _ABSENT)[0] == thrift.NO else codec
        _unpack(content[levels:], plain - levels, codec)
    else:
        _unpack(content, plain, codec)
    signed = checksum - (1 << 32) if checksum >> 31 else checksum
    header = thrift.struct(
        sorted(
            [(n, k, bytes(view[a:b])) for n, (k, a, b) in fields.items()] + [(_CHECKSUM, I32, thrift.number(signed))]
        )
    )
    return Page(kind, values, (header, content), len(header) - (body - at))


def _unpack(content: memoryview, plain: int, codec: str) -> None:
    """Raise where the content is damaged as far as its codec can tell: a checksum must not vouch for that."""
    if codec == _UNCOMPRESSED:
        if len(content) != plain:
            raise NotCopyable(plain)
    elif plain:
        pa.decompress(content, plain, codec="lz4_raw" if codec == "LZ4" else codec.lower())


@contextmanager
def _complaints(path: str) -> Iterator[None]:
    """The disk's complaints, about what is read."""
    try:
        yield
    except OSError as error:
        raise unreadable(path, error) from error
