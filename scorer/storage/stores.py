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
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from scorer.display.words import without_secrets
from scorer.errors import InputError, OptionsError
from scorer.host import credentials
from scorer.locations import cloud, is_below, is_url, normal, scheme, split
from scorer.storage.files import Changed, FileId, file_digest, file_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import pyarrow as pa
    from obstore.store import ClientConfig
    from obstore.store import ObjectStore as Client

    from scorer.storage.objects import ObjectStore


WRITABLE = ("s3", "gs", "az", "abfss")
"""Schemes of stores that scorer writes to; the names of `scorer.locations.normal`."""
_WEB = ("http", "https")
_TIMEOUT, _CONNECT_TIMEOUT = timedelta(seconds=85), timedelta(seconds=5)  # twice in the patience with a store
_HASTY_TIMEOUT = timedelta(seconds=10)
_BACKOFF = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=15), "base": 2}
_ONCE = {"max_retries": 0, "retry_timeout": timedelta(seconds=10), "backoff": _BACKOFF}  # `ObjectStore` repeats
_HASTY = _ONCE | {"max_retries": 5}
_LISTS = 32  # folders that are listed at once
_KEYS = {
    "s3": ("endpoint", "region", "profile", "request_payer", "skip_signature", "virtual_hosted_style_request"),
    "gs": ("endpoint", "skip_signature", "project"),
    "az": ("endpoint", "skip_signature", "account_name"),
}
"""The options that each kind of store takes, besides allow_http."""
_ALLOW_HTTP = {"s3": "AWS_ALLOW_HTTP", "gs": "GOOGLE_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP"}
_ENDPOINT = {
    "s3": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_OF_CLIENT = ("allow_http", "profile", "project")
"""Options that are not in the configuration of obstore's store."""
_AMAZON = "https://s3.us-east-1.amazonaws.com"
_options: tuple[str, ...] = ()
_stores: dict[tuple[str, bool, float], ObjectStore] = {}
_lock = threading.Lock()
SOLE_WRITER = "sole_writer=true"  # the option for stores without conditional writes


def configure(options: Iterable[str]) -> None:
    """Set the options of the stores of this process, KEY=VALUE or URL:KEY=VALUE for one bucket; none is a secret."""
    global _options  # noqa: PLW0603 - one for each process, as the environment is
    given = tuple(options)
    with _lock:
        if given != _options:
            _options = given
            _stores.clear()


def options(*, given: bool = False) -> tuple[str, ...]:
    """Return what `configure` set, for other processes; only what --store-option takes if it is to be `given` again."""
    return tuple(one for one in _options if not (given and one == SOLE_WRITER))


def options_of(location: str) -> dict[str, str]:
    """Return the options of the store of a URL: those for all stores, then those of its scheme, then its own."""
    root, of_cloud = split(location)[0], cloud(location)
    found: dict[str, tuple[int, str]] = {}
    for text in _options:
        name, _, value = text.partition("=")
        bucket, _, key = name.rpartition(":")
        near = len(normal(bucket)) if bucket else 0
        fits = not bucket or normal(bucket) in {root, f"{scheme(root)}://"}
        if fits and near >= found.get(key, (0, ""))[0] and key in (*_KEYS.get(of_cloud, ()), "allow_http"):
            found[key] = (near, value)
    return {key: value for key, (_, value) in found.items()}


def of(location: str, *, hasty: bool = False, within_s: float = 0.0) -> ObjectStore:
    """Return the store of a URL. One that is `hasty` gives up after seconds, for questions before a run.

    With `within_s`, every request ends after so many seconds, and none is repeated; `ObjectStore.guarded` repeats.
    """
    root, _ = split(location)
    with _lock:
        found = _stores.get((root, hasty, within_s))
        if found is None:
            found = _stores[root, hasty, within_s] = _open(root, hasty=hasty, within_s=within_s)
        return found


def identity(location: str, *, hasty: bool = False) -> FileId:
    """Return which contents are at a location; raise FileNotFoundError if there are none."""
    return of(location, hasty=hasty).identity(location) if is_url(location) else file_id(location)


def changes(files: Sequence[FileId]) -> tuple[list[str], int]:
    """Return the paths of those files that are not the same any more, and how many of them are gone.

    Objects are looked up in the lists of their folders, because there may be 100,000 of them.
    """
    listed = listed_beside([file.path for file in files])
    alone = {file.path for file in files if not is_url(file.path) or not can_list(file.path)}
    now = [(file, _alone(file.path) if file.path in alone else listed.get(file.path)) for file in files]
    changed = [(file.path, current) for file, current in now if current != file]
    return [path for path, _ in changed], sum(current is None for _, current in changed)


def listed_beside(paths: Iterable[str]) -> dict[str, FileId]:
    """Return the objects in the folders of these paths; those of a folder that cannot be listed are missing."""
    folders = sorted({path.rpartition("/")[0] for path in paths if is_url(path) and can_list(path)})
    if not folders:
        return {}
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - only for stores

    def files(folder: str) -> list[FileId]:
        try:
            return of(folder).folder(folder)[0]
        except OSError:
            return []

    with ThreadPoolExecutor(min(_LISTS, len(folders))) as pool:
        return {file.path: file for found in pool.map(files, folders) for file in found}


def _alone(path: str) -> FileId | None:
    """Return which file is at a path, or None if nothing is; one of another size if that is unknown."""
    try:
        return identity(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return FileId(path, -1, 0)


def source_of(file: FileId) -> Callable[[int, int], memoryview]:
    """Return a function that reads a range of an object, and raises `Changed` if another one is there now."""
    store = of(file.path)
    return lambda start, stop: store.read_range(file, start, stop)


NO_LIST = "a web server has no list of its files"


def can_list(location: str) -> bool:
    """Return whether the store of a URL has a list of its files."""
    return scheme(location) not in _WEB


def may_be_file(location: str) -> bool:
    """Return whether a file is there; a URL is taken for one, and what reads it reports if there is none."""
    return is_url(location) or os.path.isfile(location)


def path_of(location: str) -> AnyPath:
    """Return the path of a location: on a store for a URL, else a local one."""
    if not is_url(location):
        return Path(location)
    refuse_secrets(location)
    return ObjectPath(location)


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
        """Return the path below another one; raise ValueError if it is not below it."""
        if not self.is_relative_to(other):
            msg = f"{self} is not below {other}"
            raise ValueError(msg)
        return PurePosixPath(self._text.removeprefix(str(other)).lstrip("/"))

    def exists(self) -> bool:
        """Return whether there is an object with this name, or one below it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Return whether there is an object with this name."""
        return self.store.has(self._text)

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


def _open(root: str, *, hasty: bool, within_s: float) -> ObjectStore:
    refuse_secrets(root)
    named = scheme(root)
    if named not in WRITABLE + _WEB:
        from scorer.storage.filesystems import open_root  # noqa: PLC0415 - only for these protocols

        return open_root(root, ", ".join(WRITABLE))
    if find_spec("obstore") is None:
        raise InputError(
            f"reading from {named}:// needs another package",
            where=root,
            expected="obstore",
            found="not installed",
            hint="pip install 'dask-scorer[store]'",
        )
    patience: dict[str, Any] = {"waits": ()} if hasty or within_s else {"renewed": lambda: _client(root, hasty=False)}
    client = _client(root, hasty=hasty, within_s=within_s)
    if named in _WEB:
        from scorer.storage.filesystems import WebStore  # noqa: PLC0415 - only for these protocols

        return WebStore(root, client, **patience)
    from scorer.storage.objects import ObjectStore  # noqa: PLC0415 - an extra

    return ObjectStore(root, client, conditional=SOLE_WRITER not in _options, **patience)


def _client(root: str, *, hasty: bool, within_s: float = 0.0) -> Client:
    """Return a client of a store, with the credentials that this process has now."""
    from obstore.store import from_url  # noqa: PLC0415 - an extra

    chosen, named = options_of(root), scheme(root)
    timeout = timedelta(seconds=within_s) if within_s else _HASTY_TIMEOUT if hasty else _TIMEOUT
    client: ClientConfig = {"timeout": timeout, "connect_timeout": min(_CONNECT_TIMEOUT, timeout)}
    allowed = chosen.get("allow_http") or os.environ.get(_ALLOW_HTTP.get(cloud(root), ""), "")
    if named == "http" or credentials.is_true(allowed):
        client["allow_http"] = True
    elif endpoint(root).lower().startswith("http:"):
        raise InputError(
            "the connection to the store would not be encrypted",
            where=root,
            expected="an endpoint with https://",
            found=without_secrets(endpoint(root)),
            hint="if you trust the network, add --store-option allow_http=true",
        )
    if "project" in chosen:
        client["default_headers"] = {"x-goog-user-project": chosen["project"]}
    if named in _WEB and (login := credentials.tracking_headers(root)):
        client["default_headers"] = login
    config: dict[str, Any] = {name: value for name, value in chosen.items() if name not in _OF_CLIENT}
    if cloud(root) == "gs" and "endpoint" in config:
        config["base_url"] = config.pop("endpoint")
    found = credentials.of(cloud(root), root, chosen)
    if cloud(root) == "s3" and not endpoint(root) and not _region(chosen, found):
        config["region"] = _region_of(split(root)[0].partition("://")[2])
    return from_url(  # type: ignore[no-any-return]
        root, config=(found.config | config) or None, client_options=client,
        retry_config=_HASTY if hasty else _ONCE, credential_provider=found.provider,
    )  # type: ignore[call-overload]  # fmt: skip


def region_of(location: str, found: credentials.Credentials) -> str:
    """Return the region of a bucket for another client: as it is set, or as Amazon answers."""
    known = _region(options_of(location), found)
    return known or ("us-east-1" if endpoint(location) else _region_of(split(location)[0].partition("://")[2]))


def _region(chosen: Mapping[str, str], found: credentials.Credentials) -> str:
    """Return the region that is set; '' if none is."""
    given = chosen.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return given or getattr(found.provider, "config", {}).get("region") or ""


def _region_of(bucket: str) -> str:
    """Return the region of a bucket, which Amazon answers to everybody; its default if it does not."""
    from urllib.error import HTTPError, URLError  # noqa: PLC0415 - only for this
    from urllib.request import Request, urlopen  # noqa: PLC0415 - only for this

    try:
        with urlopen(Request(f"{_AMAZON}/{bucket}", method="HEAD"), timeout=_HASTY_TIMEOUT.seconds) as answer:  # noqa: S310 - https
            found = answer.headers.get("x-amz-bucket-region")
    except HTTPError as refused:  # without rights, too
        found = refused.headers.get("x-amz-bucket-region")
    except (URLError, OSError):
        found = None
    return found or "us-east-1"


def refuse_secrets(location: str) -> None:
    """Raise OptionsError for a URL that holds a password or a signature; it would be shown and passed on."""
    if without_secrets(location) != location:
        raise OptionsError(
            "a secret does not belong in a URL",
            where=location,
            expected="scheme, bucket and path",
            found="a password or a signature",
            hint="set the credentials in the environment where scorer and its workers run",
        )


def endpoint(location: str) -> str:
    """Return the address of the server of a store; '' if it is the cloud's own."""
    given = next((os.environ[name] for name in _ENDPOINT.get(cloud(location), ()) if os.environ.get(name)), "")
    return options_of(location).get("endpoint") or given


def _forget_after_fork() -> None:
    global _lock  # noqa: PLW0603 - the thread that may hold it does not exist in the child
    _lock = threading.Lock()
    _stores.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
