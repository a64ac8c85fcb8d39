"""Plans, reports and other results as text, wrapped to the width of the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scorer.binding.spec import feed_words, fetch_words
from scorer.display.blocks import Facts
from scorer.display.tables import CAUTION, facts, table, wrap
from scorer.display.terminal import Terminal
from scorer.display.words import duration, plural, size, visible
from scorer.events import Counts
from scorer.report.live import block

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.api.cleaning import Cleaned
    from scorer.api.conversion import Conversion
    from scorer.api.inspection import Inspection
    from scorer.api.verification import Verdict
    from scorer.cli.bench import Bench
    from scorer.display.blocks import Table
    from scorer.model.stages.cutting import Stages
    from scorer.plan.prepared import Plan
    from scorer.report.outcome import Report
    from scorer.report.state import Status


_SILENT_S = 120  # without a heartbeat, `status` warns
_PLAIN = Terminal()


def plan_text(plan: Plan, look: Terminal = _PLAIN) -> str:
    """Return a plan as text."""
    return blocks_text(plan.blocks(), look)


def report_text(report: Report, look: Terminal = _PLAIN) -> str:
    """Return a report as text."""
    head = (look.paint("bold", one) for one in wrap(visible(report.summary), look.columns))
    return "\n".join([*head, *_facts(report.facts(), look)])


def inspection_text(found: Inspection, look: Terminal = _PLAIN) -> str:
    """Return a model's inputs and outputs as text, and what a run would do with them."""
    spec = found.model
    head, *_ = spec.blocks()
    after = [("rows", found.rows)] if not found.problems else []
    after += [("note", note) for note in found.notes]
    paste = [visible(line) for line in (*found.feed_lines, *found.fetch_lines)]
    return _page(
        _block(head, look),
        _inputs(found, look),
        _outputs(found, look),
        _stages(found.stages, look) if found.stages is not None else [],
        _facts(after, look),
        [look.paint("head", "  to paste"), *(f"  {line}" for line in paste)] if paste else [],
    )


def _stages(stages: Stages, look: Terminal) -> list[str]:
    """Return the table of stages, and whether their scores are those of the uncut model."""
    names = ("stage", "begins after", "weights", "work", "takes a row")
    return [*table(names, stages.rows, look.columns, look.paint), *_facts([("scores", stages.words)], look)]


def _inputs(found: Inspection, look: Terminal) -> list[str]:
    """Return the table of input tensors; with an input, also the columns that would feed them."""
    fed = {feed.tensor: (feed_words(feed), feed.rule) for feed in found.feeds}
    missing = ("", "no match")
    rows = [(*tensor.words, *(fed.get(tensor.name, missing) if fed else ())) for tensor in found.model.inputs]
    return table(("input", "type", "shape", *(("fed from", "chosen") if fed else ())), rows, look.columns, look.paint)


def _outputs(found: Inspection, look: Terminal) -> list[str]:
    """Return the table of output tensors; with an input, also the columns they would become."""
    rows: list[Sequence[str]] = []
    for tensor in found.model.outputs:
        becomes = [fetch for fetch in found.fetches if fetch.tensor == tensor.name]
        rows += [(*tensor.words, *fetch_words(fetch)) for fetch in becomes]
        if not becomes:
            rows.append((*tensor.words, *(("", "", "") if found.fetches else ())))
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


def status_text(status: Status, look: Terminal = _PLAIN) -> str:
    """Return the state of a run as text."""
    return "\n".join(status_lines(status, look))


def status_lines(status: Status, look: Terminal = _PLAIN) -> list[str]:
    """Return the state of a run as lines."""
    state = status.state
    head = look.paint("good" if state == "done" else "bold", f"{state}: ") + visible(status.output)
    if state == "running":
        age = duration(status.age_s)
        who = [("by", f"process {status.pid} on {status.host}, last heartbeat {age} ago")]
        if status.age_s > _SILENT_S:
            who.append(("silent", "if that process has ended, repeat the command to continue"))
        if status.progress is None:
            return [head, *_facts([*who, ("time", "scoring has not started, or only just now")], look)]
        return [head, *block(status.progress, look), *_facts(who, look)]
    if state == "unfinished":
        parts = f"{status.done:,} of {status.parts:,} committed"
        page = [("page", status.page)] if status.page else []
        return [head, *_facts([("parts", parts), *page, ("hint", status.hint)], look)]
    sums = f"{status.scored:,} scored + {status.quarantined:,} quarantined + {status.filtered:,} filtered"
    more = f" in {plural(status.generations, 'generation')}" if status.generations else ""
    deleted = Counts(deleted=status.deleted).deleted_words
    lines = [
        ("rows", f"{status.rows:,} in = {sums}{deleted}"),
        ("parts", f"{status.parts:,}{more}, {size(status.size)}"),
    ]
    return [head, *_facts(lines, look)]


def verdict_text(verdict: Verdict, look: Terminal = _PLAIN) -> str:
    """Return the result of `verify` as text, faults first."""
    counts = verdict.counts
    how = "every value read" if verdict.deep else "footers read"
    sums = (
        f"{counts.rows:,} rows in = {counts.scored:,} scored + {counts.quarantined:,} quarantined + "
        f"{counts.filtered:,} filtered, in {plural(verdict.parts, 'part')}{counts.deleted_words}"
        + (f"; {visible(verdict.left_out)}" if verdict.left_out else "")
    )
    again = [visible(f"scored again: {verdict.rescored}")] if verdict.rescored else []
    if verdict.whole:
        complete = look.paint("good", "The output is complete:")
        return "\n".join([f"{sums} ({how})", *again, f"{complete} {visible(verdict.output)}"])
    found = visible(f"{plural(len(verdict.faults), 'fault')} in {verdict.output} ({how}):")
    head = [look.paint("bad", found), *map(visible, verdict.faults[:20])]
    if verdict.unchecked:
        left = ["Not checked:", *(f"  {visible(text)}" for text in verdict.unchecked)]
        return "\n".join([*head, f"According to its parts: {sums}", *left])
    return "\n".join([*head, *again, f"According to its ledger: {sums}"])


def cleaned_text(found: Cleaned, look: Terminal = _PLAIN) -> str:  # noqa: ARG001 - as the other texts
    """Return the result of `clean` as text."""
    if not found.removed:
        return visible(f"Nothing to remove beside {found.output}")
    done = "Would remove" if found.dry_run else "Removed"
    paths = [visible(f"  {path}") for path in found.removed]
    return "\n".join([f"{done} {plural(found.files, 'file')}, {size(found.size)}:", *paths])


def conversion_text(found: Conversion, look: Terminal = _PLAIN) -> str:
    """Return the result of `convert` as text."""
    return "\n".join(_facts([(name, visible(text)) for name, text in found.facts()], look))


def blocks_text(blocks: Sequence[Facts | Table], look: Terminal = _PLAIN) -> str:
    """Return tables and facts as text, with an empty line between them."""
    return _page(*(_block(block, look) for block in blocks))


def bench_text(found: Bench, look: Terminal = _PLAIN) -> str:
    """Return a benchmark as text, one line for each contender."""
    head = ("", "seconds", "1,000 rows", "rows/s", "ratio", "90 % interval", "memory")
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
            lines.append(("stages", f"{c.name}: {shares}"))
    lines += [("not run", f"{name}: {why}") for name, why in found.left_out.items()]
    if found.curve:
        lines.append(("batches", "; ".join(f"{rows:,} rows: {rate:,.0f} rows/s" for rows, rate in found.curve.items())))
    machine = ", ".join(f"{name} {value}" for name, value in found.machine.items() if name != "memory_bytes")
    lines.append(("machine", machine))
    top = (
        f"{found.rows:,} rows, {plural(found.turns, 'turn')} of whole processes. rows/s and ratio leave out the first "
        "1,000 rows. A ratio of 1 is as fast as the upper bound."
    )
    numbers = frozenset(range(1, len(head)))
    return "\n".join(
        [*wrap(top, look.columns), *table(head, rows, look.columns, look.paint, numbers), *_facts(lines, look)]
    )


def facts_text(values: dict[str, Any], look: Terminal = _PLAIN) -> str:
    """Return a flat dict as text, one line for each key."""
    return "\n".join(_facts([(name, str(value)) for name, value in values.items()], look))


def printable(text: str) -> str:
    """Return the text with terminal escapes and other control characters made visible."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _facts(lines: Sequence[tuple[str, str]], look: Terminal) -> list[str]:
    def paint(kind: str, text: str) -> str:
        return look.paint("caution" if text.strip() in CAUTION else kind, text)

    return facts(lines, look.columns, paint) if lines else []


def _block(block: Facts | Table, look: Terminal) -> list[str]:
    """Return one block as lines."""
    if isinstance(block, Facts):
        return _facts(block.pairs, look)
    numbers = frozenset(i for i, kind in enumerate(block.classes) if kind == "n")
    return table(block.head, block.rows, look.columns, look.paint, numbers)


def _page(*blocks: Sequence[str]) -> str:
    """Join blocks of lines, with an empty line between them."""
    return "\n\n".join("\n".join(block) for block in blocks if block)
