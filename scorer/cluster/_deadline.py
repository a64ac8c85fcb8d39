"""Leave before the job ends: a worker near its walltime takes no part that it would not finish."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

from distributed.core import Status

if TYPE_CHECKING:
    from collections.abc import Callable


ENDS = "SCORER_JOB_ENDS"
"""Environment variable: when the job that holds this worker ends, in seconds since 1970."""
_MARGIN_S = 10.0  # for goodbyes, and clocks that differ
_LONGER = 1.5  # than the longest part so far
_LOOK_S = 0.5


def of_this_job() -> float | None:
    """When the job ends, if it ever does."""
    try:
        return float(os.environ[ENDS])
    except (KeyError, ValueError):
        return None


async def leave_in_time(worker: Any, ends: float, longest_s: Callable[[], float]) -> None:  # noqa: ANN401 - distributed is untyped
    """Take no part that would last beyond `ends`, finish those that run, and go; others get what was waiting here."""
    while worker.status == Status.running:
        left = ends - time.time() - _MARGIN_S - _LONGER * longest_s()
        if left <= 0:
            break
        await asyncio.sleep(min(_LOOK_S, left))
    if worker.status != Status.running:
        return
    worker.status = Status.paused
    while worker.state.executing_count:  # noqa: ASYNC110 - the worker announces no end
        await asyncio.sleep(_LOOK_S)
    await worker.close_gracefully(restart=False, reason="its job ends soon")
