"""The recipes of `scorer optimise`: which fit a model, and what their models compute on the bare runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.runs import FLIGHTS, MODELS, oracle
from support.small_nets import net, save, whole_numbers, whole_weights

from scorer.errors import ModelError
from scorer.model.optimising import recipes
from scorer.model.optimising._weights import with_8_bit_weights

LARGE = np.zeros((1024, 1000), np.float32)


def product(kind, weight, *, transposed=False):
    """A model of one MatMul or Gemm, with weights in a constant node."""
    stored = weight.T if transposed else weight
    bias = numpy_helper.from_array(np.arange(weight.shape[1], dtype=np.float32), "b")
    inputs = ["x", "w"] if kind == "MatMul" else ["x", "w", "b"]
    settings = {} if kind == "MatMul" else {"transB": int(transposed)}
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(np.ascontiguousarray(stored), "v")),
        helper.make_node(kind, inputs, ["p"], **settings),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", None]) for name in "xp"]
    graph = helper.make_graph(nodes, "product", ends[:1], ends[1:], [] if kind == "MatMul" else [bias])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("kind", "transposed"), [("MatMul", False), ("Gemm", False), ("Gemm", True)])
@pytest.mark.parametrize("features", [32, 50])
def test_8_bit_weights_are_exact_for_whole_numbers(kind, transposed, features, tmp_path):
    rng = np.random.default_rng(features)
    weight = rng.integers(-127, 128, (features, 6)).astype(np.float32)
    values = rng.integers(-127, 128, (9, features)).astype(np.float32)
    weight[::32], values[:, ::32] = 127, -127  # the scale of each block is then 1
    onnx.save(product(kind, weight, transposed=transposed), tmp_path / "m.onnx")
    source = recipes.read(str(tmp_path / "m.onnx"), "m.onnx", dynamic=False)
    written = recipes.write(recipes.WEIGHTS, source, [], str(tmp_path))
    assert [node.op_type for node in onnx.load(written).graph.node if node.op_type != "Add"] == ["MatMulNBits"]
    expected = oracle(tmp_path / "m.onnx", {"x": values})["p"]
    assert np.array_equal(oracle(written, {"x": values})["p"], expected)


def test_a_shared_weight_stays_for_its_other_user():
    model = net([whole_weights(32, 32)])
    model.graph.node.append(helper.make_node("Add", ["p", "w0"], ["sum"]))
    model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, [32, 32]))
    with_8_bit_weights(model)
    assert "w0" in {one.name for one in model.graph.initializer}
    onnx.checker.check_model(model)


def branch():
    """A model with an If around its product."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in "xp"]
    inner = helper.make_graph([helper.make_node("Neg", ["x"], ["r"])], "inner", [], [
        helper.make_tensor_value_info("r", TensorProto.FLOAT, ["N", 2])
    ])  # fmt: skip
    yes = numpy_helper.from_array(np.ones((), bool), "yes")
    node = helper.make_node("If", ["yes"], ["p"], then_branch=inner, else_branch=inner)
    graph = helper.make_graph([node], "branch", ends[:1], ends[1:], [yes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (FLIGHTS / "late.onnx", "its trees are scored by scorer's compiled kernel already"),
        (MODELS / "sum3.onnx", "it has no MatMul, Gemm or Conv with constant float32 weights"),
        (branch, "it has control flow ('If'), which is left alone"),
    ],
    ids=["trees", "no product", "control flow"],
)
def test_a_model_that_no_recipe_fits_is_left_alone_with_the_reason(model, reason, tmp_path):
    if callable(model):
        onnx.save(model(), tmp_path / "m.onnx")
        model = tmp_path / "m.onnx"
    source = recipes.read(str(model), "m.onnx", dynamic=True)
    assert (source.fitting, source.reason) == ((), reason)


@pytest.mark.parametrize(
    ("weight", "dynamic", "fitting"),
    [
        (np.zeros((8, 8)), False, (recipes.STATIC,)),
        (np.zeros((8, 8)), True, (recipes.STATIC, recipes.DYNAMIC)),
        (LARGE, False, (recipes.STATIC, recipes.WEIGHTS)),
    ],
    ids=["small", "small, dynamic", "large"],
)
def test_recipes_fit_by_operators_and_size(weight, dynamic, fitting, tmp_path):
    path, _ = save(tmp_path, net([weight]), np.zeros((1, weight.shape[0])))
    assert recipes.read(str(path), "m.onnx", dynamic=dynamic).fitting == fitting


def test_a_recipe_that_fails_names_itself_and_the_cause(tmp_path):
    path, _ = save(tmp_path, net([whole_weights(8, 8)]), whole_numbers(1, 8))
    source = recipes.read(str(path), "m.onnx", dynamic=False)
    with pytest.raises(ModelError, match="cannot be written") as caught:
        recipes.write(recipes.STATIC, source, [{"y": np.zeros((1, 8), np.float32)}], str(tmp_path))
    assert caught.value.where == recipes.STATIC
    assert "y" in caught.value.found


def test_a_bias_of_one_row_is_taken(tmp_path):
    model = net([whole_weights(32, 12)])
    bias = model.graph.initializer[1]
    bias.CopyFrom(numpy_helper.from_array(np.arange(12, dtype=np.float32)[None], "b0"))
    path, _ = save(tmp_path, model, whole_numbers(1, 32))
    source = recipes.read(str(path), "m.onnx", dynamic=False)
    written = recipes.write(recipes.STATIC, source, [{"x": whole_numbers(60, 32)}], str(tmp_path))
    values = whole_numbers(9, 32, seed=2)
    assert np.array_equal(oracle(written, {"x": values})["p"], oracle(path, {"x": values})["p"])


def test_a_quantised_model_is_left_alone(tmp_path):
    path, _ = save(tmp_path, net([whole_weights(8, 8)]), whole_numbers(1, 8))
    source = recipes.read(str(path), "m.onnx", dynamic=True)
    for recipe in (recipes.STATIC, recipes.DYNAMIC):
        written = recipes.write(recipe, source, [{"x": whole_numbers(4, 8)}], str(tmp_path))
        assert recipes.read(written, "m.onnx", dynamic=True).reason.startswith("it is quantised already (")
