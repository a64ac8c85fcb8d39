"""Standard output and error that never raise: a full disk or an ended reader must not end a run that can finish."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any


class _Descriptor(io.FileIO):
    """The file of a standard stream. It drops what cannot be written, and keeps the error."""

    error: OSError | None = None

    def write(self, data: Any) -> int:  # noqa: ANN401 - any buffer
        """Write the data; return its length even if it cannot be written."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno == errno.EINTR:
                raise
            self.error = error
            return memoryview(data).nbytes


def protect() -> None:
    """Replace standard output and error by streams that do not raise, and open closed ones on /dev/null.

    A closed stream's descriptor would be given to the next file that is opened, and prints would go into that file.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdout = _protected(1, sys.stdout)
    sys.stderr = _protected(2, sys.stderr)


def lost() -> OSError | None:
    """Return the error by which text for standard output was lost, or None."""
    return getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "error", None)


def _protected(number: int, stream: Any) -> io.TextIOWrapper:  # noqa: ANN401 - TextIO lacks some of its attributes
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(number, "w", closefd=False)),
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace",
        line_buffering=number == 2 or (stream is not None and stream.line_buffering),  # noqa: PLR2004 - standard error
        write_through=stream is not None and stream.write_through,
    )
