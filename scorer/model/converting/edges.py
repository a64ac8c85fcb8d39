"""Rows on the thresholds of trees, where the errors of a conversion show first.

Three of four rows are led to one node of the converted trees each. Their numbers take the branches above the node, and
one is the last that the node's comparison sends to one side, or the first that it sends to the other. The other rows
have five numbers replaced by thresholds of the original, or by the next float.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scorer.model.converting.graphs import ensembles
from scorer.model.converting.original import matrix

if TYPE_CHECKING:
    import onnx
    import pandas as pd

    from scorer.model.converting.graphs import Ensemble
    from scorer.model.converting.original import Thresholds

_REPLACED_SHARE = 4  # one of so many rows has replaced numbers, the others are led to a node
_REPLACED = 5  # numbers of a row
_SIDES = 3
"""On the threshold, above it and below it."""


def on_thresholds(rows: pd.DataFrame, known: Thresholds, model: onnx.ModelProto, *, double: bool) -> pd.DataFrame:
    """Return as many rows on thresholds as there are rows; none if there are no trees that read the rows' columns."""
    trees = [_Walk.of(one, double=double) for one in ensembles(model) if len(one.inner)]
    columns, near = _near(known, rows.shape[1], double=double)
    if not len(rows) or not (len(near) or trees):
        return rows.iloc[:0]
    changed = matrix(rows).copy()
    random = np.random.default_rng(0)
    led = len(changed) if not len(near) else len(changed) - len(changed) // _REPLACED_SHARE if trees else 0
    for number, walk in enumerate(trees):
        walk.lead(changed[:led][number :: len(trees)], random)
    if led < len(changed):
        _replace(changed[led:], columns, near, random)
    return type(rows)(changed, columns=rows.columns)


def _near(known: Thresholds, width: int, *, double: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns and the thresholds as the tensor's type holds them."""
    with np.errstate(over="ignore"):
        near = known.numbers.astype(np.float64 if double else np.float32)
    usable = np.isfinite(near) & (known.columns < width)
    return known.columns[usable], near[usable]


def _replace(rows: np.ndarray, columns: np.ndarray, near: np.ndarray, random: np.random.Generator) -> None:
    """Replace numbers of each row by thresholds; all thresholds are used before one is used again."""
    places = np.arange(len(rows))
    order = random.permutation(len(near))
    for turn in range(_REPLACED):
        picked = order[(turn * len(places) + places) % len(order)]
        rows[places, columns[picked]] = _beside(near[picked], random.integers(0, _SIDES, len(places)))


def _beside(values: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Return each value, the next float above it or the next below it; 0 where that is infinite."""
    kind = values.dtype.type
    choices = (values, np.nextafter(values, kind(np.inf)), np.nextafter(values, kind(-np.inf)))
    found = np.choose(sides, choices)
    return np.where(np.isfinite(found), found, 0)


class _Walk(NamedTuple):
    """An ensemble with what leads a row to each of its nodes."""

    nodes: Ensemble
    parents: np.ndarray
    """The position of the node above; -1 for a root."""
    by_true: np.ndarray
    """Whether the node is the true branch of the one above."""
    choices: np.ndarray
    """For each node the nearest values for which its comparison is false, and true."""
    near: np.ndarray
    """The thresholds in the tensor's type."""

    @classmethod
    def of(cls, nodes: Ensemble, *, double: bool) -> _Walk:
        """Follow the branches of an ensemble."""
        order = np.lexsort((nodes.node_ids, nodes.tree_ids))
        width = int(nodes.node_ids.max()) + 1
        keys = (nodes.tree_ids * width + nodes.node_ids)[order]
        inner = nodes.inner
        parents, by_true = np.full(len(order), -1), np.zeros(len(order), bool)
        for ids, side in ((nodes.false_ids, False), (nodes.true_ids, True)):
            at = order[np.searchsorted(keys, nodes.tree_ids[inner] * width + ids[inner])]
            parents[at], by_true[at] = inner, side
        kind = np.float64 if double else np.float32
        with np.errstate(over="ignore"):
            near = nodes.thresholds.astype(kind)
            above, below = np.nextafter(near, kind(np.inf)), np.nextafter(near, kind(-np.inf))
            another = np.add(near, 1, dtype=kind)
        false, true = near.copy(), near.copy()
        for mode, one, other in (
            ("BRANCH_LEQ", above, near), ("BRANCH_LT", near, below), ("BRANCH_GT", near, above),
            ("BRANCH_GTE", below, near), ("BRANCH_EQ", another, near), ("BRANCH_NEQ", near, another),
        ):  # fmt: skip
            false[nodes.modes == mode], true[nodes.modes == mode] = one[nodes.modes == mode], other[nodes.modes == mode]
        return cls(nodes, parents, by_true, np.stack([false, true]), near)

    def lead(self, rows: np.ndarray, random: np.random.Generator) -> None:
        """Change rows so that each two reach one node: one for its true branch, one for its false branch."""
        inner = random.permutation(self.nodes.inner)
        for number, row in enumerate(rows):
            node = int(inner[number // 2 % len(inner)])
            for above, side in self._path(node):
                if not self._holds(row[self.nodes.columns[above]], above, side=side):
                    self._set(row, above, side=side)
            self._set(row, node, side=number % 2 == 1)

    def _set(self, row: np.ndarray, node: int, *, side: bool) -> None:
        """Give a row the value for which a node's comparison is true, or false."""
        value = self.choices[int(side), node]
        row[self.nodes.columns[node]] = value if np.isfinite(value) else 0

    def _path(self, node: int) -> list[tuple[int, bool]]:
        """Return the nodes above a node, from the root, each with the branch that leads to the node."""
        path: list[tuple[int, bool]] = []
        while self.parents[node] >= 0 and len(path) < len(self.parents):
            path.append((int(self.parents[node]), bool(self.by_true[node])))
            node = int(self.parents[node])
        return path[::-1]

    def _holds(self, number: float, node: int, *, side: bool) -> bool:
        """Return whether a number takes this branch of a node; a missing one takes none."""
        value, mode = self.near[node], self.nodes.modes[node]
        found = {
            "BRANCH_LEQ": number <= value, "BRANCH_LT": number < value, "BRANCH_GT": number > value,
            "BRANCH_GTE": number >= value, "BRANCH_EQ": number == value, "BRANCH_NEQ": number != value,
        }  # fmt: skip
        return bool(not np.isnan(number) and found.get(mode, side) == side)
