"""events.jsonl: every event of a run as a line of JSON, for programs that follow the run.

The log is not part of the proof. If it cannot be written, the run continues. Of an output on an object store, it is
a file in this user's temporary folder, which is put beside the output every half minute and at the end.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorer.events import RunEnded, RunStarted, Tick, to_dict
from scorer.host.private import private_folder
from scorer.storage import stores

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from scorer.events import Event
    from scorer.report.progress import Progress
    from scorer.storage.stores import AnyPath, ObjectPath


EVENTS = "events.jsonl"
TICK_S, TICKS_S = 5.0, 60.0  # between ticks at the start, and after hours: the log of a run of days stays readable
_FIRST_LINE_BYTES = 2**16  # an upper bound of the first line's length
_PUT_S = 30.0  # between two copies to a store
_PUT_WITHIN_S, _AGAIN_S = 30.0, (0.2, 0.5, 1.0)  # how long one attempt may take; waits before further ones
_PUT_BYTES_PER_S = 1e6  # of copies, on average: a log of hundreds of MB is put less often
_TICKS_PER_RUN = 100  # between both limits, a tick whenever the run has become 1 % longer


class EventLog:
    """An observer that writes a line for each event; the file is created when the run has started.

    Each line is one unbuffered write. Readers see it at once, and a signal handler can log an event between two others.
    """

    def __init__(
        self, path: AnyPath, progress: Progress, notify: Callable[[str], None], clock: Callable[[], float] = time.time
    ) -> None:
        self._shown = path
        self._copy = None if isinstance(path, Path) else _Copy(path)
        self._path = path if self._copy is None else self._copy.local
        self._progress, self._notify, self._clock = progress, notify, clock
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
                if self._copy is not None:
                    self._copy.fetch()
                self._file = _open(self._path, event.plan)  # type: ignore[arg-type]
                line = b"".join([line, *self._before_start])
                self._before_start.clear()
            if self._file is None:
                self._before_start.append(line)
                return
            if os.write(self._file, line) != len(line):
                raise OSError(0, "a line was written in part")  # noqa: TRY301 - the disk is full: the next write would fail
            if self._copy is not None:
                self._copy.put(now=isinstance(event, RunEnded))
        except OSError as error:
            self._give_up(error)
        if isinstance(event, RunEnded):
            self._close()

    def save(self) -> None:
        """Put the log on the store now, if the output is on one."""
        if self._copy is not None and self._file is not None:
            try:
                self._copy.put(now=True)
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._given_up = True
        self._close()
        self._notify(f"{self._shown} is no longer written: {error.strerror or error}; the run continues")

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


class _Copy:
    """The log's copy on a store, and the local file that it is a copy of."""

    def __init__(self, path: ObjectPath) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "scorer-events")
        self._sending: Future[None] | None = None
        self._sent_at, self._pause_s = time.monotonic(), _PUT_S
        self.local = Path(private_folder()) / "events" / f"{zlib.crc32(str(path).encode()):08x}.jsonl"

    def fetch(self) -> None:
        """Begin with the log on the store, if there is one, because an earlier run may have written it elsewhere."""
        self.local.parent.mkdir(exist_ok=True)
        self.local.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            self.local.write_bytes(self._path.read_bytes())

    def put(self, *, now: bool) -> None:
        """Put the log on the store: `now`, or in a thread and only if it is time for it."""
        if now:
            if self._sending is not None:
                self._sending.result()
            self._put()
        elif time.monotonic() - self._sent_at > self._pause_s and (self._sending is None or self._sending.done()):
            self._sending = self._thread.submit(self._put)

    def _put(self) -> None:
        self._sent_at = time.monotonic()
        data = self.local.read_bytes()
        self._pause_s = max(_PUT_S, len(data) / _PUT_BYTES_PER_S)
        store = stores.of(str(self._path), within_s=_PUT_WITHIN_S).guarded(lambda: None, _AGAIN_S)
        store.put(str(self._path), data)


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
