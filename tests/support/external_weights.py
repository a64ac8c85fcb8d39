"""Models that multiply by a weight in w.bin, which is named in each place where a model may name a file."""

from __future__ import annotations

import numpy as np
from onnx import AttributeProto, TensorProto
from onnx.helper import (
    make_attribute,
    make_function,
    make_graph,
    make_model,
    make_node,
    make_opsetid,
    make_sparse_tensor,
    make_tensor_value_info,
)
from onnx.numpy_helper import from_array

PLACES = (
    "initializer", "sparse initializer", "attribute", "sparse attribute", "branch", "branch without nodes",
    "function", "branch in a function", "default of a function", "argument of a function",
)  # fmt: skip
"""Where the weight is."""
_OPSETS = [make_opsetid("", 21), make_opsetid("local", 1)]
_MUL = make_node("Mul", ["x", "w"], ["y"])


def external_weight(folder):
    """Write w.bin, and return the tensor w whose values are in it."""
    tensor = from_array(np.full(2, 3, np.float32), "w")
    (folder / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    return tensor


def _sparse(folder):
    return make_sparse_tensor(external_weight(folder), from_array(np.arange(2), "at"), [2])


def _branches(folder, *, nodes=True):
    """Return an If whose branches yield the weight: by a node, or as they store it."""
    out = make_tensor_value_info("b" if nodes else "w", TensorProto.FLOAT, [2])
    body = [make_node("Identity", ["w"], ["b"])] if nodes else []
    graph = make_graph(body, "branch", [], [out], [external_weight(folder)])
    return make_node("If", ["yes"], ["w"], then_branch=graph, else_branch=graph)


def _constant_of_argument():
    """Return a constant whose value is the argument `weight` of the function that it is in."""
    node = make_node("Constant", [], ["w"])
    node.attribute.append(AttributeProto(name="value", ref_attr_name="weight", type=AttributeProto.TENSOR))
    return node


def _function(nodes, inputs=("x",), **more):
    return make_function("local", "Scale", list(inputs), ["y"], nodes, _OPSETS, **more)


def _pieces(folder, place):
    """Return the nodes of the graph, its functions, and its initializers."""
    yes = from_array(np.ones((), bool), "yes")
    constant = make_node("Constant", [], ["w"], value=external_weight(folder))
    call = make_node("Scale", ["x"], ["y"], domain="local")
    if place == "attribute":
        return [constant, _MUL], [], []
    if place == "sparse attribute":
        return [make_node("Constant", [], ["w"], sparse_value=_sparse(folder)), _MUL], [], []
    if place.startswith("branch") and place != "branch in a function":
        return [_branches(folder, nodes=place == "branch"), _MUL], [], [yes]
    if place == "branch in a function":
        two = make_node("Scale", ["x", "yes"], ["y"], domain="local")
        return [two], [_function([_branches(folder), _MUL], ("x", "yes"))], [yes]
    if place == "function":
        return [call], [_function([constant, _MUL])], []
    if place == "default of a function":
        default = make_attribute("weight", external_weight(folder))
        return [call], [_function([_constant_of_argument(), _MUL], attribute_protos=[default])], []
    if place == "argument of a function":
        call.attribute.append(make_attribute("weight", external_weight(folder)))
        return [call], [_function([_constant_of_argument(), _MUL], attributes=["weight"])], []
    return [_MUL], [], [external_weight(folder)] if place == "initializer" else []


def scaling(folder, place):
    """Write m.onnx, which multiplies two columns by the weight in w.bin; return its path."""
    nodes, functions, weights = _pieces(folder, place)
    x, y = (make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in "xy")
    sparse = [_sparse(folder)] if place == "sparse initializer" else []
    graph = make_graph(nodes, "graph", [x], [y], weights, sparse_initializer=sparse)
    model = make_model(graph, opset_imports=_OPSETS, ir_version=10, functions=functions)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"
