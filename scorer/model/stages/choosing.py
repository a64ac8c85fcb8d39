"""The cuts whose slowest stage is fastest, by a dynamic programme over the order of nodes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from scorer.model.stages.graph import Graph

WORK_PER_BYTE = 75.0
"""Operations in the time in which a byte is handed on: 30 GFLOP/s over 400 MB/s."""
_CHOICES = 60
"""Cuts that are tried for each stage, at most."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A place between two nodes, and the tensors that are handed on there."""

    position: int
    """The number of nodes before it."""
    tensors: tuple[str, ...]
    bytes: int
    row_bytes: int


def cuts(graph: Graph) -> list[Cut]:
    """Return all allowed cuts, in order."""
    found = []
    for position, names in enumerate(graph.crossing[:-1]):
        measured = [graph.measured.get(name) for name in names]
        sizes = [(one.bytes, one.row_bytes) for one in measured if one is not None and one.crosses]
        if names and len(sizes) == len(names):
            found.append(Cut(position, names, sum(size for size, _ in sizes), sum(more for _, more in sizes)))
    return found


def choose(graph: Graph, stages: int, room: int | None = None, without: Collection[int] = ()) -> list[Cut] | None:
    """Return the cuts between `stages` stages, each with at most `room` bytes of weights; None if there are none.

    The slowest stage is as fast as possible, by its work and the bytes that it takes and gives. `without` are positions
    that are not allowed.
    """
    allowed = [cut for cut in cuts(graph) if cut.position not in without]
    done = [0.0, *accumulate(graph.work)]
    tried = _few(graph, allowed, done, stages)
    at = [0, *(cut.position for cut in tried), len(graph.nodes)]
    over = [0, *(cut.bytes for cut in tried), 0]
    count = len(at)
    best = [[inf] * count for _ in range(stages + 1)]
    before = [[0] * count for _ in range(stages + 1)]
    weights: dict[tuple[int, int], bool] = {}

    own = [0, *accumulate(not again for again in graph.again)]

    def fits(i: int, j: int) -> bool:
        if own[at[i]] == own[at[j]]:  # only nodes that others make again
            return False
        if room is not None and (i, j) not in weights:
            weights[i, j] = graph.bytes_of_weights(graph.stage_nodes(at[i], at[j])) <= room
        return room is None or weights[i, j]

    best[0][0] = 0.0
    for stage in range(1, stages + 1):
        for j in range(1, count):
            for i in range(j - 1, -1, -1):
                work = done[at[j]] - done[at[i]]
                if work >= best[stage][j]:  # further to the left it only grows
                    break
                slowest = max(best[stage - 1][i], work + WORK_PER_BYTE * (over[i] + over[j]))
                if slowest < best[stage][j] and fits(i, j):
                    best[stage][j], before[stage][j] = slowest, i
    if best[stages][-1] == inf:
        return None
    chosen, j = [], count - 1
    for stage in range(stages, 1, -1):
        j = before[stage][j]
        chosen.append(tried[j - 1])
    return chosen[::-1]


def _few(graph: Graph, allowed: list[Cut], done: list[float], stages: int) -> list[Cut]:
    """Return all cuts, or if they are many, the one with the fewest bytes of each group of cuts close together."""
    if len(allowed) <= _CHOICES * stages:
        return allowed
    heavy = [0, *accumulate(sum(graph.weight_bytes.get(name, 0) for name in takes) for takes in graph.takes)]
    kept: dict[tuple[int, int], Cut] = {}
    for cut in allowed:
        share = [int(sums[cut.position] / (sums[-1] or 1) * stages * _CHOICES) for sums in (done, heavy)]
        group = share[0], share[1]
        other = kept.get(group)
        if other is None or (cut.bytes, len(cut.tensors)) < (other.bytes, len(other.tensors)):
            kept[group] = cut
    return sorted(kept.values(), key=lambda cut: cut.position)
