"""A model's graph without external weights: its nodes in the order of use, and what each stage needs.

Some tensors never cross a cut, because each stage that needs them makes them again: those that depend on weights
alone, such as a dequantised weight, and those that follow from the model's inputs at next to no cost, such as a mask.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from scorer.errors import ModelError
from scorer.model.protobuf import protobufs, read_graph

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    import onnx

_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4,
}  # fmt: skip
"""Bits of an element by ONNX's number of its type."""
_AGAIN_WEIGHTS = 65_536
"""Bytes of weights behind a tensor that stages make again, at most."""
_AGAIN_WORK = 1 / 2000
"""Share of the model's work behind a tensor that stages make again, at most."""
_LARGEST_SHAPE = 4096  # bytes of a weight that may be a shape
_WORK_OF_AN_ELEMENT = 4  # operations of a node that is no product, by element of its output


def cannot_cut(
    path: str, found: str, expected: str = "a model whose tensors can be handed on between stages"
) -> ModelError:
    """Return the error for a model that cannot be cut."""
    return ModelError(
        "the model cannot be cut into stages",
        where=path,
        expected=expected,
        found=found,
        hint="use fewer stages, or run the whole model",
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """What the walk found out about a tensor."""

    type: int
    """ONNX's number of the type."""
    shape: tuple[int, ...]
    bytes: int
    row_bytes: int
    """By how much it grows with each row."""
    crosses: bool
    """Whether it can be handed on: its first axis is the rows, or it does not change with them."""


@dataclass(slots=True)
class Graph:
    """The graph of a model; `measured` and what depends on it are complete after the walk."""

    path: str
    proto: onnx.ModelProto
    nodes: list[onnx.NodeProto]
    takes: list[tuple[str, ...]]
    """What each node takes, with what graphs inside it take from outside."""
    weights: dict[str, onnx.TensorProto]
    weight_bytes: dict[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    maker: dict[str, int]
    """The number of the node that makes a tensor."""
    inferred: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)
    """Shapes that follow from the model's inputs, of tensors that the model declares nothing of."""
    measured: dict[str, Measured] = field(default_factory=dict)
    work: list[float] = field(default_factory=list)
    """Operations of each node."""
    again: list[bool] = field(default_factory=list)
    """Whether stages make a node's outputs again."""
    crossing: list[tuple[str, ...]] = field(default_factory=list)
    """For each number of nodes the tensors that would be handed on after them. Inputs of the model are not."""

    def finish(self) -> None:
        """Compute what depends on the measured sizes."""
        self.work = [self._work_of(node) for node in self.nodes]
        self.again = self._made_again()
        self.crossing = self._crossing()
        self.inferred = _inferred(self) if self.measured else {}

    def stage_nodes(self, start: int, end: int) -> list[int]:
        """Return the numbers of the nodes of a stage, with those that it makes again."""
        wanted = {k for k in range(start, end) if not self.again[k]}
        ends = (self.maker[name] for name in self.outputs)
        wanted |= {k for k in ends if self.again[k] and end == len(self.nodes)}
        todo = list(wanted)
        while todo:
            for name in self.takes[todo.pop()]:
                k = self.maker.get(name)
                if k is not None and self.again[k] and k not in wanted:
                    wanted.add(k)
                    todo.append(k)
        return sorted(wanted)

    def bytes_of_weights(self, nodes: Iterable[int]) -> int:
        """Return how many bytes of weights these nodes take."""
        names = {name for k in nodes for name in self.takes[k]}
        return sum(self.weight_bytes.get(name, 0) for name in names)

    def made_again(self, name: str) -> bool:
        """Return whether stages make a tensor again."""
        return name in self.maker and self.again[self.maker[name]]

    def last_uses(self) -> dict[str, int]:
        """Return the last node that takes each tensor. What is made again needs no other tensor that crosses."""
        return {name: k for k, takes in enumerate(self.takes) for name in takes}

    def given_by(self, start: int, end: int) -> list[str]:
        """Return the model's outputs that the stage of these nodes gives."""
        made_last = end == len(self.nodes)
        return [
            name
            for name in self.outputs
            if (made_last if self.again[self.maker[name]] else start <= self.maker[name] < end)
        ]

    def _crossing(self) -> list[tuple[str, ...]]:
        last = self.last_uses()
        found: list[tuple[str, ...]] = [()]
        alive: dict[str, int] = {}
        for k, node in enumerate(self.nodes):
            if not self.again[k]:
                alive |= {name: last[name] for name in node.output if name and last.get(name, -1) > k}
            alive = {name: end for name, end in alive.items() if end > k}
            found.append(tuple(alive))
        return found

    def _work_of(self, node: onnx.NodeProto) -> float:
        shapes = [
            found.shape if (found := self.measured.get(name)) else self._weight_shape(name) for name in node.input
        ]
        out = self.measured.get(node.output[0]) if node.output else None
        elements = float(prod(out.shape)) if out else 0.0
        kind = node.op_type
        if "MatMul" in kind and shapes and shapes[0]:
            return 2 * elements * shapes[0][-1]
        if kind in {"Gemm", "FusedGemm"} and shapes[0]:
            turned = any(one.name == "transA" and one.i for one in node.attribute)
            return 2 * elements * shapes[0][0 if turned else -1]
        if "Conv" in kind and len(shapes) > 1:
            kernel = shapes[3 if kind == "QLinearConv" and len(shapes) > 3 else 1]  # noqa: PLR2004 - its place
            return 2 * elements * prod(kernel[1:]) if kernel else elements * _WORK_OF_AN_ELEMENT
        if kind in {"LSTM", "GRU", "RNN"} and len(shapes) > 2 and all(shapes[:3]):  # noqa: PLR2004 - X, W and R
            return 2.0 * prod(shapes[0][:2]) * (prod(shapes[1]) + prod(shapes[2]))
        return elements * _WORK_OF_AN_ELEMENT

    def _weight_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.weights[name].dims) if name in self.weights else ()

    def _made_again(self) -> list[bool]:
        """Return for each node whether stages make its outputs again; before the walk, only what weights alone give."""
        most = sum(self.work) * _AGAIN_WORK
        again, fixed = [], set(self.weights)
        cost = dict.fromkeys((*self.weights, *self.inputs), 0.0)
        behind: dict[str, int] = dict.fromkeys(self.inputs, 0) | self.weight_bytes
        for k, (node, takes) in enumerate(zip(self.nodes, self.takes, strict=True)):
            constant = not _is_random(node) and all(name in fixed for name in takes)
            known = not _is_random(node) and all(name in cost for name in takes)
            own = 0.0 if constant else self.work[k] + sum(cost[name] for name in takes) if known else 0.0
            weights = sum(behind[name] for name in takes) if known else 0
            measured = all(name in self.measured for name in node.output if name)
            small = known and measured and weights <= _AGAIN_WEIGHTS and own <= most
            again.append(constant or small)
            if constant:
                fixed.update(node.output)
            if constant or small:
                cost |= dict.fromkeys(node.output, own)
                behind |= dict.fromkeys(node.output, weights)
        return again


def read(path: str) -> Graph:
    """Read the graph of a model at a local path; external weights are not read."""
    proto = read_graph(path)
    graph = proto.graph
    if graph.sparse_initializer:
        raise cannot_cut(path, "sparse weights")
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = _in_order_of_use(graph)
    made = {name: k for k, node in enumerate(nodes) for name in node.output if name}
    outputs = tuple(value.name for value in graph.output)
    unmade = next((name for name in outputs if name not in made), None)
    if unmade is not None:
        raise cannot_cut(path, f"the output {unmade!r}, which no node makes")
    found = Graph(
        path=path,
        proto=proto,
        nodes=nodes,
        takes=[_takes(node) for node in nodes],
        weights=weights,
        weight_bytes={name: weight_size(tensor) for name, tensor in weights.items()},
        inputs=tuple(value.name for value in graph.input if value.name not in weights),
        outputs=outputs,
        maker=made,
    )
    found.finish()
    return found


def size_in_bytes(kind: int, shape: Sequence[int]) -> int:
    """Return the bytes of a tensor of ONNX's type `kind`."""
    return -(-prod(shape) * _BITS.get(kind, 64) // 8)


def weight_size(tensor: onnx.TensorProto) -> int:
    """Return the bytes of a weight, inside the protobuf or outside."""
    written = next((int(entry.value) for entry in tensor.external_data if entry.key == "length"), None)
    return size_in_bytes(tensor.data_type, tensor.dims) if written is None else written


def _is_random(node: onnx.NodeProto) -> bool:
    return str(node.op_type).startswith(("Random", "Multinomial", "Bernoulli"))


def _takes(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return all that a node takes, each once."""
    return tuple(dict.fromkeys(name for name in (*node.input, *sorted(_taken_inside(node))) if name))


def _taken_inside(node: onnx.NodeProto) -> set[str]:
    """Return what the graphs inside a node take from outside."""
    found: set[str] = set()
    for attribute in node.attribute:
        inner = [attribute.g] if attribute.HasField("g") else []
        for graph in (*inner, *attribute.graphs):
            found |= _taken_by_graph(graph)
    return found


def _taken_by_graph(graph: onnx.GraphProto) -> set[str]:
    found: set[str] = set()
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        found |= {name for name in (*node.input, *_taken_inside(node)) if name} - own
        own |= set(node.output)
    return found | ({value.name for value in graph.output} - own)


def _in_order_of_use(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes, each right before it is needed first; exporters put some far from their use."""
    nodes = list(graph.node)
    maker = {name: k for k, node in enumerate(nodes) for name in node.output if name}
    needs: list[Collection[int]] = [{maker[name] for name in _takes(node) if name in maker} for node in nodes]
    depth = [0] * len(nodes)
    for k, needed in enumerate(needs):
        depth[k] = 1 + max((depth[one] for one in needed), default=0)
    ordered: list[onnx.NodeProto] = []
    seen: set[int] = set()
    for root in (maker[value.name] for value in graph.output if value.name in maker):
        todo: list[tuple[int, bool]] = [(root, False)]
        while todo:
            k, ready = todo.pop()
            if ready:
                ordered.append(nodes[k])
            elif k not in seen:
                seen.add(k)
                todo.append((k, True))
                # the deepest is taken from the end, so it comes first and the others stand next to their use
                todo.extend((one, False) for one in sorted(needs[k], key=lambda one: (depth[one], one)))
    return ordered


def values_of(graph: Graph) -> dict[str, Any]:
    """Return what the uncut model declares of its tensors."""
    own = graph.proto.graph
    return {value.name: value for value in (*own.value_info, *own.input, *own.output)}


def _inferred(graph: Graph) -> dict[str, onnx.ValueInfoProto]:
    """Return the shapes that follow from the model's inputs, of tensors that the model declares nothing of."""
    from onnx import shape_inference  # noqa: PLC0415 - only where a model is cut

    without_data = protobufs().ModelProto()
    without_data.CopyFrom(graph.proto)
    for weight in without_data.graph.initializer:
        if graph.weight_bytes[weight.name] > _LARGEST_SHAPE:
            weight.ClearField("raw_data")
    try:
        found = shape_inference.infer_shapes(without_data).graph.value_info
    except (RuntimeError, ValueError):  # such as a model with operators that it does not know
        return {}
    own = values_of(graph)
    ranks = {name: len(one.shape) for name, one in graph.measured.items()}
    return {
        value.name: value
        for value in found
        if value.name not in own and ranks.get(value.name) == len(value.type.tensor_type.shape.dim)
    }
