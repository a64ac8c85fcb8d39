"""What a run's proof tells, section by section, as blocks; `page.py` puts them on one page."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from scorer.binding.spec import feed_words, fetch_words
from scorer.display.blocks import Cards, Code, Facts, Heading, Keys, Meter, Meters, Section, Table, Words
from scorer.display.plots import band
from scorer.display.words import duration, plural, short_number, size
from scorer.events import Counts
from scorer.options.request import as_flags
from scorer.output.quarantine import reasons
from scorer.report import _distributions as distributions
from scorer.report import _timeline as timeline

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from scorer.display.blocks import Block
    from scorer.plan.frozen import FrozenPlan
    from scorer.report.outcome import Report


_SHOWN = 20  # parts of the ledger, workers, failures
_SLOWEST = 8
_KEPT = 40  # names of columns
"""What would cut the name of a column in two."""
_TRIAL = re.compile(r"([\d,]+) rows: ([\d,]+) rows/s")
"""How the plan tells what tuning tried."""
_LANES = {
    "stages": "A bar is a part, coloured by how its time was divided; the colours show shares, not an order.",
    "parts": "A bar is a part.",
    "busy": "Too many parts to draw each: the darker, the busier.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a page is made of."""

    plan: FrozenPlan
    report: Report
    ledger: pa.Table
    """A row for each part that is done."""
    parts: Path
    """The folder of the parts."""
    proof: Path
    """The folder of the quarantine, and of the page."""
    digest: str = ""
    """Of the ledger; '' if nothing is published."""
    error: str = ""
    """Why not."""


def sections(sources: Sources) -> list[Section]:
    """All that there is something to say in."""
    report = sources.report
    every = (
        Section(name="asked", title="What was asked", link="Asked", blocks=_asked(sources.plan, report)),
        Section(name="forecast", title="Forecast and fact", link="Forecast", blocks=_forecast(report)),
        Section(name="time", title="Over time", link="Over time", blocks=_work(sources)),
        Section(name="stages", title="Where the time went", link="Stages", blocks=_stages(report)),
        Section(name="scores", title="Scores", link="Scores", blocks=_scores(sources)),
        Section(name="quarantine", title="Quarantine", link="Quarantine", blocks=_bad(sources)),
        Section(name="failed", title="Parts that failed", link="Failures", blocks=_failed(report)),
        Section(name="ledger", title="Ledger", link="Ledger", blocks=_ledger(sources)),
        Section(name="again", title="How to do it again", link="Do it again", blocks=_again(sources)),
    )
    return [section for section in every if section.blocks]


def tiles(sources: Sources) -> list[tuple[str, str, str]]:
    """The figures that are asked for first: name, value, and what it is made of."""
    report, counts = sources.report, sources.report.counts
    found = [
        ("rows scored", f"{counts.scored:,}", f"of {sources.plan.rows:,} in the input"),
        ("time", duration(report.seconds), f"{duration(report.scoring_s)} of it scoring"),
        ("rows per second", f"{report.rows_per_s:,.0f}", f"on {plural(report.threads, 'thread')}"),
        ("output", size(report.output_bytes), plural(sources.ledger.num_rows, "part")),
        ("memory", size(report.peak_memory_bytes), "at the most in the driver's process"),
    ]
    if counts.quarantined:
        share = counts.quarantined / max(counts.rows, 1)
        found.insert(1, ("quarantined", f"{counts.quarantined:,}", f"{share:.2%} of the rows that were read"))
    return found


def _asked(plan: FrozenPlan, report: Report) -> list[Block]:
    """What was not at its default, and what was made of it."""
    told = []
    for name, value in report.asked.items():
        values = value if isinstance(value, list) else [value]
        shown = [one if isinstance(one, str) else json.dumps(one) for one in values[:_SHOWN]]
        more = [f"and {len(values) - _SHOWN:,} more"] if len(values) > _SHOWN else []
        told.append((name, "\n".join([*shown, *more])))
    found = [
        Facts(told),
        Heading("What was made of it"),
        Facts(_bound(plan)),
        Heading("Rows of a batch"),
        *_batch(plan),
    ]
    if report.halved:
        parts = plural(len(report.halved), "part")
        text = f"In {parts} a batch was made smaller (memory, or bad rows); scores there may differ in the last bits."
        found.append(Words(text, tone="warn"))
    if report.notes:
        found += [Heading("Notes"), *(Words(note) for note in report.notes)]
    return found


def _bound(plan: FrozenPlan) -> list[tuple[str, str]]:
    binding = plan.binding
    kept = ", ".join(binding.kept[:_KEPT])
    more = f" and {len(binding.kept) - _KEPT} more" if len(binding.kept) > _KEPT else ""
    files = plural(len(plan.files), "file")
    return [
        ("input", f"{plural(plan.rows, 'row')} in {files}, cut into {plural(plan.n_parts, 'part')}"),
        *(("feed", f"{feed.tensor} ({feed.dtype}) = {feed_words(feed)}, {feed.rule}") for feed in binding.feeds),
        *(("fetch", "{} -> {} ({})".format(*fetch_words(fetch))) for fetch in binding.fetches),
        ("keep", kept + more or "none"),
        *(("where", condition) for condition in plan.conditions),
        ("device", plan.session.device),
        ("stored as", f"{plan.storage.codec}, row groups of {plan.storage.row_group_rows:,} rows"),
    ]


def _batch(plan: FrozenPlan) -> list[Block]:
    """What tuning tried, as bars where it is a number of rows."""
    tried = [(_TRIAL.fullmatch(trial), trial) for trial in plan.trials]
    rates = {int(m[1].replace(",", "")): int(m[2].replace(",", "")) for m, _ in tried if m}
    most = max(rates.values(), default=1) or 1
    lines = [
        Meter(
            f"{rows:,}", 100 * rate / most, f"{short_number(rate)} rows/s", "bar" if rows == plan.batch_rows else "rest"
        )
        for rows, rate in sorted(rates.items())
    ]
    if plan.batch_tokens is not None:
        text = f"As many as have {plan.batch_tokens:,} tokens."
    else:
        text = f"{plan.batch_rows:,}" + (
            ", the fastest of what was tried before the run." if lines else "; nothing was tried."
        )
    others = [Words(trial, tone="soft") for found, trial in tried if not found]
    return [Words(text), *([Meters(lines)] if lines else []), *others]


def _forecast(report: Report) -> list[Block]:
    """What was foretold and what came of it."""
    told = report.forecast
    if not told:
        return [Words(f"The plan was made without one. Memory: {size(report.peak_memory_bytes)} at the most.")]
    facts = (
        ("scoring time", told["seconds"], report.scoring_s, duration),
        ("memory", told["memory_bytes"], report.peak_memory_bytes, size),
        ("output", told["output_bytes"], report.output_bytes, size),
    )
    found: list[Block] = [
        Words("Shaded is what the plan foretold; the upright line is what was measured.", tone="soft")
    ]
    for name, (low, high), fact, words in facts[1:] if report.parts_resumed else facts:  # of a whole run only
        verdict = "as foretold" if low <= fact <= high else "less than foretold" if fact < low else "more than foretold"
        found += [Heading(name, f"{words(fact)}: {verdict}"), band(name, low, high, fact, words)]
    return [*found, Heading("How memory was reckoned"), Words(told["memory"], tone="soft")]


def _work(sources: Sources) -> list[Block]:
    """Throughput, who did what when, and who was slow."""
    ledger, report = sources.ledger, sources.report
    done = timeline.work(ledger, report.began, report.parts_resumed) if ledger.num_rows else None
    if done is None:
        return []
    lanes, drawn = timeline.lanes(done)
    tints = {"stages": [(name, name) for name in timeline.STAGES] + [("rest", "waiting")], "parts": []}
    keys = tints.get(drawn, [(f"busy{n}", f"to {20 * n} %") for n in range(1, 6)])
    left = f" {done.left_out:,} are left out: an earlier run did them, or nobody noted when." if done.left_out else ""
    return [
        Heading("Rows per second"),
        Words(
            f"Of {plural(len(done.part), 'part')}; a part's rows are spread evenly over its time.{left}", tone="soft"
        ),
        timeline.throughput(done),
        Heading("Parts on workers"),
        Words(f"{_LANES[drawn]} Times are by the clock of each worker.", tone="soft"),
        Keys([*keys, ("slow", "slow part")]),
        lanes,
        *_slow(done),
        *_workers(done),
    ]


def _slow(done: timeline.Work) -> list[Block]:
    """Parts that took oddly long."""
    n, median = int(timeline.slow(done).sum()), duration(float(np.median(done.took)))
    rule = f"more than twice the median part, {median}, and more than twice the median for a row"
    if not n:
        return [Words(f"No part took {rule}.")]
    rows = [
        (
            f"{one.part}",
            one.worker,
            f"{one.rows:,}",
            short_number(one.seconds),
            f"{short_number(one.times)} times",
            one.most,
        )
        for one in timeline.slowest(done, _SLOWEST)
    ]
    head = ("part", "worker", "rows", "seconds", "of the median row", "most in")
    return [Words(f"took {rule}.", lead=plural(n, "slow part")), Table(head, ("n", "", "n", "n", "n", ""), rows)]


def _workers(done: timeline.Work) -> list[Block]:
    """What each did; the slowest first."""
    n = len(done.workers)
    parts, rows = np.bincount(done.who, minlength=n), np.bincount(done.who, done.rows, n)
    busy, odd = np.bincount(done.who, done.took, n), np.bincount(done.who, timeline.slow(done), n)
    table = [
        (
            done.workers[i],
            f"{parts[i]:,}",
            f"{rows[i]:,.0f}",
            duration(busy[i]),
            short_number(rows[i] / busy[i]),
            f"{odd[i]:.0f}",
        )
        for i in np.argsort(rows / busy, kind="stable")[:_SHOWN]
    ]
    head = ("worker", "parts", "rows", "at work", "rows/s at work", "slow parts")
    more = f"the slowest {_SHOWN} of {n:,}" if n > _SHOWN else ""
    return [Heading("Workers", more), Table(head, ("", "n", "n", "n", "n", "n"), table)]


def _stages(report: Report) -> list[Block]:
    """Where the threads' time went."""
    held = report.bottleneck
    if held is None:
        return []
    total = report.threads * report.scoring_s
    lines = []
    for name, share in held.shares.items():
        spent = getattr(report.stages, name, share * total)
        tint = "rest" if name == "wait" else name
        lines.append(Meter(name, round(100 * share, 2), f"{duration(spent)}, {share:.1%}", tint))
    gain = f"without it the run would be at most {held.gain:.1f} times as fast."
    text = f"took {held.share:.0%} of the threads' time; {gain}"
    return [Words(text, lead=held.stage), Words(f"What would help: {held.change}."), Meters(lines, "stages")]


def _scores(sources: Sources) -> list[Block]:
    """How the scores are distributed."""
    names, scored = sources.ledger["name"].to_pylist(), sources.ledger["scored"].to_numpy()
    found = distributions.sample_scores(sources.parts, sources.plan, names, scored, sources.report.scoring_s)
    if found is None:
        return []
    cards = []
    for one in distributions.distributions(found):
        drawn = [one.plot] if one.plot else [Meters(one.meters)] if one.meters else []
        cards.append([Heading(one.column, one.type), *drawn, Facts(one.facts)])
    columns = sum(len(fetch.columns) for fetch in sources.plan.binding.fetches)
    more = f" {columns - len(cards):,} more columns are not shown." if columns > len(cards) else ""
    nan = f"Scored rows with a NaN: {sources.report.counts.nan:,}."
    return [Words(f"{found} {nan}{more}", tone="soft"), Cards(cards)]


def _bad(sources: Sources) -> list[Block]:
    """Quarantined rows by reason."""
    files = [name for name in pc.unique(sources.ledger["quarantine"]).to_pylist() if name]
    if not files:
        return []
    rows = sources.report.counts.quarantined
    found = reasons(sources.proof / "quarantine", files, rows, sources.plan.binding.fed)
    text = f"{plural(rows, 'row')} could not be scored, kept with all columns in quarantine/ beside this page. {found}"
    blocks: list[Block] = [Words(text, tone="soft")]
    for reason in found.reasons:
        columns = [name for name, _ in reason.examples[0].values]
        table = [
            (one.file.rpartition("/")[2], f"{one.row:,}", *(value for _, value in one.values), one.error)
            for one in reason.examples
        ]
        classes = ("name", "n", *("name" for _ in columns), "long")
        blocks += [
            Heading(f"{plural(reason.rows, 'row')} at {reason.stage}"),
            Words(reason.text),
            Table(("file", "row", *columns, "error"), classes, table),
        ]
    return [*blocks, *([Words(f"{plural(found.others, 'more row')} for other reasons.")] if found.others else [])]


def _failed(report: Report) -> list[Block]:
    failed = [(f"{part}", error) for part, error in report.parts_failed.items()]
    if not failed:
        return []
    more = [Words(f"And {len(failed) - _SHOWN:,} more.", tone="soft")] if len(failed) > _SHOWN else []
    return [Table(("part", "error"), ("n", "long"), failed[:_SHOWN]), *more]


def _ledger(sources: Sources) -> list[Block]:
    """First rows and totals."""
    ledger, columns = sources.ledger, ("scored", "quarantined", "filtered", "nan")
    counts = Counts(**{name: pc.sum(ledger[name]).as_py() or 0 for name in Counts.__slots__})
    rows = [
        (
            one["name"], one["file"].rpartition("/")[2], f"{one['row_start']:,}", f"{one['row_stop']:,}",
            *(f"{one[name]:,}" for name in columns), size(one["size"]), one["worker"],
        )
        for one in ledger.slice(0, _SHOWN).to_pylist()
    ]  # fmt: skip
    if ledger.num_rows > _SHOWN:
        rows.append((f"and {plural(ledger.num_rows - _SHOWN, 'more part')}", *("" for _ in range(9))))
    total = (*(f"{getattr(counts, name):,}" for name in columns), size(pc.sum(ledger["size"]).as_py() or 0))
    foot = (plural(ledger.num_rows, "part"), "", "", f"{counts.rows:,}", *total, "")
    head = ("part", "of file", "rows from", "to", "scored", "quarantined", "filtered", "NaN", "size", "worker")
    text = "A row for each part, here the first ones; ledger.parquet beside this page has all of them."
    digest = [Facts([("its sha256", sources.digest)])] if sources.digest else []
    return [Words(text, tone="soft"), *digest, Table(head, ("", "", *("n" for _ in range(7)), ""), rows, foot)]


def _again(sources: Sources) -> list[Block]:
    """How to do it again."""
    plan, report = sources.plan, sources.report
    facts = [("plan", plan.plan_hash), ("request", plan.request_hash), ("model (sha256)", plan.session.digest)]
    return [
        Words("The request as a command; scorer verify proves the output again from its files.", tone="soft"),
        Code(command(report.asked)),
        Facts(facts),
        Heading("Versions"),
        Facts(list(report.versions.items())),
    ]


def command(asked: dict[str, Any]) -> str:
    """Return the request as a command line."""
    words = [shlex.join(["scorer", "run", *asked.get("input", ())])]
    flags = ([("--model", asked["model"])] if asked.get("model") else []) + as_flags(asked)
    return " \\\n  ".join(words + [shlex.join(flag) for flag in flags])
