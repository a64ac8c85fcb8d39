"""The models of this process, each loaded once: whoever comes first loads it, the others wait."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

from scorer.errors import ModelError, ModelNotResident
from scorer.host.process import name_of_process
from scorer.model import copies
from scorer.model.protobuf import digest_of
from scorer.model.session import Session

if TYPE_CHECKING:
    from scorer.model.spec import SessionSpec


_LOAD_TIMEOUT_S = 600
_DELIVERY_LOOK_S = 0.5


class Sessions:
    """Loaded models by what tells them apart; of this process only, never pickled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._sessions: dict[tuple[str, str, int, int, str], Future[Session]] = {}
        self.made = 0

    def session(self, spec: SessionSpec) -> Session:
        """The resident session, loaded now if nobody did; its load error if it failed."""
        try:
            return self.loading(spec).result(_LOAD_TIMEOUT_S)
        except TimeoutError:
            what, hint = "the model is still loading", "check the file system that holds the model"
            waited = f"{_LOAD_TIMEOUT_S} s without an answer"
            raise ModelNotResident(what, name_of_process(), "a loaded model", waited, hint) from None

    def release(self) -> None:
        """Forget every session; those in use live until their call ends."""
        with self._lock:
            self._sessions.clear()

    def loading(self, spec: SessionSpec, patience_s: float = 0.0) -> Future[Session]:
        """The session or its error, once loaded; the load starts now, and waits so long for the driver's copy."""
        with self._lock:
            if self._pid != os.getpid():  # a fork inherits sessions without their threads
                self._pid, self.made = os.getpid(), 0
                self._sessions.clear()
            future = self._sessions.get(spec.key)
            if future is None or (future.done() and future.exception() is not None):
                future = self._sessions[spec.key] = Future()
                threading.Thread(
                    target=self._load, args=(spec, future, patience_s), daemon=True, name="scorer-load"
                ).start()
            return future

    def _load(self, spec: SessionSpec, future: Future[Session], patience_s: float) -> None:
        try:
            session = Session(_as_planned(spec, patience_s))
            with self._lock:
                self.made += 1
            future.set_result(session)
        except BaseException as error:  # noqa: BLE001 - the worker boundary: whoever asks gets the cause
            future.set_exception(error)

    def failure(self, spec: SessionSpec) -> BaseException | None:
        """Why the model did not load, if that is known already."""
        with self._lock:
            future = self._sessions.get(spec.key)
        return future.exception() if future is not None and future.done() else None

    def forget(self, key: tuple[str, str, int, int, str]) -> None:
        """Keep this one no longer; a call that runs keeps its own."""
        with self._lock:
            self._sessions.pop(key, None)


SESSIONS = Sessions()


def _as_planned(spec: SessionSpec, patience_s: float) -> SessionSpec:
    """The model where this process sees it, once the driver has brought it if need be."""
    until = time.monotonic() + patience_s
    while True:
        found = copies.local_spec(spec)
        if found is not None:
            return found
        if time.monotonic() >= until:
            break
        time.sleep(_DELIVERY_LOOK_S)
    there = digest_of(spec.path, spec.files) if os.path.exists(spec.path) else "nothing"
    what = "the model is not the one that was planned"
    hint = "restore it, or start again with --overwrite; workers must see the same file"
    where_ = f"{spec.path} on {name_of_process()}"
    raise ModelError(what, where_, f"sha256 {spec.digest[:16]}", there[:16], hint)
