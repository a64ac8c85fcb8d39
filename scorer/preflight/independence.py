"""Check that a row's score does not depend on the other rows in its batch.

The same rows are scored as one batch, in halves, and in another order; the scores must agree within a tolerance.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from scorer.scoring import batches
from scorer.scoring.compare import changed

if TYPE_CHECKING:
    from scorer.binding.spec import Binding
    from scorer.model.resident import Engine


_FIRST_ROWS, _FIRST_TEXTS, _MORE_ROWS = 8, 4, (32, 128, 256)
_MORE_CONVERTED = (8,)  # of texts and pictures: a larger batch would need far more memory than one of the run
_MOST_S, _LEAST_S = 0.6, 0.4  # for the check
_SHARE = 0.05  # of the run's work in one thread: what the check may take between those limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Independence:
    """The result of the check: the largest change of a score, relative to what is allowed."""

    rows: int
    column: str
    """The output column that changed most."""
    difference: float
    """Its largest change; for labels, the share that changed."""
    allowed: float
    """The tolerance for `difference`."""
    manner: str
    """How the rows were batched when it changed: "in halves" or "in another order"."""
    row_s: float
    """Seconds per row, in one batch."""
    bad: dict[str, int]
    """Rows that could not be scored, counted by reason."""
    scores: tuple[pa.Array, ...] = field(default=(), compare=False, repr=False)
    """The output columns of the rows."""

    @property
    def independent(self) -> bool:
        """Whether every score stayed within the tolerance."""
        return self.difference <= self.allowed

    def __str__(self) -> str:
        """One line for the plan."""
        if self.independent:
            change = f"largest difference {self.difference:.2g}"
            return f"{self.rows} rows as one batch, as halves and in another order: {change}"
        return (
            f"a row's score depends on the other rows in its batch: {self.column!r} changes by {self.difference:.2g} "
            f"(allowed: {self.allowed:.2g}) when {self.rows} rows are scored {self.manner}"
        )


def try_rows(session: Engine, binding: Binding, table: pa.Table, ahead: int) -> Independence | None:
    """Check the first rows of a run of `ahead` rows; None if there are no two rows to compare."""
    if binding.fixed_batch == 1 or table.num_rows < 2:  # noqa: PLR2004 - the smallest batch that can mix rows
        return None
    few = table.slice(0, _FIRST_TEXTS if binding.texts else _FIRST_ROWS)
    whole, row_s = _timed(session, binding, few)
    for most in (
        _MORE_CONVERTED if binding.texts or binding.pictures else _MORE_ROWS
    ):  # small batches, and the first call above all, overstate the seconds per row
        budget = min(_MOST_S, max(_LEAST_S, _SHARE * ahead * row_s))
        rows = int(min(most, table.num_rows, budget / 3 / max(row_s, 1e-9))) // 2 * 2
        if rows <= few.num_rows:
            break
        few = table.slice(0, rows)
        whole, row_s = _timed(session, binding, few)
    rows = few.num_rows
    order = np.random.default_rng(rows).permutation(rows)
    halves = _score(session, binding, few, (rows + 1) // 2).columns
    mixed = _score(session, binding, few.take(order), rows).columns
    mixed = [column.take(pa.array(np.argsort(order))) for column in mixed]
    bad = Counter(reason for _, reason in whole.bad.values())
    results = [
        Independence(
            rows=rows,
            column=name,
            difference=change,
            allowed=allowed,
            manner=manner,
            row_s=row_s,
            bad=bad,
            scores=tuple(whole.columns),
        )
        for other, manner in ((halves, "in halves"), (mixed, "in another order"))
        for name, a, b in zip(binding.outputs, whole.columns, other, strict=True)
        for change, allowed in [changed(a, b)]
    ]
    return max(results, key=lambda result: result.difference / result.allowed, default=None)


def _timed(session: Engine, binding: Binding, table: pa.Table) -> tuple[batches.Scored, float]:
    """Return the scores of the rows as one batch, and the seconds per row."""
    started = time.perf_counter()
    whole = _score(session, binding, table, table.num_rows)
    return whole, (time.perf_counter() - started) / table.num_rows


def _score(session: Engine, binding: Binding, table: pa.Table, batch_rows: int) -> batches.Scored:
    edges = batches.grid(table.num_rows, binding.fixed_batch or batch_rows)
    return batches.score(table, edges, binding, session)
