"""What the plans of all generations say together: which files and parts an output has now.

A generation may replace: it names input files whose earlier rows it removes, with the parts that hold them. Some of
these files it scores again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.parts import Part, PlannedFile


def known_files(plans: Iterable[FrozenPlan]) -> dict[str, PlannedFile]:
    """Return the input files whose rows the output has, by path, as they were scored last."""
    known: dict[str, PlannedFile] = {}
    for plan in plans:
        for path in plan.replaced:
            known.pop(path, None)
        known |= {file.path: file for file in plan.files}
    return known


def gone_files(plans: Sequence[FrozenPlan]) -> set[str]:
    """Return the files of `known_files` that were gone from the input table, and whose rows were kept."""
    gone: set[str] = set()
    for plan in plans:
        gone = (gone | set(plan.gone)) - {*plan.replaced, *(file.path for file in plan.files)}
    return gone


def live_parts(plans: Sequence[FrozenPlan]) -> Iterator[Part]:
    """Yield the parts of the output, in the order of their numbers: those that no later generation removes."""
    removed: list[set[str]] = [set()]
    for plan in plans[:0:-1]:
        removed.append(removed[-1].union(plan.replaced))
    for plan, later in zip(plans, reversed(removed), strict=True):
        for part in plan.parts():
            if not later or not any(source.path in later for source in part.sources):
                yield part


def with_shared_parts(plans: Sequence[FrozenPlan], paths: Iterable[str]) -> set[str]:
    """Return these files, and the known ones that have rows in one part with them: a part is removed as a whole."""
    known, found = known_files(plans), set(paths)
    for plan in plans:
        together: list[str] = []
        for file in plan.files:
            together = together if file.joined else []
            together += [file.path] if known.get(file.path) is file else []
            if not found.isdisjoint(together):
                found.update(together)
    return found
