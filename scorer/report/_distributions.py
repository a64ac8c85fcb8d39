"""How the scores of an output are distributed, from a bounded sample of its files.

First rows of row groups that lie evenly over the output; what is read is bounded by rows, files and seconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scorer.arrow import is_list
from scorer.display.blocks import Meter
from scorer.display.plots import Plot, bars, number_ticks
from scorer.display.words import plural, short_number
from scorer.storage.footers import open_parquet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scorer.plan.frozen import FrozenPlan


VALUES = 300_000  # that are looked at, in all columns: about 20 ms
_LEAST_VALUES = 60_000  # for a run of no time at all
_LONG_RUN_S = 10.0
_PICKS = 32  # row groups
_COLUMNS = 24  # that are drawn
_BINS = 40
_WORDS = 8  # beyond, the other values are one line
_FEW = 12  # whole numbers: below, each has its own line
_TAIL = 4.0  # a range so many times that of 99.8 % of the values is cut
_AT_LEAST_S, _SHARE, _AT_MOST_S = 0.5, 0.005, 2.0  # of the run; a slow disk is not waited for any longer


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSample:
    """Rows of the output, and where they are from."""

    table: pa.Table
    groups: int
    rows: int
    """Of the output, in all."""

    def __str__(self) -> str:
        """In a sentence."""
        if self.table.num_rows == self.rows:
            return f"All {plural(self.rows, 'scored row')}."
        of = f"{self.table.num_rows:,} of {plural(self.rows, 'scored row')}"
        return f"A sample: {of}, the first ones of {plural(self.groups, 'row group')} spread evenly over the output."


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """What one column holds."""

    column: str
    type: str
    facts: tuple[tuple[str, str], ...]
    plot: Plot | None = None
    meters: tuple[Meter, ...] = ()


def sample_scores(
    folder: Path, plan: FrozenPlan, names: Sequence[str], scored: np.ndarray, seconds: float
) -> ScoreSample | None:
    """Some rows of the columns that the model added, out of parts with so many rows each; None if there are none.

    `seconds` is how long scoring took: a short run is looked at for a short time.
    """
    fetches = plan.binding.fetches
    columns = [name for fetch in fetches for name in fetch.columns][:_COLUMNS]
    if not columns or not scored.sum():
        return None
    width = sum(fetch.width if fetch.kind in {"list", "ragged"} else len(fetch.columns) for fetch in fetches)
    values = _LEAST_VALUES + (VALUES - _LEAST_VALUES) * min(1.0, seconds / _LONG_RUN_S)
    until = time.perf_counter() + min(_AT_MOST_S, max(_AT_LEAST_S, _SHARE * seconds))
    picks = _picked(scored, plan.storage.row_group_rows)
    each = max(1, int(values / max(width, 1) / len(picks)))
    tables = []
    for part, group in picks:
        with open_parquet(str(folder / names[part]), columns=len(columns)) as parquet:
            asked = [min(group, parquet.num_row_groups - 1)]
            tables += list(_first(parquet.iter_batches(each, row_groups=asked, columns=columns, use_threads=False)))
        if time.perf_counter() > until:
            break
    return ScoreSample(table=pa.concat_tables(tables), groups=len(tables), rows=int(scored.sum())) if tables else None


def _first(batches: object) -> list[pa.Table]:
    batch = next(iter(batches), None)  # type: ignore[call-overload]
    return [] if batch is None else [pa.Table.from_batches([batch])]


def _picked(scored: np.ndarray, group_rows: int) -> list[tuple[int, int]]:
    """Row groups as (part, group), evenly over all of them; so ordered that the first few are spread evenly too."""
    groups = -(-scored // max(group_rows, 1))
    ends = np.cumsum(groups)
    n = int(min(_PICKS, ends[-1]))
    at = (np.arange(n) * 2 + 1) * int(ends[-1]) // (2 * n)
    order = sorted(range(n), key=lambda i: f"{i:05b}"[::-1])
    parts = np.searchsorted(ends, at, side="right")
    return [(int(parts[i]), int(at[i] - (ends[parts[i]] - groups[parts[i]]))) for i in order]


def distributions(found: ScoreSample) -> list[Distribution]:
    """One for each column."""
    return [_of(field.name, found.table[field.name]) for field in found.table.schema]


def _of(name: str, column: pa.ChunkedArray) -> Distribution:
    kind = column.type
    facts = [("nulls", _share(column.null_count, len(column)))]
    values = column
    while is_list(values.type):
        values = pc.list_flatten(values)
    values = values.drop_null()
    if pa.types.is_floating(values.type):
        return _numbers(name, kind, values.cast(pa.float64()).to_numpy(), facts)
    if pa.types.is_integer(values.type) and len(values.unique()) > _FEW:
        return _numbers(name, kind, values.cast(pa.float64(), safe=False).to_numpy(), facts)
    if pa.types.is_nested(values.type):
        return Distribution(column=name, type=str(kind), facts=tuple(facts))
    return _words(name, kind, values, facts)


def _numbers(name: str, kind: pa.DataType, values: np.ndarray, facts: list[tuple[str, str]]) -> Distribution:
    """A histogram over what is finite, without far tails, which are counted."""
    finite = values[np.isfinite(values)]
    odd = len(values) - len(finite)
    nans = int(np.isnan(values).sum()) if odd else 0
    facts = [*facts, ("NaN", _share(nans, len(values)))]
    if odd > nans:
        facts.append(("infinite", _share(odd - nans, len(values))))
    if not len(finite):
        return Distribution(column=name, type=str(kind), facts=tuple(facts))
    least, low, five, half, most95, high, most = np.quantile(finite, [0, 0.001, 0.05, 0.5, 0.95, 0.999, 1]).tolist()
    facts += [("mean", short_number(float(finite.mean()))), ("median", short_number(half))]
    facts += [
        ("5 to 95 %", f"{short_number(five)} to {short_number(most95)}"),
        ("range", f"{short_number(least)} to {short_number(most)}"),
    ]
    if not (high > low and most - least > _TAIL * (high - low)):
        low, high = least, most
    if low == high:
        return Distribution(column=name, type=str(kind), facts=(*facts, ("", "one value only")))
    counts, edges = np.histogram(finite, _BINS, (low, high))
    outside = len(finite) - int(counts.sum())
    if outside:
        facts.append(("not drawn", f"{plural(outside, 'value')} farther out"))
    plot = bars(
        f"histogram of {name}",
        counts.tolist(),
        lambda i: f"{short_number(edges[i])} to {short_number(edges[i + 1])}: {_share(int(counts[i]), len(finite))}",
        number_ticks(low, high),
        height=110,
    )
    return Distribution(column=name, type=str(kind), facts=tuple(facts), plot=plot)


def _words(name: str, kind: pa.DataType, values: pa.ChunkedArray, facts: list[tuple[str, str]]) -> Distribution:
    """The values that are there most often."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    found = sorted(((v["counts"], v["values"]) for v in values.value_counts().to_pylist()), key=lambda one: -one[0])
    shown = [*found[: _WORDS if len(found) > _FEW else _FEW]]
    rest = sum(count for count, _ in found[len(shown) :])
    total = max(len(values), 1)
    meters = [Meter(_short(value), 100 * n / total, f"{n / total:.1%}", says=f"{n:,} times") for n, value in shown]
    if rest:
        others = plural(len(found) - len(shown), "other value")
        meters.append(Meter(others, 100 * rest / total, f"{rest / total:.1%}", tint="rest", says=f"{rest:,} times"))
    facts.append(("different values", f"{len(found):,}"))
    return Distribution(column=name, type=str(kind), facts=tuple(facts), meters=tuple(meters))


def _short(value: object) -> str:
    text = f"{len(value):,} bytes" if isinstance(value, bytes) else str(value)
    return text if len(text) <= _COLUMNS + _WORDS else f"{text[: _COLUMNS + _WORDS]}..."


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.2%})" if count else "0"
