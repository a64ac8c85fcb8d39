"""The user's folder in the temporary directory, which no other user can write to or read.

TMP/scorer-UID          the usual name
TMP/scorer-UID-RANDOM   if another user created the first, or it is open to others
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from glob import escape, glob

from scorer.errors import ClusterError


def private_folder(base: str | None = None) -> str:
    """Return the user's folder in the temporary directory, or in `base`; create it if need be.

    Every user can create files there. Dask imports modules from its scratch folder and truncates lock files in it, so
    a folder that another user prepared would let them run code and empty files as this user.
    """
    name = os.path.join(os.path.abspath(base or _temporary_folder()), f"scorer-{os.getuid()}")
    os.makedirs(os.path.dirname(name), exist_ok=True)
    with suppress(FileExistsError):
        os.mkdir(name, 0o700)
    for path in (name, *sorted(glob(f"{escape(name)}-*"))):
        if is_private(path):
            return path
    return tempfile.mkdtemp(prefix=f"{os.path.basename(name)}-", dir=os.path.dirname(name))


def _temporary_folder() -> str:
    """Return the temporary folder of this process. Raise a `ClusterError` if no candidate can be written to."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        os.close(os.open(os.devnull, os.O_RDONLY))  # without a free descriptor no folder is usable: say that instead
        raise ClusterError(
            "there is no usable temporary folder",
            where=f"TMPDIR={os.environ['TMPDIR']}"
            if "TMPDIR" in os.environ
            else "the temporary folders of this system",
            expected="a folder in which this process can create files",
            found=str(error),
            hint="free some space there, or set TMPDIR to another folder",
        ) from error


def is_private(path: str) -> bool:
    """Return whether this is a folder, not a link to one, that only this user can use."""
    with suppress(FileNotFoundError):
        found = os.lstat(path)
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return False
