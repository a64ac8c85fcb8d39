"""The events of a run, the receipts of its parts, and the protocol of observers.

Pass `observers=[function]` to `scorer.run` or `scorer.execute`: the function gets every event, in the driver's process.
A receipt records how one part was read, scored and committed; the ledger has one row per receipt.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Protocol


def _shallow(value: Any) -> dict[str, Any]:  # noqa: ANN401 - any dataclass of this module
    """Return the fields of a dataclass without copying: `asdict` copies every value, 0.1 ms for a receipt."""
    return {name: getattr(value, name) for name in value.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Row counts of one part or of a run: `rows` = `scored` + `quarantined` + `filtered`."""

    rows: int = 0
    """Rows of the input, without the deleted rows of a table."""
    scored: int = 0
    """Rows with scores in the output."""
    quarantined: int = 0
    """Rows that could not be scored."""
    filtered: int = 0
    """Rows removed by --where."""
    lossy: int = 0
    """Values changed by a cast, with --on-lossy warn."""
    nan: int = 0
    """Scored rows with a NaN in at least one score, or with a null because the scores behind a class are NaN."""
    truncated: int = 0
    """Rows with a text that was cut at max_length."""
    deleted: int = 0
    """Rows in the files of a table that are deleted there; they are not in `rows`."""
    unmatched: int = 0
    """Scored rows with a key that a joined table does not have."""

    def __add__(self, other: Counts) -> Counts:
        """Add field by field."""
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in Counts.__slots__})

    @property
    def deleted_words(self) -> str:
        """How many rows are deleted, in words, to be added to a sum of the others; '' if none."""
        return f"; {self.deleted:,} more are deleted in the table" if self.deleted else ""

    @property
    def balanced(self) -> bool:
        """Whether every row was scored, quarantined or filtered."""
        return self.rows == self.scored + self.quarantined + self.filtered

    def to_dict(self) -> dict[str, int]:
        """Return the fields as a dict."""
        return dataclasses.asdict(self)


RARE_COUNTS = ("deleted", "unmatched")
"""Counts that only some runs can have; elsewhere they are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Seconds that threads spent in each stage of scoring."""

    read: float = 0.0
    """Waiting for the input to be read."""
    decode: float = 0.0
    """Decoding Parquet into columns."""
    pack: float = 0.0
    """Converting columns to input tensors, joined tables and the transform included."""
    infer: float = 0.0
    """Running the model."""
    unpack: float = 0.0
    """Converting output tensors to columns."""
    write: float = 0.0
    """Writing and committing the part's file."""

    def __add__(self, other: Stages) -> Stages:
        """Add field by field."""
        return Stages(**{name: getattr(self, name) + getattr(other, name) for name in Stages.__slots__})

    def to_dict(self) -> dict[str, float]:
        """Return the fields as a dict."""
        return {name: round(value, 6) for name, value in dataclasses.asdict(self).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The facts that are equal for every attempt at a part; stored in the footer of the part's file."""

    part: int
    """Index of the part, from 0."""
    plan: str
    """The plan hash."""
    model: str
    """The model digest."""
    counts: Counts
    digests: dict[str, str]
    """Output column -> digest of its values."""
    quarantine: str = ""
    """Name of the part's quarantine file; empty if it has no bad rows."""
    where: bool = False
    """Whether the run has a row filter: then parts without rows have no file in the output."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON holds them."""
        counts = _shallow(self.counts)
        for name in RARE_COUNTS:
            if not counts[name]:  # so that the files of other runs keep their bytes
                del counts[name]
        data = _shallow(self) | {"counts": counts}
        if not self.where:  # so that the files of other runs keep their bytes
            del data["where"]
        return data

    def to_json(self) -> str:
        """Return one line of JSON, the same bytes every time."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Proof:
        """Parse what `to_json` returns."""
        data = json.loads(text)
        return cls(**data | {"counts": Counts(**data["counts"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """How one committed part was read, scored and written."""

    proof: Proof
    name: str
    """Path of the part's file inside the output."""
    size: int
    """Bytes of the part's file."""
    bytes_read: int = 0
    """Bytes of input read for the part."""
    stages: Stages = field(default_factory=Stages)
    calls: int = 0
    """Calls of the model, one for each batch."""
    worker: str = ""
    """Host and process id that scored the part, as `host:pid`."""
    sessions: int = 0
    """Model sessions created in that process so far."""
    device: str = ""
    """Device of the session, such as cpu or cuda."""
    batch_rows: int = 0
    """Smallest batch size used; below the plan's if the device ran out of memory."""
    attempt: str = ""
    """Unique id of the attempt that was committed."""
    started: float = 0.0
    """Start, in seconds since 1970 by the worker's clock; 0 if unknown."""
    ended: float = 0.0
    """End, by the same clock."""
    tries: int = 1
    """Attempts at the part, this one included; the earlier ones were interrupted."""
    peak_bytes: int = 0
    """Peak memory so far of the process that scored the part; 0 if unknown."""
    throttled: int = 0
    """How often that process has repeated a request so far, because a store did not answer or had no capacity."""
    throttled_s: float = 0.0
    """The seconds that passed until those requests were repeated."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What was measured of the part for gates; {} without gates."""

    def to_json(self) -> str:
        """Return one line of the journal."""
        data = _shallow(self) | {"proof": self.proof.to_dict(), "stages": _shallow(self.stages)}
        if not self.figures:
            del data["figures"]
        return json.dumps(data, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Receipt:
        """Parse what `to_json` returns."""
        data = json.loads(text)
        proof = Proof.from_json(json.dumps(data.pop("proof")))
        return cls(proof=proof, stages=Stages(**data.pop("stages")), **data)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """All checks have passed and the run has the lock; files are written from here on."""

    run: str
    """Name of the run: the output's name and the start of the plan hash."""
    output: str
    """Path of the output."""
    plan: str
    """The plan hash."""
    request: str
    """The request hash."""
    model: str
    """The model digest."""
    host: str
    """Host of the driver."""
    pid: int
    """Process id of the driver."""
    versions: dict[str, str]
    """Installed package -> version, on the driver."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReady:
    """The workers are connected, and scoring starts."""

    parts: int
    """Parts of the plan."""
    done: int
    """Parts already committed by an earlier, interrupted run."""
    rows: int
    """Rows of the plan."""
    rows_done: int
    """Rows of the parts in `done`."""
    output: str
    """Path of the output."""
    where: str
    """The workers, described in words."""
    forecast_s: tuple[float, float] | None = None
    """Forecast for all rows: lowest and highest number of seconds."""
    dashboard: str = ""
    """URL of Dask's dashboard, if requested."""
    metrics: str = ""
    """URL of the driver's Prometheus metrics, with `dashboard` and if prometheus_client is installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFinished:
    """A part was committed, and its receipt is on disk."""

    receipt: Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFailed:
    """A part could not be scored in this run."""

    part: int
    """Index of the part."""
    error: str
    """The error, as text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRetried:
    """A part was lost with its worker and is submitted again."""

    part: int
    """Index of the part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Current workers and memory; emitted several times a second while parts are scored."""

    workers: int
    """Connected workers."""
    threads: int
    """Threads of these workers."""
    memory_bytes: int
    """Memory of the driver and of all worker processes that report it."""
    in_parts: dict[int, int] = field(default_factory=dict)
    """Rows finished so far in each part in progress, by the part's index. Other processes report only long parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """Ctrl-C or SIGTERM was received; running parts are finished.

    Emitted inside the signal handler, so an observer must not block on it.
    """

    text: str
    """What happens now, in one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A message for the user; the run continues."""

    text: str
    """The message, in one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateJudged:
    """All parts are scored, and the figure of a gate was compared with its limit."""

    gate: str
    """The gate, as it was written."""
    limit: str
    """The comparison, such as '<= 0.2'."""
    figure: float | None
    """The figure; None if it cannot be computed, or is not finite."""
    found: str
    """The figure as text, with its error if it is estimated; or why it cannot be computed."""
    passed: bool
    """Whether the figure is within the limit."""
    warn: bool
    """Whether a failure is only reported (--gate-warn)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The output was published, complete."""

    output: str
    """Path of the output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """The run is finished, and the lock is released."""

    exit_code: int
    """Exit code, the same as the command's."""
    seconds: float
    """Duration of the run."""
    error: str = ""
    """The error as text; empty if the run succeeded."""


Event = (
    RunStarted
    | PlanReady
    | PartFinished
    | PartFailed
    | PartRetried
    | Tick
    | Stopping
    | Notice
    | GateJudged
    | Published
    | RunEnded
)


class Observer(Protocol):
    """A function that receives the events of a run, in order, in the driver's process.

    An observer that raises an exception gets no further events; the run continues.
    """

    def __call__(self, event: Event, /) -> None:
        """Handle one event."""


def to_dict(event: Event) -> dict[str, Any]:
    """Return an event as a flat dict, its class name first; a receipt's fields are named as in the ledger."""
    kind = {"event": type(event).__name__}
    if isinstance(event, Tick):
        return kind | {name: value for name, value in _shallow(event).items() if name != "in_parts"}
    if not isinstance(event, PartFinished):
        return kind | _shallow(event)
    receipt = event.receipt
    counts = receipt.proof.counts
    return {
        **kind,
        "part": receipt.proof.part,
        **{name: getattr(receipt, name) for name in ("name", "worker", "size", "bytes_read", "calls", "tries")},
        **{name: getattr(counts, name) for name in ("rows", "scored", "quarantined", "filtered", "nan")},
        **{name: getattr(counts, name) for name in RARE_COUNTS if getattr(counts, name)},
        **({name: getattr(receipt, name) for name in ("throttled", "throttled_s")} if receipt.throttled else {}),
        **{f"{name}_s": round(getattr(receipt.stages, name), 4) for name in Stages.__slots__},
        "started": round(receipt.started, 3),
        "ended": round(receipt.ended, 3),
    }
