"""report.html: options, results and proof of a run on one self-contained page.

The page is made from the files of the proof: plan, ledger, report, quarantine, and a sample of the parts.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from scorer.display import html
from scorer.display.words import cut
from scorer.errors import CommitError
from scorer.output.ledger import FILES, LEDGER, TIMES, rows_of
from scorer.output.place import nobody_wrote, refuse_another_format
from scorer.output.writer import open_part
from scorer.plan.generations import KEY
from scorer.report.html.sections import Sources, sections, tiles
from scorer.report.outcome import Report
from scorer.storage.files import AtOnce, write_atomically
from scorer.storage.refusals import explaining
from scorer.storage.stores import ObjectPath, exists, for_arrow, path_of, raise_if_unknown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scorer.events import Receipt
    from scorer.output.place import Place, Staging
    from scorer.plan.frozen import FrozenPlan
    from scorer.storage.stores import AnyPath


NAME = "report.html"


def load_template() -> None:
    """Load the template ahead of time: this takes longer than writing a page, and a run has idle time for it."""
    html.template(NAME)


def of_proof(plan: FrozenPlan, proof: AnyPath, parts: AnyPath) -> Sources:
    """Read the proof of an output that is published."""
    with AtOnce(proof) as ask:
        texts = [ask(partial((proof / name).read_text, "utf-8")) for name in ("report.json", "manifest.json")]
        data = ask(lambda: for_arrow(proof / "ledger.parquet"))
        report, manifest = (json.loads(text()) for text in texts)
        there = data()
    with open_part(there) as parquet:
        ledger = parquet.read([name for name in (*LEDGER.names, FILES.name, KEY) if name != "digests"])
    if plan.generation:
        ledger = ledger.filter(pc.field(KEY) == plan.generation)
    for name in TIMES:
        if name not in ledger.column_names:
            ledger = ledger.append_column(name, pa.nulls(ledger.num_rows, pa.float64()))
    return Sources(
        plan=plan,
        report=Report.from_dict(report),
        ledger=ledger,
        parts=parts,
        proof=proof,
        digest=manifest["ledger"],
    )


def of_run(
    staging: Staging, plan: FrozenPlan, receipts: Mapping[int, Receipt], report: Report, *, error: str = "",
    digest: str = "",
) -> AnyPath:  # fmt: skip
    """Write the page of a run that is about to be published, or that ended with an error; return its path."""
    sources = Sources(
        plan=plan,
        report=Report.from_dict(report.to_dict()),  # as report.json has it
        ledger=rows_of(plan, receipts),
        parts=staging.parts,
        proof=staging.root,
        digest=digest,
        error=error,
    )
    return write(sources)


def write(sources: Sources, to: AnyPath | None = None) -> AnyPath:
    """Write the page, by default beside the other files of the proof, complete or not at all; return its path."""
    path = to or sources.proof / NAME
    data = text(sources).encode()
    if isinstance(path, ObjectPath):
        path.write_bytes(data)
    else:
        write_atomically(path, data, durable=False)
    return path


def write_again(place: Place, to: str | None = None) -> AnyPath:
    """Write the page of a published output again, from its proof, here or to this file; return its path."""
    with explaining(CommitError):
        sources = _of_published(place)
    try:
        return write(sources, None if to is None else path_of(to))
    except OSError as error:
        raise CommitError(
            "the page cannot be written",
            where=to or str(place.folder / NAME),
            expected="a file that can be written",
            found=cut(error.strerror or str(error)),
            hint="name another file: --to FILE",
        ) from error


def _of_published(place: Place) -> Sources:
    """Read the proof of a published output; raise CommitError if there is none."""
    plan = place.published()
    if plan is None:
        left = [place.staging(other.plan_hash).root / NAME for other in place.unfinished()]
        pages = [str(path) for path in left if path.exists()]
        if pages:
            raise CommitError(
                "the run is not finished; its report shows what was done so far",
                where=str(place.folder),
                expected="a published output",
                found=pages[0],
                hint=f"open {pages[0]}, or finish the run by repeating its command",
            )
        if not exists(place.folder):
            raise nobody_wrote(place)
        refuse_another_format(place)
        raise _no_proof(place, "no published output")
    try:
        return of_proof(plan, place.folder, place.output)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise_if_unknown(place.folder, error)
        raise _no_proof(place, cut(str(error))) from error


def _no_proof(place: Place, found: str) -> CommitError:
    return CommitError(
        "the report cannot be written, because the proof is incomplete",
        where=str(place.folder),
        expected="plan.json, ledger.parquet, manifest.json, report.json",
        found=found,
        hint="name the output of a finished run, with its --work-dir if it had one",
    )


def text(sources: Sources) -> str:
    """Return the page as HTML."""
    report, counts = sources.report, sources.report.counts
    state = {"text": "not published", "tone": "bad"} if sources.error else {"text": "published", "tone": ""}
    sums = " + ".join(f"{getattr(counts, name):,} {name}" for name in ("scored", "quarantined", "filtered"))
    more = (
        (counts.unmatched, "scored rows with a key that a joined table lacks"),
        (counts.truncated, "texts cut at max_length"),
        (counts.lossy, "values changed by a cast"),
    )
    notes = [sources.plan.left_out_note] if sources.plan.left_out else []
    notes += [f"{n:,} {words}" for n, words in more if n]
    return html.page(
        NAME,
        title=report.output.rstrip("/").rpartition("/")[2],
        under=" · ".join([report.output, _local_and_utc(report.began), f"scorer {report.versions.get('scorer', '')}"]),
        state=state,
        error=sources.error,
        equation="; ".join([f"{counts.rows:,} rows in = {sums}{counts.deleted_words}", *notes]),
        tiles=tiles(sources),
        sections=sections(sources),
    )


def _local_and_utc(began: str) -> str:
    """Return the start time as it was on the driver, with its offset, and in UTC."""
    try:
        then = datetime.fromisoformat(began)
    except ValueError:
        return began
    if then.utcoffset() is None:
        return began
    local, utc = then.strftime("%Y-%m-%d %H:%M:%S"), then.astimezone(UTC)
    if not then.utcoffset():
        return f"{local} UTC"
    day = "%Y-%m-%d %H:%M:%S" if utc.date() != then.date() else "%H:%M:%S"
    return f"{local} local time ({utc.strftime(day)} UTC)"
