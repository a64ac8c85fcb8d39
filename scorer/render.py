"""Values as text for a person, and progress as lines or a live bar."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TextIO

from scorer.advice import in_words, out_words
from scorer.events import Notice, PartFailed, PartFinished, PlanReady, Published
from scorer.quantities import duration, many, size

if TYPE_CHECKING:
    from scorer.bench import Bench
    from scorer.events import Event
    from scorer.inspecting import Inspection
    from scorer.plan import Plan
    from scorer.report import Report
    from scorer.verify import Verdict

LINE_EVERY_S = 5.0
_BAR = 24
_LABEL = 11
_VALUE = 60  # letters of a metadata entry
_SHORT_S = 1.0  # below, the shares of the stages are noise


def plan_text(plan: Plan) -> str:
    """What would happen."""
    facts = plan.to_dict()
    lines: list[tuple[str, str]] = [("output", plan.output)]
    if plan.frozen is not None:
        source, frozen = facts["input"], plan.frozen
        lines += [
            ("input", f"{source['rows']:,} rows in {many(source['files'], 'file')}, {many(source['parts'], 'part')}"),
            ("model", f"{plan.model.path if plan.model else ''} on {frozen.session.device}"),
        ]
        lines += [
            ("feed", f"{feed.tensor} ({feed.dtype}) = {in_words(feed)}, {feed.rule}") for feed in frozen.binding.feeds
        ]
        lines += [("fetch", out_words(fetch)) for fetch in frozen.binding.fetches]
        lines += [("keep", _names(frozen.binding.kept) or "none")]
        lines += [("where", text) for text in frozen.conditions]
        tried = f" (tried {'; '.join(frozen.trials)})" if frozen.trials else ""
        rows = (
            f"{frozen.batch_rows:,}" if frozen.batch_tokens is None else f"as many as have {frozen.batch_tokens} tokens"
        )
        lines += [("batch rows", f"{rows}{tried}")]
        lines += [("cluster", plan.options.cluster.scheduler or plan.cluster), ("plan", frozen.plan_hash[:16])]
    if plan.forecast is not None:
        fore = plan.forecast
        lines += [
            ("time", f"{duration(fore.seconds[0])} to {duration(fore.seconds[1])}"),
            ("memory", f"{size(fore.memory_bytes[0])} to {size(fore.memory_bytes[1])}: {fore.memory}"),
            ("disk", f"{size(fore.output_bytes[0])} to {size(fore.output_bytes[1])}"),
        ]
    if plan.canary and plan.canary not in plan.notes:
        lines.append(("canary", plan.canary))
    lines += [("note", note) for note in plan.notes]
    if plan.done:
        lines += [("state", "done already: nothing would be scored")]
    elif plan.resumes:
        lines += [("state", "an earlier run is unfinished: the rest would be scored")]
    return _facts(lines)


def report_text(report: Report) -> str:
    """What was done, on a screen."""
    if report.already_done:
        return f"Done already: {report.counts.scored:,} rows are scored in {report.output}; nothing was done."
    counts = report.counts
    lines = [
        ("output", f"{report.output} ({many(report.parts, 'part')}, {size(report.output_bytes)})"),
        ("time", f"{duration(report.seconds)}, {report.rows_per_s:,.0f} rows/s"),
        ("model", f"{report.device}, batches of {_batch(report)}, {many(report.calls, 'call')}"),
        ("memory", f"{size(report.peak_memory_bytes)} at the most in this process"),
    ]
    if report.parts_resumed:
        lines.insert(1, ("resumed", f"{report.parts_resumed:,} parts were done by an earlier run"))
    if report.bottleneck and report.seconds >= _SHORT_S:
        lines.append(("bottleneck", str(report.bottleneck)))
    if report.quarantine:
        lines.append(("quarantine", report.quarantine))
    if counts.nan:
        lines.append(("nan", f"{many(counts.nan, 'scored row')} with a NaN score; --max-nan-rows limits them"))
    if counts.truncated:
        lines.append(("cut", f"{many(counts.truncated, 'text')} longer than max_length"))
    if counts.lossy:
        lines.append(("lossy", f"{many(counts.lossy, 'value')} changed by a cast (--on-lossy warn)"))
    if counts.rows and not counts.scored:
        lines.append(("note", "not one row was scored"))
    lines += [("note", note) for note in report.notes]
    head = (
        f"{counts.rows:,} rows in = {counts.scored:,} scored + {counts.quarantined:,} quarantined "
        f"+ {counts.filtered:,} filtered"
    )
    return head + "\n" + _facts(lines)


def inspection_text(found: Inspection) -> str:
    """What a model takes and gives, and what a run would make of it."""
    spec = found.model
    lines = [("model", f"{spec.path} ({size(spec.bytes)})"), ("digest", spec.digest[:16])]
    lines += [("input", f"{tensor.name}: {tensor}") for tensor in spec.inputs]
    lines += [("output", f"{tensor.name}: {tensor}") for tensor in spec.outputs]
    optional = [
        ("features", _names(spec.feature_names)),
        ("classes", _names(spec.class_labels)),
        ("metadata", "; ".join(f"{name} = {_short(value)}" for name, value in spec.metadata.items())),
        ("made by", spec.producer),
        ("opsets", ", ".join(f"{k} {v}" for k, v in spec.opsets.items())),
        ("operators", ", ".join(f"{k} {v}" for k, v in spec.operators.items())),
        ("caution", "; ".join(spec.coupled)),
    ]
    lines += [(name, text) for name, text in optional if text]
    lines += [("fed", f"{feed.tensor} = {in_words(feed)}, {feed.rule}") for feed in found.feeds]
    lines += [("gives", out_words(fetch)) for fetch in found.fetches]
    if not found.problems:
        lines.append(("rows", found.rows))
    lines += [("note", note) for note in found.notes]
    lines += [("paste", line) for line in (*found.feed_lines, *found.fetch_lines)]
    return _facts(lines)


def _short(text: str) -> str:
    """On one line, and not for long."""
    text = " ".join(text.split())
    return text if len(text) <= _VALUE else text[:_VALUE] + "..."


def verdict_text(verdict: Verdict) -> str:
    """What `verify` found; the faults first."""
    counts = verdict.counts
    how = "every value read" if verdict.deep else "footers read"
    sums = (
        f"{counts.rows:,} rows in = {counts.scored:,} scored + {counts.quarantined:,} quarantined + "
        f"{counts.filtered:,} filtered, in {many(verdict.parts, 'part')}"
    )
    again = [f"scored again: {verdict.rescored}"] if verdict.rescored else []
    if verdict.whole:
        return "\n".join([f"{sums} ({how})", *again, f"The output is whole: {verdict.output}"])
    head = f"{many(len(verdict.faults), 'fault')} in {verdict.output} ({how}):"
    if verdict.unchecked:
        left = "\n".join(["This could not be checked:", *(f"  {text}" for text in verdict.unchecked)])
        return "\n".join([head, *verdict.faults[:20], f"Its parts say: {sums}", left])
    return "\n".join([head, *verdict.faults[:20], *again, f"Its ledger says: {sums}"])


def bench_text(found: Bench) -> str:
    """Who is how fast, a line each."""
    widths = (16, 10, 10, 14, 8, 15, 10)
    head = ("", "seconds", "few rows", "rows/s beyond", "ratio", "90 % of it", "memory")
    rows = [
        (
            c.name, f"{c.seconds:.2f}", f"{c.few_seconds:.2f}", f"{c.rows_per_s:,.0f}", f"{c.ratio:.2f}",
            f"{c.low:.2f} to {c.high:.2f}", size(c.peak_bytes),
        )
        for c in found.contenders
    ]  # fmt: skip
    table = [
        "".join([f"{row[0]:<{widths[0]}}", *(f"{cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in (head, *rows)
    ]
    lines = [("scores", "; ".join(f"{c.name}: {c.agrees}" for c in found.contenders[1:]))]
    for c in found.contenders:
        total = sum(c.stages.values())
        if total:
            shares = ", ".join(f"{name} {spent / total:.0%}" for name, spent in c.stages.items())
            lines.append(("time in", f"{c.name}: {shares}"))
    lines += [("not run", f"{name}: {why}") for name, why in found.left_out.items()]
    if found.curve:
        lines.append(("batches", "; ".join(f"{rows:,} rows: {rate:,.0f} rows/s" for rows, rate in found.curve.items())))
    lines.append(
        ("machine", ", ".join(f"{name} {value}" for name, value in found.machine.items() if name != "memory_bytes"))
    )
    top = f"{found.rows:,} rows, {found.turns} turns, in whole processes. Ratio: 1 is as fast as the ceiling"
    return "\n".join([top, *table, _facts(lines)])


def facts_text(values: dict[str, Any]) -> str:
    """A flat dict, a line each."""
    shown = {
        name: size(value)
        if name == "size"
        else f"{value:,}"
        if isinstance(value, int) and name != "pid"
        else str(value)
        for name, value in values.items()
    }
    return _facts(list(shown.items()))


class Progress:
    """Watches a run: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, stream: TextIO, *, live: bool) -> None:
        self._stream, self._live = stream, live
        self._started = self._shown = time.monotonic()
        self._ready: PlanReady | None = None
        self._parts = self._rows = self._failed = self._quarantined = 0

    def __call__(self, event: Event) -> None:
        """Take note, and show it when it is time."""
        match event:
            case PlanReady():
                self._ready, self._started = event, time.monotonic()
                done = f", {event.done:,} of them done before" if event.done else ""
                self._say(f"scoring {event.rows:,} rows in {many(event.parts, 'part')}{done}, on {event.where}")
            case PartFinished():
                self._parts += 1
                self._rows += event.receipt.proof.counts.rows
                self._quarantined += event.receipt.proof.counts.quarantined
                self._show()
            case PartFailed():
                self._failed += 1
                self._say(f"part {event.part} failed: {event.error.splitlines()[0]}")
            case Notice():
                self._say(event.text)
            case Published():
                self._clear()

    def _show(self) -> None:
        now = time.monotonic()
        ready = self._ready
        if ready is None or now - self._shown < (0.1 if self._live else LINE_EVERY_S):
            return
        self._shown = now
        rate = self._rows / max(now - self._started, 1e-9)
        left = (ready.rows - ready.rows_done - self._rows) / max(rate, 1e-9)
        share = (ready.rows_done + self._rows) / max(ready.rows, 1)
        text = f"{ready.done + self._parts:,}/{ready.parts:,} parts  {rate:,.0f} rows/s  {duration(left)} left"
        text += f"  {self._quarantined:,} quarantined" if self._quarantined else ""
        text += f"  {self._failed:,} failed" if self._failed else ""
        if self._live:
            full = int(share * _BAR)
            self._stream.write(f"\r\x1b[K[{'#' * full}{'.' * (_BAR - full)}] {share:4.0%}  {text}")
        else:
            self._stream.write(f"{share:4.0%}  {text}\n")
        self._stream.flush()

    def _say(self, text: str) -> None:
        self._clear()
        self._stream.write(text + "\n")
        self._stream.flush()

    def _clear(self) -> None:
        if self._live:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def printable(text: str) -> str:
    """Terminal escapes and other control characters of foreign names made visible."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _facts(lines: list[tuple[str, str]]) -> str:
    width = max([_LABEL, *(len(name) + 1 for name, _ in lines)])
    return "\n".join(f"  {name:<{width}}{text}" for name, text in lines)


def _names(names: tuple[str, ...] | list[str], limit: int = 8) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _batch(report: Report) -> str:
    return f"{report.batch_tokens} tokens" if report.batch_tokens is not None else f"{report.batch_rows:,}"
