"""Order columns: as the model names them, or by the numbers at the end of their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scorer.binding.spec import ASKED, BY_GLOB, BY_NUMBERS

if TYPE_CHECKING:
    from collections.abc import Sequence


def by_numbers(columns: Sequence[str]) -> list[str] | None:
    """Return the columns in the order of the numbers that their names end in; None if the names say no order.

    They say one if they are equal up to the number, and no number occurs twice.
    """
    prefixes = {name.rstrip("0123456789") for name in columns}
    if len(prefixes) != 1:
        return None
    (prefix,) = prefixes
    numbers = {name: name[len(prefix) :] for name in columns}
    plain = {name: digits.lstrip("0") for name, digits in numbers.items()}
    if not all(numbers.values()) or len(set(plain.values())) < len(columns):
        return None
    return sorted(columns, key=lambda name: (len(plain[name]), plain[name]))


def of_glob(columns: Sequence[str], features: Sequence[str]) -> tuple[list[str], str]:
    """Return the columns that a glob matches in the order in which they are fed, and the rule that chose it.

    `columns` are in the input's order. `features` are the names that the model gives to its features.
    """
    if len(columns) <= 1:
        return list(columns), ASKED
    if set(columns) <= set(features):
        return sorted(columns, key=list(features).index), ASKED
    ordered = by_numbers(columns)
    if ordered is None:
        return list(columns), BY_GLOB
    return ordered, ASKED if ordered == list(columns) else BY_NUMBERS
