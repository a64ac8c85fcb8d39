"""What is measured of the rows of a part, as JSON, and the sum of what was measured of several parts.

The results are the same for any order of the parts and any division into them: counts are whole numbers, sums are
exact, and the bins of histograms do not depend on the data.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow.compute as pc

from scorer.dataset import conditions
from scorer.display.words import as_text
from scorer.scoring.gates import histogram, pairs, sums
from scorer.scoring.gates.columns import missing, numbers, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pyarrow as pa

    from scorer.plan.gates import Measure
    from scorer.scoring.gates.pairs import Places

State = dict[str, Any]
"""What was measured, as JSON holds it."""
MOST_VALUES = 1000
"""Distinct texts of a column that are counted; with more, their distribution is unknown."""
_AT_ONCE = 64  # results of parts that are added in one step: histograms of many parts would fill the memory


class Kind(Protocol):
    """One kind of measure."""

    def of(self, measure: Measure, table: pa.Table, places: Places) -> State:
        """Measure the rows of a part."""

    def add(self, states: Sequence[State]) -> State:
        """Return the sum of what was measured of several parts."""


def measured(measures: Iterable[Measure], table: pa.Table, places: Places) -> dict[str, State]:
    """Return what the measures are for these rows, by their keys."""
    return {one.key: KINDS[one.kind].of(one, table, places) for one in measures}


def added(measure: Measure, states: Sequence[State]) -> State:
    """Return the sum of what was measured of several parts."""
    add = KINDS[measure.kind].add
    found = list(states)
    while len(found) > 1:
        found = [add(found[at : at + _AT_ONCE]) for at in range(0, len(found), _AT_ONCE)]
    return found[0]


class _Rows:
    """The number of rows, and of those that are null or NaN."""

    def of(self, measure: Measure, table: pa.Table, places: Places) -> State:
        del places
        column = table[measure.columns[0]] if measure.columns else None
        nulls = 0 if column is None else column.null_count
        absent = 0 if column is None else int(np.count_nonzero(missing(column)))
        return {"rows": table.num_rows, "nulls": nulls, "nans": absent - nulls}

    def add(self, states: Sequence[State]) -> State:
        return {name: sum(state[name] for state in states) for name in states[0]}


class _Matching(_Rows):
    """The number of rows that match a condition."""

    def of(self, measure: Measure, table: pa.Table, places: Places) -> State:
        del places
        condition = replace(conditions.parse(measure.condition), column=measure.columns[0])
        mask = conditions.mask([condition], table)
        return {"rows": table.num_rows, "matching": int(pc.sum(mask).as_py() or 0)}


class _Range:
    """The smallest and the largest number."""

    def of(self, measure: Measure, table: pa.Table, places: Places) -> State:
        del places
        values = _present(table[measure.columns[0]])
        return {"least": float(values.min()).hex(), "most": float(values.max()).hex()} if len(values) else {}

    def add(self, states: Sequence[State]) -> State:
        found = [state for state in states if state]
        if not found:
            return {}
        least, most = (
            choose(float.fromhex(state[name]) for state in found) for choose, name in ((min, "least"), (max, "most"))
        )
        return {"least": least.hex(), "most": most.hex()}


class _Sum:
    """How many numbers there are, their exact sum, and that of their squares; infinities are counted apart."""

    def of(self, measure: Measure, table: pa.Table, places: Places) -> State:
        del places
        values = _present(table[measure.columns[0]])
        finite = values[np.isfinite(values)]
        state: State = {
            "n": len(values),
            "sum": list(sums.total(finite)),
            "up": int(np.count_nonzero(values == np.inf)),
            "down": int(np.count_nonzero(values == -np.inf)),
        }
        return state | ({"squares": list(sums.products(finite, finite))} if measure.kind == "squares" else {})

    def add(self, states: Sequence[State]) -> State:
        found: State = {name: sum(state[name] for state in states) for name in ("n", "up", "down")}
        return found | {name: pairs.added_sums(states, name) for name in ("sum", "squares") if name in states[0]}


class _Bins:
    """A histogram of the numbers, and how many are missing."""

    def of(self, measure: Measure, table: pa.Table, places: Places) -> State:
        del places
        values = _present(table[measure.columns[0]])
        return {"bins": histogram.count(values).encode(), "missing": table.num_rows - len(values)}

    def add(self, states: Sequence[State]) -> State:
        bins = pairs.added_bins(states, "bins")
        return {"bins": bins, "missing": sum(state["missing"] for state in states)}


class _Values:
    """How often each text occurs; None if there are too many different ones."""

    def of(self, measure: Measure, table: pa.Table, places: Places) -> State:
        del places
        column = plain(table[measure.columns[0]])
        counted = column.drop_null().value_counts()
        found = None
        if len(counted) <= MOST_VALUES:
            found = {as_text(one["values"]): one["counts"] for one in counted.to_pylist()}
        return {"values": found, "missing": column.null_count}

    def add(self, states: Sequence[State]) -> State:
        every: Counter[str] | None = Counter()
        for state in states:
            if every is not None and state["values"] is not None:
                every.update(state["values"])
            else:
                every = None
        few = every is not None and len(every) <= MOST_VALUES
        found = dict(sorted(every.items())) if every is not None and few else None
        return {"values": found, "missing": sum(state["missing"] for state in states)}


KINDS: dict[str, Kind] = {
    "rows": _Rows(),
    "matching": _Matching(),
    "range": _Range(),
    "sum": _Sum(),
    "squares": _Sum(),
    "bins": _Bins(),
    "values": _Values(),
    "equal": pairs.Equal(),
    "accuracy": pairs.Equal(),
    "difference": pairs.Difference(),
    "products": pairs.Products(),
    "ranks": pairs.Ranks(),
}
"""The kinds of measures by their names in `Measure`."""


def _present(column: pa.ChunkedArray) -> np.ndarray:
    values = numbers(column)
    return np.asarray(values[~np.isnan(values)])
