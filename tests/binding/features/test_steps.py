"""The steps of --fetch against plain loops, and outputs with one value for each token of a row."""

from __future__ import annotations

import math
from itertools import pairwise

import ml_dtypes
import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array
from support.runs import cli, read, report_of, write

import scorer
from scorer.binding.features import steps as steps_
from scorer.binding.features.unpack import unpack
from scorer.binding.spec import Fetch
from scorer.errors import OptionsError, PreflightError, ScorerError, ShapeMismatch

FLOATS = ("float16", "float32", "float64", "bfloat16")
WIDE = {"float16": np.float32, "bfloat16": np.float32, "float32": np.float32, "float64": np.float64}
NEAR = {"float16": 1e-6, "bfloat16": 1e-6, "float32": 1e-6, "float64": 1e-14}
"""Small floats are widened first, so they are no less exact than float32."""
LABELS = ("cat", "dog", "it's, a | (b)")


def array(values, dtype):
    return np.array(values, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def done(values, *chain, **feeds):
    return steps_.apply(chain, values, feeds)


def rows_of(dtype, rows=7, width=5, scale=4.0):
    rng = np.random.default_rng(rows * width)
    return array(rng.standard_normal((rows, width)) * scale, dtype)


def softmax_of(row):
    """By Python's own floats, shifted so that nothing overflows."""
    powers = [math.exp(value - max(row)) for value in row]
    return [power / math.fsum(powers) for power in powers]


def sigmoid_of(value):
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def best_of(row, count):
    """Places of the largest, of equals the first."""
    return sorted(range(len(row)), key=lambda i: (-row[i], i))[:count]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(7, 5), (7, 1), (2, 3, 5), (0, 5)])
def test_softmax_is_that_of_each_row(dtype, shape):
    values = rows_of(dtype, 7, 30).reshape(-1)[: math.prod(shape)].reshape(shape)
    got = done(values, "softmax")
    assert (got.shape, got.dtype) == (shape, WIDE[dtype])
    for mine, row in zip(got.reshape(-1, shape[-1]), values.reshape(-1, shape[-1]).astype(float).tolist(), strict=True):
        np.testing.assert_allclose(mine, softmax_of(row), rtol=0, atol=NEAR[dtype])


@given(hnp.arrays(np.float32, (3, 6), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
@example(np.full((3, 6), 3.4e38, np.float32))
@example(np.array([[-3.4e38, 3.4e38, 0, 88.8, 89, 1e-45]] * 3, np.float32))
def test_softmax_sums_to_one_and_never_overflows(values):
    got = done(values, "softmax")
    assert np.isfinite(got).all()
    assert (got >= 0).all()
    np.testing.assert_allclose(got.sum(axis=-1), 1, atol=1e-6)


def test_softmax_of_many_half_floats_sums_to_one():
    """Their own sum would end at 2048."""
    got = done(np.zeros((1, 5000), np.float16), "softmax")
    np.testing.assert_allclose(got.sum(), 1, atol=1e-5)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64", "bool"])
@pytest.mark.parametrize("step", ["softmax", "sigmoid"])
def test_whole_numbers_have_probabilities_too(step, dtype):
    values = array([[0, 1, 1], [1, 0, 0]], dtype)
    oracle = [
        softmax_of(row) if step == "softmax" else list(map(sigmoid_of, row)) for row in values.astype(int).tolist()
    ]
    got = done(values, step)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, oracle, rtol=1e-12)


@pytest.mark.parametrize("step", ["softmax", "sigmoid", "normalize", "round(2)"])
def test_nan_stays_nan_and_stays_in_its_row(step):
    got = done(np.array([[np.nan, 1.0], [0.5, 2.0], [np.inf, np.inf]], np.float32), step)
    assert np.isnan(got[0, 0])
    assert np.isfinite(got[1]).all()


def test_minus_infinity_is_a_probability_of_nothing():
    assert done(np.array([[-np.inf, 0.0, 0.0]]), "softmax").tolist() == [[0, 0.5, 0.5]]


@pytest.mark.parametrize("dtype", FLOATS)
def test_sigmoid_is_that_of_each_value(dtype):
    values = array([[-1e4, -30.0, -1.0, 0.0, 0.5, 30.0, 1e4]], dtype)
    got = done(values, "sigmoid")
    assert got.dtype == WIDE[dtype]
    np.testing.assert_allclose(got[0], [sigmoid_of(v) for v in values[0].astype(float)], rtol=0, atol=NEAR[dtype])


@pytest.mark.parametrize("dtype", [*FLOATS, "int32", "uint8", "bool"])
def test_argmax_is_the_first_of_the_largest(dtype):
    values = array([[0, 1, 1], [1, 0, 0], [0, 0, 0]], dtype)
    assert done(values, "argmax").tolist() == [1, 0, 0]
    assert done(values[:, None], "argmax").tolist() == [[1], [0], [0]]


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_label_is_that_of_the_largest_score(dtype):
    step = steps_.parse_step("label", LABELS, ())
    assert done(array([[0, 2, 1], [3, 0, 0], [0, 0, 9]], dtype), step).tolist() == [LABELS[1], LABELS[0], LABELS[2]]


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8", "uint64"])
def test_a_label_is_that_of_the_class_number(dtype):
    assert done(array([2, 0, 1], dtype), "label(a, b, c)").tolist() == ["c", "a", "b"]
    assert done(array([[2, 0], [1, 1]], dtype), "label(a, b, c)").tolist() == [["c", "a"], ["b", "b"]]


def test_truth_values_are_class_numbers():
    assert done(np.array([True, False]), "label(no, yes)").tolist() == ["yes", "no"]


@pytest.mark.parametrize(("number", "named"), [(-1, "-1"), (3, "3"), (-3, "-3"), (2**40, str(2**40))])
def test_a_class_number_without_a_label_is_refused(number, named):
    with pytest.raises(ShapeMismatch, match=f"3 labels for class number {named}"):
        done(np.array([0, number]), "label(a, b, c)")


@pytest.mark.parametrize("dtype", [*FLOATS, "int64", "uint8", "int8"])
@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_topk_gives_places_and_scores_from_the_best_down(dtype, count):
    rows = [[1, 3, 2, 3], [0, 0, 0, 0], [127, 0, 1, 126]]
    got = done(array(rows, dtype), f"topk({count})")
    assert got.shape == (3, min(count, 4), 2)
    for mine, row in zip(got, rows, strict=True):
        assert mine[:, 0].tolist() == best_of(row, count)
        assert [float(score) for score in mine[:, 1]] == [row[i] for i in best_of(row, count)]


@given(hnp.arrays(np.float32, (4, 5), elements=st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.0, math.inf, -math.inf])))
def test_topk_keeps_the_order_of_equals(values):
    for mine, row in zip(done(values, "topk(5)"), values.tolist(), strict=True):
        assert mine[:, 0].tolist() == best_of(row, 5)


def test_topk_of_the_least_and_the_largest_whole_number():
    ends = np.array([[np.iinfo(np.int64).min, 0, np.iinfo(np.int64).max]])
    assert done(ends, "topk(3)")[0, :, 0].tolist() == [2, 1, 0]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("nan", [(0,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("first", [(), ("softmax",), ("softmax", "round(2)")])
def test_a_row_with_a_nan_score_has_no_class(dtype, nan, first):
    values = array([[0, 1, 2], [5, 1, 2], [0, 1, 2]], dtype)
    values[1, list(nan)] = np.nan
    assert done(values, *first, "argmax").tolist() == [2, None, 2]
    assert done(values, *first, "argmax", "round(1)").tolist() == [2, None, 2]
    assert done(values, *first, "label(a, b, c)").tolist() == ["c", None, "c"]
    assert done(values, *first, "argmax", "label(a, b, c)").tolist() == ["c", None, "c"]
    assert done(values, *first, "topk(2)")[:, :, 0].tolist() == [[2, 1], [None, None], [2, 1]]
    assert done(values, *first, "topk(2)")[1, :, 1].tolist() == [None, None]


def test_a_step_after_the_class_of_nan_gives_nan():
    values = np.array([[[0, np.nan], [0, 1]], [[1, 0], [0, 1]]], np.float32)
    np.testing.assert_array_equal(
        done(values, "argmax", "sigmoid"), [[np.nan, 1 / (1 + np.exp(-1))], [0.5, 1 / (1 + np.exp(-1))]]
    )
    assert done(values, "argmax", "argmax").tolist() == [None, 1]


def test_topk_names_the_classes_where_the_model_does():
    step = steps_.parse_step("topk(2)", LABELS, ())
    assert done(np.array([[0.0, 1.0, 2.0]]), step)[0, :, 0].tolist() == [LABELS[2], LABELS[1]]
    assert done(np.array([[0.0, 1.0]]), step)[0, :, 0].tolist() == [1, 0]


def test_a_plan_of_before_class_numbers_were_numbers_still_gives_text():
    old = Fetch(tensor="y", kind="topk", columns=("t_1", "t_1_score"), type="double", steps=("topk(1)",))
    classes, scores = unpack(old, [done(np.array([[0.0, 2.0], [np.nan, 1.0]]), *old.steps)])
    assert (classes.to_pylist(), scores.to_pylist()) == (["1", None], [2.0, None])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mask", ["int64", "int32", "float32", "bool"])
def test_mean_pool_is_the_mean_of_the_tokens(dtype, mask):
    values = rows_of(dtype, 3, 8).reshape(3, 4, 2)
    inside = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    got = done(values, "mean_pool(m)", m=inside.astype(mask))
    assert got.dtype == WIDE[dtype]
    for row in range(3):
        kept = [values[row, t].astype(float) for t in range(4) if inside[row, t]]
        wanted = [math.fsum(column) / len(kept) for column in zip(*kept, strict=True)] or [0, 0]
        np.testing.assert_allclose(got[row], wanted, rtol=1e-5, atol=1e-6)


@given(
    tokens=hnp.arrays(np.float32, (5, 3), elements=st.floats(-100, 100, width=32)),
    before=st.integers(0, 9), after=st.integers(0, 9),
    filler=st.sampled_from([0.0, 1e30, math.nan, math.inf, -math.inf]),
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_mean_pool_is_the_same_to_the_bit_whatever_the_padding(dtype, tokens, before, after, filler):
    """On either side, and with any values of the model there."""
    alone = done(tokens[None].astype(dtype), "mean_pool(m)", m=np.ones((1, 5), np.int64))
    with np.errstate(over="ignore"):
        padded = np.full((2, before + 5 + after, 3), filler, dtype)
    mask = np.zeros((2, before + 5 + after), np.int64)
    padded[1, before : before + 5], mask[1, before : before + 5] = tokens, 1
    both = done(padded, "mean_pool(m)", m=mask)
    assert both[1].tobytes() == alone[0].tobytes()
    assert both[0].tolist() == [0, 0, 0]


def test_mean_pool_of_many_half_floats_does_not_overflow():
    got = done(np.full((1, 512, 2), 200.0, np.float16), "mean_pool(m)", m=np.ones((1, 512), np.int64))
    assert got.tolist() == [[200, 200]]


@pytest.mark.parametrize("dtype", FLOATS)
def test_cls_is_the_first_token(dtype):
    values = rows_of(dtype, 3, 8).reshape(3, 4, 2)
    assert done(values, "cls").tolist() == [[list(row[0]) for row in values.tolist()][i] for i in range(3)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [1e-7, 1.0, 300.0, 1e4])
def test_normalize_makes_rows_of_length_one(dtype, scale):
    values = rows_of(dtype, scale=scale)
    got = done(values, "normalize")
    assert got.dtype == WIDE[dtype]
    for mine, row in zip(got, values.astype(float).tolist(), strict=True):
        length = math.hypot(*row)
        np.testing.assert_allclose(mine, [v / length if length else 0 for v in row], rtol=0, atol=NEAR[dtype] * 2)


@pytest.mark.parametrize(("dtype", "ends"), [("float32", (1e-42, 3e38)), ("float64", (1e-310, 1e308))])
def test_normalize_neither_overflows_nor_vanishes(dtype, ends):
    for end in ends:
        got = done(np.array([[end, end], [0, -end]], dtype), "normalize")
        np.testing.assert_allclose(got, [[0.5**0.5] * 2, [0, -1]], rtol=1e-6)


def test_normalize_leaves_zero_where_it_is():
    assert done(np.zeros((2, 3), np.float32), "normalize").tolist() == [[0] * 3] * 2


def test_normalize_of_usual_numbers_is_the_textbook_s_to_the_bit():
    values = rows_of("float32", 50, 32)
    assert done(values, "normalize").tobytes() == (values / np.sqrt(np.square(values).sum(-1, keepdims=True))).tobytes()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("digits", [0, 1, 2, 5])
def test_round_is_python_s(dtype, digits):
    values = array([[0.125, 2.5, -3.5, 1234.5678, 0.06, 700.0, 60000.0]], dtype)
    wanted = [WIDE[dtype](round(float(v), digits)) for v in values[0]]
    got = done(values, f"round({digits})")
    assert got.dtype == WIDE[dtype]
    np.testing.assert_allclose(got[0], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("digits", [10, 308, 309, 400, 99999999999999999999])
def test_round_never_makes_a_number_infinite(digits):
    values = np.array([[1e300, -1e30, 0.0, 5e-324, 0.5]])
    assert done(values, f"round({digits})")[0, [0, 1, 2, 4]].tolist() == [1e300, -1e30, 0.0, 0.5]


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool"])
def test_round_leaves_whole_numbers_and_their_type(dtype):
    values = array([[0, 1, 1]], dtype)
    got = done(values, "round(2)")
    assert (got.dtype, got.tolist()) == (values.dtype, values.tolist())


def test_steps_are_taken_in_order():
    values = rows_of("float32", 3, 8).reshape(3, 4, 2)
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    pooled = done(values, "mean_pool(m)", m=mask)
    assert done(values, "mean_pool(m)", "normalize", m=mask).tobytes() == done(pooled, "normalize").tobytes()
    assert done(pooled, "softmax", "round(1)").tolist() == done(done(pooled, "softmax"), "round(1)").tolist()
    assert done(pooled, "argmax", "label(a, b)").tolist() == done(pooled, "label(a, b)").tolist()
    assert done(pooled).tobytes() == pooled.tobytes()


ONE = np.array([1.0, 2.0, 3.0], np.float32)
TWO = np.zeros((3, 2), np.float32)
THREE = np.zeros((3, 4, 2), np.float32)


@pytest.mark.parametrize(
    ("step", "values", "says"),
    [
        *((step, ONE, rf"{name}.* does not fit[^$]*one value in a row") for step, name in
          (("softmax", "softmax"), ("argmax", "argmax"), ("label(a, b, c)", "label"), ("normalize", "normalize"))),
        ("topk(2)", ONE, "numbers, .N, k.[^$]*1 axes"),
        ("topk(2)", THREE, "3 axes"),
        ("label(a, b, c)", TWO, "3 labels for 2 values"),
        ("cls", TWO, "2 axes"),
        ("mean_pool(m)", TWO, "mask"),
        ("mean_pool(m)", THREE[:, :3], "mask"),
        ("softmax", np.zeros((3, 0), np.float32), "does not fit the tensor"),
        *((f"{step}{'(1)' if step in {'topk', 'round'} else '(m)' if step == 'mean_pool' else ''}",
           np.array([["a", "b"]], object), "found: +text") for step in steps_._STEPS if step != "label"),
        ("label(a)", np.array(["a", "b"]), "found: +text"),
        ("softmax", [{"a": 0.5, "b": 0.5}], "a sequence of maps"),
    ],
)  # fmt: skip
def test_a_step_that_does_not_fit_says_so(step, values, says):
    with pytest.raises(ShapeMismatch, match=says):
        done(values, step, m=np.ones((3, 4)))


@pytest.mark.parametrize("after", ["softmax", "round(1)", "argmax", "label(a, b)", "topk(1)"])
@pytest.mark.parametrize("first", ["topk(2)", "label(a, b)"])
def test_no_step_computes_from_names(first, after):
    with pytest.raises(ShapeMismatch, match=r"found: +text"):
        done(TWO, first, after)


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ("softmx", "unknown step 'softmx'[^$]*did you mean 'softmax'"),
        ("softmax(1)", "step softmax takes no arguments"),
        ("round", "step round takes 1 argument\n"),
        ("round(a)", "step round takes a whole number"),
        ("round(-1)", "step round takes a whole number"),
        ("topk", "step topk takes 1 argument"),
        ("topk(0)", "step topk takes a whole number"),
        ("topk(2, 3)", "step topk takes 1 argument"),
        ("topk(k=3)", "step topk takes 1 argument"),
        ("mean_pool", "step mean_pool takes 1 argument"),
        ("mean_pool(atention_mask)", "does not have: 'atention_mask'[^$]*did you mean 'attention_mask'"),
        ("label", "the model does not name its classes"),
        ("cls()x", "unknown step"),
    ],
)
def test_an_invalid_step_is_refused(step, says):
    with pytest.raises(OptionsError, match=says):
        steps_.parse_step(step, (), ("input_ids", "attention_mask"))


@pytest.mark.parametrize(
    "labels", [("a=b", "c=d"), ("x", "y=1"), ("a, b", "c|d"), ("(", ")"), ("it's", "''"), ("a", "")]
)
def test_labels_may_hold_any_letters(labels):
    assert done(np.array([[0.0, 1.0]]), steps_.parse_step("label", labels, ())).tolist() == [labels[1]]
    assert done(np.array([[0.0, 1.0]]), steps_.parse_step("topk(1)", labels, ()))[0, 0, 0] == labels[1]


def tensor(name, kind, *shape):
    return make_tensor_value_info(name, kind, ["N", *shape])


def saved(path, nodes, given_, gives, weights=(), **metadata):
    graph = make_graph(nodes, "model", given_, gives, initializer=list(weights))
    model = make_model(graph, opset_imports=[make_opsetid("", 17), make_opsetid("ai.onnx.ml", 3)], ir_version=9)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


WEIGHTS = np.array([[1, -1, 0.5], [0.25, 2, -1]], np.float32)


@pytest.fixture
def classes(tmp_path):
    """Three scores of two columns, in several shapes and types."""
    nodes = [
        make_node("MatMul", ["x", "w"], ["logits"]),
        make_node("ArgMax", ["logits"], ["number"], axis=1, keepdims=0),
        make_node("ReduceSum", ["x", "axis"], ["total"], keepdims=0),
    ]
    gives = [tensor("logits", 1, 3), tensor("number", TensorProto.INT64), tensor("total", 1)]
    weights = [from_array(WEIGHTS, "w"), from_array(np.array([1]), "axis")]
    return saved(tmp_path / "classes.onnx", nodes, [tensor("x", 1, 2)], gives, weights)


X = np.array([[1, 0], [0, 1], [-1, 0.5], [2, 2], [0, 0]], np.float32)


def test_steps_through_the_command_line(classes, tmp_path):
    data = write(tmp_path / "in.parquet", {"c0": X[:, 0], "c1": X[:, 1]})
    fetches = [
        "logits|softmax=p", "logits|label(cat, dog, eel)=class", "logits|topk(2)=best", "logits|softmax|round(2)=r",
        "number|label(cat, dog, eel)", "logits|sigmoid|argmax=at", "logits|normalize=unit",
    ]  # fmt: skip
    flags = [part for fetch in fetches for part in ("--fetch", fetch)]
    code, _, err = cli("run", data, "--model", classes, "--output", tmp_path / "out", "--keep", "none", *flags)
    assert (code, err) == (0, err)
    output = read(tmp_path / "out").to_pydict()
    logits = (X @ WEIGHTS).tolist()
    names = ["cat", "dog", "eel"]
    first = [best_of(row, 1)[0] for row in logits]
    np.testing.assert_allclose(
        np.array([output[f"p_{i}"] for i in range(3)]).T, list(map(softmax_of, logits)), atol=1e-6
    )
    assert output["class"] == output["number"] == [names[i] for i in first]
    assert output["at"] == first
    assert output["best_1"] == first
    assert output["best_2"] == [best_of(row, 2)[1] for row in logits]
    assert output["best_2_score"] == [sorted(row)[-2] for row in logits]
    np.testing.assert_allclose(output["r_0"], [round(softmax_of(row)[0], 2) for row in logits], atol=1e-6)
    assert len(output["unit_2"]) == len(X)


CLASSES_OF_NAN = ("argmax=at", "label(cat, dog, eel)=class", "argmax|label(cat, dog, eel)=of_number", "topk(2)=best")
CLASS_COLUMNS = ["at", "class", "of_number", "best_1", "best_1_score", "best_2", "best_2_score"]


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_a_row_with_nan_scores_has_null_classes_and_is_counted(classes, tmp_path, batch):
    x = np.tile(X, (8, 1))
    x[[0, 7, 39]] = np.nan
    data = write(tmp_path / "in.parquet", {"a": x[:, 0], "b": x[:, 1]})
    flags = [part for fetch in CLASSES_OF_NAN for part in ("--fetch", f"logits|{fetch}")]
    code, _, err = cli(
        "run", data, "--model", classes, "--output", tmp_path / "out", "--keep", "none", "--by-position",
        "--batch-rows", batch, *flags,
    )  # fmt: skip
    assert (code, err) == (0, err)
    output = read(tmp_path / "out")
    first = [None if np.isnan(row).any() else best_of(row, 1)[0] for row in (x @ WEIGHTS).tolist()]
    names = [None if i is None else ("cat", "dog", "eel")[i] for i in first]
    assert [output[name].null_count for name in CLASS_COLUMNS] == [3] * len(CLASS_COLUMNS)
    assert output["at"].to_pylist() == first
    assert output["class"].to_pylist() == output["of_number"].to_pylist() == names
    assert output["best_1"].to_pylist() == first
    assert report_of(tmp_path / "out")["counts"]["nan"] == 3
    assert cli("verify", tmp_path / "out", "--deep", "--rescore", "40")[0] == 0


@pytest.mark.parametrize(("step", "nothing"), [("argmax", 0), ("label(a, b)", "a")])
@pytest.mark.parametrize("width", [3, 20])
def test_a_list_of_classes_is_null_if_one_of_them_comes_from_nan(tmp_path, step, nothing, width):
    nodes = [make_node("Reshape", ["x", "shape"], ["pairs"])]
    model = saved(
        tmp_path / "pairs.onnx", nodes, [tensor("x", 1, width * 2)], [tensor("pairs", 1, width, 2)],
        [from_array(np.array([-1, width, 2]), "shape")],
    )  # fmt: skip
    x = np.zeros((5, width * 2), np.float32)
    x[3, 1] = np.nan
    x[4] = np.nan
    frame = pd.DataFrame({"x": list(x)})
    scored = scorer.score(frame, model, feed="x=x", fetch=f"pairs|{step}=at", keep="none")
    if width == 20:
        assert [None if row is None else row.tolist() for row in scored["at"]] == [[nothing] * 20] * 3 + [None] * 2
    else:
        assert scored.isna().to_numpy().tolist() == [[False] * 3] * 3 + [[True, False, False], [True] * 3]
    data = write(tmp_path / "in.parquet", {"x": list(x)})
    report = scorer.run(data, model, tmp_path / "out", feed="x=x", fetch=f"pairs|{step}=at", keep="none")
    assert report.counts.nan == 2
    names = ["at"] if width == 20 else ["at_0", "at_1", "at_2"]
    assert [read(tmp_path / "out")[name].null_count for name in names] == [2, 1, 1][: len(names)]


@pytest.mark.parametrize(
    ("fetch", "code", "says"),
    [
        ("total|softmax", 3, "one value in a row"),
        ("logits|softmx", 2, "did you mean 'softmax'"),
        ("logits|label", 2, "the model does not name its classes"),
        ("logits|label(a, b)", 3, "2 labels for 3 values"),
        ("logits|topk(2)|round(1)", 3, "round(1) does not fit the tensor"),
        ("logits|mean_pool(mask)", 2, "names an input that the model does not have: 'mask'"),
        ("logit|softmax", 2, "did you mean 'logits'"),
        ("number|label(a, b)", 3, "2 labels for class number 2"),
    ],
)
def test_a_wrong_step_is_refused_on_the_command_line(classes, tmp_path, fetch, code, says):
    data = write(tmp_path / "in.parquet", {"c0": [-1.0, 1.0], "c1": [-3.0, 0.0]})
    got, _, err = cli("run", data, "--model", classes, "--output", tmp_path / "out", "--fetch", fetch)
    assert (got, (tmp_path / "out").exists()) == (code, False)
    assert says in err


def classifier(path, **labels):
    """A linear model of the machine-learning domain: labels of its own, and scores."""
    node = make_node(
        "LinearClassifier", ["x"], ["label", "scores"], domain="ai.onnx.ml", coefficients=WEIGHTS.T.ravel().tolist(),
        intercepts=[0.0] * 3, post_transform="NONE", **labels,
    )  # fmt: skip
    kind = TensorProto.STRING if "classlabels_strings" in labels else TensorProto.INT64
    return saved(path, [node], [tensor("x", 1, 2)], [tensor("label", kind), tensor("scores", 1, 3)])


def test_the_model_s_own_labels_name_what_steps_give(tmp_path):
    model = classifier(tmp_path / "m.onnx", classlabels_strings=["a=1", "b, c", "d"])
    frame = pd.DataFrame(X, columns=["c0", "c1"])
    scored = scorer.score(
        frame, model, fetch=["label", "scores|label=mine", "scores|softmax", "scores|topk(1)=t"], keep="none"
    )
    assert scored["mine"].tolist() == scored["label"].tolist() == scored["t_1"].tolist()
    assert list(scored.columns) == ["label", "mine", "scores_a=1", "scores_b, c", "scores_d", "t_1", "t_1_score"]


def test_labels_that_are_numbers_themselves_are_not_numbered_again(tmp_path):
    frame = pd.DataFrame(X, columns=["c0", "c1"])
    odd = classifier(tmp_path / "odd.onnx", classlabels_ints=[1, 2, 3])
    with pytest.raises(PreflightError, match=r"'label' may already hold class labels[^$]*remove \|label"):
        scorer.score(frame, odd, fetch="label|label")
    scored = scorer.score(frame, odd, fetch=["label", "scores|label=name"], keep="none")
    assert scored["name"].tolist() == [str(v) for v in scored["label"]]
    usual = classifier(tmp_path / "usual.onnx", classlabels_ints=[0, 1, 2])
    scored = scorer.score(frame, usual, fetch=["label", "label|label=name"], keep="none")
    assert scored["name"].tolist() == [str(v) for v in scored["label"]]


@pytest.mark.parametrize("step", ["softmax", "label", "topk(1)"])
def test_maps_take_no_steps(tmp_path, step):
    nodes = [
        make_node("Identity", ["x"], ["p"]),
        make_node("ZipMap", ["p"], ["maps"], domain="ai.onnx.ml", classlabels_strings=["a", "b"]),
    ]
    kind = onnx.helper.make_map_type_proto(TensorProto.STRING, onnx.helper.make_tensor_type_proto(1, []))
    gives = onnx.helper.make_value_info("maps", onnx.helper.make_sequence_type_proto(kind))
    model = saved(tmp_path / "m.onnx", nodes, [tensor("x", 1, 2)], [gives])
    with pytest.raises(ScorerError, match=r"a sequence of maps|does not name its classes"):
        scorer.score(pd.DataFrame(X, columns=["c0", "c1"]), model, fetch=f"maps|{step}")


TEXTS = ["a", "a b c d e f", "", "b c", "c c c", "f e", "a b c d e f a b", "e", "x a"] * 3
WORDS = {word: i for i, word in enumerate(["<pad>", *"abcdef", "[UNK]"])}


def tokens(text):
    return [WORDS.get(word, WORDS["[UNK]"]) for word in text.split()]


def tokenizer(path, direction):
    tokenizers = pytest.importorskip("tokenizers", reason="text columns need the extra 'text'")
    one = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="[UNK]"))
    one.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    one.enable_padding(direction=direction, pad_id=0, pad_token="<pad>")
    one.save(str(path))
    return path


TABLE = np.array([[100 + i, -i] for i in range(7)], np.float32)
"""What the model gives for each token but the unknown one, on which it fails."""


def speller(path, table=TABLE):
    """Per token one value, or two, or one per token of the text; and the count of a plain column."""
    nodes = [
        make_node("Gather", ["table", "input_ids"], ["pairs"], axis=0),
        make_node("Gather", ["column", "input_ids"], ["first"], axis=0),
        make_node("Cast", ["attention_mask"], ["inside"], to=1),
        make_node("Identity", ["extra"], ["plain"]),
    ]
    gives = [tensor("pairs", 1, "T", 2), tensor("first", 1, "T"), tensor("inside", 1, "T"), tensor("plain", 1)]
    ids = [tensor(name, TensorProto.INT64, "T") for name in ("input_ids", "attention_mask")]
    weights = [from_array(table, "table"), from_array(np.ascontiguousarray(table[:, 0]), "column")]
    return saved(path, nodes, [*ids, tensor("extra", 1)], gives, weights)


@pytest.mark.parametrize("direction", ["right", "left"])
@pytest.mark.parametrize("batch_rows", [1, 2, 5, 64])
def test_outputs_of_tokens_are_as_long_as_each_text(tmp_path, direction, batch_rows):
    """With any other rows in the batch, any of them failing, and padding on either side."""
    frame = pd.DataFrame({"text": TEXTS, "extra": np.arange(len(TEXTS), dtype=np.float32)})
    frame.loc[[6, 7], "extra"] = np.nan  # a longest row among them: it is cut out of its batch
    frame["extra"] = frame["extra"].astype("Float32")
    file = tokenizer(tmp_path / "t.json", direction)
    scored, bad = scorer.score(
        frame, speller(tmp_path / "m.onnx"), feed=[f"input_ids=text|text('{file}')", "extra=extra"],
        on_null="extra=error", fetch=["pairs", "first", "first|round(0)=near", "pairs|argmax=at", "plain"],
        batch_rows=batch_rows, errors="return",
    )  # fmt: skip
    unknown = [i for i, text in enumerate(TEXTS) if "x" in text]
    assert list(bad.index) == sorted([6, 7, *unknown])
    assert bad.loc[unknown, "_stage"].unique().tolist() == ["infer"]
    for i, row in scored.iterrows():
        wanted = TABLE[tokens(TEXTS[i])]
        assert [list(pair) for pair in row["pairs"]] == wanted.tolist()
        assert list(row["first"]) == list(row["near"]) == wanted[:, 0].tolist()
        assert list(row["at"]) == [0] * len(wanted)
        assert row["plain"] == i


@pytest.mark.parametrize("batch_rows", [1, 3, 64])
@pytest.mark.parametrize(("step", "name"), [("argmax", 0), ("label(a, b)", "a")])
def test_the_classes_of_tokens_are_null_for_a_text_with_a_nan_and_not_for_nan_padding(tmp_path, batch_rows, step, name):
    table = TABLE.copy()
    table[[WORDS["<pad>"], WORDS["b"]], 1] = np.nan
    texts = [text for text in TEXTS if "x" not in text]
    data = write(tmp_path / "in.parquet", {"text": texts, "extra": np.zeros(len(texts), np.float32)})
    file = tokenizer(tmp_path / "t.json", "right")
    report = scorer.run(
        data, speller(tmp_path / "m.onnx", table), tmp_path / "out",
        feed=[f"input_ids=text|text('{file}')", "extra=extra"], fetch=f"pairs|{step}=at", keep="none",
        batch_rows=batch_rows,
    )  # fmt: skip
    wanted = [None if "b" in text.split() else [name] * len(tokens(text)) for text in texts]
    assert read(tmp_path / "out")["at"].to_pylist() == wanted
    assert report.counts.nan == wanted.count(None) > 0


def test_outputs_of_tokens_come_through_the_command_line(tmp_path):
    good = [text for text in TEXTS if "x" not in text]
    data = write(tmp_path / "in.parquet", {"text": good, "extra": np.zeros(len(good), np.float32)})
    file = tokenizer(tmp_path / "t.json", "right")
    code, _, err = cli(
        "run", data, "--model", speller(tmp_path / "m.onnx"), "--output", tmp_path / "out", "--keep", "none",
        "--feed", f"input_ids=text|text({file})", "--feed", "extra=extra", "--fetch", "first", "--fetch", "pairs",
        "--fetch", "pairs|mean_pool(attention_mask)=mean", "--fetch", "pairs|label(a, b)=tag", "--batch-rows", 4,
    )  # fmt: skip
    assert (code, err) == (0, err)
    output = read(tmp_path / "out")
    assert output.schema.field("first").type == pa.list_(pa.field("item", pa.float32(), nullable=False))
    for row, text in zip(output.to_pylist(), good, strict=True):
        wanted = TABLE[tokens(text)]
        assert row["first"] == wanted[:, 0].tolist()
        assert row["pairs"] == wanted.tolist()
        assert row["tag"] == ["a"] * len(wanted)
        mean = wanted.mean(axis=0) if len(wanted) else [0, 0]
        np.testing.assert_allclose([row["mean_0"], row["mean_1"]], mean, rtol=1e-6)


@pytest.mark.parametrize("step", ["softmax", "argmax", "topk(1)", "normalize", "label(a, b)"])
def test_a_step_over_tokens_would_count_padding_and_is_refused(tmp_path, step):
    frame = pd.DataFrame({"text": ["a", "a b c"], "extra": np.zeros(2, np.float32)})
    feed = [f"input_ids=text|text('{tokenizer(tmp_path / 't.json', 'right')}')", "extra=extra"]
    with pytest.raises(PreflightError, match=r"would count padding[^$]*'first'|3 axes"):
        scorer.score(frame, speller(tmp_path / "m.onnx"), feed=feed, fetch=f"first|{step}")


def test_lists_are_as_long_as_the_first_and_others_are_bad_rows(tmp_path):
    model = saved(tmp_path / "m.onnx", [make_node("Neg", ["x"], ["y"])], [tensor("x", 1, "T")], [tensor("y", 1, "T")])
    rows = [[1.0, 2.0], [3.0], [4.0, 5.0], [], [6.0, 7.0, 8.0]]
    scored, bad = scorer.score(pd.DataFrame({"x": rows}), model, keep="none", errors="return")
    assert scored.to_numpy().tolist() == [[-1, -2], [-4, -5]]
    assert list(bad["_error"]) == [f"a list of {n} in column 'x' instead of 2 (tensor 'x')" for n in (1, 0, 3)]


def test_batches_do_not_change_what_steps_give(classes):
    frame = pd.DataFrame(rows_of("float32", 40, 2), columns=["c0", "c1"])
    fetch = ["logits|softmax=p", "logits|normalize=u", "logits|topk(3)=t", "logits|label(x, y, z)=l"]
    whole, *others = [scorer.score(frame, classes, fetch=fetch, batch_rows=n) for n in (40, 1, 7)]
    for one, other in pairwise([whole, *others]):
        pd.testing.assert_frame_equal(one, other, check_exact=False, rtol=1e-6)
