"""What was measured of another output: from its proof, or else from a column of its files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from scorer.arrow import decode_schema, is_text, values_type
from scorer.dataset import fields
from scorer.display.words import cut, did_you_mean, quoted_list
from scorer.errors import InputError, MissingColumns, ScorerError, TypeMismatch
from scorer.output.place import Place, another_format, files_of
from scorer.scoring.gates import parts
from scorer.scoring.gates.columns import is_number, is_value
from scorer.storage.refusals import explaining
from scorer.storage.stores import for_arrow, raise_if_unknown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.options.gates import Figure, Gate
    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.gates import Measure


def problem(figure: Figure, gate: Gate, measure: Measure) -> ScorerError | None:
    """Return why a baseline cannot be used for a figure; None if it can."""
    try:
        with explaining(InputError):
            place, plan = _published(figure.baseline, gate)
            if measure.key in _figures(place):
                return None
    except ScorerError as error:
        return error
    name, schema = figure.columns[0], decode_schema(plan.output_schema)
    column = fields.find(schema, name)
    if column is None:
        return MissingColumns(
            f"the baseline of a gate does not have the column {name!r}",
            where=gate.text,
            expected=f"a column of {figure.baseline}",
            found=quoted_list(schema.names, 100),
            hint=did_you_mean(name, schema.names),
        )
    if is_value(column.type) != (measure.kind == "values") or not (
        is_number(column.type) or is_text(values_type(column.type))
    ):
        return TypeMismatch(
            f"the column {name!r} has another type in the baseline of a gate",
            where=gate.text,
            expected="texts or truth values" if measure.kind == "values" else "numbers",
            found=f"a column of type {column.type} in {figure.baseline}",
            hint="compare with an output whose column has the same type",
        )
    return None


def source(location: str, measure: Measure) -> str:
    """Return where the figures of a baseline are from, in words."""
    with explaining(InputError):
        known = measure.key in _figures(Place.of(location, None))
    return "from its proof" if known else "read from its files"


def measured(location: str, measures: Sequence[Measure], gate: Gate) -> dict[str, dict[str, Any]]:
    """Return what was measured of an output; what its proof does not have is measured now."""
    with explaining(InputError):
        place, _ = _published(location, gate)
        known = {key: state for key, state in _figures(place).items() if key in {one.key for one in measures}}
        absent = [one for one in measures if one.key not in known]
        if not absent:
            return known
        try:
            names = files_of(for_arrow(place.folder / "ledger.parquet"))
            return known | parts.of_files(absent, [place.output / name for name in names])
        except (OSError, KeyError, pa.ArrowException) as error:
            raise_if_unknown(place.output, error)
            raise _unusable(location, gate, cut(str(error))) from error


def _published(location: str, gate: Gate) -> tuple[Place, FrozenPlan]:
    place = Place.of(location, None)
    plan = place.published()
    if plan is None:
        other = another_format(place)
        raise other if other is not None else _unusable(location, gate, f"no published output with {place.folder}")
    return place, plan


def _figures(place: Place) -> dict[str, Any]:
    """Return what the manifest has."""
    try:
        found = json.loads((place.folder / "manifest.json").read_text()).get("figures", {})
    except (OSError, ValueError, AttributeError) as error:
        raise_if_unknown(place.folder, error)
        return {}
    return found if isinstance(found, dict) else {}


def _unusable(location: str, gate: Gate, found: str) -> InputError:
    return InputError(
        "the baseline of a gate is not a complete output of scorer",
        where=gate.text,
        expected=f"{location}, published by scorer and with its proof beside it",
        found=found,
        hint="name the output folder of an earlier run; leave the gate out in a first run",
    )
