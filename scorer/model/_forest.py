"""The trees of an ensemble's node in one form.

Every comparison becomes "left if x <= threshold", or "left if x is in a set of values", with a side for NaN:

    x <= t    left is the true branch
    x <  t    the same with the next smaller float
    x >  t    branches swapped
    x >= t    branches swapped, with the next smaller float
    x == v    a set with one value; a chain of them with one true branch is one set
    x != v    branches swapped

This is exact, so a row reaches the leaf that the runtime would give it. What has no exact form here is refused with
`Unsupported`, and the runtime scores the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping


MODES = ("LEAF", "BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER")
_LEAF, _LEQ, _LT, _GTE, _GT, _EQ, _NEQ, _MEMBER = range(8)


class Unsupported(Exception):
    """The trees have no exact program here; the text says why."""


@dataclass(slots=True, kw_only=True)
class Forest:
    """The trees of one node in one form, with indices into arrays of all nodes and leaves."""

    left: np.ndarray
    right: np.ndarray
    leaf: np.ndarray
    """Which entries are leaves."""
    column: np.ndarray
    threshold: np.ndarray
    """In the ensemble's own type: float32 or float64."""
    nan_left: np.ndarray
    set_of: np.ndarray
    """The number of the set of values that a comparison looks in; -1 if it has a threshold."""
    sets: list[np.ndarray]
    roots: np.ndarray
    votes: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Leaf, target and weight of each vote."""
    n_targets: int


def classic_forest(attributes: Mapping[str, Any], prefix: str, n_targets: int, real: np.dtype) -> Forest:
    """Return the trees of a TreeEnsembleClassifier or TreeEnsembleRegressor."""
    tree_ids, node_ids = attributes["nodes_treeids"], attributes["nodes_nodeids"]
    n = len(tree_ids)
    if not n:
        raise Unsupported("it has no trees")
    modes = np.array(
        [MODES.index(mode) if mode in MODES else -1 for mode in _texts(attributes["nodes_modes"])], np.int8
    )
    values = _values(attributes, "nodes_values", real)
    features = attributes["nodes_featureids"]
    tracks = attributes.get("nodes_missing_value_tracks_true", np.zeros(0, np.int64))
    tracks = np.zeros(n, bool) if not len(tracks) else tracks == 1
    branches = attributes["nodes_truenodeids"], attributes["nodes_falsenodeids"]
    if any(len(one) != n for one in (node_ids, modes, values, features, tracks, *branches)):
        raise Unsupported("its lists of nodes differ in length")
    first = np.flatnonzero(np.r_[True, tree_ids[1:] != tree_ids[:-1]])
    if len(np.unique(tree_ids[first])) != len(first):
        raise Unsupported("the nodes of a tree are not together")
    locate = _Locator(tree_ids, node_ids)
    inner = modes != _LEAF
    true, false = np.zeros(n, np.int64), np.zeros(n, np.int64)
    true[inner] = locate(tree_ids[inner], branches[0][inner])
    false[inner] = locate(tree_ids[inner], branches[1][inner])
    at = locate(attributes[f"{prefix}_treeids"], attributes[f"{prefix}_nodeids"])
    targets, weights = attributes[f"{prefix}_ids"], _values(attributes, f"{prefix}_weights", real)
    if not len(at) == len(targets) == len(weights):
        raise Unsupported("its lists of weights differ in length")
    voting = ~inner[at]  # the runtime does not look at the weights of other nodes
    votes = at[voting], targets[voting], weights[voting]
    return _normal_form(true, false, modes, features, values, tracks, first, votes, n_targets, [])


def new_forest(attributes: Mapping[str, Any], real: np.dtype) -> Forest:
    """Return the trees of a TreeEnsemble, the operator of ai.onnx.ml 5: its leaves are separate, with one vote each."""
    splits = attributes["nodes_splits"].astype(real, copy=False)
    n = len(splits)
    targets, weights = attributes["leaf_targetids"], attributes["leaf_weights"].astype(real, copy=False)
    modes = attributes["nodes_modes"].astype(np.int8) + 1  # MODES begins with the leaf
    children = []
    for side in ("true", "false"):
        ids, is_leaf = attributes[f"nodes_{side}nodeids"], attributes[f"nodes_{side}leafs"] == 1
        if len(ids) != n or len(is_leaf) != n or (ids < 0).any() or (ids >= np.where(is_leaf, len(targets), n)).any():
            raise Unsupported("a branch leads nowhere")
        children.append(np.where(is_leaf, ids + n, ids))
    features = attributes["nodes_featureids"]
    tracks = attributes.get("nodes_missing_value_tracks_true", np.zeros(0, np.int64))
    tracks = np.zeros(n, bool) if not len(tracks) else tracks == 1
    roots = attributes["tree_roots"]
    if any(len(one) != n for one in (modes, features, tracks)) or len(targets) != len(weights) or not len(roots):
        raise Unsupported("its lists differ in length")
    if (roots < 0).any() or (roots >= n).any():
        raise Unsupported("a root is not there")
    members = attributes.get("membership_values", np.zeros(0, real)).astype(real, copy=False)
    ends = np.flatnonzero(np.isnan(members))
    given = [part[~np.isnan(part)] for part in np.split(members, ends)] if len(members) else []
    m = len(targets)
    pad = np.zeros(m, np.int64)
    return _normal_form(
        np.r_[children[0], pad], np.r_[children[1], pad], np.r_[modes, np.zeros(m, np.int8)], np.r_[features, pad],
        np.r_[splits, np.zeros(m, real)].astype(real), np.r_[tracks, np.zeros(m, bool)], roots,
        (np.arange(n, n + m), targets, weights), int(attributes["n_targets"]), given,
    )  # fmt: skip


class _Locator:
    """Finds nodes by tree and number."""

    def __init__(self, tree_ids: np.ndarray, node_ids: np.ndarray) -> None:
        if (node_ids < 0).any() or (tree_ids < 0).any() or max(int(node_ids.max()), int(tree_ids.max())) >= 1 << 31:
            raise Unsupported("a node's number is out of range")
        keys = tree_ids * (1 << 31) + node_ids
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        if (self._keys[1:] == self._keys[:-1]).any():
            raise Unsupported("two nodes have one number")

    def __call__(self, tree_ids: np.ndarray, node_ids: np.ndarray) -> np.ndarray:
        keys = tree_ids * (1 << 31) + node_ids
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        if len(tree_ids) != len(node_ids) or (node_ids < 0).any() or (self._keys[at] != keys).any():
            raise Unsupported("a branch leads nowhere")
        found: np.ndarray = self._order[at]
        return found


def _texts(values: Any) -> list[str]:  # noqa: ANN401 - protobuf has no types
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values]


def _values(attributes: Mapping[str, Any], name: str, real: np.dtype) -> np.ndarray:
    """Return a list of numbers; double models have it as a tensor."""
    found = attributes.get(f"{name}_as_tensor")
    found = attributes.get(name, np.zeros(0, real)) if found is None or not len(found) else found
    return np.asarray(found).astype(real, copy=False)


def _normal_form(  # noqa: PLR0913, PLR0917 - the columns of one table
    true: np.ndarray, false: np.ndarray, modes: np.ndarray, column: np.ndarray, values: np.ndarray,
    tracks: np.ndarray, roots: np.ndarray, votes: tuple[np.ndarray, np.ndarray, np.ndarray], n_targets: int,
    given_sets: list[np.ndarray],
) -> Forest:  # fmt: skip
    """Return the trees with every comparison as "left if x <= threshold" or "left if x is in a set"."""
    leaf = modes == _LEAF
    inner = ~leaf
    if ((modes < 0) | (modes >= len(MODES)))[inner].any():
        raise Unsupported("it has a comparison that is not known")
    if (column[inner] < 0).any() or (column[inner] >= 1 << 30).any():
        raise Unsupported("a column's number is out of range")
    if not ((votes[1] >= 0) & (votes[1] < n_targets)).all():
        raise Unsupported("a weight's target is out of range")
    equal = (modes == _EQ) | (modes == _NEQ)
    member = modes == _MEMBER
    if (tracks & (equal | member) & inner).any():
        raise Unsupported("a missing value counts as equal")
    if np.isnan(values[inner & ~member]).any():
        raise Unsupported("a threshold is NaN")
    lower = (modes == _LT) | (modes == _GTE) | equal
    if np.isneginf(values[inner & lower]).any():
        raise Unsupported("no number is below a threshold")
    swapped = (modes == _GTE) | (modes == _GT) | (modes == _NEQ)
    nan_true = tracks | (modes == _NEQ)
    left, right = np.where(swapped, false, true), np.where(swapped, true, false)
    lower_floats = below(values)
    threshold = np.where((modes == _LT) | (modes == _GTE), lower_floats, values) + values.dtype.type(0)  # -0 becomes 0
    forest = Forest(
        left=left, right=right, leaf=leaf, column=column, threshold=threshold, nan_left=nan_true ^ swapped,
        set_of=np.full(len(left), -1, np.int64), sets=[], roots=roots, votes=votes, n_targets=n_targets,
    )  # fmt: skip
    _fold_sets(forest, equal & inner)
    if member.any():
        if len(given_sets) < int(member.sum()):
            raise Unsupported("a comparison has no set of values")
        forest.set_of[member] = np.arange(len(forest.sets), len(forest.sets) + int(member.sum()))
        forest.sets += [np.unique(one) + values.dtype.type(0) for one in given_sets[: int(member.sum())]]
    return forest


def below(values: np.ndarray) -> np.ndarray:
    """Return the next smaller float of each value."""
    with np.errstate(over="ignore"):  # below the smallest float is -inf
        lower: np.ndarray = np.nextafter(values, values.dtype.type(-np.inf))
    return lower


def _fold_sets(forest: Forest, equal: np.ndarray) -> None:
    """Make a set of each comparison with one value, and one set of each chain of them that shares its left branch."""
    at = np.flatnonzero(equal)
    follows = forest.right[at]
    chained = equal[follows] & (forest.column[follows] == forest.column[at])
    chained &= forest.left[follows] == forest.left[at]
    parents = np.bincount(np.r_[forest.left[~forest.leaf], forest.right[~forest.leaf]], minlength=len(forest.left))
    chained &= parents[follows] == 1
    link = np.full(len(forest.left), -1, np.int64)
    link[at[chained]] = follows[chained]
    heads = np.setdiff1d(at, follows[chained])
    values = [[value] for value in forest.threshold[heads].tolist()]
    last, going = heads.copy(), np.arange(len(heads))
    while len(going := going[link[last[going]] >= 0]):
        last[going] = link[last[going]]
        for k, value in zip(going.tolist(), forest.threshold[last[going]].tolist(), strict=True):
            values[k].append(value)
    forest.right[heads] = forest.right[last]
    forest.set_of[heads] = np.arange(len(heads))
    forest.sets = [np.unique(np.array(one, forest.threshold.dtype)) for one in values]
