"""Submit parts to Dask in waves, and yield their outcomes as they arrive."""

from __future__ import annotations

import itertools
import pickle
import queue
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dask
import dask.dataframe as dd
import pandas as pd
from distributed import KilledWorker, Scheduler, futures_of

from scorer.cluster.dashboard import in_span, span_of
from scorer.cluster.readiness import NewHosts
from scorer.cluster.tasks import ScorerPlugin, commit_part, read_meta, read_part, score_part
from scorer.errors import ClusterError, NoWorkers, WorkerUnfit
from scorer.events import Notice, PartRetried, Tick
from scorer.host.process import resident
from scorer.scoring.job import JOBS, ROWS_IN_PARTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distributed import Client, Future

    from scorer.cluster.connect import Workers
    from scorer.events import Event, Receipt
    from scorer.plan.parts import Part
    from scorer.scoring.job import Spec


WAVE = 128
_FUTURES_CHECK_S = 0.1  # between two checks of Dask's futures; receipts arrive as events, without this delay
_DASK_WAIT_S, _DASK_POLL_S = 1.0, 0.001  # at the end: how long to wait for Dask, and between two checks
_WORKERS_CHECK_S = 2.0
_MAINTAIN_S = 5.0
_MAX_UNFIT_WORKERS = 10  # after so many unfit workers, jobs are no longer expected to bring a usable one
_MAX_LOSSES = 10  # resubmissions of a part whose workers died; crash files on disk find the part at fault earlier
_CLOCK_BACK_S = 60.0  # a clock that was set back by less delays Dask's messages by no more than that
_REFILL_BELOW = 3  # unfinished parts per thread below which the next wave is submitted

Outcome = tuple["Part", "Receipt | BaseException | None"]
"""A part with its receipt, its error, or None if it was left for the next run."""


def _ignore(_: Event) -> None:
    """Ignore every event."""


def drive(
    workers: Workers, spec: Spec, parts: Iterator[Part], emit: Callable[[Event], None] = _ignore
) -> Iterator[Outcome]:
    """Score the parts and yield their outcomes in the order in which they finish.

    `emit` receives `Tick`, `PartRetried` and `Notice` events.
    """
    meta = read_meta()
    if workers.client is None:
        ticker = Ticker(workers, emit, lambda: JOBS.rows_in_parts(spec.key))
        yield from _score_in_this_thread(spec, parts, meta, ticker)
        return
    plugin = ScorerPlugin(spec)
    workers.client.register_plugin(plugin)
    try:
        with _receipt_topic(workers.client, spec) as inbox:
            yield from _Waves(workers.client, workers, spec, parts, meta, emit, inbox).outcomes()
    finally:
        if workers.client.status == "running":
            workers.client.unregister_worker_plugin(plugin.name)


def collection(parts: list[Part], key: str, meta: pd.DataFrame, wave: int = 0) -> Any:  # noqa: ANN401 - dask is untyped
    """Return a Dask collection that reads, scores and writes one part per partition; its values are receipts.

    Dask gets `meta` and does not infer it. The wave's number makes the task keys unique, so that a part that is
    submitted again runs again.
    """
    receipts = pd.Series([], dtype=object)
    return (
        dd.from_map(read_part, parts, args=[key, wave], meta=meta, enforce_metadata=False, label="scorer-read")
        .map_partitions(score_part, key, meta=meta, enforce_metadata=False)
        .map_partitions(commit_part, key, meta=receipts, enforce_metadata=False)
    )


def _score_in_this_thread(spec: Spec, parts: Iterator[Part], meta: pd.DataFrame, ticker: Ticker) -> Iterator[Outcome]:
    """Score one part after the other in the calling thread, where a debugger can follow."""
    JOBS.add(spec)
    JOBS.job(spec.key).on_batch = ticker
    try:
        for part in parts:
            try:
                lazy = collection([part], spec.key, meta).optimize()
                (receipt,) = dask.get(dict(lazy.__dask_graph__()), lazy.__dask_keys__())
            except Exception as error:  # noqa: BLE001 - as from a worker: the driver decides what an error means
                yield part, error
            else:
                yield part, receipt
            ticker()
    finally:
        JOBS.remove(spec.key)


@dataclass(frozen=True, slots=True)
class WavePriority:
    """The priority of a wave's tasks, so that they run in the order of the parts.

    Dask's default is the order of the keys as text, backwards. The order of the parts matters: the last parts are
    small, so that no worker runs long at the end, and consecutive slices of a row group share one pass over it.
    """

    first: int
    """Number of parts submitted before this wave."""

    def __call__(self, key: tuple[str, int]) -> int:
        """Return the priority of a task; Dask runs higher ones first."""
        return -self.first - key[1]


class _ReceiptLost(Exception):
    """The worker that held the receipt is gone. The part runs again, and finds what was committed."""


@contextmanager
def _receipt_topic(client: Client, spec: Spec) -> Iterator[queue.SimpleQueue[bytes]]:
    """Subscribe to the run's receipts, and yield the queue that they arrive in as pickled (index, receipt) pairs.

    Workers publish a receipt when they commit a part, and the event travels with Dask's own messages to the client.
    Fetching each result from its worker would be most of the scheduler's work for a part.
    """
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    client.subscribe_topic(spec.topic, lambda event: inbox.put(event[1]))
    try:
        yield inbox
    finally:
        with suppress(ValueError):
            client.unsubscribe_topic(spec.topic)


class _Waves:
    """The waves of one execution on a Dask client."""

    def __init__(
        self, client: Client, workers: Workers, spec: Spec, parts: Iterator[Part], meta: pd.DataFrame,
        emit: Callable[[Event], None], inbox: queue.SimpleQueue[bytes],
    ) -> None:  # fmt: skip
        self._emit, self._ticker = emit, Ticker(workers, emit, self._rows_in_parts)
        self._client, self._workers, self._spec = client, workers, spec
        self._parts, self._meta, self._inbox = parts, meta, inbox
        self._unfit: set[str] = set()
        self._span = span_of(spec.run)
        self._new_hosts = NewHosts(client, spec.frozen) if spec.remote else None
        self._running: dict[int, tuple[Part, Future]] = {}
        self._rows_sent: dict[int, int] = {}  # finished so far in long parts, as other processes have sent it
        # The receipts of these have come, but Dask may not have marked the tasks as finished. Dropping such a future
        # now would cancel its task.
        self._unconfirmed: list[Future] = []
        self._waves_submitted = self._parts_submitted = 0
        self._losses: Counter[int] = Counter()
        self._to_resubmit: list[Part] = []
        now = time.monotonic()
        self._futures_checked_at = self._workers_checked_at = self._workers_seen_at = self._maintained_at = now
        self._finished_at, self._clock = now, time.time() - now
        self._threads = workers.threads()

    def outcomes(self) -> Iterator[Outcome]:
        """Submit waves early enough to keep every thread busy, and yield the outcomes."""
        more = self._submit_wave()
        while self._running or self._to_resubmit:
            for part, outcome in self._finished():
                if isinstance(outcome, WorkerUnfit) and self._exclude(outcome):
                    self._to_resubmit.append(part)
                elif isinstance(outcome, (KilledWorker, _ReceiptLost)) and self._losses[part.index] < _MAX_LOSSES:
                    self._losses[part.index] += 1
                    self._rows_sent.pop(part.index, None)
                    self._to_resubmit.append(part)
                    self._emit(PartRetried(part=part.index))
                else:
                    yield part, outcome
            if (more or self._to_resubmit) and len(
                self._running
            ) < _REFILL_BELOW * self._threads * self._workers.spread:
                more = self._submit_wave()
        self._wait_for_dask()

    def _wait_for_dask(self) -> None:
        """Wait up to a second until Dask has marked the last tasks as finished, or it would count them as cancelled."""
        until = time.monotonic() + _DASK_WAIT_S
        while time.monotonic() < until and any(future.status == "pending" for future in self._unconfirmed):
            time.sleep(_DASK_POLL_S)

    def _finished(self) -> list[Outcome]:
        """Return the parts that have finished, after a short wait if none has; maintain the workers meanwhile.

        Raises if a batch in a thread of this process exceeds `--batch-timeout`.
        """
        finished = self._receipts()
        now = time.monotonic()
        if now - self._futures_checked_at > _FUTURES_CHECK_S:
            self._futures_checked_at = now
            finished += self._finished_without_receipt()
        self._ticker()
        stalled = JOBS.stalled(self._spec.key)
        if stalled is not None:
            raise stalled
        if now - self._maintained_at > _MAINTAIN_S:
            self._maintained_at = now
            self._maintain_workers()
        if finished:
            self._workers_checked_at = self._workers_seen_at = self._finished_at = now
        elif now - self._workers_checked_at > _WORKERS_CHECK_S:
            self._workers_checked_at = now
            self._check_workers(now)
        return finished

    def _rows_in_parts(self) -> dict[int, int]:
        """Return the rows finished so far in each part that is not done."""
        self._rows_sent = {index: rows for index, rows in self._rows_sent.items() if index in self._running}
        here = {i: rows for i, rows in JOBS.rows_in_parts(self._spec.key).items() if i in self._running}
        return self._rows_sent | here

    def _receipts(self, wait_s: float = _FUTURES_CHECK_S) -> list[Outcome]:
        """Return the parts whose receipts have arrived, after a short wait for the first one."""
        finished: list[Outcome] = []
        with suppress(queue.Empty):
            while True:
                message = self._inbox.get(timeout=0 if finished else wait_s)
                index, receipt = pickle.loads(message)  # noqa: S301 - written by this run's workers
                if index == ROWS_IN_PARTS:
                    self._rows_sent |= receipt
                    wait_s = 0
                    continue
                if index in self._running:  # otherwise a second attempt at a part that has finished
                    part, future = self._running.pop(index)
                    self._unconfirmed.append(future)
                    finished.append((part, receipt))
        return finished

    def _finished_without_receipt(self) -> list[Outcome]:
        """Return parts whose future has finished but whose receipt has not come: errors, lost workers, lost events."""
        self._unconfirmed = [future for future in self._unconfirmed if future.status == "pending"]
        done = [(part, future) for part, future in self._running.values() if future.status != "pending"]
        finished = self._receipts(wait_s=0)  # receipts that arrived before Dask marked the futures
        for part, future in done:
            if part.index in self._running:
                del self._running[part.index]
                finished.append((part, _outcome(future)))
        return finished

    def _maintain_workers(self) -> None:
        """Submit lost jobs again, deliver the model to new hosts, resubmit parts that no worker may run."""
        if self._workers.resubmit is not None:
            self._workers.resubmit()
        if self._new_hosts is not None:
            self._new_hosts.deliver()
        if self._unfit and self._running and not self._fit_workers():
            # The workers that these parts may run on are gone. Submit the parts again, without that restriction.
            self._to_resubmit += [part for part, _ in self._running.values()]
            self._running.clear()
            self._unfit &= set(self._client.nthreads())

    def _exclude(self, error: WorkerUnfit) -> bool:
        """Give a worker no further parts; return whether other workers can score, or may still come."""
        if error.where not in self._unfit:
            self._unfit.add(error.where)
            self._emit(Notice(text=f"worker {error.where} gets no further parts: {error.found}"))
            if self._workers.owned:
                self._client.retire_workers([error.where], close_workers=True)
        return bool(self._fit_workers()) or (
            self._workers.resubmit is not None and len(self._unfit) < _MAX_UNFIT_WORKERS
        )

    def _fit_workers(self) -> list[str]:
        """Return the addresses of the workers that may get parts."""
        return [address for address in self._client.nthreads() if address not in self._unfit]

    def _check_workers(self, now: float) -> None:
        """Raise if the scheduler is lost, the clock was set back, or no worker has been connected for too long."""
        self._check_clock(now)
        try:
            threads = self._workers.threads()
        except (OSError, TimeoutError) as error:
            raise ClusterError(
                "the connection to the scheduler is lost",
                where=self._workers.description,
                expected="a scheduler that answers",
                found=str(error),
                hint="check that the scheduler runs and repeat the command: committed parts are kept",
            ) from error
        if threads:
            self._workers_seen_at = now
        elif now - self._workers_seen_at > self._workers.no_worker_timeout_s:
            raise NoWorkers(
                "no workers are left",
                where=self._workers.description,
                expected="at least one worker",
                found=f"none for {now - self._workers_seen_at:.0f} s",
                hint="start workers and repeat the command: committed parts are kept",
            )

    def _check_clock(self, now: float) -> None:
        """Raise if nothing has finished since the system clock was set back: Dask sends by it, and now waits for it."""
        back_s = self._clock - (time.time() - now)
        if back_s > _CLOCK_BACK_S and now - self._finished_at > _CLOCK_BACK_S:
            raise ClusterError(
                "the system clock was set back, and Dask no longer delivers messages",
                where=self._workers.description,
                expected="a clock that goes forward",
                found=f"a clock set back by {timedelta(seconds=round(back_s))}",
                hint="repeat the command: committed parts are kept",
            )

    def _submit_wave(self) -> bool:
        """Submit the next wave; return False if no parts are left."""
        self._threads = self._workers.threads()
        resubmitted, self._to_resubmit = self._to_resubmit, []
        wave = [*resubmitted, *itertools.islice(self._parts, max(WAVE, self._threads))]
        if not wave:
            return False
        lazy = collection(wave, self._spec.key, self._meta, self._waves_submitted).optimize()
        only = {"workers": self._fit_workers()} if self._unfit and not self._workers.owned else {}
        with in_span(self._span):
            submitted = self._client.persist(lazy, priority=WavePriority(self._parts_submitted), **only)
        self._waves_submitted += 1
        self._parts_submitted += len(wave)
        futures = sorted(futures_of(submitted), key=lambda future: future.key[1])
        self._running |= {part.index: (part, future) for part, future in zip(wave, futures, strict=True)}
        return True


def _outcome(future: Future) -> Receipt | BaseException | None:
    """Return the receipt of a finished future, or the error in its place."""
    if future.status == "error":
        return future.exception()  # type: ignore[no-any-return]  # distributed is untyped
    if future.status != "finished":
        return _ReceiptLost(f"the task ended with status {future.status}")
    try:
        return future.result()  # type: ignore[no-any-return]
    except Exception as error:  # noqa: BLE001 - the worker that holds it is gone, or stops just now
        return _ReceiptLost(str(error))


TICKER_S = 0.2
_COUNT_S = 1.0
_COUNT_REMOTE_S = 5.0  # a remote scheduler sends the state of all its workers each time


class Ticker:
    """Emits a `Tick` at most every 0.2 s; calls in between cost nothing."""

    def __init__(
        self, workers: Workers, emit: Callable[[Event], None], in_parts: Callable[[], dict[int, int]]
    ) -> None:  # fmt: skip
        self._in_parts = in_parts
        self._client, self._scoring_threads, self._emit = workers.client, workers.scoring_threads, emit
        scheduler = getattr(getattr(workers.client, "cluster", None), "scheduler", None)
        self._scheduler = scheduler if isinstance(scheduler, Scheduler) else None  # some clusters have one elsewhere
        self._ticked_at = self._counted_at = float("-inf")
        self._counts = (1, 1, 0)

    def __call__(self) -> None:
        """Emit a `Tick` if it is time for one."""
        now = time.monotonic()
        if now - self._ticked_at < TICKER_S:
            return
        self._ticked_at = now
        count_s = _COUNT_REMOTE_S if self._scheduler is None else _COUNT_S
        if self._client is not None and now - self._counted_at > count_s:
            self._counted_at = now
            with suppress(OSError, TimeoutError, RuntimeError):  # a lost scheduler is reported elsewhere
                self._counts = self._count(self._client)
        workers, threads, memory = self._counts
        self._emit(Tick(workers=workers, threads=threads, memory_bytes=memory + resident(), in_parts=self._in_parts()))

    def _count(self, client: Client) -> tuple[int, int, int]:
        """Return the workers, their scoring threads, and the memory of the workers in other processes."""
        if self._scheduler is not None:
            workers = [(w.address, w.nthreads, w.metrics) for w in list(self._scheduler.workers.values())]
        else:
            info = client.scheduler_info(n_workers=-1)["workers"]
            workers = [(address, w["nthreads"], w.get("metrics", {})) for address, w in info.items()]
        memory = [metrics.get("memory", 0) for address, _, metrics in workers if not address.startswith("inproc")]
        scoring = [threads if self._scoring_threads is None else self._scoring_threads for _, threads, _ in workers]
        return len(workers), sum(scoring), sum(memory)
