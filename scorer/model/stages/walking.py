"""The walk: run the graph window by window with a few batches, and measure every tensor.

A window has few weights, so no more than those are ever in memory. The batches have 2, 3 and 1 rows: the axis that
grows is the axis of the rows, and a tensor that loses it with one row cannot be handed on. Shape inference is not used;
it leaves most sizes of 8-bit models unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from scorer.errors import BatchError
from scorer.model.protobuf import element_type
from scorer.model.session import map_run_errors, one_line
from scorer.model.stages import pieces, samples
from scorer.model.stages.graph import Graph, Measured, cannot_cut, size_in_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.model.spec import SessionSpec, TensorSpec

    Held = dict[str, Any]

_WINDOW_BYTES = 128 * 2**20
_WINDOW_NODES = 400


@dataclass(frozen=True, slots=True)
class Window:
    """Nodes that ran together, and the tensors that were there before, for each batch."""

    start: int
    end: int
    before: tuple[Held, ...]


def walk(
    graph: Graph, spec: SessionSpec, inputs: Sequence[TensorSpec], most_bytes: int = _WINDOW_BYTES
) -> list[Window]:
    """Run the graph with made-up batches, fill in what was measured, and return the windows."""
    why = ""
    for size in samples.SIZES:
        try:
            return _walk(graph, spec, samples.batches(inputs, size), most_bytes)
        except (BatchError, TypeError, ValueError) as error:
            why = why or one_line(str(error))
            graph.measured.clear()
    raise cannot_cut(graph.path, why, "a model that accepts made-up rows")


def _walk(graph: Graph, spec: SessionSpec, batches: Sequence[Held], most_bytes: int) -> list[Window]:
    last = graph.last_uses()
    held = tuple(dict(one) for one in batches)
    _measure(graph, _types(graph, batches[0]), *held)
    windows = []
    for start, end in pairwise(_bounds(graph, most_bytes)):
        nodes = graph.stage_nodes(start, end)
        if not nodes:  # only what later nodes make again
            continue
        outputs = [name for k in nodes for name in graph.nodes[k].output if name and name not in graph.measured]
        session = pieces.load(spec, pieces.stage_proto(graph, nodes, outputs), optimised=False)
        types = {tensor.name: element_type(tensor.type) for tensor in session.get_outputs()}
        windows.append(Window(start, end, tuple(map(dict, held))))
        with map_run_errors():
            found = [pieces.run(session, one, outputs) for one in held]
        _measure(graph, types, *found)
        kept = {name for name in (*held[0], *outputs) if last.get(name, -1) >= end and not graph.made_again(name)}
        held = tuple(
            {name: value for name, value in (one | new).items() if name in kept or name in graph.inputs}
            for one, new in zip(held, found, strict=True)
        )
    graph.finish()
    return windows


def _bounds(graph: Graph, most_bytes: int) -> list[int]:
    """Return where windows begin and end."""
    bounds, seen, weight = [0], set[str](), 0
    for k, takes in enumerate(graph.takes):
        new = {name for name in takes if name in graph.weights} - seen
        more = sum(graph.weight_bytes[name] for name in new)
        if k > bounds[-1] and (weight + more > most_bytes or k - bounds[-1] >= _WINDOW_NODES):
            bounds.append(k)
            seen, weight = set(), 0
        seen |= new
        weight += more
    return [*bounds, len(graph.nodes)]


def _types(graph: Graph, feeds: Held) -> dict[str, int]:
    return {value.name: value.type.tensor_type.elem_type for value in graph.proto.graph.input if value.name in feeds}


def _measure(graph: Graph, types: dict[str, int], two: Held, three: Held, one: Held) -> None:
    """Record types, sizes and the axis of the rows. What is no tensor is left out, and so never crosses."""
    fixed = _fixed_rows(graph)
    for name, value in two.items():
        other = three[name]
        if not types.get(name) or not isinstance(value, np.ndarray):
            continue
        sizes = [size_in_bytes(types[name], each.shape) for each in (value, other)]
        grown = value.shape != other.shape
        same_rank = np.ndim(one[name]) == value.ndim
        graph.measured[name] = Measured(
            type=types[name],
            shape=value.shape,
            bytes=sizes[0],
            row_bytes=sizes[0] // fixed if fixed else sizes[1] - sizes[0],
            crosses=same_rank and (not grown or _grows_by_rows(value.shape, other.shape)),
        )


def _fixed_rows(graph: Graph) -> int:
    """Return the number of rows that the model always takes; 0 if it takes any number."""
    declared = [value for value in graph.proto.graph.input if value.name in graph.inputs]
    sizes = [value.type.tensor_type.shape.dim[0] for value in declared if value.type.tensor_type.shape.dim]
    return max(one.dim_value for one in sizes) if sizes and all(one.dim_value > 0 for one in sizes) else 0


def _grows_by_rows(two: tuple[int, ...], three: tuple[int, ...]) -> bool:
    """Return whether the first axis alone grew, as the rows did."""
    few, many, _ = samples.ROWS
    return bool(two) and two[1:] == three[1:] and two[0] * many == three[0] * few
