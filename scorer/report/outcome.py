"""What was done: counts, times, the bottleneck; folded from receipts."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from scorer.display import html
from scorer.display.blocks import Facts, Link, Words
from scorer.display.words import duration, plural, size, time_range
from scorer.events import Counts, Stages
from scorer.host import devices

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from scorer.display.blocks import Block
    from scorer.events import Receipt


_SHORT_S = 1.0  # below, the shares of the stages are noise, and a forecast is no match for the start
_SMALL = 0.01  # shares of the time that nobody asks about


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run did; `to_dict` is report.json."""

    output: str
    already_done: bool
    """Nothing was left to do."""
    parts: int
    parts_resumed: int
    """Committed by an earlier, interrupted run."""
    parts_failed: dict[int, str]
    counts: Counts
    began: str = ""
    """When, by the driver's clock."""
    seconds: float
    rows_per_s: float
    """Of this run: rows read by it over its wall time."""
    threads: int
    """That scored when the run began."""
    scoring_s: float
    """Of the wall time, from the first part sent to the last one ended."""
    stages: Stages
    """Seconds of all threads."""
    calls: int
    output_bytes: int
    input_bytes: int
    peak_memory_bytes: int
    """Of the driver's process; worker processes have their own."""
    sessions: dict[str, int]
    """Sessions made, by process."""
    trial_sessions: int
    device: str
    batch_rows: int
    batch_tokens: int | None
    halved: tuple[int, ...]
    """Parts in which a batch was halved: their scores may differ in the last bits."""
    model: str
    plan: str
    asked: dict[str, Any]
    """Options that were not at their default."""
    versions: dict[str, str]
    forecast: dict[str, Any] | None
    nodes: dict[str, int] = field(default_factory=dict)
    """Of the model, by the device that they run on; {} where all are on the processor."""
    notes: tuple[str, ...] = ()
    quarantine: str = ""
    proof: str = ""
    """The folder beside the output: plan, ledger, quarantine, report.html."""

    def to_dict(self) -> dict[str, Any]:
        """As data."""
        data = asdict(self)
        return data | {
            "counts": self.counts.to_dict(),
            "stages": self.stages.to_dict(),
            "seconds": round(self.seconds, 3),
            "rows_per_s": round(self.rows_per_s),
            "parts_failed": {str(part): text for part, text in self.parts_failed.items()},
            "scoring_s": round(self.scoring_s, 3),
            "bottleneck": None if self.bottleneck is None else asdict(self.bottleneck),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """Return the report that `to_dict` wrote; keys that this version does not know are ignored."""
        known = {field.name: data[field.name] for field in fields(cls) if field.name in data}
        typed = {
            "counts": Counts(**data["counts"]),
            "stages": Stages(**data["stages"]),
            "parts_failed": {int(part): text for part, text in data["parts_failed"].items()},
            "halved": tuple(data["halved"]),
            "notes": tuple(data["notes"]),
        }
        return cls(**known | typed)

    @property
    def bottleneck(self) -> Bottleneck | None:
        """Where the time went, and what would save the most of it."""
        return bottleneck_of(self.stages, self.scoring_s, self.threads)

    @property
    def summary(self) -> str:
        """In a sentence."""
        counts = self.counts
        if self.already_done:
            return f"Done already: {counts.scored:,} rows are scored in {self.output}; nothing was done."
        sums = " + ".join(f"{getattr(counts, name):,} {name}" for name in ("scored", "quarantined", "filtered"))
        return f"{counts.rows:,} rows in = {sums}"

    @property
    def speed(self) -> str:
        """How long it took, and how fast that is."""
        return f"{duration(self.seconds)}, {self.rows_per_s:,.0f} rows/s"

    def facts(self) -> list[tuple[str, str]]:
        """What was done, as a person reads it; of what was done already, only what is in quarantine."""
        quarantined = f"{plural(self.counts.quarantined, 'row')} and why, in {self.quarantine}"
        if self.already_done:
            return [("quarantine", quarantined)] if self.quarantine else []
        counts, time_said, memory_said = self.counts, "", ""
        if self.forecast is not None and self.seconds >= _SHORT_S and not self.parts_resumed:
            time_said = f"; the plan said {time_range(*self.forecast['seconds'])}"
        if self.forecast is not None and len(self.sessions) == 1:
            low, high = self.forecast["memory_bytes"]
            memory_said = f"; the plan said {size(low)} to {size(high)}"
        batch = f"{self.batch_tokens} tokens" if self.batch_tokens is not None else f"{self.batch_rows:,}"
        device = devices.described(self.device, self.nodes)
        told = [
            ("output", f"{self.output} ({plural(self.parts, 'part')}, {size(self.output_bytes)})"),
            ("resumed", f"{plural(self.parts_resumed, 'part')} of an earlier run" if self.parts_resumed else ""),
            ("time", f"{self.speed}{time_said}"),
            ("model", f"{device}, batches of {batch}, {plural(self.calls, 'call')}"),
            ("memory", f"{size(self.peak_memory_bytes)} at the most in this process{memory_said}"),
        ]
        if self.bottleneck and self.seconds >= _SHORT_S:
            shares = sorted(self.bottleneck.shares.items(), key=lambda pair: -pair[1])
            told.append(("time in", ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= _SMALL)))
            told.append(("bottleneck", str(self.bottleneck)))
        if self.quarantine:
            told.append(("quarantine", quarantined))
        if counts.nan:
            told.append(("nan", f"{plural(counts.nan, 'scored row')} with a NaN score; --max-nan-rows limits them"))
        if counts.truncated:
            told.append(("cut", f"{plural(counts.truncated, 'text')} longer than max_length"))
        if counts.lossy:
            told.append(("lossy", f"{plural(counts.lossy, 'value')} changed by a cast (--on-lossy warn)"))
        if counts.rows and not counts.scored:
            told.append(("note", "not one row was scored"))
        return [(name, text) for name, text in told if text] + [("note", note) for note in self.notes]

    def __str__(self) -> str:
        """As the command line prints it, without a window's width."""
        return "\n".join([self.summary, *(f"  {name:<10} {text}" for name, text in self.facts())])

    def _repr_html_(self) -> str:
        tone = "good" if self.counts.balanced else "bad"
        blocks: list[Block] = [Words(self.summary, tone=tone), Facts(self.facts())]
        page = os.path.join(self.proof, "report.html")
        if self.proof and os.path.isfile(page):
            blocks.append(Link("more in", page, quote(os.path.relpath(page))))
        return html.card("Report", blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What the receipts of a run add up to: the fields of `Report` with the same names."""

    counts: Counts
    """Of all committed parts, those of an earlier run among them."""
    output_bytes: int
    """Of all committed parts."""
    parts_resumed: int
    rows_read: int
    """By this run, like the fields below."""
    input_bytes: int
    calls: int
    stages: Stages
    sessions: dict[str, int]
    halved: tuple[int, ...]


def total(
    receipts: Collection[Receipt], own: Mapping[int, Receipt], sessions: Mapping[str, int], batch_rows: int
) -> Totals:
    """Add up all receipts, and those of the parts that this run scored.

    `own` holds the receipts of this run by part, `sessions` the sessions that the driver created, by process.
    """
    counts, stages, created = Counts(), Stages(), dict(sessions)
    for receipt in receipts:
        counts += receipt.proof.counts
    for receipt in own.values():
        stages += receipt.stages
        if receipt.worker:
            created[receipt.worker] = max(created.get(receipt.worker, 0), receipt.sessions)
    return Totals(
        counts=counts,
        output_bytes=sum(receipt.size for receipt in receipts),
        parts_resumed=len(receipts) - len(own),
        rows_read=sum(receipt.proof.counts.rows for receipt in own.values()),
        input_bytes=sum(receipt.bytes_read for receipt in own.values()),
        calls=sum(receipt.calls for receipt in own.values()),
        stages=stages,
        sessions=created,
        halved=tuple(i for i, receipt in own.items() if 0 < receipt.batch_rows < batch_rows),
    )


def time_before(seconds: float) -> str:
    """Return the local time that many seconds ago, as `Report.began` holds it."""
    then = datetime.now().astimezone() - timedelta(seconds=seconds)
    return then.isoformat(sep=" ", timespec="seconds")


WAIT = "wait"
_CHANGES = {
    "read": "bring the input nearer to the workers: local disks, or fewer and larger files",
    "decode": "read less: fewer columns with --keep, fewer rows with --where",
    "pack": "--cluster processes, if columns are turned into tensors one value at a time",
    "infer": "the model itself: more cores, a GPU, or a smaller or quantised model",
    "unpack": "write fewer outputs with --fetch",
    "write": "write less: fewer columns with --keep, or another --compression",
    WAIT: "threads stood idle: smaller parts with --part-bytes, or fewer --threads",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """What took the most of the threads' time."""

    stage: str
    share: float
    gain: float
    """How many times as fast the run would be without that stage: more than any change can bring."""
    change: str
    shares: dict[str, float]
    """Of every stage, waiting included."""

    def __str__(self) -> str:
        """In a sentence."""
        return (
            f"{self.stage}: {self.share:.0%} of the threads' time; at most {self.gain:.1f} times as fast: {self.change}"
        )


def bottleneck_of(stages: Stages, seconds: float, threads: int) -> Bottleneck | None:
    """The verdict on so many seconds of so many threads; None when nothing was done."""
    spent = {name: max(0.0, value) for name, value in asdict(stages).items()}
    if not sum(spent.values()):
        return None
    spent[WAIT] = max(0.0, threads * seconds - sum(spent.values()))
    total = sum(spent.values())
    shares = {name: round(value / total, 4) for name, value in spent.items()}
    stage = max(shares, key=lambda name: shares[name])
    gain = 1 / max(1 - shares[stage], 0.01)
    return Bottleneck(stage=stage, share=shares[stage], gain=gain, change=_CHANGES[stage], shares=shares)
