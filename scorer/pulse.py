"""A tick now and then while parts are scored: who works, and how much memory is held.

Asks a scheduler in this process directly, one elsewhere now and then; knows Dask by the names of two attributes only.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from scorer.events import Tick
from scorer.forecast import resident

if TYPE_CHECKING:
    from collections.abc import Callable

    from distributed import Client

    from scorer.cluster import Crew
    from scorer.events import Event

TICK_S = 0.2
_LOOK_S = 1.0
_LOOK_FAR_S = 5.0  # a scheduler elsewhere tells of every worker it has, however many


class Pulse:
    """Emits a `Tick` at most every fifth of a second; free when it is not yet time."""

    def __init__(self, crew: Crew, emit: Callable[[Event], None]) -> None:
        self._client, self._turns, self._emit = crew.client, crew.turns, emit
        self._scheduler = getattr(getattr(crew.client, "cluster", None), "scheduler", None)
        self._ticked = self._looked = float("-inf")
        self._seen = (1, 1, 0)

    def __call__(self) -> None:
        """Time has passed."""
        now = time.monotonic()
        if now - self._ticked < TICK_S:
            return
        self._ticked = now
        if self._client is not None and now - self._looked > (_LOOK_FAR_S if self._scheduler is None else _LOOK_S):
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
        scoring = [threads if self._turns is None else self._turns for _, threads, _ in there]
        return len(there), sum(scoring), sum(elsewhere)
