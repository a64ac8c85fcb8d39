"""What happened, as frozen dataclasses, and who may watch.

A receipt says what one part did; the ledger is made of receipts.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Protocol


def _shallow(value: Any) -> dict[str, Any]:  # noqa: ANN401 - a dataclass of ours
    """Its fields as they are: `asdict` copies every value, and takes a tenth of a millisecond for a receipt."""
    return {name: getattr(value, name) for name in value.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Rows of one part or of a run; `rows` = scored + quarantined + filtered (+ set aside)."""

    rows: int = 0
    scored: int = 0
    quarantined: int = 0
    filtered: int = 0
    lossy: int = 0
    """Values that a cast changed, under --on-lossy warn."""
    nan: int = 0
    """Scored rows with a NaN in any score."""
    truncated: int = 0
    """Rows whose text was cut at max_length."""

    def __add__(self, other: Counts) -> Counts:
        """Field by field."""
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in Counts.__slots__})

    @property
    def balanced(self) -> bool:
        """Whether every row read is accounted for."""
        return self.rows == self.scored + self.quarantined + self.filtered

    def to_dict(self) -> dict[str, int]:
        """As data."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Seconds of one thread, by what it was doing."""

    read: float = 0.0
    """Waiting for the input."""
    decode: float = 0.0
    """Making columns of what was read."""
    pack: float = 0.0
    infer: float = 0.0
    unpack: float = 0.0
    write: float = 0.0

    def __add__(self, other: Stages) -> Stages:
        """Field by field."""
        return Stages(**{name: getattr(self, name) + getattr(other, name) for name in Stages.__slots__})

    def to_dict(self) -> dict[str, float]:
        """As data."""
        return {name: round(value, 6) for name, value in dataclasses.asdict(self).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What every attempt at a part says alike; it is in the part's footer."""

    part: int
    plan: str
    """The plan hash."""
    model: str
    """The model digest."""
    counts: Counts
    digests: dict[str, str]
    """Per output column, a digest of its values."""
    quarantine: str = ""
    """Name of the file of bad rows, if there are any."""

    def to_json(self) -> str:
        """As one line, byte-stable."""
        return json.dumps(_shallow(self) | {"counts": _shallow(self.counts)}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Proof:
        """The inverse of `to_json`."""
        data = json.loads(text)
        return cls(**data | {"counts": Counts(**data["counts"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What one part did, once committed."""

    proof: Proof
    name: str
    """Path of the part inside the output."""
    size: int
    """Bytes of the part's file."""
    bytes_read: int = 0
    stages: Stages = field(default_factory=Stages)
    calls: int = 0
    """Calls of the model."""
    worker: str = ""
    """Host and process that did it."""
    sessions: int = 0
    """Sessions made so far in that process."""
    device: str = ""
    batch_rows: int = 0
    """Smallest batch that was used; below the plan's after an out-of-memory."""
    attempt: str = ""
    started: float = 0.0
    """Seconds since 1970 by the worker's clock; 0 where nobody noted it."""
    ended: float = 0.0
    tries: int = 1
    """How often the part was begun, this time included; those that were cut short are the others."""

    def to_json(self) -> str:
        """As one line of the journal."""
        proof = _shallow(self.proof) | {"counts": _shallow(self.proof.counts)}
        return json.dumps(_shallow(self) | {"proof": proof, "stages": _shallow(self.stages)}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Receipt:
        """The inverse of `to_json`."""
        data = json.loads(text)
        proof = Proof.from_json(json.dumps(data.pop("proof")))
        return cls(proof=proof, stages=Stages(**data.pop("stages")), **data)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """Nothing stands in the way any more; from here on something is written."""

    run: str
    """Its name: the output's and the first letters of the plan's hash."""
    output: str
    plan: str
    """The plan hash."""
    request: str
    """The request hash."""
    model: str
    """The model digest."""
    host: str
    pid: int
    versions: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReady:
    """Work is about to begin."""

    parts: int
    done: int
    """Parts that an earlier run committed."""
    rows: int
    rows_done: int
    output: str
    where: str
    """Who does the work, in words."""
    forecast_s: tuple[float, float] | None = None
    """Seconds that the plan foresaw for all rows."""
    dashboard: str = ""
    """Where Dask's dashboard is, if it was asked for."""
    metrics: str = ""
    """Where the driver's metrics are, if prometheus_client is installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFinished:
    """A part is committed; its receipt is on disk."""

    receipt: Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFailed:
    """A part could not be scored in this run."""

    part: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRetried:
    """A part was lost with its worker, and is sent again."""

    part: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time has passed while parts are scored: who works, and how much memory is held; a few times a second."""

    workers: int
    threads: int
    memory_bytes: int
    """Of the driver and of every worker process, as far as they say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """Somebody asked to stop; comes out of a signal's handler, so whoever watches must not wait for anything."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something a person should know, in one sentence."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The output is in its place."""

    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """Nothing more is done; nobody holds the lock any longer."""

    exit_code: int
    """As the command's."""
    seconds: float
    error: str = ""


Event = (
    RunStarted | PlanReady | PartFinished | PartFailed | PartRetried | Tick | Stopping | Notice | Published | RunEnded
)


class Observer(Protocol):
    """Watches a run; called in the driver, in order. One that raises is dropped."""

    def __call__(self, event: Event, /) -> None:
        """Take note of `event`."""


def to_dict(event: Event) -> dict[str, Any]:
    """An event as flat data, its kind first; a part's receipt under the names of the ledger's columns."""
    kind = {"event": type(event).__name__}
    if not isinstance(event, PartFinished):
        return kind | _shallow(event)
    receipt = event.receipt
    counts = receipt.proof.counts
    return {
        **kind,
        "part": receipt.proof.part,
        **{name: getattr(receipt, name) for name in ("name", "worker", "size", "bytes_read", "calls", "tries")},
        **{name: getattr(counts, name) for name in ("rows", "scored", "quarantined", "filtered", "nan")},
        **{f"{name}_s": round(getattr(receipt.stages, name), 4) for name in Stages.__slots__},
        "started": round(receipt.started, 3),
        "ended": round(receipt.ended, 3),
    }
