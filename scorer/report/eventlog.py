"""events.jsonl: every event of a run as a line of JSON, for programs that follow the run.

The log is not part of the proof. If it cannot be written, the run continues.
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
TICK_S, TICKS_S = 5.0, 60.0  # between ticks at the start, and after hours: the log of a run of days stays readable
_FIRST_LINE_BYTES = 2**16  # an upper bound of the first line's length
_TICKS_PER_RUN = 100  # between both limits, a tick whenever the run has become 1 % longer


class EventLog:
    """An observer that writes a line for each event; the file is created when the run has started.

    Each line is one unbuffered write. Readers see it at once, and a signal handler can log an event between two others.
    """

    def __init__(
        self, path: Path, progress: Progress, notify: Callable[[str], None], clock: Callable[[], float] = time.time
    ) -> None:
        self._path, self._progress, self._notify, self._clock = path, progress, notify, clock
        self._before_start: list[bytes] = []
        self._file: int | None = None
        self._given_up = False
        self._began = self._ticked = clock()

    def __call__(self, event: Event) -> None:
        """Write the event, if the log can be written; a tick only when one is due."""
        if self._given_up or (isinstance(event, Tick) and not self._due()):
            return
        line = json.dumps(self._data(event), separators=(",", ":")).encode() + b"\n"
        try:
            if isinstance(event, RunStarted):
                self._file = _open(self._path, event.plan)
                line = b"".join([line, *self._before_start])
                self._before_start.clear()
            if self._file is None:
                self._before_start.append(line)
                return
            if os.write(self._file, line) != len(line):
                raise OSError(0, "a line was written in part")  # noqa: TRY301 - the disk is full: the next write would fail
        except OSError as error:
            self._given_up = True
            self._close()
            self._notify(f"{self._path} is no longer written: {error.strerror or error}; the run continues")
        if isinstance(event, RunEnded):
            self._close()

    def _due(self) -> bool:
        now = self._clock()
        if now - self._ticked < min(max(TICK_S, (now - self._began) / _TICKS_PER_RUN), TICKS_S):
            return False
        self._ticked = now
        return True

    def _data(self, event: Event) -> dict[str, Any]:
        """Return the event with its time; a tick also has the progress that `scorer status --json` shows."""
        data = {"time": round(self._clock(), 3)} | to_dict(event)
        return data | self._progress.to_dict() if isinstance(event, Tick) else data

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                os.close(file)


def _open(path: Path, plan: str) -> int:
    """Open the log to append to it if earlier runs of this plan wrote it; replace the log of another plan."""
    if not _is_log_of(path, plan):
        path.unlink(missing_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":  # the last write was cut short
        os.write(file, b"\n")
    return file


def _is_log_of(path: Path, plan: str) -> bool:
    """Return whether the first line names this plan."""
    try:
        with path.open("rb") as file:
            return bool(json.loads(file.readline(_FIRST_LINE_BYTES))["plan"] == plan)
    except (OSError, ValueError, KeyError, TypeError):
        return False
