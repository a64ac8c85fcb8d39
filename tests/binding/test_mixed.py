"""Columns side by side in one tensor, each through its own converter, against one column at a time."""

from __future__ import annotations

import datetime as dt
import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.echo import echo, fed
from support.strategies import chunked

import scorer
from scorer.binding.feeds import named_files
from scorer.cli.flags import options_of
from scorer.cli.main import main
from scorer.errors import ScorerError
from scorer.options.fields import FIELDS
from scorer.options.grammar import CONVERTERS, FeedText
from scorer.options.request import as_flags, build, read_toml

BASE = {"input": "data", "model": "m.onnx"}
ORDERS = {
    "age": pa.array([30, None, 50], pa.int64()),
    "price": pa.array([1.5, 2.5, -1.0]),
    "signup": pa.array([dt.date(2026, 1, 1), dt.date(1969, 12, 31), dt.date(1970, 1, 2)]),
    "seen": pa.array(
        [dt.datetime(2025, 12, 31, 23, tzinfo=dt.UTC), dt.datetime(1970, 1, 1, tzinfo=dt.UTC), None],
        pa.timestamp("us", "Europe/Berlin"),
    ),
    "channel": pa.array(["web", "shop", "app"]).dictionary_encode(),
    "member": pa.array([True, None, False]),
    "floor": pa.array([1, 2, 1], pa.int8()),
}
NAN = math.nan


@pytest.fixture(autouse=True)
def _released():
    yield
    scorer.release()


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Return the path of a model that returns a tensor X of this type, of any width."""
    folder = tmp_path_factory.mktemp("echo")
    return lambda dtype="float64": echo(folder / f"{dtype}.onnx", X=(dtype, "F"))


def same(rows, expected):
    """Whether all values are equal, NaN included."""
    np.testing.assert_array_equal(np.array(list(rows.values()), float), np.array(expected, float))
    return list(rows) == list(range(len(expected)))


def test_each_column_goes_through_its_own_converter(model):
    feed = "X=age,price,signup|epoch(d),channel|vocab(web, app, shop)"
    rows, bad = fed(ORDERS, model(), feed)
    assert bad == {}
    assert same(rows, [[30, 1.5, 20454, 0], [NAN, 2.5, -1, 2], [50, -1.0, 1, 1]])


@pytest.mark.parametrize(
    ("feed", "expected"),
    [
        ("X=signup,seen|epoch(d)", [[20454, 20453 + 23 / 24], [-1, 0], [1, NAN]]),
        ("X=age,signup|epoch(d)", [[30, 20454], [NAN, -1], [50, 1]]),
        ("X=floor,channel|vocab(web, app, shop)", [[1, 0], [2, 2], [1, 1]]),
        ("X=member,age,channel|vocab(web, app, shop)", [[1, 30, 0], [NAN, NAN, 2], [0, 50, 1]]),
        ("X=(floor,age)|vocab(1, 2, 30, 50),price", [[0, 2, 1.5], [1, NAN, 2.5], [0, 3, -1]]),
        ("X=price,(floor)|vocab(1, 2)", [[1.5, 0], [2.5, 1], [-1, 0]]),
        ("X=age,(floor)|vocab(1, 2)", [[30, 0], [NAN, 1], [50, 0]]),
        ("X=signup|epoch(d),signup|epoch(h),age", [[20454, 490896, 30], [-1, -24, NAN], [1, 24, 50]]),
        ("X=s*|epoch(d),flo*", [[20454, 20453 + 23 / 24, 1], [-1, 0, 2], [1, NAN, 1]]),
        ({"X": ["age", "signup|epoch(d)"]}, [[30, 20454], [NAN, -1], [50, 1]]),
        ({"X": ["floor", "floor|vocab(1, 2)"]}, [[1, 0], [2, 1], [1, 0]]),
    ],
)
def test_a_converter_belongs_to_the_columns_before_it(feed, expected, model):
    rows, bad = fed(ORDERS, model(), feed)
    assert (bad, same(rows, expected)) == ({}, True)


def test_a_single_converter_at_the_end_that_could_be_meant_either_way_is_refused_with_both_spellings(model):
    with pytest.raises(ScorerError) as error:
        fed(ORDERS, model(), "X=age,floor|vocab(1, 2)")
    assert "--feed 'X=(age,floor)|vocab(1, 2)' for all, or --feed 'X=age,(floor)|vocab(1, 2)' for the last" in str(
        error.value
    )


@pytest.mark.parametrize(
    ("feed", "words"),
    [
        ("X=age,signup", ["'signup' cannot become float64", "write signup|epoch(s) in the list"]),
        ("X=age,channel|text(t.json),price", ["text(...) cannot be one of several columns"]),
        ("X=age,signup|epok(d),price", ["there is no converter 'epok'", "did you mean 'epoch'?"]),
        ("X=age,gone|epoch(d),price", ["columns that the input does not have: 'gone'"]),
        ("X=age,signup|epoch(d", ["cannot be understood"]),
        ("X=age,(signup,seen|epoch(d)", ["columns that the input does not have: '(signup'"]),
        ("X=price|epoch(d),age", ["epoch(...) cannot read column 'price'"]),
        ("X=signup|epoch(d)|epoch(h),age", ["cannot be understood"]),
        ("X=age,signup|epoch(fortnight),price", ["epoch needs a unit"]),
    ],
)
def test_a_list_that_cannot_be_fed_is_one_clear_error(feed, words, model):
    with pytest.raises(ScorerError) as error:
        fed(ORDERS, model(), feed)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_bad_row_is_reported_once_with_its_first_bad_column(model):
    table = {"channel": ["web", "fax", None], "day": pa.array([None, None, dt.date(1970, 1, 2)]), "n": [1, None, 3]}
    rows, bad = fed(table, model("int64"), "X=n,channel|vocab(web, app),day|epoch(d)", on_null="error")
    assert rows == {}
    assert bad == {
        0: "null in column 'day' (tensor 'X')",
        1: "'fax' in column 'channel' is not in the vocabulary of 'X'",
        2: "null in column 'channel' (tensor 'X')",
    }


def test_a_null_constant_and_lossy_values_count_in_every_part(model):
    table = {"n": [2**24 + 1, 5, None], "t": pa.array([2**24 * 1000 + 1, None, 1000], pa.timestamp("ms"))}
    rows, bad = fed(table, model("float32"), "X=n,t|epoch(s)", on_null="-7")
    assert rows == {1: [5, -7], 2: [-7, 1]}
    assert "cannot be stored exactly as float32" in bad[0]
    rows, bad = fed(table, model("float32"), "X=n,t|epoch(s)", on_null="-7", on_lossy="warn")
    assert (rows, bad) == ({0: [2**24, 2**24], 1: [5, -7], 2: [-7, 1]}, {})


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("x=a,b|epoch(d),c|vocab(p, 'q,r')", [(("a",), None), (("b",), "epoch"), (("c",), "vocab")]),
        ("x=(a,'b,c')|epoch(d),'d|e'", [(("a", "b,c"), "epoch"), (("d|e",), None)]),
        ("x=f0..f3,g*|epoch(d),(f4)|vocab(1,2)", [(("f0..f3",), None), (("g*",), "epoch"), (("f4",), "vocab")]),
        ("x=a|epoch(d),price (EUR)", [(("a",), "epoch"), (("price (EUR)",), None)]),
        ("a|b=c|vocab('p|q(r)', s),d", [(("c",), "vocab"), (("d",), None)]),
        ("x=a,b", []),
        ("x=a|epoch(d),", []),
        ("x=a b,c,,d|epoch(d)", []),
    ],
)
def test_a_list_is_parsed_item_by_item(text, items):
    found = FeedText.parse(text).items(["x", "a|b"])
    assert [(item.tokens, item.call and item.call.name) for item in found] == items


@pytest.mark.parametrize(
    ("text", "columns"),
    [("x=a,b|vocab(x, y)", ["a", "b"]), ("x=f(a)|text(t)", ["f(a)"]), ("x=const(1, 2)", [])],
)
def test_a_feed_with_one_converter_at_its_end_is_parsed_as_before(text, columns):
    tensor, tokens, call = FeedText.parse(text).split(["x"], CONVERTERS)
    assert (tensor, tokens, call is None) == ("x", columns, False)


@pytest.mark.parametrize(
    "feed",
    [
        {"X": ["a, b", "day|epoch(d)", "c|vocab(p, q)"]},
        {"X": ["day|epoch(d)", "it's"]},
        {"X": "a,day|epoch(d),c"},
        ["X=(a,b)|epoch(d),c"],
    ],
)
def test_a_list_with_converters_is_written_as_flags_that_give_it_again(feed):
    options = build(BASE | {"feed": feed})
    given = json.loads(json.dumps(options.non_defaults()))
    words = [word for flag in as_flags(given) for word in flag]
    typed = main.commands["run"].make_context("run", ["data", "--model", "m.onnx", *words]).params
    again = options_of(None, {name: typed[name] for name in (*FIELDS, "input", "model")})
    first, second = (
        [(item.tokens, item.call) for feed in one.binding.feed for item in feed.items(["X"])]
        for one in (options, again)
    )
    assert first == second != []


def test_each_vocabulary_file_of_a_job_is_found_beside_it_and_belongs_to_the_request(tmp_path):
    folder = tmp_path / "my, job's"
    folder.mkdir()
    for name in ("w.txt", "v.txt"):
        (folder / name).write_text("red\ngreen\n")
    texts = ['"X=n,a|vocab(w.txt),b|vocab(v.txt, unknown=7)"', '{X = ["n", "a|vocab(w.txt)", "b|vocab(v.txt)"]}']
    for text in texts:
        (folder / "job.toml").write_text(f'input = "in"\nmodel = "m"\nfeed = {text}\n')
        empty = dict.fromkeys((*FIELDS, "input", "model"))
        feeds = options_of(str(folder / "job.toml"), empty).binding.feed
        assert set(named_files(feeds)) == {str(folder / "w.txt"), str(folder / "v.txt")}
    assert read_toml(folder / "job.toml")["feed"] == {"X": ["n", "a|vocab(w.txt)", "b|vocab(v.txt)"]}


WORDS = ["web", "app", "shop"]
KINDS = {
    "int": (pa.int32(), st.integers(-(2**20), 2**20), None),
    "float": (pa.float64(), st.floats(-1e6, 1e6, width=32), None),
    "bool": (pa.bool_(), st.booleans(), None),
    "date": (pa.date32(), st.dates(), "epoch(d)"),
    "zoned": (pa.timestamp("s", "Europe/Berlin"), st.datetimes(timezones=st.just(dt.UTC)).map(
        lambda moment: moment.replace(microsecond=0)), "epoch(s)"),
    "word": (pa.dictionary(pa.int8(), pa.string()), st.sampled_from([*WORDS, "fax"]), "vocab(web, app, shop)"),
}  # fmt: skip


def by_hand(kind, value):
    """What one value becomes; None for a null, an error's word if it cannot be fed."""
    if value is None:
        return NAN
    if kind == "date":
        return float((value - dt.date(1970, 1, 1)).days)
    if kind == "zoned":
        return float((value - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(seconds=1))
    return float(WORDS.index(value)) if kind == "word" and value in WORDS else value if kind == "word" else float(value)


@settings(max_examples=60)
@given(data=st.data(), batch_rows=st.integers(1, 9))
def test_any_mix_is_what_its_columns_are_one_by_one(data, batch_rows, model):
    kinds = data.draw(st.lists(st.sampled_from(list(KINDS)), min_size=2, max_size=6))
    rows = data.draw(st.integers(0, 12))
    columns, values, items = {}, [], []
    for i, kind in enumerate(kinds):
        of, some, converter = KINDS[kind]
        column, _ = data.draw(chunked(of, some))
        padded = (column.to_pylist() + [None] * rows)[:rows]
        columns[f"c {i}"] = pa.chunked_array([pa.array(padded[: rows // 2], of), pa.array(padded[rows // 2 :], of)])
        values.append([by_hand(kind, value) for value in padded])
        items.append(f"c {i}" + (f"|{converter}" if converter else ""))
    found, bad = fed(columns, model(), {"X": items}, batch_rows=batch_rows)
    expected = list(zip(*values, strict=True)) if rows else []
    wrong = {i for i, row in enumerate(expected) if any(isinstance(value, str) for value in row)}
    assert set(bad) == wrong
    good = {i: list(row) for i, row in enumerate(expected) if i not in wrong}
    assert list(found) == list(good)
    np.testing.assert_array_equal(np.array(list(found.values()), float), np.array(list(good.values()), float))
