"""How far a run is: events folded into numbers, for the terminal, the lock and whoever reads it.

Knows nothing about how they are shown.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scorer.events import PartFailed, PartFinished, PartRetried, PlanReady, Stopping, Tick
from scorer.report._pace import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scorer.events import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A run in hand, at one moment."""

    parts: int
    done: int
    """Parts that are committed, those of an earlier run among them."""
    resumed: int = 0
    """Parts that an earlier run committed."""
    failed: int = 0
    retried: int = 0
    """Parts that were begun more than once."""
    rows: int
    rows_done: int
    scored: int = 0
    """Of this run, like the next two."""
    quarantined: int = 0
    filtered: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    rows_per_s: float = 0.0
    """Since this run began to score."""
    rows_per_s_now: float = 0.0
    seconds: float = 0.0
    left_s: tuple[float, float] | None = None
    """The rest will take so long, nine times in ten; None while nobody knows."""
    forecast_s: tuple[float, float] | None = None
    """What the plan said that all of it would take."""
    workers: int = 0
    threads: int = 0
    memory_bytes: int = 0
    stopping: bool = False
    dashboard: str = ""
    """Where Dask's dashboard is, if it was asked for."""
    metrics: str = ""
    """Where the driver's metrics are, if there are any."""

    def to_dict(self) -> dict[str, Any]:
        """As data."""
        data = {name: getattr(self, name) for name in self.__slots__}
        rounded = {name: round(data[name], 1) for name in ("rows_per_s", "rows_per_s_now", "seconds")}
        pairs = {name: [round(end, 1) for end in data[name]] for name in ("left_s", "forecast_s") if data[name]}
        return data | rounded | pairs

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Snapshot | None:
        """The inverse of `to_dict`, out of a mapping that may hold other things too; None if it is not in there."""
        known = {field.name: data[field.name] for field in dataclasses.fields(cls) if field.name in data}
        if not {"parts", "done", "rows", "rows_done"} <= known.keys():
            return None
        pairs = {name: tuple(known[name]) for name in ("left_s", "forecast_s") if known.get(name)}
        return cls(**known | pairs)


class Progress:
    """Watches a run and adds up; asked from outside, by whom and when does not matter."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ready: PlanReady | None = None
        self._began = 0.0
        self._pace = Pace(0.0)
        self._sums = dict.fromkeys(("scored", "quarantined", "filtered", "bytes_read", "bytes_written"), 0)
        self._done = self._failed = 0
        self._retried: set[int] = set()
        self._tick = Tick(workers=0, threads=0, memory_bytes=0)
        self._stopping = False

    def __call__(self, event: Event) -> None:
        """Take note."""
        match event:
            case PartFinished():
                self._add(event)
            case Tick():
                self._tick = event
            case PlanReady():
                self._ready, self._began = event, self._clock()
                self._pace = Pace(self._began)
            case PartFailed():
                self._failed += 1
            case PartRetried():
                self._retried.add(event.part)
            case Stopping():
                self._stopping = True

    def _add(self, event: PartFinished) -> None:
        receipt, sums = event.receipt, self._sums
        counts = receipt.proof.counts
        self._done += 1
        self._pace.add(counts.rows, self._clock())
        sums["scored"] += counts.scored
        sums["quarantined"] += counts.quarantined
        sums["filtered"] += counts.filtered
        sums["bytes_read"] += receipt.bytes_read
        sums["bytes_written"] += receipt.size
        if receipt.tries > 1:
            self._retried.add(receipt.proof.part)

    @property
    def whole(self) -> bool:
        """Whether every part is committed."""
        return self._ready is not None and self._ready.done + self._done == self._ready.parts

    def seen(self) -> Snapshot | None:
        """How far it is now; None before work has begun."""
        ready, now = self._ready, self._clock()
        if ready is None:
            return None
        rows_done = ready.rows_done + self._pace.rows
        return Snapshot(
            parts=ready.parts, done=ready.done + self._done, resumed=ready.done, failed=self._failed,
            retried=len(self._retried), rows=ready.rows, rows_done=rows_done, **self._sums,
            rows_per_s=self._pace.average(now), rows_per_s_now=self._pace.now(now), seconds=now - self._began,
            left_s=None if self._stopping else self._pace.left(ready.rows - rows_done, now, max(self._tick.threads, 1)),
            forecast_s=None if ready.done else ready.forecast_s,
            workers=self._tick.workers, threads=self._tick.threads, memory_bytes=self._tick.memory_bytes,
            stopping=self._stopping, dashboard=ready.dashboard, metrics=ready.metrics,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """As data; empty before work has begun."""
        seen = self.seen()
        return {} if seen is None else seen.to_dict()
