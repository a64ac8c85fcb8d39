"""What the writers of graphs share: lists of tree nodes, and graphs that end with the outputs of a classifier."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
import onnx.compose
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

INPUT = "X"
FEATURES, CLASSES = "feature_names", "class_labels"
"""Keys of the metadata: the names of the columns and of the classes."""
OPSETS = {"": 18, "ai.onnx.ml": 3}
"""The newest operators that scikit-learn's converter writes and that older versions of ONNX Runtime run."""
_IR_VERSION = 8
_LISTS = {
    "treeids": int, "nodeids": int, "featureids": int, "modes": str, "values": float,
    "truenodeids": int, "falsenodeids": int, "missing_value_tracks_true": int,
}  # fmt: skip
_IDS = ("treeids", "nodeids", "featureids", "truenodeids", "falsenodeids")
_WEIGHTS = {"treeids": int, "nodeids": int, "ids": int, "weights": float}


def floor32(values: np.ndarray) -> np.ndarray:
    """Return the greatest float32 that is not above each float64.

    A float32 is at most the one exactly if it is at most the other, so comparisons by `<=` stay exact.
    """
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    return np.where(near.astype(np.float64) > values, np.nextafter(near, np.float32(-np.inf)), near)


class Trees:
    """The lists of nodes and weights of a tree ensemble, filled tree by tree."""

    def __init__(self) -> None:
        self._nodes: dict[str, list[Any]] = {name: [] for name in _LISTS}
        self._weights: dict[str, list[Any]] = {name: [] for name in _WEIGHTS}

    def branch(
        self, at: tuple[int, int], mode: str, feature: int, value: float, children: tuple[int, int], *, nan_true: bool
    ) -> None:
        """Add a comparison: `at` is the tree and the node, `children` are the nodes if it is true and if not."""
        row = (*at, feature, mode, value, *children, int(nan_true))
        for name, one in zip(_LISTS, row, strict=True):
            self._nodes[name].append(one)

    def member(
        self, at: Sequence[tuple[int, int]], feature: int, values: Sequence[int], children: tuple[int, int], *,
        nan_true: bool,
    ) -> None:  # fmt: skip
        """Add a test for one of several values as a chain of nodes; `at` has as many nodes as there are values."""
        true, false = children
        for place, value, following in zip(at, values, [*(node for _, node in at[1:]), false], strict=True):
            self.branch(place, "BRANCH_EQ", feature, float(value), (true, following), nan_true=nan_true)

    def leaf(self, at: tuple[int, int], target: int, weight: float) -> None:
        """Add a leaf that adds a weight to one target."""
        self.branch(at, "LEAF", 0, 0.0, (0, 0), nan_true=False)
        for name, one in zip(_WEIGHTS, (*at, target, weight), strict=True):
            self._weights[name].append(one)

    def node(self, source: str, result: str, n_targets: int, base: Sequence[float], *, double: bool) -> onnx.NodeProto:
        """Return the operator that adds up the leaves, and the base value of each target."""
        lists = {f"nodes_{name}": values for name, values in self._nodes.items()}
        lists |= {f"target_{name}": values for name, values in self._weights.items()}
        if any(base):
            lists["base_values"] = [float(one) for one in base]
        if double:
            for name in ("nodes_values", "target_weights", "base_values"):
                if name in lists:
                    lists[f"{name}_as_tensor"] = numpy_helper.from_array(np.array(lists.pop(name), np.float64))
        return helper.make_node(
            "TreeEnsembleRegressor", [source], [result], domain="ai.onnx.ml", n_targets=n_targets,
            post_transform="NONE", aggregate_function="SUM", **lists,
        )  # fmt: skip


class Graph:
    """A graph that is written from its input to its outputs."""

    def __init__(self, width: int, *, double: bool, opset: int = 0) -> None:
        self._opset = opset
        self.kind = np.dtype(np.float64 if double else np.float32)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, np.ndarray] = {}
        self._names = 0
        self._classes: list[str] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._input = helper.make_tensor_value_info(INPUT, helper.np_dtype_to_tensor_dtype(self.kind), [None, width])

    def add(self, operator: str, *inputs: str | np.ndarray, **attributes: Any) -> str:  # noqa: ANN401 - ONNX's values
        """Add an operator of one output, and return the output's name; arrays become constants."""
        name = self.name(operator)
        self._nodes.append(helper.make_node(operator, [self._named(one) for one in inputs], [name], **attributes))
        return name

    def name(self, operator: str) -> str:
        """Return a name for another value."""
        self._names += 1
        return f"{operator.lower()}_{self._names}"

    def append(self, node: onnx.NodeProto) -> str:
        """Add a node of one output, and return the output's name."""
        self._nodes.append(node)
        return str(node.output[0])

    def output(self, source: str, name: str, kind: int, columns: int | None) -> None:
        """Declare a value as an output: a matrix of so many columns, or one value for each row."""
        self._nodes.append(helper.make_node("Identity", [source], [name]))
        shape = [None] if columns is None else [None, columns]
        self._outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def scores(self, source: str, name: str, columns: int) -> None:
        """Declare a matrix of float32 as an output."""
        self.output(source, name, TensorProto.FLOAT, columns)

    def classes(self, chances: str, classes: np.ndarray) -> None:
        """Declare the outputs of a classifier: the class of each row, and the probability of each class."""
        best = self.add("ArgMax", chances, axis=1, keepdims=0)
        known = _as_tensor(classes)
        self._classes = [str(one) for one in known.tolist()]
        label = self.add("Gather", known, best, axis=0)
        self.output(label, "label", helper.np_dtype_to_tensor_dtype(known.dtype), None)
        self.scores(chances, "probabilities", len(classes))

    def model(self) -> onnx.ModelProto:
        """Return the graph as a model."""
        constants = [
            helper.make_tensor(name, TensorProto.STRING, value.shape, [str(one).encode() for one in value.tolist()])
            if value.dtype == object
            else numpy_helper.from_array(value, name)
            for name, value in self._constants.items()
        ]
        graph = helper.make_graph(self._nodes, "model", [self._input], self._outputs, constants)
        model = finished(graph, self._opset)
        if self._classes:
            describe(model, {CLASSES: self._classes})
        return model

    def _named(self, value: str | np.ndarray) -> str:
        if isinstance(value, str):
            return value
        name = self.name("constant")
        self._constants[name] = value
        return name


def finished(graph: onnx.GraphProto, opset: int = 0) -> onnx.ModelProto:
    """Return a model of this graph; `opset` is the version of ONNX's operators, 0 for the usual one."""
    versions = OPSETS | ({"": opset} if opset else {})
    opsets = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="scorer")


def _as_tensor(classes: np.ndarray) -> np.ndarray:
    """Return the classes as a tensor holds them: whole numbers, truth values or text."""
    if classes.dtype.kind in "iu":
        return classes.astype(np.int64)
    if classes.dtype.kind == "b":
        return classes
    if classes.dtype.kind == "f":
        whole = classes.astype(np.int64)
        return whole if np.array_equal(whole, classes) else classes.astype(np.float32)
    return classes.astype(object)


def describe(model: onnx.ModelProto, entries: Mapping[str, Any]) -> None:
    """Write entries into the model's metadata; values that are no text become JSON."""
    kept = {entry.key: entry.value for entry in model.metadata_props}
    added = {key: one if isinstance(one, str) else json.dumps(one) for key, one in entries.items()}
    helper.set_model_props(model, kept | added)


def renamed(model: onnx.ModelProto, old: str, new: str) -> None:
    """Rename an input, an output or another value of the graph."""
    graph = model.graph
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = new if value.name == old else value.name


def followed(first: onnx.ModelProto, second: onnx.ModelProto) -> onnx.ModelProto:
    """Return one model: the output of the first is the matrix that the second takes."""
    first.ir_version = second.ir_version
    versions: dict[str, int] = {}
    for one in (*first.opset_import, *second.opset_import):
        versions[one.domain] = max(one.version, versions.get(one.domain, 0))
    for model in (first, second):  # a converter declares the oldest version that has its operators
        del model.opset_import[:]
        model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())
    inputs, outputs = [one.name for one in first.graph.input], [one.name for one in second.graph.output]
    source = second.graph.input[0].name
    model = onnx.compose.merge_models(
        first, second, io_map=[(first.graph.output[0].name, source)], prefix1="before_", prefix2="after_"
    )
    for name in inputs:
        renamed(model, f"before_{name}", name)
    for name in outputs:
        renamed(model, f"after_{name}", name)
    return model


def without_zipmaps(model: onnx.ModelProto) -> None:
    """Give the matrix of probabilities where a model gives a map for each row."""
    graph = model.graph
    for node in [node for node in graph.node if node.op_type == "ZipMap"]:
        source, name = node.input[0], node.output[0]
        graph.node.remove(node)
        output = next(one for one in graph.output if one.name == name)
        output.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]))
        renamed(model, source, name)


class Ensemble(NamedTuple):
    """The nodes of a tree ensemble that reads the columns of the model's only input."""

    tree_ids: np.ndarray
    node_ids: np.ndarray
    columns: np.ndarray
    thresholds: np.ndarray
    modes: np.ndarray
    """The comparison of each node as text; a leaf has LEAF."""
    true_ids: np.ndarray
    false_ids: np.ndarray

    @property
    def inner(self) -> np.ndarray:
        """The positions of the nodes that compare."""
        return np.flatnonzero(self.modes != "LEAF")


def ensembles(model: onnx.ModelProto) -> list[Ensemble]:
    """Return the tree ensembles that read the model's only input, unchanged but for missing values."""
    found = []
    same = {model.graph.input[0].name} if len(model.graph.input) == 1 else set()
    for node in model.graph.node:
        if node.op_type in {"Cast", "Identity", "Where"} and node.input[-1] in same:
            same.add(node.output[0])
        own = {one.name.removeprefix("nodes_"): one for one in node.attribute}
        if not node.op_type.startswith("TreeEnsemble") or node.input[0] not in same or "truenodeids" not in own:
            continue
        tensor = own.get("values_as_tensor")
        values = np.array(own["values"].floats) if tensor is None else numpy_helper.to_array(tensor.t)
        ids = {name: np.array(own[name].ints, np.int64) for name in _IDS}
        modes = np.array([mode.decode() for mode in own["modes"].strings])
        found.append(Ensemble(
            tree_ids=ids["treeids"], node_ids=ids["nodeids"], columns=ids["featureids"], modes=modes,
            thresholds=values.astype(np.float64), true_ids=ids["truenodeids"], false_ids=ids["falsenodeids"],
        ))  # fmt: skip
    return found
