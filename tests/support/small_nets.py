"""Small nets with their data, for tests of `scorer optimise`."""

from __future__ import annotations

import numpy as np
import onnx
import pyarrow as pa
from onnx import TensorProto, helper, numpy_helper
from support.runs import write


def net(weights, *, opset=17, last="Identity", metadata=None):
    """Return a net of Gemm and Relu with these weights, whose output `p` is the last Gemm's through `last`."""
    nodes, tensors, name = [], [], "x"
    for i, weight in enumerate(weights):
        tensors.append(numpy_helper.from_array(weight.astype(np.float32), f"w{i}"))
        tensors.append(numpy_helper.from_array(np.zeros(weight.shape[1], np.float32), f"b{i}"))
        nodes.append(helper.make_node("Gemm", [name, f"w{i}", f"b{i}"], [f"g{i}"], name=f"gemm{i}"))
        nodes.append(helper.make_node("Relu" if i < len(weights) - 1 else last, [f"g{i}"], [f"h{i}"], name=f"act{i}"))
        name = f"h{i}"
    nodes.append(helper.make_node("Identity", [name], ["p"], name="result"))
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", weights[0].shape[0]]),
        helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", weights[-1].shape[1]]),
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name="us")
    helper.set_model_props(model, metadata or {})
    return model


def save(folder, model, values):
    """Write a model and a Parquet file with its input as one column of lists; return both paths."""
    path = folder / "m.onnx"
    onnx.save(model, path)
    values = np.ascontiguousarray(values, np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    return path, write(folder / "data.parquet", pa.table({"x": lists}))


def whole_numbers(rows, features, seed=0):
    """Return whole numbers from 0 to 255, with both ends in each row, so that 8 bits hold them exactly."""
    values = np.random.default_rng(seed).integers(0, 256, (rows, features)).astype(np.float32)
    values[:, 0], values[:, 1] = 0, 255
    return values


def whole_weights(features, outputs, seed=0):
    """Return whole numbers from -64 to 64, with 64 in each column, so that 7 bits hold them exactly."""
    values = np.random.default_rng(seed).integers(-64, 65, (features, outputs)).astype(np.float32)
    values[0] = 64
    return values
