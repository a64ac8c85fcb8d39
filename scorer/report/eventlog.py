"""events.jsonl: every event of a run as a line of JSON, for whoever follows it by a program.

It is no part of the proof, and nothing that happens to it ends a run.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from scorer.events import RunEnded, RunStarted, Tick, to_dict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scorer.events import Event
    from scorer.report.progress import Progress


EVENTS = "events.jsonl"
TICK_S, TICKS_S = 5.0, 60.0  # between ticks at first, and after hours: a run of days stays readable
_FIRST_BYTES = 2**16  # more than a first line has
_LATER = 100  # a tick for each hundredth of the time gone by


class EventLog:
    """Watches a run and writes a line for each event; makes no file before the run has started.

    Each line is one unbuffered write: a reader never waits for it, and a signal that comes in between adds its own.
    """

    def __init__(
        self, path: Path, progress: Progress, tell: Callable[[str], None], clock: Callable[[], float] = time.time
    ) -> None:
        self._path, self._progress, self._tell, self._clock = path, progress, tell, clock
        self._early: list[bytes] = []
        self._file: int | None = None
        self._given_up = False
        self._began = self._ticked = clock()

    def __call__(self, event: Event) -> None:
        """Write it, if it can be written; a tick only when it is time."""
        if self._given_up or (isinstance(event, Tick) and not self._due()):
            return
        line = json.dumps(self._data(event), separators=(",", ":")).encode() + b"\n"
        try:
            if isinstance(event, RunStarted):
                self._file = _opened(self._path, event.plan)
                line = b"".join([line, *self._early])
                self._early.clear()
            if self._file is None:
                self._early.append(line)
                return
            if os.write(self._file, line) != len(line):
                raise OSError(0, "the disk took a part of a line")  # noqa: TRY301 - full, as the next one would say
        except OSError as error:
            self._given_up = True
            self._close()
            self._tell(f"{self._path} is written no further: {error.strerror or error}")
        if isinstance(event, RunEnded):
            self._close()

    def _due(self) -> bool:
        now = self._clock()
        if now - self._ticked < min(max(TICK_S, (now - self._began) / _LATER), TICKS_S):
            return False
        self._ticked = now
        return True

    def _data(self, event: Event) -> dict[str, Any]:
        """When and what; a tick says how far the run is, as `scorer status --json` would."""
        data = {"time": round(self._clock(), 3)} | to_dict(event)
        return data | self._progress.to_dict() if isinstance(event, Tick) else data

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                os.close(file)


def _opened(path: Path, plan: str) -> int:
    """The file, at the end of what earlier runs of this plan have written; another plan's is replaced."""
    if not _is_of(path, plan):
        path.unlink(missing_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":  # cut off in mid-line
        os.write(file, b"\n")
    return file


def _is_of(path: Path, plan: str) -> bool:
    """Whether its first line names this plan."""
    try:
        with path.open("rb") as file:
            return bool(json.loads(file.readline(_FIRST_BYTES))["plan"] == plan)
    except (OSError, ValueError, KeyError, TypeError):
        return False
