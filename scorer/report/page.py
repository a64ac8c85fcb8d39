"""report.html: what a run was asked, did and proved, on one page that needs nothing else.

Made of the run's own proof: plan, ledger, report, quarantine, and a sample of the parts.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pyarrow as pa

from scorer.display import html
from scorer.errors import CommitError
from scorer.output.ledger import LEDGER, TIMES, rows_of
from scorer.output.place import nobody_wrote, refuse_another_format
from scorer.report.outcome import Report
from scorer.report.sections import Sources, sections, tiles
from scorer.storage.footers import open_parquet

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from scorer.events import Receipt
    from scorer.output.place import Place, Staging
    from scorer.plan.frozen import FrozenPlan


NAME = "report.html"


def load_template() -> None:
    """Do now what a page needs that is the same for every run, so that it is quickly made."""
    html.template(NAME)


def of_proof(plan: FrozenPlan, proof: Path, parts: Path) -> Sources:
    """What the files of a proof say about parts that are published, or about to be."""
    report, manifest = (json.loads((proof / name).read_text("utf-8")) for name in ("report.json", "manifest.json"))
    with open_parquet(str(proof / "ledger.parquet")) as parquet:
        ledger = parquet.read([name for name in LEDGER.names if name != "digests"])
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


def unpublished(
    staging: Staging, plan: FrozenPlan, receipts: Mapping[int, Receipt], report: Report, error: str
) -> Path:
    """The page of a run that an error ended, in its staging."""
    ledger = rows_of(plan, receipts)
    return write(Sources(plan=plan, report=report, ledger=ledger, parts=staging.parts, proof=staging.root, error=error))


def write(sources: Sources) -> Path:
    """Make the page, whole or not at all, beside the other files of the proof."""
    path = sources.proof / NAME
    tmp = path.with_name(f"{NAME}.tmp")
    tmp.write_text(text(sources), encoding="utf-8")
    tmp.replace(path)
    return path


def write_again(place: Place) -> Path:
    """The page of a published output, from its proof."""
    plan = place.published()
    if plan is None:
        left = [place.staging(other.plan_hash).root / NAME for other in place.unfinished()]
        pages = [str(path) for path in left if path.exists()]
        if pages:
            what, hint = (
                "the run is not published; its page shows what was done so far",
                "open it, or repeat the command",
            )
            raise CommitError(what, str(place.folder), "a published output", pages[0], hint)
        if not os.path.exists(place.folder):
            raise nobody_wrote(place)
        refuse_another_format(place)
        raise _no_proof(place, "nothing that was published")
    try:
        found = of_proof(plan, place.folder, place.output)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise _no_proof(place, str(error)[:200]) from error
    return write(found)


def _no_proof(place: Place, found: str) -> CommitError:
    what, hint = "there is no report to show", "name the output of a finished run; give --work-dir if it had one"
    return CommitError(what, str(place.folder), "plan.json, ledger.parquet, manifest.json, report.json", found, hint)


def text(sources: Sources) -> str:
    """The page."""
    report, counts = sources.report, sources.report.counts
    state = {"text": "not published", "tone": "bad"} if sources.error else {"text": "published", "tone": ""}
    sums = " + ".join(f"{getattr(counts, name):,} {name}" for name in ("scored", "quarantined", "filtered"))
    more = ((counts.truncated, "texts cut at max_length"), (counts.lossy, "values changed by a cast"))
    told = [f"{n:,} {words}" for n, words in more if n]
    return html.page(
        NAME,
        title=report.output.rstrip("/").rpartition("/")[2],
        under=" · ".join([report.output, report.began, f"scorer {report.versions.get('scorer', '')}"]),
        state=state,
        error=sources.error,
        equation="; ".join([f"{counts.rows:,} rows in = {sums}", *told]),
        tiles=tiles(sources),
        sections=sections(sources),
    )
