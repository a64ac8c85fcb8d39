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

    import onnx

    from scorer.model.spec import SessionSpec
    from scorer.model.stages.choosing import Cut
    from scorer.model.stages.graph import Graph
    from scorer.model.stages.walking import Window

    Shapes = Mapping[str, onnx.ValueInfoProto]
    Span = tuple[int, int]

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
    shapes: Shapes
    """What the stages declare of the tensors that are handed to them, where the model declares nothing."""


class Comparer:
    """Compares stages with the uncut model; each span of its nodes runs uncut only once."""

    def __init__(
        self, graph: Graph, spec: SessionSpec, windows: Sequence[Window], whole_bytes: int = _WHOLE_BYTES
    ) -> None:
        self._graph, self._spec, self._windows = graph, spec, windows
        self._whole = sum(graph.weight_bytes.values()) <= whole_bytes
        self._expected: dict[Span, list[dict[str, Any]]] = {}
        """What each span that ran gives, for each batch."""

    def compare(self, cuts: Sequence[Cut], shapes: Shapes) -> Comparison:
        """Compare the stages that these cuts give with the uncut model."""
        positions = [cut.position for cut in cuts]
        if self._whole:
            distance = self._distance(self._windows, positions, shapes)
            single: dict[int, float] = {}
            if distance and len(positions) > 1:
                single = {at: self._distance(self._windows, [at], shapes) for at in positions}
            unequal = (tuple(at for at in positions if single.get(at)) or tuple(positions)) if distance else ()
        else:
            single = {at: self._distance(self._around(at), [at], shapes) for at in positions}
            distance = max(single.values())
            unequal = tuple(at for at, one in single.items() if one)
        return Comparison(whole=self._whole, unequal=unequal, largest_difference=distance, shapes=shapes)

    def _around(self, position: int) -> Sequence[Window]:
        k = next(number for number, window in enumerate(self._windows) if position <= window.end)
        return self._windows[max(0, k - 1) : k + 2]

    def _distance(self, windows: Sequence[Window], positions: Sequence[int], shapes: Shapes) -> float:
        """Return the largest difference between the nodes of these windows uncut and cut at these positions."""
        span = (0, len(self._graph.nodes)) if self._whole else (windows[0].start, windows[-1].end)
        held = [dict(one) for one in windows[0].before]
        try:
            with map_run_errors():
                expected = self._uncut(span, held)
                for start, end in itertools.pairwise([span[0], *positions, span[1]]):
                    nodes, given = parts(self._graph, start, end)
                    stage = pieces.load(self._spec, pieces.stage_proto(self._graph, nodes, given, shapes))
                    for one in held:
                        one.update(pieces.run(stage, one, given))
        except BatchError:
            return float("inf")
        return max(
            _difference(one[name], other[name]) for one, other in zip(expected, held, strict=True) for name in one
        )

    def _uncut(self, span: Span, batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        if span not in self._expected:
            if self._whole:
                with map_load_errors(self._spec.path):
                    options = session_options(self._spec)
                    session = ort.InferenceSession(self._spec.path, options, providers=["CPUExecutionProvider"])
            else:  # with the shapes that the runtime knows in the uncut model
                uncut = pieces.stage_proto(self._graph, *parts(self._graph, *span), self._graph.inferred)
                session = pieces.load(self._spec, uncut)
            outputs = [tensor.name for tensor in session.get_outputs()]
            self._expected[span] = [pieces.run(session, one, outputs) for one in batches]
        return self._expected[span]


def parts(graph: Graph, start: int, end: int) -> tuple[list[int], list[str]]:
    """Return the nodes of a stage, and its outputs: what it hands on, and its share of the model's outputs."""
    nodes = graph.stage_nodes(start, end)
    made = {name for k in nodes for name in graph.nodes[k].output}
    handed = [name for name in graph.crossing[end] if name in made]
    return nodes, list(dict.fromkeys((*handed, *graph.given_by(start, end))))


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
