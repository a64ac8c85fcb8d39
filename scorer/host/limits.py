"""The limits of the system on threads and open files, as errors that say what to raise."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

from scorer.errors import ClusterError
from scorer.host.process import name_of_process

if TYPE_CHECKING:
    from collections.abc import Iterator


MORE_FILES = "raise the limit on open files with `ulimit -n`"
MORE_THREADS = "end other programs, or raise the limits on processes and memory with `ulimit -u` and `ulimit -v`"
OUT_OF_FILES = {errno.EMFILE, errno.ENFILE}
_NO_THREAD = "can't start new thread"


def lacks_thread(error: BaseException) -> bool:
    """Return whether Python could not start a thread."""
    return isinstance(error, RuntimeError) and _NO_THREAD in str(error)


@contextmanager
def limits_as_errors() -> Iterator[None]:
    """Raise a `ClusterError` where the block lacks a thread or a file descriptor and has no error of its own for it.

    Either may be missing at any step, so that this is checked once around a whole command.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        if lacks_thread(error):
            kind, hint = "thread", MORE_THREADS
        elif isinstance(error, OSError) and error.errno in OUT_OF_FILES:
            kind, hint = "file", MORE_FILES
        else:
            raise
        raise ClusterError(
            f"this process cannot {'start another thread' if kind == 'thread' else 'open another file'}",
            where=name_of_process(),
            expected=f"a free {kind}" if kind == "thread" else "a free file descriptor",
            found=str(error),
            hint=hint,
        ) from error
