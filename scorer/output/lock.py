"""One driver per output: a lock file with a heartbeat, and the rules for taking it over from a dead owner.

On the same host, the owner is dead if its process is. On another host or in another container, it counts as dead if its
heartbeat counter does not change for a minute by this host's clock. File times of a shared file system are not trusted.

On an object store the lock is a lease, see `lease.py`; `read` and `refused` take both kinds of path.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from socket import gethostname
from typing import TYPE_CHECKING, Any

from scorer.errors import OutputLocked
from scorer.host.process import myself, process_stat, shares_process_ids
from scorer.storage.files import map_write_errors, write_atomically
from scorer.storage.stores import raise_if_unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from scorer.errors import ScorerError
    from scorer.storage.stores import AnyPath


HEARTBEAT_S = 10.0
STALE_S = 60.0
_ENDED_STATES = "ZX"  # process states: zombie and dead
_HELD_TOKENS: set[str] = set()
"""Tokens of the locks that this process holds.

The process id alone is not enough: if a notebook's run is interrupted while it ends, its lock file stays behind, and
the process lives on without holding it.
"""


class Lock:
    """A lock that this process holds, and the thread that writes its heartbeat."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._token = uuid.uuid4().hex
        hold(self._token)
        self._stop = threading.Event()
        self._counters: Callable[[], dict[str, Any]] = dict
        self._state: dict[str, Any] = {
            **myself(),
            "token": self._token,
            "started": time.time(),
            "beat": 0,
        }
        self._heartbeat = threading.Thread(target=self._run_heartbeat, daemon=True, name="scorer-lock")

    def start(self) -> None:
        """Write the lock file and start the heartbeat; without a thread for it, there is no lock."""
        try:
            self._write()
            self._heartbeat.start()
        except BaseException:
            self.release()
            raise

    def attach_counters(self, counters: Callable[[], dict[str, Any]]) -> None:
        """Write these counters into the lock file with each heartbeat, for `scorer status`."""
        self._counters = counters

    def loss(self) -> ScorerError | None:
        """Return None: only a lease can be lost, because a file system has no request that another driver overtakes."""
        return None

    def release(self) -> None:
        """Stop the heartbeat; remove the lock file, if it still has this token, and the folder if it is empty."""
        let_go(self._token)  # first, because an interrupt may skip the rest
        self._stop.set()
        try:
            if self._heartbeat.ident is not None:  # it was started
                self._heartbeat.join()
        finally:
            if (read(self._path) or {}).get("token") == self._token:
                with suppress(OSError):
                    self._path.unlink()
            with suppress(OSError):
                self._path.parent.rmdir()  # succeeds only if it is empty

    def _run_heartbeat(self) -> None:
        # frequent in the first seconds, when a user is likely to look
        while not self._stop.wait(min(HEARTBEAT_S, 1 + self._state["beat"])):
            self._state = {**self._state, "beat": self._state["beat"] + 1}
            with suppress(OSError):  # a full disk must not end the run here
                self._write()

    def _write(self) -> None:
        counters: dict[str, Any] = {}
        with suppress(Exception):  # the counters are only shown: an error in them must not stop the heartbeat
            counters = self._counters()
        data = json.dumps(counters | self._state | {"now": time.time()}).encode()
        write_atomically(self._path, data, durable=False, tmp=self._path.with_name(f"lock.{self._token}"))


@contextmanager
def held(path: Path, notify: Callable[[str], None], stale_s: float = STALE_S) -> Iterator[Lock]:
    """Hold the lock at `path`, taken over from a dead owner if need be; raise `OutputLocked` if the owner lives."""
    with map_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(path.parent):
            owner = read(path)
            if owner is not None and _is_held(owner, path, notify, stale_s):
                raise refused(path, owner)
            for stale in path.parent.glob("lock.*"):
                stale.unlink(missing_ok=True)
            lock = Lock(path)
            lock.start()
    try:
        yield lock
    finally:
        lock.release()


def read(path: AnyPath) -> dict[str, Any] | None:
    """Read the lock file: its owner and how far the run is. None if no lock can be read."""
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise_if_unknown(path, error)
        return None
    return state if isinstance(state, dict) else None


def is_alive(owner: dict[str, Any]) -> bool | None:
    """Return whether the owner of a lock is alive; None if it is on another host or in another container."""
    pid = owner.get("pid")
    if not shares_process_ids(owner) or not isinstance(pid, int) or pid <= 0:
        return None
    if pid == os.getpid() and "token" in owner and owner["token"] not in _HELD_TOKENS:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    stat = process_stat(pid)
    if stat is not None and stat[0] in _ENDED_STATES:
        return False
    return owner.get("born") in {None, stat[1] if stat else None}


def _is_held(owner: dict[str, Any], path: Path, notify: Callable[[str], None], stale_s: float) -> bool:
    here = is_alive(owner)
    if here is not None:
        return here
    notify(waiting(owner, stale_s))
    until = time.monotonic() + stale_s
    while time.monotonic() < until:
        now = read(path)
        if now is None:
            return False
        if now.get("beat") != owner.get("beat") or now.get("token") != owner.get("token"):
            return True
        time.sleep(min(1.0, stale_s / 10))
    return False


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Keep other processes of this host from checking the lock meanwhile; no effect on file systems without flock."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def waiting(owner: dict[str, Any], stale_s: float) -> str:
    """Return the notice that a lock's owner may be dead."""
    host = owner.get("host")
    place = f"in another container on {host}" if host == gethostname() else f"on {host}"
    return f"the output is locked by a process {place}; waiting {stale_s:.0f} s for its heartbeat"


def hold(token: str) -> None:
    """Record that this process holds the lock with this token."""
    _HELD_TOKENS.add(token)


def let_go(token: str) -> None:
    """Record that this process no longer holds the lock with this token."""
    _HELD_TOKENS.discard(token)


def refused(path: AnyPath, owner: dict[str, Any]) -> OutputLocked:
    """Return the error that names the owner of the lock."""
    return OutputLocked(
        "another run is writing this output",
        where=str(path),
        expected="no other run",
        found=f"process {owner.get('pid')} on {owner.get('host')}",
        hint="wait for it (`scorer status OUT`), or choose another --output",
    )
