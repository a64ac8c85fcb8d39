"""Prometheus metrics in the process's registry, which Dask's HTTP servers serve at /metrics.

Needs prometheus_client. The driver's metrics count each part once, by its receipt. A worker's metrics count what its
process did, including parts that were lost or scored twice.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

from scorer.events import PartFailed, PartFinished, PartRetried, PlanReady, Stages, Tick

if TYPE_CHECKING:
    from scorer.events import Event, Receipt


_ROWS = ("scored", "quarantined", "filtered")
_GAUGES = {
    "planned_parts": "Parts of the current run",
    "planned_rows": "Rows of the current run",
    "resumed_parts": "Parts that an earlier run had committed",
    "resumed_rows": "Rows that an earlier run had committed",
    "workers": "Workers of the current run",
    "threads": "Scoring threads of the current run",
    "memory_bytes": "Memory of the driver and its worker processes",
}


class _Work:
    """Counters of parts: their rows, times, calls and bytes."""

    def __init__(self, prefix: str, whose: str, outcomes: tuple[str, ...]) -> None:
        rows = Counter(f"{prefix}_rows", f"Rows {whose}, by outcome", ["outcome"])
        parts = Counter(f"{prefix}_parts", f"Parts {whose}, by outcome", ["outcome"])
        stages = Counter(f"{prefix}_stage_seconds", f"Seconds of threads {whose}, by stage", ["stage"])
        self._rows = [(name, rows.labels(name)) for name in _ROWS]
        self._stages = [(name, stages.labels(name)) for name in Stages.__slots__]
        self._calls = Counter(f"{prefix}_calls", f"Calls of the model {whose}")
        self._read = Counter(f"{prefix}_read_bytes", f"Bytes read {whose}")
        self._written = Counter(f"{prefix}_written_bytes", f"Bytes of parts {whose}")
        self.parts = {name: parts.labels(name) for name in outcomes}

    def add(self, receipt: Receipt) -> None:
        """Count a committed part."""
        counts, stages = receipt.proof.counts, receipt.stages
        self.parts["committed"].inc()
        for name, counter in self._rows:
            counter.inc(getattr(counts, name))
        for name, counter in self._stages:
            counter.inc(getattr(stages, name))
        self._calls.inc(receipt.calls)
        self._read.inc(receipt.bytes_read)
        self._written.inc(receipt.size)


class _Driver:
    """The driver's metrics: an observer of a run's events."""

    def __init__(self) -> None:
        self._work = _Work("scorer", "of the runs of this driver", ("committed", "failed", "retried"))
        self._gauges = {name: Gauge(f"scorer_{name}", text) for name, text in _GAUGES.items()}

    def __call__(self, event: Event) -> None:
        """Count one event."""
        match event:
            case PartFinished():
                self._work.add(event.receipt)
            case Tick():
                self._set(workers=event.workers, threads=event.threads, memory_bytes=event.memory_bytes)
            case PartFailed():
                self._work.parts["failed"].inc()
            case PartRetried():
                self._work.parts["retried"].inc()
            case PlanReady():
                self._set(planned_parts=event.parts, planned_rows=event.rows)
                self._set(resumed_parts=event.done, resumed_rows=event.rows_done)

    def _set(self, **values: float) -> None:
        for name, value in values.items():
            self._gauges[name].set(value)


class _Worker:
    """A worker's metrics: the parts that ended in this process."""

    def __init__(self) -> None:
        self._work = _Work("scorer_worker", "of this worker process", ("committed", "failed"))

    def __call__(self, receipt: Receipt | None) -> None:
        """Count a committed part, or a failed one if `receipt` is None."""
        if receipt is None:
            self._work.parts["failed"].inc()
        else:
            self._work.add(receipt)


@cache  # a registry accepts each name only once
def driver() -> _Driver:
    """Return the driver's metrics of this process."""
    return _Driver()


@cache
def worker() -> _Worker:
    """Return the worker's metrics of this process."""
    return _Worker()
