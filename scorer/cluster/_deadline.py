"""Stop a worker before its job's walltime ends, so that it starts no part that it could not finish."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

from distributed.core import Status

if TYPE_CHECKING:
    from collections.abc import Callable


JOB_ENDS_VARIABLE = "SCORER_JOB_ENDS"
"""Environment variable: when the job that holds this worker ends, in seconds since 1970."""
_MARGIN_S = 10.0  # to close the worker, and for clocks that differ
_PART_TIME_FACTOR = 1.5  # the next part may take longer than the longest one so far
_POLL_S = 0.5


def job_end() -> float | None:
    """Return when this worker's job ends, in seconds since 1970; None if it has no known end."""
    try:
        return float(os.environ[JOB_ENDS_VARIABLE])
    except (KeyError, ValueError):
        return None


async def leave_in_time(worker: Any, ends: float, longest_s: Callable[[], float]) -> None:  # noqa: ANN401 - distributed is untyped
    """Stop taking parts shortly before `ends`, finish the running ones and close; others get the queued parts."""
    while worker.status == Status.running:
        left = ends - time.time() - _MARGIN_S - _PART_TIME_FACTOR * longest_s()
        if left <= 0:
            break
        await asyncio.sleep(min(_POLL_S, left))
    if worker.status != Status.running:
        return
    worker.status = Status.paused
    while worker.state.executing_count:  # noqa: ASYNC110 - the worker has no event for this
        await asyncio.sleep(_POLL_S)
    await worker.close_gracefully(restart=False, reason="the job ends soon")
