"""The gates of a run on its page: figures and limits, drift by column, labels of two columns, rows that differ most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scorer.display.blocks import Heading, Meter, Meters, Table, Words
from scorer.display.words import as_text, plural

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scorer.display.blocks import Block


_GROUPS = 24  # groups of a drift that are drawn, those that changed most first
_LABELS = 12  # labels of a table of two columns


def blocks(gates: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Return a table of all gates, then what is known of each figure."""
    rows = [(one["gate"], one["found"], one["limit"], _verdict(one)) for one in gates]
    found: list[Block] = [Table(("gate", "found", "limit", "result"), ("name", "", "", ""), rows)]
    for one in gates:
        found += [*_drift(one.get("drift", ())), *_confusion(one), *_rows(one)]
    return found


def _verdict(gate: Mapping[str, Any]) -> str:
    return "passed" if gate["passed"] else "does not hold (only a warning)" if gate["warn"] else "failed"


def _drift(drift: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Draw the share of each group in the baseline and in this output."""
    found: list[Block] = []
    for column in dict.fromkeys(one["column"] for one in drift):
        groups = [one for one in drift if one["column"] == column]
        shown = sorted(groups, key=lambda one: -abs(one["now"] - one["before"]))[:_GROUPS]
        lines = []
        for one in groups:
            if one not in shown:
                continue
            lines.append(Meter(one["group"], 100 * one["before"], f"{one['before']:.1%} in the baseline", "rest"))
            lines.append(Meter("", 100 * one["now"], f"{one['now']:.1%} here"))
        more = f"the {_GROUPS} groups that changed most, of {len(groups):,}" if len(groups) > len(shown) else ""
        found += [Heading(f"Drift of {column}", more), Meters(lines)]
    return found


def _confusion(gate: Mapping[str, Any]) -> list[Block]:
    """Return how often each pair of labels occurs, as a table with a line for each value of the first column."""
    pairs = gate.get("confusion", ())
    if not pairs:
        return []
    counts = {tuple(one["values"]): one["rows"] for one in pairs}
    lines = list(dict.fromkeys(one for one, _ in counts))[:_LABELS]
    columns = list(dict.fromkeys(other for _, other in sorted(counts)))[:_LABELS]
    one, other = gate["columns"]
    rows = [(line, *(f"{counts.get((line, column), 0):,}" for column in columns)) for line in lines]
    shown = sum(counts.get((line, column), 0) for line in lines for column in columns)
    rest = sum(counts.values()) - shown
    more = f"{plural(rest, 'more row')} with other labels" if rest else ""
    return [
        Heading(f"{one} and {other}", more),
        Words(f"Rows by {one} (lines) and {other} (columns).", tone="soft"),
        Table((one, *columns), ("name", *("n" for _ in columns)), rows),
    ]


def _rows(gate: Mapping[str, Any]) -> list[Block]:
    rows = gate.get("rows", ())
    if not rows:
        return []
    one, other = gate["columns"]
    table = [(row["file"].rpartition("/")[2], f"{row['row']:,}", *map(as_text, row["values"])) for row in rows]
    return [
        Heading(f"Rows that differ most in {one} and {other}"),
        Table(("file", "row", one, other), ("name", "n", "n", "n"), table),
    ]
