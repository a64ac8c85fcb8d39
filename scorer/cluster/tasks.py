"""What runs on a Dask worker: the plugin, and the three functions that tasks call.

    read_part     part -> frame          one struct column: what was read
    score_part    frame -> frame         a second one: the model's columns
    commit_part   frame -> receipt

The only module that handles parts as frames. The rest of a part's state travels in the frame's attrs and never leaves
the process, because Dask fuses the three functions into one task.
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
"""The two columns of a part's frame, each a struct column: what was read, and what the model returned.

Struct columns, because pandas needs 0.25 ms for each column of a new frame: 7 ms a part for a model with 28 inputs.
"""


class ScorerPlugin(WorkerPlugin):  # type: ignore[misc]  # distributed is untyped
    """Registers a run on every worker, and on workers that join later."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.name = f"scorer-{spec.key}"
        self._driver = signals.Origin.here()

    def setup(self, worker: Any) -> None:  # noqa: ANN401 - distributed is untyped
        """Start loading the model, and watch the end of the job.

        Dask calls it in the worker's event loop, so it returns at once.
        """
        self._stop_ignoring = signals.ignore_interrupts_from(self._driver)
        JOBS.add(self.spec, worker.address, worker.log_event)
        ends = deadline.job_end()
        if ends is not None:
            job = JOBS.job(self.spec.key)
            self._watch = asyncio.ensure_future(deadline.leave_in_time(worker, ends, lambda: job.longest_s))

    def teardown(self, worker: object) -> None:  # noqa: ARG002 - distributed's signature
        """Drop the run. Dask calls it when the plugin is unregistered and when the worker closes."""
        JOBS.remove(self.spec.key)
        self._stop_ignoring()


@dataclass(slots=True)
class _Carried:
    """A part's state between the three functions, in the frame's attrs: all but the tables, which are its columns."""

    attempt: Attempt
    rows: Rows = field(init=False)  # not set if the part is skipped
    scored: Scored = field(init=False)

    def __deepcopy__(self, memo: object) -> _Carried:
        """Return itself, because pandas deep-copies the attrs whenever a column is taken from the frame."""
        return self


def read_part(part: Part, key: str, wave: int = 0) -> pd.DataFrame:  # noqa: ARG001 - the wave makes Dask's keys unique
    """Return the rows of a part as a frame; an empty one if the part is skipped."""
    job = JOBS.job(key)
    JOBS.check_worker(key)
    carried = _Carried(Attempt(part))
    with in_flight(job, carried.attempt):
        part_.fetch(job, carried.attempt)
        part_.begin(job, carried.attempt)
        if carried.attempt.skip:
            return _frame(carried, {ROWS: job.read_schema.empty_table().to_struct_array()})
        rows = part_.read(job, carried.attempt)
        carried.rows = replace(rows, table=None)
        return _frame(carried, {ROWS: rows.table.to_struct_array()})


def score_part(frame: pd.DataFrame, key: str) -> pd.DataFrame:
    """Return the frame with the model's outputs added; they are null in bad rows."""
    carried: _Carried = frame.attrs["scorer"]
    job = _job(key, carried.attempt)
    if carried.attempt.skip:
        return frame
    with in_flight(job, carried.attempt):
        read = frame.pop(ROWS)  # Dask keeps this frame until the part is done, so it must not hold the table
        scored = part_.score(job, carried.attempt, replace(carried.rows, table=_table(read)))
        scores = pa.StructArray.from_arrays(scored.columns, list(job.spec.frozen.outputs))
        carried.scored = replace(scored, columns=[])
        return _frame(carried, {ROWS: read, SCORES: scores})


def commit_part(frame: pd.DataFrame, key: str) -> Receipt | None:
    """Commit the good rows as the part and the bad rows to quarantine; return the receipt.

    Returns None if the part was left for the next run. The driver receives the receipt at once, as an event. Dask gets
    it too, but not in a Series, which would double its size.
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
        for stage in Stages.__slots__:  # so that Dask's dashboard shows them beside its own
            context_meter.digest_metric(stage, getattr(receipt.stages, stage), "seconds")
    job.report_receipt(attempt.part.index, receipt)
    return receipt


def read_meta() -> pd.DataFrame:
    """Return an empty frame with the column of `read_part`, as Dask's `meta`; the plan has the real types."""
    return pd.DataFrame({name: pd.Series(dtype=object) for name in (ROWS,)})


def _job(key: str, attempt: Attempt) -> Job:
    """Return the job of a part that has started; raise `ModelNotResident` if its run has ended meanwhile."""
    try:
        return JOBS.job(key)
    except ModelNotResident:
        attempt.release_slot()  # other parts wait for the scoring slot
        raise


def _prepared(job: Job, carried: _Carried, frame: pd.DataFrame) -> part_.Prepared:
    """Prepare the part's output; take the tables out of the frame, so that memory is free while the file is written."""
    rows = replace(carried.rows, table=_table(frame.pop(ROWS)))
    scored = replace(carried.scored, columns=_table(frame.pop(SCORES)).columns)
    return part_.prepare(job, carried.attempt, rows, scored)


def _frame(carried: _Carried, columns: dict[str, Any]) -> pd.DataFrame:
    """Return a frame of struct columns, without converting them."""
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
