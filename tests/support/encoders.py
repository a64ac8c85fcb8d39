"""A text encoder with random weights, as exporters write them: shapes are computed in the graph."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Writer:
    """Collects nodes and weights."""

    def __init__(self, seed):
        self.nodes, self.weights, self.rng = [], [], np.random.default_rng(seed)

    def weight(self, name, *shape, ones=False):
        values = np.ones(shape) if ones else self.rng.standard_normal(shape) / np.sqrt(shape[0])
        return self.constant(name, values.astype(np.float32))

    def constant(self, name, value):
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, kind, name, *takes, **attributes):
        self.nodes.append(helper.make_node(kind, list(takes), [name], name=name, **attributes))
        return name

    def dense(self, name, x, takes, gives):
        product = self.node("MatMul", f"{name}/product", x, self.weight(f"{name}.weight", takes, gives))
        return self.node("Add", name, self.weight(f"{name}.bias", gives, ones=True), product)

    def normal(self, name, x, width):
        scale, shift = (self.weight(f"{name}.{part}", width, ones=True) for part in ("scale", "shift"))
        return self.node("LayerNormalization", name, x, scale, shift, axis=-1)


def encoder(path, layers=3, width=32, heads=4, words=50, *, external=False, seed=0):
    """Write an encoder with the inputs ids and mask, and the output score; return its path."""
    to = Writer(seed)
    for name, value in (("axes", [1, 2]), ("shape", [0, 0, heads, width // heads]), ("flat", [0, 0, width])):
        to.constant(name, np.array(value))
    to.constant("one", np.float32(1))
    to.constant("least", np.float32(-1e9))
    to.constant("root", np.float32(np.sqrt(width // heads)))
    mask = to.node("Cast", "mask/float", to.node("Unsqueeze", "mask/wide", "mask", "axes"), to=TensorProto.FLOAT)
    mask = to.node("Mul", "mask/added", to.node("Sub", "mask/not", "one", mask), "least")
    x = to.normal("embedded", to.node("Gather", "words", to.weight("words.weight", words, width), "ids"), width)
    for k in range(layers):
        x = layer(to, f"layer.{k}", x, mask, width)
    to.constant("first", np.int64(0))
    to.dense("score", to.node("Gather", "start", x, "first", axis=1), width, 2)
    ends = [helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "L"]) for name in ("ids", "mask")]
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 2])
    graph = helper.make_graph(to.nodes, "encoder", ends, [score], to.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    more = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 512} if external else {}
    onnx.save(model, path, **more)
    return path


def layer(to, name, x, mask, width):
    """Add attention and two dense layers, each with a residual."""
    parts = {}
    for part, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        split = to.node("Reshape", f"{name}/{part}/split", to.dense(f"{name}/{part}", x, width, width), "shape")
        parts[part] = to.node("Transpose", f"{name}/{part}/heads", split, perm=order)
    like = to.node("Div", f"{name}/scaled", to.node("MatMul", f"{name}/like", parts["q"], parts["k"]), "root")
    share = to.node("Softmax", f"{name}/share", to.node("Add", f"{name}/masked", like, mask), axis=-1)
    mixed = to.node(
        "Transpose", f"{name}/mixed", to.node("MatMul", f"{name}/mix", share, parts["v"]), perm=[0, 2, 1, 3]
    )
    out = to.dense(f"{name}/out", to.node("Reshape", f"{name}/joined", mixed, "flat"), width, width)
    x = to.normal(f"{name}/normal", to.node("Add", f"{name}/sum", out, x), width)
    wide = to.node("Relu", f"{name}/relu", to.dense(f"{name}/wide", x, width, 4 * width))
    out = to.dense(f"{name}/narrow", wide, 4 * width, width)
    return to.normal(f"{name}/result", to.node("Add", f"{name}/total", out, x), width)
