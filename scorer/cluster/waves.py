"""Parts as Dask collections, in waves, and their receipts as they come."""

from __future__ import annotations

import itertools
import pickle
import queue
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask
import dask.dataframe as dd
import pandas as pd
from distributed import KilledWorker, futures_of

from scorer.cluster.dashboard import in_span, span_of
from scorer.cluster.readiness import NewHosts
from scorer.cluster.tasks import ScorerPlugin, commit_part, read_meta, read_part, score_part
from scorer.errors import ClusterError, NoWorkers, WorkerUnfit
from scorer.events import Notice, PartRetried, Tick
from scorer.host.process import resident
from scorer.scoring.job import JOBS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distributed import Client, Future

    from scorer.cluster.connect import Workers
    from scorer.events import Event, Receipt
    from scorer.plan.parts import Part
    from scorer.scoring.job import Spec


WAVE = 128
_TICK_S = 0.1  # between looks at what Dask says of the parts; those that end well are told of at once
_SETTLED_S, _SETTLING_S = 1.0, 0.001  # at the most, and between looks
_LOOK_S = 2.0
_TEND_S = 5.0
_UNFIT = 10  # workers, one after the other, before new ones are no longer hoped for
_LOST_WORKERS = 10  # times that the scheduler may blame a part for the end of workers; marks on disk know better
_REFILL = 3  # unfinished parts per thread below which the next wave goes in

Outcome = tuple["Part", "Receipt | BaseException | None"]
"""A part with its receipt, its error, or None when it was left for the next run."""


def _nobody(_: Event) -> None:
    """Whoever watches when nobody does."""


def drive(
    workers: Workers, spec: Spec, parts: Iterator[Part], emit: Callable[[Event], None] = _nobody
) -> Iterator[Outcome]:
    """Every part's outcome, in the order they end; `emit` hears of time, of parts sent again, of what to tell."""
    meta = read_meta()
    if workers.client is None:
        yield from _here(spec, parts, meta, Ticker(workers, emit))
        return
    plugin = ScorerPlugin(spec)
    workers.client.register_plugin(plugin)
    try:
        with _told(workers.client, spec) as told:
            yield from _Waves(workers.client, workers, spec, parts, meta, emit, told).outcomes()
    finally:
        if workers.client.status == "running":
            workers.client.unregister_worker_plugin(plugin.name)


def collection(parts: list[Part], key: str, meta: pd.DataFrame, wave: int = 0) -> Any:  # noqa: ANN401 - dask is untyped
    """Read, score and write as one collection whose partitions are receipts; meta is given, never inferred.

    The wave's number makes its keys its own: a part that is sent again must run again.
    """
    receipts = pd.Series([], dtype=object)
    return (
        dd.from_map(read_part, parts, args=[key, wave], meta=meta, enforce_metadata=False, label="scorer-read")
        .map_partitions(score_part, key, meta=meta, enforce_metadata=False)
        .map_partitions(commit_part, key, meta=receipts, enforce_metadata=False)
    )


def _here(spec: Spec, parts: Iterator[Part], meta: pd.DataFrame, ticker: Ticker) -> Iterator[Outcome]:
    """One part at a time in this thread, so that a debugger can follow."""
    JOBS.prime(spec)
    try:
        for part in parts:
            try:
                lazy = collection([part], spec.key, meta).optimize()
                (receipt,) = dask.get(dict(lazy.__dask_graph__()), lazy.__dask_keys__())
            except Exception as error:  # noqa: BLE001 - the worker boundary: the driver decides
                yield part, error
            else:
                yield part, receipt
            ticker()
    finally:
        JOBS.drop(spec.key)


@dataclass(frozen=True, slots=True)
class InOrder:
    """The priority of a task by its number in its wave: Dask's own order is that of the keys as texts, backwards.

    The last parts are small so that nobody waits long at the end, and slices of one row group share a pass over it.
    """

    first: int
    """Parts that were sent before."""

    def __call__(self, key: tuple[str, int]) -> int:
        """Higher is earlier."""
        return -self.first - key[1]


class _Lost(Exception):
    """The receipt was on a worker that is gone; what was committed is found again."""


@contextmanager
def _told(client: Client, spec: Spec) -> Iterator[queue.SimpleQueue[bytes]]:
    """Receipts by their part's index, as workers commit them: they come with what Dask tells its clients anyway.

    To fetch each from the worker that has it would be most of what a part costs the scheduler.
    """
    told: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    client.subscribe_topic(spec.topic, lambda event: told.put(event[1]))
    try:
        yield told
    finally:
        with suppress(ValueError):
            client.unsubscribe_topic(spec.topic)


class _Waves:
    """Waves of one execution on a Dask client."""

    def __init__(
        self, client: Client, workers: Workers, spec: Spec, parts: Iterator[Part], meta: pd.DataFrame,
        emit: Callable[[Event], None], told: queue.SimpleQueue[bytes],
    ) -> None:  # fmt: skip
        self._emit, self._ticker = emit, Ticker(workers, emit)
        self._client, self._workers, self._spec = client, workers, spec
        self._parts, self._meta, self._told = parts, meta, told
        self._unfit: set[str] = set()
        self._span = span_of(spec.run)
        self._new_hosts = NewHosts(client, spec.frozen.session) if spec.remote else None
        self._running: dict[int, tuple[Part, Future]] = {}
        self._told_of: list[Future] = []  # which Dask may not know to have ended: to let go of them would cancel them
        self._sent = self._parts_sent = 0
        self._lost: Counter[int] = Counter()
        self._again: list[Part] = []
        self._asked = self._looked = self._manned = self._tended = time.monotonic()
        self._threads = workers.threads()

    def outcomes(self) -> Iterator[Outcome]:
        """Send waves so that no thread waits, and yield what ends."""
        more = self._send()
        while self._running or self._again:
            for part, outcome in self._next():
                if isinstance(outcome, WorkerUnfit) and self._others_than(outcome):
                    self._again.append(part)
                elif isinstance(outcome, (KilledWorker, _Lost)) and self._lost[part.index] < _LOST_WORKERS:
                    self._lost[part.index] += 1
                    self._again.append(part)
                    self._emit(PartRetried(part=part.index))
                else:
                    yield part, outcome
            if (more or self._again) and len(self._running) < _REFILL * self._threads:
                more = self._send()
        self._settle()

    def _settle(self) -> None:
        """Wait a moment until Dask, too, knows that the last parts have ended, or it would count them as given up."""
        until = time.monotonic() + _SETTLED_S
        while time.monotonic() < until and any(future.status == "pending" for future in self._told_of):
            time.sleep(_SETTLING_S)

    def _next(self) -> list[Outcome]:
        """What has ended, after a short wait if nothing has; raises when a thread of this process hangs."""
        ended = self._receipts()
        now = time.monotonic()
        if now - self._asked > _TICK_S:
            self._asked = now
            ended += self._others()
        self._ticker()
        stalled = JOBS.stalled(self._spec.key)
        if stalled is not None:
            raise stalled
        if now - self._tended > _TEND_S:
            self._tended = now
            self._tend()
        if ended:
            self._looked = self._manned = now
        elif now - self._looked > _LOOK_S:
            self._looked = now
            self._look_for_workers(now)
        return ended

    def _receipts(self, wait_s: float = _TICK_S) -> list[Outcome]:
        """Of the parts that workers have told of, after a short wait for the first."""
        ended: list[Outcome] = []
        with suppress(queue.Empty):
            while True:
                index, receipt = pickle.loads(self._told.get(timeout=0 if ended else wait_s))  # noqa: S301 - our workers'
                if index in self._running:  # else an attempt that was done twice
                    part, future = self._running.pop(index)
                    self._told_of.append(future)
                    ended.append((part, receipt))
        return ended

    def _others(self) -> list[Outcome]:
        """Parts that Dask says have ended and no worker has told of: errors, lost workers, lost words."""
        self._told_of = [future for future in self._told_of if future.status == "pending"]
        over = [(part, future) for part, future in self._running.values() if future.status != "pending"]
        ended = self._receipts(wait_s=0)  # what was told before Dask said so
        for part, future in over:
            if part.index in self._running:
                del self._running[part.index]
                ended.append((part, _outcome(future)))
        return ended

    def _tend(self) -> None:
        """Submit ended jobs again and deliver the model to new hosts, every few seconds."""
        if self._workers.resubmit is not None:
            self._workers.resubmit()
        if self._new_hosts is not None:
            self._new_hosts.deliver()
        if self._unfit and self._running and not self._fit():  # those that could are gone: whoever came since may
            self._again += [part for part, _ in self._running.values()]
            self._running.clear()
            self._unfit &= set(self._client.nthreads())

    def _others_than(self, error: WorkerUnfit) -> bool:
        """Feed that worker no more; False when nobody else is there."""
        if error.where not in self._unfit:
            self._unfit.add(error.where)
            self._emit(Notice(text=f"worker {error.where} gets no more parts: {error.found}"))
            if self._workers.owned:
                self._client.retire_workers([error.where], close_workers=True)
        return bool(self._fit()) or (self._workers.resubmit is not None and len(self._unfit) < _UNFIT)

    def _fit(self) -> list[str]:
        """Workers that may be fed."""
        return [address for address in self._client.nthreads() if address not in self._unfit]

    def _look_for_workers(self, now: float) -> None:
        """Raise when nobody has been there to do anything for too long."""
        try:
            there = self._workers.threads()
        except (OSError, TimeoutError) as error:
            what, hint = "the scheduler is gone", "repeat the command: committed parts are kept"
            raise ClusterError(what, self._workers.description, "a scheduler that answers", str(error), hint) from error
        if there:
            self._manned = now
        elif now - self._manned > self._workers.no_worker_timeout_s:
            what, hint = "no worker is left", "start workers and repeat the command: committed parts are kept"
            found = f"none for {now - self._manned:.0f} s"
            raise NoWorkers(what, self._workers.description, "at least one worker", found, hint)

    def _send(self) -> bool:
        """Send the next wave; False when no part was left."""
        self._threads = self._workers.threads()
        again, self._again = self._again, []
        wave = [*again, *itertools.islice(self._parts, max(WAVE, self._threads))]
        if not wave:
            return False
        lazy = collection(wave, self._spec.key, self._meta, self._sent).optimize()
        only = {"workers": self._fit()} if self._unfit and not self._workers.owned else {}
        with in_span(self._span):
            sent = self._client.persist(lazy, priority=InOrder(self._parts_sent), **only)
        self._sent += 1
        self._parts_sent += len(wave)
        futures = sorted(futures_of(sent), key=lambda future: future.key[1])
        self._running |= {part.index: (part, future) for part, future in zip(wave, futures, strict=True)}
        return True


def _outcome(future: Future) -> Receipt | BaseException | None:
    """A finished future's receipt, or why there is none."""
    if future.status == "error":
        return future.exception()  # type: ignore[no-any-return]  # distributed is untyped
    if future.status != "finished":
        return _Lost(f"a task ended as {future.status}")
    try:
        return future.result()  # type: ignore[no-any-return]
    except Exception as error:  # noqa: BLE001 - the worker that has it is gone, or goes just now
        return _Lost(str(error))


TICKER_S = 0.2
_COUNT_S = 1.0
_COUNT_REMOTE_S = 5.0  # a scheduler elsewhere tells of every worker it has, however many


class Ticker:
    """Emits a `Tick` at most every fifth of a second; free when it is not yet time."""

    def __init__(self, workers: Workers, emit: Callable[[Event], None]) -> None:
        self._client, self._scoring_threads, self._emit = workers.client, workers.scoring_threads, emit
        self._scheduler = getattr(getattr(workers.client, "cluster", None), "scheduler", None)
        self._ticked = self._looked = float("-inf")
        self._seen = (1, 1, 0)

    def __call__(self) -> None:
        """Time has passed."""
        now = time.monotonic()
        if now - self._ticked < TICKER_S:
            return
        self._ticked = now
        if self._client is not None and now - self._looked > (_COUNT_REMOTE_S if self._scheduler is None else _COUNT_S):
            self._looked = now
            with suppress(OSError, TimeoutError, RuntimeError):  # the driver notices by itself when nobody is left
                self._seen = self._look(self._client)
        workers, threads, memory = self._seen
        self._emit(Tick(workers=workers, threads=threads, memory_bytes=memory + resident()))

    def _look(self, client: Client) -> tuple[int, int, int]:
        """Workers, their threads, and the memory of those that are not threads of this process."""
        if self._scheduler is not None:
            there = [(w.address, w.nthreads, w.metrics) for w in list(self._scheduler.workers.values())]
        else:
            told = client.scheduler_info(n_workers=-1)["workers"]
            there = [(address, w["nthreads"], w.get("metrics", {})) for address, w in told.items()]
        elsewhere = [metrics.get("memory", 0) for address, _, metrics in there if not address.startswith("inproc")]
        scoring = [threads if self._scoring_threads is None else self._scoring_threads for _, threads, _ in there]
        return len(there), sum(scoring), sum(elsewhere)
