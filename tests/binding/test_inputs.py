"""Columns are matched automatically if that is safe, or by --feed; else the error shows a --feed to paste."""

from __future__ import annotations

import re
import shlex

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs import MODELS
from support.small_specs import floats, model, tensor

from scorer.binding.inputs import bind, shapes
from scorer.binding.outputs import Kept, kept_of
from scorer.binding.request import expand
from scorer.binding.spec import ASKED, BY_GLOB, BY_NUMBERS, BY_POSITION
from scorer.errors import BindingError, MissingColumns, OptionsError, ShapeMismatch, TypeMismatch, UnsupportedTensor
from scorer.model.protobuf import inspect_model
from scorer.options.request import build


def schema(**columns):
    return pa.schema(list(columns.items()))


def binding_options(**options):
    """Return the binding options of a request."""
    return build({"input": "-", "model": "-", **options}).binding


def bound(spec, columns, **options):
    """Return the binding, which must have no problems."""
    binding, problems = bind(binding_options(**options), spec, columns)
    assert problems == []
    return binding


def refused(spec, columns, **options):
    """Return the only problem of a binding."""
    _, (problem,) = bind(binding_options(**options), spec, columns)
    return problem


def fed(spec, columns, **options):
    return {feed.tensor: feed.columns for feed in bound(spec, columns, **options).feeds}


def test_the_models_own_feature_names_win_over_the_files_order():
    spec = inspect_model(MODELS / "named3.onnx")
    assert fed(spec, floats("c", "x1", "b", "a")) == {"x": ("a", "b", "c")}


def test_a_feature_name_that_is_missing_is_named():
    problem = refused(inspect_model(MODELS / "named3.onnx"), floats("a", "b", "d"))
    assert isinstance(problem, MissingColumns)
    assert "'c'" in problem.what


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float64(), 3), pa.large_list(pa.int16())])
def test_one_list_column_of_the_width_is_the_matrix(kind):
    (feed,) = bound(model(), schema(id=pa.int64(), v=kind, text=pa.string())).feeds
    assert (feed.kind, feed.columns, feed.shape) == ("nested", ("v",), (3,))


def test_a_list_of_another_fixed_size_is_not_matched():
    columns = schema(v=pa.list_(pa.float32(), 4), c0=pa.float32(), c1=pa.float32(), c2=pa.float32())
    assert fed(model(), columns) == {"x": ("c0", "c1", "c2")}


def test_a_list_of_texts_is_not_matched():
    columns = schema(v=pa.list_(pa.string()), c0=pa.float32(), c1=pa.float32(), c2=pa.float32())
    assert fed(model(), columns) == {"x": ("c0", "c1", "c2")}


def test_two_lists_that_fit_are_no_safe_match():
    kind = pa.list_(pa.float32(), 3)
    problem = refused(model(), schema(v=kind, w=kind))
    assert isinstance(problem, ShapeMismatch)
    assert "2 lists that fit" in problem.found


@pytest.mark.parametrize(
    "names", [("c0", "c1", "c2"), ("f08", "f09", "f10"), ("9", "10", "11"), ("x_1_7", "x_1_8", "x_1_10")]
)
def test_as_many_numbered_floats_as_the_width_are_fed_in_the_order_of_file_and_numbers(names):
    columns = pa.schema([("id", pa.int64()), *zip(names, (pa.float64(), pa.float32(), pa.float16()), strict=True)])
    (feed,) = bound(model(), columns).feeds
    assert (feed.columns, feed.rule) == (names, BY_POSITION)


@pytest.mark.parametrize(
    ("names", "pastes"),
    [
        (("c1", "c10", "c2"), ["x=c1,c2,c10", "x=c1,c10,c2"]), (("c2", "c1", "c0"), ["x=c0..c2", "x=c2,c1,c0"]),
        (("10", "9", "8"), ["x=8..10", "x=10,9,8"]), (("c07", "c010", "c9"), ["x=c07,c9,c010", "x=c07,c010,c9"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("by_position", [False, True])
def test_floats_that_are_not_in_the_order_of_their_numbers_are_refused_with_a_line_for_each_order(
    names, pastes, by_position
):
    problem = refused(model(), floats(*names), by_position=by_position)
    assert isinstance(problem, BindingError)
    lines = re.findall(r"--feed '(.+?)'", problem.hint)
    assert lines == pastes
    orders = [fed(model(), floats(*names), feed=(line,))["x"] for line in lines]
    assert orders == [tuple(sorted(names, key=lambda name: int(name.strip("c")))), names]


@pytest.mark.parametrize(
    "names",
    [
        ("c", "a", "b"), ("a0", "b1", "c2"), ("c0", "c1", "d"), ("c", "c1", "c2"), ("c1", "c01", "c2"),
        ("c¹", "c²", "c³"), ("0c", "1c", "2c"),
    ],
)  # fmt: skip
def test_floats_whose_names_say_no_order_are_fed_by_position_only_on_request(names):
    problem = refused(model(), floats(*names))
    assert isinstance(problem, BindingError)
    assert "--by-position" in problem.hint
    _, paste = shlex.split(problem.hint[problem.hint.index("--feed") : problem.hint.index(", with")])
    assert fed(model(), floats(*names), feed=(paste,)) == {"x": names}
    (feed,) = bound(model(), floats(*names), by_position=True).feeds
    assert (feed.columns, feed.rule) == (names, BY_POSITION)


def test_one_float_column_has_only_one_order():
    assert fed(model(tensor("x", shape=("N", 1))), floats("amount")) == {"x": ("amount",)}


def test_integers_that_may_be_fed_are_shown_in_the_order_of_their_numbers():
    columns = schema(c1=pa.int64(), c10=pa.int64(), c2=pa.int64())
    assert refused(model(), columns).hint.endswith("--feed 'x=c1,c2,c10'")


@pytest.mark.parametrize(
    ("names", "globs", "columns", "rule"),
    [
        (("c1", "c10", "c2"), "c*", ("c1", "c2", "c10"), BY_NUMBERS),
        (("c1", "c2", "c10"), "c*", ("c1", "c2", "c10"), ASKED),
        (("b", "c", "a"), "*", ("b", "c", "a"), BY_GLOB),
        (("a2", "b1", "a1"), "*", ("a2", "b1", "a1"), BY_GLOB),
        (("a2", "b", "a1"), "a*,b", ("a1", "a2", "b"), BY_NUMBERS),
        (("a2", "b", "a1"), "b,a2,a1", ("b", "a2", "a1"), ASKED),
        (("a", "b", "c"), "c*,a*,b*", ("c", "a", "b"), ASKED),
        (("c1", "c10", "c2"), "c10,c2,c1", ("c10", "c2", "c1"), ASKED),
    ],
)
def test_a_glob_is_fed_in_the_order_of_the_numbers_or_else_of_the_input(names, globs, columns, rule):
    (feed,) = bound(model(), floats(*names), feed=(f"x={globs}",)).feeds
    assert (feed.columns, feed.rule) == (columns, rule)


def test_a_glob_is_fed_in_the_order_of_the_models_own_feature_names():
    spec = model(features=("a2", "b", "a1"))
    (feed,) = bound(spec, floats("a1", "a2", "b", "z"), feed=("x=a*,b",)).feeds
    assert (feed.columns, feed.rule) == (("a2", "a1", "b"), ASKED)


@pytest.mark.parametrize("names", ["ab", "abcd"])
def test_another_number_of_floats_is_an_error_with_a_feed_to_paste(names):
    columns = pa.schema([("id", pa.int64()), *((n, pa.float32()) for n in names)])
    problem = refused(model(), columns)
    assert isinstance(problem, ShapeMismatch)
    paste = re.search(r"--feed '(.+?)'", problem.hint)[1]
    if len(names) < 3:  # three with the integer column, which is still no safe match
        assert paste == "x=id,a,b"
    assert fed(model(), columns, feed=(paste,))["x"]


def test_twenty_seven_floats_and_an_integer_are_no_safe_match():
    spec = inspect_model(MODELS / "dense28.onnx")
    columns = pa.schema([("id", pa.int64()), *((f"f{i}", pa.float32()) for i in range(27))])
    problem = refused(spec, columns)
    assert isinstance(problem, ShapeMismatch)
    paste = re.search(r"--feed '(.+?)'", problem.hint)[1]
    assert len(fed(spec, columns, feed=(paste,))["input"]) == 28


def test_a_paste_with_awkward_names_can_be_pasted():
    columns = pa.schema([("id", pa.int64()), ("a,b", pa.float32()), ("c d", pa.float32())])
    problem = refused(model(), columns)
    _, paste = shlex.split(problem.hint[problem.hint.index("--feed") :])
    assert fed(model(), columns, feed=(paste,)) == {"x": ("id", "a,b", "c d")}


def test_one_input_of_one_column_takes_the_column_of_its_name():
    spec = model(tensor("amount", shape=("N", 1)))
    assert fed(spec, floats("other", "amount", "more")) == {"amount": ("amount",)}


def test_several_inputs_are_fed_by_name():
    spec = inspect_model(MODELS / "percolumn.onnx")
    columns = schema(petal_length=pa.float32(), b=pa.int32(), a=pa.float64(), z=pa.float32())
    assert fed(spec, columns) == {"a": ("a",), "b": ("b",), "petal_length": ("petal_length",)}


@pytest.mark.parametrize("name", ["Petal_Length", "PETAL_LENGTH", "petal length", "Petal Length", "petal.length"])
def test_several_inputs_are_fed_without_case_and_with_spaces_as_underscores(name):
    spec = inspect_model(MODELS / "percolumn.onnx")
    columns = pa.schema([("A", pa.float32()), ("b", pa.int64()), (name, pa.float32())])
    assert fed(spec, columns) == {"a": ("A",), "b": ("b",), "petal_length": (name,)}


def test_an_exact_name_wins_over_one_without_case():
    spec = model(tensor("a", shape=("N", 1)), tensor("b", shape=("N", 1)))
    assert fed(spec, floats("A", "a", "B")) == {"a": ("a",), "b": ("B",)}


def test_two_names_that_differ_in_case_are_no_safe_match():
    spec = model(tensor("ab", shape=("N", 1)), tensor("c", shape=("N", 1)))
    problem = refused(spec, floats("AB", "aB", "c"))
    assert isinstance(problem, MissingColumns)
    assert "--feed 'ab=" in problem.hint


def test_every_input_without_a_column_is_reported():
    spec = inspect_model(MODELS / "percolumn.onnx")
    _, problems = bind(binding_options(), spec, floats("x", "y"))
    assert [type(p) for p in problems] == [MissingColumns] * 3


COLUMNS = pa.schema(
    [(f"f{i}", pa.float32()) for i in range(28)]
    + [(f"z{i:02}", pa.float32()) for i in range(12)]
    + [(n, pa.float32()) for n in ("a", "b", "c", "a b", "a,b", "it's", "x*", "f0..f2", "[q]", "=", "x_1", "x_2")]
)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("x=a,b,c", ("a", "b", "c")),
        ("x = c , b,a", ("c", "b", "a")),
        ("x=f0..f27", tuple(f"f{i}" for i in range(28))),
        ("x=f9..f11", ("f9", "f10", "f11")),
        ("x=z00..z11", tuple(f"z{i:02}" for i in range(12))),
        ("x=z08..z11", ("z08", "z09", "z10", "z11")),
        ("x=x_*", ("x_1", "x_2")),
        ("x=f2?,a", (*(f"f{i}" for i in range(20, 28)), "a")),
        ("x=x*", ("x*",)),
        ("x=f0..f2", ("f0..f2",)),
        ("x=[q]", ("[q]",)),
        ("x='a,b',a", ("a,b", "a")),
        ("x='a b',a b", ("a b", "a b")),
        ("x='it''s',b", ("it's", "b")),
        ("x==", ("=",)),
        (("x", ("a,b", "a b")), ("a,b", "a b")),
        (("x", ("f0..f2", "c")), ("f0..f2", "c")),
    ],
)
def test_a_feed_names_columns_globs_and_ranges(text, columns):
    assert fed(model(tensor(shape=("N", None))), COLUMNS, feed=(text,)) == {"x": columns}


def test_feeds_of_one_tensor_add_up():
    assert fed(model(), COLUMNS, feed=("x=a,b", "x=c")) == {"x": ("a", "b", "c")}


@pytest.mark.parametrize("name", ["a=b", "x:0", "serving_default_x:0", "a=b=c", "in put", "x.y/z"])
def test_a_tensor_may_have_any_name(name):
    spec = model(tensor(name, shape=("N", 2)), tensor("c", shape=("N", 1)))
    assert fed(spec, COLUMNS, feed=(f"{name}=b,a",)) == {name: ("b", "a"), "c": ("c",)}


@pytest.mark.parametrize(
    ("text", "error", "word"),
    [
        ("x=a,b,nope", MissingColumns, "'nope'"),
        ("x=f0..f30", MissingColumns, "'f28'"),
        ("x=f27..f0", MissingColumns, "'f27..f0'"),
        ("x=q_*", MissingColumns, "'q_*'"),
        ("y=a,b,c", OptionsError, "'y=a,b,c'"),
        ("a,b,c", OptionsError, "'a,b,c'"),
        ("x=", OptionsError, "x="),
        ("x=a,b", ShapeMismatch, "2 columns"),
        (("x", ("a", "b")), ShapeMismatch, "2 columns"),
    ],
)
def test_a_feed_that_does_not_fit_is_refused(text, error, word):
    _, problems = bind(binding_options(feed=(text,)), model(), COLUMNS)
    assert isinstance(problems[0], error)
    assert word in problems[0].what


@pytest.mark.parametrize("text", ["x=a,b,it'c", "x='a,b,c", "x=a,'b'c,f0", "x=a,b,c''"])
def test_a_feed_that_parses_only_in_part_is_refused(text):
    """Dropping the unparsed part would feed other columns without a warning."""
    _, problems = bind(binding_options(feed=(text,)), model(), COLUMNS)
    assert problems


def test_an_empty_list_of_columns_is_no_feed():
    _, problems = bind(binding_options(feed=(("x", ()),)), model(), floats("a", "b", "c"))
    assert problems


@settings(max_examples=200)
@given(
    names=st.lists(st.text("ab'\", *?[]=.0", min_size=1, max_size=5).filter(lambda n: n == n.strip()), min_size=1,
                   max_size=5, unique=True),
    data=st.data(),
)  # fmt: skip
def test_quoted_names_are_always_exactly_those_columns(names, data):
    order = data.draw(st.permutations(names))
    text = "x=" + ",".join("'" + name.replace("'", "''") + "'" for name in order)
    assert fed(model(tensor(shape=("N", None))), floats(*names), feed=(text,)) == {"x": tuple(order)}


def test_unknown_tokens_are_returned_apart_from_known_columns():
    assert expand(["a", "nope", "f1..f2"], COLUMNS.names) == (["a", "f1", "f2"], ["nope"])


@pytest.mark.parametrize(
    ("kind", "column", "good"),
    [
        ("float32", pa.int64(), True), ("float32", pa.bool_(), True), ("float32", pa.string(), False),
        ("float32", pa.decimal128(5, 2), True), ("float32", pa.timestamp("us"), False),
        ("float32", pa.date32(), False), ("float32", pa.list_(pa.string()), False),
        ("int64", pa.float64(), True), ("bool", pa.int8(), False),
        ("bool", pa.bool_(), True), ("string", pa.string(), True), ("string", pa.large_string(), True),
        ("string", pa.dictionary(pa.int8(), pa.string()), True), ("string", pa.int64(), False),
        ("string", pa.binary(), False), ("float32", pa.dictionary(pa.int8(), pa.float64()), True),
        ("float32", pa.dictionary(pa.int8(), pa.string()), False),
    ],
)  # fmt: skip
def test_a_column_that_cannot_become_the_tensor_is_refused(kind, column, good):
    _, problems = bind(binding_options(feed=("x=a",)), model(tensor("x", kind, ("N", 1))), schema(a=column))
    assert [type(p) for p in problems] == ([] if good else [TypeMismatch])


@pytest.mark.parametrize(("kind", "shape"), [("sequence", None), ("complex64", ("N", 2)), ("float8e4m3fn", ("N", 1)),
                                             ("float32", ())])  # fmt: skip
def test_a_tensor_that_no_column_fills_is_refused(kind, shape):
    assert isinstance(refused(model(tensor("x", kind, shape)), floats("a", "b")), UnsupportedTensor)


def test_nulls_are_nan_for_floats_and_errors_otherwise_by_default():
    spec = model(*(tensor(n, k, ("N", 1)) for n, k in [("a", "float32"), ("b", "int64"), ("c", "float16")]))
    columns = schema(a=pa.int64(), b=pa.int64(), c=pa.int64())
    assert [f.on_null for f in bound(spec, columns).feeds] == ["nan", "error", "nan"]
    policies = ("0", "c=error", "a=0.5")
    assert [f.on_null for f in bound(spec, columns, on_null=policies).feeds] == ["0.5", "0", "error"]


@pytest.mark.parametrize(
    ("kind", "policy"),
    [
        ("int64", "nan"), ("int64", "0.5"), ("float32", "missing"), ("float32", ""), ("bool", "nan"), ("int8", "1000"),
        ("uint8", "-1"), ("int64", "1e30"), ("int64", "9223372036854775808"), ("uint64", "18446744073709551616"),
        ("int64", "9007199254740993.5"), ("int64", "1e999999999"), ("int64", "inf"), ("float32", "16777217"),
        ("float32", "1e39"), ("float16", "70000"),
    ],
)  # fmt: skip
def test_a_null_policy_that_the_tensor_cannot_hold_is_refused(kind, policy):
    column = pa.bool_() if kind == "bool" else pa.int64()
    problem = refused(model(tensor("x", kind, ("N",))), schema(x=column), on_null=(f"x={policy}",))
    assert isinstance(problem, OptionsError)


@pytest.mark.parametrize(
    ("kind", "policy"),
    [
        ("int64", "9007199254740993"), ("int64", "9223372036854775807"), ("uint64", "18446744073709551615"),
        ("int64", "1e3"), ("int8", "-128.0"), ("bool", "1"), ("float32", "0.1"), ("float32", "-inf"),
        ("float64", "1e39"),
    ],
)  # fmt: skip
def test_a_null_policy_that_the_tensor_holds_is_kept_as_it_is_written(kind, policy):
    column = pa.bool_() if kind == "bool" else pa.int64()
    (feed,) = bound(model(tensor("x", kind, ("N",))), schema(x=column), on_null=(f"x={policy}",)).feeds
    assert feed.on_null == policy


def test_nulls_of_a_text_can_become_the_empty_text():
    (feed,) = bound(model(tensor("x", "string", ("N",))), schema(x=pa.string()), on_null=("x=",)).feeds
    assert feed.on_null == ""


def test_a_null_policy_for_an_unknown_tensor_is_refused():
    problem = refused(model(), floats("c0", "c1", "c2"), on_null=("y=0",))
    assert isinstance(problem, OptionsError)
    assert "'x'" in problem.hint


def test_the_rank_and_the_fixed_batch_come_from_the_model():
    assert bound(inspect_model(MODELS / "fixed3.onnx"), floats("c0", "c1")).fixed_batch == 3
    assert bound(inspect_model(MODELS / "sum3.onnx"), floats("c0", "c1", "c2")).fixed_batch is None
    ranks = {f.tensor: len(f.shape) + 1 for f in bound(inspect_model(MODELS / "percolumn.onnx"),
             schema(a=pa.float32(), b=pa.int64(), petal_length=pa.float64())).feeds}  # fmt: skip
    assert ranks == {"a": 2, "b": 2, "petal_length": 1}


def test_every_problem_of_a_request_is_reported_at_once():
    options = binding_options(feed=("y=a", "x=nope"), on_null=("z=0",))
    _, problems = bind(options, model(), floats("a", "b", "c"))
    assert len(problems) == 3


@pytest.mark.parametrize(("rows", "width"), [([None, [1.0, 2.0]], 2), ([[], [1.0, 2.0]], 2), ([], 1)])
def test_a_list_of_unknown_length_is_measured_on_the_first_rows_that_have_one(rows, width):
    columns = schema(v=pa.list_(pa.float32()))
    binding = bound(model(tensor(shape=("N", None))), columns, feed=("x=v",))
    assert binding.feeds[0].shape == (None,)
    assert shapes(binding, pa.table({"v": pa.array(rows, pa.list_(pa.float32()))})).feeds[0].shape == (width,)


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ("all", ("id", "a", "b", "all_of")), ("none", ()), ("id", ("id",)), ("b,id", ("id", "b")),
        (["a*"], ("a", "all_of")), ("a,a", ("a",)), (["id", "b"], ("id", "b")),
    ],
)  # fmt: skip
def test_kept_columns_stay_in_the_inputs_order(keep, kept):
    options = build({"input": "i", "model": "m", "keep": keep, "feed": "x=a"}).binding
    assert kept_of(options, floats("id", "a", "b", "all_of")) == (Kept(kept), [])


@pytest.mark.parametrize("keep", [{}, {"keep": "all"}, {"keep": ["all"]}])
def test_all_columns_are_kept_by_default_even_if_one_is_called_all(keep):
    options = build({"input": "i", "model": "m", "feed": "x=a", **keep}).binding
    assert kept_of(options, floats("a", "all", "b")) == (Kept(("a", "all", "b")), [])


def test_a_column_called_all_can_be_kept_alone():
    assert kept_of(binding_options(keep=("[a]ll",)), floats("a", "b", "c", "all")) == (Kept(("all",)), [])


def test_a_column_called_none_can_be_kept():
    assert kept_of(binding_options(keep=("none",)), floats("a", "b", "c", "none")) == (Kept(("none",)), [])


def test_a_kept_column_that_does_not_exist_gets_a_suggestion():
    _, (problem,) = kept_of(binding_options(keep=("amuont",)), floats("amount", "b", "c"))
    assert isinstance(problem, MissingColumns)
    assert "'amount'" in problem.hint
