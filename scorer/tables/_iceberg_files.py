"""The files of an Iceberg table's metadata, read through scorer's own stores.

pyiceberg has clients of its own. With this class it takes the same ones as every other read of scorer, with the same
options and credentials. Its catalogs make requests of their own. Imported only where pyiceberg is.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pyiceberg.io import FileIO, InputFile, OutputFile

from scorer.locations import is_url, normal
from scorer.storage import stores
from scorer.storage.files import write_atomically

if TYPE_CHECKING:
    from pyiceberg.io import InputStream, OutputStream


IMPLEMENTATION = {"py-io-impl": f"{__name__}.StoreFiles"}
"""The property with which pyiceberg reads through this class."""
_AVRO, _MARKER_BYTES = b"Obj\x01", 16
_OTHER_NAMES = {"s3n": "s3", "wasb": "abfs", "wasbs": "abfss"}


def location(text: str) -> str:
    """Return where a file is, of which the metadata has this text: a local path, or a URL as scorer writes it."""
    kind, colon, rest = text.partition(":")
    if kind == "file" and colon:
        return os.path.abspath("/" + rest.lstrip("/"))
    if kind in _OTHER_NAMES and colon:
        text = _OTHER_NAMES[kind] + colon + rest.replace(".blob.", ".dfs.", 1)
    return normal(text) if is_url(text) else os.path.abspath(text)


class StoreFiles(FileIO):
    """The files that pyiceberg reads. Nothing is written through it."""

    def new_input(self, location: str) -> StoreFile:
        """Return the file at a location of the metadata."""
        return StoreFile(location)

    def new_output(self, location: str) -> OutputFile:
        """Raise, because an input is only read."""
        _refuse(location)

    def delete(self, location: str | InputFile | OutputFile) -> None:
        """Raise, because an input is only read."""
        _refuse(str(location))


class StoreFile(InputFile):
    """One file, which is read whole: metadata is small."""

    def __len__(self) -> int:
        """Return the size in bytes."""
        return stores.identity(location(self.location)).size

    def exists(self) -> bool:
        """Return whether the file is there."""
        try:
            stores.identity(location(self.location))
        except FileNotFoundError:
            return False
        return True

    def open(self, seekable: bool = True) -> InputStream:  # noqa: ARG002, FBT001, FBT002 - pyiceberg's signature
        """Return the file's bytes as a stream."""
        place = location(self.location)
        data = stores.path_of(place).read_bytes()
        if place.endswith(".avro") and not _is_whole(data):
            msg = f"no whole Avro file: {place}"
            raise ValueError(msg)
        return io.BytesIO(data)


def _is_whole(data: bytes) -> bool:
    """Return whether the blocks of an Avro file are all there.

    pyiceberg's decoder reads beyond the end of a damaged file, which may end the process.
    """
    if not data.startswith(_AVRO):
        return False
    try:
        at = len(_AVRO)
        while True:  # the entries of the header
            count, at = _number(data, at)
            if count < 0:
                _, at = _number(data, at)
            for _ in range(2 * abs(count)):
                size, at = _number(data, at)
                at = _skipped(data, at, size)
            if not count:
                break
        end, at = at, _skipped(data, at, _MARKER_BYTES)
        marker = data[end:at]
        while at < len(data):
            _, at = _number(data, at)
            size, at = _number(data, at)
            end = _skipped(data, at, size)
            at = _skipped(data, end, _MARKER_BYTES)
            if data[end:at] != marker:
                return False
    except IndexError:
        return False
    return True


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of Avro and where it ends; raise `IndexError` if it does not."""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:  # noqa: PLR2004 - the bit that says that more follows
            return (value >> 1) ^ -(value & 1), at


def _skipped(data: bytes, at: int, size: int) -> int:
    """Return the position behind so many bytes; raise `IndexError` if they are not there."""
    if not 0 <= size <= len(data) - at:
        raise IndexError
    return at + size


def _refuse(place: str) -> NoReturn:
    msg = f"an input is only read: {place}"
    raise PermissionError(msg)


class TableFiles(StoreFiles):
    """The files that pyiceberg reads and writes."""

    def new_output(self, location: str) -> OutputFile:
        """Return a file to write at a location of the metadata."""
        return NewStoreFile(location)

    def delete(self, location: str | InputFile | OutputFile) -> None:
        """Remove a file, if it is there."""
        _place(location if isinstance(location, str) else location.location).unlink(missing_ok=True)


class NewStoreFile(OutputFile):
    """A file that appears complete when its stream is closed."""

    def __len__(self) -> int:
        """Return the size in bytes."""
        return len(StoreFile(self.location))

    def exists(self) -> bool:
        """Return whether the file is there."""
        return StoreFile(self.location).exists()

    def to_input_file(self) -> InputFile:
        """Return the file to read it."""
        return StoreFile(self.location)

    def create(self, overwrite: bool = False) -> OutputStream:  # noqa: FBT001, FBT002 - pyiceberg's signature
        """Return a stream to which the file is written."""
        if not overwrite and self.exists():
            msg = f"the file is there already: {self.location}"
            raise FileExistsError(msg)
        return _Written(_place(self.location))


def _place(text: str) -> stores.AnyPath:
    return stores.path_of(location(text))


class _Written(io.BytesIO):
    """Bytes that are written to a file when this is closed without an error."""

    def __init__(self, place: stores.AnyPath) -> None:
        super().__init__()
        self._place = place

    def close(self) -> None:
        """Write the file."""
        if not self.closed:
            if isinstance(self._place, Path):
                self._place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._place, self.getvalue(), durable=True)
        super().close()
