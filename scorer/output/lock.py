"""One driver per output: a lock with a heartbeat, and who may take it over.

Same host: the owner is dead when its process is. Other host: when its counter stands still for a
minute on our own clock; file times of a shared file system are not trusted.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from scorer.errors import OutputLocked
from scorer.host.process import myself, process_stat
from scorer.storage.files import map_write_errors, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


HEARTBEAT_S = 10.0
STALE_S = 60.0
_ENDED = "ZX"  # states of a process that nobody has buried yet
_OURS: set[str] = set()
"""Tokens of this process's locks until they are released; a notebook outlives a run whose end was interrupted."""


class Lock:
    """The lock while we hold it; what `follow` is given goes with every beat, for `scorer status`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._token = uuid.uuid4().hex
        _OURS.add(self._token)
        self._stop = threading.Event()
        self._counters: Callable[[], dict[str, Any]] = dict
        self._state: dict[str, Any] = {
            **myself(),
            "token": self._token,
            "started": time.time(),
            "beat": 0,
        }
        self._beater = threading.Thread(target=self._beat, daemon=True, name="scorer-lock")

    def start(self) -> None:
        """Write the lock and keep it alive."""
        self._write()
        self._beater.start()

    def follow(self, counters: Callable[[], dict[str, Any]]) -> None:
        """Where the counters come from that whoever looks from outside sees; asked with each beat."""
        self._counters = counters

    def release(self) -> None:
        """Stop the heartbeat and remove the lock, if it is still ours."""
        _OURS.discard(self._token)  # whatever interrupts what follows
        self._stop.set()
        try:
            self._beater.join()
        finally:
            if (read(self._path) or {}).get("token") == self._token:
                with suppress(OSError):
                    self._path.unlink()

    def _beat(self) -> None:
        while not self._stop.wait(min(HEARTBEAT_S, 1 + self._state["beat"])):  # often at first: somebody may be looking
            self._state = {**self._state, "beat": self._state["beat"] + 1}
            with suppress(OSError):  # a full disk must not end the run here
                self._write()

    def _write(self) -> None:
        counters: dict[str, Any] = {}
        with suppress(Exception):  # what is only looked at must not stop the heart
            counters = self._counters()
        data = json.dumps(counters | self._state | {"now": time.time()}).encode()
        write_atomically(self._path, data, durable=False, tmp=self._path.with_name(f"lock.{self._token}"))


@contextmanager
def held(path: Path, tell: Callable[[str], None], stale_s: float = STALE_S) -> Iterator[Lock]:
    """The lock at `path`, taken over from a dead owner, or `OutputLocked`."""
    with map_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock(path)
        with _only_us(path.parent):
            owner = read(path)
            if owner is not None and _alive(owner, path, tell, stale_s):
                raise refused(path, owner)
            for left in path.parent.glob("lock.*"):
                left.unlink(missing_ok=True)
            lock.start()
    try:
        yield lock
    finally:
        lock.release()
        with suppress(OSError):
            path.parent.rmdir()  # only if nothing else was left there


def read(path: Path) -> dict[str, Any] | None:
    """Who holds the lock and how far it is, or None."""
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def is_alive(owner: dict[str, Any]) -> bool | None:
    """Whether a lock's owner lives; None when it is on another host."""
    if owner.get("host") != socket.gethostname():
        return None
    pid = owner.get("pid", -1)
    if pid == os.getpid() and "token" in owner and owner["token"] not in _OURS:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    stat = process_stat(pid)
    if stat is not None and stat[0] in _ENDED:
        return False
    return owner.get("born") in {None, stat[1] if stat else None}


def _alive(owner: dict[str, Any], path: Path, tell: Callable[[str], None], stale_s: float) -> bool:
    here = is_alive(owner)
    if here is not None:
        return here
    tell(f"the output is locked by {owner.get('host')}; waiting {stale_s:.0f} s for a sign of life")
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
def _only_us(folder: Path) -> Iterator[None]:
    """Nobody else on this host decides about the lock meanwhile; a file system without flock has no say."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def refused(path: Path, owner: dict[str, Any]) -> OutputLocked:
    """The error that names the owner."""
    what, hint = "another run is writing this output", "wait for it (`scorer status OUT`), or choose another --output"
    found = f"process {owner.get('pid')} on {owner.get('host')}"
    return OutputLocked(what, str(path), "no other run", found, hint)
