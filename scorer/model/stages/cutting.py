"""Cut a model into stages: read, walk, choose, compare, and choose again without the cuts that change scores."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from scorer.display.words import plural, size
from scorer.model.copies import readable
from scorer.model.spec import SessionSpec
from scorer.model.stages import choosing, pieces
from scorer.model.stages.checking import Comparer, parts
from scorer.model.stages.graph import cannot_cut, read
from scorer.model.stages.walking import walk

if TYPE_CHECKING:
    import onnx

    from scorer.model.spec import ModelSpec
    from scorer.model.stages.checking import Comparison
    from scorer.model.stages.choosing import Cut
    from scorer.model.stages.graph import Graph

_TRIES = 12
"""How often cuts are chosen again because they change scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of a model."""

    after: str
    """The last node before it; '' for the first stage."""
    nodes: int
    """Its nodes, with those that it makes again."""
    weight_bytes: int
    work: float
    """Its share of the model's work."""
    takes: tuple[str, ...]
    """The tensors that are handed to it; the inputs of the model are not named."""
    row_bytes: int
    """Bytes a row of what is handed to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """A model cut into stages."""

    stages: tuple[Stage, ...]
    compared: str
    """What was compared: 'the whole model', or 'the surroundings of each cut'."""
    equal: bool
    """Whether its scores have the bits of the uncut model's."""
    largest_difference: float

    @property
    def words(self) -> str:
        """How the scores compare, in words."""
        rest = "" if self.compared == WHOLE else f" (compared: {self.compared})"
        if self.equal:
            return f"equal to the uncut model's, bit for bit{rest}"
        return f"differ from the uncut model's by at most {self.largest_difference:.2g}{rest}"

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The stages as rows of a table: number, begin, weights, share of the work, bytes handed to it a row."""
        return [
            (
                str(number), stage.after or "the inputs", size(stage.weight_bytes), f"{100 * stage.work:.0f} %",
                size(stage.row_bytes) if number > 1 else "",
            )
            for number, stage in enumerate(self.stages, start=1)
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return the stages as data for JSON."""
        return asdict(self)


WHOLE, AROUND = "the whole model", "the surroundings of each cut"


def cut_model(model: ModelSpec, count: int, room: int | None = None) -> tuple[Stages, list[onnx.ModelProto]]:
    """Return the model cut into `count` stages, each with at most `room` bytes of weights, and their protobufs."""
    spec = SessionSpec(path=readable(model.path), digest=model.digest, files=model.files, device="cpu")
    graph = read(spec.path)
    graph.path = model.path
    windows = walk(graph, spec, model.inputs)
    chosen, found = _best(graph, Comparer(graph, spec, windows), count, room)
    return _described(graph, chosen, found), [
        pieces.stage_proto(graph, *parts(graph, start, end), found.shapes) for start, end in _spans(graph, chosen)
    ]


def _best(graph: Graph, comparer: Comparer, count: int, room: int | None) -> tuple[list[Cut], Comparison]:
    """Return cuts that change no scores; if there are none in reach, those that change them least."""
    without: set[int] = set()
    first = None
    for _ in range(_TRIES):
        chosen = choosing.choose(graph, count, room, without)
        if chosen is None:
            break
        found = _compared(graph, comparer, chosen)
        if not found.unequal:
            return chosen, found
        if first is None or found.largest_difference < first[1].largest_difference:
            first = chosen, found
        without.update(found.unequal)
    if first is None or first[1].largest_difference == float("inf"):
        limit = f", of at most {size(room)} of weights each" if room is not None else ""
        places = len(choosing.cuts(graph))
        raise cannot_cut(
            graph.path,
            f"{plural(len(graph.nodes), 'node')}, and {plural(places, 'place')} to cut",
            f"a graph for {count} stages{limit}",
        )
    return first


def _compared(graph: Graph, comparer: Comparer, chosen: list[Cut]) -> Comparison:
    """Compare with the rank alone of what is handed on, and if bits differ, with the shapes that can be inferred."""
    by_rank = comparer.compare(chosen, {})
    if not by_rank.unequal:
        return by_rank
    by_shape = comparer.compare(chosen, graph.inferred)
    return by_rank if by_shape.unequal else by_shape


def _spans(graph: Graph, chosen: list[Cut]) -> list[tuple[int, int]]:
    bounds = [0, *(cut.position for cut in chosen), len(graph.nodes)]
    return list(itertools.pairwise(bounds))


def _described(graph: Graph, chosen: list[Cut], found: Comparison) -> Stages:
    total = sum(graph.work) or 1.0
    stages = []
    for number, (start, end) in enumerate(_spans(graph, chosen)):
        nodes = graph.stage_nodes(start, end)
        cut = chosen[number - 1] if number else None
        last = graph.nodes[start - 1]
        stages.append(
            Stage(
                after=(last.name or last.output[0]) if cut else "",
                nodes=len(nodes),
                weight_bytes=graph.bytes_of_weights(nodes),
                work=sum(graph.work[start:end]) / total,
                takes=cut.tensors if cut else (),
                row_bytes=cut.row_bytes if cut else 0,
            )
        )
    return Stages(
        stages=tuple(stages),
        compared=WHOLE if found.whole else AROUND,
        equal=not found.unequal,
        largest_difference=found.largest_difference,
    )
