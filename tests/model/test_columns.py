"""Which columns a model with tree ensembles never looks at: changing them changes no bit of the outputs."""

from __future__ import annotations

import time
from collections import deque

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from scorer.model._columns import unused_columns

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, 3.4e38, 1.0], np.float32)
OPSETS = [helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("", 17)]


def ml(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, domain="ai.onnx.ml", **attributes)


def trees(take, give, columns):
    """Return a regressor with one tree of one comparison for each of these columns; each leaf has its own weight."""
    n = len(columns)
    return ml(
        "TreeEnsembleRegressor", [take], [give], n_targets=1,
        nodes_treeids=np.repeat(range(n), 3).tolist(), nodes_nodeids=[0, 1, 2] * n,
        nodes_featureids=[one for column in columns for one in (column, 0, 0)],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"] * n, nodes_values=[0.5, 0.0, 0.0] * n,
        nodes_truenodeids=[1, 0, 0] * n, nodes_falsenodeids=[2, 0, 0] * n,
        target_treeids=np.repeat(range(n), 2).tolist(), target_nodeids=[1, 2] * n, target_ids=[0] * (2 * n),
        target_weights=[float(2**i) for i in range(2 * n)],
    )  # fmt: skip


def model_of(nodes, inputs, outputs=("y",), constants=(), kinds=None):
    """Return a model; `inputs` are the shapes of rows by name."""
    kinds = kinds or {}
    taken = [helper.make_tensor_value_info(n, kinds.get(n, FLOAT), ["N", *shape]) for n, shape in inputs.items()]
    given_ = [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants]
    return helper.make_model(
        helper.make_graph(nodes, "columns", taken, given_, weights), opset_imports=OPSETS, ir_version=8
    )


def run(model, feeds):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(one) for one in session.run(None, feeds)]


class Build:
    """Draws a graph of nodes that keep columns apart; knows which input's column each column of a value is."""

    def __init__(self, draw):
        self.draw, self.nodes, self.constants = draw, [], []
        self.inputs = {f"x{i}": draw(st.integers(1, 4)) for i in range(draw(st.integers(1, 4)))}
        self.values = {name: [(name, at) for at in range(width)] for name, width in self.inputs.items()}
        self.looked_at = set()

    def name(self):
        return f"v{len(self.nodes)}"

    def constant(self, value):
        self.constants.append((f"c{len(self.constants)}", value))
        return self.constants[-1][0]

    def step(self):
        draw, new = self.draw, self.name()
        source = draw(st.sampled_from(sorted(self.values)))
        columns = self.values[source]
        width = len(columns)
        numbers = draw(st.lists(st.integers(0, width - 1), min_size=1, max_size=5))
        floats = np.array(draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=width, max_size=width)), np.float32)
        other = draw(st.sampled_from(sorted(self.values)))
        kind = draw(st.sampled_from(STEPS))
        if kind in {"Gather", "ArrayFeatureExtractor"}:
            picked = self.constant(np.array(numbers, np.int64))
            make = helper.make_node if kind == "Gather" else ml
            self.nodes.append(make(kind, [source, picked], [new], **({"axis": 1} if kind == "Gather" else {})))
            columns = [columns[at] for at in numbers]
        elif kind == "Concat":
            self.nodes.append(helper.make_node("Concat", [source, other], [new], axis=draw(st.sampled_from([1, -1]))))
            columns = columns + self.values[other]
        elif kind == "Scaler":
            self.nodes.append(ml("Scaler", [source], [new], offset=floats.tolist(), scale=floats[::-1].tolist()))
        elif kind == "Imputer":
            filled = {"imputed_value_floats": floats.tolist(), "replaced_value_float": float("nan")}
            self.nodes.append(ml("Imputer", [source], [new], **filled))
        elif kind in {"Mul", "Sub", "Div"}:
            shape = draw(st.sampled_from([(), (1,), (width,), (1, width)]))
            value = floats[:1].reshape(shape) if np.prod(shape) == 1 else floats.reshape(shape)
            self.nodes.append(helper.make_node(kind, [source, self.constant(value)], [new]))
        elif kind == "Reshape":
            shape = draw(st.sampled_from([[-1, width], [0, width], [0, -1]]))
            self.nodes.append(helper.make_node(kind, [source, self.constant(np.array(shape, np.int64))], [new]))
        else:
            self.nodes.append(helper.make_node(kind, [source], [new], **({"to": FLOAT} if kind == "Cast" else {})))
        self.values[new] = columns

    def ensemble(self):
        source = self.draw(st.sampled_from(sorted(self.values)))
        columns = self.values[source]
        compared = sorted(self.draw(st.sets(st.integers(0, len(columns) - 1), min_size=1)))
        self.nodes.append(trees(source, f"y{len(self.nodes)}", compared))
        self.looked_at.update(columns[at] for at in compared)
        return self.nodes[-1].output[0]

    def model(self):
        for _ in range(self.draw(st.integers(0, 6))):
            self.step()
        outputs = [self.ensemble() for _ in range(self.draw(st.integers(1, 2)))]
        return model_of(self.nodes, {name: [width] for name, width in self.inputs.items()}, outputs, self.constants)


STEPS = ["Identity", "Cast", "Abs", "Neg", "Scaler", "Imputer", "Concat", "Gather", "ArrayFeatureExtractor",
         "Mul", "Sub", "Div", "Reshape"]  # fmt: skip


@settings(max_examples=150)
@given(st.data())
def test_what_is_never_looked_at_is_exactly_what_no_tree_compares_and_moves_no_bit(data):
    build = Build(data.draw)
    model = build.model()
    unused = unused_columns(model)
    places = {(name, at) for name, width in build.inputs.items() for at in range(width)}
    assert {(name, at) for name, found in unused.items() for at in found} == places - build.looked_at
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    feeds = {name: rng.standard_normal((40, width)).astype(np.float32) for name, width in build.inputs.items()}
    zeros = {name: values.copy() for name, values in feeds.items()}
    for name, found in unused.items():
        for at in found:
            feeds[name][:, at] = rng.choice(SPECIAL, 40)
            zeros[name][:, at] = 0
    for one, other in zip(run(model, feeds), run(model, zeros), strict=True):
        assert one.tobytes() == other.tobytes()


def test_a_row_of_the_writers_for_lightgbm_with_missing_values_keeps_its_columns_apart():
    nodes = [
        helper.make_node("Abs", ["x"], ["size"]),
        helper.make_node("LessOrEqual", ["size", "tiny"], ["small"]),
        helper.make_node("And", ["small", "of"], ["missing"]),
        helper.make_node("Where", ["missing", "nan", "x"], ["z"]),
        trees("z", "y", [0, 2]),
    ]
    constants = [("tiny", np.float32(1e-35)), ("of", np.array([[True, False, True]])), ("nan", np.float32(np.nan))]
    assert unused_columns(model_of(nodes, {"x": [3]}, constants=constants)) == {"x": (1,)}


def test_columns_of_one_value_each_may_have_no_second_axis():
    nodes = [
        helper.make_node("Unsqueeze", ["a", "one"], ["a1"]),
        helper.make_node("Reshape", ["b", "column"], ["b1"]),
        helper.make_node("Concat", ["a1", "b1", "c"], ["z"], axis=1),
        trees("z", "y", [2]),
    ]
    constants = [("one", np.array([1])), ("column", np.array([-1, 1]))]
    model = model_of(nodes, {"a": [], "b": [], "c": [1]}, constants=constants)
    assert unused_columns(model) == {"a": (0,), "b": (0,)}
    assert len(run(model, {"a": np.ones(2, np.float32), "b": np.ones(2, np.float32), "c": SPECIAL[:2, None]})[0]) == 2


def test_beside_one_hot_codes_columns_keep_their_places():
    nodes = [
        ml("OneHotEncoder", ["k"], ["codes"], cats_strings=["a", "b"]),
        helper.make_node("Reshape", ["codes", "two"], ["flat"]),
        helper.make_node("Concat", ["flat", "x"], ["z"], axis=1),
        trees("z", "y", [0, 3]),
    ]
    model = model_of(nodes, {"k": [1], "x": [3]}, constants=[("two", np.array([-1, 2]))], kinds={"k": STRING})
    assert unused_columns(model) == {"x": (0, 2)}


def test_the_new_operator_names_its_columns_too():
    model = model_of([], {"x": [4]})
    model.graph.node.append(ml(
        "TreeEnsemble", ["x"], ["y"], n_targets=1, nodes_featureids=[2], nodes_truenodeids=[0],
        nodes_falsenodeids=[1], nodes_trueleafs=[1], nodes_falseleafs=[1], leaf_targetids=[0, 0], tree_roots=[0],
        nodes_splits=numpy_helper.from_array(np.array([0.5], np.float32)),
        nodes_modes=numpy_helper.from_array(np.array([0], np.uint8)),
        leaf_weights=numpy_helper.from_array(np.array([1, 2], np.float32)),
    ))  # fmt: skip
    model.opset_import[0].version = 5
    assert unused_columns(model) == {"x": (0, 1, 3)}


MIXED = {
    "a product of matrices": ([helper.make_node("MatMul", ["x", "square"], ["z"])], "z"),
    "a normalizer": ([ml("Normalizer", ["x"], ["z"], norm="L2")], "z"),
    "a softmax": ([helper.make_node("Softmax", ["x"], ["z"], axis=1)], "z"),
    "a sum over the columns": ([helper.make_node("ReduceSum", ["x", "one"], ["s"]),
                                helper.make_node("Add", ["x", "s"], ["z"])], "z"),
    "rows side by side": ([helper.make_node("Reshape", ["x", "pairs"], ["z"])], "z"),
    "a transpose": ([helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("Transpose", ["t"], ["z"])], "z"),
    "rows below each other": ([helper.make_node("Concat", ["x", "x"], ["z"], axis=0)], "z"),
    "rows gathered": ([helper.make_node("Gather", ["x", "one"], ["z"], axis=0)], "z"),
    "columns gathered by numbers that are computed": (
        [helper.make_node("Add", ["all", "all"], ["n"]), helper.make_node("Gather", ["x", "n"], ["z"], axis=1)], "z"),
    "a division by a column": ([helper.make_node("Div", ["square", "x"], ["z"])], "z"),
    "a node of another domain": ([helper.make_node("Identity", ["x"], ["z"], domain="com.microsoft")], "z"),
}  # fmt: skip


@pytest.mark.parametrize("why", MIXED)
def test_a_node_that_mixes_columns_looks_at_all_of_them(why):
    before, take = MIXED[why]
    constants = [
        ("square", np.ones((3, 3), np.float32)), ("one", np.array([1])), ("pairs", np.array([-1, 6])),
        ("all", np.array([0, 0, 1])),
    ]  # fmt: skip
    assert unused_columns(model_of([*before, trees(take, "y", [0])], {"x": [3]}, constants=constants)) == {}


def test_an_output_looks_at_what_it_is_made_of():
    nodes = [trees("x", "y", [0]), ml("Scaler", ["x"], ["z"], offset=[0.0] * 3, scale=[1.0] * 3)]
    assert unused_columns(model_of(nodes, {"x": [3]}, ["y", "z"])) == {}


def test_another_node_beside_the_trees_looks_at_its_columns():
    picked = helper.make_node("Gather", ["x", "last"], ["z"], axis=1)
    summed = helper.make_node("ReduceSum", ["z", "last"], ["s"], keepdims=1)
    model = model_of([picked, summed, trees("x", "y", [0])], {"x": [3]}, ["y", "s"], [("last", np.array([1]))])
    assert unused_columns(model) == {"x": (2,)}


def test_models_without_trees_look_at_all_columns():
    nodes = [helper.make_node("Gather", ["x", "first"], ["y"], axis=1)]
    assert unused_columns(model_of(nodes, {"x": [3]}, constants=[("first", np.array([0]))])) == {}


def test_inputs_of_text_or_of_any_width_are_looked_at_whole():
    model = model_of([trees("x", "y", [0])], {"x": ["width"], "text": [2], "deep": [2, 2]}, kinds={"text": STRING})
    assert unused_columns(model) == {}


def test_nodes_out_of_order_are_not_followed():
    nodes = deque([ml("Scaler", ["x"], ["z"], offset=[0.0] * 3, scale=[1.0] * 3), trees("z", "y", [0])])
    assert unused_columns(model_of(nodes, {"x": [3]})) == {"x": (1, 2)}
    nodes.rotate()
    assert unused_columns(model_of(nodes, {"x": [3]})) == {}


def test_models_with_functions_or_branches_are_not_followed():
    model = model_of([trees("x", "y", [0])], {"x": [3]})
    assert unused_columns(model)
    local = helper.make_function("ai.onnx.ml", "Scaler", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], OPSETS)
    model.functions.append(local)
    assert unused_columns(model) == {}
    del model.functions[:]
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["i"])], "inner", [],
                              [helper.make_tensor_value_info("i", FLOAT, None)])  # fmt: skip
    model.graph.node.append(helper.make_node("If", ["yes"], ["z"], then_branch=inner, else_branch=inner))
    assert unused_columns(model) == {}


@pytest.mark.parametrize("changes", [
    {"nodes_featureids": [7, 0, 0]}, {"nodes_featureids": [-1, 0, 0]}, {"nodes_featureids": [0]},
    {"nodes_modes": ["BRANCH_LEQ"]},
])  # fmt: skip
def test_an_ensemble_whose_lists_do_not_fit_looks_at_all_columns(changes):
    node = trees("x", "y", [0])
    for attribute in node.attribute:
        if attribute.name in changes:
            attribute.CopyFrom(helper.make_attribute(attribute.name, changes[attribute.name]))
    assert unused_columns(model_of([node], {"x": [3]})) == {}


def test_leaves_may_name_any_column():
    node = trees("x", "y", [0])
    for attribute in node.attribute:
        if attribute.name == "nodes_featureids":
            attribute.CopyFrom(helper.make_attribute("nodes_featureids", [0, 2, 99]))
    assert unused_columns(model_of([node], {"x": [3]})) == {"x": (1, 2)}


def test_a_wide_input_is_followed_quickly():
    began = time.process_time()
    model = model_of([ml("Scaler", ["x"], ["z"], offset=[0.0], scale=[1.0]), trees("z", "y", [5])], {"x": [50_000]})
    assert len(unused_columns(model)["x"]) == 49_999
    assert time.process_time() - began < 2
