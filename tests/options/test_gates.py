"""The grammar of --gate: what is read, and where an error points."""

from __future__ import annotations

import pytest

from scorer.errors import OptionsError, PreflightError
from scorer.options.fields import FIELDS
from scorer.options.gates import FUNCTIONS, beside, parse
from scorer.options.request import build


@pytest.mark.parametrize(
    ("text", "figures", "limit"),
    [
        ("psi(p, baseline=s3://b/out) <= 0.2", ["psi(p, baseline=s3://b/out)"], "<= 0.2"),
        ("mean(p) between 0.05 and 0.2", ["mean(p)"], "between 0.05 and 0.2"),
        ("MEAN(p)".lower() + "BETWEEN -1 AND 1e-3", ["mean(p)"], "between -1 and 1e-3"),
        ("quantile( p ,0.99 )<1", ["quantile(p, 0.99)"], "< 1"),
        ("nan_rate(p) = 0", ["nan_rate(p)"], "== 0"),
        ("agree(champion.label, 'my label') >= .98", ["agree(champion.label, 'my label')"], ">= .98"),
        ("auc(y, b.p) - auc(y, a.p) + 0.5 > 0", ["auc(y, b.p)", "auc(y, a.p)"], "> 0"),
        ("""share('label == "x"') < 1""", ["""share('label == "x"')"""], "< 1"),
        ("""share("kind = 'a'") != 1""", ["share('kind = ''a''')"], "!= 1"),
        ("count() >= 10", ["count()"], ">= 10"),
        ("count('p > 1') == 0", ["count('p > 1')"], "== 0"),
        ("-mean(größe) < 0", ["mean(größe)"], "< 0"),
        ("psi(p, baseline='with space, and comma') < 1", ["psi(p, baseline='with space, and comma')"], "< 1"),
    ],
)
def test_a_gate_is_read(text, figures, limit):
    gate = parse(text)
    assert [*map(str, gate.figures)] == figures
    assert gate.limit == limit
    for figure in gate.figures:  # what is shown can be read again
        assert parse(f"{figure} < 1").figures == (figure,)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("psi(p baseline=x) <= 0.2", 6),
        ("psi(p, x) <= 0.2", 7),
        ("psi(p, baseline=) <= 0.2", 16),
        ("meen(p) < 1", 0),
        ("mean(p)", 7),
        ("mean(p) <", 9),
        ("mean(p) < x", 10),
        ("mean(p) << 1", 9),
        ("mean(p) between 2 and 1", 23),
        ("mean(p) between 2 or 1", 18),
        ("mean(p) < 1 and mean(p) > 0", 12),
        ("mean(p, q) < 1", 6),
        ("mean(p < 1", 7),
        ("mean() < 1", 5),
        ("quantile(p, 2) < 1", 12),
        ("share(p) < 1", 6),
        ("1 < 2", 0),
        ("", 0),
        ("mean(p) + < 1", 10),
    ],
)
def test_an_error_points_at_the_place(text, place):
    with pytest.raises(OptionsError) as caught:
        parse(text)
    assert caught.value.where == text
    assert caught.value.expected.index("^") == place
    assert caught.value.hint


def test_a_long_gate_is_cut_around_the_place():
    text = f"mean({'x' * 100}) << 1"
    with pytest.raises(OptionsError) as caught:
        parse(text)
    error = caught.value
    assert len(error.where) == 60
    assert error.where[error.expected.index("^") :] == "< 1"


def test_the_baselines_of_a_job_file_are_relative_to_it():
    assert beside("psi(p, baseline=out) < 1", "/jobs") == "psi(p, baseline=/jobs/out) < 1"
    assert beside("psi(p, baseline=../a) - psi(p, baseline='b c') < 1", "/j") == (
        "psi(p, baseline=/j/../a) - psi(p, baseline='/j/b c') < 1"
    )
    assert beside("psi(p, baseline=s3://b/out) < 1", "/jobs") == "psi(p, baseline=s3://b/out) < 1"
    assert beside("no gate", "/jobs") == "no gate"


def test_all_gates_of_a_request_are_checked_and_are_no_part_of_the_scores():
    with pytest.raises(PreflightError) as caught:
        build({"input": "a", "model": "m", "gate": ["mean(p) < 1", "mean("], "gate_warn": "x"})
    assert [problem.exit_code for problem in caught.value.problems] == [2, 2]
    assert "--gate-warn" in caught.value.problems[1].what
    assert not any(FIELDS[name].metadata["scores"] for name in ("gate", "gate_warn"))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_hint_of_a_function_can_be_typed(function):
    with pytest.raises(OptionsError) as caught:
        parse(f"{function} < 1")
    example = caught.value.hint.partition('"')[2].rstrip('"')
    assert parse(example).figures[0].function == function
