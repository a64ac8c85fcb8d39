"""The figures of gates: what must be measured for each, and its value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from scorer.plan.gates import Measure
from scorer.scoring.gates import histogram, sums
from scorer.scoring.gates.histogram import Drift, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scorer.options.gates import Figure


_KINDS = {
    "null_rate": ("rows",),
    "nan_rate": ("rows",),
    "mean": ("sum",),
    "std": ("squares",),
    "min": ("range",),
    "max": ("range",),
    "quantile": ("bins", "range"),
    "agree": ("equal",),
    "accuracy": ("accuracy",),
    "corr": ("products",),
    "max_diff": ("difference",),
    "auc": ("ranks",),
}
"""What is measured for each function; psi, share and count depend on their arguments."""
_LEAST_FOR_SPREAD = 2  # numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """The value of a figure, and what it is made of."""

    value: float | None
    """None if it cannot be computed."""
    error: float = 0.0
    """The largest error of a value that is estimated from a histogram."""
    why: str = ""
    """Why it cannot be computed."""
    top: tuple[dict[str, Any], ...] = ()
    """The rows that differ most, of two columns."""
    pairs: tuple[tuple[Any, Any, int], ...] = ()
    """The pairs of labels with their number of rows."""
    drift: Drift | None = None


def measures_of(figure: Figure, *, values: bool) -> tuple[Measure, ...]:
    """Return what must be measured; `values` says that equal values of the column are counted, not numbers."""
    if figure.function == "psi":
        return (Measure(kind="values" if values else "bins", columns=figure.columns),)
    if figure.condition:
        return (Measure(kind="matching", columns=figure.columns, condition=figure.condition),)
    kinds = _KINDS.get(figure.function, ("rows",))
    return tuple(Measure(kind=kind, columns=figure.columns) for kind in kinds)


def value_of(
    figure: Figure, measures: tuple[Measure, ...], found: Mapping[str, dict[str, Any]],
    before: dict[str, Any] | None, *, whole: bool,
) -> Value:  # fmt: skip
    """Return the value of a figure, from what was measured; `before` is the same of its baseline.

    `whole` says that its column holds whole numbers.
    """
    state: dict[str, Any] = {}
    for measure in measures:
        state |= found[measure.key]
    if figure.function == "quantile":
        return _quantile(state, Fraction(figure.number), whole=whole)
    if figure.function == "psi":
        return _psi(state, before or {}, figure.columns[0], whole=whole)
    return _VALUES[figure.function](state)


def _share(part: int, rows: int) -> Value:
    return Value(value=part / rows) if rows else Value(value=None, why="there are no rows")


def _mean(state: dict[str, Any]) -> Value:
    if not state["n"]:
        return Value(value=None, why="there are no numbers")
    if state["up"] or state["down"]:
        return Value(value=_infinite(state))
    return Value(value=sums.rounded(sums.fraction(tuple(state["sum"])) / state["n"]))


def _infinite(state: dict[str, Any]) -> float:
    """Return the sum of infinities."""
    return math.nan if state["up"] and state["down"] else math.inf if state["up"] else -math.inf


def _std(state: dict[str, Any]) -> Value:
    """Return the standard deviation of a sample, as pandas does."""
    n = state["n"]
    if n < _LEAST_FOR_SPREAD:
        return Value(value=None, why="there are fewer than two numbers")
    if state["up"] or state["down"]:
        return Value(value=math.nan)
    total, squares = (sums.fraction(tuple(state[name])) for name in ("sum", "squares"))
    return Value(value=_root((n * squares - total * total) / (n * (n - 1))))


def _root(number: Fraction) -> float:
    """Return the square root, also of a number that no float holds."""
    shift = (number.numerator.bit_length() - number.denominator.bit_length()) // 2
    return math.ldexp(math.sqrt(number / Fraction(4) ** shift), shift) if number else 0.0


def _range(state: dict[str, Any], name: str) -> Value:
    if name not in state:
        return Value(value=None, why="there are no numbers")
    return Value(value=float.fromhex(state[name]))


def _quantile(state: dict[str, Any], share: Fraction, *, whole: bool) -> Value:
    found = histogram.quantile(Histogram.decode(state["bins"]), share, whole=whole)
    if found is None:
        return Value(value=None, why="there are no numbers")
    value, error = found
    least, most = (float.fromhex(state[name]) for name in ("least", "most"))
    return Value(value=min(max(value, least), most), error=error)


def _equal(state: dict[str, Any]) -> Value:
    rows = state["rows"]
    return Value(
        value=state["equal"] / rows if rows else None,
        why="" if rows else "there are no rows to compare",
        top=tuple(state["top"]),
        pairs=tuple((a, b, n) for a, b, n in state["pairs"] or ()),
    )


def _difference(state: dict[str, Any]) -> Value:
    if state["most"] is None:
        return Value(value=None, why="there are no rows")
    return Value(value=float.fromhex(state["most"]), top=tuple(state["top"]))


def _correlation(state: dict[str, Any]) -> Value:
    n, top = state["n"], tuple(state["top"])
    a, b, aa, bb, ab = (sums.fraction(tuple(state[name])) for name in ("a", "b", "aa", "bb", "ab"))
    spread = (n * aa - a * a) * (n * bb - b * b)
    if not spread:
        return Value(value=None, why="a column has only one value, or no row has both", top=top)
    together = n * ab - a * b
    size = _root(together * together / spread)
    return Value(value=size if together >= 0 else -size, top=top)


def _area(state: dict[str, Any]) -> Value:
    if state["others"]:
        return Value(value=None, why=f"the truth has {state['others']:,} values other than 0 and 1")
    found = histogram.area(*(Histogram.decode(state[name]) for name in ("positive", "negative")))
    if found is None:
        return Value(value=None, why="there are no rows of one of the two classes")
    return Value(value=found[0], error=found[1])


def _psi(state: dict[str, Any], before: dict[str, Any], name: str, *, whole: bool) -> Value:
    missing = (before["missing"], state["missing"])
    if "bins" in state:
        old, new = (Histogram.decode(one["bins"]) for one in (before, state))
        drift = histogram.drift_of_numbers(old, new, missing, whole=whole)
    elif state["values"] is None or before["values"] is None:
        return Value(value=None, why=f"{name!r} has too many different texts")
    else:
        drift = histogram.drift_of_values(before["values"], state["values"], missing)
    if drift is None:
        return Value(value=None, why="there are no values to compare")
    return Value(value=drift.psi, drift=drift)


_VALUES: dict[str, Callable[[dict[str, Any]], Value]] = {
    "count": lambda state: Value(value=float(state.get("matching", state["rows"]))),
    "share": lambda state: _share(state["matching"], state["rows"]),
    "null_rate": lambda state: _share(state["nulls"], state["rows"]),
    "nan_rate": lambda state: _share(state["nans"], state["rows"]),
    "mean": _mean,
    "std": _std,
    "min": lambda state: _range(state, "least"),
    "max": lambda state: _range(state, "most"),
    "agree": _equal,
    "accuracy": _equal,
    "corr": _correlation,
    "max_diff": _difference,
    "auc": _area,
}
