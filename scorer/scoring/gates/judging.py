"""Add up what was measured of all parts, and compare every figure with its limit."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from scorer.display.words import as_text
from scorer.events import GateJudged
from scorer.options.gates import Figure
from scorer.output.staging import record
from scorer.scoring.gates import baseline, parts
from scorer.scoring.gates.figures import Value, measures_of, value_of
from scorer.scoring.gates.measures import added

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scorer.dataset.reader import Rows
    from scorer.events import Receipt
    from scorer.options.gates import Gate
    from scorer.output.place import Staging
    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.gates import Gates, Measure
    from scorer.plan.parts import Part

State = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A gate, and whether its figure is within the limit; as report.json has it."""

    gate: str
    """As it was written."""
    limit: str
    """The comparison, such as '<= 0.2'."""
    figure: float | None
    """The sum of its figures; None if it cannot be computed, or is not finite."""
    found: str
    """The figure as text, with its error; or why it cannot be computed."""
    passed: bool
    warn: bool
    """Whether a failure is only reported."""
    error: float = 0.0
    """The largest error of the figure, if it is estimated from a histogram."""
    columns: tuple[str, ...] = ()
    """The two columns that are compared in `rows` and `confusion`."""
    rows: tuple[dict[str, Any], ...] = ()
    """The rows that differ most: file, row and both values."""
    confusion: tuple[dict[str, Any], ...] = ()
    """Of two columns of labels: each pair of values, with its number of rows."""
    drift: tuple[dict[str, Any], ...] = ()
    """Of PSI: each group of values, with its share of the baseline's rows and of these."""

    @property
    def event(self) -> GateJudged:
        """The event that tells observers of it."""
        return GateJudged(**{name: getattr(self, name) for name in GateJudged.__slots__})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON holds them, without empty ones."""
        return {name: value for name, value in asdict(self).items() if value != ()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The gates of a run, compared with their limits."""

    gates: tuple[Judged, ...]
    receipts: dict[int, Receipt]
    """The receipts of all parts, with what was measured later for some of them."""
    measured: dict[str, State]
    """What was measured of all parts of the run."""
    measures: tuple[Measure, ...]
    adds: bool
    """Whether the run adds a generation to an output."""

    def figures(self, earlier: Mapping[str, State]) -> dict[str, State]:
        """Return what was measured of all generations of the output; nothing of what an earlier one does not have.

        Without earlier generations, `earlier` is empty.
        """
        if not self.adds:
            return self.measured
        known = [one for one in self.measures if one.key in earlier]
        return {one.key: added(one, [earlier[one.key], self.measured[one.key]]) for one in known}


def judge(
    gates: Gates, frozen: FrozenPlan, staging: Staging, receipts: Mapping[int, Receipt], read: Callable[[Part], Rows],
    notify: Callable[[str], None],
) -> Judgement:  # fmt: skip
    """Add up what was measured of the parts, and compare every figure with its limit; the baselines are read now.

    What the receipts lack is measured from the staged parts, and recorded in the journal. `read` reads the rows of a
    part again.
    """
    later = parts.complete(gates, frozen, staging, receipts, read, notify)
    record(staging, later.values())
    every = {**receipts, **later}
    in_order = [every[index] for index in sorted(every)]
    found = {one.key: added(one, [receipt.figures[one.key] for receipt in in_order]) for one in gates.measures}
    known: dict[tuple[str, str], State] = {}
    judged = tuple(_judged(gates, gate, found, known) for gate in gates.gates)
    for one in judged:
        if one.warn and not one.passed:
            notify(f"a gate does not hold: {one.gate}; found {one.found}")
    return Judgement(gates=judged, receipts=every, measured=found, measures=gates.measures, adds=bool(frozen.previous))


def measures_for(gates: Gates, figure: Figure) -> tuple[Measure, ...]:
    """Return what must be measured for a figure of these gates."""
    return measures_of(figure, values=bool(figure.columns) and figure.columns[0] in gates.values)


def _judged(gates: Gates, gate: Gate, found: Mapping[str, State], known: dict[tuple[str, str], State]) -> Judged:
    total, error, values = 0.0, 0.0, list[tuple[Figure, Value]]()
    for term in gate.terms:
        if term.figure is None:
            total += term.sign * term.number
            continue
        value = _value(gates, gate, term.figure, found, known)
        values.append((term.figure, value))
        if value.value is not None:
            total, error = total + term.sign * value.value, error + value.error
    lacking = [f"{figure}: {value.why}" for figure, value in values if value.value is None]
    figure = None if lacking or not math.isfinite(total) else total
    return Judged(
        gate=gate.text,
        limit=gate.limit,
        figure=figure,
        found="; ".join(lacking) or _words(total, error),
        passed=not lacking and gate.allows(total),
        warn=gate.warn,
        error=error,
        columns=next((one.columns for one, value in values[:1] if value.top or value.pairs), ()),
        rows=tuple(row for _, value in values[:1] for row in map(_example, value.top)),
        confusion=tuple(row for _, value in values[:1] for row in _confusion(value)),
        drift=tuple(row for figure, value in values for row in _drift(figure, value)),
    )


def _value(
    gates: Gates, gate: Gate, figure: Figure, found: Mapping[str, State], known: dict[tuple[str, str], State]
) -> Value:
    measures = measures_for(gates, figure)
    before = None
    if figure.baseline:
        key = (figure.baseline, measures[0].key)
        if key not in known:
            known[key] = baseline.measured(figure.baseline, measures, gate)[measures[0].key]
        before = known[key]
    whole = bool(figure.columns) and figure.columns[0] in gates.whole
    return value_of(figure, measures, found, before, whole=whole)


def _words(value: float, error: float) -> str:
    """Return a figure with as many digits as it has; an estimated one with its largest error."""
    if not error:
        return f"{value:,.0f}" if value.is_integer() else repr(value)
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f}, off by at most {error:.1g}"


def _example(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"file": row["file"], "row": row["row"], "values": row["values"]}


def _confusion(value: Value) -> list[dict[str, Any]]:
    return [{"values": [as_text(a), as_text(b)], "rows": n} for a, b, n in value.pairs]


def _drift(figure: Figure, value: Value) -> list[dict[str, Any]]:
    if value.drift is None:
        return []
    groups = zip(value.drift.groups, value.drift.before, value.drift.now, strict=True)
    return [{"column": figure.columns[0], "group": name, "before": a, "now": b} for name, a, b in groups]
