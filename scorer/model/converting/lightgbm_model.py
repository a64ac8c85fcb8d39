"""LightGBM: a model as its library loads it, and as ONNX with exactly the library's comparisons.

The library compares a double with a double threshold, and the tensor holds a float32. Every threshold is rounded to
the next float32 that is not above it, so each float32 takes the same branch. The library's other rules are kept:

* A number of at most 1e-35 is zero.
* The feature decides what a missing value is: NaN, zero, or nothing; then NaN is zero.
* Categories are cut to whole numbers. NaN, negative and unknown ones belong to no set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scorer.model.converting.graphs import INPUT, Graph, Trees, floor32
from scorer.model.converting.original import Thresholds, imported, matrix, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import onnx
    import pandas as pd

    from scorer.model.converting.request import Settings
    from scorer.model.converting.sources import Source

_ZERO = float(np.float32(1e-35))
"""Where the library takes a number for zero: it is a float32 that is compared with doubles."""
_UNNAMED = "Column_"
_SIGMOIDS = {"binary", "cross_entropy", "xentropy", "multiclassova", "multiclass_ova", "ova", "ovr"}
_EXPONENTIALS = {"poisson", "gamma", "tweedie"}
_PLAIN = {
    "", "regression", "regression_l1", "l1", "l2", "huber", "fair", "quantile", "mape", "lambdarank", "rank_xendcg",
    "custom", "none",
}  # fmt: skip


class LightGBM:
    """A booster, or an estimator that has one."""

    def __init__(self, source: Source, loaded: Any = None) -> None:  # noqa: ANN401 - LightGBM's object
        library = imported("lightgbm", "lightgbm", source)
        self._source = source
        self._estimator = loaded if hasattr(loaded, "booster_") else None
        found = library.Booster(model_file=source.file) if loaded is None else loaded
        self._booster = found.booster_ if self._estimator is not None else found
        self._classes = getattr(self._estimator, "classes_", None)
        self.library = f"lightgbm {library.__version__}"
        names = self._booster.feature_name()
        self.features = () if all(name == f"{_UNNAMED}{i}" for i, name in enumerate(names)) else tuple(names)
        self.width = len(names)
        if self._booster.pandas_categorical:
            raise refused(
                source,
                f"it was trained on {len(self._booster.pandas_categorical)} columns of pandas categories, whose "
                "numbers only the library knows",
                "convert the categories to numbers before you train, or train a pipeline of scikit-learn that does it",
            )
        self._dump = self._booster.dump_model()
        if any(tree["shrinkage"] and _is_linear(tree["tree_structure"]) for tree in self._dump["tree_info"]):
            raise refused(
                source,
                "its leaves are linear functions (linear_tree), and a tree of ONNX has one number in a leaf",
                "train it without linear_tree",
            )
        splits = [split for tree in self._dump["tree_info"] for split in _splits(tree["tree_structure"])]
        numbers = [(one["split_feature"], one["threshold"]) for one in splits if one["decision_type"] != "=="]
        self.thresholds = Thresholds(np.array([c for c, _ in numbers], int), np.array([t for _, t in numbers], float))
        self._zeros = _mask(self.width, [one["split_feature"] for one in splits if one["missing_type"] == "Zero"])
        self._categories = _mask(self.width, [one["split_feature"] for one in splits if one["decision_type"] == "=="])

    def score(self, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        """Return the library's scores."""
        scores = np.asarray(self._booster.predict(matrix(rows)))
        if self._classes is None:
            return {self._output()[0]: scores.reshape(len(rows), -1)}
        chances = np.column_stack([1 - scores, scores]) if scores.ndim == 1 else scores
        return {"label": self._classes[chances.argmax(axis=1)], "probabilities": chances}

    def write(self, rows: pd.DataFrame, settings: Settings) -> onnx.ModelProto:  # noqa: ARG002 - a tree needs no rows
        """Return the model as ONNX."""
        targets = self._dump["num_tree_per_iteration"]
        graph = Graph(self.width, double=settings.double, opset=settings.opset)
        trees = Trees()
        share = len(self._dump["tree_info"]) // targets if self._dump.get("average_output") else 1
        for number, tree in enumerate(self._dump["tree_info"]):
            _add_tree(trees, number, tree["tree_structure"], number % targets, share, double=settings.double)
        raw = graph.append(trees.node(self._prepared(graph), graph.name("trees"), targets, (), double=settings.double))
        name, transform = self._output()
        scores = transform(graph, raw)
        if self._classes is None:
            graph.scores(scores, name, targets)
            return graph.model()
        if targets == 1:
            other = graph.add("Sub", np.array(1, np.float32), scores)
            scores = graph.add("Concat", other, scores, axis=1)
        graph.classes(scores, np.asarray(self._classes))
        return graph.model()

    def _prepared(self, graph: Graph) -> str:
        """Return the input with zeros as NaN where zero is missing, and with categories cut to whole numbers."""
        source, kind = INPUT, graph.kind.type
        if self._zeros.any():
            near = graph.add("LessOrEqual", graph.add("Abs", source), np.array(_ZERO, kind))
            missing = graph.add("And", near, self._zeros[None])
            source = graph.add("Where", missing, np.array(np.nan, kind), source)
        if self._categories.any():
            source = graph.add("Where", self._categories[None], whole(graph, source), source)
        return source

    def _output(self) -> tuple[str, Callable[[Graph, str], str]]:
        """Return the name of the output, and what turns the sums of the leaves into it."""
        words = str(self._dump.get("objective") or "").split()
        kind, options = (words or [""])[0], dict(word.split(":") for word in words[1:] if ":" in word)
        slope = float(options.get("sigmoid", 1))
        several = self._dump["num_tree_per_iteration"] > 1
        if kind in _SIGMOIDS:
            return "probabilities" if several else "probability", lambda graph, raw: _sigmoid(graph, raw, slope)
        if kind in {"multiclass", "softmax"}:
            return "probabilities", lambda graph, raw: graph.add("Softmax", raw, axis=1)
        if kind in _EXPONENTIALS:
            return "prediction", lambda graph, raw: graph.add("Exp", raw)
        if kind in {"cross_entropy_lambda", "xentlambda"}:
            return "prediction", lambda graph, raw: graph.add("Softplus", raw)
        if kind not in _PLAIN:
            raise refused(self._source, f"the objective {kind!r}, which scorer does not know", "export it another way")
        if "sqrt" in words:
            return "prediction", lambda graph, raw: graph.add("Mul", graph.add("Sign", raw), graph.add("Mul", raw, raw))
        return "prediction", lambda graph, raw: raw  # noqa: ARG005 - one signature for all


def _mask(width: int, columns: list[int]) -> np.ndarray:
    found = np.zeros(width, bool)
    found[columns] = True
    return found


def _sigmoid(graph: Graph, raw: str, slope: float) -> str:
    return graph.add("Sigmoid", raw if slope == 1 else graph.add("Mul", raw, np.array(slope, np.float32)))


def whole(graph: Graph, source: str) -> str:
    """Return the numbers cut towards zero."""
    below = graph.add("Less", source, np.array(0, graph.kind))
    return graph.add("Where", below, graph.add("Ceil", source), graph.add("Floor", source))


def _splits(root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    stack = [root]
    while stack:
        node = stack.pop()
        if "left_child" in node:
            yield node
            stack += [node["left_child"], node["right_child"]]


def _is_linear(root: dict[str, Any]) -> bool:
    stack = [root]
    while stack:
        node = stack.pop()
        if node.get("leaf_features") or node.get("leaf_coeff"):
            return True
        stack += [node[side] for side in ("left_child", "right_child") if side in node]
    return False


def _add_tree(trees: Trees, tree: int, root: dict[str, Any], target: int, share: int, *, double: bool) -> None:
    """Add one tree; its nodes are numbered as they are met, and a set of categories has a node for each."""
    following = 1
    stack = [(root, 0)]
    while stack:
        node, at = stack.pop()
        if "left_child" not in node:
            trees.leaf((tree, at), target, node["leaf_value"] / share)
            continue
        places = [at]
        values = [int(one) for one in node["threshold"].split("||")] if node["decision_type"] == "==" else []
        for _ in values[1:]:
            places.append(following)
            following += 1
        left, right, following = following, following + 1, following + 2
        stack += [(node["right_child"], right), (node["left_child"], left)]
        if values:
            trees.member([(tree, one) for one in places], node["split_feature"], values, (left, right), nan_true=False)
            continue
        nan_left = node["threshold"] >= 0 if node["missing_type"] == "None" else bool(node["default_left"])
        trees.branch(
            (tree, at), "BRANCH_LEQ", node["split_feature"], _threshold(node["threshold"], double=double),
            (left, right), nan_true=nan_left,
        )  # fmt: skip


def _threshold(value: float, *, double: bool) -> float:
    """Return the threshold that gives every number of the tensor's type the library's branch."""
    kind = np.float64 if double else np.float32
    rounded = kind(value) if double else floor32(np.array(value)).item()
    beyond = np.nextafter(kind(-_ZERO), kind(-np.inf))
    return float(max(rounded, _ZERO) if value >= 0 else min(rounded, beyond))
