"""File identities, retries, whole-file writes, fsync and atomic renames on local and shared file systems.

Errors that shared file systems raise for a moment (EIO, ESTALE, ETIMEDOUT and others) are retried with backoff.
All other errors are raised at once.

`files_in`, `file_digest`, `write_atomically` and `write_json` also take paths on object stores
(`scorer.storage.stores.ObjectPath`), where each write is complete or not there.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import random
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from scorer.errors import CommitError, OutputFull
from scorer.host.limits import MORE_FILES, OUT_OF_FILES
from scorer.locations import is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path
    from typing import Self


T = TypeVar("T")


class Remote(Protocol):
    """A path on an object store, as `scorer.storage.stores.ObjectPath` is."""

    def read_bytes(self) -> bytes:
        """Return the object's bytes."""

    def write_bytes(self, data: bytes) -> None:
        """Write the object, whatever is there."""

    def files(self) -> Mapping[str, FileId]:
        """Return every object below, by its name."""


_BACKOFF_S = (0.1, 0.4, 1.6)
_TRANSIENT = {
    getattr(errno, name)
    for name in (
        "EAGAIN", "EBUSY", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "EINTR", "EIO",
        "ENETDOWN", "ENETRESET", "ENETUNREACH", "ENOTCONN", "EREMOTEIO", "ESTALE", "ETIMEDOUT",
    )
    if hasattr(errno, name)
}  # fmt: skip


def retry(attempt: Callable[[], T], reset: Callable[[], None] | None = None) -> T:
    """Return the result of `attempt`; after a transient error, call `reset`, then try again with backoff."""
    for wait in _BACKOFF_S:
        try:
            return attempt()
        except OSError as error:
            if error.errno not in _TRANSIENT:
                raise
        time.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311 - jitter: a thousand workers must not retry in step
        if reset is not None:
            reset()
    return attempt()


class Throttled:
    """How often a store did not do what it was asked for, and how many seconds passed until it was asked again."""

    def __init__(self) -> None:
        self.so_far = (0, 0.0)
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._unlock)

    def add(self, seconds: float) -> None:
        """Count one attempt that was repeated."""
        with self._lock:
            self.so_far = (self.so_far[0] + 1, self.so_far[1] + seconds)

    def since(self, before: tuple[int, float]) -> tuple[int, float]:
        """Return how often and how many seconds since `so_far` was this."""
        times, seconds = self.so_far
        return times - before[0], round(seconds - before[1], 3)

    def _unlock(self) -> None:
        self._lock = threading.Lock()


THROTTLED = Throttled()
"""Those of this process."""
_ASKED_AT_ONCE = 32


class AtOnce:
    """Asks several questions at once if one of the locations is on a store, where each is a request.

    On a disk, a question is asked when its answer is wanted. The threads are not those that read ranges, because a
    thread must not wait for another one of its own pool.
    """

    def __init__(self, *locations: object) -> None:
        self._threads: ThreadPoolExecutor | None = None
        if any(is_url(str(location)) for location in locations):
            from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - only for stores

            self._threads = ThreadPoolExecutor(_ASKED_AT_ONCE, "scorer-store")

    def __enter__(self) -> Self:
        """Return a function that asks a question, and returns a function that waits for the answer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the questions that were asked; drop those that were not."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def __call__(self, question: Callable[[], T]) -> Callable[[], T]:
        """Ask a question; return a function that waits for the answer, or raises what the question raised."""
        return question if self._threads is None else self._threads.submit(question).result


class Changed(OSError):
    """The object on a store is not the one that was seen before."""


@dataclass(frozen=True, slots=True)
class FileId:
    """Which contents of which file: equal as long as the file is the same."""

    path: str
    size: int
    version: int | str
    """The time of change in nanoseconds; an object store's ETag as text."""
    inode: tuple[int, int, int] | None = field(default=None, compare=False)
    """Device, inode and change time (ctime), which differ if another file with the same size and time is put in its
    place. Not compared and not in plan.json: a file that is copied back may be resumed, and other hosts see others."""

    @property
    def st_size(self) -> int:
        """The size, under the name that `os.stat` gives it."""
        return self.size


def file_id(path: str) -> FileId:
    """Return the identity of a local file."""
    stat = os.stat(path)
    return FileId(path, stat.st_size, stat.st_mtime_ns, (stat.st_dev, stat.st_ino, stat.st_ctime_ns))


def files_in(top: Path | Remote, unlisted: Callable[[str, OSError], None] | None = None) -> Iterator[str]:
    """Yield the path of every file below `top`, relative to it, with / as in the ledger.

    `unlisted` is called with each folder that cannot be listed, in the same form, and the reason.
    """
    if not isinstance(top, os.PathLike):
        yield from top.files()
        return
    folder_ = top

    def relative(path: str) -> str:
        return os.path.relpath(path, folder_).replace(os.sep, "/")

    def report(error: OSError) -> None:
        if unlisted is not None:
            unlisted(relative(str(error.filename)), error)

    for folder, _, names in os.walk(top, onerror=report):
        for name in names:
            yield relative(os.path.join(folder, name))


_NO_SPACE_OR_PERMISSION = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EFBIG,
    errno.ENAMETOOLONG,
}
_AT_FDCWD = -100
NO_REPLACE, EXCHANGE = 1, 2


@contextmanager
def map_write_errors(path: str | Path | Remote) -> Iterator[None]:
    """Convert OSErrors of a write to `OutputFull` or `CommitError`."""
    try:
        yield
    except OSError as error:
        if not isinstance(path, str | os.PathLike):
            raise _store_error(path, error) from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in _NO_SPACE_OR_PERMISSION:
            raise OutputFull(
                "the output cannot be written",
                where=str(path),
                expected="free space and write permission",
                found=reason,
                hint="free space or fix the permissions, then repeat the command; committed parts are kept",
            ) from error
        lacks_files = error.errno in OUT_OF_FILES
        repeat = "repeat the command; committed parts are kept"
        raise CommitError(
            "the output cannot be written",
            where=str(path),
            expected="a free file descriptor" if lacks_files else "a working file system",
            found=reason,
            hint=f"{MORE_FILES}, then {repeat}" if lacks_files else repeat,
        ) from error


def _store_error(path: Remote, error: OSError) -> CommitError:
    """Return the error for a store that refuses a write or does not answer, with the store's words."""
    found = error.strerror or str(error)
    repeat = "repeat the command; committed parts are kept"
    if isinstance(error, PermissionError):
        return OutputFull(
            "the output cannot be written",
            where=str(path),
            expected="the right to read, write, list and delete there",
            found=found,
            hint=f"check the rights and whether the credentials have expired, then {repeat}",
        )
    return CommitError(
        "the store does not do what is needed to write the output",
        where=str(path),
        expected="a store that answers and has room",
        found=found,
        hint=repeat,
    )


@contextmanager
def one_process(lock: Path) -> Iterator[None]:
    """Let one process of this host at a time do something, while others wait; `lock` is the file that it holds."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released with the file, and so when the process ends
        yield


def sync(path: str | Path) -> None:
    """Flush a file's contents, or the renames in a folder, to disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def rename(source: Path, target: Path, flag: int) -> None:
    """Rename atomically with Linux's renameat2; `flag` is NO_REPLACE or EXCHANGE. OSError if not supported."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))


def file_digest(path: Path | Remote) -> str:
    """Return the sha256 of a file."""
    if not isinstance(path, os.PathLike):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path | Remote, data: bytes, *, durable: bool, tmp: Path | None = None) -> None:
    """Write a complete file in one step: readers see the old contents or the new ones, never a part of them.

    The data goes to `tmp` first, `NAME.tmp` by default. Processes that may write the same file at the same time
    need a `tmp` each. A durable file is synced before the rename; the folder is not, see `sync`.
    """
    if not isinstance(path, os.PathLike):
        path.write_bytes(data)
        return
    tmp = tmp or path.with_name(path.name + ".tmp")
    tmp.write_bytes(data)
    if durable:
        sync(tmp)
    tmp.replace(path)


def write_json(path: Path | Remote, value: Any) -> None:  # noqa: ANN401 - whatever JSON holds
    """Replace a file with this value as JSON, durably."""
    write_atomically(path, as_json(value), durable=True)


def as_json(value: Any) -> bytes:  # noqa: ANN401 - whatever JSON holds
    """Return this value as the contents of a JSON file."""
    return (json.dumps(value, indent=1) + "\n").encode()
