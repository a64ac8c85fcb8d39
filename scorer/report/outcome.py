"""The report of a run: counts, times and the bottleneck, added up from its receipts."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, fields, replace
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


_SHORT_S = 1.0  # shorter runs show no stages and no time forecast: start-up and noise dominate them
_SMALL_SHARE = 0.01  # stages with a smaller share of the time are not listed


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Report:
    """What a run did; `to_dict` is report.json."""

    output: str
    already_done: bool
    """The output was complete before this run."""
    parts: int
    parts_resumed: int
    """Parts that an earlier, interrupted run committed."""
    parts_failed: dict[int, str]
    counts: Counts
    began: str = ""
    """Start time, by the driver's clock."""
    seconds: float
    rows_per_s: float
    """Rows that this run read, divided by its wall time."""
    threads: int
    """Scoring threads at the start of the run."""
    scoring_s: float
    """Wall time from sending the first part to the end of the last one."""
    stages: Stages
    """Seconds in each stage, summed over all threads."""
    start_s: float = 0.0
    """Seconds before the first part of each worker, summed over all threads: processes start and load the model."""
    calls: int
    output_bytes: int
    input_bytes: int
    on_store: bool = False
    """Whether the input is on a store; then `input_bytes` came over the network, while other parts were scored."""
    throttled: int = 0
    """How often requests to stores were repeated, because a store did not answer or had no capacity."""
    throttled_s: float = 0.0
    """The seconds that passed until they were repeated, added up over all requests."""
    peak_memory_bytes: int
    """Of the driver's process only, without worker processes."""
    worker_peak_bytes: dict[str, int] = field(default_factory=dict)
    """Peak memory of each worker process, as `host:pid`; {} if the driver's process scored all parts."""
    sessions: dict[str, int]
    """ONNX Runtime sessions created, by process."""
    trial_sessions: int
    device: str
    batch_rows: int
    batch_tokens: int | None
    halved: tuple[int, ...]
    """Parts in which a batch was split: their scores may differ in the last bits."""
    model: str
    """Digest of the model."""
    model_name: str = ""
    """Its name in a tracking store, with the version; '' for other models."""
    plan: str
    asked: dict[str, Any]
    """Options that differ from their default."""
    versions: dict[str, str]
    forecast: dict[str, Any] | None
    generation: int = 0
    """Which generation of the output this run added; 0 if the output has none."""
    files: int = 0
    """Files of the output; parts without rows have none if there is a --where."""
    files_left_out: int = 0
    """Input files that --where ruled out by their keys; they were not opened."""
    nodes: dict[str, int] = field(default_factory=dict)
    """Number of the model's nodes on each device; {} if all run on the CPU."""
    trees: str = ""
    """How the model's tree ensembles were scored, in words; '' if it has none."""
    weights: str = ""
    """How worker processes shared the model's weights, in words; '' if each held a copy of its own."""
    unused: str = ""
    """How many fed columns were not read, because the model never looks at them, in words; '' if none was."""
    notes: tuple[str, ...] = ()
    gates: tuple[dict[str, Any], ...] = ()
    """Each gate with its figure, its limit and whether it passed."""
    quarantine: str = ""
    proof: str = ""
    """The folder beside the output with plan, ledger, quarantine and report.html."""

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of report.json."""
        data = asdict(self)
        return data | {
            "counts": self.counts.to_dict(),
            "stages": self.stages.to_dict(),
            "seconds": round(self.seconds, 3),
            "rows_per_s": round(self.rows_per_s),
            "parts_failed": {str(part): text for part, text in self.parts_failed.items()},
            "scoring_s": round(self.scoring_s, 3),
            "start_s": round(self.start_s, 3),
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
            "gates": tuple(data.get("gates", ())),
        }
        return cls(**known | typed)

    def __repr__(self) -> str:
        """Return one line; print the report, or call `to_dict`, for all of it."""
        return f"<Report of {self.output}: {self.summary}>"

    @property
    def bottleneck(self) -> Bottleneck | None:
        """The stage that took most of the time, and what would speed it up; None if no part was scored."""
        found = bottleneck_of(self.stages, self.scoring_s, self.threads, self.start_s, on_store=self.on_store)
        if found is None or found.stage != NETWORK:
            return found
        requests = self.input_bytes / _REQUEST_BYTES + self.parts  # those of a part are sent together
        busy = requests / self.parts * self.stages.read / max(self.scoring_s, 1e-9)
        return replace(found, change=_MORE_AHEAD) if busy < _BUSY_CONNECTIONS else found

    @property
    def summary(self) -> str:
        """One line: how many rows were read, scored, quarantined and filtered."""
        counts = self.counts
        if self.already_done:
            return f"Done already: {counts.scored:,} rows are scored in {self.output}; nothing was done."
        sums = " + ".join(f"{getattr(counts, name):,} {name}" for name in ("scored", "quarantined", "filtered"))
        return f"{counts.rows:,} rows in = {sums}{counts.deleted_words}"

    @property
    def speed(self) -> str:
        """Duration and rows per second, as text."""
        return f"{duration(self.seconds)}, {self.rows_per_s:,.0f} rows/s"

    @property
    def _parts_and_files(self) -> str:
        """The number of parts, and of files if some parts have none."""
        parts = plural(self.parts, "part")
        return parts if self.files in {0, self.parts} else f"{parts} in {plural(self.files, 'file')}"

    @property
    def largest_peak_bytes(self) -> int:
        """Peak memory of the process that needed most, which the forecast is for."""
        return max([self.peak_memory_bytes, *self.worker_peak_bytes.values()])

    @property
    def memory(self) -> str:
        """Peak memory of this process and of the worker process that needed most, as text."""
        own, workers = f"{size(self.peak_memory_bytes)} peak in this process", self.worker_peak_bytes
        if not workers:
            return own
        most = size(max(workers.values()))
        worker = f"{most} in a worker" if len(workers) == 1 else f"at most {most} in each of {len(workers):,} workers"
        return f"{own}, {worker}"

    def facts(self) -> list[tuple[str, str]]:
        """Return labels and texts for a reader; if nothing was left to do, only the quarantine and a note."""
        quarantined = f"{plural(self.counts.quarantined, 'row')} with their errors, in {self.quarantine}"
        if self.already_done:
            again = f"to score it again, remove {self.output} and {self.proof} first, or choose another --output"
            note = [("note", f"--overwrite replaces the output of another request; {again}")]
            return [
                *([("quarantine", quarantined)] if self.quarantine else []),
                *(note if self.asked.get("overwrite") else []),
            ]
        counts, time_forecast, memory_forecast = self.counts, "", ""
        if self.forecast is not None and self.seconds >= _SHORT_S and not self.parts_resumed:
            time_forecast = f"; forecast {time_range(*self.forecast['seconds'])}"
        if self.forecast is not None and not self.parts_resumed:
            low, high = self.forecast["memory_bytes"]
            memory_forecast = f"; forecast {size(low)} to {size(high)}"
        batch = f"{self.batch_tokens} tokens" if self.batch_tokens is not None else f"{self.batch_rows:,}"
        device = devices.described(self.device, self.nodes)
        device = f"{self.model_name}, on {device}" if self.model_name else device
        added = f"generation {self.generation}: " if self.generation else ""
        found = [
            ("output", f"{self.output} ({added}{self._parts_and_files}, {size(self.output_bytes)})"),
            ("resumed", f"{plural(self.parts_resumed, 'part')} from an earlier run" if self.parts_resumed else ""),
            ("time", f"{self.speed}{time_forecast}"),
            ("model", f"{device}, batches of {batch}, {plural(self.calls, 'call')}"),
            ("trees", self.trees),
            ("weights", self.weights),
            ("unused", self.unused),
            ("memory", f"{self.memory}{memory_forecast}"),
        ]
        if self.on_store and self.scoring_s:
            found.append(("network", f"{size(self.input_bytes)} read, {size(self.input_bytes / self.scoring_s)}/s"))
        if self.throttled:
            found.append(
                ("throttled", f"{plural(self.throttled, 'request')} repeated, after {duration(self.throttled_s)}")
            )
        if self.bottleneck and self.seconds >= _SHORT_S:
            shares = sorted(self.bottleneck.shares.items(), key=lambda pair: -pair[1])
            found.append(
                ("stages", ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= _SMALL_SHARE))
            )
            found.append(("bottleneck", str(self.bottleneck)))
        if self.quarantine:
            found.append(("quarantine", quarantined))
        counted = (
            ("nan", counts.nan, "scored row", "with a NaN score; --max-nan-rows sets a limit"),
            ("unmatched", counts.unmatched, "scored row", "with a key that a joined table lacks"),
            ("cut", counts.truncated, "text", "longer than max_length"),
            ("lossy", counts.lossy, "value", "changed by a cast (--on-lossy warn)"),
        )
        found += [(name, f"{plural(number, noun)} {words}") for name, number, noun, words in counted if number]
        found += [("gate", _gate_words(gate)) for gate in self.gates]
        if counts.rows and not counts.scored:
            found.append(("note", "no row was scored"))
        return [(name, text) for name, text in found if text] + [("note", note) for note in self.notes]

    def __str__(self) -> str:
        """Return the text that the command line prints, without wrapping."""
        return "\n".join([self.summary, *(f"  {name:<10} {text}" for name, text in self.facts())])

    def _repr_html_(self) -> str:
        tone = "good" if self.counts.balanced else "bad"
        blocks: list[Block] = [Words(self.summary, tone=tone), Facts(self.facts())]
        page = os.path.join(self.proof, "report.html")
        if self.proof and os.path.isfile(page):
            blocks.append(Link("details in", page, quote(os.path.relpath(page))))
        return html.card("Report", blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What the receipts of a run add up to: the fields of `Report` with the same names."""

    counts: Counts
    """Of all committed parts, those of an earlier run among them."""
    files: int
    output_bytes: int
    """Of all committed parts."""
    parts_resumed: int
    rows_read: int
    """By this run, like the fields below."""
    input_bytes: int
    calls: int
    stages: Stages
    sessions: dict[str, int]
    throttled: int
    throttled_s: float
    peaks: dict[str, int]
    """Peak memory of each process that scored parts of this run."""
    first_started: dict[str, float]
    """When each process started its first part, in seconds since 1970 by its own clock."""
    halved: tuple[int, ...]

    def start_s(self, since: float, scoring_s: float, threads: int) -> float:
        """Return the seconds of all threads before their worker's first part, in a run that scored from `since`."""
        waits = [min(max(0.0, first - since), scoring_s) for first in self.first_started.values()]
        return threads * sum(waits) / max(len(waits), 1)


def total(
    receipts: Collection[Receipt], own: Mapping[int, Receipt], sessions: Mapping[str, int], batch_rows: int,
    throttled: Mapping[str, tuple[int, float]],
) -> Totals:  # fmt: skip
    """Add up all receipts, and those of the parts that this run scored.

    `own` holds the receipts of this run by part, `sessions` the sessions that the driver created, by process, and
    `throttled` how often and how long it was throttled.
    """
    counts, stages, created, peaks, first = Counts(), Stages(), dict(sessions), dict[str, int](), dict[str, float]()
    slowed = dict(throttled)
    for receipt in receipts:
        counts += receipt.proof.counts
    for receipt in own.values():
        stages += receipt.stages
        if receipt.worker:
            created[receipt.worker] = max(created.get(receipt.worker, 0), receipt.sessions)
            slowed[receipt.worker] = max(slowed.get(receipt.worker, (0, 0.0)), (receipt.throttled, receipt.throttled_s))
            peaks[receipt.worker] = max(peaks.get(receipt.worker, 0), receipt.peak_bytes)
            if receipt.started:
                first[receipt.worker] = min(first.get(receipt.worker, receipt.started), receipt.started)
    return Totals(
        counts=counts,
        files=sum(receipt.size > 0 for receipt in receipts),
        output_bytes=sum(receipt.size for receipt in receipts),
        parts_resumed=len(receipts) - len(own),
        rows_read=sum(receipt.proof.counts.rows for receipt in own.values()),
        input_bytes=sum(receipt.bytes_read for receipt in own.values()),
        calls=sum(receipt.calls for receipt in own.values()),
        stages=stages,
        sessions=created,
        throttled=sum(times for times, _ in slowed.values()),
        throttled_s=sum(seconds for _, seconds in slowed.values()),
        peaks={worker: peak for worker, peak in peaks.items() if peak},
        first_started=first,
        halved=tuple(i for i, receipt in own.items() if 0 < receipt.batch_rows < batch_rows),
    )


def _gate_words(gate: Mapping[str, Any]) -> str:
    """Return one line: the verdict, the gate and the figure."""
    verdict = "passed" if gate["passed"] else "warning" if gate["warn"] else "failed"
    return f"{verdict}: {gate['gate']}; found {gate['found']}"


def time_before(seconds: float) -> str:
    """Return the local time that many seconds ago, as `Report.began` holds it."""
    then = datetime.now().astimezone() - timedelta(seconds=seconds)
    return then.isoformat(sep=" ", timespec="seconds")


WAIT, START, NETWORK = "wait", "start", "network"
_REQUEST_BYTES = 2 << 20  # of a part, in one request
_BUSY_CONNECTIONS = 12.0  # with fewer, most of the time goes into waiting for answers, not into receiving them
_MORE_AHEAD = "raise --ahead or --part-bytes, so that more requests are on their way at once"
_CHANGES = {
    "read": "move the input closer to the workers: to local disks, or into fewer and larger files",
    "decode": "read less: fewer columns with --keep, fewer rows with --where",
    "pack": "use --cluster processes, if columns are converted to tensors one value at a time",
    "infer": "use more cores, a GPU, or a smaller or quantised model",
    "unpack": "write fewer outputs with --fetch",
    "write": "write less: fewer columns with --keep, or another --compression",
    NETWORK: "run nearer to the store, or read fewer columns with --keep",
    START: "score more rows in one run, because processes take as long to start for few rows",
    WAIT: "use smaller parts with --part-bytes, or fewer --threads, so that no thread is idle",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """The stage that took most of the threads' time."""

    stage: str
    share: float
    gain: float
    """The run without that stage would be this many times as fast: an upper bound of any speed-up."""
    change: str
    shares: dict[str, float]
    """The share of each stage, of starting workers and of waiting."""

    def __str__(self) -> str:
        """Return stage, share and advice as one line."""
        without = f"without it, at most {self.gain:.1f} times as fast"
        return f"{self.stage}: {self.share:.0%} of the threads' time; {without}; to speed it up: {self.change}"


def bottleneck_of(
    stages: Stages, seconds: float, threads: int, start_s: float = 0.0, *, on_store: bool = False
) -> Bottleneck | None:
    """Return the bottleneck of `threads` threads that ran for `seconds`; None if no part was scored.

    `start_s` is how long the threads waited for their workers to start. If the input is `on_store`, more parts are
    read and written than there are threads. So only what scoring threads waited for these counts.
    """
    spent = {name: max(0.0, value) for name, value in asdict(stages).items()}
    if not sum(spent.values()):
        return None
    if on_store:
        for name in ("read", "write"):
            spent[name] -= min(spent[name], max(0.0, sum(spent.values()) - threads * seconds))
        spent = {NETWORK if name == "read" else name: value for name, value in spent.items()}
    idle = max(0.0, threads * seconds - sum(spent.values()))
    spent[START] = min(start_s, idle)
    spent[WAIT] = idle - spent[START]
    total = sum(spent.values())
    shares = {name: round(value / total, 4) for name, value in spent.items()}
    stage = max(shares, key=lambda name: shares[name])
    gain = 1 / max(1 - shares[stage], 0.01)
    return Bottleneck(stage=stage, share=shares[stage], gain=gain, change=_CHANGES[stage], shares=shares)
