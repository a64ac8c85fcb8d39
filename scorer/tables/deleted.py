"""The numbers of deleted rows: one file beside the plan, of which a part reads what it needs.

The file has the numbers of all files one after the other, in NumPy's format, so that a part maps its own into memory,
or reads its own range on a store. A `Slice` of the plan says where those of a file are.
"""

from __future__ import annotations

import hashlib
import io
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from scorer.errors import InputChanged
from scorer.locations import is_url
from scorer.storage import stores
from scorer.storage.files import retry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.storage.files import FileId


NAME = "deleted.npy"
_HEADER_BYTES = 128  # as NumPy writes it for one dimension
_WIDTH = 8
NONE = np.empty(0, np.int64)

Slice = tuple[int, int]
"""Where the numbers of one file are in the list of all: the first one, and how many."""


def as_file(numbers: Sequence[np.ndarray]) -> bytes:
    """Return the contents of the file with the numbers of several files."""
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate([NONE, *numbers]).astype("<i8"), allow_pickle=False)
    return buffer.getvalue()


def digest(data: bytes) -> str:
    """Return the digest of such contents, which the plan has."""
    return hashlib.sha256(data).hexdigest()


def first_live(deleted: np.ndarray, rows: int) -> int:
    """Return how many stored rows hold the first `rows` rows that are not deleted."""
    if not rows:
        return 0
    before = deleted - np.arange(len(deleted))  # live rows before each deleted one
    return rows + int(np.searchsorted(before, rows - 1, side="right"))


class DeletedRows:
    """The deleted rows of a plan, read when they are needed."""

    def __init__(self, location: str) -> None:
        self._location = location

    def between(self, where: Slice | None, start: int, stop: int) -> np.ndarray:
        """Return the numbers from `start` up to `stop` of the file whose numbers are at `where`."""
        if where is None:
            return NONE
        found = self._numbers(*where)
        low, high = np.searchsorted(found, (start, stop))
        return found[low:high]

    def _numbers(self, first: int, count: int) -> np.ndarray:
        if not is_url(self._location):
            return self._mapped[first : first + count]
        begin = _HEADER_BYTES + first * _WIDTH
        data = stores.of(self._location).read_range(self._object, begin, begin + count * _WIDTH)
        return np.frombuffer(data, "<i8")

    @cached_property
    def _mapped(self) -> np.ndarray:
        try:
            return retry(lambda: np.load(self._location, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise _unreadable(self._location, error) from error

    @cached_property
    def _object(self) -> FileId:
        try:
            return stores.identity(self._location)
        except OSError as error:
            raise _unreadable(self._location, error) from error


def _unreadable(location: str, error: Exception) -> InputChanged:
    return InputChanged(
        "the list of deleted rows cannot be read",
        where=location,
        expected="the file that was written with the plan",
        found=str(error).partition("\n")[0],
        hint="start again with --overwrite",
    )
