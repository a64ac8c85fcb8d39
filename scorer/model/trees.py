"""A model with tree ensembles: their nodes by the compiled kernel, the rest of its graph by ONNX Runtime.

    inputs -> [scaler, cast, ...] -> trees -> label, scores -> [cast, zipmap, ...] -> outputs
                 ONNX Runtime       kernel                        ONNX Runtime

The scores have the same bits as on ONNX Runtime alone. Each kernel proves that on rows made of its own thresholds
before it is used; otherwise, and for whatever has no exact program, ONNX Runtime scores the whole model.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from scorer.errors import BatchError, OutOfMemory
from scorer.model import _kernel, protobuf
from scorer.model._columns import is_ensemble
from scorer.model._forest import Unsupported
from scorer.model._tree_node import TreeNode
from scorer.model.session import map_load_errors, map_run_errors, session_options

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnx

    from scorer.model.spec import SessionSpec


_REALS: dict[int, np.dtype] = {1: np.dtype(np.float32), 11: np.dtype(np.float64)}  # by ONNX's number of the type
_STRING, _INT64 = 8, 7
_GUARD_ROWS = 1024


@dataclass(frozen=True, slots=True)
class _Step:
    """A part of the graph: it takes values by name, and gives others."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    work: ort.InferenceSession | TreeNode


def support() -> str:
    """Return whether this installation compiles trees, in words."""
    level = _kernel.chosen()
    return f"compiled ({level})" if level else f"by ONNX Runtime: {_kernel.why_not()}"


class TreeEngine:
    """A loaded model whose tree ensembles run on the kernel. `run` may be called from many threads at once."""

    def __init__(self, spec: SessionSpec) -> None:
        """Cut the graph at its ensembles; raise `Unsupported`, with the reason, if ONNX Runtime must score it."""
        self.spec = spec
        self.fits: int | None = None
        self.calling: dict[int, float] = {}
        self.nodes: dict[str, dict[str, int]] = {}
        if spec.files:
            raise Unsupported("")  # weights in other files: no converter of trees writes those
        with map_load_errors(spec.path):
            self._steps = _Cut(protobuf.read_graph(spec.path), spec).steps()
        self._plans: dict[tuple[str, ...], list[_Step]] = {}
        own = [step.work.program for step in self._steps if isinstance(step.work, TreeNode)]
        count, most = sum(one.n_trees for one in own), max(int(one.leaves.max()) for one in own)
        self.trees = f"{count:,} trees of up to {most:,} leaves, compiled ({_kernel.chosen()})"

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """Return the model's outputs for one batch, in the order of `outputs`."""
        thread = threading.get_ident()
        self.calling[thread] = time.monotonic()
        try:
            values = dict(feeds)
            for step in self._needed(tuple(outputs)):
                values.update(zip(step.outputs, _results(step, values), strict=True))
            return [values[name] for name in outputs]
        finally:
            del self.calling[thread]

    def release_memory(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> None:
        """Do nothing: the kernel frees its buffers after each call, and what is before and after it needs little."""

    def _needed(self, outputs: tuple[str, ...]) -> list[_Step]:
        """Return the steps that these outputs need."""
        found = self._plans.get(outputs)
        if found is None:
            wanted, found = set(outputs), []
            for step in reversed(self._steps):
                if wanted & set(step.outputs):
                    found.insert(0, step)
                    wanted |= set(step.inputs)
            self._plans[outputs] = found
        return found


def _results(step: _Step, values: Mapping[str, Any]) -> list[Any]:
    if isinstance(step.work, TreeNode):
        matrix = values[step.inputs[0]]
        columns = step.work.program.min_columns
        if matrix.ndim != 2 or matrix.shape[1] < columns:  # noqa: PLR2004 - a matrix
            shape = " x ".join(map(str, matrix.shape))
            raise BatchError("the trees refused a batch", found=f"{shape} values; they look at column {columns - 1}")
        try:
            return step.work.run(matrix)
        except MemoryError as error:
            raise OutOfMemory("the trees refused a batch", found="no memory for their codes") from error
    with map_run_errors():
        given = {name: values[name] for name in step.inputs}
        return step.work.run(list(step.outputs), given)  # type: ignore[no-any-return]


class _Cut:
    """Cuts a graph at its ensembles and makes the steps, in an order in which each finds its inputs."""

    def __init__(self, model: onnx.ModelProto, spec: SessionSpec) -> None:
        self._model, self._spec = model, spec
        graph = model.graph
        ensembles = [node for node in graph.node if is_ensemble(node)]
        if not ensembles:
            raise Unsupported("")
        if not _kernel.chosen():
            raise Unsupported(_kernel.why_not())
        if any(attribute.g.node or attribute.graphs for node in graph.node for attribute in node.attribute):
            raise Unsupported("the model has branches or loops")
        self._ensembles = {_key(node) for node in ensembles}
        self._weights = {one.name: one for one in graph.initializer}
        self._types = {one.name: one for one in graph.input if one.name not in self._weights}
        self._results = {one.name: one.type.tensor_type.elem_type for one in graph.output}
        self._level: dict[str, int] = {}

    def steps(self) -> list[_Step]:
        """Return the steps: for each level, the part of the runtime and then the ensembles that it feeds."""
        levels = self._by_level()
        steps: list[_Step] = []
        for level in range(max(levels) + 1):
            nodes = levels.get(level, [])
            plain = [node for node in nodes if _key(node) not in self._ensembles]
            if plain:
                steps.append(self._runtime_step(plain))
            steps += [self._tree_step(node) for node in nodes if _key(node) in self._ensembles]
        return steps

    def _by_level(self) -> dict[int, list[onnx.NodeProto]]:
        """Return the nodes by the number of ensembles that a value passes before it reaches them."""
        levels: dict[int, list[onnx.NodeProto]] = {}
        for node in self._model.graph.node:  # in the order of the data, as ONNX requires
            own = max((self._level.get(name, 0) for name in node.input), default=0)
            levels.setdefault(own, []).append(node)
            for name in node.output:
                self._level[name] = own + (_key(node) in self._ensembles)
        return levels

    def _runtime_step(self, nodes: Sequence[onnx.NodeProto]) -> _Step:
        """Return a session of these nodes alone."""
        made = {name for node in nodes for name in node.output if name}
        used = [name for node in nodes for name in node.input if name]
        taken = [name for name in dict.fromkeys(used) if name not in made and name not in self._weights]
        own = {_key(node) for node in nodes}
        others = {name for node in self._model.graph.node if _key(node) not in own for name in node.input}
        given = [name for node in nodes for name in node.output if name in others or name in self._results]
        if not self._types.keys() >= {*taken}:
            raise Unsupported("a value between its parts has no known type")
        weights = [self._weights[name] for name in sorted({*used} & self._weights.keys())]
        session = self._session(nodes, [self._types[name] for name in taken], given, weights)
        for tensor in session.get_outputs():
            kind = protobuf.element_type(tensor.type)
            if kind:
                self._types[tensor.name] = self._declared(tensor.name, kind)
        return _Step(tuple(taken), tuple(given), session)

    def _tree_step(self, node: onnx.NodeProto) -> _Step:
        """Return an ensemble on the kernel, after it gave the runtime's bits for rows of its thresholds."""
        declared = self._types.get(node.input[0])
        real = None if declared is None else _REALS.get(declared.type.tensor_type.elem_type)
        if declared is None or real is None:
            raise Unsupported("its input is not float32 or float64")
        tree = TreeNode(node, real, _kernel.chosen())
        label = _INT64 if tree.labels is None or tree.labels.dtype != object else _STRING
        scores = 11 if node.op_type == "TreeEnsemble" and real == np.float64 else 1
        kinds = (scores,) if tree.labels is None else (label, scores)
        for name, kind in zip(node.output, kinds, strict=False):
            self._types[name] = self._declared(name, kind)
            if self._results.get(name, kind) not in {0, kind}:
                raise Unsupported("")  # the runtime will refuse the model and say why
        if len(node.output) != len(kinds) or not all(node.output):
            raise Unsupported("one of its outputs has no name")
        self._prove(node, tree, real, declared.type.tensor_type.elem_type)
        return _Step((node.input[0],), tuple(node.output), tree)

    def _prove(self, node: onnx.NodeProto, tree: TreeNode, real: np.dtype, kind: int) -> None:
        """Refuse a kernel whose outputs differ from the runtime's in a bit; `kind` is ONNX's number of `real`."""
        rows = probing_rows(tree, real)
        session = self._session([node], [self._declared(node.input[0], kind)], list(node.output), ())
        expected = session.run(None, {node.input[0]: rows})
        if not all(_same_bits(a, b) for a, b in zip(expected, tree.run(rows), strict=True)):
            raise Unsupported("the compiled trees gave other scores than ONNX Runtime here")

    def _session(
        self, nodes: Iterable[onnx.NodeProto], taken: Iterable[onnx.ValueInfoProto], given: Iterable[str],
        weights: Iterable[onnx.TensorProto],
    ) -> ort.InferenceSession:  # fmt: skip
        """Return a session of some nodes with these inputs and outputs."""
        model = type(self._model)()
        model.ir_version = self._model.ir_version
        model.opset_import.extend(self._model.opset_import)
        model.functions.extend(self._model.functions)
        graph = model.graph
        graph.name = "part"
        graph.node.extend(nodes)
        graph.initializer.extend(weights)
        graph.input.extend(taken)
        for name in given:
            graph.output.add().name = name
        options = session_options(self._spec)
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def _declared(self, name: str, kind: int) -> onnx.ValueInfoProto:
        value = self._model.graph.value_info.add()
        value.name = name
        value.type.tensor_type.elem_type = kind
        return value


def _key(node: onnx.NodeProto) -> str:
    """Return what tells a node from the others: the name of its first result."""
    return next((name for name in node.output if name), "")


def probing_rows(tree: TreeNode, real: np.dtype) -> np.ndarray:
    """Return rows that meet the thresholds of an ensemble exactly, miss them by one float, or have no number."""
    rng = np.random.default_rng(0)
    program = tree.program
    rows = rng.standard_normal((_GUARD_ROWS, max(program.min_columns, 1))).astype(real)
    for column, values in program.probes.items():
        picked = values[rng.integers(0, len(values), _GUARD_ROWS)]
        with np.errstate(over="ignore"):  # beside the largest float is inf
            aside = np.nextafter(picked, rng.choice(np.array([-np.inf, np.inf], real), _GUARD_ROWS))
        rows[:, column] = np.where(rng.random(_GUARD_ROWS) < 0.7, picked, aside)  # noqa: PLR2004
    special = np.array([np.nan, np.inf, -np.inf, 0.0], real)
    odd = rng.random(rows.shape) < 0.05  # noqa: PLR2004
    return np.where(odd, special[rng.integers(0, len(special), rows.shape)], rows).astype(real)


def _same_bits(expected: Any, found: np.ndarray) -> bool:  # noqa: ANN401 - the runtime's values
    if found.dtype == object:
        return np.array_equal(expected, found)
    return bool(expected.dtype == found.dtype and expected.reshape(found.shape).tobytes() == found.tobytes())
