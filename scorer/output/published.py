"""The files of a published output: their names, sizes and footers, on a local file system or on a store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from scorer.storage.files import files_in
from scorer.storage.stores import AnyPath, ObjectPath, exists, for_arrow, size_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    import pyarrow as pa

    from scorer.storage.files import FileId

T = TypeVar("T")
R = TypeVar("R")
_AT_ONCE, _WHOLE_AT_ONCE = 64, 4  # requests for footers, and for whole files, which are in memory


class Files:
    """The files below a folder. On a store they are listed once, and a footer is read with one request."""

    def __init__(self, top: AnyPath) -> None:
        self.top = top
        self._listed = top.files() if isinstance(top, ObjectPath) else None

    def names(self, unlisted: Callable[[str, OSError], None] | None = None) -> Iterator[str]:
        """Yield the name of every file, relative to the folder.

        `unlisted` is called with each local folder that cannot be listed, and the reason.
        """
        if isinstance(self.top, ObjectPath):
            yield from self._listed or ()
        else:
            yield from files_in(self.top, unlisted)

    def exists(self) -> bool:
        """Return whether the folder is there."""
        return exists(self.top) if self._listed is None else bool(self._listed)

    def size(self, name: str) -> int:
        """Return the size of a file; -1 if it is missing."""
        if self._listed is None:
            return size_of(self.top / name)
        return self._listed[name].size if name in self._listed else -1

    def source(self, name: str, *, whole: bool) -> Path | FileId | pa.BufferReader:
        """Return what `open_part` can open. Of an object it reads the footer only, unless all bytes are wanted."""
        path = self.top / name
        if not isinstance(path, ObjectPath):
            return path
        file = self._listed.get(name) if self._listed else None
        return for_arrow(path) if whole or file is None else file

    def each(self, function: Callable[[T], R], items: Iterable[T], *, whole: bool) -> Iterator[R]:
        """Yield the result for each item, in their order; on a store, several are computed at once."""
        if not isinstance(self.top, ObjectPath):
            yield from map(function, items)
            return
        with ThreadPoolExecutor(_WHOLE_AT_ONCE if whole else _AT_ONCE, "scorer-store") as threads:
            try:
                yield from threads.map(function, items)
            finally:
                threads.shutdown(cancel_futures=True)
