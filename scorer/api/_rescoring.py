"""verify --rescore: score some rows of a finished output again, by the recorded plan, and compare."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, replace
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


def rescore(files: Files, place: Place, plan: FrozenPlan, ledger: Sequence[Mapping[str, Any]], rows: int) -> Rescored:
    """Score `rows` random rows again, each with its whole part; the model and the input must be unchanged."""
    chosen = _choose_rows(ledger, rows)
    plan = replace(plan, session=replace(plan.session, trees=False))  # ONNX Runtime checks the compiled trees, too
    spec = Spec.of(plan, place.staging(plan.plan_hash))
    spec = replace(spec, deleted=str(place.folder / NAME) if spec.deleted else "")
    faults: list[str] = []
    checked = equal = 0
    largest = 0.0
    JOBS.add(spec)
    try:
        for part in plan.parts():
            if part.index not in chosen:
                continue
            try:
                old, new = _old_and_new_scores(files, plan, part, spec.key)
            except (ScorerError, OSError, KeyError, pa.ArrowException) as error:
                faults.append(f"{part.name}: cannot be scored again: {str(error).splitlines()[0]}")
                continue
            if len(old) == len(new):
                at = pa.array(sorted(chosen[part.index]))
                same, change, beyond = _compare(old.take(at), new.take(at))
                checked, equal, largest = checked + len(at), equal + same, max(largest, change)
                faults += [f"{part.name}: column {name!r} now differs by {by:.2g}" for name, by in beyond]
            else:
                faults.append(f"{part.name}: {len(new)} rows are scored now, and the output has {len(old)}")
    finally:
        JOBS.remove(spec.key)
    return Rescored(rows=checked, parts=len(chosen), equal=equal, difference=largest, faults=tuple(faults))


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
