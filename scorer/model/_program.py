"""The program that trees.c runs for a forest: rows of codes, nodes in the order of evaluation, weights by leaf."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from scorer.model._forest import Forest, Unsupported, below

_BYTE_LEAVES, _WORD_LEAVES = 256, 700  # of a tree that runs as a program; beyond, walking it is faster
_BYTES, _WORDS, _WALK = range(3)
_CHUNK = 255  # ranks in one row of codes of one byte
_MAX_RANKS = 65_534  # in codes of two bytes; one code is left for leaves
_MAX_DEPTH = 4096
_MAX_SLOTS = 60_000
_SEARCH_LEVELS = 8  # of a search tree in registers
_PADDING = 64  # values that vector instructions may read behind the last

FEATURE = np.dtype(
    [("column", "i4"), ("n", "i4"), ("levels", "i4"), ("unused", "i4"), ("sorted", "i8"), ("tree", "i8")]
)
CODE_ROW = np.dtype([("feature", "i4"), ("first", "i4"), ("nan", "i4"), ("set", "i4")])
NODE = np.dtype(
    [("row", "u4"), ("left", "u2"), ("right", "u2"), ("out", "u2"), ("leaves", "u2"), ("code", "u1"), ("unused", "V3")]
)
STEP = np.dtype([("left", "u4"), ("column", "u2"), ("code", "u2")])
TREE = np.dtype(
    [("first", "i8"), ("last", "i8"), ("values", "i8"), ("leaves", "i4"), ("kind", "i4"), ("target", "i4"),
     ("depth", "i4")]
)  # fmt: skip


@dataclass(slots=True)
class _Levels:
    """The nodes that rows can reach, level by level, and what is counted below and before each."""

    nodes: list[np.ndarray]
    """Node numbers of each level."""
    tree: np.ndarray
    leaves: np.ndarray
    inner: np.ndarray
    slots: np.ndarray
    """Slots that the program of a node needs."""
    depth: np.ndarray
    """Of each tree."""


def _levels(forest: Forest) -> _Levels:
    """Return the levels of all trees together; refuse nodes with two parents, circles and very deep trees."""
    n = len(forest.left)
    tree = np.full(n, -1, np.int64)
    depth = np.zeros(len(forest.roots), np.int64)
    level, owners = forest.roots, np.arange(len(forest.roots))
    nodes: list[np.ndarray] = []
    while len(level):
        if len(nodes) > _MAX_DEPTH:
            raise Unsupported(f"a tree is deeper than {_MAX_DEPTH:,} comparisons")
        if (tree[level] >= 0).any() or len(np.unique(level)) != len(level):
            raise Unsupported("a node has two parents")
        tree[level] = owners
        depth[owners] = len(nodes)
        nodes.append(level)
        inner = ~forest.leaf[level]
        at, of = level[inner], owners[inner]
        level = np.stack([forest.left[at], forest.right[at]], axis=1).ravel()
        owners = np.repeat(of, 2)
    found = _Levels(nodes, tree, forest.leaf.astype(np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64), depth)
    for level in reversed(nodes):
        at = level[~forest.leaf[level]]
        a, b = forest.left[at], forest.right[at]
        found.leaves[at] = found.leaves[a] + found.leaves[b]
        found.inner[at] = found.inner[a] + found.inner[b] + 1
        both = found.slots[a] == found.slots[b]
        found.slots[at] = np.maximum(np.where(both, found.slots[a] + 1, np.maximum(found.slots[a], found.slots[b])), 1)
    return found


class Program:
    """What trees.c runs: its arrays, and the structures that point at them. Used by many threads, which only read."""

    def __init__(self, forest: Forest) -> None:
        self._structures: dict[int, Structure] = {}
        self.real = forest.threshold.dtype
        forest = _without_shared_leaves(forest)
        levels = _levels(forest)
        self.n_trees = len(forest.roots)
        self.leaves = levels.leaves[forest.roots]
        self.n_targets = forest.n_targets
        kinds = np.where(self.leaves <= _BYTE_LEAVES, _BYTES, np.where(self.leaves <= _WORD_LEAVES, _WORDS, _WALK))
        reached = (levels.tree >= 0) & ~forest.leaf
        walked = reached & (kinds[levels.tree] == _WALK)
        codes = _Codes(forest)
        rows, node_row, node_code = codes.bytes(reached & ~walked)
        columns, step_column, step_code = codes.words(walked)
        first_leaf, start, slot = _positions(forest, levels)
        self._arrays: dict[str, np.ndarray] = {"features": codes.features, "rows": rows, "columns": columns}
        self._arrays |= {"thresholds": codes.thresholds, "sets": codes.sets}
        trees = np.zeros(self.n_trees, TREE)
        trees["leaves"], trees["kind"], trees["depth"] = self.leaves, kinds, levels.depth
        trees["first"] = start[forest.roots]
        trees["last"] = trees["first"] + levels.inner[forest.roots]
        at = np.flatnonzero(reached)
        nodes = np.zeros(len(at), NODE)
        own = nodes[start[at] + levels.inner[at] - 1]
        own["row"], own["code"] = node_row[at], node_code[at]
        for side, child in (("left", forest.left[at]), ("right", forest.right[at])):
            own[side] = np.where(forest.leaf[child], 0, slot[child])
        own["out"], own["leaves"] = slot[at], np.minimum(levels.leaves[forest.left[at]], 65_535)
        nodes[start[at] + levels.inner[at] - 1] = own
        slots = int(levels.slots[forest.roots[kinds != _WALK]].max(initial=0)) + 1
        if slots > _MAX_SLOTS:
            raise Unsupported("a tree needs too many slots")
        steps, leaf_of = _steps(forest, levels, trees, first_leaf, step_column, step_code)
        values = self._weights(forest, levels, trees, first_leaf)
        self._arrays |= {"nodes": nodes, "steps": steps, "leaf_of": leaf_of, "trees": trees, "values": values}
        self.min_columns = int(forest.column[reached].max(initial=-1)) + 1
        """Columns that the matrix must have."""
        self.looked_at = np.unique(forest.column[reached])
        """Columns that a comparison looks at."""
        self.probes = codes.probes()
        """By column: values at which a comparison changes."""
        self._counts: tuple[int, ...] = (len(codes.features), len(rows), len(columns), self.n_trees, self.n_targets,
                        self._n_weights, slots, int((kinds == _WORDS).any()))  # fmt: skip

    def structure(self, columns: int) -> Structure:
        """Return the C structure for a matrix of this many columns."""
        found = self._structures.get(columns)
        if found is None:
            pointers = (self._arrays[name].ctypes.data for name in _POINTERS)
            found = self._structures[columns] = Structure(*self._counts, columns, *pointers)
        return found

    def _weights(self, forest: Forest, levels: _Levels, trees: np.ndarray, first_leaf: np.ndarray) -> np.ndarray:
        """Return the leaves' weights and set where each tree's begin; decide between one and all targets a leaf."""
        leaf, target, weight = forest.votes
        used = levels.tree[leaf] >= 0
        leaf, target, weight = leaf[used], target[used], weight[used]
        keys = leaf * forest.n_targets + target
        if _has_repeats(keys):
            raise Unsupported("a leaf votes twice for one target")
        of = levels.tree[leaf]
        total = int(self.leaves.sum())
        own_target = np.zeros(self.n_trees, np.int64)
        own_target[of] = target
        single = not _has_repeats(leaf) and (own_target[of] == target).all()
        self.votes_everywhere = len(keys) == total * (1 if single else forest.n_targets)
        """Whether every leaf has a weight, for every target if leaves have several."""
        self.voted = np.flatnonzero(np.bincount(own_target if single else target))
        self._n_weights = 1 if single else forest.n_targets
        before = np.r_[0, np.cumsum(self.leaves)[:-1]]
        trees["values"], trees["target"] = before * self._n_weights, own_target if single else 0
        values = np.zeros(total * self._n_weights + _PADDING, self.real)
        place = before[of] * self._n_weights + first_leaf[leaf]
        values[place if single else place + target * self.leaves[of]] = weight
        return values


def _has_repeats(numbers: np.ndarray) -> bool:
    """Return whether a number appears twice. Sorting takes a tenth of the time of numpy's `unique`."""
    ordered = np.sort(numbers)
    return bool((ordered[1:] == ordered[:-1]).any())


_COUNTS = ("n_features", "n_rows", "n_columns", "n_trees", "n_targets", "n_weights", "n_slots", "any_words")
_POINTERS = (
    "features", "rows", "columns", "thresholds", "sets", "nodes", "steps", "leaf_of", "trees", "values",
)  # fmt: skip


class Structure(ctypes.Structure):
    """`Program` of trees.c."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in _COUNTS),
        ("stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    )


def _without_shared_leaves(forest: Forest) -> Forest:
    """Return the trees with a leaf of its own for every branch that ends in one."""
    inner = np.flatnonzero(~forest.leaf)
    ends = np.r_[forest.left[inner], forest.right[inner]]
    _, first = np.unique(ends, return_index=True)
    again = np.ones(len(ends), bool)
    again[first] = False
    again &= forest.leaf[ends]
    if not again.any():
        return forest
    copies = ends[again]
    n, extra = len(forest.left), len(copies)
    ends[again] = np.arange(n, n + extra)
    forest.left[inner], forest.right[inner] = np.split(ends, 2)
    for name in ("left", "right", "leaf", "column", "threshold", "nan_left", "set_of"):
        whole = getattr(forest, name)
        setattr(forest, name, np.r_[whole, whole[copies]].astype(whole.dtype))
    leaf, target, weight = forest.votes
    order = np.argsort(leaf, kind="stable")
    low, high = np.searchsorted(leaf[order], copies), np.searchsorted(leaf[order], copies, side="right")
    votes = np.concatenate([order[a:b] for a, b in zip(low, high, strict=True)])
    forest.votes = (
        np.r_[leaf, np.repeat(np.arange(n, n + extra), high - low)], np.r_[target, target[votes]],
        np.r_[weight, weight[votes]].astype(weight.dtype),
    )  # fmt: skip
    return forest


class _Codes:
    """The thresholds of each column in order, and the codes of comparisons."""

    def __init__(self, forest: Forest) -> None:
        self._forest = forest
        self._in_set = forest.set_of >= 0
        self._features: list[tuple[int, np.ndarray]] = []
        self._rank = np.zeros(len(forest.left), np.int64)
        self._feature = np.full(len(forest.left), -1, np.int64)
        self._set_at: dict[int, int] = {}
        inner = ~forest.leaf
        for column, at in _grouped(forest.column, np.flatnonzero(inner & ~self._in_set)):
            ranks, self._rank[at] = np.unique(forest.threshold[at], return_inverse=True)
            self._feature[at] = len(self._features)
            self._features.append((column, ranks))
        packed: list[np.ndarray] = []
        for column, at in _grouped(forest.column, np.flatnonzero(inner & self._in_set)):
            self._add_sets(column, at, packed)
        self.sets = np.concatenate(packed) if packed else np.zeros(32, np.uint8)
        self.features, self.thresholds = self._tables()

    def _add_sets(self, column: int, at: np.ndarray, packed: list[np.ndarray]) -> None:
        """Give the sets of one column a feature: its thresholds are the values and the floats just below them."""
        forest = self._forest
        numbers = np.unique(forest.set_of[at])
        values = np.unique(np.concatenate([forest.sets[k] for k in numbers.tolist()]))
        if not len(values):
            values = np.zeros(1, forest.threshold.dtype)  # an empty set: no value is in it
        ranks = np.unique(np.r_[below(values) + values.dtype.type(0), values])
        self._feature[at] = len(self._features)
        self._features.append((column, ranks))
        for k in numbers.tolist():
            bits = np.zeros(max(256, (len(ranks) // 8 + 1) * 8), np.uint8)
            bits[np.searchsorted(ranks, forest.sets[k])] = 1
            self._set_at[k] = sum(map(len, packed))
            packed.append(np.packbits(bits, bitorder="little"))

    def _tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the features and all thresholds, in order and as search trees."""
        features = np.zeros(len(self._features), FEATURE)
        real = self._forest.threshold.dtype
        parts: list[np.ndarray] = []
        offset = 0
        for i, (column, ranks) in enumerate(self._features):
            levels = len(ranks).bit_length()
            padded = np.full((1 << levels) - 1, np.inf, real)
            padded[: len(ranks)] = ranks
            tree = _search_tree(padded, levels) if levels <= _SEARCH_LEVELS else np.zeros(0, real)
            features[i] = (column, len(ranks), levels, 0, offset, offset + len(padded))
            parts += [padded, tree, np.zeros(16, real)]
            offset += len(padded) + len(tree) + 16
        return features, np.concatenate(parts) if parts else np.zeros(_PADDING, real)

    def bytes(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the rows of codes of one byte, and the row and code of each of these nodes."""
        at = np.flatnonzero(nodes)
        chunk = np.where(self._in_set[at], 0, self._rank[at] // _CHUNK)
        rows, row, code = self._assign(at, chunk)
        code[at] = np.where(self._in_set[at], 0, self._rank[at] % _CHUNK)
        rows["first"] *= _CHUNK
        rows["nan"] = np.where(rows["nan"] == 1, 0, 255)
        return rows, row, code

    def words(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the columns of codes of two bytes, and the column and code of each of these nodes."""
        at = np.flatnonzero(nodes)
        if len(at) and max(len(self._features[k][1]) for k in np.unique(self._feature[at]).tolist()) > _MAX_RANKS:
            raise Unsupported("a column has too many thresholds")
        rows, row, code = self._assign(at, np.zeros(len(at), np.int64))
        if len(rows) > _MAX_RANKS:
            raise Unsupported("it has too many columns")
        code[at] = np.where(self._in_set[at], 0, self._rank[at])
        rows["nan"] = np.where(rows["nan"] == 1, 0, 65_535)
        return rows, row, code

    def _assign(self, at: np.ndarray, chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the distinct rows of codes that these nodes need, sorted by feature, and each node's row."""
        sets = np.array([self._set_at.get(k, -1) for k in self._forest.set_of[at].tolist()], np.int64)
        keys = np.stack([self._feature[at], chunk, self._forest.nan_left[at].astype(np.int64), sets], axis=1)
        found, inverse = np.unique(keys, axis=0, return_inverse=True)
        rows = np.zeros(len(found), CODE_ROW)
        for i, name in enumerate(("feature", "first", "nan", "set")):
            rows[name] = found[:, i]
        row = np.zeros(len(self._rank), np.int64)
        row[at] = inverse.reshape(-1)
        return rows, row, np.zeros(len(self._rank), np.int64)

    def probes(self) -> dict[int, np.ndarray]:
        """Return the thresholds by column."""
        found: dict[int, np.ndarray] = {}
        for column, ranks in self._features:
            found[column] = np.r_[found.get(column, ranks[:0]), ranks]
        return found


def _grouped(column: np.ndarray, at: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Return the nodes by the column that they look at."""
    at = at[np.argsort(column[at], kind="stable")]
    edges = np.flatnonzero(np.diff(column[at])) + 1
    return [(int(column[part[0]]), part) for part in np.split(at, edges) if len(part)]


def _search_tree(padded: np.ndarray, levels: int) -> np.ndarray:
    """Return 2^levels - 1 thresholds level by level: each level's pivots side by side."""
    return np.concatenate([padded[(1 << (levels - k - 1)) - 1 :: 1 << (levels - k)][: 1 << k] for k in range(levels)])


def _positions(forest: Forest, levels: _Levels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the first leaf below each node, where its program begins, and its slot.

    The child that needs more slots comes first, so that few slots are in use at a time.
    """
    n = len(forest.left)
    first_leaf, start, slot = np.zeros(n, np.int64), np.zeros(n, np.int64), np.ones(n, np.int64)
    start[forest.roots] = np.r_[0, np.cumsum(levels.inner[forest.roots])[:-1]]
    for level in levels.nodes:
        at = level[~forest.leaf[level]]
        a, b = forest.left[at], forest.right[at]
        first_leaf[a] = first_leaf[at]
        first_leaf[b] = first_leaf[at] + levels.leaves[a]
        earlier = levels.slots[a] >= levels.slots[b]
        first, second = np.where(earlier, a, b), np.where(earlier, b, a)
        start[first], slot[first] = start[at], slot[at]
        start[second] = start[at] + levels.inner[first]
        slot[second] = slot[at] + (levels.inner[first] > 0)
    return first_leaf, start, slot


def _steps(
    forest: Forest, levels: _Levels, trees: np.ndarray, first_leaf: np.ndarray, column: np.ndarray, code: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps of the trees that are walked, level by level, and the number of each leaf's step."""
    walked = trees["kind"] == _WALK
    sizes = np.where(walked, 2 * levels.leaves[forest.roots] - 1, 0)
    base = np.r_[0, np.cumsum(sizes)[:-1]]
    trees["first"][walked], trees["last"][walked] = base[walked], (base + sizes)[walked]
    steps, leaf_of = np.zeros(int(sizes.sum()), STEP), np.zeros(int(sizes.sum()), np.uint32)
    place, free = np.zeros(len(forest.left), np.int64), np.ones(len(sizes), np.int64)
    for level in levels.nodes if walked.any() else []:
        level = level[walked[levels.tree[level]]]  # noqa: PLW2901 - only the trees that are walked
        tree = levels.tree[level]
        into = base[tree] + place[level]
        inner = ~forest.leaf[level]
        at, of = level[inner], tree[inner]
        rank = np.arange(len(at)) - np.searchsorted(of, of)  # within its tree: trees are in order on each level
        place[forest.left[at]] = free[of] + 2 * rank
        place[forest.right[at]] = free[of] + 2 * rank + 1
        free += 2 * np.bincount(of, minlength=len(free))
        steps["left"][into] = np.where(inner, place[forest.left[level]], place[level])
        steps["column"][into] = np.where(inner, column[level], 0)
        steps["code"][into] = np.where(inner, code[level], 65_535)
        leaf_of[into] = np.where(inner, 0, first_leaf[level])
    return steps, leaf_of
