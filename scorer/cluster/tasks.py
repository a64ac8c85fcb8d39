"""What runs on a Dask worker: the plugin, and the three functions that tasks call.

    read_part     part -> frame          one struct column: what was read
    score_part    frame -> frame         a second one: the model's columns
    commit_part   frame -> receipt

The only module that knows parts as frames. All else of a part travels in the frame's attrs, and never leaves the
process: Dask fuses the three functions into one task.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
from distributed import WorkerPlugin
from distributed.metrics import context_meter

from scorer.cluster import _deadline as deadline
from scorer.errors import ModelNotResident
from scorer.events import Stages
from scorer.host import signals
from scorer.scoring import part as part_
from scorer.scoring.job import JOBS
from scorer.scoring.part import Attempt, in_flight

if TYPE_CHECKING:
    from scorer.dataset.reader import Rows
    from scorer.events import Receipt
    from scorer.plan.parts import Part
    from scorer.scoring.batches import Scored
    from scorer.scoring.job import Job, Spec


ROWS, SCORES = "\0rows", "\0scores"
"""A part's frame: what was read and what the model gave, each as one struct column.

One column, because pandas takes 0.25 ms for each that it is given: 7 ms a part with 28 of them.
"""


class ScorerPlugin(WorkerPlugin):  # type: ignore[misc]  # distributed is untyped
    """Makes a run known to a worker. Returns at once; also runs on workers that join late."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.name = f"scorer-{spec.key}"
        self._driver = signals.Origin.here()

    def setup(self, worker: Any) -> None:  # noqa: ANN401 - distributed is untyped
        """Start loading the model, and watch the end of the job. Called in the worker's event loop."""
        self._stop_ignoring = signals.ignore_interrupts_from(self._driver)
        JOBS.prime(self.spec, worker.address, worker.log_event)
        ends = deadline.of_this_job()
        if ends is not None:
            job = JOBS.job(self.spec.key)
            self._watch = asyncio.ensure_future(deadline.leave_in_time(worker, ends, lambda: job.longest_s))

    def teardown(self, worker: object) -> None:  # noqa: ARG002 - distributed's signature
        """Forget the run. Called when the plugin is unregistered, and at the worker's end."""
        JOBS.drop(self.spec.key)
        self._stop_ignoring()


@dataclass(slots=True)
class _Carried:
    """What travels with a part's frame in its attrs: everything but the tables, which are the frame's columns."""

    attempt: Attempt
    rows: Rows = field(init=False)  # unless the part is skipped
    scored: Scored = field(init=False)

    def __deepcopy__(self, memo: object) -> _Carried:
        """Return itself: pandas copies the attrs with every column that is looked at."""
        return self


def read_part(part: Part, key: str, wave: int = 0) -> pd.DataFrame:  # noqa: ARG001 - the wave tells Dask's keys apart
    """Return the rows of a part as a frame; an empty one if the part is skipped."""
    job = JOBS.job(key)
    JOBS.fit(key)
    carried = _Carried(Attempt(part))
    with in_flight(job, carried.attempt):
        part_.begin(job, carried.attempt)
        if carried.attempt.skip:
            return _frame(carried, {ROWS: job.read_schema.empty_table().to_struct_array()})
        rows = part_.read(job, carried.attempt)
        carried.rows = replace(rows, table=None)
        return _frame(carried, {ROWS: rows.table.to_struct_array()})


def score_part(frame: pd.DataFrame, key: str) -> pd.DataFrame:
    """Return the frame with the model's columns; they are null in bad rows."""
    carried: _Carried = frame.attrs["scorer"]
    job = _job(key, carried.attempt)
    if carried.attempt.skip:
        return frame
    with in_flight(job, carried.attempt):
        read = frame.pop(ROWS)  # Dask holds the frame until the part is done
        scored = part_.score(job, carried.attempt, replace(carried.rows, table=_table(read)))
        scores = pa.StructArray.from_arrays(scored.columns, list(job.spec.frozen.binding.outputs))
        carried.scored = replace(scored, columns=[])
        return _frame(carried, {ROWS: read, SCORES: scores})


def commit_part(frame: pd.DataFrame, key: str) -> Receipt | None:
    """Commit the good rows as the part and the bad ones to quarantine; None if the part was left for later.

    The driver gets the receipt at once, as an event. Dask has it too, bare: in a series it would be twice its size.
    """
    carried: _Carried = frame.attrs["scorer"]
    attempt = carried.attempt
    job = _job(key, attempt)
    if attempt.skip:
        receipt = part_.skipped(job, attempt)
    else:
        with in_flight(job, attempt):
            receipt = part_.commit(job, attempt, _prepared(job, carried, frame))
        part_.finish(job, attempt, receipt)
        for stage in Stages.__slots__:  # Dask's dashboard then shows them beside its own
            context_meter.digest_metric(stage, getattr(receipt.stages, stage), "seconds")
    job.report_receipt(attempt.part.index, receipt)
    return receipt


def read_meta() -> pd.DataFrame:
    """Return the columns of a part's frame, for Dask; the plan has their types."""
    return pd.DataFrame({name: pd.Series(dtype=object) for name in (ROWS,)})


def _job(key: str, attempt: Attempt) -> Job:
    """Return the job of a part that has begun; its run may be over by now."""
    try:
        return JOBS.job(key)
    except ModelNotResident:
        attempt.release_slot()  # others wait for it
        raise


def _prepared(job: Job, carried: _Carried, frame: pd.DataFrame) -> part_.Prepared:
    """Prepare the part, and release the tables that were read: they need not lie in memory while it is written."""
    rows = replace(carried.rows, table=_table(frame.pop(ROWS)))
    scored = replace(carried.scored, columns=_table(frame.pop(SCORES)).columns)
    return part_.prepare(job, carried.attempt, rows, scored)


def _frame(carried: _Carried, columns: dict[str, Any]) -> pd.DataFrame:
    """Return struct columns as a frame, nothing converted."""
    held = {
        name: column if isinstance(column, pd.Series) else pd.Series(pd.arrays.ArrowExtensionArray(column), copy=False)
        for name, column in columns.items()
    }
    frame = pd.DataFrame(held, copy=False)
    frame.attrs["scorer"] = carried
    return frame


def _table(series: pd.Series) -> pa.Table:
    """Return the columns that a struct column holds."""
    struct = series.array.__arrow_array__()
    if struct.num_chunks:
        return pa.Table.from_struct_array(struct)
    return pa.table({field.name: pa.chunked_array([], field.type) for field in struct.type})  # extension types too
