"""Which parts were in progress when a process died: one mark on disk for each part in progress.

work-<plan8>/started/part-00012.0          names the process that started the part; removed when the attempt ends
work-<plan8>/started/HOST-PID-BORN.crash   the traceback that faulthandler writes if native code ends that process

If one process crashed while it scored the part, or two were killed, the part is scored in a process of its own
from then on. Another crash then loses no other part.
"""

from __future__ import annotations

import faulthandler
import itertools
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from scorer.host import process
from scorer.output import lock
from scorer.output.place import flat_name
from scorer.storage.files import map_write_errors

if TYPE_CHECKING:
    from pathlib import Path

    from scorer.output.place import Staging


_MAX_KILLS = 2  # deaths without a traceback: the first may be a walltime, the second makes the part suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The mark of a part in progress in this process."""

    path: Path
    deaths: int
    """Earlier processes that died while they scored the part."""
    crashed: bool
    """Whether native code or the watchdog of --batch-timeout ended one of them."""

    @property
    def suspect(self) -> bool:
        """Whether the part may end its process, and so needs one of its own."""
        return self.crashed or self.deaths >= _MAX_KILLS

    @property
    def tries(self) -> int:
        """Attempts at this part, this one included. An attempt that ended normally is not counted."""
        return int(self.path.name.rpartition(".")[2]) + 1


def begin(staging: Staging, name: str) -> Mark:
    """Mark the part as started by this process, and count the processes that died while they scored it."""
    deaths, crashed = 0, False
    me = json.dumps(process.myself())
    with map_write_errors(staging.started):
        for n in itertools.count():
            path = _mark_path(staging, name, n)
            try:
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            except FileExistsError:
                owner = lock.read(path)
                alive = True if owner is None else lock.is_alive(owner)
                if owner is not None and not alive:  # None on another host: only its crash file shows that it died
                    deaths, crashed = deaths + (alive is False), crashed or _has_crashed(staging, owner)
                continue
            with os.fdopen(handle, "w") as file:
                file.write(me)
            return Mark(path=path, deaths=deaths, crashed=crashed)
    raise AssertionError  # itertools.count has no end


def end(mark: Mark) -> None:
    """Remove the mark: the attempt has ended and this process is alive."""
    with suppress(OSError):
        mark.path.unlink()


def clear_marks(staging: Staging, name: str) -> None:
    """Remove all marks of a part, because it is committed."""
    for n in itertools.count():
        try:
            _mark_path(staging, name, n).unlink()
        except OSError:
            return


def crash_seen(staging: Staging) -> bool:
    """Return whether native code ended a process that worked on this plan."""
    return any(_size(path) for path in staging.started.glob("*.crash"))


class CrashFile:
    """Records a crash of this process in native code; does nothing if faulthandler is enabled already."""

    def __init__(self, staging: Staging) -> None:
        self._path = staging.started / _crash_file_name(process.myself())
        self._file: IO[str] | None = None
        if not faulthandler.is_enabled():
            with suppress(OSError):
                self._file = self._path.open("w", encoding="utf-8")
                # this thread alone: the others keep running, and to walk their frames crashes
                faulthandler.enable(self._file, all_threads=False)

    def write_last_words(self, text: str) -> None:
        """Write the reason now, because scorer is about to end this process."""
        with suppress(OSError):
            self._path.write_text(text + "\n", encoding="utf-8")

    def close(self) -> None:
        """Stop recording crashes; remove the file if it is empty."""
        if self._file is not None:
            faulthandler.disable()
            self._file.close()
            self._file = None
        if not _size(self._path):
            with suppress(OSError):
                self._path.unlink()


def _mark_path(staging: Staging, name: str, n: int) -> Path:
    return staging.started / f"{flat_name(name)}.{n}"


def _crash_file_name(owner: dict[str, object]) -> str:
    host = str(owner.get("host")).replace("/", "_")
    return f"{host}-{owner.get('pid')}-{owner.get('born')}.crash"


def _has_crashed(staging: Staging, owner: dict[str, object]) -> bool:
    return bool(_size(staging.started / _crash_file_name(owner)))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
