"""Read, score and commit one part: Arrow tables in, a receipt out.

    fetch(job, attempt)                                 from a store: its columns as they are stored, into memory
    begin(job, attempt)                                 mark it on disk; skip it if there is nothing to do
    rows = read(job, attempt)                           the part's rows, filtered
    scored = score(job, attempt, rows)                  output columns, and the bad rows
    prepared = prepare(job, attempt, rows, scored)      bad rows to quarantine, the output's columns, the proof
    receipt = commit(job, attempt, prepared)            the part's file, under its final name
    finish(job, attempt, receipt)                       remove the mark, update the counters

All but the last run inside `in_flight`. A part has one of the scoring slots from `begin` on, until its file is encoded.
The tables that were read can be released once the part is prepared.
"""

from __future__ import annotations

import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from scorer.arrow import conform, decode_schema, digest, join_tables
from scorer.binding import transform as transform_
from scorer.dataset import conditions as conditions_
from scorer.dataset import fields, reader
from scorer.dataset import quarantine as quarantine_
from scorer.display.words import quoted_list
from scorer.errors import CommitError, PartError, ScorerError, StoreUnavailable
from scorer.events import Counts, Proof, Receipt, Stages
from scorer.host import isolation
from scorer.host.process import name_of_process, peak
from scorer.locations import is_url
from scorer.model.resident import SESSIONS
from scorer.output import attempts
from scorer.output.quarantine import write_quarantine
from scorer.output.writer import receipt_of, write_part
from scorer.scoring import batches, content
from scorer.scoring.job import JOBS, Job, Spec, worker_unfit
from scorer.storage.files import THROTTLED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scorer.dataset.reader import Rows
    from scorer.output.attempts import Mark
    from scorer.output.place import Staging
    from scorer.output.quarantine import BadRow
    from scorer.output.writer import Content
    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.gates import Gates
    from scorer.plan.parts import Part
    from scorer.scoring.batches import Scored
    from scorer.scoring.job import Slots
    from scorer.storage.fetched import Fetched


_RELEASED_AFTER = 8
"""Parts between two releases of Arrow's unused memory. Fewer would cost page faults, more would cost memory."""
_ISOLATED = threading.Lock()  # one isolated process at a time, since each loads the model


@dataclass(slots=True)
class Attempt:
    """One attempt at a part: what it measures, and what it must release at its end."""

    part: Part
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    stages: Stages = field(default_factory=Stages)
    began: float = field(default_factory=time.monotonic)
    started: float = 0.0
    """Unix time at which reading started."""
    skip: str = ""
    """Why nothing is read: 'committed' or 'stopped'; '' otherwise."""
    mark: Mark | None = None
    """The mark on disk while the part is in progress."""
    slot: Slots | None = None
    """One of the worker's scoring slots; released before the file is synced, so that another part can start."""
    fetched: dict[str, Fetched] = field(default_factory=dict)
    """What was read from stores, by path, until it is not needed any more."""

    def release_slot(self) -> None:
        """Release the scoring slot: only disk I/O is left of this part."""
        slot, self.slot = self.slot, None
        if slot is not None:
            slot.release()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A part that is ready to be committed."""

    content: Content
    proof: Proof
    bytes_read: int
    calls: int
    batch_rows: int
    """Rows of the smallest batch."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What was measured for gates."""


@contextmanager
def in_flight(job: Job, attempt: Attempt) -> Iterator[None]:
    """Record the part that this thread works on, for the watchdog. If a step fails, release what the attempt holds."""
    thread = threading.get_ident()
    job.scoring[thread] = attempt.part
    try:
        yield
    except BaseException as error:
        if isinstance(error, (CommitError, StoreUnavailable)):
            job.stopped = True  # the run ends; the next part would wait for the same store or disk
        attempt.release_slot()
        attempt.fetched = {}
        job.rows_done.pop(attempt.part.index, None)
        if attempt.mark is not None:
            attempts.end(attempt.mark)
        if job.count_part is not None:
            job.count_part(None)
        raise
    finally:
        job.scoring.pop(thread, None)


def fetch(job: Job, attempt: Attempt) -> None:
    """Read from a store what the part needs, without a scoring slot, so that other parts are scored meanwhile.

    Local files are read by `read`.
    """
    sources = [source for source in attempt.part.sources if is_url(source.path)]
    if not sources or job.is_stopped():
        return
    from scorer.dataset import ahead  # noqa: PLC0415 - only for stores

    attempt.started, started = time.time(), time.perf_counter()
    attempt.fetched = ahead.fetch(
        sources, job.read_schema, job.conditions, job.inputs, lambda: JOBS.job(job.spec.key)
    )  # fmt: skip
    attempt.stages += Stages(read=time.perf_counter() - started)


def begin(job: Job, attempt: Attempt) -> None:
    """Wait for a scoring slot, then mark the part on disk, unless it is committed already or the run was stopped.

    A part that may have crashed a process before is scored in an isolated process here.
    """
    if job.slots is not None:
        job.slots.acquire(lambda: JOBS.job(job.spec.key))  # raises once the run has ended
        attempt.slot = job.slots
    if _is_committed(job, attempt):
        attempt.skip = "committed"
    elif job.is_stopped():
        attempt.skip = "stopped"
    else:
        attempt.mark = attempts.begin(job.staging, attempt.part.name)
        if attempt.mark.suspect:
            _score_isolated(job, attempt)
    if attempt.skip:
        attempt.fetched = {}
        attempt.release_slot()


def _is_committed(job: Job, attempt: Attempt) -> bool:
    """Return whether the part's file is there. On a store, only the commit asks that, as part of its one request."""
    path = job.staging.parts / attempt.part.name
    return isinstance(path, Path) and path.exists()


def read(job: Job, attempt: Attempt) -> Rows:
    """Return the part's rows with the columns that are fed or kept, those of joined tables included."""
    attempt.started = attempt.started or time.time()
    started, busy = time.perf_counter(), time.thread_time()
    batch_rows = [scorer.batch_rows for scorer in job.spec.frozen.scorers]
    rows = reader.read_all(
        attempt.part.sources, job.read_schema, job.conditions, batch_rows, job.inputs, job.decoded_schema,
        attempt.fetched,
    )  # fmt: skip
    if not rows.groups:  # else its kept columns are copied later
        attempt.fetched = {}
    decode = time.thread_time() - busy
    attempt.stages += Stages(read=max(0.0, time.perf_counter() - started - decode), decode=decode)
    if job.spec.frozen.joins:
        started = time.perf_counter()
        rows = _joined(job, rows)
        attempt.stages += Stages(pack=time.perf_counter() - started)
    return rows


def _joined(job: Job, rows: Rows) -> Rows:
    """Return the rows with the columns of joined tables, filtered by them. A row without a key is bad, not filtered."""
    table, unmatched, bad = content.with_joined(job, rows.table, job.spec.frozen.joins)
    rows = replace(rows, table=table, unmatched=unmatched, bad=bad)
    if not job.joined_conditions:
        return rows
    keep = conditions_.mask(job.joined_conditions, table).to_numpy()
    return reader.filtered(rows, keep | np.isin(np.arange(len(keep)), list(bad)))


def score(job: Job, attempt: Attempt, rows: Rows) -> Scored:
    """Run the user's transform and each model over the part's rows."""
    frozen = job.spec.frozen
    try:
        sessions = [SESSIONS.session(scorer.session) for scorer in frozen.scorers]
    except ScorerError as error:
        if not job.spec.remote:
            raise
        raise worker_unfit(job, str(error)) from error
    began = time.perf_counter()
    fed = fields.select(rows.table, job.reads)
    fed, failed = (fed, {}) if frozen.transform is None else transformed(fed, job)
    bad = {row: ("transform", why) for row, why in failed.items()}
    bad |= {row: ("join", why) for row, why in (rows.bad or {}).items()}
    attempt.stages += Stages(pack=time.perf_counter() - began)
    count = job.row_counter(attempt.part.index, rows.filtered)
    names = [scorer.name for scorer in frozen.scorers]
    each: list[Scored] = []
    for at, (scorer, session, edges) in enumerate(zip(frozen.scorers, sessions, rows.edges, strict=True)):
        counted = count if at == len(names) - 1 else _nothing_of(count)  # the last model finishes a row
        each.append(batches.score(fed, edges, scorer.binding, session, bad, scorer.batch_tokens, counted))
    scored = batches.merged(names, each)
    attempt.stages += scored.stages
    return scored


def _nothing_of(count: Callable[[int], None]) -> Callable[[int], None]:
    """Return a function that counts no rows, but reports that a batch was scored."""
    return lambda _: count(0)


def prepare(job: Job, attempt: Attempt, rows: Rows, scored: Scored) -> Prepared:
    """Write the bad rows to quarantine, and prepare the content of the part's file and its proof."""
    started = time.perf_counter()
    spec, part = job.spec, attempt.part
    quarantine = _quarantine(job, attempt, rows, scored)
    good = scored.good()
    scores = output_rows(job, attempt, rows, scored, good)
    kept = rows.table.select(job.kept(rows.groups))
    made = content.of_part(job, part, kept, scores, good, rows.groups, attempt.fetched)
    counts = Counts(
        rows=part.rows - rows.deleted, scored=scores.num_rows, quarantined=len(scored.bad), filtered=rows.filtered,
        lossy=scored.lossy, nan=scored.nan, truncated=scored.truncated, deleted=rows.deleted,
        unmatched=_unmatched(rows, good),
    )  # fmt: skip
    proof = Proof(
        part=part.index,
        plan=spec.frozen.plan_hash,
        model=spec.frozen.model_digest,
        counts=counts,
        digests={name: digest(scores[name]) for name in spec.frozen.outputs},
        quarantine=quarantine,
        where=bool(spec.frozen.conditions),
    )
    attempt.stages += Stages(write=time.perf_counter() - started)
    smallest = scored.smallest_batch or spec.frozen.batch_rows
    return Prepared(made, proof, rows.bytes_read, scored.calls, smallest, _measured(job, part, rows, scores, good))


def _unmatched(rows: Rows, good: pa.ChunkedArray | None) -> int:
    """Return how many of the good rows have a key that a joined table does not have."""
    if rows.unmatched is None:
        return 0
    return int(np.count_nonzero(rows.unmatched if good is None else rows.unmatched & good.to_numpy()))


def commit(job: Job, attempt: Attempt, prepared: Prepared) -> Receipt:
    """Write the part's file and commit it; return the receipt of the attempt that was committed first."""
    started = time.perf_counter()
    made, proof = prepared.content, prepared.proof
    notes = job.spec.lineage.of_part(attempt.part).entries
    receipt = write_part(job.staging, attempt.part.name, attempt.id, made, proof, attempt.release_slot, notes)
    attempt.stages += Stages(write=time.perf_counter() - started)
    throttled, throttled_s = THROTTLED.since(job.throttled_before)
    return replace(
        receipt,
        bytes_read=prepared.bytes_read, calls=prepared.calls, batch_rows=prepared.batch_rows, stages=attempt.stages,
        attempt=attempt.id, tries=attempt.mark.tries if attempt.mark else 1, worker=name_of_process(),
        sessions=SESSIONS.made, device=job.spec.frozen.device,
        started=round(attempt.started, 4), ended=round(time.time(), 4),
        peak_bytes=peak(), throttled=throttled, throttled_s=throttled_s,
        figures=prepared.figures if receipt.proof == proof else {},  # else another attempt's file is the part
    )  # fmt: skip


def finish(job: Job, attempt: Attempt, receipt: Receipt) -> None:
    """Remove the mark of a committed part and count it."""
    attempt.release_slot()
    attempt.fetched = {}
    if attempt.mark is not None:
        attempts.end(attempt.mark)
    if job.count_part is not None:
        job.count_part(receipt)
    job.rows_done.pop(attempt.part.index, None)
    job.parts_done += 1
    job.longest_s = max(job.longest_s, time.monotonic() - attempt.began)
    if job.parts_done % _RELEASED_AFTER == 0:
        pa.default_memory_pool().release_unused()


def skipped(job: Job, attempt: Attempt) -> Receipt | None:
    """Return the receipt of a part that was committed before, or None if the run was stopped."""
    return receipt_of(job.staging, attempt.part.name) if attempt.skip == "committed" else None


def whole_part(spec: Spec, part: Part) -> None:
    """Read, score and commit a part. Called in a process that was started for it."""
    JOBS.add(spec)
    try:
        job, attempt = JOBS.job(spec.key), Attempt(part)
        with in_flight(job, attempt):
            fetch(job, attempt)
            rows = read(job, attempt)
            commit(job, attempt, prepare(job, attempt, rows, score(job, attempt, rows)))
    finally:
        JOBS.remove(spec.key)


@contextmanager
def reading(frozen: FrozenPlan, staging: Staging, gates: Gates) -> Iterator[Callable[[Part], Rows]]:
    """Yield a function that reads the rows of a part again, with the columns that gates need."""
    job = Job.of(Spec.of(frozen, staging, gates=gates))
    try:
        yield lambda part: read(job, Attempt(part))
    finally:
        job.close()


def rescored(key: str, part: Part) -> pa.Table:
    """Return the scores of a part's good rows, computed again; write nothing."""
    job, attempt = JOBS.job(key), Attempt(part)
    fetch(job, attempt)
    rows = read(job, attempt)
    scored = score(job, attempt, rows)
    return output_rows(job, attempt, rows, scored, scored.good())


def _score_isolated(job: Job, attempt: Attempt) -> None:
    """Score the part in an isolated process, because it may have crashed a process before."""
    part = attempt.part
    try:
        with _ISOLATED:
            isolation.call("scorer.scoring.part:whole_part", job.spec, part)
    except isolation.Died as died:
        raise PartError(
            "a part crashes the process that scores it, so it is skipped",
            where=part.place,
            expected="a process that survives",
            found=str(died),
            hint="find the row with --where, then exclude or repair it, or report the crash to the model's author",
        ) from died
    attempt.skip = "committed"
    if attempt.mark is not None:
        attempts.end(attempt.mark)
    attempts.clear_marks(job.staging, part.name)


def _measured(job: Job, part: Part, rows: Rows, scores: pa.Table, good: pa.ChunkedArray | None) -> dict[str, Any]:
    """Return what gates need to know of the part's scored rows."""
    if job.spec.gates is None:
        return {}
    from scorer.scoring.gates import parts  # noqa: PLC0415 - only for runs with gates

    return parts.of_scored(job.spec.gates, part, rows, scores, good)


def _quarantine(job: Job, attempt: Attempt, rows: Rows, scored: Scored) -> str:
    """Write the bad rows with all readable columns of the input; return the file's name, '' if no row is bad."""
    if not scored.bad:
        return ""
    numbers, every = rows.places.numbers(), np.array(sorted(scored.bad))
    pieces: list[pa.Table] = []
    whys: list[BadRow] = []
    bounds = np.searchsorted(every, np.cumsum((0, *rows.counts)))  # where the bad rows of each source begin and end
    for source, (low, high) in zip(attempt.part.sources, pairwise(bounds), strict=True):
        bad = every[low:high]
        if not len(bad):
            continue
        places = numbers[bad].tolist()
        found, unread = quarantine_.rows_at(source, places, job.inputs)
        pieces.append(found)
        for row, place in zip(bad.tolist(), places, strict=True):
            stage, reason = scored.bad[row]
            note = f"; null here, because they cannot be read: {quoted_list(unread[place])}" if place in unread else ""
            whys.append((reason + note, stage, source.path, place))
    table = join_tables(pieces)  # columns with nulls for unread values are nullable
    return write_quarantine(job.staging, attempt.part.name, attempt.id, table, whys)


def transformed(table: pa.Table, job: Job) -> tuple[pa.Table, dict[int, str]]:
    """Apply the user's function: return its columns in the planned types, and the rows that it could not transform."""
    transform = job.spec.frozen.transform
    if transform is None or not table.num_rows:
        return decode_schema(job.spec.frozen.fed_schema).empty_table(), {}
    given, bad = transform_.apply(transform, table)
    schema = decode_schema(job.spec.frozen.fed_schema)
    good = transform_.conform_transformed(given, schema, transform.name) if given.num_rows else schema.empty_table()
    return transform_.realign(good, bad, table.num_rows), bad


def output_rows(job: Job, attempt: Attempt, rows: Rows, scored: Scored, good: pa.ChunkedArray | None) -> pa.Table:
    """Return the output columns that are not kept from the input, for good rows, in the planned types."""
    frozen = job.spec.frozen
    table = pa.Table.from_arrays(scored.columns, names=list(frozen.outputs))
    if frozen.row_id:
        files = zip(attempt.part.sources, rows.counts, strict=True)
        paths = pa.chunked_array([pa.repeat(pa.scalar(source.path), count) for source, count in files])
        table = table.append_column("_file", paths)
        table = table.append_column("_row", pa.array(rows.places.numbers()))
    added = pa.schema([field for field in job.output_schema if field.name not in frozen.kept])
    return conform(table if good is None else table.filter(good), added)
