"""Scores that depend on the batch are reported; models that mix rows or carry state are refused."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow as pa
import pytest
from onnx import TensorProto, helper
from support.runs import MODELS, cli, read, write

import scorer

ROWS = 300


def model_of(path, nodes, inputs, outputs, weights=()):
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
        list(weights),
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(proto, path)
    return path


def quantised(path):
    """A linear layer whose input is quantised by the range of the whole batch."""
    weights = np.random.default_rng(1).integers(-100, 100, (3, 1)).astype(np.int8)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "scale"], ["y"]),
    ]
    held = [helper.make_tensor("w", TensorProto.INT8, weights.shape, weights.tobytes(), raw=True)]
    return model_of(path, nodes, [("x", TensorProto.FLOAT, ["N", 3])], [("y", TensorProto.FLOAT, ["N", 1])], held)


@pytest.fixture
def matrix():
    return np.random.default_rng(2).standard_normal((ROWS, 3)).astype(np.float32)


@pytest.fixture
def source(tmp_path, matrix):
    return write(tmp_path / "in.parquet", {name: matrix[:, i] for i, name in enumerate("abc")})


def measured(text):
    """Difference and tolerance in the canary's sentence."""
    found = re.search(r"changes by (\S+) \(allowed: (\S+)\)", text)
    return float(found[1]), float(found[2])


def moved_by_halves(model, matrix, output):
    """The largest change of a score when ONNX Runtime alone scores the first 256 rows in halves."""
    session = ort.InferenceSession(str(model))
    whole = session.run([output], {"x": matrix[:256]})[0]
    halves = np.concatenate([session.run([output], {"x": matrix[at : at + 128]})[0] for at in (0, 128)])
    return float(np.abs(whole - halves).max())


def softmax_over_rows(path):
    node = helper.make_node("Softmax", ["x"], ["y"], axis=0)
    return model_of(path, [node], [("x", TensorProto.FLOAT, ["N", 3])], [("y", TensorProto.FLOAT, ["N", 3])])


@pytest.mark.parametrize("make", [quantised, softmax_over_rows])
def test_dependent_rows_are_reported_with_the_measured_difference(make, source, matrix, tmp_path):
    model = make(tmp_path / "m.onnx")
    plan = scorer.prepare(source, model, tmp_path / "out", feed=["x=a,b,c"])
    assert plan.problems == ()
    (note,) = [note for note in plan.notes if "depends on the other rows in its batch" in note]
    difference, allowed = measured(note)
    assert difference > 10 * allowed
    assert difference == pytest.approx(moved_by_halves(model, matrix, "y"), rel=0.05)


def test_strict_refuses_dependent_rows(source, tmp_path):
    model = quantised(tmp_path / "m.onnx")
    code, _, text = cli("run", source, "--model", model, "--output", tmp_path / "out", "--feed", "x=a,b,c", "--strict")
    assert code == 3
    assert "depends on the other rows in its batch" in text
    assert "DynamicQuantizeLinear" in text
    assert not (tmp_path / "out").exists()


def test_scores_that_are_almost_zero_can_be_compared(tmp_path):
    node = helper.make_node("Identity", ["x"], ["y"])
    model = model_of(
        tmp_path / "m.onnx", [node], [("x", TensorProto.DOUBLE, ["N", 1])], [("y", TensorProto.DOUBLE, ["N", 1])]
    )
    values = [5e-324, -5e-324, 0.0, -0.0]
    source = write(tmp_path / "in.parquet", {"a": values})
    code, _, text = cli("run", source, "--model", model, "--output", tmp_path / "out", "--feed", "x=a")
    assert (code, "Traceback" in text) == (0, False)
    assert list(map(str, read(tmp_path / "out")["y"].to_pylist())) == list(map(str, values))


@pytest.mark.parametrize("name", ["sum3", "named3", "two_outputs", "fixed3", "lying"])
def test_independent_rows_cause_no_warning(name, source, tmp_path):
    spec = scorer.inspect_model(MODELS / f"{name}.onnx")
    (tensor,) = spec.inputs
    width = tensor.shape[1] if len(tensor.shape) > 1 else 1
    columns = ",".join("abc"[i % 3] for i in range(width))
    plan = scorer.prepare(source, MODELS / f"{name}.onnx", tmp_path / "out", feed=[f"{tensor.name}={columns}"])
    assert plan.problems == ()
    assert "largest difference" in plan.canary
    assert not [note for note in plan.notes if "in its batch" in note]


def test_a_model_that_takes_one_row_at_a_time_needs_no_check(source, tmp_path):
    node = helper.make_node("Softmax", ["x"], ["y"], axis=0)
    model = model_of(
        tmp_path / "m.onnx", [node], [("x", TensorProto.FLOAT, [1, 3])], [("y", TensorProto.FLOAT, [1, 3])]
    )
    plan = scorer.prepare(source, model, tmp_path / "out", feed=["x=a,b,c"])
    assert (plan.problems, plan.canary, plan.notes) == ((), "", ())


def test_a_model_that_carries_state_is_refused(source, tmp_path):
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["state"], ["stateN"])]
    model = model_of(
        tmp_path / "m.onnx", nodes,
        [("x", TensorProto.FLOAT, ["N", 3]), ("state", TensorProto.FLOAT, [2, "N", 8])],
        [("y", TensorProto.FLOAT, ["N", 3]), ("stateN", TensorProto.FLOAT, [2, "N", 8])],
    )  # fmt: skip
    code, _, text = cli("run", source, "--model", model, "--output", tmp_path / "out", "--feed", "x=a,b,c")
    assert code == 3
    assert "the model keeps state between calls: output 'stateN' is the next value of input 'state'" in text


@pytest.mark.parametrize("batch", ["N", 4])
def test_a_model_with_its_state_in_columns_is_scored_with_the_lines_that_the_error_shows(batch, tmp_path):
    shape, rows = [batch, 2, 3], 42
    nodes = [
        helper.make_node("Add", ["past_key", "x"], ["present_key"]),
        helper.make_node("Add", ["past_value", "x"], ["present_value"]),
    ]
    model = model_of(
        tmp_path / "m.onnx", nodes,
        [(name, TensorProto.FLOAT, shape) for name in ("x", "past_key", "past_value")],
        [(name, TensorProto.FLOAT, shape) for name in ("present_key", "present_value")],
    )  # fmt: skip
    rng = np.random.default_rng(1)
    given = {name: rng.random((rows, 2, 3), np.float32) for name in ("x", "past_key", "past_value")}
    kind = pa.list_(pa.list_(pa.float32()))
    columns = {name: pa.array(values.tolist(), kind) for name, values in given.items()}
    write(tmp_path / "in.parquet", columns)
    request = ("run", tmp_path / "in.parquet", "--model", model, "--output", tmp_path / "out", "--keep", "none")
    code, _, text = cli(*request)
    assert code == 3
    assert "if column 'past_key' has the state of its own row: --feed 'past_key=past_key'" in text
    lines = re.findall(r"--feed '([^']*)'", text)
    assert lines == ["past_key=past_key", "past_value=past_value"]
    code, _, text = cli(*request, *(word for line in lines for word in ("--feed", line)), "--quiet")
    assert code == 0, text
    got = read(tmp_path / "out")
    for name in ("key", "value"):
        column = next(column for column in got.column_names if column.endswith(f"present_{name}"))
        found = np.array(got[column].to_pylist(), np.float32).reshape(rows, 2, 3)
        assert np.array_equal(found, given[f"past_{name}"] + given["x"])


def test_an_input_whose_rows_may_be_on_another_axis_is_refused_with_the_flag_for_them(source, tmp_path):
    model = model_of(
        tmp_path / "m.onnx", [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["z"], ["w"])],
        [("x", TensorProto.FLOAT, ["rows", 3]), ("z", TensorProto.FLOAT, [3, "rows"])],
        [("y", TensorProto.FLOAT, ["rows", 3]), ("w", TensorProto.FLOAT, [3, "rows"])],
    )  # fmt: skip
    flags = ["--model", model, "--output", tmp_path / "out", "--feed", "x=a,b,c", "--feed", "z=c,b,a"]
    code, _, text = cli("run", source, *flags)
    assert code == 3
    assert "the batch dimension of input 'z' is not its first dimension" in text
    assert "Hint: --batch-axis 'z=1' if its rows are on that axis" in text
    assert cli("run", source, *flags, "--batch-axis", "z=1")[0] == 0
    out = read(tmp_path / "out")
    assert out["w_0"].equals(out["c"])


def test_an_input_without_rows_needs_a_constant(source, matrix, tmp_path):
    model = model_of(
        tmp_path / "m.onnx", [helper.make_node("Mul", ["x", "scale"], ["y"])],
        [("x", TensorProto.FLOAT, ["N", 3]), ("scale", TensorProto.FLOAT, [3])], [("y", TensorProto.FLOAT, ["N", 3])],
    )  # fmt: skip
    flags = ["--model", model, "--output", tmp_path / "out", "--feed", "x=a,b,c"]
    code, _, text = cli("run", source, *flags, "--feed", "scale=a")
    assert code == 3
    assert "input 'scale' has no batch dimension" in text
    assert cli("run", source, *flags, "--feed", "scale=const(1, 10, 100)")[0] == 0
    out = read(tmp_path / "out")
    assert np.array_equal(out["y_2"].to_numpy(), matrix[:, 2] * np.float32(100))


def test_a_model_that_gives_another_number_of_rows_is_refused(source, tmp_path):
    node = helper.make_node("Concat", ["x", "x"], ["y"], axis=0)
    model = model_of(
        tmp_path / "m.onnx", [node], [("x", TensorProto.FLOAT, ["N", 3])], [("y", TensorProto.FLOAT, ["M", 3])]
    )
    code, _, text = cli("run", source, "--model", model, "--output", tmp_path / "out", "--feed", "x=a,b,c")
    assert code == 3
    assert "does not have one row per input row" in text
    assert "[16, 3]" in text
