"""A run as each process that scores knows it."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from scorer.arrow import decode_schema
from scorer.dataset import conditions as conditions_
from scorer.dataset.cursors import InputCache
from scorer.errors import BatchStalled, ModelNotResident, ScorerError, WorkerUnfit
from scorer.host.isolation import STALLED
from scorer.host.process import name_of_process
from scorer.host.versions import version_conflicts
from scorer.host.watchdog import Watchdog
from scorer.model.resident import SESSIONS
from scorer.output.attempts import CrashFile
from scorer.output.place import Staging
from scorer.storage import copying

if TYPE_CHECKING:
    from collections.abc import Callable

    from scorer.events import Receipt
    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.parts import Part

_DELIVERY_S = 60.0  # the driver looks for new hosts every few seconds


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
    scoring_threads: int | None = None
    """Parts that a worker works on at once, where it has one thread more: that one waits for the disk."""
    remote: bool = False
    """Whether workers may be on other machines."""
    run: str = ""
    """The run's name."""

    @property
    def topic(self) -> str:
        """Under which workers tell the driver of their receipts."""
        return f"scorer-{self.key}"

    @classmethod
    def of(
        cls, frozen: FrozenPlan, staging: Staging, batch_timeout: float | None = None,
        scoring_threads: int | None = None, *, remote: bool = False, run: str = "",
    ) -> Spec:  # fmt: skip
        """The spec of one execution of a plan."""
        key = f"{frozen.plan_hash[:8]}-{uuid.uuid4().hex[:8]}"
        return cls(
            key=key,
            frozen=replace(frozen, files=(), request={}),
            staging=str(staging.root),
            stop_file=str(staging.root / f"stop-{key}"),
            driver=name_of_process(),
            batch_timeout=batch_timeout,
            scoring_threads=scoring_threads,
            remote=remote,
            run=run,
        )


@dataclass(slots=True)
class Job:
    """A spec, unpacked once per process."""

    spec: Spec
    read_schema: pa.Schema
    output_schema: pa.Schema
    lean_schema: pa.Schema | None
    """What is read of whole row groups, whose kept columns are copied; None where none are."""
    form: copying.FileForm | None
    """Of the parts, where columns are copied."""
    conditions: tuple[conditions_.Condition, ...]
    inputs: InputCache
    staging: Staging
    crash_file: CrashFile
    slots: threading.Semaphore | None = None
    scoring: dict[int, Part] = field(default_factory=dict)
    """Threads that score, and what."""
    parts_done: int = 0
    longest_s: float = 0.0
    """That a part took in this process."""
    address: str = ""
    """Of this worker, where the driver may have to name it."""
    differs: str = ""
    """Packages whose versions are not the planned ones."""
    watchdog: Watchdog | None = None
    stalled: ScorerError | None = None
    """In the driver's own process, which cannot end a thread: what hangs."""
    count_part: Callable[[Receipt | None], None] | None = None
    """Told of each part that ends here, where prometheus_client is loaded."""
    publish_event: Callable[[str, bytes], None] | None = None
    """On a Dask worker: tells all who have subscribed to a topic."""

    def report_receipt(self, index: int, receipt: Receipt | None) -> None:
        """The driver, what came of a part; None if it was left for later."""
        if self.publish_event is not None:
            self.publish_event(self.spec.topic, pickle.dumps((index, receipt)))

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that are fed, or go through the transform first."""
        return self.spec.frozen.reads

    def kept(self, groups: tuple[int, ...]) -> tuple[str, ...]:
        """Kept columns that were read of a part, if it has these whole row groups."""
        kept = self.spec.frozen.binding.kept
        return tuple(name for name in kept if name not in self.spec.frozen.storage.copied) if groups else kept

    @classmethod
    def of(cls, spec: Spec) -> Job:
        """Schemas decoded, conditions parsed."""
        staging = Staging(root=Path(spec.staging))
        read, written = decode_schema(spec.frozen.read_schema), decode_schema(spec.frozen.output_schema)
        copied = spec.frozen.storage.copied
        return cls(
            spec,
            read,
            written,
            pa.schema([one for one in read if one.name not in spec.frozen.unread], read.metadata) if copied else None,
            copying.FileForm.of(written, spec.frozen.storage) if copied else None,
            tuple(conditions_.parse(text) for text in spec.frozen.conditions),
            InputCache(),
            staging,
            CrashFile(staging),
            None if spec.scoring_threads is None else threading.Semaphore(spec.scoring_threads),
            count_part=meter("worker"),
        )

    def on_stall(self, thread: int, seconds: float) -> None:
        """A batch hangs: end this process, or tell the driver if this is its own."""
        error = _hanging(self.scoring.get(thread), seconds, self.spec.batch_timeout)
        self.crash_file.write_last_words(str(error))
        if name_of_process() == self.spec.driver:
            self.stalled = error
            return
        print(f"scorer: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the worker's log is all that is left
        os._exit(STALLED)

    def close(self) -> None:
        """Nothing more is scored."""
        if self.watchdog is not None:
            self.watchdog.close()
        self.crash_file.close()


class Jobs:
    """The runs that this process was told about."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}

    def prime(self, spec: Spec, address: str = "", publish_event: Callable[[str, bytes], None] | None = None) -> None:
        """Remember the job and start loading its model; returns at once."""
        with self._lock:
            job = self._jobs[spec.key] = Job.of(spec)
        job.address, job.publish_event = address, publish_event
        job.differs = version_conflicts(spec.frozen.versions) if spec.remote else ""
        future = SESSIONS.loading(spec.frozen.session, _DELIVERY_S if spec.remote else 0.0)
        if spec.batch_timeout is not None:

            def calling() -> dict[int, float]:
                return future.result().calling if future.done() and future.exception() is None else {}

            job.watchdog = Watchdog(calling, spec.batch_timeout, job.on_stall)

    def drop(self, key: str) -> None:
        """Forget a job, and its session unless another job uses it; running calls keep theirs."""
        with self._lock:
            job = self._jobs.pop(key, None)
            if job is None:
                return
            job.close()
            own = job.spec.frozen.session.key
            if all(other.spec.frozen.session.key != own for other in self._jobs.values()):
                SESSIONS.forget(own)

    def job(self, key: str) -> Job:
        """The job of an execution that this worker was told about."""
        job = self._jobs.get(key)
        if job is None:
            what, hint = "a worker was never told about this run", "repeat the command"
            raise ModelNotResident(what, name_of_process(), f"the plugin of run {key}", "none", hint)
        return job

    def fit(self, key: str) -> None:
        """Raise `WorkerUnfit` where this worker can already be seen to be no use to the run."""
        job = self.job(key)
        if not job.spec.remote:
            return
        if job.differs:
            raise unfit(job, job.differs)
        failed = SESSIONS.failure(job.spec.frozen.session)
        if failed is not None:
            raise unfit(job, str(failed))

    def stalled(self, key: str) -> ScorerError | None:
        """What hangs in this process, if anything does."""
        job = self._jobs.get(key)
        return None if job is None else job.stalled


JOBS = Jobs()


def meter(whose: Literal["driver", "worker"]) -> Callable[[Any], None] | None:
    """Counts for Prometheus, if anybody here shows such: Dask loads its client where it is installed."""
    if "prometheus_client" not in sys.modules:
        return None
    from scorer.scoring import metrics  # noqa: PLC0415 - an extra

    try:
        return metrics.driver() if whose == "driver" else metrics.worker()
    except ValueError:  # somebody's metrics have our names
        return None


def _hanging(part: Part | None, seconds: float, limit: float | None) -> BatchStalled:
    place = part.place if part else ""
    what = "a batch hangs in the model"
    hint = "repeat the command: that part is then scored in a process of its own; or raise --batch-timeout"
    return BatchStalled(what, place, f"an answer within {limit:g} s", f"none after {seconds:.1f} s", hint)


def unfit(job: Job, found: str) -> WorkerUnfit:
    """The error that names this worker."""
    what, hint = "a worker cannot score", "mend it, or start others"
    return WorkerUnfit(what, job.address, "the planned versions, and the model", f"{found} ({name_of_process()})", hint)
