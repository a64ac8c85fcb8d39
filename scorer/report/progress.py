"""How far a run is: events counted into rows, parts and seconds, for displays, the event log and the lock file.

Knows nothing about how the numbers are shown.
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
    """The progress of a run at one moment."""

    parts: int
    done: int
    """Committed parts, including those of an earlier run."""
    resumed: int = 0
    """Parts that an earlier run committed."""
    failed: int = 0
    retried: int = 0
    """Parts that were started more than once."""
    rows: int
    rows_done: int
    """Rows of committed parts, and those finished so far in other parts; it never sinks."""
    scored: int = 0
    """By this run, like the next two."""
    quarantined: int = 0
    filtered: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    rows_per_s: float = 0.0
    """Average since this run started scoring."""
    rows_per_s_now: float = 0.0
    seconds: float = 0.0
    left_s: tuple[float, float] | None = None
    """Remaining time as a 90 % interval; None while too little is known."""
    forecast_s: tuple[float, float] | None = None
    """The plan's forecast for all of the run."""
    workers: int = 0
    threads: int = 0
    memory_bytes: int = 0
    stopping: bool = False
    dashboard: str = ""
    """URL of Dask's dashboard, if one was requested."""
    metrics: str = ""
    """URL of the driver's metrics, if it serves any."""

    def to_dict(self) -> dict[str, Any]:
        """Return the values for JSON."""
        data = {name: getattr(self, name) for name in self.__slots__}
        rounded = {name: round(data[name], 1) for name in ("rows_per_s", "rows_per_s_now", "seconds")}
        pairs = {name: [round(end, 1) for end in data[name]] for name in ("left_s", "forecast_s") if data[name]}
        return data | rounded | pairs

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Snapshot | None:
        """Return the snapshot that a mapping contains among other keys; None if it contains none."""
        known = {field.name: data[field.name] for field in dataclasses.fields(cls) if field.name in data}
        if not {"parts", "done", "rows", "rows_done"} <= known.keys():
            return None
        pairs = {name: tuple(known[name]) for name in ("left_s", "forecast_s") if known.get(name)}
        return cls(**known | pairs)


class Progress:
    """An observer that counts events; `snapshot` may be called by any thread at any time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reset()

    def _reset(self) -> None:
        self._ready: PlanReady | None = None
        self._began = 0.0
        self._pace = Pace(0.0)
        self._sums = dict.fromkeys(("scored", "quarantined", "filtered", "bytes_read", "bytes_written"), 0)
        self._done = self._failed = 0
        self._retried: set[int] = set()
        self._in_parts: dict[int, int] = {}
        self._shown = 0
        self._tick = Tick(workers=0, threads=0, memory_bytes=0)
        self._stopping = False

    def __call__(self, event: Event) -> None:
        """Count the event."""
        match event:
            case PartFinished():
                self._add(event)
            case Tick():
                self._tick, self._in_parts = event, dict(event.in_parts)
            case PlanReady():
                if self._ready is not None:  # the next run of one command
                    self._reset()
                self._ready, self._began = event, self._clock()
                self._pace = Pace(self._began)
            case PartFailed():
                self._failed += 1
                self._in_parts.pop(event.part, None)
            case PartRetried():
                self._retried.add(event.part)
                self._in_parts.pop(event.part, None)
            case Stopping():
                self._stopping = True

    def _add(self, event: PartFinished) -> None:
        receipt, sums = event.receipt, self._sums
        counts = receipt.proof.counts
        self._done += 1
        self._in_parts.pop(receipt.proof.part, None)
        self._pace.add(counts.rows, self._clock())
        sums["scored"] += counts.scored
        sums["quarantined"] += counts.quarantined
        sums["filtered"] += counts.filtered
        sums["bytes_read"] += receipt.bytes_read
        sums["bytes_written"] += receipt.size
        if receipt.tries > 1:
            self._retried.add(receipt.proof.part)

    @property
    def complete(self) -> bool:
        """Whether every part is committed."""
        return self._ready is not None and self._ready.done + self._done == self._ready.parts

    def snapshot(self) -> Snapshot | None:
        """Return the current progress; None before scoring starts."""
        ready, now = self._ready, self._clock()
        if ready is None:
            return None
        committed, tick, inside = ready.rows_done + self._pace.rows, self._tick, sum(self._in_parts.values())
        # between two ticks, or if a part is lost, fewer rows are known than were shown: they are finished again
        self._shown = rows_done = max(self._shown, min(committed + inside, ready.rows))
        first_s = max(now - self._began, 1e-9)  # until a part ends, the speed is that of the rows inside parts
        average, current = (self._pace.average(now), self._pace.now(now)) if self._done else (inside / first_s,) * 2
        return Snapshot(
            parts=ready.parts, done=ready.done + self._done, resumed=ready.done, failed=self._failed,
            retried=len(self._retried), rows=ready.rows, rows_done=rows_done, **self._sums,
            rows_per_s=average, rows_per_s_now=current, seconds=now - self._began,
            left_s=None if self._stopping else self._pace.remaining(ready.rows - committed, now, max(tick.threads, 1)),
            forecast_s=None if ready.done else ready.forecast_s,
            workers=tick.workers, threads=tick.threads, memory_bytes=tick.memory_bytes,
            stopping=self._stopping, dashboard=ready.dashboard, metrics=ready.metrics,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return the current progress for JSON; empty before scoring starts."""
        snapshot = self.snapshot()
        return {} if snapshot is None else snapshot.to_dict()
