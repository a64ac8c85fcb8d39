"""Find the columns that gates name: of the output, or of the input; and what must be measured of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from scorer.arrow import encode_schema, is_text, plain_schema, values_type
from scorer.dataset import conditions, fields
from scorer.display.words import did_you_mean, quoted_list
from scorer.errors import MissingColumns, OptionsError, ScorerError, TypeMismatch
from scorer.plan.gates import Gates
from scorer.scoring.gates.columns import is_number, is_value
from scorer.scoring.gates.figures import measures_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.options.gates import Figure, Gate

_NUMBERS = ("mean", "std", "min", "max", "quantile", "nan_rate", "corr", "max_diff", "auc")
"""The functions that only take numbers and truth values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns of a run: those of its output, those of its input, and which of these are kept."""

    output: pa.Schema
    input: pa.Schema
    kept: tuple[str, ...]

    def find(self, name: str) -> pa.Field | None:
        """Return the column that a gate names; None if there is none.

        NAME.COLUMN stands for the output column NAME_COLUMN, as several models write it.
        """
        for own in (name, name.replace(".", "_")):
            at = self.output.get_field_index(own)
            if at >= 0:
                return self.output.field(at)
        return fields.find(self.input, name)

    def is_written(self, name: str) -> bool:
        """Return whether the output has the column."""
        return bool(self.output.get_field_index(name) >= 0)


@dataclass(slots=True)
class Bound:
    """The gates with the names of columns, and the problems with those that cannot be computed."""

    gates: list[Gate] = field(default_factory=list)
    types: dict[str, pa.DataType] = field(default_factory=dict)
    problems: list[ScorerError] = field(default_factory=list)


def bind(gates: Sequence[Gate], columns: Columns) -> tuple[Gates, list[ScorerError]]:
    """Return the gates that can be computed, with what must be measured for them, and the problems of the others."""
    bound = Bound()
    for gate in gates:
        before = len(bound.problems)
        terms = [
            term if term.figure is None else replace(term, figure=_bound(term.figure, gate, columns, bound))
            for term in gate.terms
        ]
        bound.gates += [replace(gate, terms=tuple(terms))] if len(bound.problems) == before else []
    figures = [figure for gate in bound.gates for figure in gate.figures]
    measures = dict.fromkeys(
        measure for figure in figures for measure in measures_of(figure, values=counts_values(figure, bound.types))
    )
    names = dict.fromkeys(name for measure in measures for name in measure.columns)
    read = [pa.field(name, bound.types[name]) for name in names if not columns.is_written(name)]
    return Gates(
        gates=tuple(bound.gates),
        measures=tuple(measures),
        read=encode_schema(plain_schema(pa.schema(read))) if read else "",
        kept=tuple(name for name in names if columns.is_written(name) and name in columns.kept),
        whole=tuple(name for name in names if pa.types.is_integer(values_type(bound.types[name]))),
        values=tuple(name for name in names if is_value(bound.types[name])),
    ), bound.problems


def counts_values(figure: Figure, types: dict[str, pa.DataType]) -> bool:
    """Return whether PSI counts equal values of the figure's column, instead of numbers in bins."""
    return figure.function == "psi" and is_value(types[figure.columns[0]])


def _bound(figure: Figure, gate: Gate, columns: Columns, bound: Bound) -> Figure:
    """Return the figure with the names of columns; what is wrong with it becomes a problem."""
    names, before = list(figure.columns), len(bound.problems)
    if figure.condition:
        try:
            names = [conditions.parse(figure.condition).column]
        except OptionsError as error:
            bound.problems.append(_condition_error(error, gate))
            return figure
    found = []
    for name in names:
        column = columns.find(name)
        if column is None:
            bound.problems.append(_no_column(name, gate, columns))
        else:
            found.append(column)
    if len(bound.problems) > before:
        return figure
    for column in found:
        bound.types[column.name] = column.type
    bound.problems += _wrong_types(figure, found, gate)
    return replace(figure, columns=tuple(column.name for column in found))


def _condition_error(error: ScorerError, gate: Gate) -> OptionsError:
    """Return the error of a condition with the gate that it is in."""
    return OptionsError(
        error.what, gate.text, error.expected, error.found, "for example --gate \"share('p > 0.5') < 0.3\""
    )


def _no_column(name: str, gate: Gate, columns: Columns) -> MissingColumns:
    known = [*columns.output.names, *(one for one in columns.input.names if one not in columns.output.names)]
    return MissingColumns(
        f"a gate names a column that neither the output nor the input has: {name!r}",
        where=gate.text,
        expected="a column of the output or of the input",
        found=quoted_list(columns.output.names, 100),
        hint=did_you_mean(name, known),
    )


def _wrong_types(figure: Figure, found: Sequence[pa.Field], gate: Gate) -> list[ScorerError]:
    """Return the problems of a figure with the types of its columns."""
    kinds = [values_type(column.type) for column in found]
    if figure.condition:
        condition = replace(conditions.parse(figure.condition), column=found[0].name)
        return [
            TypeMismatch(
                f"a gate compares {found[0].name!r} with a value of another type", where=gate.text,
                expected=one.expected, found=one.found, hint=one.hint,
            )
            for one in conditions.check([condition], pa.schema([found[0]]))
        ]  # fmt: skip
    if figure.function in _NUMBERS:
        return [_mismatch(figure, column, "numbers", gate) for column in found if not is_number(column.type)]
    if figure.function in {"psi", "agree", "accuracy"}:
        wrong = [column for column, kind in zip(found, kinds, strict=True) if not (is_number(kind) or is_text(kind))]
        if wrong or len({is_number(kind) for kind in kinds}) > 1:
            expected = "numbers, truth values or texts" if wrong else "two columns of numbers, or two of texts"
            return [_mismatch(figure, column, expected, gate) for column in (wrong or found)[:1]]
    return []


def _mismatch(figure: Figure, column: pa.Field, expected: str, gate: Gate) -> TypeMismatch:
    return TypeMismatch(
        f"{figure.function}() cannot be computed for {column.name!r}",
        where=gate.text,
        expected=expected,
        found=f"a column of type {column.type}",
        hint="choose another column, or compare texts with psi(), agree(), accuracy() and share()",
    )
