"""Whether a row's score depends on its neighbours: the same rows as one batch, as halves, and in another order."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from scorer.scoring import batches
from scorer.scoring.compare import changed

if TYPE_CHECKING:
    from scorer.binding.spec import Binding
    from scorer.model.session import Session


_FIRST, _FIRST_TEXTS, _NEXT = 8, 4, (32, 128, 256)  # rows
_MOST_S, _LEAST_S, _SHARE = 0.6, 0.4, 0.05  # of the canary, and of the work ahead, in one thread


@dataclass(frozen=True, slots=True, kw_only=True)
class Independence:
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


def try_rows(session: Session, binding: Binding, table: pa.Table, ahead: int) -> Independence | None:
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
        Independence(rows=rows, column=name, difference=moved, allowed=allowed, manner=manner, row_s=row_s, bad=bad)
        for other, manner in ((halves, "in halves"), (mixed, "in another order"))
        for name, a, b in zip(binding.outputs, whole.columns, other, strict=True)
        for moved, allowed in [changed(a, b)]
    ]
    return max(verdicts, key=lambda verdict: verdict.difference / verdict.allowed, default=None)


def _timed(session: Session, binding: Binding, table: pa.Table) -> tuple[batches.Scored, float]:
    """The rows as one batch, and the seconds that each took."""
    started = time.perf_counter()
    whole = _score(session, binding, table, table.num_rows)
    return whole, (time.perf_counter() - started) / table.num_rows


def _score(session: Session, binding: Binding, table: pa.Table, batch_rows: int) -> batches.Scored:
    edges = batches.grid(table.num_rows, binding.fixed_batch or batch_rows)
    return batches.score(table, edges, binding, session)
