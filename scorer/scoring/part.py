"""What runs on a Dask worker: the plugin, and the three functions that tasks call."""

from __future__ import annotations

import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa

from scorer.arrow import conform, decode_schema, digest
from scorer.binding import transform as transform_
from scorer.dataset import reader
from scorer.errors import ModelNotResident, PartError, ScorerError
from scorer.events import Counts, Proof, Receipt, Stages
from scorer.host import isolation
from scorer.host.process import name_of_process
from scorer.model.resident import SESSIONS
from scorer.output import attempts
from scorer.output.quarantine import write_quarantine
from scorer.output.writer import receipt_of, write_part
from scorer.scoring import batches, content
from scorer.scoring.job import JOBS, unfit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from scorer.output.attempts import Mark
    from scorer.output.writer import Content
    from scorer.plan.parts import Part
    from scorer.scoring.job import Job, Spec


ROWS, SCORES = "\0rows", "\0scores"
"""A part's frame: what was read and what the model gave, each as one struct column.

One column, because pandas takes 0.25 ms for each that it is given: 7 ms a part with 28 of them.
"""
_RELEASED_AFTER = 8
"""Parts, before Arrow's allocator gives back what it holds: to touch new memory costs more than to keep some."""
_PATIENCE_S = 1.0  # between looks whether the run goes on
_ALONE = threading.Lock()  # one process beside this one at a time: each loads the model


@dataclass(slots=True)
class Tally:
    """What travels with a frame from read to write, in its attrs."""

    part: Part
    attempt: str
    edges: np.ndarray
    places: reader.Places = field(default_factory=reader.Places)
    groups: tuple[int, ...] = ()
    """Whole row groups of the part, whose kept columns were not read for that."""
    filtered: int = 0
    bytes_read: int = 0
    stages: Stages = field(default_factory=Stages)
    lossy: int = 0
    nan: int = 0
    truncated: int = 0
    calls: int = 0
    smallest: int = 0
    began: float = field(default_factory=time.monotonic)
    skip: str = ""
    """'committed' or 'stopped': why nothing was read."""
    mark: Mark | None = None
    """On disk while the part is in flight."""
    started: float = 0.0
    slot: threading.Semaphore | None = None
    """Held while there is something to compute; whoever waits for the disk lets another part begin."""

    def release_slot(self) -> None:
        """What is left is waiting."""
        slot, self.slot = self.slot, None
        if slot is not None:
            slot.release()

    def __deepcopy__(self, memo: object) -> Tally:
        """Itself: pandas copies the attrs with every column that is looked at."""
        return self


def _outcome(job: Job, tally: Tally, frame: pd.DataFrame) -> Receipt | None:
    if tally.skip == "stopped":
        return None
    if tally.skip == "committed":
        return receipt_of(job.staging, tally.part.name)
    with _in_flight(job, tally):
        receipt = _commit(job, tally, frame)
        tally.release_slot()
    if tally.mark is not None:
        attempts.end(tally.mark)
    if job.count_part is not None:
        job.count_part(receipt)
    job.parts_done += 1
    job.longest_s = max(job.longest_s, time.monotonic() - tally.began)
    if job.parts_done % _RELEASED_AFTER == 0:
        pa.default_memory_pool().release_unused()
    return receipt


def _still(key: str, tally: Tally) -> Job:
    """The job of a part that has begun; its run may be over by now."""
    try:
        return JOBS.job(key)
    except ModelNotResident:
        tally.release_slot()  # others wait for it
        raise


def whole_part(spec: Spec, part: Part) -> None:
    """Read, score and commit in this process, which has nothing else to do and nothing to lose."""
    JOBS.prime(spec)
    try:
        job, tally = JOBS.job(spec.key), Tally(part, uuid.uuid4().hex[:12], edges=batches.grid(0, 1))
        with _in_flight(job, tally):
            _commit(job, tally, _score(job, tally, _read(job, tally)))
    finally:
        JOBS.drop(spec.key)


def rescored(key: str, part: Part) -> pa.Table:
    """The part's rows scored again and written nowhere."""
    job = JOBS.job(key)
    tally = Tally(part, "", edges=batches.grid(0, 1))
    frame = _score(job, tally, _read(job, tally))
    return _scores(job, tally, frame, _good(frame))


@contextmanager
def _in_flight(job: Job, tally: Tally) -> Iterator[None]:
    """The watchdog knows what this thread does; a part that fails is no longer in flight."""
    thread = threading.get_ident()
    job.scoring[thread] = tally.part
    try:
        yield
    except BaseException:
        tally.release_slot()
        if tally.mark is not None:
            attempts.end(tally.mark)
        if job.count_part is not None:
            job.count_part(None)
        raise
    finally:
        job.scoring.pop(thread, None)


def _score_apart(job: Job, tally: Tally) -> None:
    """In a process of its own: this part may have ended one before."""
    part = tally.part
    try:
        with _ALONE:
            isolation.call("scorer.scoring.part:whole_part", job.spec, part)
    except isolation.Died as died:
        what = "a part ends the process that scores it; it is set aside"
        hint = "find the row with --where, and leave it out or mend it; or ask the maker of the model"
        raise PartError(what, part.place, "a process that lives on", str(died), hint) from died
    tally.skip = "committed"
    if tally.mark is not None:
        attempts.end(tally.mark)
    attempts.clear_marks(job.staging, part.name)


def _read(job: Job, tally: Tally) -> pd.DataFrame:
    tally.started = time.time()
    started, busy = time.perf_counter(), time.thread_time()
    batch_rows = job.spec.frozen.batch_rows
    rows = reader.read(tally.part.source, job.read_schema, job.conditions, batch_rows, job.inputs, job.lean_schema)
    tally.edges, tally.places, tally.groups = rows.edges, rows.places, rows.groups
    tally.filtered, tally.bytes_read = rows.filtered, rows.bytes_read
    frame = to_frame(rows.table, tally)
    decode = time.thread_time() - busy
    tally.stages += Stages(read=max(0.0, time.perf_counter() - started - decode), decode=decode)
    return frame


def _score(job: Job, tally: Tally, frame: pd.DataFrame) -> pd.DataFrame:
    binding = job.spec.frozen.binding
    try:
        session = SESSIONS.session(job.spec.frozen.session)
    except ScorerError as error:
        if not job.spec.remote:
            raise
        raise unfit(job, str(error)) from error
    began = time.perf_counter()
    fed = _struct(frame, ROWS, job.reads)
    fed, bad = _transformed(fed, job) if job.spec.frozen.transform is not None else (fed, {})
    tally.stages += Stages(pack=time.perf_counter() - began)
    scored = batches.score(fed, tally.edges, binding, session, bad, job.spec.frozen.batch_tokens)
    tally.stages += scored.stages
    tally.lossy, tally.nan, tally.truncated = scored.lossy, scored.nan, scored.truncated
    tally.calls, tally.smallest = scored.calls, scored.smallest
    scores = _series(pa.StructArray.from_arrays(scored.columns, list(binding.outputs)))
    columns = {ROWS: frame[ROWS], SCORES: scores} | (_bad_columns(scored) if scored.bad else {})
    result = pd.DataFrame(columns, copy=False)
    result.attrs["scorer"] = tally
    _let_go(frame)
    return result


def _commit(job: Job, tally: Tally, frame: pd.DataFrame) -> Receipt:
    started = time.perf_counter()
    spec, part = job.spec, tally.part
    quarantine = _set_aside(job, tally, frame)
    scores, made = _content(job, tally, frame)
    proof = Proof(
        part=part.index,
        plan=spec.frozen.plan_hash,
        model=spec.frozen.session.digest,
        counts=Counts(
            rows=part.rows,
            scored=scores.num_rows,
            quarantined=len(frame) - scores.num_rows,
            filtered=tally.filtered,
            lossy=tally.lossy,
            nan=tally.nan,
            truncated=tally.truncated,
        ),
        digests={name: digest(scores[name]) for name in spec.frozen.binding.outputs},
        quarantine=quarantine,
    )
    _let_go(frame)
    receipt = write_part(job.staging, part.name, tally.attempt, made, proof, tally.release_slot)
    spent = tally.stages + Stages(write=time.perf_counter() - started)
    return replace(
        receipt,
        bytes_read=tally.bytes_read, stages=spent, calls=tally.calls, attempt=tally.attempt,
        worker=name_of_process(), sessions=SESSIONS.made, device=spec.frozen.session.device,
        batch_rows=tally.smallest or spec.frozen.batch_rows, tries=tally.mark.tries if tally.mark else 1,
        started=round(tally.started, 4), ended=round(time.time(), 4),
    )  # fmt: skip


def _set_aside(job: Job, tally: Tally, frame: pd.DataFrame) -> str:
    """Bad rows go to quarantine, with all they had; gives the name of their file, if there are any."""
    if "_error" not in frame:
        return ""
    bad, source = _chunked(frame["_error"]), tally.part.source
    rows = tally.places.numbers()[bad.is_valid().to_numpy()].tolist()
    reasons, stages = bad.drop_null().to_pylist(), _chunked(frame["_stage"]).drop_null().to_pylist()
    why = list(zip(reasons, stages, [source.path] * len(rows), rows, strict=True))
    found = reader.rows_at(source, rows, job.inputs)
    return write_quarantine(job.staging, tally.part.name, tally.attempt, found, why)


def _content(job: Job, tally: Tally, frame: pd.DataFrame) -> tuple[pa.Table, Content]:
    """The scores of good rows, and all that is written with them."""
    good = _good(frame)
    scores = _scores(job, tally, frame, good)
    kept = _struct(frame, ROWS, job.kept(tally.groups))
    return scores, content.of_part(job, tally.part, kept, scores, good, tally.groups)


def _good(frame: pd.DataFrame) -> pa.ChunkedArray | None:
    """Which rows were scored; None where all were."""
    return _chunked(frame["_error"]).is_null() if "_error" in frame else None


def to_frame(table: pa.Table, tally: Tally) -> pd.DataFrame:
    """A table as a frame, nothing converted."""
    frame = pd.DataFrame({ROWS: _series(table.to_struct_array())}, copy=False)
    frame.attrs["scorer"] = tally
    return frame


def _let_go(frame: pd.DataFrame) -> None:
    """Dask holds a frame until its part is done; what is not written need not lie in memory so long."""
    for name in list(frame.columns):
        del frame[name]


def _transformed(table: pa.Table, job: Job) -> tuple[pa.Table, dict[int, str]]:
    """What the user's function makes of the part, as planned."""
    transform = job.spec.frozen.transform
    if transform is None or not table.num_rows:
        return decode_schema(job.spec.frozen.fed_schema).empty_table(), {}
    given, bad = transform_.apply(transform, table)
    schema = decode_schema(job.spec.frozen.fed_schema)
    good = transform_.conform_transformed(given, schema, transform.name) if given.num_rows else schema.empty_table()
    return transform_.realign(good, bad, table.num_rows), bad


def _scores(job: Job, tally: Tally, frame: pd.DataFrame, good: pa.ChunkedArray | None) -> pa.Table:
    """What the output has of good rows beside what the input has, as planned."""
    binding = job.spec.frozen.binding
    table = _struct(frame, SCORES, binding.outputs)
    if binding.row_id:
        table = table.append_column("_file", pa.repeat(pa.scalar(tally.part.source.path), len(frame)))
        table = table.append_column("_row", pa.array(tally.places.numbers()))
    added = pa.schema([field for field in job.output_schema if field.name not in binding.kept])
    return conform(table if good is None else table.filter(good), added)


def _struct(frame: pd.DataFrame, name: str, wanted: Sequence[str]) -> pa.Table:
    """Some of the columns that a struct column holds; `flatten` keeps slices right."""
    struct = _chunked(frame[name])
    columns = struct.flatten() if struct.num_chunks else [pa.chunked_array([], field.type) for field in struct.type]
    held = dict(zip([field.name for field in struct.type], columns, strict=True))
    return pa.table({one: held[one] for one in wanted})


def _bad_columns(scored: batches.Scored) -> dict[str, pd.Series]:
    """`_stage` and `_error`, null for good rows."""
    pairs = [scored.bad.get(row, (None, None)) for row in range(scored.rows)]
    stages, reasons = zip(*pairs, strict=True)
    return {"_stage": _series(pa.array(stages, pa.string())), "_error": _series(pa.array(reasons, pa.string()))}


def _series(column: pa.Array | pa.ChunkedArray) -> pd.Series:
    return pd.Series(pd.arrays.ArrowExtensionArray(column), copy=False)


def _chunked(series: pd.Series) -> pa.ChunkedArray:
    return series.array.__arrow_array__()
