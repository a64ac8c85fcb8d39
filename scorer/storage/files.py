"""Try again what a shared file system refuses for a moment; what it refuses for good is said at once."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import random
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from scorer.errors import CommitError, OutputFull

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


T = TypeVar("T")
_WAITS_S = (0.1, 0.4, 1.6)
_PASSING = {
    getattr(errno, name)
    for name in (
        "EAGAIN", "EBUSY", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "EINTR", "EIO",
        "ENETDOWN", "ENETRESET", "ENETUNREACH", "ENOTCONN", "EREMOTEIO", "ESTALE", "ETIMEDOUT",
    )
    if hasattr(errno, name)
}  # fmt: skip


def patiently(attempt: Callable[[], T], again: Callable[[], None] | None = None) -> T:
    """What `attempt` gives; after a passing error `again` clears the ground, and it is called once more."""
    for wait in _WAITS_S:
        try:
            return attempt()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
        time.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311 - so that a thousand workers do not knock together
        if again is not None:
            again()
    return attempt()


@dataclass(frozen=True, slots=True)
class FileId:
    """Which contents of which file: equal as long as the file is the same."""

    path: str
    size: int
    version: int | str
    """The time of change in nanoseconds; an object store's ETag as text."""

    def unchanged(self) -> bool:
        """Return whether the file is still the same; False if it cannot be found."""
        try:
            return file_id(self.path) == self
        except OSError:
            return False


def file_id(path: str) -> FileId:
    """Return the identity of a local file."""
    stat = os.stat(path)
    return FileId(path, stat.st_size, stat.st_mtime_ns)


def files_in(top: Path) -> Iterator[str]:
    """Every file at any depth, as the ledger would name it."""
    for folder, _, names in os.walk(top):
        for name in names:
            yield os.path.relpath(os.path.join(folder, name), top).replace(os.sep, "/")


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.ENAMETOOLONG}
_HERE = -100  # AT_FDCWD
NO_REPLACE, EXCHANGE = 1, 2


@contextmanager
def map_write_errors(path: str | Path) -> Iterator[None]:
    """A disk's complaints as ours."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in _FULL:
            hint = "make room or check the rights, then repeat the command; committed parts are kept"
            raise OutputFull("the output cannot be written", str(path), "room and rights", reason, hint) from error
        what, hint = "the output cannot be written", "repeat the command; committed parts are kept"
        raise CommitError(what, str(path), "a working file system", reason, hint) from error


def sync(path: str | Path) -> None:
    """Make a file's contents, or the renames in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def rename(source: Path, target: Path, flag: int) -> None:
    """Linux's renameat2: NO_REPLACE or EXCHANGE, or OSError where the system has neither."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if libc.renameat2(_HERE, os.fsencode(source), _HERE, os.fsencode(target), flag):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - whatever JSON holds
    """Whole or not at all."""
    tmp = path.with_name(path.name + ".tmp")
    tmp.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    sync(tmp)
    tmp.replace(path)
