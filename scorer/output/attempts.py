"""Which parts were being scored when a process died: a mark per part in flight, on disk.

work-<plan8>/started/part-00012.0    the process that started the part; removed when the part has ended
work-<plan8>/started/HOST-PID-BORN   what that process could still write when native code ended it

A part in flight in a process that crashed, or in two that were killed, is scored in a process of its own
from then on, so that it takes nothing with it.
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


_KILLED = 2  # deaths without a word before the part is suspected: walltimes and kills are nobody's fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A part in flight in this process."""

    path: Path
    deaths: int
    """Processes that died while they had the part."""
    crashed: bool
    """Whether one of them was ended by native code, or by our watchdog."""

    @property
    def suspect(self) -> bool:
        """Whether the part must not be trusted with this process."""
        return self.crashed or self.deaths >= _KILLED

    @property
    def tries(self) -> int:
        """How often the part was begun, this time included; marks of attempts that ended are gone."""
        return int(self.path.name.rpartition(".")[2]) + 1


def begin(staging: Staging, name: str) -> Mark:
    """Note on disk that this process starts the part; says who died of it before."""
    deaths, crashed = 0, False
    me = json.dumps(process.myself())
    with map_write_errors(staging.started):
        for n in itertools.count():
            path = _mark(staging, name, n)
            try:
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            except FileExistsError:
                owner = lock.read(path)
                alive = True if owner is None else lock.is_alive(owner)
                if owner is not None and not alive:  # on another host: we cannot know, but it may have left its words
                    deaths, crashed = deaths + (alive is False), crashed or _crashed(staging, owner)
                continue
            with os.fdopen(handle, "w") as file:
                file.write(me)
            return Mark(path=path, deaths=deaths, crashed=crashed)
    raise AssertionError  # there is always another number


def end(mark: Mark) -> None:
    """The part has ended, well or not, and this process has not."""
    with suppress(OSError):
        mark.path.unlink()


def clear_marks(staging: Staging, name: str) -> None:
    """The part is committed: forget who died of it."""
    for n in itertools.count():
        try:
            _mark(staging, name, n).unlink()
        except OSError:
            return


def crash_seen(staging: Staging) -> bool:
    """Whether native code has ended a process that worked on this plan."""
    return any(_size(path) for path in staging.started.glob("*.crash"))


class CrashFile:
    """Lets this process say what it was doing if native code ends it; nothing if somebody listens already."""

    def __init__(self, staging: Staging) -> None:
        self._path = staging.started / _witness(process.myself())
        self._file: IO[str] | None = None
        if not faulthandler.is_enabled():
            with suppress(OSError):
                self._file = self._path.open("w", encoding="utf-8")
                faulthandler.enable(self._file, all_threads=False)  # the others run on: to walk their frames crashes

    def write_last_words(self, text: str) -> None:
        """Write the last words now: the process is about to be ended by us."""
        with suppress(OSError):
            self._path.write_text(text + "\n", encoding="utf-8")

    def close(self) -> None:
        """All is well."""
        if self._file is not None:
            faulthandler.disable()
            self._file.close()
            self._file = None
        if not _size(self._path):
            with suppress(OSError):
                self._path.unlink()


def _mark(staging: Staging, name: str, n: int) -> Path:
    return staging.started / f"{flat_name(name)}.{n}"


def _witness(owner: dict[str, object]) -> str:
    host = str(owner.get("host")).replace("/", "_")
    return f"{host}-{owner.get('pid')}-{owner.get('born')}.crash"


def _crashed(staging: Staging, owner: dict[str, object]) -> bool:
    return bool(_size(staging.started / _witness(owner)))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
