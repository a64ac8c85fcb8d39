"""The errors of a run that cannot be published: what failed, what is kept, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scorer.display.words import cut
from scorer.errors import (
    ClusterError,
    CommitError,
    Interrupted,
    ModelError,
    PartError,
    RunFailed,
    ScorerError,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from scorer.events import Counts
    from scorer.plan.parts import Part


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


def interrupted(exit_code: int, done: int, parts: int) -> Interrupted:
    """Return the error for a run that was stopped on request."""
    error = Interrupted(
        "stopped on request; nothing was published",
        found=f"{done:,} of {parts:,} parts are done and kept",
        hint="repeat the same command to finish the rest",
    )
    error.exit_code = exit_code
    return error
