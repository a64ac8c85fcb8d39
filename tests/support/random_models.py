"""Random small ONNX models: several inputs, types, shapes and outputs; no row depends on another. No scorer in here."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    import random

TYPES = {
    "float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE,
    "bool": TensorProto.BOOL, "string": TensorProto.STRING, "int8": TensorProto.INT8, "int16": TensorProto.INT16,
    "int32": TensorProto.INT32, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8, "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32, "uint64": TensorProto.UINT64,
}  # fmt: skip
NAMES = ["x", "x", "x", "input", "float_input", "X:0", "in put", "a=b", "x/y", "input.1", "é", "x|y", "x,y", "'x'"]
FLOATS = ("float32", "float64", "float16")


@dataclass(frozen=True)
class Input:
    """An input tensor: its name, its type and the shape of one row."""

    name: str
    type: str
    shape: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """Number of values in a row."""
        return int(np.prod(self.shape)) if self.shape else 1


@dataclass
class Model:
    """A model as bytes, with what its maker knows about it."""

    kind: str
    data: bytes
    inputs: list[Input]
    outputs: list[str]
    exact: bool = True
    """Whether a row's score is the same, bit for bit, in batches of any size."""
    scores: tuple[str, ...] = ()
    """Outputs [N, k] of floats with k > 1, which take steps such as argmax."""
    labels: tuple[str, ...] = ()
    keys: tuple = ()
    """Keys of a map, in the model's order."""
    features: tuple[str, ...] = ()
    fixed: int | None = None
    """The batch size that the model requires."""
    indices: bool = False
    """Whether some inputs are rejected by the model, such as an index out of range."""


@dataclass
class Graph:
    """A graph under construction."""

    inputs: list[Input]
    batch: str | int = "N"
    nodes: list = field(default_factory=list)
    outputs: list = field(default_factory=list)
    weights: list = field(default_factory=list)

    def constant(self, array: np.ndarray) -> str:
        """Add a weight and return its name."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op: str, inputs: list[str], **attributes) -> str:
        """Add a node and return the name of its result."""
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def output(self, name: str, source: str, kind: str, shape: tuple) -> None:
        """Make a result an output of the model."""
        self.nodes.append(helper.make_node("Identity", [source], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, TYPES[kind], [self.batch, *shape]))

    def data(self, metadata: dict[str, str] | None = None) -> bytes:
        """Return the model as bytes."""
        inputs = [helper.make_tensor_value_info(i.name, TYPES[i.type], [self.batch, *i.shape]) for i in self.inputs]
        graph = helper.make_graph(self.nodes, "g", inputs, self.outputs, initializer=self.weights)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
        model = helper.make_model(graph, ir_version=9, opset_imports=opsets)
        helper.set_model_props(model, metadata or {})
        onnx.checker.check_model(model)
        return model.SerializeToString()

    def model(self, kind: str, metadata: dict[str, str] | None = None, **known) -> Model:
        """Return the finished model."""
        return Model(kind, self.data(metadata), self.inputs, [o.name for o in self.outputs], **known)


def elementwise(draw: random.Random) -> Model:
    """Doubles, negates or compares each value; [N], [N, 1] or [N, k], perhaps with a fixed batch."""
    kind = draw.choice([*FLOATS, "float32", "int32", "int64", "int8", "uint8", "uint64"])
    shape = draw.choice([(), (1,), (2,), (3,), (16,), (17,)])
    graph = Graph([Input(draw.choice(NAMES), kind, shape)], draw.choice(["N", "N", "batch", None, 3]))
    name = graph.inputs[0].name
    way = draw.choice(["same", "double", "greater"]) if kind in (*FLOATS, "int32", "int64") else "same"
    result, out = name, kind
    if way == "double":
        result = graph.node("Add", [name, name])
    if way == "greater":
        result, out = graph.node("Greater", [name, graph.constant(np.array(1, kind))]), "bool"
    graph.output("y", result, out, shape)
    scores = ("y",) if out in FLOATS and shape[:1] > (1,) else ()
    features, metadata = (), {}
    if draw.random() < 0.3 and shape:
        features = tuple(f"f{i}" for i in draw.sample(range(20), shape[0]))
        metadata["feature_names"] = json.dumps(features)
    fixed = graph.batch if isinstance(graph.batch, int) else None
    return graph.model("elementwise", metadata, scores=scores, features=features, fixed=fixed)


def dense(draw: random.Random) -> Model:
    """Return a dense layer, with softmax or not: its bits depend on the size of the batch."""
    kind = draw.choice(["float32", "float32", "float64"])
    width, wide = draw.choice([2, 3, 12]), draw.choice([1, 2, 5, 16, 17, 40])
    rng = np.random.default_rng(draw.randrange(99))
    graph = Graph([Input(draw.choice(NAMES), kind, (width,))])
    weights = graph.constant(rng.standard_normal((width, wide)).astype(kind))
    result = graph.node("Gemm", [graph.inputs[0].name, weights, graph.constant(rng.standard_normal(wide).astype(kind))])
    way = draw.choice(["", "Softmax", "Tanh"])
    result = graph.node(way, [result], **({"axis": 1} if way == "Softmax" else {})) if way else result
    graph.output("probability", result, kind, (wide,))
    scores = ("probability",) if wide > 1 else ()
    if wide > 1 and draw.random() < 0.5:
        graph.output("label", graph.node("ArgMax", [result], axis=1, keepdims=0), "int64", ())
    return graph.model("dense", exact=False, scores=scores)


def classifier(draw: random.Random) -> Model:
    """Return a linear classifier's label and the score of each named class."""
    labels = draw.choice([["cat", "dog", "a b"], ["x", "", "it's"], [3, -1, 7, 20]])
    width = draw.choice([1, 2, 5])
    graph = Graph([Input("X", "float32", (width,))])
    key = "classlabels_strings" if isinstance(labels[0], str) else "classlabels_ints"
    graph.nodes.append(
        helper.make_node(
            "LinearClassifier", ["X"], ["l", "s"], domain="ai.onnx.ml", post_transform=draw.choice(["NONE", "SOFTMAX"]),
            coefficients=[draw.uniform(-1, 1) for _ in range(width * len(labels))],
            intercepts=[draw.uniform(-1, 1) for _ in labels], **{key: labels},
        )
    )  # fmt: skip
    graph.output("label", "l", "string" if key.endswith("strings") else "int64", ())
    graph.output("scores", "s", "float32", (len(labels),))
    names = tuple(map(str, labels))
    return graph.model("classifier", exact=False, scores=("scores",), labels=names)


def several_inputs(draw: random.Random) -> Model:
    """Pass several inputs of different types and shapes through, each as an output of its own."""
    names = draw.sample(["a", "b", "age", "in put", "x.1", "b|c", "Flag", "city"], draw.randint(2, 4))
    kinds = [draw.choice([*TYPES, "float32", "string"]) for _ in names]
    graph = Graph([Input(n, k, draw.choice([(), (1,), (2,)])) for n, k in zip(names, kinds, strict=True)])
    for i, one in enumerate(graph.inputs):
        result = graph.node("Not", [one.name]) if one.type == "bool" else one.name
        graph.output(f"out{i}", result, one.type, one.shape)
    return graph.model("several inputs")


def lookup(draw: random.Random) -> Model:
    """Look up a table of ten: an index outside it fails the whole batch."""
    graph = Graph([Input("idx", "int64", draw.choice([(), (1,)]))])
    table = graph.constant(np.arange(10, dtype=np.float32) * draw.choice([1, np.nan, 10]))
    graph.output("value", graph.node("Gather", [table, "idx"], axis=0), "float32", graph.inputs[0].shape)
    return graph.model("lookup", indices=True)


def categories(draw: random.Random) -> Model:
    """Map texts to numbers, or numbers to texts."""
    shape = draw.choice([(), (1,), (2,)])
    to_text = draw.random() < 0.5
    graph = Graph([Input("word", "int64" if to_text else "string", shape)])
    texts, numbers = ["a", "b", "ä", ""], [1, -1, 0, 7]
    keys, values = (numbers, texts) if to_text else (texts, numbers)
    attributes = {
        f"keys_{'int64s' if to_text else 'strings'}": keys,
        f"values_{'strings' if to_text else 'int64s'}": values,
    }
    attributes |= {"default_string": "other"} if to_text else {"default_int64": -9}
    graph.nodes.append(helper.make_node("LabelEncoder", ["word"], ["code"], domain="ai.onnx.ml", **attributes))
    graph.output("y", "code", "string" if to_text else "int64", shape)
    return graph.model("categories")


def maps(draw: random.Random) -> Model:
    """Return a label and a map of probabilities for each row, as scikit-learn's classifiers do."""
    graph = Graph([Input("X", "float32", (3,))])
    names = draw.choice([["cat", "dog", "a b"], [0, 1, 2], [5, -3, 10]])
    key = "classlabels_strings" if isinstance(names[0], str) else "classlabels_int64s"
    graph.output("label", graph.node("ArgMax", ["X"], axis=1, keepdims=0), "int64", ())
    graph.nodes.append(helper.make_node("ZipMap", ["X"], ["prob"], domain="ai.onnx.ml", **{key: names}))
    kind = TensorProto.STRING if isinstance(names[0], str) else TensorProto.INT64
    one = helper.make_map_type_proto(kind, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    graph.outputs.append(helper.make_value_info("prob", helper.make_sequence_type_proto(one)))
    return graph.model("maps", keys=tuple(names))


def deep(draw: random.Random) -> Model:
    """Take rows that are vectors, matrices or cubes, and return them in this or another shape."""
    kind = draw.choice(["float32", "float64", "int64", "int32"])
    shape = draw.choice([(4,), (2, 2), (1, 4), (20,), (2, 3, 2)])
    graph = Graph([Input("x", kind, shape)])
    size = int(np.prod(shape))
    other = draw.choice([shape, (size,), (size, 1)])
    result = graph.node("Reshape", ["x", graph.constant(np.array([-1, *other], np.int64))])
    graph.output("y", result, kind, other)
    if draw.random() < 0.3:
        axes = graph.constant(np.arange(1, len(shape) + 1, dtype=np.int64))
        graph.output("largest", graph.node("ReduceMax", ["x", axes], keepdims=0), kind, ())
    return graph.model("deep")


MAKERS = [elementwise] * 5 + [dense] * 3 + [several_inputs] * 4 + [lookup] * 2 + [categories] * 2
MAKERS += [classifier, maps, deep, deep]


def random_model(draw: random.Random) -> Model:
    """Return one of the models."""
    return draw.choice(MAKERS)(draw)
