"""Rows get the scores of the bare runtime, and a bad row does not affect the others."""

from __future__ import annotations

import numpy as np
import onnx
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from support import strategies
from support.runs import MODELS, oracle

from scorer.binding.inputs import bind
from scorer.binding.outputs import Kept, output_schema, requested_fetches
from scorer.errors import BindingError, OutOfMemory, ScorerError, ShapeMismatch
from scorer.model.protobuf import inspect_model
from scorer.model.session import Session
from scorer.model.spec import SessionSpec
from scorer.options.request import build
from scorer.preflight import trial
from scorer.scoring import batches

SESSIONS = {}


def load(path):
    """Return (model, session); each model is loaded once for all tests of this file."""
    if path not in SESSIONS:
        spec = inspect_model(path)
        session = Session(SessionSpec(path=str(path), digest=spec.digest, files=spec.files, device="cpu"))
        SESSIONS[path] = (spec, session)
    return SESSIONS[path]


def bound(path, table, **options):
    """Return (binding with its outputs, session), as the preflight does."""
    spec, session = load(path)
    asked = build({"input": "-", "model": "-", "by_position": True, **options}).binding
    binding, problems = bind(asked, spec, table.schema)
    wanted, more = requested_fetches(asked, spec)
    assert [*problems, *more] == []
    binding, wrong = trial.outputs(session, binding, wanted, table, spec, asked.prefix)
    if wrong:
        raise wrong[0]
    return binding, session


def scored(name, table, edges=None, **options):
    binding, session = bound(name if hasattr(name, "parent") else MODELS / f"{name}.onnx", table, **options)
    rows = table.num_rows
    got = batches.score(table, np.asarray(batches.grid(rows, 7) if edges is None else edges), binding, session)
    assert got.rows == rows
    schema, problems = output_schema(Kept(), binding.fetches, table.schema, "")
    assert problems == []
    columns = dict(zip(binding.outputs, got.columns, strict=True))
    for column, values in columns.items():
        assert len(values) == rows
        assert values.type == schema.field(column).type
    return got, {column: values.to_pylist() for column, values in columns.items()}


def floats(rows, *names, seed=0):
    rng = np.random.default_rng(seed)
    return pa.table({name: rng.standard_normal(rows).astype(np.float32) for name in names})


def matrix(table, dtype=np.float32):
    return np.stack([column.to_numpy() for column in table.columns], axis=1).astype(dtype)


@settings(max_examples=60)
@given(rows=st.integers(1, 60), data=st.data())
def test_any_batch_grid_gives_the_same_scores(rows, data):
    table = floats(rows, "a", "b", "c", seed=rows)
    edges = data.draw(strategies.edges(rows))
    got, columns = scored("sum3", table, edges)
    assert columns["total"] == oracle(MODELS / "sum3.onnx", {"x": matrix(table)})["total"].tolist()
    assert (got.bad, got.nan, got.calls) == ({}, 0, len(edges) - 1)


def test_the_same_grid_gives_the_same_bits_as_the_bare_runtime():
    table = floats(100, *(f"f{i}" for i in range(28)))
    _, columns = scored("dense28", table, batches.grid(100, 16))
    wanted = oracle(MODELS / "dense28.onnx", {"input": matrix(table)}, 16)["score"][:, 0]
    assert np.array_equal(np.array(columns["score"], np.float32).view(np.int32), wanted.view(np.int32))


@settings(max_examples=60)
@given(idx=st.lists(st.integers(0, 9) | st.integers(-30, 30), min_size=1, max_size=50), data=st.data())
def test_a_row_that_the_runtime_refuses_does_not_affect_the_others(idx, data):
    edges = data.draw(strategies.edges(len(idx)))
    got, columns = scored("gather", pa.table({"idx": idx}), edges)
    good = [-10 <= i <= 9 for i in idx]
    assert set(got.bad) == {i for i, ok in enumerate(good) if not ok}
    assert columns["value"] == [(i % 10) * 10.0 if ok else None for i, ok in zip(idx, good, strict=True)]
    assert all(stage == "infer" and str(idx[row]) in reason for row, (stage, reason) in got.bad.items())


def test_isolating_one_row_takes_about_two_calls_per_halving():
    idx = [5] * 1024
    idx[700] = 99
    got, _ = scored("gather", pa.table({"idx": idx}), [0, 1024])
    assert list(got.bad) == [700]
    assert got.calls <= 1 + 2 * 10
    assert got.smallest_batch == 1


@pytest.mark.parametrize(("every", "most"), [(1, 1.03), (2, 2.1), (3, 3.6), (10, 8), (100, 17)])
def test_calls_for_each_bad_row_when_there_are_many(every, most):
    """One bad row in `every`: each row alone would take `every` calls for it, halving alone up to twice that."""
    idx = [99 if i % every == 0 else 5 for i in range(1024)]
    got, columns = scored("gather", pa.table({"idx": idx}), [0, 1024])
    assert sorted(got.bad) == list(range(0, 1024, every))
    assert columns["value"] == [None if i % every == 0 else 50 for i in range(1024)]
    assert got.calls / len(got.bad) <= most


class SmallMemory:
    """A session whose memory holds at most `rows` rows."""

    def __init__(self, session, rows):
        self.session, self.rows, self.spec, self.fits, self.tried = session, rows, session.spec, None, []

    def run(self, outputs, feeds):
        rows = len(next(iter(feeds.values())))
        self.tried.append(rows)
        if rows > self.rows:
            raise OutOfMemory("the runtime refused a batch", "", "", "bad allocation")
        return self.session.run(outputs, feeds)


def test_when_memory_runs_out_all_later_batches_are_halved():
    table = pa.table({"idx": pa.array([5] * 300, pa.int64())})
    binding, session = bound(MODELS / "gather.onnx", table)
    limited = SmallMemory(session, 30)
    got = batches.score(table, np.array([0, 100, 200, 300]), binding, limited)
    assert (got.bad, got.smallest_batch) == ({}, 25)
    assert limited.tried == [100, 50, *[25] * 12]
    assert got.columns[0].to_pylist() == [50] * 300


def test_a_single_row_that_does_not_fit_into_memory_fails_the_part():
    table = pa.table({"idx": pa.array([5, 5], pa.int64())})
    binding, session = bound(MODELS / "gather.onnx", table)
    with pytest.raises(OutOfMemory):
        batches.score(table, np.array([0, 2]), binding, SmallMemory(session, 0))


def test_bad_rows_name_the_stage_that_failed():
    table = pa.table({"idx": pa.array([1, None, 77, 2], pa.int64())})
    got, columns = scored("gather", table, [0, 4])
    assert {row: stage for row, (stage, _) in got.bad.items()} == {1: "feed", 2: "infer"}
    assert columns["value"] == [10, None, None, 20]


@pytest.mark.parametrize("idx", [[None, None, None], [99, 99, 99]])
def test_a_part_of_bad_rows_only_has_columns_of_nulls(idx):
    got, columns = scored("gather", pa.table({"idx": pa.array(idx, pa.int64())}), [0, 2, 3])
    assert len(got.bad) == 3
    assert columns["value"] == [None] * 3


@pytest.mark.parametrize("model", ["wide_output", "zipmap"])
def test_bad_rows_leave_nulls_in_lists_and_maps_too(model):
    table = floats(9, "a", "b", "c", "d")
    table = table.set_column(0, "a", pa.array([None, *range(7), None], pa.float32()))
    got, columns = scored(model, table, [0, 4, 9], on_null=("error",))
    assert set(got.bad) == {0, 8}
    for values in columns.values():
        assert [v is None for v in values] == [True, *[False] * 7, True]


@settings(max_examples=30)
@given(rows=st.integers(1, 20), data=st.data())
def test_a_fixed_batch_is_padded_and_cut(rows, data):
    table = floats(rows, "a", "b", seed=rows)
    edges = sorted({*range(0, rows, 3), rows, *data.draw(strategies.edges(rows))})
    _, columns = scored("fixed3", table, edges)
    wanted = matrix(table) * 2 + 1
    assert [columns["y_0"], columns["y_1"]] == [wanted[:, 0].tolist(), wanted[:, 1].tolist()]


def test_a_fixed_batch_with_bad_rows_is_padded_with_a_good_row():
    table = pa.table({"a": pa.array([1, None, 3, 4], pa.float32()), "b": pa.array([1, 2, 3, None], pa.float32())})
    got, columns = scored("fixed3", table, [0, 3, 4], on_null=("error",))
    assert (set(got.bad), columns["y_0"]) == ({1, 3}, [3, None, 7, None])


@pytest.mark.parametrize("model", ["zipmap", "zipmap_int"])
def test_maps_equal_the_bare_runtimes(model):
    table = floats(23, *"abcd")
    _, columns = scored(model, table, batches.grid(23, 5))
    wanted = oracle(MODELS / f"{model}.onnx", {"x": matrix(table)}, 5)
    assert columns["label"] == list(wanted["label"])
    names = ["setosa", "versicolor", "virginica"] if model == "zipmap" else [0, 1, 2]
    for name in names:
        assert columns[f"probabilities_{name}"] == [row[name] for row in wanted["probabilities"]]


def test_texts_go_in_and_come_out():
    table = pa.table({"color": ["red", "green", None, "brown", ""], "size": [1.0, 2.0, 3.0, 4.0, 5.0]})
    got, columns = scored("strings", table, [0, 2, 5])
    assert columns["label"] == ["warm", "cool", None, "unknown", "unknown"]
    assert columns["size_out"] == [2, 4, None, 8, 10]
    assert got.bad == {2: ("feed", "null in column 'color' (tensor 'color')")}


def test_a_dictionary_of_texts_gives_the_same_labels():
    plain = pa.table({"color": ["red", "blue", "red"], "size": [1.0, 2.0, 3.0]})
    encoded = plain.set_column(0, "color", plain["color"].dictionary_encode())
    assert scored("strings", encoded)[1] == scored("strings", plain)[1]


def test_a_wrong_declared_output_shape_is_ignored():
    table = floats(11, "a", "b")
    _, columns = scored("lying", table, [0, 4, 11])
    assert columns["label"] == oracle(MODELS / "lying.onnx", {"x": matrix(table)})["label"].tolist()


def test_several_outputs_become_their_own_columns():
    table = floats(10, *"abcd")
    _, columns = scored("two_outputs", table, [0, 10])
    wanted = oracle(MODELS / "two_outputs.onnx", {"x": matrix(table)})
    assert columns["mean"] == wanted["mean"].tolist()
    assert [columns[f"logits_{i}"] for i in range(3)] == wanted["logits"].T.tolist()
    _, columns = scored("two_outputs", table, [0, 10], fetch=("logits=l",), prefix="s_")
    assert list(columns) == ["s_l_0", "s_l_1", "s_l_2"]


def test_a_wide_output_is_one_list_per_row():
    table = floats(10, *"abcd")
    _, columns = scored("wide_output", table, [0, 10])
    assert columns["embedding"] == oracle(MODELS / "wide_output.onnx", {"x": matrix(table)})["embedding"].tolist()


def test_half_floats_are_widened():
    table = floats(10, "a", "b")
    got, columns = scored("float16", table)
    assert got.columns[0].type == pa.float32()
    wanted = oracle(MODELS / "float16.onnx", {"x": matrix(table, np.float16)})["y"].astype(np.float32)
    assert [columns["y_0"], columns["y_1"]] == wanted.T.tolist()


@pytest.mark.parametrize(("model", "kind"), [("float64", np.float64), ("int64_in", np.int64)])
def test_doubles_and_integers_keep_their_precision(model, kind):
    big = 2**53 - 1
    table = pa.table({"a": np.array([big, 1], kind), "b": np.array([-1, 2], kind)})
    _, columns = scored(model, table, feed=("x=a,b",))
    assert columns["y"] == [big - 1, 3]


def test_flags_are_scored():
    got, columns = scored("bool_in", pa.table({"flag": [True, False, None]}))
    assert columns["negated"] == [False, True, None]
    assert list(got.bad) == [2]


def test_inputs_of_several_types_and_shapes_are_fed_together():
    table = pa.table({"a": [1.5, 2.5], "b": [1, 2], "petal length": [10.0, 20.0]})
    assert scored("percolumn", table)[1]["out"] == [12.5, 24.5]


@pytest.mark.parametrize("rows", [0, 1, 2, 10])
def test_a_model_that_reduces_its_rows_is_refused(rows):
    with pytest.raises(ShapeMismatch, match="one row per input row"):
        scored("reduce_all", floats(rows, "a", "b"))


def test_nan_scores_are_counted_by_row():
    table = pa.table({"a": [1.0, None, None], "b": [1.0, None, 2.0]})
    got, columns = scored("float16", table)
    assert got.nan == 2
    assert columns["y_0"][1] != columns["y_0"][1]
    got, _ = scored("wide_output", floats(3, *"bcd").add_column(0, "a", pa.array([1, None, 2], pa.float32())))
    assert got.nan == 1


def test_lossy_values_are_counted_if_requested():
    table = pa.table({"a": [2**24 + 1, 1], "b": [2**24 + 1, 2**24 + 3], "c": [0, 0]})
    got, _ = scored("sum3", table, on_lossy="warn", feed=("x=a,b,c",))
    assert (got.lossy, got.bad) == (3, {})
    got, _ = scored("sum3", table, on_lossy="error", feed=("x=a,b,c",))
    assert (got.lossy, set(got.bad)) == (0, {0, 1})


@pytest.mark.parametrize("model", ["sum3", "zipmap", "wide_output", "strings", "two_outputs", "fixed3", "bool_in"])
def test_no_rows_give_empty_columns(model):
    kinds = {"strings": {"color": pa.string(), "size": pa.float32()}, "bool_in": {"flag": pa.bool_()}}
    names = {"sum3": "abc", "fixed3": "ab"}.get(model, "abcd")
    table = pa.schema(kinds.get(model) or {n: pa.float32() for n in names}).empty_table()
    got, columns = scored(model, table, [0])
    assert (got.calls, got.bad) == (0, {})
    assert all(values == [] for values in columns.values())


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 3)])
def test_a_list_column_scores_as_its_values_as_columns(kind):
    flat = floats(12, "a", "b", "c")
    rows = matrix(flat).tolist()
    lists = pa.table({"v": pa.chunked_array([pa.array(rows[:5], kind), pa.array(rows[5:], kind)])})
    assert scored("sum3", lists)[1] == scored("sum3", flat)[1]


def test_no_rows_of_a_list_column_give_empty_columns():
    table = pa.schema([("v", pa.list_(pa.float32()))]).empty_table()
    _, columns = scored("sum3", table, [0])
    assert columns == {"total": []}


def test_a_model_that_refuses_every_first_row_is_refused_with_the_reason(tmp_path):
    node = make_node("Reshape", ["x", "shape"], ["y"])
    values = [make_tensor_value_info(n, TensorProto.FLOAT, ["N", 2]) for n in ("x", "y")]
    shape = onnx.numpy_helper.from_array(np.array([7, 5]), "shape")
    graph = make_graph([node], "g", values[:1], values[1:], [shape])
    path = tmp_path / "stubborn.onnx"
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 21)], ir_version=10), path)
    with pytest.raises(BindingError, match="fails on the first rows"):
        scored(path, floats(4, "a", "b"))


def test_an_output_whose_width_depends_on_the_values_is_a_scorer_error(tmp_path):
    """The width of the output depends on the largest value of the batch, so it differs between batches."""
    x = make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])
    y = make_tensor_value_info("y", TensorProto.FLOAT, ["N", "M"])
    nodes = [
        make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        make_node("Cast", ["most"], ["count"], to=TensorProto.INT64),
        make_node("Unsqueeze", ["count", "zero"], ["counts"]),
        make_node("Concat", ["one", "counts"], ["repeats"], axis=0),
        make_node("Tile", ["x", "repeats"], ["y"]),
    ]
    constants = [onnx.numpy_helper.from_array(np.array([v]), n) for v, n in ((0, "zero"), (1, "one"))]
    path = tmp_path / "grows.onnx"
    graph = make_graph(nodes, "g", [x], [y], constants)
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 21)], ir_version=10), path)
    table = pa.table({"a": [1.0, 1.0, 2.0, 2.0], "b": [1.0, 1.0, 2.0, 2.0]})
    binding, session = bound(path, table.slice(0, 2))
    with pytest.raises(ScorerError, match="changed its width"):
        batches.score(table, np.array([0, 2, 4]), binding, session)


def test_edges_of_a_grid_cover_all_rows():
    assert batches.grid(10, 4).tolist() == [0, 4, 8, 10]
    assert batches.grid(8, 4).tolist() == [0, 4, 8]
    assert batches.grid(0, 4).tolist() == [0]
