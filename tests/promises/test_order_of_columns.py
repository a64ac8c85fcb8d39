"""Columns feed a tensor in an order that something confirms: the model's names, numbers, or your flag."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest
from support.runs import MODELS, cli, oracle, read, write

import scorer
from scorer.errors import PreflightError

DENSE, SUM, NAMED = MODELS / "dense28.onnx", MODELS / "sum3.onnx", MODELS / "named3.onnx"
NUMBERED = [f"f{i}" for i in range(28)]
ROWS = 50
VALUES = np.random.default_rng(3).standard_normal((ROWS, 28)).astype(np.float32)


@pytest.fixture
def lexical(tmp_path):
    """f0, f1, f10, f11, ..., f2, f20, ...: the order of a folder listing or of sorted texts."""
    return write(tmp_path / "in.parquet", {name: VALUES[:, int(name[1:])] for name in sorted(NUMBERED)})


@pytest.fixture
def letters(tmp_path):
    return write(tmp_path / "in.parquet", {name: VALUES[:, i] for i, name in enumerate("zyx")})


def run(source, model, *flags):
    """Run the command line; return the exit code, the output's scores in rows, and the text of errors and notes."""
    output = source.parent / "out"
    code, *texts = cli("run", source, "--model", model, "--output", output, "--cluster", "synchronous", *flags)
    scores = read(output).to_pandas().to_numpy()[:, -1] if output.exists() else None
    return code, scores, "".join(texts)


def expected(order):
    matrix = np.stack([VALUES[:, int(name[1:])] for name in order], axis=1)
    return next(iter(oracle(DENSE, {"input": matrix}).values())).reshape(ROWS, -1)[:, -1]


def test_columns_that_are_not_in_the_order_of_their_numbers_are_refused_and_either_order_can_be_pasted(lexical):
    code, scores, text = run(lexical, DENSE)
    assert (code, scores) == (3, None)
    lines = re.findall(r"--feed '[^']+'", text.replace("\n", " "))
    assert len(lines) == 2
    for line, order in zip(lines, [NUMBERED, sorted(NUMBERED)], strict=True):
        code, scores, _ = run(lexical, DENSE, *shlex.split(line), "--overwrite")
        assert code == 0
        np.testing.assert_allclose(scores, expected(order), rtol=1e-5)


def test_a_glob_feeds_numbered_columns_in_the_order_of_their_numbers(lexical):
    code, scores, text = run(lexical, DENSE, "--feed", "input=f*")
    assert code == 0
    np.testing.assert_allclose(scores, expected(NUMBERED), rtol=1e-5)
    assert text.count("by a glob") == 1


@pytest.mark.parametrize("names", [sorted(NUMBERED), [f"{name}_" for name in NUMBERED]])
def test_strict_refuses_a_glob_whose_order_nothing_confirms(tmp_path, names):
    source = write(tmp_path / "in.parquet", dict.fromkeys(names, VALUES[:, 0]))
    code, scores, text = run(source, DENSE, "--feed", "input=f*", "--strict")
    assert (code, scores) == (3, None)
    assert "by a glob" in text
    assert run(source, DENSE, "--feed", "input=" + ",".join(names), "--strict")[0] == 0


def test_strict_accepts_a_glob_of_columns_in_the_order_of_their_numbers(tmp_path):
    source = write(tmp_path / "in.parquet", {name: VALUES[:, i] for i, name in enumerate(NUMBERED)})
    code, scores, _ = run(source, DENSE, "--feed", "input=f*", "--strict")
    assert code == 0
    np.testing.assert_allclose(scores, expected(NUMBERED), rtol=1e-5)


def test_columns_without_an_order_need_a_feed_or_by_position_which_the_plan_says_once(letters, tmp_path):
    code, scores, text = run(letters, SUM)
    assert (code, scores) == (3, None)
    assert "--feed 'x=z,y,x'" in text
    assert "--by-position" in text
    code, scores, text = run(letters, SUM, "--by-position")
    assert code == 0
    assert text.count("by position") == 1
    np.testing.assert_allclose(scores, VALUES[:, :3].sum(axis=1), rtol=1e-5)
    assert [n for n in scorer.prepare(letters, SUM, tmp_path / "other", by_position=True).notes if "by position" in n]
    strict = scorer.prepare(letters, SUM, tmp_path / "other", by_position=True, strict=True)
    assert "by position" in strict.problems[0].what


def test_inspect_shows_the_order_that_by_position_would_feed(letters):
    assert cli("inspect", SUM, "--input", letters)[0] == 3
    code, text, _ = cli("inspect", SUM, "--input", letters, "--by-position")
    assert code == 0
    assert "--feed 'x=z,y,x'" in text


def test_a_frame_is_fed_by_position_only_on_request(letters):
    frame = read(letters.parent).to_pandas()
    with pytest.raises(PreflightError, match="--by-position"):
        scorer.score(frame, SUM)
    scored = scorer.score(frame, SUM, by_position=True)
    np.testing.assert_allclose(scored["total"], VALUES[:, :3].sum(axis=1), rtol=1e-5)


def test_a_glob_follows_the_feature_names_of_the_model(tmp_path):
    source = write(tmp_path / "in.parquet", {name: VALUES[:, i] for i, name in enumerate("cab")})
    plan = scorer.prepare(source, NAMED, tmp_path / "out", feed="x=*", strict=True)
    assert plan.problems == ()
    assert plan.frozen.feeds[0].columns == ("a", "b", "c")
