"""Find an earlier run of the same request: its output is complete, or the run is resumed."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from scorer.dataset.tables import Wanted
from scorer.display.words import quoted_list
from scorer.errors import CommitError, OutputExists, ScorerError
from scorer.host.versions import versions
from scorer.locations import is_url, normal
from scorer.output import place as place_
from scorer.output.existing import existing_problem, foreign_files
from scorer.plan.frozen import FrozenPlan, hash_of, refuse_different
from scorer.preflight.placement import table_of
from scorer.storage.files import AtOnce, files_in
from scorer.storage.refusals import explaining
from scorer.storage.stores import is_folder
from scorer.tables.snapshot import At
from scorer.tables.target import problems_with

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.binding.spec import Transform
    from scorer.dataset.summary import Dataset
    from scorer.model.spec import SessionSpec
    from scorer.options.fields import Options
    from scorer.output.place import Place
    from scorer.preflight.findings import Findings
    from scorer.storage.files import FileId
    from scorer.tables.snapshot import TableState
    from scorer.tables.target import Destination


def earlier_run(
    found: Findings, options: Options, place: Place, dataset: Dataset, request: dict[str, Any]
) -> tuple[tuple[FrozenPlan, bool] | None, Destination | None]:
    """Return the plan of an earlier run and whether it is done, if there is one; and the table that is the output."""
    table = None
    with found.collecting(options), explaining(CommitError):
        table, unfit = table_of(options, place, dataset, hash_of(request))
        files = [file.id for file in dataset.files]
        earlier = find_earlier(found, options, place, request, files, table) if table or not unfit else None
        found.problems += [] if earlier else unfit  # what was planned before is finished, or refused at its commit
        return earlier, table
    return None, table


def find_earlier(
    found: Findings,
    options: Options,
    place: Place,
    request: dict[str, Any],
    files: Sequence[FileId],
    table: Destination | None = None,
) -> tuple[FrozenPlan, bool] | None:
    """Return the plan of an earlier run of this request for these files, and whether its output is complete.

    None if there was no such run. Another output or another unfinished run in the same place is a problem.
    """
    if table is None:
        earlier = _find(found, options, place, request, files)
    else:
        earlier = _find_in(table, found, place, request, overwrite=options.out.overwrite)
    if earlier is not None:
        frozen, done = earlier
        check_versions(found, options, place, frozen)
        if options.rows.part_bytes is not None and not done:
            found.notes.append(
                "--part-bytes has no effect: an unfinished run is resumed with the parts it was planned with"
            )
    return earlier


def earlier_table(options: Options, place: Place) -> TableState | None:
    """Return the table of an unfinished run here, to whose version the same command keeps; None with --overwrite."""
    if options.out.overwrite:
        return None
    with suppress(ScorerError, OSError):  # what is wrong with the output is reported by the checks of the output
        with AtOnce(place.folder) as ask:
            unfinished, pending = ask(place.unfinished), place.pending()
            plans = [pending] if pending is not None else unfinished()
        return next((plan.table for plan in plans if plan.table is not None), None)
    return None


def wanted_table(options: Options, earlier: TableState | None) -> Wanted:
    """Return which state of a table is read: the requested one, that of an unfinished run of the same input, or now."""
    rows = options.rows
    at = At(version=rows.input_version, snapshot=rows.input_snapshot)
    if at == At() and earlier is not None and earlier.location in map(_absolute, options.input):
        delta = earlier.kind == "delta"
        at = At(version=earlier.version, pinned=True) if delta else At(snapshot=earlier.version, pinned=True)
    return Wanted(kind=rows.input_format, at=at)


def _absolute(location: str) -> str:
    return normal(location) if is_url(location) else os.path.abspath(location)


def with_requested_code(
    found: Findings, place: Place, frozen: FrozenPlan, specs: Sequence[SessionSpec], transform: Transform | None
) -> FrozenPlan:
    """Return an unfinished run's plan with this command's folder for the transform; other code is a problem.

    Another user may have written the plan, if both can write to the output's folder.
    """
    planned = (*(one.session.library for one in frozen.scorers), frozen.transform.name if frozen.transform else "")
    requested = (*(spec.library for spec in specs), transform.name if transform else "")
    if specs and planned != requested:
        found.problems.append(
            CommitError(
                "the unfinished run would load code that was not requested",
                where=str(place.staging(frozen.plan_hash).root / "plan.json"),
                expected=quoted_list([name for name in requested if name]) or "no library and no transform",
                found=quoted_list([name for name in planned if name]) or "no library and no transform",
                hint="choose another --output, or look who wrote this file and remove its folder",
            )
        )
    if frozen.transform is None or transform is None:
        return frozen
    return replace(frozen, transform=replace(frozen.transform, folder=transform.folder))


def _find(
    found: Findings, options: Options, place: Place, request: dict[str, Any], files: Sequence[FileId]
) -> tuple[FrozenPlan, bool] | None:
    overwrite = options.out.overwrite
    with AtOnce(place.folder) as ask:
        occupied, unfinished = ask(lambda: place.occupied), ask(place.unfinished)
        published = place.published()
        if published is not None and published.request == request:
            if place.pending() is not None:
                return published, False
            gone = place_.missing_parts(place, published)
            if not gone and not (overwrite and place.lost_generation(published)):
                return published, True
            if not overwrite and not foreign_files(place):
                found.problems.append(changed_output(place, gone))
                return None
        if occupied():
            problem = existing_problem(place, published, request, overwrite=overwrite, files=files)
            if problem is not None:
                found.problems.append(problem)
                return None
        for plan in unfinished():
            if plan.request == request:
                return plan, False
            if not overwrite and published is None:
                found.problems.append(refuse_different(str(place.folder), plan, request))
                return None
    return None


def changed_output(place: Place, gone: list[str]) -> CommitError:
    """Return the error for a published output without some of its parts."""
    verify = f"scorer verify {shlex.quote(str(place.output))}"
    return CommitError(
        "the output was changed after it was published",
        where=str(place.output),
        expected="every part of its ledger, unchanged",
        found=f"missing or changed: {quoted_list(gone)}",
        hint=f"run `{verify}` for details, or score again with --overwrite",
    )


def _find_in(
    table: Destination, found: Findings, place: Place, request: dict[str, Any], *, overwrite: bool
) -> tuple[FrozenPlan, bool] | None:
    """Return the same for a table, which may have the rows of this request without their proof.

    With `overwrite`, which --new-only allows, the rows of earlier runs are replaced by those of this one.
    """
    from scorer.output import publish_table  # noqa: PLC0415 - only for tables

    published = place.published()
    if published is not None and published.request == request:
        if place.pending() is not None:
            return published, False
        if not publish_table.missing(place, published) and not (overwrite and place.lost_generation(published)):
            return published, True
    problems: list[ScorerError] = []
    for unfinished in place.unfinished():
        if unfinished.request == request:
            return unfinished, False
        if not overwrite:
            problems.append(refuse_different(str(place.folder), unfinished, request))
    found.problems += problems or problems_with(table.existing, table.target.kind, table.target.mode, table.where)
    if table.existing is None and not problems:
        found.problems += _others_in_folder(place)
    elif table.existing is not None and table.existing.commits and table.target.mode == "append" and not overwrite:
        found.problems.append(
            OutputExists(
                "the table has the rows of this request already",
                where=table.where,
                expected="rows that were not added before",
                found=f"a commit of this request in the log of version {table.existing.version}",
                hint="nothing is left to do; to add them again on purpose, use another --prefix, --keep or table",
            )
        )
    return None


def _others_in_folder(place: Place) -> list[ScorerError]:
    """Return a problem if the folder of a new table holds files."""
    names = sorted(islice(files_in(place.output), 10)) if is_folder(place.output) else []
    if not names:
        return []
    return [
        OutputExists(
            "the folder of the new table holds files",
            where=str(place.output),
            expected="no folder, an empty one, or a Delta table",
            found=quoted_list(names, 3),
            hint="choose another --output, or move these files away",
        )
    ]


def check_versions(found: Findings, options: Options, place: Place, frozen: FrozenPlan) -> None:
    """Warn about package versions that differ from the plan's: another runtime may round differently."""
    now = versions()
    changed = [f"{name} {old} -> {now[name]}" for name, old in frozen.versions.items() if now.get(name, old) != old]
    if changed:
        found.doubt(
            options, f"versions have changed since the plan was created: {', '.join(changed)}", str(place.folder)
        )
