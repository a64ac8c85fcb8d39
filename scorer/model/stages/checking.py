"""Compare the scores of the stages with those of the uncut model, bit for bit.

A model that is not large is compared whole. Of a larger one each cut is tried in its surroundings: the window of the
walk that it is in, with the one before and the one after.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from scorer.errors import BatchError
from scorer.model.session import map_load_errors, map_run_errors, session_options
from scorer.model.stages import pieces

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scorer.model.spec import SessionSpec
    from scorer.model.stages.choosing import Cut
    from scorer.model.stages.graph import Graph
    from scorer.model.stages.walking import Window

_WHOLE_BYTES = 2**30
"""Weights of a model that is compared whole, at most."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far the scores with these cuts are from those of the uncut model."""

    whole: bool
    """Whether the whole model was compared, or only the surroundings of each cut."""
    unequal: tuple[int, ...]
    """Positions of the cuts that change bits; all of them, if it is not known which."""
    largest_difference: float
    """Of the numbers; infinite where a value is NaN, a text or absent on one side only."""


def compare(
    graph: Graph, spec: SessionSpec, windows: Sequence[Window], cuts: Sequence[Cut], whole_bytes: int = _WHOLE_BYTES
) -> Comparison:
    """Compare the stages that these cuts give with the uncut model."""
    positions = [cut.position for cut in cuts]
    ends = (0, len(graph.nodes))
    if sum(graph.weight_bytes.values()) <= whole_bytes:
        with map_load_errors(spec.path):
            session = ort.InferenceSession(spec.path, session_options(spec), providers=["CPUExecutionProvider"])
        distance = _distance(graph, spec, ends, windows[0].before, positions, session)
        single: dict[int, float] = {}
        if distance and len(positions) > 1:
            single = {at: _distance(graph, spec, ends, windows[0].before, [at], session) for at in positions}
        unequal = tuple(at for at in positions if single.get(at)) or tuple(positions)
        return Comparison(whole=True, unequal=unequal if distance else (), largest_difference=distance)
    found, handed = {}, graph.handed
    for at in positions:
        k = next(number for number, window in enumerate(windows) if at <= window.end)
        around = windows[max(0, k - 1) : k + 2]
        span = (around[0].start, around[-1].end)
        graph.handed = graph.inferred  # what the runtime knows of them in the uncut model
        uncut = pieces.load(spec, pieces.stage_proto(graph, *parts(graph, *span)))
        graph.handed = handed
        found[at] = _distance(graph, spec, span, around[0].before, [at], uncut)
    unequal = tuple(at for at, one in found.items() if one)
    return Comparison(whole=False, unequal=unequal, largest_difference=max(found.values()))


def parts(graph: Graph, start: int, end: int) -> tuple[list[int], list[str]]:
    """Return the nodes of a stage, and its outputs: what it hands on, and its share of the model's outputs."""
    nodes = graph.stage_nodes(start, end)
    made = {name for k in nodes for name in graph.nodes[k].output}
    handed = [name for name in graph.crossing()[end] if name in made]
    return nodes, list(dict.fromkeys((*handed, *graph.given_by(start, end))))


def _distance(
    graph: Graph,
    spec: SessionSpec,
    span: tuple[int, int],
    before: Sequence[Mapping[str, Any]],
    positions: Sequence[int],
    uncut: ort.InferenceSession,
) -> float:
    """Return the largest difference between a span of nodes uncut and cut at these positions."""
    outputs = [tensor.name for tensor in uncut.get_outputs()]
    held = [dict(one) for one in before]
    try:
        with map_run_errors():
            expected = [pieces.run(uncut, one, outputs) for one in held]
            bounds = [span[0], *positions, span[1]]
            for start, end in itertools.pairwise(bounds):
                nodes, given = parts(graph, start, end)
                stage = pieces.load(spec, pieces.stage_proto(graph, nodes, given))
                for one in held:
                    one.update(pieces.run(stage, one, given))
    except BatchError:
        return float("inf")
    return max(
        _difference(one[name], other[name]) for one, other in zip(expected, held, strict=True) for name in outputs
    )


def _difference(one: Any, other: Any) -> float:  # noqa: ANN401 - whatever a model returns
    """Return 0 if all bits are equal, else the largest difference of numbers."""
    if not isinstance(one, np.ndarray) or one.dtype.kind == "O":
        same = repr(one) == repr(other) if not isinstance(one, np.ndarray) else np.array_equal(one, other)
        return 0.0 if same else float("inf")
    if one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes():
        return 0.0
    if one.shape != other.shape or one.dtype.kind not in "fiub":
        return float("inf")
    apart = np.abs(one.astype(np.float64) - other.astype(np.float64))
    apart[np.isnan(one.astype(np.float64)) & np.isnan(other.astype(np.float64))] = 0
    largest = float(apart.max())
    return float("inf") if np.isnan(largest) else largest or 5e-324  # such as -0.0 for 0.0
