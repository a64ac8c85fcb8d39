"""The sections of report.html as blocks, from the proof of a run; `page.py` puts them on one page."""

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
from scorer.output.ledger import FILES
from scorer.output.quarantine import reasons
from scorer.report.html import _distributions as distributions
from scorer.report.html import _timeline as timeline

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from scorer.display.blocks import Block
    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.scorers import Scorer
    from scorer.report.outcome import Report
    from scorer.storage.stores import AnyPath


_SHOWN = 20  # rows of a table: parts of the ledger, workers, failed parts
_SLOWEST = 8  # slow parts that are listed
_KEPT = 40  # names of kept columns that are listed
_TRIAL = re.compile(r"([\d,]+) rows: ([\d,]+) rows/s")
"""A batch size that tuning tried, as the plan writes it."""
_LANES = {
    "stages": "Each bar is a part. Its colours show the share of each stage, not the order of the stages.",
    "parts": "Each bar is a part.",
    "busy": "There are too many parts to draw each one. Darker means busier.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a page is written from."""

    plan: FrozenPlan
    report: Report
    ledger: pa.Table
    """One row per committed part."""
    parts: AnyPath
    """The folder that contains the parts."""
    proof: AnyPath
    """The folder that contains quarantine/ and the page."""
    digest: str = ""
    """SHA-256 of the ledger; '' if the output is not published."""
    error: str = ""
    """Why the output is not published; '' if it is."""


def sections(sources: Sources) -> list[Section]:
    """Return the sections of the page, without empty ones."""
    report = sources.report
    every = (
        Section(name="options", title="Options", link="Options", blocks=_options(sources.plan, report)),
        Section(name="forecast", title="Forecast and actual values", link="Forecast", blocks=_forecast(report)),
        Section(name="time", title="Timeline", link="Timeline", blocks=_timeline(sources)),
        Section(name="stages", title="Where the time went", link="Stages", blocks=_stages(report)),
        Section(name="scores", title="Score distributions", link="Scores", blocks=_scores(sources)),
        Section(name="gates", title="Gates", link="Gates", blocks=_gates(report)),
        Section(name="quarantine", title="Quarantined rows", link="Quarantine", blocks=_quarantine(sources)),
        Section(name="failed", title="Failed parts", link="Failures", blocks=_failed(report)),
        Section(name="ledger", title="Ledger", link="Ledger", blocks=_ledger(sources)),
        Section(name="reproduce", title="How to reproduce this run", link="Reproduce", blocks=_reproduce(sources)),
    )
    return [section for section in every if section.blocks]


def tiles(sources: Sources) -> list[tuple[str, str, str]]:
    """Return the main figures: name, value, explanation."""
    report, counts = sources.report, sources.report.counts
    found = [
        (
            "rows scored",
            f"{counts.scored:,}",
            f"of {sources.plan.rows:,} in the {_what_was_read(sources.plan)}",
        ),
        ("time", duration(report.seconds), f"{duration(report.scoring_s)} of it for scoring"),
        ("rows per second", f"{report.rows_per_s:,.0f}", f"on {plural(report.threads, 'thread')}"),
        ("output", size(report.output_bytes), plural(sources.ledger.num_rows, "part")),
        ("memory", size(report.largest_peak_bytes), _whose_peak(report)),
    ]
    if counts.quarantined:
        share = counts.quarantined / max(counts.rows, 1)
        found.insert(1, ("quarantined", f"{counts.quarantined:,}", f"{share:.2%} of the rows read"))
    return found


def _what_was_read(plan: FrozenPlan) -> str:
    return "new files" if plan.previous else "files read" if plan.left_out else "input"


def _whose_peak(report: Report) -> str:
    """Describe whose peak memory the largest one is, and the driver's beside it if that is another."""
    if report.largest_peak_bytes == report.peak_memory_bytes:
        return "peak of the driver's process"
    return f"peak of a worker, {size(report.peak_memory_bytes)} of the driver"


def _options(plan: FrozenPlan, report: Report) -> list[Block]:
    """Options that differ from their default, the plan, the batch size, and notes."""
    options = []
    for name, value in report.asked.items():
        values = value if isinstance(value, list) else [value]
        shown = [one if isinstance(one, str) else json.dumps(one) for one in values[:_SHOWN]]
        more = [f"and {len(values) - _SHOWN:,} more"] if len(values) > _SHOWN else []
        options.append((name, "\n".join([*shown, *more])))
    found = [
        Facts(options),
        Heading("Plan"),
        Facts(_plan(plan)),
        Heading("Batch size"),
        *(block for scorer in plan.scorers for block in _batch_size(scorer)),
    ]
    if report.halved:
        parts = plural(len(report.halved), "part")
        text = (
            f"In {parts}, a batch was split, because of memory or bad rows. Scores there may differ in the last bits."
        )
        found.append(Words(text, tone="warn"))
    if report.notes:
        found += [Heading("Notes"), *(Words(note) for note in report.notes)]
    return found


def _plan(plan: FrozenPlan) -> list[tuple[str, str]]:
    kept = ", ".join(plan.kept[:_KEPT])
    more = f" and {len(plan.kept) - _KEPT} more" if len(plan.kept) > _KEPT else ""
    files = plural(len(plan.files), "file")
    return [
        ("input", f"{plural(plan.rows, 'row')} in {files}, split into {plural(plan.n_parts, 'part')}"),
        *((("generation", f"{plan.generation} of the output"),) if plan.generation else ()),
        *((("table", f"{plan.table.location}: {plan.table.name}"),) if plan.table is not None else ()),
        *(
            ("feed", f"{scorer.tensor(feed.tensor)} ({feed.dtype}) = {feed_words(feed)}, {feed.rule}")
            for scorer in plan.scorers
            for feed in scorer.binding.feeds
        ),
        *((("unused", plan.unused),) if plan.unused else ()),
        *(
            ("fetch", scorer.tensor("{} -> {} ({})".format(*fetch_words(fetch))))
            for scorer in plan.scorers
            for fetch in scorer.binding.fetches
        ),
        ("keep", kept + more or "none"),
        *(("where", condition) for condition in plan.conditions),
        ("device", plan.device),
        ("output files", f"{plan.storage.codec}, row groups of {plan.storage.row_group_rows:,} rows"),
    ]


def _batch_size(scorer: Scorer) -> list[Block]:
    """The chosen batch size of a model, and what tuning tried: numbers of rows as bars, everything else as text."""
    tried = [(_TRIAL.fullmatch(trial), trial) for trial in scorer.trials]
    rates = {int(m[1].replace(",", "")): int(m[2].replace(",", "")) for m, _ in tried if m}
    most = max(rates.values(), default=1) or 1
    lines = [
        Meter(
            f"{rows:,}",
            100 * rate / most,
            f"{short_number(rate)} rows/s",
            "bar" if rows == scorer.batch_rows else "rest",
        )
        for rows, rate in sorted(rates.items())
    ]
    if scorer.batch_tokens is not None:
        text = f"As many rows as fit into {scorer.batch_tokens:,} tokens."
    else:
        text = f"{plural(scorer.batch_rows, 'row')}, {_how_chosen(scorer, rates)}."
    text = f"{scorer.name}: {text[0].lower()}{text[1:]}" if scorer.name else text
    others = [Words(trial, tone="soft") for found, trial in tried if not found]
    return [Words(text), *([Meters(lines)] if lines else []), *others]


def _how_chosen(scorer: Scorer, rates: dict[int, int]) -> str:
    """Return how the batch rows were chosen, in words; `rates` are the sizes that tuning tried, with their speeds."""
    if scorer.batch_rows not in rates:
        return "as requested, or as the model fixes them" if rates else "without tuning"
    if len(rates) == 1:
        return "the only size that was tried before the run"
    if rates[scorer.batch_rows] == max(rates.values()):
        return "the fastest size of those tried before the run"
    return "because no other size that was tried before the run was clearly faster"


def _forecast(report: Report) -> list[Block]:
    """The forecast of the plan beside the measured values."""
    forecast = report.forecast
    if not forecast:
        return [Words(f"The plan has no forecast. Peak memory: {size(report.largest_peak_bytes)}.")]
    facts = (
        ("scoring time", forecast["seconds"], report.scoring_s, duration),
        ("memory", forecast["memory_bytes"], report.largest_peak_bytes, size),
        ("output", forecast["output_bytes"], report.output_bytes, size),
    )
    found: list[Block] = [
        Words("The shaded band is the forecast of the plan. The vertical line is the measured value.", tone="soft")
    ]
    for name, (low, high), actual, words in facts[1:] if report.parts_resumed else facts:  # time: of complete runs only
        verdict = "below the" if actual < low else "above the" if actual > high else "within the"
        found += [Heading(name, f"{words(actual)}: {verdict} forecast"), band(name, low, high, actual, words)]
    return [*found, Heading("How memory was estimated"), Words(forecast["memory"], tone="soft")]


def _timeline(sources: Sources) -> list[Block]:
    """Throughput, parts by worker, slow parts, and the work of each worker."""
    ledger, report = sources.ledger, sources.report
    done = timeline.work_of(ledger, report.began, report.parts_resumed) if ledger.num_rows else None
    if done is None:
        return []
    lanes, drawn = timeline.lanes(done)
    tints = {"stages": [(name, name) for name in timeline.STAGES] + [("rest", "waiting")], "parts": []}
    keys = tints.get(drawn, [(f"busy{n}", f"up to {20 * n} %") for n in range(1, 6)])
    parts, missing = plural(len(done.part), "part"), plural(done.left_out, "part")
    left_out = f" Not shown: {missing} from an earlier run or without recorded times." if done.left_out else ""
    return [
        Heading("Rows per second"),
        Words(f"From {parts}. The rows of a part are spread evenly over its duration.{left_out}", tone="soft"),
        timeline.throughput(done),
        Heading("Parts by worker"),
        Words(f"{_LANES[drawn]} Times are those of each worker's own clock.", tone="soft"),
        Keys([*keys, ("slow", "slow part")]),
        lanes,
        *_slow_parts(done),
        *_workers(done),
    ]


def _slow_parts(done: timeline.Work) -> list[Block]:
    """A table of the slow parts, or the sentence that there were none."""
    n, median = int(timeline.is_slow(done).sum()), duration(float(np.median(done.seconds)))
    rule = (
        f"at least {duration(timeline.shortest_slow_s(done))}, more than twice the median time of a part ({median}) "
        "and more than twice the median time per row"
    )
    if not n:
        return [Words(f"No part took {rule}.")]
    rows = [
        (
            f"{one.part}",
            one.worker,
            f"{one.rows:,}",
            short_number(one.seconds),
            f"{short_number(one.times_median)} x median",
            one.longest_stage,
        )
        for one in timeline.slowest_parts(done, _SLOWEST)
    ]
    head = ("part", "worker", "rows", "seconds", "time per row", "longest stage")
    return [Words(f"took {rule}.", lead=plural(n, "slow part")), Table(head, ("n", "", "n", "n", "n", ""), rows)]


def _workers(done: timeline.Work) -> list[Block]:
    """A table of the workers, the slowest first."""
    n = len(done.workers)
    parts, rows = np.bincount(done.worker, minlength=n), np.bincount(done.worker, done.rows, n)
    busy, slow = np.bincount(done.worker, done.seconds, n), np.bincount(done.worker, timeline.is_slow(done), n)
    table = [
        (
            done.workers[i],
            f"{parts[i]:,}",
            f"{rows[i]:,.0f}",
            duration(busy[i]),
            short_number(rows[i] / busy[i]),
            f"{slow[i]:.0f}",
        )
        for i in np.argsort(rows / busy, kind="stable")[:_SHOWN]
    ]
    head = ("worker", "parts", "rows", "busy", "rows/s while busy", "slow parts")
    more = f"the slowest {_SHOWN} of {n:,}" if n > _SHOWN else ""
    return [Heading("Workers", more), Table(head, ("", "n", "n", "n", "n", "n"), table)]


def _stages(report: Report) -> list[Block]:
    """The share of each stage in the threads' time, and the bottleneck."""
    bottleneck = report.bottleneck
    if bottleneck is None:
        return []
    total = report.threads * report.scoring_s
    lines = []
    for name, share in bottleneck.shares.items():
        spent = getattr(report.stages, name, share * total)
        tint = "rest" if name in {"wait", "start"} else "read" if name == "network" else name
        lines.append(Meter(name, round(100 * share, 2), f"{duration(spent)}, {share:.1%}", tint))
    gain = f"Without it, the run would be at most {bottleneck.gain:.1f} times as fast."
    text = f"took {bottleneck.share:.0%} of the threads' time. {gain}"
    return [Words(text, lead=bottleneck.stage), Words(f"To speed it up: {bottleneck.change}."), Meters(lines, "stages")]


def _scores(sources: Sources) -> list[Block]:
    """A histogram or value counts for each score column."""
    sample = distributions.sample_scores(sources.parts, sources.plan, sources.ledger, sources.report.scoring_s)
    if sample is None:
        return []
    cards = []
    for one in distributions.distributions_of(sample):
        drawn = [one.plot] if one.plot else [Meters(one.meters)] if one.meters else []
        cards.append([Heading(one.column, one.type), *drawn, Facts(one.facts)])
    columns = sum(len(fetch.columns) for fetch in sources.plan.fetches)
    more = f" Not shown: {plural(columns - len(cards), 'more column')}." if columns > len(cards) else ""
    nan = f"Scored rows with a NaN: {sources.report.counts.nan:,}."
    return [Words(f"{sample} {nan}{more}", tone="soft"), Cards(cards)]


def _gates(report: Report) -> list[Block]:
    """The gates with their figures; drift, labels and rows are drawn by a module that other runs do not load."""
    if not report.gates:
        return []
    from scorer.report.html import _gates as gates  # noqa: PLC0415 - only for runs with gates

    return gates.blocks(report.gates)


def _quarantine(sources: Sources) -> list[Block]:
    """Quarantined rows by reason, with examples."""
    files = [name for name in pc.unique(sources.ledger["quarantine"]).to_pylist() if name]
    if not files:
        return []
    rows = sources.report.counts.quarantined
    found = reasons(sources.proof / "quarantine", files, rows, sources.plan.fed)
    kept = "Their columns and errors are in quarantine/ beside this page."
    text = f"{plural(rows, 'row')} could not be scored. {kept} {found}"
    blocks: list[Block] = [Words(text, tone="soft")]
    for reason in found.reasons:
        columns = [name for name, _ in reason.examples[0].values]
        table = [
            (one.file.rpartition("/")[2], f"{one.row:,}", *(value for _, value in one.values), one.error)
            for one in reason.examples
        ]
        classes = ("name", "n", *("name" for _ in columns), "long")
        blocks += [
            Heading(f"{plural(reason.rows, 'row')} failed at {reason.stage}"),
            Words(reason.text),
            Table(("file", "row", *columns, "error"), classes, table),
        ]
    return [
        *blocks,
        *([Words(f"{plural(found.others, 'more row')} failed for other reasons.")] if found.others else []),
    ]


def _failed(report: Report) -> list[Block]:
    failed = [(f"{part}", error) for part, error in report.parts_failed.items()]
    if not failed:
        return []
    more = [Words(f"And {len(failed) - _SHOWN:,} more.", tone="soft")] if len(failed) > _SHOWN else []
    return [Table(("part", "error"), ("n", "long"), failed[:_SHOWN]), *more]


def _ledger(sources: Sources) -> list[Block]:
    """The first rows of the ledger, and its totals."""
    ledger, columns = sources.ledger, ("scored", "quarantined", "filtered", "nan")
    there = [name for name in Counts.__slots__ if name in ledger.column_names]
    counts = Counts(**{name: pc.sum(ledger[name]).as_py() or 0 for name in there})
    rows = [
        (
            one["name"], *_input_rows(one), *(f"{one[name]:,}" for name in columns), size(one["size"]), one["worker"],
        )
        for one in ledger.slice(0, _SHOWN).to_pylist()
    ]  # fmt: skip
    if ledger.num_rows > _SHOWN:
        rows.append((f"and {plural(ledger.num_rows - _SHOWN, 'more part')}", *("" for _ in range(9))))
    total = (*(f"{getattr(counts, name):,}" for name in columns), size(pc.sum(ledger["size"]).as_py() or 0))
    foot = (plural(ledger.num_rows, "part"), "", "", f"{counts.rows:,}", *total, "")
    head = ("part", "input file", "from row", "to row", "scored", "quarantined", "filtered", "NaN", "size", "worker")
    text = f"One row per part, at most {_SHOWN} of them. All are in ledger.parquet beside this page."
    digest = [Facts([("SHA-256 of ledger.parquet", sources.digest)])] if sources.digest else []
    return [Words(text, tone="soft"), *digest, Table(head, ("", "", *("n" for _ in range(7)), ""), rows, foot)]


def _input_rows(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the input file of a part with its first and last row, or the first of several whole files."""
    file, more = row["file"].rpartition("/")[2], (row.get(FILES.name) or 1) - 1
    if more:
        return f"{file} and {plural(more, 'more file')}", "", ""
    return file, f"{row['row_start']:,}", f"{row['row_stop']:,}"


def _reproduce(sources: Sources) -> list[Block]:
    """The command, the hashes and the package versions of the run."""
    plan, report = sources.plan, sources.report
    facts = [
        ("plan hash", plan.plan_hash),
        ("request hash", plan.request_hash),
        *((f"model {scorer.name}".rstrip(), scorer.session.path) for scorer in plan.scorers),
        *((("model name", plan.model_name),) if plan.model_name else ()),
        *((f"SHA-256 of the model {scorer.name}".rstrip(), scorer.session.digest) for scorer in plan.scorers),
    ]
    return [
        Words("This command repeats the run. To check the output against its proof, use scorer verify.", tone="soft"),
        Code(command(report.asked | _version_of(plan))),
        Facts(facts),
        Heading("Package versions"),
        Facts(list(report.versions.items())),
    ]


def _version_of(plan: FrozenPlan) -> dict[str, str]:
    """Return the option that repeats a run on the version of the table that it read."""
    if plan.table is None:
        return {}
    return {"input_version" if plan.table.kind == "delta" else "input_snapshot": plan.table.version}


def command(asked: dict[str, Any]) -> str:
    """Return the request as a command line."""
    words = [shlex.join(["scorer", "run", *asked.get("input", ())])]
    given = asked.get("model") or []
    flags = [("--model", one) for one in ([given] if isinstance(given, str) else given)] + as_flags(asked)
    return " \\\n  ".join(words + [shlex.join(flag) for flag in flags])
