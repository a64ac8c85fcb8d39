"""Which columns of its inputs a model with tree ensembles never looks at.

A column that no comparison of any tree names cannot change an output, not even by NaN or infinity, if every node
between the input and the trees computes each column from the same column alone. The nodes are followed in the order
of the data; each value that consists of such columns knows the input columns that each of its own was computed from.
Any other node counts as looking at all columns of what it takes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import onnx


_ENSEMBLES = frozenset({"TreeEnsembleClassifier", "TreeEnsembleRegressor", "TreeEnsemble"})
_ML = "ai.onnx.ml"
_STANDARD = frozenset({"", "ai.onnx"})
_NUMBERS = frozenset({1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16})  # ONNX's numbers of these types: not text
_INTEGERS = {6: "i", 7: "q"}
_MATRIX = 2
_MOST_COLUMNS = 1 << 16  # of an input that is followed

Column = tuple[str, int]
"""An input of the model, and the number of a column in it."""


@dataclass(frozen=True, slots=True)
class _Columns:
    """A value with one row per input row, as [N, columns], or as [N] if it is `flat`."""

    sources: tuple[frozenset[Column], ...]
    """For each column the columns of the inputs that it was computed from."""
    flat: bool = False


def unused_columns(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the columns that are never looked at, by input; inputs without any are left out.

    Only models with tree ensembles have such columns, and only inputs of numbers whose width is fixed.
    """
    graph = model.graph
    trees = any(is_ensemble(node) for node in graph.node)
    if not trees or len(model.functions) or any(a.g.node or a.graphs for node in graph.node for a in node.attribute):
        return {}  # a function may have the name of any operator, and the graph of a branch may take any value
    if not _in_order(graph):
        return {}
    walk = _Walk(graph)
    found = {
        name: tuple(at for at in range(len(value.sources)) if (name, at) not in walk.looked_at)
        for name, value in walk.inputs.items()
    }
    return {name: unused for name, unused in found.items() if unused}


class _Walk:
    """Follows a graph from its inputs to its outputs."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.looked_at: set[Column] = set()
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = {
            value.name: columns
            for value in graph.input
            if value.name not in self._constants and (columns := _columns_of(value)) is not None
        }
        self._values = dict(self.inputs)
        """Values in columns. All that any other value was computed from counts as looked at."""
        for node in graph.node:
            self._follow(node)
        self._look_at(output.name for output in graph.output)

    def _look_at(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self._values:
                self.looked_at.update(*self._values[name].sources)

    def _follow(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Constant" and node.domain in _STANDARD:
            tensors = [one.t for one in node.attribute if one.name == "value"]
            self._constants.update(zip(node.output, tensors, strict=False))
            return
        if is_ensemble(node) and self._compare(node):
            return
        rule = (_ML_RULES if node.domain == _ML else _RULES if node.domain in _STANDARD else {}).get(node.op_type)
        found = rule(self, node) if rule is not None else None
        if found is None:
            self._look_at(node.input)
        else:
            self._values[node.output[0]] = found

    def _compare(self, node: onnx.NodeProto) -> bool:
        """Look at the columns that the trees of an ensemble compare; return False if that is not certain."""
        value, columns = self._values.get(node.input[0]), _compared(node)
        if value is None or columns is None or value.flat or not columns <= set(range(len(value.sources))):
            return False
        self.looked_at.update(*(value.sources[at] for at in columns))
        return True

    def same(self, node: onnx.NodeProto) -> _Columns | None:
        """Return the columns of a node that computes each element from the same element of its only input."""
        return self._values.get(node.input[0])

    def broadcast(self, node: onnx.NodeProto) -> _Columns | None:
        """Return the columns of a node that computes each element from the same elements of its inputs."""
        operands = [self._operand(name) for name in node.input]
        width = max((len(one.sources) for one in operands if one is not None), default=0)
        flat = {one.flat for name, one in zip(node.input, operands, strict=True) if one and name in self._values}
        if len(flat) != 1 or any(one is None or len(one.sources) not in {1, width} for one in operands):
            return None
        if flat == {True} and (width > 1 or any(not one.flat for one in operands if one is not None)):
            return None
        every = [one.sources * (width // len(one.sources)) for one in operands if one is not None]
        return _Columns(tuple(frozenset().union(*column) for column in zip(*every, strict=True)), flat.pop())

    def _operand(self, name: str) -> _Columns | None:
        """Return a value or a constant for each column; None for others."""
        if name in self._values or name not in self._constants:
            return self._values.get(name)
        dims = list(self._constants[name].dims)
        if len(dims) > _MATRIX or 0 in dims or any(size != 1 for size in dims[:-1]):
            return None
        return _Columns((frozenset(),) * (dims[-1] if dims else 1), flat=len(dims) < _MATRIX)

    def divide(self, node: onnx.NodeProto) -> _Columns | None:
        """Return the columns of a division by a constant: a whole number cannot be divided by any value."""
        return self.broadcast(node) if node.input[1] in self._constants else None

    def concat(self, node: onnx.NodeProto) -> _Columns | None:
        """Return columns side by side."""
        parts = [self._values.get(name) for name in node.input]
        if _number(node, "axis") not in {1, -1} or any(part is None or part.flat for part in parts):
            return None
        return _Columns(tuple(column for part in parts if part is not None for column in part.sources))

    def gather(self, node: onnx.NodeProto) -> _Columns | None:
        """Return the columns that constant numbers select from a matrix."""
        extracts = node.op_type == "ArrayFeatureExtractor"
        value, numbers = self._values.get(node.input[0]), self._integers(node.input[1])
        if value is None or value.flat or numbers is None or not (extracts or _number(node, "axis") in {1, -1}):
            return None
        width, rank = len(value.sources), 1 if extracts else len(self._constants[node.input[1]].dims)
        least = 0 if extracts else -width
        if not numbers or rank > 1 or not all(least <= at < width for at in numbers):
            return None
        return _Columns(tuple(value.sources[at] for at in numbers), flat=not rank)

    def reshape(self, node: onnx.NodeProto) -> _Columns | None:
        """Return the columns of a node that keeps a matrix, or turns a single column into [N] or [N, 1].

        What is no value in columns becomes one whose columns come from none that is not looked at yet.
        """
        shape = self._integers(node.input[1])
        if shape is None or _number(node, "allowzero") or shape[:1] not in ([-1], [0]):
            return None
        value, width = self._values.get(node.input[0]), shape[1] if len(shape) == _MATRIX else 0
        if value is None:
            return _Columns((frozenset(),) * width) if 0 < width <= _MOST_COLUMNS else None
        if len(shape) == 1 and len(value.sources) == 1:
            return _Columns(value.sources, flat=True)
        return _Columns(value.sources) if width == len(value.sources) or shape == [0, -1] else None

    def unsqueeze(self, node: onnx.NodeProto) -> _Columns | None:
        """Return [N] as a matrix with one column."""
        value = self._values.get(node.input[0])
        axes = self._integers(node.input[1]) if len(node.input) > 1 else _numbers(node, "axes")
        return _Columns(value.sources) if value is not None and value.flat and axes in ([1], [-1]) else None

    def _integers(self, name: str) -> list[int] | None:
        """Return the values of a constant tensor of integers."""
        tensor = self._constants.get(name)
        if tensor is None or tensor.data_type not in _INTEGERS or tensor.data_location:
            return None
        if tensor.raw_data:
            return [value for (value,) in struct.iter_unpack(f"<{_INTEGERS[tensor.data_type]}", tensor.raw_data)]
        return list(tensor.int64_data or tensor.int32_data)


_RULES: dict[str, Callable[[_Walk, onnx.NodeProto], _Columns | None]] = {
    **dict.fromkeys(("Abs", "Cast", "Identity", "IsInf", "IsNaN", "Neg", "Not"), _Walk.same),
    **dict.fromkeys(("Add", "And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), _Walk.broadcast),
    **dict.fromkeys(("Mul", "Or", "Sub", "Where"), _Walk.broadcast),
    "Concat": _Walk.concat,
    "Div": _Walk.divide,
    "Gather": _Walk.gather,
    "Reshape": _Walk.reshape,
    "Unsqueeze": _Walk.unsqueeze,
}
_ML_RULES: dict[str, Callable[[_Walk, onnx.NodeProto], _Columns | None]] = {
    **dict.fromkeys(("Binarizer", "Imputer", "Scaler"), _Walk.same),
    "ArrayFeatureExtractor": _Walk.gather,
}
"""How the columns of a node's output follow from its inputs; nodes that are not here mix their columns."""


def is_ensemble(node: onnx.NodeProto) -> bool:
    """Return whether the node is a tree ensemble."""
    return node.op_type in _ENSEMBLES and node.domain == _ML


def _in_order(graph: onnx.GraphProto) -> bool:
    """Return whether each node takes only what is known before it, as ONNX requires but the runtime does not."""
    known = {"", *(tensor.name for tensor in graph.initializer), *(value.name for value in graph.input)}
    known.update(tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        if not known.issuperset(node.input):
            return False
        known.update(node.output)
    return True


def _columns_of(value: onnx.ValueInfoProto) -> _Columns | None:
    """Return an input as columns if it is [N] or [N, columns], of numbers."""
    tensor = value.type.tensor_type
    dims = tensor.shape.dim
    width = dims[1].dim_value if len(dims) == _MATRIX else 1
    if tensor.elem_type not in _NUMBERS or len(dims) not in {1, _MATRIX} or not 0 < width <= _MOST_COLUMNS:
        return None
    return _Columns(tuple(frozenset({(value.name, at)}) for at in range(width)), flat=len(dims) == 1)


def _compared(node: onnx.NodeProto) -> set[int] | None:
    """Return the columns that the comparisons of an ensemble name; None if its lists do not fit together."""
    columns = _numbers(node, "nodes_featureids")
    if node.op_type == "TreeEnsemble":
        return set(columns)  # its leaves are in lists of their own
    modes = next((one.strings for one in node.attribute if one.name == "nodes_modes"), ())
    if len(modes) != len(columns):
        return None
    return {column for column, mode in zip(columns, modes, strict=True) if mode != b"LEAF"}


def _numbers(node: onnx.NodeProto, name: str) -> Sequence[int]:
    return next((list(one.ints) for one in node.attribute if one.name == name), [])


def _number(node: onnx.NodeProto, name: str) -> Any:  # noqa: ANN401 - protobuf has no types
    return next((one.i for one in node.attribute if one.name == name), 0)
