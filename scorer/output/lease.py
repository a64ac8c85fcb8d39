"""One driver per output on an object store: an object that only its holder can replace, renewed every 10 seconds.

A renewal replaces the object that the holder wrote before, by its ETag, so that of two drivers only one can do it. An
observer may take over a lease whose ETag has not changed for 60 s by the observer's own clock. The holder stops before
that: it notes the time before each renewal that succeeds, and 36 s after it, no request of `Lease.store` starts. None
takes longer than 20 s. So the requests of one holder have ended before the next one's start.

                  last renewal     the holder sends no more     its requests have ended     another may take over
    seconds       0                36                           56                          60
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scorer.errors import OutputLocked
from scorer.host.process import myself
from scorer.output import lock
from scorer.storage import stores
from scorer.storage.files import map_write_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scorer.errors import ScorerError
    from scorer.storage.files import FileId
    from scorer.storage.objects import ObjectStore
    from scorer.storage.stores import ObjectPath


REQUEST_S = 20.0
"""How long a request of the holder may take."""
FENCE_SHARE = 0.6
"""After this share of the time that makes a lease stale, its holder sends no more requests."""
_RENEWAL_S = 8.0  # how long one attempt to renew may take
_AGAIN_S = 2.0  # between two attempts to renew, if the store does not answer
_POLL_S = 2.0  # between two looks at another driver's lease
_WAITS_S = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)


class Lease:
    """A lease that this process holds, and the thread that renews it."""

    def __init__(self, path: ObjectPath, notify: Callable[[str], None], stale_s: float) -> None:
        self.notify = notify
        self._path, self._stale_s = path, stale_s
        self._renewals = stores.of(str(path), within_s=min(_RENEWAL_S, stale_s / 5))
        self._token = uuid.uuid4().hex
        self._state: dict[str, Any] = {**myself(), "token": self._token, "started": time.time(), "beat": 0}
        self._counters: Callable[[], dict[str, Any]] = dict
        self._seen: FileId | None = None
        self._renewed = _Moment.now()
        self._owner: dict[str, Any] | None = None  # who took the lease over
        self._lost = False
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._heartbeat = threading.Thread(target=self._run_heartbeat, daemon=True, name="scorer-lease")

    def attach_counters(self, counters: Callable[[], dict[str, Any]]) -> None:
        """Write these counters into the lease with each renewal, for `scorer status`."""
        self._counters = counters

    def store(self, failed: Callable[[], object] = lambda: None) -> ObjectStore:
        """Return the output's store for the steps of publishing: each attempt is sent only while the lease is held.

        `failed` is called after an attempt that failed and is repeated.
        """
        within_s = min(REQUEST_S, (1 - FENCE_SHARE) * self._stale_s)
        return stores.of(str(self._path), within_s=within_s).guarded(self.check, _WAITS_S, failed)

    def check(self) -> None:
        """Raise `OutputLocked` if another driver has the lease or may take it over; try to renew it before."""
        loss = self.loss()
        if loss is not None:
            raise loss

    def loss(self) -> ScorerError | None:
        """Return the error if the lease is lost, or could not be renewed in time."""
        if not self._lost and self._is_old():
            self._renew(only_if_old=True)  # the process may have been stopped for a while, and still hold it
        if not self._lost and not self._is_old():
            return None
        owner = self._owner
        age = f"none for {_Moment.now().since(self._renewed):.0f} s"
        return OutputLocked(
            "the lease on the output was lost, so this run stopped writing",
            where=str(self._path),
            expected=f"a renewal every {lock.HEARTBEAT_S:.0f} s",
            found=age if owner is None else f"process {owner.get('pid')} on {owner.get('host')} took over",
            hint="repeat the command: committed parts are kept",
        )

    def take(self) -> None:
        """Write the lease, or take it over from a dead owner; raise `OutputLocked` if its owner lives."""
        lock.hold(self._token)
        try:
            with map_write_errors(self._path):
                self._write_first()
            self._heartbeat.start()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Stop the heartbeat, and remove the lease if it still has this token."""
        lock.let_go(self._token)
        self._stop.set()
        if self._heartbeat.ident is not None:
            self._heartbeat.join()
        store = self._renewals.guarded(lambda: None, _WAITS_S[:3])
        with suppress(OSError):  # it becomes stale
            found = None if self._lost or self._is_old() else _read(store, self._path)
            if found is not None and found[0].get("token") == self._token:
                store.remove([str(self._path)])

    def _write_first(self) -> None:
        patient = self._renewals.guarded(lambda: None, _WAITS_S)
        watched: FileId | None = None
        until = 0.0
        look = (
            not patient.conditional
        )  # otherwise the write itself says whether there is a lease; usually there is none
        while True:
            found = _read(patient, self._path) if look else None
            look = True
            if found is None:
                self._renewed = _Moment.now()
                self._seen = patient.put_new(str(self._path), self._body())
                if self._seen is not None:
                    return
                continue  # another driver was first, or the answer to this request was lost
            owner, seen = found
            if owner.get("token") == self._token:
                self._seen = seen
                return
            alive = lock.is_alive(owner)
            if alive or (watched is not None and (watched.version, watched.size) != (seen.version, seen.size)):
                raise lock.refused(self._path, owner)
            if alive is None and watched is None:
                self.notify(lock.waiting(owner, self._stale_s))
                watched, until = seen, time.monotonic() + self._stale_s
            if alive is False or time.monotonic() >= until:
                self._renewed = _Moment.now()
                self._seen = patient.put_over(str(self._path), self._body(), seen)
                if self._seen is not None:
                    return
                continue
            time.sleep(min(_POLL_S, self._stale_s / 20))

    def _run_heartbeat(self) -> None:
        wait = 1.0
        while not self._lost and not self._stop.wait(wait):
            done = self._renew()
            # frequent in the first seconds, when a user is likely to look
            usual = min(lock.HEARTBEAT_S, self._stale_s / 6, 1.0 + self._state["beat"])
            wait = usual if done else min(_AGAIN_S, usual)

    def _renew(self, *, only_if_old: bool = False) -> bool:
        """Renew the lease; return False if it is not known whether that succeeded. Sets `_lost` if another has it."""
        with self._guard:
            if only_if_old and not self._is_old():
                return True
            before = _Moment.now()
            self._state = {**self._state, "beat": self._state["beat"] + 1}
            try:
                written = self._renewals.put_over(str(self._path), self._body(), self._seen)  # type: ignore[arg-type]
                if written is not None:
                    self._seen, self._renewed = written, before
                    return True
                found = _read(self._renewals, self._path)
            except OSError:  # the next attempt may succeed
                return False
            if found is None or found[0].get("token") != self._token:
                self._owner, self._lost = found[0] if found else None, True
                return False
            owner, self._seen = found
            if owner.get("beat") == self._state["beat"]:  # the answer was lost, not the request
                self._renewed = before
            return bool(owner.get("beat") == self._state["beat"])

    def _is_old(self) -> bool:
        return _Moment.now().since(self._renewed) > FENCE_SHARE * self._stale_s

    def _body(self) -> bytes:
        counters: dict[str, Any] = {}
        with suppress(Exception):  # the counters are only shown: an error in them must not stop the heartbeat
            counters = self._counters()
        # never twice the same bytes, because an ETag may be a digest of them: the token and the beat differ
        return json.dumps(counters | self._state | {"now": time.time()}).encode()


@dataclass(frozen=True, slots=True)
class _Moment:
    """A time by two clocks: one stands still while the machine sleeps, the other may be set."""

    monotonic: float
    wall: float

    @classmethod
    def now(cls) -> _Moment:
        return cls(time.monotonic(), time.time())

    def since(self, earlier: _Moment) -> float:
        """Return the seconds between the two, by the clock that went further."""
        return max(self.monotonic - earlier.monotonic, self.wall - earlier.wall)


@contextmanager
def held(path: ObjectPath, notify: Callable[[str], None], stale_s: float = lock.STALE_S) -> Iterator[Lease]:
    """Hold the lease at `path`, taken over from a dead owner if need be; raise `OutputLocked` if the owner lives."""
    lease = Lease(path, notify, stale_s)
    lease.take()
    try:
        yield lease
    finally:
        lease.release()


def _read(store: ObjectStore, path: ObjectPath) -> tuple[dict[str, Any], FileId] | None:
    """Return the owner of the lease and which object it is; None if there is no lease."""
    try:
        data, seen = store.read_with_identity(str(path))
    except FileNotFoundError:
        return None
    try:
        owner = json.loads(data)
    except ValueError:
        owner = None
    return owner if isinstance(owner, dict) else {}, seen
