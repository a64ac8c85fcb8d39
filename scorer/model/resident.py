"""What a loaded model offers, and the models of this process.

The first caller loads a model in a thread, on one of the two engines; later callers wait for it.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

from scorer.errors import ModelError, ModelLoadError, ModelNotResident
from scorer.host.process import name_of_process
from scorer.model import copies
from scorer.model._forest import Unsupported
from scorer.model.session import Session
from scorer.model.trees import TreeEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scorer.model.spec import SessionKey, SessionSpec


_LOAD_TIMEOUT_S = 600
_DELIVERY_POLL_S = 0.5


class Engine(Protocol):
    """A loaded model. `run` may be called from many threads at once."""

    spec: SessionSpec
    fits: int | None
    """Largest number of rows to try in a batch after memory ran out; None if it never did."""
    calling: dict[int, float]
    """Threads inside `run`, with the time at which each entered."""
    nodes: dict[str, dict[str, int]]
    """Number of nodes by device and operator; {} if everything runs on the CPU."""
    trees: str
    """How the model's tree ensembles are scored, in words; '' if it has none, or if ONNX Runtime was requested."""

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """Return the model's outputs for one batch, in the order of `outputs`."""
        ...

    def release_memory(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> None:
        """Return to the system what batches left allocated on the CPU; may run one batch for it."""
        ...


def load(spec: SessionSpec) -> Engine:
    """Load a model: its trees compiled if that is possible and wanted, else all of it on ONNX Runtime."""
    if spec.trees and spec.device == "cpu" and spec.intra_op == 1:
        try:
            return TreeEngine(spec)
        except Unsupported as why:
            session = Session(spec)
            session.trees = f"by ONNX Runtime: {why}" if str(why) else ""
            return session
    return Session(spec)


class Sessions:
    """The loaded models by `SessionSpec.key`; belongs to one process and is never pickled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: dict[SessionKey, Future[Engine]] = {}
        self._inherited: list[object] = []
        self._unpacked: dict[SessionKey, str] = {}
        self.made = 0
        """Number of sessions loaded so far."""
        os.register_at_fork(after_in_child=self._start_anew)

    def session(self, spec: SessionSpec) -> Engine:
        """Return the session, loading it first if necessary; raises the load error if loading failed."""
        try:
            return self.loading(spec).result(_LOAD_TIMEOUT_S)
        except TimeoutError:
            raise ModelNotResident(
                "the model is still loading",
                where=name_of_process(),
                expected="a loaded model",
                found=f"still loading after {_LOAD_TIMEOUT_S} s",
                hint="check the file system that holds the model",
            ) from None

    def release(self) -> None:
        """Drop every session; those in use stay alive until their call ends."""
        with self._lock:
            self._sessions.clear()

    def loading(self, spec: SessionSpec, delivery_timeout_s: float = 0.0) -> Future[Engine]:
        """Start loading the model and return a future; wait up to `delivery_timeout_s` for the driver's copy."""
        with self._lock:
            future = self._sessions.get(spec.key)
            if future is None or (future.done() and future.exception() is not None):
                future = self._sessions[spec.key] = Future()
                threading.Thread(
                    target=self._load, args=(spec, future, delivery_timeout_s), daemon=True, name="scorer-load"
                ).start()
            return future

    def _load(self, spec: SessionSpec, future: Future[Engine], delivery_timeout_s: float) -> None:
        try:
            session, unpacked = _load(spec, lambda: _readable_spec(spec, delivery_timeout_s))
            with self._lock:
                self.made += 1
                self._unpacked[spec.key] = unpacked
            future.set_result(session)
        except BaseException as error:  # noqa: BLE001 - the worker boundary: every caller gets the cause
            future.set_exception(error)

    def failure(self, spec: SessionSpec) -> BaseException | None:
        """Return why the model did not load, if loading has already failed."""
        with self._lock:
            future = self._sessions.get(spec.key)
        return future.exception() if future is not None and future.done() else None

    def why_unpacked(self, spec: SessionSpec) -> str:
        """Return why the weights of a loaded model are not packed although they were to be, in words; '' otherwise."""
        with self._lock:
            return self._unpacked.get(spec.key, "")

    def _start_anew(self) -> None:
        """Use no session of the parent in a forked process, which does not have its threads.

        The sessions are kept, because to free one would wait for its threads. The lock may be held by such a thread.
        """
        self._inherited.append(self._sessions)
        self._lock, self._sessions, self.made = threading.Lock(), {}, 0

    def forget(self, key: SessionKey) -> None:
        """Drop one session; a running call keeps its own reference."""
        with self._lock:
            self._sessions.pop(key, None)


SESSIONS = Sessions()


def unpacked_note(why: str) -> str:
    """Return the note that the weights are not packed, with the reason."""
    return f"the weights are not packed, so each process holds a copy of its own: {why}"


def _load(spec: SessionSpec, readable: Callable[[], SessionSpec]) -> tuple[Engine, str]:
    """Load the model, with packed weights if that is wanted and possible; if only wanted, return why not, too."""
    if not spec.pack:
        return _load_from(spec, readable()), ""
    from scorer.model.packing import shared  # noqa: PLC0415 - only if processes share a host

    try:
        return Session(spec, shared.obtain(spec, readable).path), ""
    except shared.NotPacked as why:
        unpacked = str(why)
    except ModelLoadError as error:  # another process removed it just now
        unpacked = error.found
    return _load_from(spec, readable()), unpacked


def _load_from(spec: SessionSpec, local: SessionSpec) -> Engine:
    """Load the model from a path that this process can read; an error names where the user has it."""
    try:
        return load(local)
    except ModelError as error:
        if error.where == local.path:
            error.where = spec.path
        raise


def _readable_spec(spec: SessionSpec, delivery_timeout_s: float) -> SessionSpec:
    """Return the spec with a path that this process can read, waiting for the driver's copy if necessary."""
    until = time.monotonic() + delivery_timeout_s
    found = copies.local_spec(spec)
    while found is None and time.monotonic() < until:
        time.sleep(_DELIVERY_POLL_S)
        found = copies.local_spec(spec, fetched=False)
    if found is not None:
        return found
    raise copies.missing(spec)
