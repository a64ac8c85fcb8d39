"""What runs on a Dask worker: the plugin, and the three functions that tasks call."""

from __future__ import annotations

import asyncio
import os
import uuid
from typing import TYPE_CHECKING, Any

import pandas as pd
from distributed import WorkerPlugin
from distributed.metrics import context_meter

from scorer.cluster import _deadline as deadline
from scorer.events import Stages
from scorer.host import signals
from scorer.output import attempts
from scorer.scoring import batches
from scorer.scoring.job import JOBS
from scorer.scoring.part import (
    _PATIENCE_S,
    ROWS,
    Tally,
    _in_flight,
    _outcome,
    _read,
    _score,
    _score_apart,
    _still,
    to_frame,
)

if TYPE_CHECKING:
    from scorer.events import Receipt
    from scorer.plan.parts import Part
    from scorer.scoring.job import Spec


class ScorerPlugin(WorkerPlugin):  # type: ignore[misc]  # distributed is untyped
    """Tells a worker about a run. Returns at once; also runs on workers that join late."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.name = f"scorer-{spec.key}"
        self._driver = signals.Origin.here()

    def setup(self, worker: Any) -> None:  # noqa: ANN401 - distributed is untyped
        """Called in the worker's event loop: only starts the load, and the watch on the job's end."""
        self._hear_again = signals.ignore_interrupts_from(self._driver)
        JOBS.prime(self.spec, worker.address, worker.log_event)
        ends = deadline.of_this_job()
        if ends is not None:
            job = JOBS.job(self.spec.key)
            self._watch = asyncio.ensure_future(deadline.leave_in_time(worker, ends, lambda: job.longest_s))

    def teardown(self, worker: object) -> None:  # noqa: ARG002 - distributed's signature
        """Called at unregistration and at the worker's end."""
        JOBS.drop(self.spec.key)
        self._hear_again()


def read_part(part: Part, key: str, wave: int = 0) -> pd.DataFrame:  # noqa: ARG001 - the wave tells Dask's keys apart
    """A part as a frame: fed columns as they are, kept ones as one struct column."""
    job = JOBS.job(key)
    JOBS.fit(key)
    tally = Tally(part, uuid.uuid4().hex[:12], edges=batches.grid(0, 1))
    with _in_flight(job, tally):
        if job.slots is not None:
            while not job.slots.acquire(timeout=_PATIENCE_S):
                JOBS.job(key)  # raises once the run is over
            tally.slot = job.slots
        if (job.staging.parts / part.name).exists():
            tally.skip = "committed"
        elif os.path.exists(job.spec.stop_file):
            tally.skip = "stopped"
        else:
            tally.mark = attempts.begin(job.staging, part.name)
            if tally.mark.suspect:
                _score_apart(job, tally)
        if tally.skip:
            tally.release_slot()
            return to_frame(job.read_schema.empty_table(), tally)
        return _read(job, tally)


def score_part(frame: pd.DataFrame, key: str) -> pd.DataFrame:
    """The frame with the model's columns and, where a row is bad, `_error` and `_stage`."""
    tally: Tally = frame.attrs["scorer"]
    job = _still(key, tally)
    if tally.skip:
        return frame
    with _in_flight(job, tally):
        return _score(job, tally, frame)


def commit_part(frame: pd.DataFrame, key: str) -> Receipt | None:
    """Commit the good rows as the part and the bad ones to quarantine; None if the part was left for later.

    The driver is told at once. Dask has the receipt too, bare: boxed in a series it would be more than twice its size.
    """
    tally: Tally = frame.attrs["scorer"]
    job = _still(key, tally)
    receipt = _outcome(job, tally, frame)
    if receipt is not None and not tally.skip:
        for stage in Stages.__slots__:  # Dask's dashboard then shows them beside its own
            context_meter.digest_metric(stage, getattr(receipt.stages, stage), "seconds")
    job.report_receipt(tally.part.index, receipt)
    return receipt


def read_meta() -> pd.DataFrame:
    """The columns of a part's frame, for Dask; their types are the plan's affair and not checked twice."""
    return pd.DataFrame({name: pd.Series(dtype=object) for name in (ROWS,)})
