"""A request is checked without data: a valid one is built, and all errors of another are reported together."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorer.binding.request import expand
from scorer.cli.flags import options_of
from scorer.cli.main import main
from scorer.errors import OptionsError, PreflightError
from scorer.options.fields import FIELDS, GROUPS, KEYS, Options
from scorer.options.grammar import CONVERTERS, FeedText
from scorer.options.keywords import RequestArguments
from scorer.options.request import as_flags, build, read_toml
from scorer.options.values import parse_budget, parse_size, within_budget

BASE = {"input": "data", "model": "m.onnx"}


def problems_of(**values):
    with pytest.raises(PreflightError) as caught:
        build({**BASE, **values})
    assert all(isinstance(p, OptionsError) for p in caught.value.problems)
    return caught.value.problems


def problem_of(**values):
    (problem,) = problems_of(**values)
    return problem


def test_all_errors_are_reported_together():
    problems = problems_of(nope=1, batch_rows=0, device="", limit=-1, keep=5)
    assert len(problems) == 5
    with pytest.raises(PreflightError) as caught:
        build({"limitt": 1})
    assert [p.what.split()[-2:] for p in caught.value.problems] == [["option", "'limitt'"], ["was", "given"],
                                                                    ["was", "given"]]  # fmt: skip
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("wrong", "right"), [("limitt", "limit"), ("batchrows", "batch_rows"), ("imput", "input"),
                                              ("Feed", "feed"), ("outptu", "output")])  # fmt: skip
def test_a_misspelt_name_gets_a_suggestion(wrong, right):
    assert f"did you mean '{right}'?" in problem_of(**{wrong: 1}).hint


def test_a_name_like_no_other_gets_the_command_that_lists_all():
    assert problem_of(zzzzzz=1).hint == "scorer run --help lists the options"


def test_the_error_names_the_place_of_the_value():
    with pytest.raises(PreflightError, match=r"job\.toml, threads"):
        build({**BASE, "threads": "x"}, {"threads": "job.toml, threads"})


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 64 * 2**20), ("8MB", 8 * 10**6), (4096, 4096), ("1e0", None), ("1.5 KiB", 1536), ("2g", 2 * 10**9),
     ("7", 7), ("3 Gi", 3 * 2**30), ("1TB", 10**12), (" 5 kb ", 5000), ("1tib", 2**40), ("9B", 9)],
)  # fmt: skip
def test_sizes_are_read_as_written(text, size):
    if size is None:
        with pytest.raises(ValueError, match=text):
            parse_size(text)
    else:
        assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "MiB", "-5MiB", "5XB", "5 M B", "inf", "nan", "4095", "1KiB", 0, True, math.inf, [5]]
)
def test_an_invalid_size_is_refused(text):
    assert "part_bytes" in problem_of(part_bytes=text).what


@pytest.mark.parametrize(
    ("text", "amount"),
    [("0", (0, False)), ("10", (10, False)), ("1%", (0.01, True)), ("100%", (1, True)), ("0.5%", (0.005, True))],
)
def test_budgets_are_numbers_or_shares(text, amount):
    assert parse_budget(text) == amount
    assert build({**BASE, "max_bad_rows": text}).scoring.max_bad_rows == text


@pytest.mark.parametrize("text", ["", "-1", "1.5", "101%", "-1%", "x", "%", "nan", "nan%", "inf%", None, True, [1]])
def test_an_invalid_budget_is_refused(text):
    assert "max_bad_rows" in problem_of(max_bad_rows=text).what


@settings(max_examples=300)
@given(count=st.integers(0, 1000), total=st.integers(0, 1000), amount=st.integers(0, 100))
def test_a_budget_holds_exactly_up_to_its_amount(count, total, amount):
    assert within_budget(str(amount), count, total) == (count <= amount)
    assert within_budget(f"{amount}%", count, total) == (count * 100 <= amount * total)


@pytest.mark.parametrize(
    ("toml", "feed"),
    [
        ('feed = "x=f0..f27"', ("x=f0..f27",)),
        ('feed = ["x=a,b", "y=c"]', ("x=a,b", "y=c")),
        ('feed = {x = ["a,b", "c"], y = "d,e"}', (("x", ("a,b", "c")), "y=d,e")),
        ('[feed]\nx = ["a"]\n"y:0" = "b"', (("x", ("a",)), "y:0=b")),
        ('feed = [["x", ["a", "b"]]]', (("x", ("a", "b")),)),
    ],
)
def test_feeds_come_as_text_list_or_table(toml, feed):
    assert tuple(one.value for one in build(BASE | tomllib.loads(toml)).binding.feed) == feed


@pytest.mark.parametrize(
    "toml",
    ["feed = 5", "feed = [5]", "feed = [[]]", 'feed = [["x"]]', 'feed = [["x", 5]]', "feed = {x = 5}",
     "feed = {x = [5]}", '[[feed]]\nx = ["a"]', 'feed = [[5, ["a"]]]', "feed = true"],
)  # fmt: skip
def test_a_feed_of_another_form_is_refused(toml):
    with pytest.raises(PreflightError, match="'feed' is not valid"):
        build(BASE | tomllib.loads(toml))


WRONG = (None, True, 5, -1, 1.5, math.inf, math.nan, "", "x", [], [5], [[]], {}, {"x": 5}, [{}], object(), b"x")


@pytest.mark.parametrize("name", KEYS)
def test_no_value_of_any_kind_breaks_the_check(name):
    """Any value of TOML or Python is either valid or refused with an OptionsError."""
    for value in WRONG:
        try:
            got = build({**BASE, name: value})
        except PreflightError as error:
            problem = error.problems[0]
            assert name in problem.what.replace("-", "_") or name in problem.where.replace("-", "_")
        else:
            assert isinstance(got, Options)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("limit", 0, 0), ("limit", "5", 5), ("limit", 5.0, 5), ("limit", None, None), ("batch_rows", 1, 1),
        ("keep", "a, b", ("a", "b")), ("keep", "'a,b',c", ("a,b", "c")), ("keep", ["a", "b,c"], ("a", "b,c")),
        ("keep", "none", ("none",)), ("where", "a > 1", ("a > 1",)), ("where", ["a > 1", "b < 2"], ("a > 1", "b < 2")),
        ("part_bytes", "64MiB", 2**26), ("output", Path("o"), "o"), ("work_dir", "w", "w"), ("prefix", "", ""),
        ("max_bad_rows", 5, "5"), ("compression", "zstd", "zstd"), ("on_lossy", "warn", "warn"), ("row_id", True, True),
        ("input", [Path("a"), "b"], ("a", "b")), ("input", Path("a"), ("a",)),
    ],
)  # fmt: skip
def test_a_value_is_cleaned_to_its_fields_type(name, value, expected):
    assert build({**BASE, name: value}).to_dict()[name] == (list(expected) if name == "input" else expected)


@pytest.mark.parametrize("text", ["it's", "a,'b", "a 'b'", "'a'b"])
def test_a_keep_that_parses_only_in_part_is_refused(text):
    """Dropping the unparsed part would keep other columns without a warning."""
    assert problem_of(keep=text).where == "keep"


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"scheduler": "tcp://x:1", "cluster": "processes"}, "two clusters"),
        ({"workers": 2}, "--workers needs worker processes"),
        ({"workers": 2, "cluster": "synchronous"}, "--workers needs worker processes"),
        ({"adapt": "0:2"}, "--adapt needs worker processes"),
        ({"dashboard": True, "cluster": "synchronous"}, "has no dashboard"),
        ({"ahead": 2, "cluster": "synchronous"}, "--ahead needs workers"),
        ({"ahead": 2, "scheduler": "tcp://h:1"}, "--ahead needs workers"),
        ({"workers": 2, "adapt": "0:2", "cluster": "processes"}, "cannot be combined"),
        ({"file_rows": 5, "file_bytes": "1MiB"}, "cannot be combined"),
        ({"limit": 5, "new_only": True}, "cannot be combined"),
        ({"queue": "x", "walltime": "01:00:00"}, "'queue', 'walltime' can only be used with a job queue"),
    ],
)
def test_options_that_contradict_each_other_are_refused(values, word):
    assert word in problem_of(**values).what


def test_only_values_that_differ_from_the_defaults_are_shown():
    assert build(BASE).non_defaults() == {"input": ["data"], "model": "m.onnx"}
    defaults = {name: field.default for name, field in FIELDS.items()}
    assert build(BASE | defaults).non_defaults() == {"input": ["data"], "model": "m.onnx"}
    given = build({**BASE, "limit": 0, "tune": False, "keep": "all", "feed": "x=a"}).non_defaults()
    assert given == {"input": ["data"], "model": "m.onnx", "limit": 0, "tune": False, "feed": ("x=a",)}


def test_python_arguments_are_the_flags_without_the_output():
    assert set(RequestArguments.__annotations__) == set(FIELDS) - {"output"}


def test_to_dict_has_a_key_for_every_flag():
    assert tuple(build(BASE).to_dict()) == KEYS


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_explains_itself(name):
    text = FIELDS[name].metadata["help"]
    assert text.endswith(".")
    assert len(text) > 15
    assert name.islower()


def test_requests_are_frozen():
    options = build(BASE)
    for value in (options, *(getattr(options, group) for group in GROUPS)):
        name = dataclasses.fields(value)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, None)
        assert hash(value) is not None


def test_no_name_is_in_two_groups():
    assert len(FIELDS) == sum(len(dataclasses.fields(kind)) for kind in GROUPS.values())


@pytest.mark.parametrize(
    ("content", "word"), [(None, "does not exist"), (b"a = ", "cannot be read"), (b"\xff", "cannot be read")]
)
def test_a_job_file_that_cannot_be_read_is_refused(tmp_path, content, word):
    path = tmp_path / "job.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OptionsError, match=word):
        read_toml(path)


def test_a_job_file_is_a_request(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text('input = ["a", "b"]\nmodel = "m"\nlimit = 5\nkeep = ["x"]\n[feed]\nt = ["c"]\n', "utf-8")
    options = build(read_toml(path))
    assert options.non_defaults() == {
        "input": ["a", "b"],
        "model": "m",
        "limit": 5,
        "keep": ("x",),
        "feed": (("t", ("c",)),),
    }


def test_values_that_follow_from_others_are_not_among_the_requested_ones():
    options = build(BASE | {"transform": "made.up:f"})
    assert (options.cluster.cluster, options.cluster.threads) == ("processes", 1)
    assert options.non_defaults() == {"input": ["data"], "model": "m.onnx", "transform": "made.up:f"}
    given = build(BASE | {"transform": "made.up:f", "cluster": "processes", "threads": 1}).non_defaults()
    assert (given["cluster"], given["threads"]) == ("processes", 1)


def parsed_feeds(options):
    """Return the tensor, columns and converter of each feed."""
    feeds = [feed.split("xy", CONVERTERS) for feed in options.binding.feed]
    return [(tensor, expand(tokens, [f"f{i}" for i in range(4)]), call) for tensor, tokens, call in feeds]


@pytest.mark.parametrize(
    "given_values",
    [
        {"feed": {"x": ["a, b", "c", "f0", "f1", "f2", "f3"], "y": "text|text(tokenizer.json, max_length=8)"}},
        {"feed": {"x": ["a|vocab(u, w)"]}, "keep": ["it's, so", "a,b", "id", "x_*"], "fetch": ["p=q", "r"]},
        {
            "feed": ["x=f0..f27", "x='a, b'"],
            "where": ["day >= '2026-01-01'"],
            "limit": 0,
            "tune": False,
            "strict": True,
        },
        {"part_bytes": "1MiB", "batch_timeout": 1.5, "max_bad_rows": "5%", "on_null": ["x=0"], "row_id": True},
        {
            "cluster": "slurm",
            "workers": 3,
            "memory": "16GiB",
            "job_extra": ["--account=abc", "--mail 'x'"],
            "tls": False,
        },
    ],
)
def test_options_as_flags_give_the_same_options_again(given_values):
    options = build(BASE | given_values)
    for plain in (options.non_defaults(), json.loads(json.dumps(options.non_defaults()))):
        words = [word for flag in as_flags(plain) for word in flag]
        typed = main.commands["run"].make_context("run", ["data", "--model", "m.onnx", *words]).params
        again = options_of(None, {name: typed[name] for name in (*FIELDS, "input", "model")})
        assert parsed_feeds(again) == parsed_feeds(options)
        assert {**again.to_dict(), "feed": ()} == {**options.to_dict(), "feed": ()}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("x=a|text('t.json', max_length=5)", ("x", ["a"], "text")),
        ("x=vocab(p|q)", ("x", [], "vocab")),
        ("x=f(a)", ("x", ["f(a)"], None)),
        ("x=f(a)|text(t)", ("x", ["f(a)"], "text")),
        ("x=a|b|text(t)", ("x", [], None)),
        ("a|b=col|vocab('p|q(r)', s)", ("a|b", ["col"], "vocab")),
        ("x=a=const(5)", ("x", ["a=const(5)"], None)),
        ("z=a", (None, ["z=a"], None)),
    ],
)
def test_a_feed_is_parsed_whatever_the_tensor_is_called(text, parts):
    tensor, tokens, call = FeedText.parse(text).split(["x", "a|b"], CONVERTERS)
    assert (tensor, tokens, call and call.name) == parts
