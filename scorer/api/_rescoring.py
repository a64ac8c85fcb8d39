"""Score some rows of a finished output again, as recorded, and compare."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from scorer.arrow import digest
from scorer.errors import ScorerError
from scorer.scoring.compare import changed
from scorer.scoring.job import JOBS, Spec
from scorer.scoring.part import rescored
from scorer.storage.footers import open_parquet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from scorer.output.place import Place
    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.parts import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescored:
    """What a second look at some rows found."""

    rows: int
    parts: int
    equal: int
    """Rows whose every score has the same bits."""
    difference: float
    """The largest change of a score."""
    faults: tuple[str, ...]

    def __str__(self) -> str:
        """For people."""
        same = "all have the same bits" if self.equal == self.rows else f"{self.equal:,} have the same bits"
        return f"{self.rows:,} rows of {self.parts:,} parts: {same}, largest difference {self.difference:.2g}"


def rescore(place: Place, plan: FrozenPlan, ledger: Sequence[Mapping[str, Any]], rows: int) -> Rescored:
    """So many random rows, each with the part it is in; needs the model and the input as they were."""
    chosen = _chosen(ledger, rows)
    spec = Spec.of(plan, place.staging(plan.plan_hash))
    faults: list[str] = []
    seen = equal = 0
    largest = 0.0
    JOBS.prime(spec)
    try:
        for part in plan.parts():
            if part.index not in chosen:
                continue
            try:
                old, new = _both(place, plan, part, spec.key)
            except (ScorerError, OSError, KeyError, pa.ArrowException) as error:
                faults.append(f"{part.name}: cannot be scored again: {str(error).splitlines()[0]}")
                continue
            if len(old) == len(new):
                at = pa.array(sorted(chosen[part.index]))
                same, moved, wrong = _compared(old.take(at), new.take(at))
                seen, equal, largest = seen + len(at), equal + same, max(largest, moved)
                faults += [f"{part.name}: column {name!r} comes out otherwise, by {by:.2g}" for name, by in wrong]
            else:
                faults.append(f"{part.name}: {len(new)} rows are scored now, and {len(old)} were then")
    finally:
        JOBS.drop(spec.key)
    return Rescored(rows=seen, parts=len(chosen), equal=equal, difference=largest, faults=tuple(faults))


def _chosen(ledger: Sequence[Mapping[str, Any]], rows: int) -> dict[int, list[int]]:
    """Random output rows, by part; without a seed, so that two looks are two looks."""
    ends = list(accumulate(row["scored"] for row in ledger))
    total = ends[-1] if ends else 0
    chosen: dict[int, list[int]] = defaultdict(list)
    for at in random.sample(range(total), min(rows, total)):
        place = bisect_right(ends, at)
        chosen[ledger[place]["part"]].append(at - (ends[place - 1] if place else 0))
    return chosen


def _both(place: Place, plan: FrozenPlan, part: Part, key: str) -> tuple[pa.Table, pa.Table]:
    """The part's scores as they were written, and as they come out now."""
    names = list(plan.binding.outputs)
    with open_parquet(str(place.output / part.name)) as parquet:
        old = parquet.read(columns=names)
    return old, rescored(key, part).select(names)


def _compared(old: pa.Table, new: pa.Table) -> tuple[int, float, list[tuple[str, float]]]:
    """Rows with the same bits, the largest change, and the columns that changed by more than kernels may."""
    same = np.ones(len(old), bool)
    largest, wrong = 0.0, []
    for name in old.column_names:
        one, other = old[name].combine_chunks(), new[name].combine_chunks()
        same &= [digest(one.slice(i, 1)) == digest(other.slice(i, 1)) for i in range(len(one))]
        moved, allowed = changed(one, other)
        largest = max(largest, moved)
        if moved > allowed:
            wrong.append((name, moved))
    return int(same.sum()), largest, wrong
