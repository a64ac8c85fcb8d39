"""Rows on another axis than the first: of outputs, of inputs, and in batches of a fixed size."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import onnxruntime as ort
import pandas as pd
import pyarrow as pa
import pytest
from onnx import TensorProto as T
from onnx import helper
from support.runs import cli, read, write

import scorer

ROWS, STEPS, CLASSES = 23, 5, 4
WEIGHTS = np.random.default_rng(3).standard_normal((3, STEPS * CLASSES)).astype(np.float32)


def model(path, nodes, inputs, outputs, weights=()):
    def declared(tensors):
        return [helper.make_tensor_value_info(name, T.FLOAT, shape) for name, shape in tensors]

    graph = helper.make_graph(
        [helper.make_node(kind, given, gives, **more) for kind, given, gives, more in nodes],
        "g", declared(inputs), declared(outputs),
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in weights],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def steps_first(path, batch="rows", output=("steps", "b", "classes")):
    """Write a model of three columns whose output is [steps, batch, classes], as of captcha models."""
    nodes = [
        ("MatMul", ["x", "w"], ["flat"], {}), ("Reshape", ["flat", "shape"], ["deep"], {}),
        ("Transpose", ["deep"], ["y"], {"perm": [1, 0, 2]}),
    ]  # fmt: skip
    weights = [("w", WEIGHTS), ("shape", np.array([-1, STEPS, CLASSES]))]
    return model(path, nodes, [("x", [batch, 3])], [("y", list(output))], weights)


def recurrent(path, batch="batch", names=("Y", "Y_h")):
    """Write an LSTM of [steps, batch, 3] with its outputs [steps, 1, batch, 2] and [1, batch, 2]."""
    rng = np.random.default_rng(5)
    weights = [(n, rng.standard_normal(shape).astype(np.float32)) for n, shape in (("W", (1, 8, 3)), ("R", (1, 8, 2)))]
    nodes = [("LSTM", ["x", "W", "R"], list(names), {"hidden_size": 2})]
    outputs = [("Y", ["a", "b", "c", "d"]), ("Y_h", ["e", "f", "g"])]
    return model(path, nodes, [("x", ["steps", batch, 3])], outputs, weights)


def bare(path, feeds, axes, batch_rows, *, fixed=False):
    """Return each output with its rows first, from ONNX Runtime alone, in batches of so many rows."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    rows = len(next(iter(feeds.values())))
    found = {name: [] for name in outputs}
    for at in range(0, rows, batch_rows):
        batch = {name: value[at : at + batch_rows] for name, value in feeds.items()}
        n = len(next(iter(batch.values())))
        if fixed and n < batch_rows:
            batch = {k: np.concatenate([v, np.repeat(v[-1:], batch_rows - n, axis=0)]) for k, v in batch.items()}
        turned = {k: np.ascontiguousarray(np.swapaxes(v, 0, axes.get(k, 0))) for k, v in batch.items()}
        for name, value in zip(outputs, session.run(None, turned), strict=True):
            found[name].append(np.moveaxis(value, axes.get(name, 0), 0)[:n])
    return {name: np.concatenate(values) for name, values in found.items()}


def matrix(column, rows=ROWS):
    column = column.combine_chunks()
    while pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        column = column.flatten()
    return column.to_numpy(zero_copy_only=False).reshape(rows, -1)


def same(column, expected):
    return np.array_equal(matrix(column, len(expected)), expected.reshape(len(expected), -1))


@pytest.fixture
def numbers():
    return np.random.default_rng(1).standard_normal((ROWS, 3)).astype(np.float32)


@pytest.fixture
def source(numbers, tmp_path):
    columns = {"id": np.arange(len(numbers))} | {name: numbers[:, i] for i, name in enumerate("abc")}
    return write(tmp_path / "in.parquet", columns, row_group_size=10)


@pytest.fixture
def series(tmp_path):
    """Rows of seven steps of three values, and the file with them."""
    values = np.random.default_rng(2).standard_normal((ROWS, 7, 3)).astype(np.float32)
    kind = pa.list_(pa.list_(pa.float32(), 3), 7)
    table = pa.table({"id": range(ROWS), "x": pa.array(values.tolist(), kind)})
    return values, write(tmp_path / "series.parquet", table, row_group_size=10)


def run(source, path, out, *flags):
    code, _, text = cli("run", source, "--model", path, "--output", out, "--quiet", *map(str, flags))
    assert (code, text) == (0, "")
    return read(out)


def refused(source, path, *flags):
    code, _, text = cli("run", source, "--model", path, "--output", source.parent / "none", "--quiet", *flags)
    assert code in {2, 3}, text
    assert not (source.parent / "none").exists()
    return text


def test_an_output_with_the_rows_on_its_second_axis_is_scored_without_a_flag(numbers, source, tmp_path, backend):
    path = steps_first(tmp_path / "m.onnx")
    scorer.run(source, path, tmp_path / "out", feed="x=a,b,c", batch_rows=7, **backend)
    expected = bare(path, {"x": numbers}, {"y": 1}, 7)["y"]
    assert expected.shape == (ROWS, STEPS, CLASSES)
    assert same(read(tmp_path / "out")["y"], expected)
    code, text, _ = cli("verify", tmp_path / "out", "--rescore", ROWS)
    assert code == 0
    assert f"{ROWS} rows of" in text
    assert "all have the same bits" in text


def test_an_input_and_outputs_with_the_rows_on_other_axes_are_scored_without_a_flag(series, tmp_path, backend):
    values, source = series
    path = recurrent(tmp_path / "m.onnx")
    scorer.run(source, path, tmp_path / "out", keep="id", batch_rows=7, **backend)
    expected, out = bare(path, {"x": values}, {"x": 1, "Y": 2, "Y_h": 1}, 7), read(tmp_path / "out")
    assert same(out["Y"], expected["Y"])
    assert same(out["Y_h"], expected["Y_h"])


def test_the_plan_and_inspect_show_which_tensors_do_not_have_their_rows_first(series, tmp_path):
    _, source = series
    path = recurrent(tmp_path / "m.onnx")
    note = "rows are not on the first axis, as the shapes show: 'x' on axis 1, 'Y' on axis 2, 'Y_h' on axis 1"
    plan = scorer.prepare(source, path, tmp_path / "out")
    assert note in plan.notes
    assert plan.check().to_dict()["binding"]["batch_axes"] == (("x", 1), ("Y", 2), ("Y_h", 1))
    assert note in " ".join(cli("inspect", path, "--input", source)[1].split())
    named = scorer.prepare(source, path, tmp_path / "out", batch_axis={"x": 1, "Y": 2, "Y_h": 1})
    assert not [one for one in named.notes if "axis" in one]


def test_an_input_whose_shape_does_not_say_where_its_rows_are_gets_a_note_with_the_flag(series, tmp_path):
    values, source = series
    path = recurrent(tmp_path / "m.onnx", batch="other")
    text = " ".join(cli("plan", source, "--model", path, "--output", tmp_path / "out", "--fetch", "Y")[1].split())
    assert "a row's score depends on the other rows" in text
    assert "if the rows of 'x' are on another axis, add --batch-axis 'x=1'" in text
    out = run(source, path, tmp_path / "out", "--batch-axis", "x=1", "--batch-rows", "7", "--strict")
    assert same(out["Y"], bare(path, {"x": values}, {"x": 1, "Y": 2, "Y_h": 1}, 7)["Y"])


def test_a_model_keeps_its_state_constant_for_every_row(series, tmp_path):
    values, source = series
    path = recurrent(tmp_path / "m.onnx")
    found = onnx.load(path)
    for name in ("initial_h", "initial_c"):
        found.graph.input.append(helper.make_tensor_value_info(name, T.FLOAT, [1, "batch", 2]))
    found.graph.node[0].input.extend(["", "", "initial_h", "initial_c"])
    onnx.save(found, path)
    flags = ("--feed", "initial_h=const(0)", "--feed", "initial_c=const(0)", "--fetch", "Y", "--batch-rows", "7")
    out = run(source, path, tmp_path / "out", "--feed", "x=x", *flags)
    start = np.zeros((ROWS, 1, 2), np.float32)
    axes = {"x": 1, "Y": 2, "Y_h": 1, "initial_h": 1, "initial_c": 1}
    assert same(out["Y"], bare(path, {"x": values, "initial_h": start, "initial_c": start}, axes, 7)["Y"])


def keeping_state(path, batch, free):
    """Write a model of x [batch, 3] that adds both layers of its state [2, batch, 3] and returns the next state."""
    nodes = [
        ("ReduceSum", ["state", "layers"], ["both"], {"keepdims": 0}), ("Add", ["x", "both"], ["y"], {}),
        ("Add", ["state", "x"], ["stateN"], {}),
    ]  # fmt: skip
    inputs, outputs = [("x", [batch, 3]), ("state", [2, free, 3])], [("y", [batch, 3]), ("stateN", [None, None, None])]
    return model(path, nodes, inputs, outputs, [("layers", np.array([0]))])


def test_the_only_free_axis_of_a_state_holds_the_rows(numbers, tmp_path):
    path = keeping_state(tmp_path / "m.onnx", None, None)
    state = np.arange(ROWS * 6, dtype=np.float32).reshape(ROWS, 2, 3)
    columns = {name: numbers[:, i] for i, name in enumerate("abc")}
    kind = pa.list_(pa.list_(pa.float32(), 3), 2)
    source = write(tmp_path / "in.parquet", columns | {"before": pa.array(state.tolist(), kind)})
    flags = ("--feed", "x=a,b,c", "--batch-rows", "7")
    out = run(source, path, tmp_path / "zero", *flags, "--feed", "state=const(0)")
    np.testing.assert_array_equal(np.stack([out[f"y_{i}"] for i in range(3)], axis=1), numbers)
    out = run(source, path, tmp_path / "own", *flags, "--feed", "state=before")
    np.testing.assert_allclose(np.stack([out[f"y_{i}"] for i in range(3)], axis=1), numbers + state.sum(axis=1))
    expected = state + numbers[:, np.newaxis]
    np.testing.assert_allclose(matrix(out["stateN"], ROWS).reshape(expected.shape), expected)
    text = " ".join(cli("plan", source, "--model", path, *flags, "--feed", "state=const(0)")[1].split())
    assert "rows are not on the first axis, as the shapes show: 'state' on axis 1, 'stateN' on axis 1" in text


def test_a_free_axis_of_a_state_with_another_name_than_the_batch_is_not_assumed_to_hold_the_rows(tmp_path):
    path = keeping_state(tmp_path / "m.onnx", "rows", "past")
    source = write(tmp_path / "in.parquet", {name: np.arange(5.0, dtype=np.float32) for name in "abc"})
    plan = scorer.prepare(source, path, tmp_path / "out", feed=["x=a,b,c", "state=const(0)"], fetch="y")
    assert dict(plan.check().scorers[0].binding.batch_axes).get("state", 0) == 0


@pytest.mark.parametrize("rows", [1, STEPS, 8, 9])
def test_as_many_rows_as_steps_do_not_hide_the_axis(rows, numbers, tmp_path):
    path = steps_first(tmp_path / "m.onnx")
    source = write(tmp_path / "few.parquet", {name: numbers[:rows, i] for i, name in enumerate("abc")})
    out = run(source, path, tmp_path / "out", "--feed", "x=a,b,c", "--fetch", "y")
    np.testing.assert_allclose(matrix(out["y"], rows), (numbers[:rows] @ WEIGHTS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fixed", [1, 4, STEPS])
def test_a_fixed_batch_is_padded_and_cut_on_its_axis(fixed, numbers, source, tmp_path):
    path = steps_first(tmp_path / "m.onnx", batch=fixed, output=(STEPS, fixed, CLASSES))
    flags = ("--batch-axis", "y=1") if fixed == STEPS else ()
    out = run(source, path, tmp_path / "out", "--feed", "x=a,b,c", *flags)
    assert same(out["y"], bare(path, {"x": numbers}, {"y": 1}, fixed, fixed=True)["y"])


def test_infinite_outputs_of_a_fixed_batch_do_not_hide_the_axis(numbers, tmp_path):
    numbers[0], numbers[3, 0] = np.inf, -np.inf
    path = steps_first(tmp_path / "m.onnx", batch=4, output=(STEPS, 4, CLASSES))
    given = write(tmp_path / "in.parquet", {name: numbers[:, i] for i, name in enumerate("abc")})
    out = matrix(run(given, path, tmp_path / "out.parquet", "--by-position")["y"])
    expected = bare(path, {"x": numbers}, {"y": 1}, 4, fixed=True)["y"]
    assert np.isinf(expected).any()
    np.testing.assert_array_equal(out, expected.reshape(out.shape))


def test_a_bad_row_is_found_in_a_batch_on_another_axis(numbers, tmp_path):
    """The model fails for a row with a value that is no position of its table."""
    nodes = [
        ("Cast", ["x"], ["place"], {"to": T.INT64}), ("Gather", ["table", "place"], ["deep"], {}),
        ("Transpose", ["deep"], ["y"], {"perm": [1, 0, 2]}),
    ]  # fmt: skip
    table = np.arange(10 * 2, dtype=np.float32).reshape(10, 2)
    path = model(tmp_path / "m.onnx", nodes, [("x", ["r", 3])], [("y", ["p", "q", 2])], [("table", table)])
    places = np.random.default_rng(4).integers(0, 10, (ROWS, 3)).astype(np.float32)
    places[[4, 17]] = 99
    source = write(tmp_path / "in.parquet", {"id": np.arange(ROWS)} | {n: places[:, i] for i, n in enumerate("abc")})
    out = run(source, path, tmp_path / "out", "--feed", "x=a,b,c", "--max-bad-rows", "2", "--keep", "id")
    good = np.delete(np.arange(ROWS), [4, 17])
    assert out["id"].to_pylist() == good.tolist()
    expected = table[places[good].astype(int)]
    assert same(out["y"], expected)


def square(path):
    """Write a model whose output is [2, N, N], with its rows on axis 2: a row is added to itself."""
    nodes = [
        ("Shape", ["x"], ["s"], {}), ("Gather", ["s", "zero"], ["n"], {}),
        ("Concat", ["two", "n", "n"], ["to"], {"axis": 0}),
        ("Reshape", ["x", "flat"], ["row"], {}), ("Expand", ["row", "to"], ["y"], {}),
    ]  # fmt: skip
    weights = [("zero", np.array([0])), ("two", np.array([2])), ("flat", np.array([1, 1, -1]))]
    return model(path, nodes, [("x", ["r", 1])], [("y", [2, "p", "q"])], weights)


def test_two_axes_that_follow_the_batch_are_refused_with_the_flag(source, tmp_path):
    text = refused(source, square(tmp_path / "m.onnx"), "--feed", "x=a")
    assert "output 'y' does not have one row per input row" in text
    assert "Hint: --batch-axis 'y=1' if its rows are on that axis; otherwise" in text


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        ("y=0", ["axis 0 of output 'y' does not hold the rows", "Hint: --batch-axis 'y=1'"]),
        ("y=2", ["axis 2 of output 'y' does not hold the rows", "[5, 8, 4], and [5, 9, 4] for 9 rows"]),
        ("y=3", ["tensor 'y' has no axis 3", "an axis from 0 to 2"]),
        ("x=2", ["tensor 'x' has no axis 2", "[rows, 3]"]),
        ("z=1", ["it names a tensor that the model does not have"]),
        ("y=last", ["no axis of 'y'", "a whole number, 0 or more"]),
        ("y", ["no axis of 'y'"]), ("", ["a tensor that the model does not have"]), ("y=-1", ["0 or more"]),
    ],
)  # fmt: skip
def test_a_wrong_axis_is_refused(axis, words, source, tmp_path):
    text = refused(source, steps_first(tmp_path / "m.onnx"), "--feed", "x=a,b,c", "--batch-axis", axis)
    for word in words:
        assert word in text, text


def test_two_axes_for_one_tensor_are_refused(source, tmp_path):
    axes = ("--batch-axis", "y=1", "--batch-axis", "y=2")
    text = refused(source, steps_first(tmp_path / "m.onnx"), "--feed", "x=a,b,c", *axes)
    assert "two axes for 'y'" in text


def test_a_mean_over_a_fixed_batch_is_no_axis_of_rows(source, tmp_path):
    """Its only axis of the batch's size are the columns."""
    nodes = [("ReduceMean", ["x"], ["y"], {"axes": [0], "keepdims": 1})]
    text = refused(source, model(tmp_path / "m.onnx", nodes, [("x", [3, 3])], [("y", [1, 3])]), "--feed", "x=a,b,c")
    assert "output 'y' does not have one row per input row" in text


def test_a_job_file_and_python_take_a_table_of_axes(numbers, source, tmp_path):
    path = steps_first(tmp_path / "m.onnx")
    job = tmp_path / "job.toml"
    job.write_text(f'input = "{source}"\nmodel = "{path}"\nfeed = ["x=a,b,c"]\noutput = "{tmp_path / "out"}"\n'
                   "[batch_axis]\ny = 1\n")  # fmt: skip
    code, _, text = cli("run", "--config", job, "--quiet")
    assert (code, text) == (0, "")
    frame = pd.DataFrame(numbers, columns=list("abc"))
    scored = scorer.score(frame, path, feed="x=a,b,c", batch_axis={"y": 1})
    assert np.array_equal(np.stack(scored["y"]), matrix(read(tmp_path / "out")["y"]))
    with pytest.raises(scorer.PreflightError, match="whole numbers by tensor"):
        scorer.score(frame, path, feed="x=a,b,c", batch_axis={"y": "one"})
    saved = json.loads((tmp_path / "out.scorer" / "plan.json").read_text())
    assert saved["request"]["batch_axis"] == ["y=1"]


def test_a_plan_of_rows_on_the_first_axis_does_not_mention_axes(numbers, source, tmp_path):
    path = model(tmp_path / "m.onnx", [("Neg", ["x"], ["y"], {})], [("x", ["N", 3])], [("y", ["N", 3])])
    run(source, path, tmp_path / "out", "--feed", "x=a,b,c")
    assert "batch_ax" not in re.sub(r"[0-9a-f]{16,}", "", (tmp_path / "out.scorer" / "plan.json").read_text())
