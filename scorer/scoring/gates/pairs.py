"""What is measured of two columns: equal rows, differences, products and ranks, with the rows that differ most."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scorer.arrow import values_type
from scorer.scoring.gates import histogram, sums
from scorer.scoring.gates.columns import is_number, missing, numbers, plain, values_at

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scorer.plan.gates import Measure

State = dict[str, Any]
MOST_PAIRS = 400
"""Distinct pairs of labels that are counted: those of 20 classes."""
SHOW_ROWS = ("equal", "accuracy", "difference", "products")
"""The kinds of measures that keep examples of rows."""
_MOST_DIFFERENT = 5  # rows that are kept as examples


@dataclass(frozen=True, slots=True)
class Places:
    """Where the rows of a part are in the input."""

    part: int
    of: Callable[[Sequence[int]], list[tuple[str, int]]]
    """Returns the file and the row number there of some rows."""


class Equal:
    """How many rows have equal values, and how often each pair of labels occurs.

    Two nulls are equal, and so are two NaN. Accuracy leaves out the rows whose first value, the truth, is missing.
    """

    def of(self, measure: Measure, table: pa.Table, places: Places) -> State:
        """Measure the rows of a part."""
        one, other = (plain(table[name]) for name in measure.columns)
        absent, absent_other = missing(one), missing(other)
        if is_number(one.type):
            a, b = numbers(one), numbers(other)
            same = (a == b) | (absent & absent_other)
            apart = np.where(same, 0.0, _distance(a, b) if _is_score(one.type, other.type) else 1.0)
        else:
            same = np.asarray(pc.fill_null(pc.equal(one, _like(other, one)), fill_value=False), bool)
            same |= absent & absent_other
            apart = np.where(same, 0.0, 1.0)
        known = ~absent if measure.kind == "accuracy" else np.ones(len(same), bool)
        return {
            "rows": int(np.count_nonzero(known)),
            "equal": int(np.count_nonzero(same & known)),
            "pairs": None if _is_score(one.type, other.type) else _counted(one, other, known),
            "top": _examples(measure, table, np.where(known, apart, 0.0), places),
        }

    def add(self, states: Sequence[State]) -> State:
        """Return the sum of what was measured of several parts."""
        return {
            "rows": sum(state["rows"] for state in states),
            "equal": sum(state["equal"] for state in states),
            "pairs": _added_pairs(states),
            "top": _most_different(states),
        }


class Difference:
    """The largest difference; infinite if one of two values is missing."""

    def of(self, measure: Measure, table: pa.Table, places: Places) -> State:
        """Measure the rows of a part."""
        one, other = (numbers(table[name]) for name in measure.columns)
        apart = _distance(one, other)
        most = {"most": float(apart.max()).hex()} if len(apart) else {"most": None}
        return {**most, "top": _examples(measure, table, apart, places)}

    def add(self, states: Sequence[State]) -> State:
        """Return the largest of several parts."""
        most = [float.fromhex(state["most"]) for state in states if state["most"] is not None]
        return {"most": max(most).hex() if most else None, "top": _most_different(states)}


class Products:
    """The exact sums of which a correlation is computed, over the rows in which both numbers are finite."""

    def of(self, measure: Measure, table: pa.Table, places: Places) -> State:
        """Measure the rows of a part."""
        a, b = (numbers(table[name]) for name in measure.columns)
        both = np.isfinite(a) & np.isfinite(b)
        a, b = a[both], b[both]
        names = {"a": sums.total(a), "b": sums.total(b)}
        names |= {"aa": sums.products(a, a), "bb": sums.products(b, b), "ab": sums.products(a, b)}
        apart = np.zeros(len(both))
        apart[both] = np.abs(a - b)
        top = _examples(measure, table, apart, places)
        return {"n": len(a), **{name: list(one) for name, one in names.items()}, "top": top}

    def add(self, states: Sequence[State]) -> State:
        """Return the sums of several parts."""
        found: State = {name: added_sums(states, name) for name in ("a", "b", "aa", "bb", "ab")}
        return {"n": sum(state["n"] for state in states), **found, "top": _most_different(states)}


class Ranks:
    """The histograms of the scores of positive and of negative rows; a truth of another value than 0 and 1 is neither.

    Rows without a truth or without a score are left out.
    """

    def of(self, measure: Measure, table: pa.Table, places: Places) -> State:
        """Measure the rows of a part."""
        del places
        truth, scores = (numbers(table[name]) for name in measure.columns)
        known = ~(np.isnan(truth) | np.isnan(scores))
        truth, scores = truth[known], scores[known]
        return {
            "positive": histogram.count(scores[truth == 1]).encode(),
            "negative": histogram.count(scores[truth == 0]).encode(),
            "others": int(np.count_nonzero((truth != 0) & (truth != 1))),
        }

    def add(self, states: Sequence[State]) -> State:
        """Return the sums of several parts."""
        bins = {name: added_bins(states, name) for name in ("positive", "negative")}
        return {**bins, "others": sum(state["others"] for state in states)}


def added_sums(states: Sequence[State], name: str) -> list[int]:
    """Return the exact sum of the exact sums of this name."""
    found = sums.ZERO
    for state in states:
        found = sums.add(found, tuple(state[name]))
    return list(found)


def added_bins(states: Sequence[State], name: str) -> str:
    """Return the sum of the histograms of this name."""
    return histogram.added([histogram.Histogram.decode(state[name]) for state in states]).encode()


def _is_score(*kinds: pa.DataType) -> bool:
    """Return whether one of the types is that of scores, whose values are not counted like those of labels."""
    return any(pa.types.is_floating(values_type(kind)) or pa.types.is_decimal(values_type(kind)) for kind in kinds)


def _like(column: pa.ChunkedArray, other: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of texts in the text type of another one."""
    return column if column.type == other.type else column.cast(other.type)


def _distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the absolute differences: 0 where both are missing or the same infinity, infinite where one is missing."""
    with np.errstate(all="ignore"):
        apart = np.abs(one - other)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    return np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))


def _counted(one: pa.ChunkedArray, other: pa.ChunkedArray, known: np.ndarray) -> list[list[Any]] | None:
    """Return each pair of values with its number of rows; None if there are too many."""
    pairs = pa.table({"a": one, "b": other}).filter(pa.array(known))
    counted = pairs.group_by(["a", "b"], use_threads=False).aggregate([([], "count_all")])
    if counted.num_rows > MOST_PAIRS:
        return None
    return _sorted(zip(*(counted[name].to_pylist() for name in ("a", "b", "count_all")), strict=True))


def _added_pairs(states: Sequence[State]) -> list[list[Any]] | None:
    every: Counter[tuple[Any, Any]] = Counter()
    for state in states:
        if state["pairs"] is None:
            return None
        for a, b, n in state["pairs"]:
            every[a, b] += n
    return _sorted((a, b, n) for (a, b), n in every.items()) if len(every) <= MOST_PAIRS else None


def _sorted(counted: Any) -> list[list[Any]]:  # noqa: ANN401 - triples of two values and a count
    """Return pairs in an order that does not depend on that of the rows."""
    return sorted(map(list, counted), key=lambda pair: tuple((one is not None, str(one)) for one in pair[:2]))


def _examples(measure: Measure, table: pa.Table, apart: np.ndarray, places: Places) -> list[dict[str, Any]]:
    """Return the rows that differ most, and of equally different ones the first."""
    order = np.argsort(-apart, kind="stable")[:_MOST_DIFFERENT] if len(apart) <= _MOST_DIFFERENT else _largest(apart)
    rows = [int(row) for row in order if apart[row] > 0]
    if not rows:
        return []
    values = [values_at(table[name], rows) for name in measure.columns]
    return [
        {"apart": float(apart[row]).hex(), "part": places.part, "at": row, "file": file, "row": number, "values": both}
        for row, (file, number), *both in zip(rows, places.of(rows), *values, strict=True)
    ]


def _largest(apart: np.ndarray) -> np.ndarray:
    """Return the positions of the largest values in order, without sorting all of them."""
    least = np.partition(apart, len(apart) - _MOST_DIFFERENT)[len(apart) - _MOST_DIFFERENT]
    above, equal = np.flatnonzero(apart > least), np.flatnonzero(apart == least)
    found = np.sort(np.concatenate([above, equal[: _MOST_DIFFERENT - len(above)]]))
    return np.asarray(found[np.argsort(-apart[found], kind="stable")])


def _most_different(states: Sequence[State]) -> list[dict[str, Any]]:
    every = [one for state in states for one in state["top"]]
    return sorted(every, key=lambda one: (-float.fromhex(one["apart"]), one["part"], one["at"]))[:_MOST_DIFFERENT]
