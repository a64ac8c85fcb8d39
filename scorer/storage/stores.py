"""Where a location is: the store behind a URL, with its options and this process's own credentials.

Only locations and options travel to workers, never credentials: each process makes its own clients, from its own
environment.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import threading
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from scorer.display.words import cut
from scorer.errors import InputError
from scorer.storage.files import Changed, FileId, file_digest, file_id
from scorer.storage.locations import is_below, is_url, normal, scheme, split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import pyarrow as pa
    from obstore.store import ClientConfig

    from scorer.errors import ScorerError
    from scorer.storage.objects import ObjectStore


SCHEMES = ("s3", "gs", "az", "abfss", "http", "https")
"""Schemes that obstore serves; the names of `scorer.storage.locations.normal`."""
WRITABLE = ("s3", "gs", "az", "abfss")
"""Those of them on which an output can be."""
_TIMEOUT, _CONNECT_TIMEOUT = timedelta(seconds=120), timedelta(seconds=5)
_RETRY = {
    "max_retries": 10,
    "retry_timeout": timedelta(seconds=180),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=15), "base": 2},
}
_HASTY = _RETRY | {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}
_SAID = 200  # so many characters of what a store said
_LISTS = 32  # folders that are listed at once
_options: dict[str, str] = {}
_stores: dict[tuple[str, bool], ObjectStore] = {}
_lock = threading.Lock()


def configure(options: Mapping[str, str]) -> None:
    """Set the options of all stores of this process, such as endpoint and region; they hold no secrets."""
    with _lock:
        if dict(options) != _options:
            _options.clear()
            _options.update(options)
            _stores.clear()


def of(location: str, *, hasty: bool = False) -> ObjectStore:
    """Return the store of a URL. One that is `hasty` gives up after seconds, for questions before a run."""
    root, _ = split(location)
    with _lock:
        found = _stores.get((root, hasty))
        if found is None:
            found = _stores[root, hasty] = _open(root, hasty=hasty)
        return found


def identity(location: str, *, hasty: bool = False) -> FileId:
    """Return which contents are at a location; raise FileNotFoundError if there are none."""
    return of(location, hasty=hasty).identity(location) if is_url(location) else file_id(location)


def changes(files: Sequence[FileId]) -> tuple[list[str], int]:
    """Return the paths of those files that are not the same any more, and how many of them are gone.

    Objects are looked up in the lists of their folders, because there may be 100,000 of them.
    """
    folders = sorted({file.path.rpartition("/")[0] for file in files if is_url(file.path)})
    listed = _listed(folders) if folders else {}
    now = [(file, listed.get(file.path) if is_url(file.path) else _local(file.path)) for file in files]
    changed = [(file.path, current) for file, current in now if current != file]
    return [path for path, _ in changed], sum(current is None for _, current in changed)


def _listed(folders: Sequence[str]) -> dict[str, FileId]:
    """Return the objects directly in these folders; those of a folder that cannot be listed are missing."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - only for stores

    def files(folder: str) -> list[FileId]:
        try:
            return of(folder).folder(folder)[0]
        except OSError:
            return []

    with ThreadPoolExecutor(min(_LISTS, len(folders))) as pool:
        return {file.path: file for found in pool.map(files, folders) for file in found}


def _local(path: str) -> FileId | None:
    """Return which file is at a path, or None if nothing is; one of another size if that is unknown."""
    try:
        return file_id(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return FileId(path, -1, 0)


def source_of(file: FileId) -> Callable[[int, int], memoryview]:
    """Return a function that reads a range of an object, and raises `Changed` if another one is there now."""
    store = of(file.path)
    return lambda start, stop: store.read_range(file, start, stop)


def path_of(location: str) -> AnyPath:
    """Return the path of a location: on a store for a URL, else a local one."""
    return ObjectPath(location) if is_url(location) else Path(location)


class ObjectPath:
    """A path on a store, with those methods of pathlib.Path that scorer uses.

    A folder exists while an object lies below it, so that mkdir and rmdir have nothing to do. It is pickled as text.
    """

    __slots__ = ("_text",)

    def __init__(self, location: str) -> None:
        self._text = normal(location)

    def __str__(self) -> str:
        """Return the location."""
        return self._text

    def __repr__(self) -> str:
        """Return the location as in code."""
        return f"ObjectPath({self._text!r})"

    def __eq__(self, other: object) -> bool:
        """Return whether both are one location."""
        return isinstance(other, ObjectPath) and other._text == self._text

    def __hash__(self) -> int:
        """Return the hash of the location."""
        return hash(self._text)

    def __lt__(self, other: ObjectPath) -> bool:
        """Return whether this location sorts before the other."""
        return self._text < other._text

    def __truediv__(self, name: str) -> ObjectPath:
        """Return the path of something below."""
        return ObjectPath(f"{self._text}/{name}")

    @property
    def name(self) -> str:
        """The last part of the key; '' for a bucket."""
        return split(self._text)[1].rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The extension of the name, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def stem(self) -> str:
        """The name without its extension."""
        return PurePosixPath(self.name).stem

    @property
    def parts(self) -> tuple[str, ...]:
        """The bucket with its scheme, and the parts of the key."""
        root, key = split(self._text)
        return (root, *(part for part in key.split("/") if part))

    @property
    def parent(self) -> ObjectPath:
        """The path above; that of a bucket is the bucket."""
        root, key = split(self._text)
        return ObjectPath(f"{root}/{key.rpartition('/')[0]}")

    @property
    def parents(self) -> tuple[ObjectPath, ...]:
        """All paths above, the nearest first."""
        here, found = self, []
        while here.name:
            here = here.parent
            found.append(here)
        return tuple(found)

    @property
    def store(self) -> ObjectStore:
        """The store on which the path is, with this process's credentials."""
        return of(self._text)

    def with_name(self, name: str) -> ObjectPath:
        """Return the path of another name beside this one."""
        return self.parent / name

    def is_relative_to(self, other: object) -> bool:
        """Return whether this is the other path, or below it."""
        return is_url(str(other)) and is_below(self._text, str(other))

    def relative_to(self, other: ObjectPath) -> PurePosixPath:
        """Return the path below another one."""
        return PurePosixPath(self._text.removeprefix(str(other)).lstrip("/"))

    def exists(self) -> bool:
        """Return whether there is an object with this name, or one below it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Return whether there is an object with this name."""
        try:
            self.store.identity(self._text)
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Return whether an object lies below this name."""
        return any(True for _ in self.store.objects(self._text))

    def files(self) -> dict[str, FileId]:
        """Return every object below, by its name relative to this path; the listing has the sizes.

        Empty objects with which other programs mark folders are left out. Their names end with a slash, which the
        client does not show, so that there is no object with the name that it shows.
        """
        found = {file.path.removeprefix(f"{self._text}/"): file for file in self.store.objects(self._text)}
        folders = {str(folder) for name in found for folder in PurePosixPath(name).parents}
        empty = [name for name, file in found.items() if not file.size]
        markers = {name for name in empty if name in folders or not (self / name).is_file()}
        return {name: file for name, file in found.items() if name not in markers}

    def iterdir(self) -> Iterator[ObjectPath]:
        """Yield the objects and folders directly below."""
        files, folders = self.store.folder(self._text)
        yield from (ObjectPath(path) for path in sorted([file.path for file in files] + folders))

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Yield the objects and folders below that match a pattern, whose parts are matched folder by folder."""
        first, _, rest = pattern.partition("/")
        for path in self.iterdir():
            if fnmatch.fnmatchcase(path.name, first):
                yield from path.glob(rest) if rest else (path,)

    def stat(self) -> FileId:
        """Return which object is there, with its size."""
        return self.store.identity(self._text)

    def read_bytes(self) -> bytes:
        """Return the object's bytes."""
        return self.store.read(self._text)

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the object's text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> None:
        """Write the object, whatever is there."""
        self.store.put(self._text, data)

    def write_text(self, text: str, encoding: str = "utf-8") -> None:
        """Write the object, whatever is there."""
        self.write_bytes(text.encode(encoding))

    def unlink(self, *, missing_ok: bool = True) -> None:
        """Remove the object. A store does not say whether there was one."""
        del missing_ok
        self.store.remove([self._text])

    def mkdir(self, **_: object) -> None:
        """Do nothing: a store has no folders."""

    def rmdir(self) -> None:
        """Do nothing: a store has no folders."""


@contextmanager
def explaining(kind: type[ScorerError]) -> Iterator[None]:
    """Convert what a store answered, if it is an error, to an error of this kind; local errors stay as they are."""
    try:
        yield
    except OSError as error:
        location = error.filename
        if not isinstance(location, str) or not is_url(location):
            raise
        raise _explained(kind, error, location) from error


def _explained(kind: type[ScorerError], error: OSError, location: str) -> ScorerError:
    said = error.strerror or str(error)
    if "NoSuchBucket" in said or "ContainerNotFound" in said:
        return kind(
            "there is no such bucket",
            where=location,
            expected="a bucket that can be listed",
            found=f"none with the name {split(location)[0]}",
            hint="check the name, and the address of the server",
        )
    if isinstance(error, PermissionError):
        return kind(
            "the store refuses access",
            where=location,
            expected="the right to list and to read",
            found=cut(said, _SAID),
            hint="check the credentials in the environment of scorer, and what they may do",
        )
    return kind(
        "the store does not answer as expected",
        where=location,
        expected="an answer",
        found=cut(said, _SAID),
        hint="check the address of the server and the network, then repeat the command",
    )


AnyPath = Path | ObjectPath
"""A path on a local file system, or on a store."""


def exists(path: AnyPath) -> bool:
    """Return whether a file or folder is there; on a store, an error is raised, because it says nothing."""
    return path.exists() if isinstance(path, ObjectPath) else os.path.exists(path)


def is_folder(path: AnyPath) -> bool:
    """Return whether a folder is there; on a store, an error is raised, because it says nothing."""
    return path.is_dir() if isinstance(path, ObjectPath) else os.path.isdir(path)


def size_of(path: AnyPath) -> int:
    """Return the size of a file in bytes; -1 if there is none."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise_if_unknown(path, error)
        return -1


def raise_if_unknown(path: AnyPath, error: Exception) -> None:
    """Raise the error of a store that did not answer: then nobody knows whether there is such a file.

    A local file that cannot be read is treated as missing, and so is an object that is damaged or has been replaced.
    """
    if not isinstance(path, ObjectPath) or not isinstance(error, OSError) or error.errno in {None, errno.ENOENT}:
        return
    if not isinstance(error, Changed):
        raise error


def digest_of(source: Path | pa.BufferReader) -> str:
    """Return the sha256 of what `for_arrow` returned, which can still be read afterwards."""
    if isinstance(source, Path):
        return file_digest(source)
    digest = hashlib.sha256(source.read()).hexdigest()
    source.seek(0)
    return digest


def for_arrow(path: AnyPath) -> Path | pa.BufferReader:
    """Return what Arrow can read: the path of a local file, or all bytes of an object."""
    if not isinstance(path, ObjectPath):
        return path
    import pyarrow as pa  # noqa: PLC0415 - start-up

    return pa.BufferReader(path.read_bytes())


def _open(root: str, *, hasty: bool) -> ObjectStore:
    kind = scheme(root)
    if kind not in SCHEMES:
        raise InputError(
            f"scorer cannot read or write {kind}://",
            where=root,
            expected=f"a local path, or a URL with {', '.join(SCHEMES)}",
            found=f"{kind}://",
            hint="copy it to one of these first",
        )
    if find_spec("obstore") is None:
        raise InputError(
            f"reading from {kind}:// needs another package",
            where=root,
            expected="obstore",
            found="not installed",
            hint="pip install 'dask-scorer[store]'",
        )
    from obstore.store import from_url  # noqa: PLC0415 - an extra

    from scorer.storage.objects import ObjectStore  # noqa: PLC0415 - an extra

    options: dict[str, Any] = dict(_options)
    client: ClientConfig = {"timeout": _TIMEOUT, "connect_timeout": _CONNECT_TIMEOUT}
    plain = options.pop("allow_http", os.environ.get("AWS_ALLOW_HTTP", ""))
    if str(plain).lower() in {"1", "true", "yes"}:
        client["allow_http"] = True
    store = from_url(root, config=options or None, client_options=client, retry_config=_HASTY if hasty else _RETRY)  # type: ignore[call-overload]
    return ObjectStore(root, store, waits=()) if hasty else ObjectStore(root, store)


def _forget_after_fork() -> None:
    global _lock  # noqa: PLW0603 - the thread that may hold it does not exist in the child
    _lock = threading.Lock()
    _stores.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
