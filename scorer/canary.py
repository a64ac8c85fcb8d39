"""Whether a row's score depends on its neighbours: the same rows as one batch, as halves, and in another order."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from scorer import partition

if TYPE_CHECKING:
    from scorer.binding import Binding
    from scorer.session import Session

_FIRST, _FIRST_TEXTS, _NEXT = 8, 4, (32, 128, 256)  # rows
_MOST_S, _LEAST_S, _SHARE = 0.6, 0.4, 0.05  # of the canary, and of the work ahead, in one thread
TOLERANCE = 1e-4
"""Of the largest score; kernels that round differently for another batch size stay below 1e-5."""
_FLIPS = 0.01  # share of rows whose label may flip where two classes tie


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the canary saw."""

    rows: int
    column: str
    """The output that moved most."""
    difference: float
    """Its largest change; of labels, the share that changed."""
    allowed: float
    manner: str
    """What was done to the rows when it moved."""
    row_s: float
    """Seconds that a row took in one batch."""
    bad: dict[str, int]
    """Why rows could not be scored, and how many."""

    @property
    def independent(self) -> bool:
        """Whether every score stayed where it was, within the tolerance."""
        return self.difference <= self.allowed

    def __str__(self) -> str:
        """For the plan."""
        if self.independent:
            moved = f"largest difference {self.difference:.2g}"
            return f"{self.rows} rows as one batch, as halves and in another order: {moved}"
        return (
            f"a row's score depends on its neighbours: {self.column!r} changes by {self.difference:.2g} "
            f"(allowed: {self.allowed:.2g}) when {self.rows} rows are scored {self.manner}"
        )


def look(session: Session, binding: Binding, table: pa.Table, ahead: int) -> Verdict | None:
    """The verdict on the first rows, of so many ahead; None where there is nothing to compare."""
    if binding.fixed_batch == 1 or table.num_rows < 2:  # noqa: PLR2004 - two rows are the fewest neighbours
        return None
    first = _FIRST_TEXTS if binding.texts else _FIRST
    few = table.slice(0, first)
    whole, row_s = _timed(session, binding, few)
    for most in _NEXT:  # few rows cost more each, and a first call most of all
        budget = min(_MOST_S, max(_LEAST_S, _SHARE * ahead * row_s))
        rows = int(min(most, table.num_rows, budget / 3 / max(row_s, 1e-9))) // 2 * 2
        if rows <= few.num_rows:
            break
        few = table.slice(0, rows)
        whole, row_s = _timed(session, binding, few)
    rows = few.num_rows
    turned = np.random.default_rng(rows).permutation(rows)
    halves = _score(session, binding, few, (rows + 1) // 2).columns
    mixed = _score(session, binding, few.take(turned), rows).columns
    mixed = [column.take(pa.array(np.argsort(turned))) for column in mixed]
    bad = Counter(reason for _, reason in whole.bad.values())
    verdicts = [
        Verdict(rows=rows, column=name, difference=moved, allowed=allowed, manner=manner, row_s=row_s, bad=bad)
        for other, manner in ((halves, "in halves"), (mixed, "in another order"))
        for name, a, b in zip(binding.outputs, whole.columns, other, strict=True)
        for moved, allowed in [changed(a, b)]
    ]
    return max(verdicts, key=lambda verdict: verdict.difference / verdict.allowed, default=None)


def _timed(session: Session, binding: Binding, table: pa.Table) -> tuple[partition.Scored, float]:
    """The rows as one batch, and the seconds that each took."""
    started = time.perf_counter()
    whole = _score(session, binding, table, table.num_rows)
    return whole, (time.perf_counter() - started) / table.num_rows


def _score(session: Session, binding: Binding, table: pa.Table, batch_rows: int) -> partition.Scored:
    edges = partition.grid(table.num_rows, binding.fixed_batch or batch_rows)
    return partition.score(table, edges, binding, session)


def changed(one: pa.Array, other: pa.Array) -> tuple[float, float]:
    """The largest change of a column, and what is allowed."""
    while pa.types.is_list(one.type) or pa.types.is_fixed_size_list(one.type):
        one, other = one.flatten(), other.flatten()
    if len(one.drop_null()) != len(other.drop_null()):
        return float("inf"), _FLIPS
    if not pa.types.is_floating(one.type):
        return sum(a != b for a, b in zip(one.to_pylist(), other.to_pylist(), strict=True)) / max(len(one), 1), _FLIPS
    a, b = (array.drop_null().to_numpy(zero_copy_only=False).astype(np.float64) for array in (one, other))
    both = np.isfinite(a) & np.isfinite(b)
    allowed = TOLERANCE * (float(np.abs(a[both]).max(initial=0)) or 1.0)
    if not np.array_equal(a[~both], b[~both], equal_nan=True):
        return float("inf"), allowed
    return float(np.abs(a[both] - b[both]).max(initial=0)), allowed
