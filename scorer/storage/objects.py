"""Object stores: S3, Google Cloud Storage and Azure, and files behind http, through obstore.

A store has names and bytes, and no folders: a folder exists while an object lies below it. Every write is whole or
not there. All writes here may be repeated, because they say what they expect, or write the same bytes again. So an
error that passes is tried again, beyond what the client tries itself.

Errors are OSErrors with the store's words: FileNotFoundError, PermissionError, and EREMOTEIO for the rest. A store is
given up after three minutes. Credentials that have expired are waited for once, because the environment may renew them.
"""

from __future__ import annotations

import errno
import os
import random
import re
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from scorer.display.words import without_secrets
from scorer.host import credentials
from scorer.locations import scheme, split
from scorer.storage.files import THROTTLED, FileId
from scorer.storage.files import Changed as Changed  # noqa: PLC0414 - raised here

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from obstore import GetOptions
    from obstore.store import ObjectStore as Client

T = TypeVar("T")
_WAITS_S = tuple(min(0.1 * 2**n, 15.0) for n in range(24))  # more than `_PATIENCE_S` allows
_PATIENCE_S = 180.0
"""How long one call may take in all; its last attempt is not begun if it would end later."""
_RENEWAL_S = 30.0  # for whoever renews credentials that have expired
_CONTRADICTIONS = 4  # answers that an object is there and that it is not, before a store is given up
_CUT, _UNSENT, _AFTER_CUT_S = "body error", "error sending request", (0.1, 0.2, 0.4)
"""What the client says of requests that it does not repeat itself: an answer that was cut short, and a request that was
not sent. A store that is asked in haste is asked so often again."""
_AT_ONCE_S = 1.0  # a connection that is reset fails sooner; one that is not answered fails later
_DELETED_AT_ONCE = _LISTED_AT_ONCE = 1000
_DELETING = 16  # at once, if one by one
_STATUS = re.compile(r"status code: (\d{3})")
_CODE, _MESSAGE = re.compile(r"<Code>([^<]*)</Code>"), re.compile(r"<Message>([^<]*)</Message>")
_PASSING = {408, 409, 425, 429}
_BY_STATUS: dict[int, tuple[type[OSError], int]] = {
    401: (PermissionError, errno.EACCES),
    403: (PermissionError, errno.EACCES),
    404: (FileNotFoundError, errno.ENOENT),
}
_OTHER_NOW = "another object is there now"
_HTML = re.compile(r":?\s*<(!doctype|html)\b.*", re.IGNORECASE | re.DOTALL)
"""A page that a web server sends with an error."""


def _nothing() -> None:
    """Do nothing."""


class ObjectStore:
    """One bucket or container. May be used by many threads at once; names are whole locations, such as s3://b/key."""

    conditional = True
    """Whether `put_new` and `put_over` look at what is there; if not, no other program may write here."""
    _before: Callable[[], object] = staticmethod(_nothing)
    _failed: Callable[[], object] = staticmethod(_nothing)

    def __init__(
        self, root: str, client: Client, *, waits: Sequence[float] = _WAITS_S, conditional: bool = True,
        renewed: Callable[[], Client] | None = None,
    ) -> None:  # fmt: skip
        """Wrap a client of obstore; `waits` are the seconds between further attempts.

        `renewed` makes another client, with the credentials that this process has then.
        """
        self.root = root
        self._client = client
        self._waits = waits
        self._renewed = renewed
        self.conditional = conditional

    def guarded(
        self, before: Callable[[], object], waits: Sequence[float], failed: Callable[[], object] = _nothing
    ) -> ObjectStore:
        """Return the same store, which calls `before` before each attempt, and `failed` after one that is repeated."""
        other = ObjectStore(self.root, self._client, waits=waits, conditional=self.conditional)
        other._before, other._failed = before, failed
        return other

    def objects(self, location: str) -> Iterator[FileId]:
        """Yield every object below a location, in the order of their names.

        The empty object with which other programs mark the folder itself is left out.
        """
        import obstore  # noqa: PLC0415 - an extra

        prefix, last = self._key(location), ""
        below = f"{prefix}/" if prefix else None

        def pages() -> Iterator[Any]:
            return obstore.list(self._client, below, offset=last or None, chunk_size=_LISTED_AT_ONCE)

        for page in self._stream(pages, location):
            given, last = last, max(last, *(meta["path"] for meta in page)) if page else last
            yield from (self._file_id(meta) for meta in page if given < meta["path"] != prefix)

    def folder(self, location: str) -> tuple[list[FileId], list[str]]:
        """Return the objects directly below a location, and the locations of the folders there."""
        import obstore  # noqa: PLC0415 - an extra

        prefix = self._key(location)
        found = self._try(lambda: obstore.list_with_delimiter(self._client, f"{prefix}/" if prefix else None), location)
        files = [self._file_id(meta) for meta in found["objects"] if meta["path"] != prefix]
        return files, [f"{self.root}/{name.rstrip('/')}" for name in found["common_prefixes"]]

    def identity(self, location: str) -> FileId:
        """Return which object is there; raise FileNotFoundError if there is none."""
        import obstore  # noqa: PLC0415 - an extra

        return self._file_id(self._try(lambda: obstore.head(self._client, self._key(location)), location))

    def has(self, location: str) -> bool:
        """Return whether there is an object with this name."""
        try:
            self.identity(location)
        except FileNotFoundError:
            return False
        return True

    def read(self, location: str) -> bytes:
        """Return a whole object."""
        return self.read_with_identity(location)[0]

    def read_with_identity(self, location: str) -> tuple[bytes, FileId]:
        """Return a whole object, and which one it is."""
        import obstore  # noqa: PLC0415 - an extra

        def attempt() -> tuple[bytes, FileId]:
            got = obstore.get(self._client, self._key(location))
            return bytes(got.bytes()), self._file_id(got.meta)

        return self._try(attempt, location)

    def read_range(self, file: FileId, start: int, stop: int) -> memoryview:
        """Return bytes start..stop of this object; raise `Changed` if another one is there now."""
        import obstore  # noqa: PLC0415 - an extra

        options: GetOptions = {"range": (start, stop)}
        bound = isinstance(file.version, str) and not file.version.startswith("W/")  # a weak ETag matches nothing
        if bound and file.version:
            options["if_match"] = str(file.version)
        key = self._key(file.path)

        def attempt() -> memoryview:
            got = obstore.get(self._client, key, options=options)
            if not bound and (got.meta["size"], _version(got.meta)) != (file.size, file.version):
                raise Changed(errno.EREMCHG, _OTHER_NOW, file.path)
            return memoryview(got.bytes())

        return self._try(attempt, file.path)

    def put_new(self, location: str, data: bytes | memoryview) -> FileId | None:
        """Write an object if there is none; return None, and change nothing, if there is one.

        It may be this one: if the answer to a write is lost, the next attempt finds it.
        """
        for wait in (0, *self._waits[:_CONTRADICTIONS]):
            time.sleep(wait)
            written = self._put(location, data, "create" if self.conditional else "overwrite")
            if written is not None or self.has(location):
                return written
            # S3 refuses a write while another one is under way, which may then fail
        raise OSError(errno.EREMOTEIO, "the store says that there is an object, and that there is none", location)

    def put_over(self, location: str, data: bytes | memoryview, seen: FileId) -> FileId | None:
        """Write an object over this one; return None, and change nothing, if another one is there now.

        It may be this one, as for `put_new`. The data must differ from what it replaces, since an ETag may be a digest
        of the contents.
        """
        if not self.conditional:
            return self.put(location, data)
        mode = {"e_tag": str(seen.version)}
        if scheme(self.root) == "gs":
            generation = self._generation(location, seen)
            if not generation:
                return None
            mode["version"] = generation
        return self._put(location, data, mode)

    def put(self, location: str, data: bytes | memoryview) -> FileId:
        """Write an object, whatever is there."""
        written = self._put(location, data, "overwrite")
        if written is None:
            raise Changed(errno.EREMCHG, "the store refused an unconditional write", location)
        return written

    def copy(self, source: str, target: str) -> None:
        """Copy an object to another name on the same store, without reading it."""
        import obstore  # noqa: PLC0415 - an extra

        self._try(lambda: obstore.copy(self._client, self._key(source), self._key(target)), target)

    def remove(self, locations: Iterable[str]) -> None:
        """Remove objects; one that is not there is no error."""
        import obstore  # noqa: PLC0415 - an extra

        keys = [self._key(location) for location in locations]
        for at in range(0, len(keys), _DELETED_AT_ONCE):
            some = keys[at : at + _DELETED_AT_ONCE]
            try:
                self._try(lambda some=some: obstore.delete(self._client, some), f"{self.root}/{some[0]}")  # type: ignore[misc]
            except FileNotFoundError:
                self._remove_one_by_one(some)

    def _remove_one_by_one(self, keys: Sequence[str]) -> None:
        import obstore  # noqa: PLC0415 - an extra

        def remove(key: str) -> None:
            with suppress(FileNotFoundError):
                self._try(lambda: obstore.delete(self._client, key), f"{self.root}/{key}")

        with ThreadPoolExecutor(_DELETING) as pool:
            deque(pool.map(remove, keys), maxlen=0)

    def _generation(self, location: str, seen: FileId) -> str:
        """Return the number of this object, by which Google's store replaces it; '' if another one is there."""
        import obstore  # noqa: PLC0415 - an extra

        try:
            meta = self._try(lambda: obstore.head(self._client, self._key(location)), location)
        except FileNotFoundError:
            return ""
        return str(meta["version"]) if self._file_id(meta) == seen else ""

    def _put(self, location: str, data: bytes | memoryview, mode: Any) -> FileId | None:  # noqa: ANN401
        import obstore  # noqa: PLC0415 - an extra
        from obstore.exceptions import (  # noqa: PLC0415 - an extra
            AlreadyExistsError,
            GenericError,
            NotFoundError,
            PreconditionError,
        )

        def attempt() -> FileId | None:
            try:
                done = obstore.put(self._client, self._key(location), data, mode=mode, use_multipart=False)
            except AlreadyExistsError as error:
                if mode != "create":  # S3 says this while another write is under way
                    raise GenericError(str(error)) from error
                return None
            except PreconditionError:
                return None
            except (NotFoundError, FileNotFoundError):
                if mode in {"create", "overwrite"}:
                    raise
                return None  # the object to replace is gone
            return FileId(location, len(data), _etag(done["e_tag"]))

        return self._try(attempt, location)

    def _stream(self, start: Callable[[], Iterable[T]], location: str) -> Iterator[T]:
        """Yield the pages of a listing; `start` begins it behind those that were given, also after an error."""
        stream = iter(start())
        end = object()

        def again() -> None:
            nonlocal stream
            stream = iter(start())

        while True:
            page = self._try(lambda: next(stream, end), location, again)
            if page is end:
                return
            yield page  # type: ignore[misc]

    def _try(self, attempt: Callable[[], T], location: str, reset: Callable[[], None] | None = None) -> T:
        """Return the result of `attempt`; try again with backoff after errors that may pass."""
        from obstore.exceptions import BaseError  # noqa: PLC0415 - an extra

        waits, renew = iter(self._waits or _AFTER_CUT_S), self._renewed
        until = time.monotonic() + _PATIENCE_S
        with _as_os_errors(location):
            while True:
                self._before()
                began = time.monotonic()
                try:
                    return attempt()
                except BaseError as error:
                    expired = renew is not None and _has_expired(error)
                    took = time.monotonic() - began
                    wait = _RENEWAL_S if expired else next(waits, None) if self._may_pass(error, took) else None
                    if wait is None or time.monotonic() + wait + took > until:
                        raise
                self._failed()
                time.sleep(wait * random.uniform(0.5, 1.5) if not expired else wait)  # noqa: S311 - jitter
                if expired and renew is not None:
                    self._client, renew = renew(), None
                else:
                    THROTTLED.add(time.monotonic() - began)
                if reset is not None:
                    reset()

    def _may_pass(self, error: Exception, took: float) -> bool:
        """Return whether another attempt may succeed; one that is asked in haste, if a connection ends."""
        from obstore.exceptions import GenericError  # noqa: PLC0415 - an extra

        text = str(error)
        if not isinstance(error, GenericError) or _is_final(text):
            return False
        return bool(self._waits) or _CUT in text or (_UNSENT in text and took < _AT_ONCE_S)

    def _key(self, location: str) -> str:
        root, key = split(location)
        if root != self.root:
            msg = f"{location} is not in {self.root}"
            raise ValueError(msg)
        return key

    def _file_id(self, meta: Any) -> FileId:  # noqa: ANN401 - a dict of obstore
        return FileId(f"{self.root}/{meta['path']}", meta["size"], _version(meta))


def _version(meta: Any) -> int | str:  # noqa: ANN401 - a dict of obstore
    """Return the ETag of an object; its time of change in nanoseconds, 0 if unknown, if a web server gives no ETag."""
    return _etag(meta["e_tag"]) if meta["e_tag"] else int(meta["last_modified"].timestamp()) * 10**9


def _etag(text: str | None) -> str:
    """Return an ETag as in the headers of HTTP; Azure leaves the quotes out of its listings."""
    return f'"{text}"' if text and not text.endswith('"') else text or ""


class RangeFile:
    """A file to read, of which each read is one call of `read(start, stop)`; Arrow opens it as pa.PythonFile.

    The bytes at its end are kept once they were read: the footer, and in a small file everything.
    """

    closed = False

    def __init__(self, size: int, read: Callable[[int, int], memoryview]) -> None:
        self._size, self._read = size, read
        self._at = 0
        self._end_from, self._end = size, memoryview(b"")

    def read_at(self, start: int, stop: int) -> memoryview:
        """Return bytes start..stop, or those up to the end of the file."""
        stop = min(stop, self._size)
        if start >= self._end_from:
            return self._end[start - self._end_from : stop - self._end_from]
        found = self._read(start, stop)
        if stop == self._size:
            self._end_from, self._end = start, found
        return found

    def read_buffer(self, size: int) -> memoryview:
        """Return the next bytes without a copy."""
        found = self.read_at(self._at, self._at + size if size >= 0 else self._size)
        self._at += len(found)
        return found

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        return bytes(self.read_buffer(size))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position and return it."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def close(self) -> None:
        """Do nothing: there is no handle."""


@contextmanager
def _as_os_errors(location: str) -> Iterator[None]:
    """Convert the errors of obstore to OSErrors that have the store's words."""
    from obstore import exceptions  # noqa: PLC0415 - an extra

    try:
        yield
    except (exceptions.NotFoundError, FileNotFoundError) as error:
        raise FileNotFoundError(errno.ENOENT, in_words(error), location) from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise PermissionError(errno.EACCES, in_words(error), location) from error
    except (exceptions.PreconditionError, exceptions.NotModifiedError) as error:
        raise Changed(errno.EREMCHG, _OTHER_NOW, location) from error
    except exceptions.NotSupportedError as error:
        raise OSError(errno.ENOTSUP, in_words(error), location) from error
    except exceptions.BaseError as error:  # a refused listing is among them
        kind, number = _BY_STATUS.get(_status(str(error)), (OSError, errno.EREMOTEIO))
        raise kind(number, in_words(error), location) from error
    except ValueError as error:  # a name that the client does not accept, such as one with a tab
        raise OSError(errno.EINVAL, in_words(error), location) from error


def in_words(error: BaseException) -> str:
    """Return what a store said, in one line: its code and message if it gave them; never a key or a signature."""
    text = _HTML.sub("", str(error).partition("\n\nDebug source:")[0])
    code, message = _CODE.search(text), _MESSAGE.search(text)
    if code:
        text = f"{_status(text) or ''} {code[1]}: {message[1] if message else ''}".removesuffix(": ")
    return without_secrets(" ".join(text.split()))


def _status(text: str) -> int:
    """Return the HTTP status in an error's text; 0 if there is none."""
    found = _STATUS.search(text)
    if found:
        return int(found[1])
    return 403 if "(code: AccessDenied)" in text else 0  # for one object of a removal of many


def _has_expired(error: Exception) -> bool:
    """Return whether a store has refused credentials that it would accept if they were renewed."""
    from obstore.exceptions import UnauthenticatedError  # noqa: PLC0415 - an extra

    return isinstance(error, UnauthenticatedError) or credentials.EXPIRED.search(str(error)) is not None


def _is_final(text: str) -> bool:
    """Return whether a store has refused a request, so that it would refuse it again."""
    return 400 <= _status(text) < 500 and _status(text) not in _PASSING and "RequestTimeout" not in text  # noqa: PLR2004 - HTTP
