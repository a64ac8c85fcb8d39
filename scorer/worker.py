"""What runs on a Dask worker: the plugin, the registry of sessions, and the three functions tasks call.

The registry is the one piece of mutable state in the product. The plugin only primes it; a task that
finds no session waits for the load, or gets its recorded cause as `ModelNotResident`.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
from distributed import WorkerPlugin

from scorer import partition, reader, transforming, where
from scorer.errors import ModelError, ModelNotResident
from scorer.events import Counts, Proof, Receipt, Stages
from scorer.model import digest_of
from scorer.opened import Opened
from scorer.session import Session
from scorer.sink import (
    Staging,
    against,
    decode_schema,
    digest,
    receipt_of,
    write_part,
    write_quarantine,
)

if TYPE_CHECKING:
    import numpy as np

    from scorer.plan import FrozenPlan, Part
    from scorer.session import SessionSpec

KEPT, POSITION = "\0kept", "\0position"
"""Frame columns of ours; no Parquet column can be named so by accident."""
_LOAD_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What every part of a run has in common; travels once per worker, with the plugin."""

    key: str
    """Unique to one execution."""
    frozen: FrozenPlan
    """Without its files; its hash stays."""
    staging: str
    stop_file: str
    """Once this exists, parts that have not started are left for the next run."""

    @classmethod
    def of(cls, frozen: FrozenPlan, staging: Staging) -> Spec:
        """The spec of one execution of a plan."""
        key = f"{frozen.plan_hash[:8]}-{uuid.uuid4().hex[:8]}"
        return cls(
            key=key,
            frozen=replace(frozen, files=(), request={}),
            staging=str(staging.root),
            stop_file=str(staging.root / f"stop-{key}"),
        )


@dataclass(slots=True)
class Job:
    """A spec, unpacked once per process."""

    spec: Spec
    read_schema: pa.Schema
    output_schema: pa.Schema
    conditions: tuple[where.Condition, ...]
    opened: Opened
    staging: Staging

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that are fed, or go through the transform first."""
        transform = self.spec.frozen.transform
        return self.spec.frozen.binding.fed if transform is None else transform.reads

    @classmethod
    def of(cls, spec: Spec) -> Job:
        """Schemas decoded, conditions parsed."""
        return cls(
            spec,
            decode_schema(spec.frozen.read_schema),
            decode_schema(spec.frozen.output_schema),
            tuple(where.parse(text) for text in spec.frozen.conditions),
            Opened(),
            Staging(root=Path(spec.staging)),
        )


@dataclass(slots=True)
class Tally:
    """What travels with a frame from read to write, in its attrs."""

    part: Part
    attempt: str
    edges: np.ndarray
    filtered: int = 0
    bytes_read: int = 0
    stages: Stages = field(default_factory=Stages)
    lossy: int = 0
    nan: int = 0
    truncated: int = 0
    calls: int = 0
    smallest: int = 0
    skip: str = ""
    """'committed' or 'stopped': why nothing was read."""


class Registry:
    """Sessions and jobs of this process, behind one lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._sessions: dict[tuple[str, str, int, str], Future[Session]] = {}
        self._jobs: dict[str, Job] = {}
        self.made = 0

    def prime(self, spec: Spec) -> None:
        """Remember the job and start loading its model; returns at once."""
        with self._lock:
            self._jobs[spec.key] = Job.of(spec)
        self._future(spec.frozen.session)

    def drop(self, key: str) -> None:
        """Forget a job, and its session unless another job uses it; running calls keep theirs."""
        with self._lock:
            job = self._jobs.pop(key, None)
            if job is None:
                return
            own = job.spec.frozen.session.key
            if all(other.spec.frozen.session.key != own for other in self._jobs.values()):
                self._sessions.pop(own, None)

    def job(self, key: str) -> Job:
        """The job of an execution that this worker was told about."""
        job = self._jobs.get(key)
        if job is None:
            what, hint = "a worker was never told about this run", "repeat the command"
            raise ModelNotResident(what, name_of_process(), f"the plugin of run {key}", "none", hint)
        return job

    def session(self, spec: SessionSpec) -> Session:
        """The resident session, loaded now if nobody did; its load error if it failed."""
        try:
            return self._future(spec).result(_LOAD_TIMEOUT_S)
        except TimeoutError:
            what, hint = "the model is still loading", "check the file system that holds the model"
            waited = f"{_LOAD_TIMEOUT_S} s without an answer"
            raise ModelNotResident(what, name_of_process(), "a loaded model", waited, hint) from None

    def release(self) -> None:
        """Forget every session; those in use live until their call ends."""
        with self._lock:
            self._sessions.clear()

    def _future(self, spec: SessionSpec) -> Future[Session]:
        with self._lock:
            if self._pid != os.getpid():  # a fork inherits sessions without their threads
                self._pid, self.made = os.getpid(), 0
                self._sessions.clear()
            future = self._sessions.get(spec.key)
            if future is None or (future.done() and future.exception() is not None):
                future = self._sessions[spec.key] = Future()
                threading.Thread(target=self._load, args=(spec, future), daemon=True, name="scorer-load").start()
            return future

    def _load(self, spec: SessionSpec, future: Future[Session]) -> None:
        try:
            _verify_model(spec)
            session = Session(spec)
            with self._lock:
                self.made += 1
            future.set_result(session)
        except BaseException as error:  # noqa: BLE001 - the worker boundary: whoever asks gets the cause
            future.set_exception(error)


REGISTRY = Registry()


class ScorerPlugin(WorkerPlugin):  # type: ignore[misc]  # distributed is untyped
    """Tells a worker about a run. Returns at once; also runs on workers that join late."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.name = f"scorer-{spec.key}"

    def setup(self, worker: object) -> None:  # noqa: ARG002 - distributed's signature
        """Called in the worker's event loop: only starts the load."""
        REGISTRY.prime(self.spec)

    def teardown(self, worker: object) -> None:  # noqa: ARG002 - distributed's signature
        """Called at unregistration and at the worker's end."""
        REGISTRY.drop(self.spec.key)


def read_part(part: Part, key: str) -> pd.DataFrame:
    """A part as a frame: fed columns as they are, kept ones as one struct column."""
    job = REGISTRY.job(key)
    tally = Tally(part, uuid.uuid4().hex[:12], edges=partition.grid(0, 1))
    if (job.staging.parts / part.name).exists():
        tally.skip = "committed"
    elif os.path.exists(job.spec.stop_file):
        tally.skip = "stopped"
    if tally.skip:
        return to_frame(job, job.read_schema.empty_table(), [], tally)
    started = time.perf_counter()
    frozen = job.spec.frozen
    rows = reader.read(part.source, job.read_schema, job.conditions, frozen.batch_rows, job.opened)
    tally.edges, tally.filtered, tally.bytes_read = rows.edges, rows.filtered, rows.bytes_read
    frame = to_frame(job, rows.table, rows.positions, tally)
    tally.stages += Stages(read=time.perf_counter() - started)
    return frame


def score_part(frame: pd.DataFrame, key: str) -> pd.DataFrame:
    """The frame with the model's columns and, where a row is bad, `_error` and `_stage`."""
    job = REGISTRY.job(key)
    tally: Tally = frame.attrs["scorer"]
    if tally.skip:
        return frame
    binding = job.spec.frozen.binding
    session = REGISTRY.session(job.spec.frozen.session)
    began = time.perf_counter()
    fed = pa.table({name: _chunked(frame[name]) for name in job.reads})
    fed, bad = _transformed(fed, job) if job.spec.frozen.transform is not None else (fed, {})
    tally.stages += Stages(pack=time.perf_counter() - began)
    scored = partition.score(fed, tally.edges, binding, session, bad)
    tally.stages += scored.stages
    tally.lossy, tally.nan, tally.truncated = scored.lossy, scored.nan, scored.truncated
    tally.calls, tally.smallest = scored.calls, scored.smallest
    columns = {name: frame[name] for name in frame.columns if name in {KEPT, POSITION}}
    columns |= {
        f"\0{i}": _series(column) for i, column in enumerate(scored.columns)
    }  # by number: a score may have a kept column's name until the schema says otherwise
    stages, reasons = _bad_columns(scored)
    result = pd.DataFrame({**columns, "_error": reasons, "_stage": stages}, copy=False)
    result.attrs["scorer"] = tally
    return result


def commit_part(frame: pd.DataFrame, key: str) -> Receipt | None:
    """Commit the good rows as the part and the bad ones to quarantine; None if the part was left for later.

    The receipt travels bare: boxed in a series it would be more than twice its size on the wire.
    """
    job = REGISTRY.job(key)
    tally: Tally = frame.attrs["scorer"]
    if tally.skip == "stopped":
        return None
    if tally.skip == "committed":
        return receipt_of(job.staging, tally.part.name)
    started = time.perf_counter()
    spec, part = job.spec, tally.part
    table = _output_table(frame, job, part)
    quarantine = ""
    bad = _chunked(frame["_error"])
    if bad.null_count < len(bad):
        good = bad.is_null()
        rows = _chunked(frame[POSITION]).filter(bad.is_valid()).to_pylist()
        reasons, stages = bad.drop_null().to_pylist(), _chunked(frame["_stage"]).drop_null().to_pylist()
        why = list(zip(reasons, stages, [part.source.path] * len(rows), rows, strict=True))
        found = reader.rows_at(part.source, rows, job.opened)
        quarantine = write_quarantine(job.staging, part.name, tally.attempt, found, why)
        table = table.filter(good)
    table = against(table, job.output_schema)
    outputs = spec.frozen.binding.outputs
    proof = Proof(
        part=part.index,
        plan=spec.frozen.plan_hash,
        model=spec.frozen.session.digest,
        counts=Counts(
            rows=part.rows,
            scored=table.num_rows,
            quarantined=len(frame) - table.num_rows,
            filtered=tally.filtered,
            lossy=tally.lossy,
            nan=tally.nan,
            truncated=tally.truncated,
        ),
        digests={name: digest(table[name]) for name in outputs},
        quarantine=quarantine,
    )
    write_part(job.staging, part.name, tally.attempt, table, proof, spec.frozen.codec, spec.frozen.dictionaries)
    spent = tally.stages + Stages(write=time.perf_counter() - started)
    return replace(
        receipt_of(job.staging, part.name),
        bytes_read=tally.bytes_read, stages=spent, calls=tally.calls, attempt=tally.attempt,
        worker=name_of_process(), sessions=REGISTRY.made, device=spec.frozen.session.device,
        batch_rows=tally.smallest or spec.frozen.batch_rows,
    )  # fmt: skip


def read_meta(spec: Spec) -> pd.DataFrame:
    """The columns of a part's frame, for Dask; their types are the plan's affair and not checked twice."""
    binding = spec.frozen.binding
    reads = binding.fed if spec.frozen.transform is None else spec.frozen.transform.reads
    names = [*reads, *([KEPT] if binding.kept else []), POSITION]
    return pd.DataFrame({name: pd.Series(dtype=object) for name in names})


def to_frame(job: Job, table: pa.Table, positions: Any, tally: Tally) -> pd.DataFrame:  # noqa: ANN401 - ints
    """A table as a frame of Arrow-backed columns, nothing converted."""
    binding = job.spec.frozen.binding
    columns = {name: _series(table[name]) for name in job.reads}
    if binding.kept:
        columns[KEPT] = _series(table.select(list(binding.kept)).to_struct_array())
    columns[POSITION] = _series(pa.array(positions, pa.int64()))
    frame = pd.DataFrame(columns, copy=False)
    frame.attrs["scorer"] = tally
    return frame


def name_of_process() -> str:
    """Host and process id, for receipts and errors."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _transformed(table: pa.Table, job: Job) -> tuple[pa.Table, dict[int, str]]:
    """What the user's function makes of the part, as planned."""
    transform = job.spec.frozen.transform
    if transform is None or not table.num_rows:
        return decode_schema(job.spec.frozen.fed_schema).empty_table(), {}
    given, bad = transforming.apply(transform, table)
    schema = decode_schema(job.spec.frozen.fed_schema)
    good = transforming.against(given, schema, transform.name) if given.num_rows else schema.empty_table()
    return transforming.spread(good, bad, table.num_rows), bad


def _output_table(frame: pd.DataFrame, job: Job, part: Part) -> pa.Table:
    """The frame as a table, bad rows and all."""
    binding = job.spec.frozen.binding
    columns: dict[str, pa.ChunkedArray] = {}
    if binding.kept:
        kept = _chunked(frame[KEPT])
        names = [field.name for field in kept.type]
        columns |= dict(zip(names, _fields(kept), strict=True))
    columns |= {name: _chunked(frame[f"\0{i}"]) for i, name in enumerate(binding.outputs)}
    if binding.row_id:
        columns["_file"] = pa.chunked_array([pa.repeat(pa.scalar(part.source.path), len(frame))])
        columns["_row"] = _chunked(frame[POSITION])
    return pa.table(columns)


def _fields(struct: pa.ChunkedArray) -> list[pa.ChunkedArray]:
    """A struct column's children; `flatten` keeps slices right."""
    if struct.num_chunks:
        return struct.flatten()  # type: ignore[no-any-return]
    return [pa.chunked_array([], field.type) for field in struct.type]


def _bad_columns(scored: partition.Scored) -> tuple[pd.Series, pd.Series]:
    """`_stage` and `_error`, null for good rows."""
    if not scored.bad:
        nothing = _series(pa.nulls(scored.rows, pa.string()))
        return nothing, nothing
    pairs = [scored.bad.get(row, (None, None)) for row in range(scored.rows)]
    stages, reasons = zip(*pairs, strict=True)
    return _series(pa.array(stages, pa.string())), _series(pa.array(reasons, pa.string()))


def _verify_model(spec: SessionSpec) -> None:
    """The file this worker sees is the file that was planned."""
    found = digest_of(spec.path, spec.files) if os.path.exists(spec.path) else "nothing"
    if found != spec.digest:
        what = "the model is not the one that was planned"
        hint = "restore it, or start again with --overwrite; workers must see the same file"
        where_ = f"{spec.path} on {name_of_process()}"
        raise ModelError(what, where_, f"sha256 {spec.digest[:16]}", found[:16], hint)


def _series(column: pa.Array | pa.ChunkedArray) -> pd.Series:
    return pd.Series(pd.arrays.ArrowExtensionArray(column), copy=False)


def _chunked(series: pd.Series) -> pa.ChunkedArray:
    return series.array.__arrow_array__()
