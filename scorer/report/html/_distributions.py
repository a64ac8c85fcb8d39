"""How the scores of an output are distributed: histograms and value counts from a bounded sample.

The sample is the first rows of row groups spread evenly over the output. Its size and its time are limited.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scorer.arrow import is_list
from scorer.display.blocks import Meter
from scorer.display.plots import Plot, bars, number_ticks
from scorer.display.words import plural, short_number
from scorer.storage.files import AtOnce, FileId
from scorer.storage.footers import open_parquet

if TYPE_CHECKING:
    from scorer.plan.frozen import FrozenPlan
    from scorer.storage.stores import AnyPath


VALUES = 300_000  # most values in a sample, in all columns together: about 20 ms
_LEAST_VALUES = 60_000  # limit of the sample of a very short run
_LONG_RUN_S = 10.0  # from this scoring time on, a sample may have all VALUES
_GROUPS = 32  # row groups in a sample
_COLUMNS = 24  # columns that are shown
_BINS = 40
_LISTED = 8  # most frequent values that are listed, if there are more than _FEW
_FEW = 12  # up to so many distinct values are all listed
_VALUE_LETTERS = 32  # longer values are cut
_TAIL = 4.0  # a range more than so many times that of the middle 99.8 % of the values is cut
_MIN_S, _SHARE, _MAX_S = 0.5, 0.005, 2.0  # time limit of sampling: a share of the scoring time, between two bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSample:
    """Rows of the output, with the number of row groups they are from."""

    table: pa.Table
    groups: int
    rows: int
    """All scored rows of the output."""

    def __str__(self) -> str:
        """Return how large the sample is, as a sentence."""
        if self.table.num_rows == self.rows:
            return f"All {plural(self.rows, 'scored row')}."
        sampled = f"{self.table.num_rows:,} of {plural(self.rows, 'scored row')}"
        groups = plural(self.groups, "row group")
        return f"A sample of {sampled}: the first rows of {groups} spread evenly over the output."


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """The values of one column: facts, and a histogram or value counts."""

    column: str
    type: str
    facts: tuple[tuple[str, str], ...]
    plot: Plot | None = None
    meters: tuple[Meter, ...] = ()


def sample_scores(folder: AnyPath, plan: FrozenPlan, ledger: pa.Table, seconds: float) -> ScoreSample | None:
    """Return a sample of the score columns; None if there are no scores.

    `seconds` is how long scoring took: the sample of a short run is smaller.
    """
    names, sizes, scored = (ledger[name].to_pylist() for name in ("name", "size", "scored"))
    scored = np.array(scored)
    fetches = plan.fetches
    columns = [name for fetch in fetches for name in fetch.columns][:_COLUMNS]
    if not columns or not scored.sum():
        return None
    width = sum(fetch.width if fetch.kind in {"list", "ragged"} else len(fetch.columns) for fetch in fetches)
    values = _LEAST_VALUES + (VALUES - _LEAST_VALUES) * min(1.0, seconds / _LONG_RUN_S)
    until = time.perf_counter() + min(_MAX_S, max(_MIN_S, _SHARE * seconds))
    picks = _pick_groups(scored, plan.storage.row_group_rows)
    rows = max(1, int(values / max(width, 1) / len(picks)))
    tables: list[pa.Table] = []

    def read(part: int, group: int) -> list[pa.Table]:
        path = folder / names[part]
        file = str(path) if isinstance(path, Path) else FileId(str(path), sizes[part], "")
        with open_parquet(file, columns=len(columns)) as parquet:
            groups = [min(group, parquet.num_row_groups - 1)]
            return _first_batch(parquet.iter_batches(rows, row_groups=groups, columns=columns, use_threads=False))

    with AtOnce(folder) as ask:
        for one in [ask(partial(read, part, group)) for part, group in picks]:
            tables += one()
            if time.perf_counter() > until:
                break
    return ScoreSample(table=pa.concat_tables(tables), groups=len(tables), rows=int(scored.sum())) if tables else None


def _first_batch(batches: object) -> list[pa.Table]:
    batch = next(iter(batches), None)  # type: ignore[call-overload]
    return [] if batch is None else [pa.Table.from_batches([batch])]


def _pick_groups(scored: np.ndarray, group_rows: int) -> list[tuple[int, int]]:
    """Return row groups as (part, group), spread evenly over the output; so are the first few of them."""
    groups = -(-scored // max(group_rows, 1))
    ends = np.cumsum(groups)
    n = int(min(_GROUPS, ends[-1]))
    at = (np.arange(n) * 2 + 1) * int(ends[-1]) // (2 * n)
    order = sorted(range(n), key=lambda i: f"{i:05b}"[::-1])  # sampling may stop early: first the far-apart ones
    parts = np.searchsorted(ends, at, side="right")
    return [(int(parts[i]), int(at[i] - (ends[parts[i]] - groups[parts[i]]))) for i in order]


def distributions_of(sample: ScoreSample) -> list[Distribution]:
    """Return the distribution of each column."""
    return [_distribution(field.name, sample.table[field.name]) for field in sample.table.schema]


def _distribution(name: str, column: pa.ChunkedArray) -> Distribution:
    kind = column.type
    facts = [("nulls", _share(column.null_count, len(column)))]
    values = column
    while is_list(values.type):
        values = pc.list_flatten(values)
    values = values.drop_null()
    if pa.types.is_floating(values.type):
        return _histogram(name, kind, values.cast(pa.float64()).to_numpy(), facts)
    if pa.types.is_integer(values.type) and len(values.unique()) > _FEW:
        return _histogram(name, kind, values.cast(pa.float64(), safe=False).to_numpy(), facts)
    if pa.types.is_nested(values.type):
        return Distribution(column=name, type=str(kind), facts=tuple(facts))
    return _value_counts(name, kind, values, facts)


def _histogram(name: str, kind: pa.DataType, values: np.ndarray, facts: list[tuple[str, str]]) -> Distribution:
    """Return a histogram of the finite values; values in far tails are counted but not drawn."""
    finite = values[np.isfinite(values)]
    not_finite = len(values) - len(finite)
    nans = int(np.isnan(values).sum()) if not_finite else 0
    facts = [*facts, ("NaN", _share(nans, len(values)))]
    if not_finite > nans:
        facts.append(("infinite", _share(not_finite - nans, len(values))))
    if not len(finite):
        return Distribution(column=name, type=str(kind), facts=tuple(facts))
    quarters = finite / 4  # differences of two values do not overflow, and the division is exact
    quantiles = np.quantile(quarters, [0, 0.001, 0.05, 0.5, 0.95, 0.999, 1]) * 4
    least, low, p5, median, p95, high, most = quantiles.tolist()
    facts += [("mean", short_number(float((finite / len(finite)).sum()))), ("median", short_number(median))]
    facts += [
        ("5 to 95 %", f"{short_number(p5)} to {short_number(p95)}"),
        ("range", f"{short_number(least)} to {short_number(most)}"),
    ]
    if not (high > low and most - least > _TAIL * (high - low)):
        low, high = least, most
    edges = np.linspace(low / 4, high / 4, _BINS + 1) * 4
    if not (edges[1:] > edges[:-1]).all():
        alike = "equal" if finite.min() == finite.max() else "almost equal"
        return Distribution(column=name, type=str(kind), facts=(*facts, ("", f"all values are {alike}")))
    counts, _ = np.histogram(quarters, _BINS, (low / 4, high / 4))
    outside = len(finite) - int(counts.sum())
    if outside:
        facts.append(("not drawn", f"{plural(outside, 'value')} outside the plot"))
    plot = bars(
        f"histogram of {name}",
        counts.tolist(),
        lambda i: f"{short_number(edges[i])} to {short_number(edges[i + 1])}: {_share(int(counts[i]), len(finite))}",
        number_ticks(low, high),
        height=110,
    )
    return Distribution(column=name, type=str(kind), facts=tuple(facts), plot=plot)


def _value_counts(name: str, kind: pa.DataType, values: pa.ChunkedArray, facts: list[tuple[str, str]]) -> Distribution:
    """Return the most frequent values with their counts."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    counted = sorted(((v["counts"], v["values"]) for v in values.value_counts().to_pylist()), key=lambda one: -one[0])
    shown = counted[: _LISTED if len(counted) > _FEW else _FEW]
    rest = sum(count for count, _ in counted[len(shown) :])
    total = max(len(values), 1)
    meters = [Meter(_shortened(value), 100 * n / total, f"{n / total:.1%}", says=f"{n:,} times") for n, value in shown]
    if rest:
        others = plural(len(counted) - len(shown), "other value")
        meters.append(Meter(others, 100 * rest / total, f"{rest / total:.1%}", tint="rest", says=f"{rest:,} times"))
    facts.append(("distinct values", f"{len(counted):,}"))
    return Distribution(column=name, type=str(kind), facts=tuple(facts), meters=tuple(meters))


def _shortened(value: object) -> str:
    text = f"{len(value):,} bytes" if isinstance(value, bytes) else str(value)
    return text if len(text) <= _VALUE_LETTERS else f"{text[:_VALUE_LETTERS]}..."


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.2%})" if count else "0"
