"""Figures of gates: equal to those of pandas and scikit-learn, for any division of the rows and any order of parts."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, roc_auc_score

from scorer.arrow import decode_schema
from scorer.errors import MissingColumns, OptionsError, TypeMismatch
from scorer.options.gates import parse_all
from scorer.scoring.gates import histogram, judging, sums
from scorer.scoring.gates.figures import value_of
from scorer.scoring.gates.measures import added, measured
from scorer.scoring.gates.names import Columns, bind
from scorer.scoring.gates.pairs import Places

ROWS = 4000


@pytest.fixture(scope="module")
def table():
    draw = np.random.default_rng(5)
    p = draw.beta(2, 8, ROWS).astype(np.float32)
    q = np.clip(p + draw.normal(0, 0.02, ROWS), 0, 1)
    q[7], p[11] = np.nan, np.nan
    late = [None if i % 97 == 0 else bool(draw.random() < p[i]) for i in range(ROWS)]
    label = ["late" if one > 0.25 else "on time" for one in p]
    other = [None if i % 500 == 0 else "late" if one > 0.25 else "on time" for i, one in enumerate(q)]
    n = pa.array(draw.integers(-50, 900, ROWS), pa.int32())
    return pa.table(
        {"p": p, "q": q, "late": late, "label": label, "other": pa.array(other).dictionary_encode(), "n": n}
    )


def figures(table, *gates, pieces=1, seed=0):
    """Return the values of the first figure of each gate, measured in so many pieces, added in a random order."""
    columns = Columns(output=table.schema, input=pa.schema([]), kept=())
    bound, problems = bind(parse_all(gates, ()), columns)
    assert problems == []
    draw = random.Random(seed)
    edges = sorted({0, table.num_rows, *(draw.randrange(table.num_rows + 1) for _ in range(pieces - 1))})
    parts = [
        measured(
            bound.measures,
            table.slice(low, high - low),
            Places(low, lambda rows, low=low: [("f", low + r) for r in rows]),
        )
        for low, high in itertools.pairwise(edges)
    ] or [measured(bound.measures, table, Places(0, lambda rows: [("f", r) for r in rows]))]
    draw.shuffle(parts)
    found = {one.key: added(one, [part[one.key] for part in parts]) for one in bound.measures}
    values = []
    for gate in bound.gates:
        figure = gate.figures[0]
        whole = figure.columns and figure.columns[0] in bound.whole
        values.append(value_of(figure, judging.measures_for(bound, figure), found, None, whole=bool(whole)))
    return values


def value(table, text, **options):
    return figures(table, f"{text} < 1", **options)[0].value


def test_figures_of_one_column_are_those_of_pandas(table):
    frame = table.to_pandas()
    p = frame["p"].astype(float)
    assert value(table, "mean(p)") == pytest.approx(p.mean(), rel=1e-14)
    assert value(table, "std(p)") == pytest.approx(p.std(), rel=1e-12)
    assert value(table, "std(n)") == pytest.approx(frame["n"].std(), rel=1e-12)
    assert (value(table, "min(p)"), value(table, "max(p)")) == (p.min(), p.max())
    assert value(table, "nan_rate(p)") == p.isna().mean()
    assert value(table, "null_rate(late)") == frame["late"].isna().mean()
    assert value(table, "null_rate(p)") == 0  # a NaN is no null
    assert value(table, "mean(late)") == pytest.approx(frame["late"].dropna().astype(float).mean(), rel=1e-14)
    assert value(table, "count()") == ROWS
    assert value(table, "count('p > 0.25')") == (p > 0.25).sum()
    assert value(table, """share('label = "late"')""") == (frame["label"] == "late").mean()
    for share in ("0", "0.01", "0.5", "0.99", "1"):
        for name in ("p", "n"):
            found, exact = figures(table, f"quantile({name}, {share}) < 1")[0], frame[name].dropna().astype(float)
            expected = np.quantile(exact, float(share), method="inverted_cdf")
            assert abs(found.value - expected) <= found.error <= abs(expected) / 2000


def test_figures_of_two_columns_are_those_of_pandas_and_scikit_learn(table):
    frame = table.to_pandas()
    both = frame[["p", "q"]].astype(float).dropna()
    assert value(table, "corr(p, q)") == pytest.approx(both["p"].corr(both["q"]), rel=1e-12)
    assert value(table, "max_diff(p, q)") == math.inf  # one of two scores is NaN
    kept = table.filter(pa.array(frame["p"].notna() & frame["q"].notna()))
    assert value(kept, "max_diff(p, q)") == (both["p"] - both["q"]).abs().max()
    label, other = frame["label"], frame["other"].astype(object)
    same = (label == other) | (label.isna() & other.isna())
    agreed = figures(table, "agree(label, other) < 1")[0]
    assert agreed.value == same.mean()
    counted = frame.assign(other=other.fillna("null")).groupby(["label", "other"]).size()
    assert {(a, "null" if b is None else b): n for a, b, n in agreed.pairs} == counted.to_dict()
    known = frame[frame["late"].notna()]
    truth, guess = known["late"].astype(int), (known["p"] > 0.25).astype(int)
    with_guess = table.append_column("guess", pa.array((frame["p"] > 0.25).astype(int)))
    found = figures(with_guess, "accuracy(late, guess) < 1")[0]
    assert found.value == accuracy_score(truth, guess)
    assert [[n for a, b, n in found.pairs if (a, b) == (t, g)] for t in (False, True) for g in (0, 1)] == [
        [n] for n in confusion_matrix(truth, guess).ravel().tolist()
    ]
    known = known[known["p"].notna()]
    area = figures(table, "auc(late, p) < 1")[0]
    assert abs(area.value - roc_auc_score(known["late"].astype(int), known["p"])) <= area.error < 0.001


def test_the_rows_that_differ_most_are_kept(table):
    frame = table.to_pandas()
    apart = (frame["p"].astype(float) - frame["q"]).abs()
    expected = apart.drop([7, 11]).nlargest(3).index.tolist()
    top = figures(table, "max_diff(p, q) < 1", pieces=9)[0].top
    assert [one["row"] for one in top] == [7, 11, *expected]  # where one is missing, then the largest differences
    assert [one["row"] for one in figures(table, "agree(label, other) < 1", pieces=9)[0].top] == (
        np.flatnonzero(frame["label"] != frame["other"].astype(object))[:5].tolist()
    )


GATES = [
    f"{one} < 1" for one in (
        "mean(p)", "std(q)", "min(n)", "quantile(p, 0.3)", "agree(label, other)", "corr(p, n)", "max_diff(p, q)",
        "auc(late, q)", "accuracy(late, n)", "count()", "nan_rate(q)", "agree(p, q)",
    )
]  # fmt: skip


@pytest.mark.parametrize(("pieces", "seed"), [(2, 0), (9, 1)])
def test_figures_do_not_depend_on_the_parts_or_their_order(table, pieces, seed):
    for one, found in zip(figures(table, *GATES), figures(table, *GATES, pieces=pieces, seed=seed), strict=True):
        assert (one.value, one.error, one.pairs, one.why) == (found.value, found.error, found.pairs, found.why)
        rows, rows_found = ([(row["row"], row["values"]) for row in both.top] for both in (one, found))
        assert rows == rows_found


def test_sums_are_exact_for_any_floats():
    draw = np.random.default_rng(1)
    wide = draw.normal(size=3000) * 10.0 ** draw.integers(-300, 300, 3000)
    edge = np.array([5e-324, 1e308, 1e308, -1e308, 0.0, -0.0, 2.0**-1022])
    for values in (wide, edge, draw.random(3000).astype(np.float32).astype(float)):
        other = draw.permutation(values)
        assert sums.fraction(sums.total(values)) == sum(map(Fraction, values.tolist()))
        assert sums.fraction(sums.products(values, other)) == sum(
            Fraction(a) * Fraction(b) for a, b in zip(values.tolist(), other.tolist(), strict=True)
        )
        assert sums.add(sums.total(values[:5]), sums.total(values[5:])) == sums.total(draw.permutation(values))


def test_a_histogram_keeps_every_number_within_its_bin():
    draw = np.random.default_rng(2)
    values = np.concatenate([draw.normal(size=500) * 10.0 ** draw.integers(-300, 300, 500), [0, -0.0, np.inf, -np.inf]])
    counted = histogram.count(values)
    assert counted.total == len(values)
    for number in values.tolist():
        low, high = histogram.bounds(int(histogram.count(np.array([number])).keys[0]))
        assert low <= number <= high
        assert high - low <= max(abs(number) / 1000, 5e-311) or math.isinf(number)
    again = histogram.Histogram.decode(counted.encode())
    assert (again.keys.tolist(), again.counts.tolist()) == (counted.keys.tolist(), counted.counts.tolist())


def test_psi_is_that_of_a_plain_computation():
    draw = np.random.default_rng(3)
    before, now = draw.normal(0, 1, 20_000), draw.normal(0.3, 1.2, 15_000)
    found = histogram.drift_of_numbers(histogram.count(before), histogram.count(now), (0, 0), whole=False)
    edges = [-np.inf, *np.quantile(before, np.arange(1, 10) / 10), np.inf]
    a, b = (np.histogram(one, edges)[0] / len(one) for one in (before, now))
    assert found.psi == pytest.approx(((b - a) * np.log(b / a)).sum(), rel=0.02)
    inner = [float(group.rpartition(" ")[2]) for group in found.groups[:-1]]
    a, b = (np.histogram(one, [-np.inf, *inner, np.inf])[0] / len(one) for one in (before, now))
    assert found.before == tuple(a)
    assert found.now == tuple(b)
    assert found.psi == pytest.approx(((b - a) * np.log(b / a)).sum(), rel=1e-12)


def test_groups_of_whole_numbers_have_whole_limits():
    labels = histogram.count(np.array([0.0, 0, 0, 1, 2]))
    found = histogram.drift_of_numbers(labels, histogram.count(np.array([0.0, 2])), (1, 0), whole=True)
    assert found.groups == ("up to 0", "0 to 1", "1 to 2", "missing")
    assert found.before == (3 / 6, 1 / 6, 1 / 6, 1 / 6)
    assert found.now == (1 / 2, 0, 1 / 2, 0)


def test_figures_that_cannot_be_computed_have_a_reason(table):
    empty = table.slice(0, 0)
    for text in ("mean(p)", "std(p)", "min(p)", "quantile(p, 0.5)", "nan_rate(p)", "agree(label, other)", "corr(p, q)",
                 "max_diff(p, q)", "auc(late, p)", "share('p > 1')"):  # fmt: skip
        found = figures(empty, f"{text} < 1")[0]
        assert found.value is None
        assert found.why
    assert value(empty, "count()") == 0
    assert "other than 0 and 1" in figures(table, "auc(n, p) < 1")[0].why
    constant = table.set_column(0, "p", pa.array(np.ones(ROWS)))
    assert value(constant, "corr(p, q)") is None
    assert value(constant, "std(p)") == 0


@pytest.mark.parametrize(
    ("text", "error", "hint"),
    [
        ("mean(pp) < 1", MissingColumns, "did you mean 'p'"),
        ("mean(label) < 1", TypeMismatch, "psi()"),
        ("agree(p, label) < 1", TypeMismatch, "choose another"),
        ("auc(label, p) < 1", TypeMismatch, "choose another"),
        ("psi(when, baseline=x) < 1", TypeMismatch, "choose another"),
        ("share('gone > 1') < 1", MissingColumns, "known"),
        ("share('p > ') < 1", OptionsError, "--gate"),
        ("share('label > 1') < 1", TypeMismatch, "put '…' around texts"),
    ],
)
def test_wrong_columns_are_refused(table, text, error, hint):
    table = table.append_column("when", pa.array([pd.Timestamp("2026-01-01")] * ROWS))
    _, problems = bind(parse_all((text, "mean(p) < 1"), ()), Columns(output=table.schema, input=pa.schema([]), kept=()))
    assert [type(problem) for problem in problems] == [error]
    assert problems[0].where == text
    assert hint in problems[0].hint


def test_a_dotted_name_is_a_column_of_one_of_several_models():
    output = pa.schema({"champion_p": pa.float32(), "challenger_p": pa.float32()})
    given = pa.schema({"late": pa.bool_(), "geo": pa.struct({"lat": pa.float64()})})
    gates = ("auc(late, challenger.p) - auc(late, champion.p) >= 0", "mean(geo.lat) < 1")
    bound, problems = bind(parse_all(gates, ()), Columns(output=output, input=given, kept=()))
    assert problems == []
    assert [figure.columns for gate in bound.gates for figure in gate.figures] == [
        ("late", "challenger_p"), ("late", "champion_p"), ("geo.lat",),
    ]  # fmt: skip
    assert decode_schema(bound.read).names == ["late", "geo.lat"]
