"""Pages of a file as they are stored: checked, and given a checksum where they have none.

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

from scorer import thrift
from scorer.footers import unreadable
from scorer.patience import patiently

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

WINDOW = 8 << 20  # of a column chunk that is in memory at once, unless a page is larger
DATA, DICTIONARY, DATA_V2 = 0, 2, 3
"""Kinds of pages."""
COUNTED = {DATA: 5, DATA_V2: 8}
"""Field of a page's header that says how many values it has."""
_KIND, _SIZE, _CHECKSUM = 1, 3, 4
"""Other fields."""


class Unlike(Exception):
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

    def of(self, begin: int, size: int) -> Iterator[list[Page]]:
        """The pages of a column chunk, as many at once as the buffer holds; they are gone with the next ones."""
        buffer, held, left = _buffer(min(size, WINDOW)), 0, size
        while left or held:
            more = min(left, len(buffer) - held)
            self._fill(memoryview(buffer)[held : held + more], begin + size - left)
            held, left = held + more, left - more
            found, done = _cut(buffer, held)
            if not done and not left:
                raise Unlike(self._path)
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
                raise Unlike(self._path)
            done += got


_BUFFERS = threading.local()


def _buffer(size: int) -> bytearray:
    """Of this thread, and at least so large; to touch new memory each time would cost more than to copy."""
    held: bytearray = getattr(_BUFFERS, "held", bytearray())
    if len(held) < size:
        _BUFFERS.held = held = bytearray(size)
    return held


def _cut(buffer: bytearray, held: int) -> tuple[list[Page], int]:
    """Whole pages at the beginning of what is held, and where they end."""
    found, at = [], 0
    view = memoryview(buffer)
    while at < held:
        try:
            fields, body = thrift.fields(buffer, at)
        except (IndexError, ValueError, RecursionError):
            break  # the header goes on behind what is held, or is none
        if body > held or not {_KIND, 2, _SIZE} <= fields.keys():
            break
        size = thrift.integer(buffer, fields[_SIZE][1])[0]
        if size < 0 or body + size > held:
            break
        found.append(_page(view, fields, at, body, body + size))
        at = body + size
    return found, at


def _page(view: memoryview, fields: Mapping[int, thrift.Span], at: int, body: int, end: int) -> Page:
    """A page that begins at `at`, whose header ends at `body`."""
    kind = thrift.integer(view, fields[_KIND][1])[0]
    counted = fields.get(COUNTED.get(kind, 0))
    values = 0
    if counted is not None:
        inner, _ = thrift.fields(view, counted[1])
        values = thrift.integer(view, inner[1][1])[0] if 1 in inner else -1
    content = view[body:end]
    checksum = zlib.crc32(content)
    if _CHECKSUM in fields:
        if thrift.integer(view, fields[_CHECKSUM][1])[0] & 0xFFFFFFFF != checksum:
            raise Unlike(checksum)
        return Page(kind, values, (view[at:end],), 0)
    signed = checksum - (1 << 32) if checksum >> 31 else checksum
    header = thrift.struct(
        sorted(
            [(n, k, bytes(view[a:b])) for n, (k, a, b) in fields.items()]
            + [(_CHECKSUM, thrift.I32, thrift.number(signed))]
        )
    )
    return Page(kind, values, (header, content), len(header) - (body - at))


@contextmanager
def _complaints(path: str) -> Iterator[None]:
    """The disk's complaints, about what is read."""
    try:
        yield
    except OSError as error:
        raise unreadable(path, error) from error
