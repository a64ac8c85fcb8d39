"""Stores that scorer only reads from: web servers, Hadoop, and the protocols that fsspec knows, such as hf and sftp.

A web server has no list of its files, so a file is named by its whole URL. Files of the others have no ETag that a
read can be bound to: they are known by their size, and by their time of change or whatever else identifies them. That
is compared before a file is read, at most every few seconds.
"""

from __future__ import annotations

import errno
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from urllib.parse import unquote

from scorer.errors import InputError
from scorer.locations import scheme, split
from scorer.storage.files import Changed, FileId, retry
from scorer.storage.objects import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import pyarrow.fs as pa_fs

T = TypeVar("T")
_CHECKED_S = 10.0
_TAGS = ("ETag", "etag", "e_tag", "blob_id", "checksum", "sha")
_TIMES = ("mtime", "LastModified", "last_modified", "modified", "updated", "created")
"""What file systems of fsspec call the identity of some contents, and the time of their change."""


class WebStore(ObjectStore):
    """A web server: files by GET, whose URLs may hold %20 and the like."""

    def objects(self, location: str) -> NoReturn:
        """Raise, because a web server has no list of its files."""
        raise OSError(errno.ENOTSUP, "a web server has no list of its files", location)

    def folder(self, location: str) -> NoReturn:
        """Raise, because a web server has no list of its files."""
        self.objects(location)

    def identity(self, location: str) -> FileId:
        """Return which file is there, by its ETag or else its time of change."""
        return replace(super().identity(location), path=location)

    def read_with_identity(self, location: str) -> tuple[bytes, FileId]:
        """Return a whole file, and which one it is."""
        data, file = super().read_with_identity(location)
        return data, replace(file, path=location)

    def _key(self, location: str) -> str:
        return unquote(super()._key(location))


class FileSystemStore(ObjectStore):
    """The methods of an object store that read, for a file system; the others raise."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._waits = ()
        self._checked: dict[FileId, float] = {}

    def objects(self, location: str) -> Iterator[FileId]:
        """Yield every file below a location, in the order of their names."""
        yield from sorted(self._read(lambda: self._listed(location, deep=True), location)[0], key=lambda one: one.path)

    def folder(self, location: str) -> tuple[list[FileId], list[str]]:
        """Return the files directly below a location, and the locations of the folders there."""
        return self._read(lambda: self._listed(location, deep=False), location)

    def identity(self, location: str) -> FileId:
        """Return which file is there; raise FileNotFoundError if there is none."""
        return self._read(lambda: self._found(location), location)

    def read_with_identity(self, location: str) -> tuple[bytes, FileId]:
        """Return a whole file, and which one it is."""
        file = self.identity(location)
        return bytes(self.read_range(file, 0, file.size)), file

    def read_range(self, file: FileId, start: int, stop: int) -> memoryview:
        """Return bytes start..stop of this file; raise `Changed` if another one is there now."""
        if time.monotonic() - self._checked.get(file, -_CHECKED_S) >= _CHECKED_S:
            if self.identity(file.path) != file:
                raise Changed(errno.EREMCHG, "another file is there now", file.path)
            self._checked[file] = time.monotonic()
        data = self._read(lambda: self._bytes(file.path, start, stop), file.path)
        if len(data) != stop - start:
            raise Changed(errno.EREMCHG, f"{len(data)} bytes instead of {stop - start}", file.path)
        return memoryview(data)

    def copy(self, source: str, target: str) -> NoReturn:  # noqa: ARG002 - the signature of a store
        """Raise, because scorer does not write here."""
        self._refuse(target)

    def remove(self, locations: Any) -> NoReturn:  # noqa: ANN401 - locations as text
        """Raise, because scorer does not write here."""
        self._refuse(str(next(iter(locations), self.root)))

    def _put(self, location: str, data: bytes | memoryview, mode: Any) -> NoReturn:  # noqa: ANN401, ARG002 - as above
        self._refuse(location)

    def _refuse(self, location: str) -> NoReturn:
        raise OSError(errno.EROFS, f"scorer only reads from {scheme(self.root)}://", location)

    def _read(self, attempt: Callable[[], T], location: str) -> T:
        with _as_os_errors(location):
            return retry(attempt)

    def _listed(self, location: str, *, deep: bool) -> tuple[list[FileId], list[str]]:
        """Return the files and the folders below a location; only those directly below it if not `deep`."""
        raise NotImplementedError

    def _found(self, location: str) -> FileId:
        raise NotImplementedError

    def _bytes(self, location: str, start: int, stop: int) -> bytes:
        raise NotImplementedError


class FsspecStore(FileSystemStore):
    """What fsspec reads."""

    def __init__(self, root: str, files: Any) -> None:  # noqa: ANN401 - fsspec is untyped
        super().__init__(root)
        self._files = files
        self._base = self._path(root).strip("/")

    def _listed(self, location: str, *, deep: bool) -> tuple[list[FileId], list[str]]:
        self._files.invalidate_cache()
        path = self._path(location)
        if not self._files.isdir(path):
            return [], []
        found = self._files.find(path, detail=True).values() if deep else self._files.ls(path, detail=True)
        files = [self._file_id(one) for one in found if one["type"] == "file"]
        return files, [self._location(one["name"]) for one in found if one["type"] == "directory"]

    def _found(self, location: str) -> FileId:
        self._files.invalidate_cache()
        info = self._files.info(self._path(location))
        if info["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, "a folder", location)
        return replace(self._file_id(info), path=location)

    def _bytes(self, location: str, start: int, stop: int) -> bytes:
        return bytes(self._files.cat_file(self._path(location), start=start, end=stop)) if stop > start else b""

    def _path(self, location: str) -> str:
        return str(self._files._strip_protocol(location))  # noqa: SLF001 - fsspec's way from a URL to a path

    def _location(self, name: str) -> str:
        inside = name.strip("/").removeprefix(self._base).lstrip("/")
        return f"{self.root}/{inside}"

    def _file_id(self, meta: Mapping[str, Any]) -> FileId:
        return FileId(self._location(meta["name"]), int(meta["size"]), _version(meta))


class ArrowStore(FileSystemStore):
    """What a file system of Arrow reads, such as Hadoop's."""

    def __init__(self, root: str, files: pa_fs.FileSystem) -> None:
        super().__init__(root)
        self._files = files

    def _listed(self, location: str, *, deep: bool) -> tuple[list[FileId], list[str]]:
        from pyarrow.fs import FileSelector, FileType  # noqa: PLC0415 - only for this protocol

        found = self._files.get_file_info(FileSelector(self._path(location), allow_not_found=True, recursive=deep))
        files = [self._file_id(one) for one in found if one.type == FileType.File]
        return files, [self._location(one.path) for one in found if one.type == FileType.Directory]

    def _found(self, location: str) -> FileId:
        info = self._files.get_file_info(self._path(location))
        if not info.is_file:
            raise FileNotFoundError(errno.ENOENT, "no such file", location)
        return replace(self._file_id(info), path=location)

    def _bytes(self, location: str, start: int, stop: int) -> bytes:
        with self._files.open_input_file(self._path(location)) as file:
            return bytes(file.read_at(stop - start, start))

    def _path(self, location: str) -> str:
        return f"/{split(location)[1]}"

    def _location(self, name: str) -> str:
        return f"{self.root}/{name.strip('/')}"

    def _file_id(self, meta: Any) -> FileId:  # noqa: ANN401 - a FileInfo
        return FileId(self._location(meta.path), meta.size, meta.mtime_ns or 0)


def open_root(root: str, writable: str) -> FileSystemStore:
    """Return the store of another protocol; raise `InputError` if nothing here reads it. `writable` are schemes."""
    kind = scheme(root)
    if kind == "hdfs":
        return _hadoop(root)
    import fsspec  # noqa: PLC0415 - Dask's, and only for these protocols

    if kind in {"file", "local"}:
        raise InputError(
            "a local file needs no URL",
            where=root,
            expected=f"a path, or a URL with {writable}",
            found=f"{kind}://",
            hint="pass its path, such as /data/orders",
        )
    if kind not in fsspec.available_protocols():
        raise InputError(
            f"scorer cannot read or write {kind}://",
            where=root,
            expected=f"a local path, or a URL with {writable}, http, https, hdfs or a protocol of fsspec",
            found=f"{kind}://",
            hint="copy it to one of these first",
        )
    try:
        files, _ = fsspec.core.url_to_fs(root, use_listings_cache=False)
    except ImportError as error:
        raise InputError(
            f"reading from {kind}:// needs another package",
            where=root,
            expected=f"the package with which fsspec reads {kind}://",
            found=str(error),
            hint="install it where scorer and its workers run",
        ) from error
    except Exception as error:  # what a file system of fsspec raises is its own
        raise InputError(
            f"{kind}:// cannot be read",
            where=root,
            expected="a server that answers",
            found=f"{type(error).__name__}: {error}",
            hint="check the host, and what fsspec needs for it",
        ) from error
    return FsspecStore(root, files)


def _hadoop(root: str) -> ArrowStore:
    from pyarrow.fs import HadoopFileSystem  # noqa: PLC0415 - only for this protocol

    try:
        return ArrowStore(root, HadoopFileSystem.from_uri(root))
    except Exception as error:
        raise InputError(
            "hdfs:// cannot be read here",
            where=root,
            expected="Hadoop's client, with JAVA_HOME, HADOOP_HOME and CLASSPATH set",
            found=str(error).partition("\n")[0],
            hint='export CLASSPATH="$($HADOOP_HOME/bin/hdfs classpath --glob)" where scorer and its workers run',
        ) from error


@contextmanager
def _as_os_errors(location: str) -> Iterator[None]:
    """Convert what a file system raises to OSErrors with its words."""
    try:
        yield
    except Changed:
        raise
    except Exception as error:
        words = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        known = next((kind for kind in (FileNotFoundError, PermissionError) if isinstance(error, kind)), OSError)
        number = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES}.get(known, errno.EREMOTEIO)
        raise known(number, words, location) from error


def _version(info: Mapping[str, Any]) -> int | str:
    """Return what identifies the contents of a file of fsspec: a tag, or the time of change in nanoseconds."""
    tag = next((info[name] for name in _TAGS if info.get(name)), None)
    if tag is not None:
        return str(tag)
    at = next((info[name] for name in _TIMES if info.get(name)), 0)
    at = at.timestamp() if isinstance(at, datetime) else at
    return round(at * 1e6) * 1000 if isinstance(at, int | float) else str(at)
