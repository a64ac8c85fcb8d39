"""verify --rescore: score some rows of a finished output again, by the recorded plan, and compare."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from scorer.arrow import digest
from scorer.display.words import plural
from scorer.errors import ScorerError
from scorer.output.writer import open_part
from scorer.scoring.compare import changed
from scorer.scoring.job import JOBS, Spec
from scorer.scoring.part import rescored
from scorer.tables.deleted import NAME

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from scorer.output.existing import Files
    from scorer.output.place import Place
    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.parts import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescored:
    """The result of scoring some rows again."""

    rows: int
    parts: int
    equal: int
    """Rows whose scores all have the same bits as before."""
    difference: float
    """The largest difference of a score."""
    faults: tuple[str, ...]

    def __str__(self) -> str:
        """Return the result in one line."""
        if not self.rows:
            return "no row"
        same = "all have the same bits" if self.equal == self.rows else f"{self.equal:,} have the same bits"
        checked = f"{plural(self.rows, 'row')} of {plural(self.parts, 'part')}"
        return f"{checked}: {same}, largest difference {self.difference:.2g}"


def rescore(
    files: Files, place: Place, plans: Sequence[FrozenPlan], ledger: Sequence[Mapping[str, Any]], rows: int
) -> Rescored:
    """Score `rows` random rows again, each with its whole part; the model and the input must be unchanged.

    `plans` are those of all generations of the output.
    """
    chosen = _choose_rows(ledger, rows)
    found = _Compared()
    for recorded in plans:
        if not any(recorded.first_part <= part < recorded.first_part + recorded.n_parts for part in chosen):
            continue
        # ONNX Runtime checks the compiled trees, too
        plan = replace(recorded, session=replace(recorded.session, trees=False))
        spec = Spec.of(plan, place.staging(plan.plan_hash))
        spec = replace(spec, deleted=str(place.proof_of(recorded) / NAME) if spec.deleted else "")
        JOBS.add(spec)
        try:
            for part in plan.parts():
                if part.index in chosen:
                    found.compare(files, plan, part, spec.key, chosen[part.index])
        finally:
            JOBS.remove(spec.key)
    return Rescored(
        rows=found.checked, parts=len(chosen), equal=found.equal, difference=found.largest, faults=tuple(found.faults)
    )


@dataclass(slots=True)
class _Compared:
    """What was found so far."""

    checked: int = 0
    equal: int = 0
    largest: float = 0.0
    faults: list[str] = field(default_factory=list)

    def compare(self, files: Files, plan: FrozenPlan, part: Part, key: str, rows: Sequence[int]) -> None:
        """Score a part again and compare these rows of it."""
        try:
            old, new = _old_and_new_scores(files, plan, part, key)
        except (ScorerError, OSError, KeyError, pa.ArrowException) as error:
            self.faults.append(f"{part.name}: cannot be scored again: {str(error).splitlines()[0]}")
            return
        if len(old) != len(new):
            self.faults.append(f"{part.name}: {len(new)} rows are scored now, and the output has {len(old)}")
            return
        at = pa.array(sorted(rows))
        same, change, beyond = _compare(old.take(at), new.take(at))
        self.checked, self.equal, self.largest = self.checked + len(at), self.equal + same, max(self.largest, change)
        self.faults += [f"{part.name}: column {name!r} now differs by {by:.2g}" for name, by in beyond]


def _choose_rows(ledger: Sequence[Mapping[str, Any]], rows: int) -> dict[int, list[int]]:
    """Choose random output rows, by part. Without a seed, so that each check takes other rows."""
    ends = list(accumulate(row["scored"] for row in ledger))
    total = ends[-1] if ends else 0
    chosen: dict[int, list[int]] = defaultdict(list)
    for at in random.sample(range(total), min(rows, total)):
        place = bisect_right(ends, at)
        chosen[ledger[place]["part"]].append(at - (ends[place - 1] if place else 0))
    return chosen


def _old_and_new_scores(files: Files, plan: FrozenPlan, part: Part, key: str) -> tuple[pa.Table, pa.Table]:
    """Return the part's scores as written, and as scored now."""
    names = list(plan.binding.outputs)
    with open_part(files.source(part.name, whole=True)) as parquet:
        old = parquet.read(columns=names)
    return old, rescored(key, part).select(names)


def _compare(old: pa.Table, new: pa.Table) -> tuple[int, float, list[tuple[str, float]]]:
    """Return the number of rows with equal bits, the largest difference, and the columns beyond the tolerance."""
    same = np.ones(len(old), bool)
    largest, beyond = 0.0, []
    for name in old.column_names:
        one, other = old[name].combine_chunks(), new[name].combine_chunks()
        same &= [digest(one.slice(i, 1)) == digest(other.slice(i, 1)) for i in range(len(one))]
        change, allowed = changed(one, other)
        largest = max(largest, change)
        if change > allowed:
            beyond.append((name, change))
    return int(same.sum()), largest, beyond
