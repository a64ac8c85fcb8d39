"""Values as text for a person, as wide as the window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scorer.advice import feed_words, fetch_words
from scorer.errors import visible
from scorer.live import block
from scorer.progress import Snapshot
from scorer.quantities import between, duration, many, size
from scorer.tables import facts, table, wrap
from scorer.terminal import Look

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scorer.bench import Bench
    from scorer.inspecting import Inspection
    from scorer.model import TensorSpec
    from scorer.plan import FrozenPlan, Plan
    from scorer.report import Report
    from scorer.verify import Verdict

_VALUE = 60  # letters of a metadata entry
_SHORT_S = 1.0  # below, the shares of the stages are noise, and a forecast is no match for the start
_SMALL = 0.01  # shares of the time that nobody asks about
_SILENT_S = 120  # without a word from a driver on another host
_CAUTION = {"note", "caution", "quarantine", "nan", "cut", "lossy", "silent", "fault"}
_NOWHERE = Look()


def plan_text(plan: Plan, look: Look = _NOWHERE) -> str:
    """What would happen."""
    frozen, data = plan.frozen, plan.to_dict()
    lines: list[tuple[str, str]] = [("output", plan.output)]
    if frozen is not None:
        source = data["input"]
        lines[:0] = [
            ("input", f"{source['rows']:,} rows in {many(source['files'], 'file')}, {many(source['parts'], 'part')}"),
            ("model", f"{plan.model.path if plan.model else ''} on {_device(frozen.session.device, plan.nodes)}"),
        ]
        lines += [("keep", _names(frozen.binding.kept) or "none")]
        lines += [("where", text) for text in frozen.conditions]
        lines += [("batch rows", _batch_rows(frozen))]
        lines += [("cluster", plan.options.cluster.scheduler or plan.cluster), ("plan", frozen.plan_hash[:16])]
    blocks = [_facts(lines, look)]
    if frozen is not None:
        blocks += [_feeds(frozen, look), _fetches(frozen, look)]
    if plan.forecast is not None:
        blocks.append(_forecast(plan, look))
    lines = [("canary", plan.canary)] if plan.canary and plan.canary not in plan.notes else []
    lines += [("note", note) for note in plan.notes]
    if plan.done:
        lines += [("state", "done already: nothing would be scored")]
    elif plan.resumes:
        lines += [("state", "an earlier run is unfinished: the rest would be scored")]
    return _page(*blocks, _facts(lines, look))


def _device(name: str, nodes: Mapping[str, int]) -> str:
    """The device, with how much of the model runs where."""
    return f"{name} ({', '.join(f'{many:,} nodes on {where}' for where, many in nodes.items())})" if nodes else name


def _batch_rows(frozen: FrozenPlan) -> str:
    tried = f" (tried {'; '.join(frozen.trials)})" if frozen.trials else ""
    if frozen.batch_tokens is not None:
        return f"as many as have {frozen.batch_tokens} tokens{tried}"
    return f"{frozen.batch_rows:,}{tried}"


def _feeds(frozen: FrozenPlan, look: Look) -> list[str]:
    rows = [(feed.tensor, feed.dtype, feed_words(feed), feed.rule) for feed in frozen.binding.feeds]
    return table(("tensor", "type", "fed from", "chosen"), rows, look.columns, look.paint)


def _fetches(frozen: FrozenPlan, look: Look) -> list[str]:
    rows = [fetch_words(fetch) for fetch in frozen.binding.fetches]
    return table(("tensor", "becomes", "type"), rows, look.columns, look.paint)


def _forecast(plan: Plan, look: Look) -> list[str]:
    """What it will take, at the least and at the most, and how that is reckoned."""
    fore = plan.forecast
    if fore is None:
        return []
    rows = [
        ("time", *map(duration, fore.seconds), f"{fore.rows_per_s:,.0f} rows/s in one thread, from a few rows"),
        ("memory", *map(size, fore.memory_bytes), fore.memory),
        ("disk", *map(size, fore.output_bytes), "encoded like a few rows"),
    ]
    return table(("forecast", "least", "most", "reckoned"), rows, look.columns, look.paint, frozenset({1, 2}))


def report_text(report: Report, look: Look = _NOWHERE) -> str:
    """What was done, on a screen."""
    if report.already_done:
        done = visible(f"Done already: {report.counts.scored:,} rows are scored in {report.output}; nothing was done.")
        kept = f"{many(report.counts.quarantined, 'row')} are in quarantine, in {report.quarantine}"
        return "\n".join([done, *_facts([("quarantine", kept)], look)]) if report.quarantine else done
    counts, fore = report.counts, report.forecast
    said = {"time": "", "memory": ""}
    if fore is not None and report.seconds >= _SHORT_S and not report.parts_resumed:
        said["time"] = f"; the plan said {between(*fore['seconds'])}"
    if fore is not None and len(report.sessions) == 1:
        low, high = fore["memory_bytes"]
        said["memory"] = f"; the plan said {size(low)} to {size(high)}"
    lines = [
        ("output", f"{report.output} ({many(report.parts, 'part')}, {size(report.output_bytes)})"),
        ("time", f"{duration(report.seconds)}, {report.rows_per_s:,.0f} rows/s{said['time']}"),
        ("model", f"{_device(report.device, report.nodes)}, batches of {_batch(report)}, {many(report.calls, 'call')}"),
        ("memory", f"{size(report.peak_memory_bytes)} at the most in this process{said['memory']}"),
    ]
    if report.parts_resumed:
        lines.insert(1, ("resumed", f"{many(report.parts_resumed, 'part')} of an earlier run"))
    if report.bottleneck and report.seconds >= _SHORT_S:
        shares = sorted(report.bottleneck.shares.items(), key=lambda pair: -pair[1])
        lines.append(("time in", ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= _SMALL)))
        lines.append(("bottleneck", str(report.bottleneck)))
    if report.quarantine:
        lines.append(("quarantine", f"{many(counts.quarantined, 'row')} and why, in {report.quarantine}"))
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
    return "\n".join([*(look.paint("bold", one) for one in wrap(head, look.columns)), *_facts(lines, look)])


def inspection_text(found: Inspection, look: Look = _NOWHERE) -> str:
    """What a model takes and gives, and what a run would make of it."""
    spec = found.model
    lines = [("model", f"{spec.path} ({size(spec.bytes)})"), ("digest", spec.digest[:16])]
    optional = [
        ("features", _names(spec.feature_names)),
        ("classes", _names(spec.class_labels)),
        ("metadata", "; ".join(f"{name} = {_short(value)}" for name, value in spec.metadata.items())),
        ("made by", spec.producer),
        ("opsets", ", ".join(f"{k} {v}" for k, v in spec.opsets.items())),
        ("operators", ", ".join(f"{k} {v}" for k, v in spec.operators.items())),
        ("caution", "; ".join(spec.coupled)),
    ]
    after = [("rows", found.rows)] if not found.problems else []
    after += [("note", note) for note in found.notes]
    lines += [(name, text) for name, text in optional if text]
    paste = [visible(line) for line in (*found.feed_lines, *found.fetch_lines)]
    return _page(
        _facts(lines, look),
        _taken(found, look),
        _given(found, look),
        _facts(after, look),
        [look.paint("head", "  to paste"), *(f"  {line}" for line in paste)] if paste else [],
    )


def _taken(found: Inspection, look: Look) -> list[str]:
    """The input tensors and, where an input was given, what would feed them."""
    fed = {feed.tensor: (feed_words(feed), feed.rule) for feed in found.feeds}
    rows = [(*_tensor(tensor), *(fed.get(tensor.name, ("", "")) if fed else ())) for tensor in found.model.inputs]
    return table(("input", "type", "shape", *(("fed from", "chosen") if fed else ())), rows, look.columns, look.paint)


def _given(found: Inspection, look: Look) -> list[str]:
    """The output tensors and, where an input was given, what would become of them."""
    rows: list[Sequence[str]] = []
    for tensor in found.model.outputs:
        becomes = [fetch for fetch in found.fetches if fetch.tensor == tensor.name]
        rows += [(*_tensor(tensor), *fetch_words(fetch)) for fetch in becomes]
        if not becomes:
            rows.append((*_tensor(tensor), *(("", "", "") if found.fetches else ())))
    if not found.fetches:
        return table(("output", "type", "shape"), rows, look.columns, look.paint)
    rows = [
        (name, kind, shape, steps.removeprefix(name).lstrip("|"), columns, of)
        for name, kind, shape, steps, columns, of in rows
    ]
    if not any(row[3] for row in rows):
        rows = [(*row[:3], *row[4:]) for row in rows]
        return table(("output", "type", "shape", "becomes", "type"), rows, look.columns, look.paint)
    return table(("output", "type", "shape", "through", "becomes", "type"), rows, look.columns, look.paint)


def _tensor(tensor: TensorSpec) -> tuple[str, str, str]:
    return tensor.name, tensor.type, str(tensor).removeprefix(tensor.type).strip()


def _short(text: str) -> str:
    """On one line, and not for long."""
    text = " ".join(text.split())
    return text if len(text) <= _VALUE else text[:_VALUE] + "..."


def status_text(value: dict[str, Any], look: Look = _NOWHERE) -> str:
    """How far a run is, as `scorer status` knows it."""
    return "\n".join(status_lines(value, look))


def status_lines(value: dict[str, Any], look: Look = _NOWHERE) -> list[str]:
    """The same as lines."""
    state = value["state"]
    head = look.paint("good" if state == "done" else "bold", f"{state}: ") + visible(value["output"])
    seen = Snapshot.from_dict(value) if state == "running" else None
    if state == "running":
        who = [("by", f"process {value['pid']} on {value['host']}, which last spoke {duration(value['age_s'])} ago")]
        if value["age_s"] > _SILENT_S:
            who.append(("silent", "if that process is gone, repeat the command to go on"))
        if seen is None:
            return [head, *_facts([*who, ("time", "it has not begun to score, or has only just begun")], look)]
        return [head, *block(seen, look), *_facts(who, look)]
    if state == "unfinished":
        parts = f"{value['done']:,} of {value['parts']:,} committed"
        return [head, *_facts([("parts", parts), ("hint", value["hint"])], look)]
    sums = f"{value['scored']:,} scored + {value['quarantined']:,} quarantined + {value['filtered']:,} filtered"
    lines = [("rows", f"{value['rows']:,} in = {sums}"), ("parts", f"{value['parts']:,}, {size(value['size'])}")]
    return [head, *_facts(lines, look)]


def verdict_text(verdict: Verdict, look: Look = _NOWHERE) -> str:
    """What `verify` found; the faults first."""
    counts = verdict.counts
    how = "every value read" if verdict.deep else "footers read"
    sums = (
        f"{counts.rows:,} rows in = {counts.scored:,} scored + {counts.quarantined:,} quarantined + "
        f"{counts.filtered:,} filtered, in {many(verdict.parts, 'part')}"
    )
    again = [visible(f"scored again: {verdict.rescored}")] if verdict.rescored else []
    if verdict.whole:
        whole = look.paint("good", "The output is whole:")
        return "\n".join([f"{sums} ({how})", *again, f"{whole} {visible(verdict.output)}"])
    found = visible(f"{many(len(verdict.faults), 'fault')} in {verdict.output} ({how}):")
    head = [look.paint("bad", found), *map(visible, verdict.faults[:20])]
    if verdict.unchecked:
        left = ["This could not be checked:", *(f"  {visible(text)}" for text in verdict.unchecked)]
        return "\n".join([*head, f"Its parts say: {sums}", *left])
    return "\n".join([*head, *again, f"Its ledger says: {sums}"])


def bench_text(found: Bench, look: Look = _NOWHERE) -> str:
    """Who is how fast, a line each."""
    head = ("", "seconds", "few rows", "rows/s beyond", "ratio", "90 % of it", "memory")
    rows = [
        (
            c.name, f"{c.seconds:.2f}", f"{c.few_seconds:.2f}", f"{c.rows_per_s:,.0f}", f"{c.ratio:.2f}",
            f"{c.low:.2f} to {c.high:.2f}", size(c.peak_bytes),
        )
        for c in found.contenders
    ]  # fmt: skip
    lines = [("scores", "; ".join(f"{c.name}: {c.agrees}" for c in found.contenders[1:]))]
    for c in found.contenders:
        total = sum(c.stages.values())
        if total:
            shares = ", ".join(f"{name} {spent / total:.0%}" for name, spent in c.stages.items())
            lines.append(("time in", f"{c.name}: {shares}"))
    lines += [("not run", f"{name}: {why}") for name, why in found.left_out.items()]
    if found.curve:
        lines.append(("batches", "; ".join(f"{rows:,} rows: {rate:,.0f} rows/s" for rows, rate in found.curve.items())))
    machine = ", ".join(f"{name} {value}" for name, value in found.machine.items() if name != "memory_bytes")
    lines.append(("machine", machine))
    top = f"{found.rows:,} rows, {found.turns} turns, in whole processes. Ratio: 1 is as fast as the ceiling"
    numbers = frozenset(range(1, len(head)))
    return "\n".join([top, *table(head, rows, look.columns, look.paint, numbers), *_facts(lines, look)])


def facts_text(values: dict[str, Any], look: Look = _NOWHERE) -> str:
    """A flat dict, a line each."""
    return "\n".join(_facts([(name, str(value)) for name, value in values.items()], look))


def printable(text: str) -> str:
    """Terminal escapes and other control characters of foreign names made visible."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _facts(lines: Sequence[tuple[str, str]], look: Look) -> list[str]:
    def paint(kind: str, text: str) -> str:
        return look.paint("caution" if text.strip() in _CAUTION else kind, text)

    return facts(lines, look.columns, paint) if lines else []


def _page(*blocks: Sequence[str]) -> str:
    """Blocks of lines with an empty line between them."""
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _names(names: tuple[str, ...] | list[str], limit: int = 8) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _batch(report: Report) -> str:
    return f"{report.batch_tokens} tokens" if report.batch_tokens is not None else f"{report.batch_rows:,}"
