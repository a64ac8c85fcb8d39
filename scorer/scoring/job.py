"""The runs that this process scores parts for: their plan, schemas, model and counters."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from scorer.arrow import decode_schema
from scorer.dataset import conditions as conditions_
from scorer.dataset.cursors import InputCache
from scorer.dataset.joins.spec import joined_name
from scorer.errors import BatchStalled, ClusterError, ModelNotResident, ScorerError, WorkerUnfit
from scorer.host.isolation import STALLED
from scorer.host.process import mounts, name_of_process
from scorer.host.versions import version_conflicts
from scorer.host.watchdog import Watchdog
from scorer.locations import is_url
from scorer.model.resident import SESSIONS
from scorer.output.attempts import CrashFile
from scorer.output.place import Staging
from scorer.plan.lineage import Lineage
from scorer.storage import copying, stores
from scorer.storage.files import THROTTLED
from scorer.storage.stores import path_of
from scorer.tables.deleted import DeletedRows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scorer.events import Receipt
    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.gates import Gates
    from scorer.plan.parts import Part

_STOP_CHECK_S = 1.0  # how often a waiting part checks that its run has not ended
ROWS_IN_PARTS = -1
"""Stands in place of a part's index before a message about the rows inside parts."""
_LONG_S, _SEND_S = 1.0, 1.0  # how long a part runs before its rows are sent to the driver, and how often they are
_STOP_LOOK_S = 5.0  # between two looks at a stop file on a store: each costs a request
_DELIVERY_S = 60.0  # wait so long for the model: the driver delivers it to new hosts every few seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What all parts of a run have in common. Sent to each worker once, with the plugin."""

    key: str
    """Identifies one execution of a plan."""
    frozen: FrozenPlan
    """The plan without its lists of files; its hash is unchanged."""
    lineage: Lineage
    """What the files' metadata says of the plan, the model and the input."""
    staging: str
    stop_file: str
    """Once this file exists, workers start no further parts; they are left for the next run."""
    table: str = ""
    """The folder of the table in which the parts are written; '' if the output is no table."""
    driver: str = ""
    """Name of the driver's process, which plans and publishes."""
    mounts: str = ""
    """Which machine and mounts the driver sees."""
    batch_timeout: float | None = None
    scoring_threads: int | None = None
    """Number of parts that a worker scores at once, if it has more threads, for parts that wait for a disk or store."""
    remote: bool = False
    """Whether workers may run on other machines."""
    run: str = ""
    """The run's name."""
    deleted: str = ""
    """Where the numbers of deleted rows are; '' if the input has none."""
    store_options: tuple[str, ...] = ()
    """How object stores are reached. Credentials do not travel: each process has its own."""
    gates: Gates | None = None
    """What is measured of each part for gates; None without gates."""

    @property
    def topic(self) -> str:
        """The Dask topic under which workers send receipts to the driver."""
        return f"scorer-{self.key}"

    @classmethod
    def of(
        cls, frozen: FrozenPlan, staging: Staging, batch_timeout: float | None = None,
        scoring_threads: int | None = None, *, remote: bool = False, run: str = "", gates: Gates | None = None,
    ) -> Spec:  # fmt: skip
        """Return the spec of a new execution of a plan."""
        key = f"{frozen.plan_hash[:8]}-{uuid.uuid4().hex[:8]}"
        return cls(
            key=key,
            frozen=replace(frozen, files=(), left_out=(), request={}),
            lineage=Lineage.of(frozen),
            staging=str(staging.root),
            stop_file=str(staging.root / f"stop-{key}"),
            table=str(staging.table or ""),
            driver=name_of_process(),
            mounts=mounts(),
            batch_timeout=batch_timeout,
            scoring_threads=scoring_threads,
            remote=remote,
            run=run,
            deleted="" if frozen.table is None or not frozen.table.deleted else str(staging.deleted),
            store_options=stores.options(),
            gates=gates,
        )


class Slots:
    """The scoring slots of a worker, given in the order in which parts ask for them.

    A semaphore gives a free slot to whoever comes next. With several parts read ahead, one may then wait so long that
    the rows before its slice of a row group are not kept any more.
    """

    def __init__(self, number: int) -> None:
        self._free = number
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()

    def acquire(self, proceed: Callable[[], object]) -> None:
        """Wait for a slot; `proceed` is called every second meanwhile, and may raise."""
        given = threading.Event()
        with self._lock:
            if self._free:
                self._free -= 1
                return
            self._waiting.append(given)
        while not given.wait(_STOP_CHECK_S):
            try:
                proceed()
            except BaseException:
                self._leave(given)
                raise

    def _leave(self, given: threading.Event) -> None:
        """Give up waiting; return a slot that was given just now."""
        with self._lock:
            if not given.is_set():
                self._waiting.remove(given)
                return
        self.release()

    def release(self) -> None:
        """Give the slot to the part that has waited longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1


@dataclass(slots=True)
class Job:
    """A spec, unpacked once per process, and the state of its run here."""

    spec: Spec
    read_schema: pa.Schema
    output_schema: pa.Schema
    decoded_schema: pa.Schema | None
    """Columns to decode if a part is whole row groups; its other kept columns are copied. None if none are copied."""
    form: copying.FileForm | None
    """The form of the parts' files; None if no columns are copied."""
    conditions: tuple[conditions_.Condition, ...]
    """Those on columns that are read."""
    joined_conditions: tuple[conditions_.Condition, ...]
    """Those on columns of joined tables."""
    inputs: InputCache
    staging: Staging
    crash_file: CrashFile
    slots: Slots | None = None
    scoring: dict[int, Part] = field(default_factory=dict)
    """The part that each thread works on, by the thread's number."""
    rows_done: dict[int, int] = field(default_factory=dict)
    """Rows finished so far in each part that is scored here, by the part's index."""
    rows_sent_at: float = 0.0
    on_batch: Callable[[], None] | None = None
    """Called after each batch, if the driver's only thread scores and would show no progress otherwise."""
    parts_done: int = 0
    longest_s: float = 0.0
    """Time of the slowest part in this process."""
    throttled_before: tuple[int, float] = field(default_factory=lambda: THROTTLED.so_far)
    """How often and how long stores had throttled this process before this run."""
    address: str = ""
    """The address of this Dask worker, for error messages."""
    differs: str = ""
    """Packages whose versions differ from the plan's."""
    watchdog: Watchdog | None = None
    stalled: ScorerError | None = None
    """The batch that hangs, if this is the driver's process, which cannot end a thread."""
    count_part: Callable[[Receipt | None], None] | None = None
    """Counts each part that ends here; None if prometheus_client is not loaded."""
    stopped: bool = False
    """Whether the run starts no further parts, as far as this process knows."""
    stop_seen_at: float = field(default_factory=time.monotonic)
    """When this process last looked for a stop file on a store."""
    publish_event: Callable[[str, bytes], None] | None = None
    """Sends a message to the subscribers of a topic; None outside a Dask worker."""

    def is_stopped(self) -> bool:
        """Return whether the run starts no further parts: the driver has said so here, or there is a stop file."""
        if not self.stopped:
            if is_url(self.spec.stop_file):
                now = time.monotonic()
                if now - self.stop_seen_at < _STOP_LOOK_S:
                    return False
                self.stop_seen_at = now
                self.stopped = path_of(self.spec.stop_file).is_file()
            else:
                self.stopped = os.path.exists(self.spec.stop_file)
        return self.stopped

    def report_receipt(self, index: int, receipt: Receipt | None) -> None:
        """Send a part's receipt to the driver; None means that the part was left for the next run."""
        self._send(index, receipt)

    def row_counter(self, index: int, filtered: int) -> Callable[[int], None]:
        """Return a function that counts the rows of each finished batch of a part; `filtered` are counted already.

        It is called by the thread that scores the part. A worker process sends the counts to the driver, but at most
        once a second, and only if the part runs longer than that.
        """
        rows = filtered
        sends = self.publish_event is not None and name_of_process() != self.spec.driver
        began = time.monotonic()

        def count(more: int) -> None:
            nonlocal rows
            rows += more
            self.rows_done[index] = rows
            if self.on_batch is not None:
                self.on_batch()
            elif sends:
                now = time.monotonic()
                if now - began > _LONG_S and now - self.rows_sent_at > _SEND_S:
                    self.rows_sent_at = now
                    self._send(ROWS_IN_PARTS, dict(self.rows_done))

        return count

    def _send(self, index: int, value: object) -> None:
        if self.publish_event is not None:
            self.publish_event(self.spec.topic, pickle.dumps((index, value)))

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns that are fed, or that the transform takes."""
        return self.spec.frozen.reads

    def kept(self, groups: Sequence[tuple[int, ...]]) -> tuple[str, ...]:
        """Return the kept columns that are read; those of whole row groups in `groups` may be copied instead."""
        kept = self.spec.frozen.kept
        return tuple(name for name in kept if name not in self.spec.frozen.storage.copied) if groups else kept

    @classmethod
    def of(cls, spec: Spec) -> Job:
        """Unpack a spec: decode the schemas, parse the conditions."""
        staging = Staging(root=path_of(spec.staging), table=path_of(spec.table) if spec.table else None)
        read, written = decode_schema(spec.frozen.read_schema), decode_schema(spec.frozen.output_schema)
        conditions = [conditions_.parse(text) for text in spec.frozen.conditions]
        joined = [joined_name(one.column, read, spec.frozen.joins) for one in conditions]
        copied, unread = spec.frozen.storage.copied, spec.frozen.unread
        if spec.gates is not None:
            read, unread = _with_measured(read, spec.gates), unread - {*spec.gates.kept}
        return cls(
            spec,
            read,
            written,
            pa.schema([one for one in read if one.name not in unread], read.metadata) if copied else None,
            copying.FileForm.of(written, spec.frozen.storage) if copied else None,
            tuple(one for one, name in zip(conditions, joined, strict=True) if not name),
            tuple(replace(one, column=name) for one, name in zip(conditions, joined, strict=True) if name),
            InputCache(
                same_mounts=spec.mounts == mounts(),
                table=spec.frozen.table,
                deleted=DeletedRows(spec.deleted) if spec.deleted else None,
            ),
            staging,
            CrashFile(staging),
            None if spec.scoring_threads is None else Slots(spec.scoring_threads),
            count_part=prometheus_counters("worker"),
        )

    def on_stall(self, thread: int, seconds: float) -> None:
        """End this worker because a batch exceeds --batch-timeout; in the driver's process, keep the error instead."""
        error = _batch_stalled(self.scoring.get(thread), seconds, self.spec.batch_timeout)
        self.crash_file.write_last_words(str(error))
        if name_of_process() == self.spec.driver:
            self.stalled = error
            return
        print(f"scorer: {error}", file=sys.stderr, flush=True)  # noqa: T201 - only the worker's log is left
        os._exit(STALLED)

    def close(self) -> None:
        """Stop the watchdog and the record of crashes."""
        if self.watchdog is not None:
            self.watchdog.close()
        self.crash_file.close()


def _with_measured(read: pa.Schema, gates: Gates) -> pa.Schema:
    """Return the columns that are read, with those that only gates need."""
    extra = [field for field in decode_schema(gates.read) if field.name not in read.names] if gates.read else []
    return pa.schema([*read, *extra], read.metadata)


class Jobs:
    """The runs that this process scores parts for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        os.register_at_fork(after_in_child=self._unlock)

    def add(self, spec: Spec, address: str = "", publish_event: Callable[[str, bytes], None] | None = None) -> None:
        """Add a run and start to load its models. Returns at once."""
        conflict = self.configure_stores(spec.store_options)
        if conflict is not None and not spec.remote:
            raise conflict
        with self._lock:
            job = self._jobs[spec.key] = Job.of(spec)
        job.address, job.publish_event = address, publish_event
        if spec.remote:
            job.differs = conflict.what if conflict is not None else version_conflicts(spec.frozen.versions)
        delivery_s = _DELIVERY_S if spec.remote else 0.0
        futures = [SESSIONS.loading(scorer.session, delivery_s) for scorer in spec.frozen.scorers]
        if spec.batch_timeout is not None:

            def calling() -> dict[int, float]:
                loaded = [one.result() for one in futures if one.done() and one.exception() is None]
                return {thread: since for one in loaded for thread, since in one.calling.items()}

            job.watchdog = Watchdog(calling, spec.batch_timeout, job.on_stall)

    def configure_stores(self, options: tuple[str, ...]) -> ClusterError | None:
        """Set the options of the object stores of this process; return an error if a run here uses other options."""
        with self._lock:
            if all(job.spec.store_options == options for job in self._jobs.values()):
                stores.configure(options)
                return None
        return ClusterError(
            "another run in this process uses other options for its object stores",
            where=name_of_process(),
            expected="the same --store-option for all runs at one time",
            found=f"{' '.join(options) or 'none'} in this run",
            hint="repeat the command when the other run has ended",
        )

    def _unlock(self) -> None:
        """Replace the lock in a forked process, where the thread that may hold it does not exist."""
        self._lock = threading.Lock()

    def remove(self, key: str) -> None:
        """Remove a run, and its models unless another run uses them. Calls in progress keep their session."""
        with self._lock:
            job = self._jobs.pop(key, None)
            if job is None:
                return
            job.close()
            joins = job.spec.frozen.joins
            if joins:
                from scorer.dataset.joins import lookup  # noqa: PLC0415 - only for joined tables

                others = {lookup.id_of(one) for other in self._jobs.values() for one in other.spec.frozen.joins}
                lookup.forget({lookup.id_of(one) for one in joins} - others)
            used = {scorer.session.key for other in self._jobs.values() for scorer in other.spec.frozen.scorers}
            for scorer in job.spec.frozen.scorers:
                if scorer.session.key not in used:
                    SESSIONS.forget(scorer.session.key)

    def job(self, key: str) -> Job:
        """Return the job of an execution; raise `ModelNotResident` if this process does not know it."""
        job = self._jobs.get(key)
        if job is None:
            raise ModelNotResident(
                "a worker does not know this run",
                where=name_of_process(),
                expected=f"the plugin of run {key}",
                found="none",
                hint="repeat the command",
            )
        return job

    def check_worker(self, key: str) -> None:
        """Raise `WorkerUnfit` if it is known already that this worker cannot score."""
        job = self.job(key)
        if not job.spec.remote:
            return
        if job.differs:
            raise worker_unfit(job, job.differs)
        for scorer in job.spec.frozen.scorers:
            failed = SESSIONS.failure(scorer.session)
            if failed is not None:
                raise worker_unfit(job, str(failed))

    def stop(self, key: str) -> None:
        """Start no further parts in this process."""
        job = self._jobs.get(key)
        if job is not None:
            job.stopped = True

    def rows_in_parts(self, key: str) -> dict[int, int]:
        """Return the rows finished so far in each part that this process scores."""
        job = self._jobs.get(key)
        return {} if job is None else dict(job.rows_done)

    def stalled(self, key: str) -> ScorerError | None:
        """Return the error of a batch that hangs in this process, if one does."""
        job = self._jobs.get(key)
        return None if job is None else job.stalled


JOBS = Jobs()


def prometheus_counters(whose: Literal["driver", "worker"]) -> Callable[[Any], None] | None:
    """Return the Prometheus counters of the driver or a worker; None if this process serves no metrics.

    Dask serves them, and loads prometheus_client, if that is installed.
    """
    if "prometheus_client" not in sys.modules:
        return None
    from scorer.scoring import metrics  # noqa: PLC0415 - an extra

    try:
        return metrics.driver() if whose == "driver" else metrics.worker()
    except ValueError:  # metrics of other code have these names already
        return None


def _batch_stalled(part: Part | None, seconds: float, limit: float | None) -> BatchStalled:
    return BatchStalled(
        "a batch hangs in the model",
        where=part.place if part else "",
        expected=f"a result within {limit:g} s",
        found=f"none after {seconds:.1f} s",
        hint="repeat the command, which scores this part in an isolated process, or raise --batch-timeout",
    )


def worker_unfit(job: Job, found: str) -> WorkerUnfit:
    """Return the error for this worker."""
    return WorkerUnfit(
        "a worker cannot score",
        where=job.address,
        expected="the planned versions, and the model",
        found=f"{found} ({name_of_process()})",
        hint="repair the worker, or start others",
    )
