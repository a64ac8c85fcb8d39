"""How a run that cannot publish says so: what failed, how much is kept, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scorer.errors import ClusterError, CommitError, Interrupted, ModelError, PartError, RunFailed, ScorerError

if TYPE_CHECKING:
    from scorer.events import Counts
    from scorer.plan.parts import Part


def as_part_error(error: BaseException, part: Part) -> ScorerError:
    """A part's failure with its place; what is no error of ours carries its own text along."""
    if isinstance(error, ScorerError):
        if not isinstance(error, (ModelError, ClusterError, CommitError)):
            return PartError(error.what, part.place, error.expected, error.found or error.where, error.hint)
        return error
    what, hint = "a part failed in a way that scorer does not know", "repeat the command; if it stays, report it"
    return PartError(what, part.place, "a receipt", f"{type(error).__name__}: {str(error)[:300]}", hint)


def parts_failed(failed: dict[int, ScorerError], parts: int) -> RunFailed:
    """Some parts failed for good; the first of them speaks for all."""
    first = next(iter(failed.values()))
    what = f"{len(failed)} of {parts} parts failed; nothing was published"
    hint = f"{first.hint}; the other parts are kept, and the same command goes on from there"
    return RunFailed(what, first.where, first.expected or "every part scored", f"{first.what}: {first.found}", hint)


def too_many_bad(counts: Counts, budget: str, quarantine: str, left: int, why: str) -> RunFailed:
    """More bad rows than the budget allows, and `why` in words."""
    noun = "row" if counts.quarantined == 1 else "rows"
    what = f"{counts.quarantined:,} {noun} could not be scored; nothing was published"
    if left:
        what += f", and {left:,} parts were not tried"
    found = f"{counts.quarantined:,} of {counts.scored + counts.quarantined:,}: {why}; they are in {quarantine}"
    hint = f"--max-bad-rows {counts.quarantined} publishes without them; what was scored is kept"
    if left:
        hint = "check --feed; or --max-bad-rows N|P% publishes without them; what was scored is kept"
    if "null in" in why:
        hint = f"--on-null says what a null stands for; {hint}"
    return RunFailed(what, "--max-bad-rows", f"at most {budget}", found, hint)


def interrupted(exit_code: int, done: int, parts: int) -> Interrupted:
    """Somebody asked us to stop."""
    what, hint = "stopped on request; nothing was published", "repeat the same command to finish the rest"
    error = Interrupted(what, "", "", f"{done:,} of {parts:,} parts are done and kept", hint)
    error.exit_code = exit_code
    return error
