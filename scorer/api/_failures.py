"""The errors of a run that cannot be published: what failed, what is kept, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scorer.display.words import as_text, cut, plural
from scorer.errors import (
    ClusterError,
    CommitError,
    GateFailed,
    Interrupted,
    ModelError,
    PartError,
    RunFailed,
    ScorerError,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scorer.events import Counts, Event
    from scorer.output.lease import Lease
    from scorer.output.lock import Lock
    from scorer.plan.parts import Part
    from scorer.scoring.gates.judging import Judged


_SHOWN = 3  # rows that differ most


FATAL = (ModelError, ClusterError, CommitError, StoreUnavailable)
"""Errors of a part that end the run, because the other parts would fail, too."""


def as_part_error(error: BaseException, part: Part) -> ScorerError:
    """Return the exception that ended a part as one of scorer's errors, with the part's place."""
    if isinstance(error, ScorerError):
        if not isinstance(error, FATAL):
            return PartError(
                error.what,
                where=part.place,
                expected=error.expected,
                found=error.found or error.where,
                hint=error.hint,
            )
        return error
    return PartError(
        "a part failed with an unexpected error",
        where=part.place,
        expected="a scored part",
        found=f"{type(error).__name__}: {cut(str(error), 300)}",
        hint="repeat the command; if it fails again, report a bug",
    )


def parts_failed(failed: dict[int, ScorerError], parts: int) -> RunFailed:
    """Return the error for parts that failed for good, with the details of the first one."""
    first = next(iter(failed.values()))
    return RunFailed(
        f"{len(failed)} of {parts} parts failed; nothing was published",
        where=first.where,
        expected=first.expected or "every part scored",
        found=f"{first.what}: {first.found}",
        hint=f"{first.hint}; the other parts are kept, and the same command continues with the rest",
    )


def too_many_bad_rows(counts: Counts, budget: str, quarantine: str, left: int, why: str) -> RunFailed:
    """Return the error for more bad rows than the budget allows; `why` lists the reasons."""
    noun = "row" if counts.quarantined == 1 else "rows"
    what = f"{counts.quarantined:,} {noun} could not be scored; nothing was published"
    if left:
        what += f", and {left:,} parts were not tried"
    found = f"{counts.quarantined:,} of {counts.scored + counts.quarantined:,}: {why}; they are in {quarantine}"
    hint = f"pass --max-bad-rows {counts.quarantined} to publish without them; scored parts are kept"
    if left:
        hint = "check --feed, or raise --max-bad-rows to publish without them; scored parts are kept"
    if "null in" in why:
        hint = f"use --on-null to give nulls a value, or {hint}"
    return RunFailed(what, where="--max-bad-rows", expected=f"at most {budget}", found=found, hint=hint)


def refuse_gates(judged: Sequence[Judged], emit: Callable[[Event], None]) -> None:
    """Emit the result of each gate; raise the error for those that do not hold, if any."""
    for one in judged:
        emit(one.event)
    failed = [one for one in judged if not (one.passed or one.warn)]
    if not failed:
        return
    first = failed[0]
    others = [f"also {one.gate}: found {one.found}" for one in failed[1:]]
    rows = [
        f"row {one['row']:,} of {one['file'].rpartition('/')[2]} ({' and '.join(map(as_text, one['values']))})"
        for one in first.rows[:_SHOWN]
    ]
    differ = [f"rows that differ most in {' and '.join(first.columns)}: {', '.join(rows)}"] if rows else []
    raise GateFailed(
        f"{len(failed)} of {plural(sum(not one.warn for one in judged), 'gate')} failed; nothing was published",
        where=f"--gate {first.gate!r}",
        expected=first.limit,
        found="; ".join([first.found, *differ, *others]),
        hint="to publish these scores, repeat the command with another --gate or without it; scored parts are kept",
    )


def too_many_nan_rows(counts: Counts, budget: str, parts: str) -> RunFailed:
    """Return the error for more rows with a NaN score than the budget allows."""
    return RunFailed(
        "too many rows have NaN scores",
        where=parts,
        expected=f"at most {budget}",
        found=f"{counts.nan} of {counts.scored} rows",
        hint="check --feed, or raise --max-nan-rows and repeat the command",
    )


def refuse_loss(held: Lock | Lease) -> None:
    """Raise the error of a lease that was lost, before anything is written that another driver may use."""
    loss = held.loss()
    if loss is not None:
        raise loss


def interrupted(exit_code: int, done: int, parts: int) -> Interrupted:
    """Return the error for a run that was stopped on request."""
    error = Interrupted(
        "stopped on request; nothing was published",
        found=f"{done:,} of {parts:,} parts are done and kept",
        hint="repeat the same command to finish the rest",
    )
    error.exit_code = exit_code
    return error
