"""What lives in a process that scores: sessions, and the runs it was told about.

The registry is the one piece of mutable state in the product. A plugin only primes it; a task that
finds no session waits for the load, or gets its recorded cause as `ModelNotResident`.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import uuid
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from scorer import where
from scorer.attempts import Witness
from scorer.errors import BatchStalled, ModelError, ModelNotResident, ScorerError
from scorer.isolated import STALLED
from scorer.model import digest_of
from scorer.opened import Opened
from scorer.session import Session
from scorer.sink import Staging, decode_schema
from scorer.watchdog import Watchdog

if TYPE_CHECKING:
    import pyarrow as pa

    from scorer.plan import FrozenPlan, Part
    from scorer.session import SessionSpec

_LOAD_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What every part of a run has in common; travels once per worker, with the plugin."""

    key: str
    """Unique to one execution."""
    frozen: FrozenPlan
    """Without its files; its hash stays."""
    staging: str
    stop_file: str
    """Once this exists, parts that have not started are left for the next run."""
    driver: str = ""
    """The process that plans and publishes."""
    batch_timeout: float | None = None
    turns: int | None = None
    """Parts that a worker works on at once, where it has one thread more: that one waits for the disk."""

    @classmethod
    def of(
        cls, frozen: FrozenPlan, staging: Staging, batch_timeout: float | None = None, turns: int | None = None
    ) -> Spec:
        """The spec of one execution of a plan."""
        key = f"{frozen.plan_hash[:8]}-{uuid.uuid4().hex[:8]}"
        return cls(
            key=key,
            frozen=replace(frozen, files=(), request={}),
            staging=str(staging.root),
            stop_file=str(staging.root / f"stop-{key}"),
            driver=name_of_process(),
            batch_timeout=batch_timeout,
            turns=turns,
        )


@dataclass(slots=True)
class Job:
    """A spec, unpacked once per process."""

    spec: Spec
    read_schema: pa.Schema
    output_schema: pa.Schema
    conditions: tuple[where.Condition, ...]
    opened: Opened
    staging: Staging
    witness: Witness
    turns: threading.Semaphore | None = None
    scoring: dict[int, Part] = field(default_factory=dict)
    """Threads that score, and what."""
    parts_done: int = 0
    watchdog: Watchdog | None = None
    stalled: ScorerError | None = None
    """In the driver's own process, which cannot end a thread: what hangs."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that are fed, or go through the transform first."""
        transform = self.spec.frozen.transform
        return self.spec.frozen.binding.fed if transform is None else transform.reads

    @classmethod
    def of(cls, spec: Spec) -> Job:
        """Schemas decoded, conditions parsed."""
        staging = Staging(root=Path(spec.staging))
        return cls(
            spec,
            decode_schema(spec.frozen.read_schema),
            decode_schema(spec.frozen.output_schema),
            tuple(where.parse(text) for text in spec.frozen.conditions),
            Opened(),
            staging,
            Witness(staging),
            None if spec.turns is None else threading.Semaphore(spec.turns),
        )

    def bark(self, thread: int, seconds: float) -> None:
        """A batch hangs: end this process, or tell the driver if this is its own."""
        error = _hanging(self.scoring.get(thread), seconds, self.spec.batch_timeout)
        self.witness.accuse(str(error))
        if name_of_process() == self.spec.driver:
            self.stalled = error
            return
        print(f"scorer: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the worker's log is all that is left
        os._exit(STALLED)

    def close(self) -> None:
        """Nothing more is scored."""
        if self.watchdog is not None:
            self.watchdog.close()
        self.witness.close()


class Registry:
    """Sessions and jobs of this process, behind one lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._sessions: dict[tuple[str, str, int, str], Future[Session]] = {}
        self._jobs: dict[str, Job] = {}
        self.made = 0

    def prime(self, spec: Spec) -> None:
        """Remember the job and start loading its model; returns at once."""
        with self._lock:
            job = self._jobs[spec.key] = Job.of(spec)
        future = self._future(spec.frozen.session)
        if spec.batch_timeout is not None:

            def calling() -> dict[int, float]:
                return future.result().calling if future.done() and future.exception() is None else {}

            job.watchdog = Watchdog(calling, spec.batch_timeout, job.bark)

    def drop(self, key: str) -> None:
        """Forget a job, and its session unless another job uses it; running calls keep theirs."""
        with self._lock:
            job = self._jobs.pop(key, None)
            if job is None:
                return
            job.close()
            own = job.spec.frozen.session.key
            if all(other.spec.frozen.session.key != own for other in self._jobs.values()):
                self._sessions.pop(own, None)

    def job(self, key: str) -> Job:
        """The job of an execution that this worker was told about."""
        job = self._jobs.get(key)
        if job is None:
            what, hint = "a worker was never told about this run", "repeat the command"
            raise ModelNotResident(what, name_of_process(), f"the plugin of run {key}", "none", hint)
        return job

    def stalled(self, key: str) -> ScorerError | None:
        """What hangs in this process, if anything does."""
        job = self._jobs.get(key)
        return None if job is None else job.stalled

    def session(self, spec: SessionSpec) -> Session:
        """The resident session, loaded now if nobody did; its load error if it failed."""
        try:
            return self._future(spec).result(_LOAD_TIMEOUT_S)
        except TimeoutError:
            what, hint = "the model is still loading", "check the file system that holds the model"
            waited = f"{_LOAD_TIMEOUT_S} s without an answer"
            raise ModelNotResident(what, name_of_process(), "a loaded model", waited, hint) from None

    def release(self) -> None:
        """Forget every session; those in use live until their call ends."""
        with self._lock:
            self._sessions.clear()

    def _future(self, spec: SessionSpec) -> Future[Session]:
        with self._lock:
            if self._pid != os.getpid():  # a fork inherits sessions without their threads
                self._pid, self.made = os.getpid(), 0
                self._sessions.clear()
            future = self._sessions.get(spec.key)
            if future is None or (future.done() and future.exception() is not None):
                future = self._sessions[spec.key] = Future()
                threading.Thread(target=self._load, args=(spec, future), daemon=True, name="scorer-load").start()
            return future

    def _load(self, spec: SessionSpec, future: Future[Session]) -> None:
        try:
            _verify_model(spec)
            session = Session(spec)
            with self._lock:
                self.made += 1
            future.set_result(session)
        except BaseException as error:  # noqa: BLE001 - the worker boundary: whoever asks gets the cause
            future.set_exception(error)


REGISTRY = Registry()


def _hanging(part: Part | None, seconds: float, limit: float | None) -> BatchStalled:
    place = part.place if part else ""
    what = "a batch hangs in the model"
    hint = "repeat the command: that part is then scored in a process of its own; or raise --batch-timeout"
    return BatchStalled(what, place, f"an answer within {limit:g} s", f"none after {seconds:.1f} s", hint)


def _verify_model(spec: SessionSpec) -> None:
    """The file this worker sees is the file that was planned."""
    found = digest_of(spec.path, spec.files) if os.path.exists(spec.path) else "nothing"
    if found != spec.digest:
        what = "the model is not the one that was planned"
        hint = "restore it, or start again with --overwrite; workers must see the same file"
        where_ = f"{spec.path} on {name_of_process()}"
        raise ModelError(what, where_, f"sha256 {spec.digest[:16]}", found[:16], hint)


def name_of_process() -> str:
    """Host and process id, for receipts and errors."""
    return f"{socket.gethostname()}:{os.getpid()}"
