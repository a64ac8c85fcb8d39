"""XGBoost: a model as its library loads it, and as ONNX, written from the library's JSON.

Thresholds and leaves are float32 in the library, too, and it adds them in the order of the trees.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from scorer.model.converting.graphs import INPUT, Graph, Trees
from scorer.model.converting.lightgbm_model import whole
from scorer.model.converting.original import Thresholds, imported, matrix, refused

if TYPE_CHECKING:
    import onnx
    import pandas as pd

    from scorer.model.converting.request import Settings
    from scorer.model.converting.sources import Source

_SIGMOIDS = {"binary:logistic", "reg:logistic"}
_EXPONENTIALS = {"count:poisson", "reg:gamma", "reg:tweedie", "survival:cox", "survival:aft"}
_PLAIN = {
    "reg:squarederror", "reg:linear", "reg:squaredlogerror", "reg:absoluteerror", "reg:pseudohubererror",
    "reg:quantileerror", "rank:pairwise", "rank:ndcg", "rank:map", "binary:logitraw",
}  # fmt: skip
_NO_CATEGORY = -(2**40)
"""A number that no category has, for an empty set."""


class XGBoost:
    """A booster, or an estimator that has one."""

    def __init__(self, source: Source, loaded: Any = None) -> None:  # noqa: ANN401 - XGBoost's object
        self._xgboost = imported("xgboost", "xgboost", source)
        self._source = source
        self._estimator: Any = loaded if hasattr(loaded, "get_booster") else None
        booster = loaded
        if loaded is None:
            booster = self._xgboost.Booster(model_file=source.file)
            self._estimator = self._saved_estimator(booster)
        if self._estimator is not None:
            booster = self._estimator.get_booster()
            best = booster.attr("best_iteration")
            booster = booster if best is None else booster[: int(best) + 1]  # as its predict does
        self._booster = booster
        self._is_classifier = hasattr(self._estimator, "predict_proba")
        self.library = f"xgboost {self._xgboost.__version__}"
        self._learner = json.loads(bytes(booster.save_raw("json")))["learner"]
        self.width = int(self._learner["learner_model_param"]["num_feature"])
        self.features = tuple(self._learner["feature_names"])
        self._objective = self._learner["objective"]["name"]
        model = self._learner["gradient_booster"]
        self._drops = model.get("weight_drop")
        self._model = model["gbtree"]["model"] if "gbtree" in model else model["model"]
        self._trees = self._model.get("trees", [])
        self._check()
        inner = [(tree, node) for tree in self._trees for node in _numeric(tree)]
        self.thresholds = Thresholds(
            np.array([tree["split_indices"][node] for tree, node in inner], int),
            np.array([tree["split_conditions"][node] for tree, node in inner], float),
        )

    def score(self, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        """Return the library's scores."""
        kinds = self._booster.feature_types
        values = matrix(rows)
        data = self._xgboost.DMatrix(
            values, feature_names=self._booster.feature_names, feature_types=kinds, enable_categorical=True
        )
        scores = np.asarray(self._booster.predict(data))
        if self._objective == "multi:softmax":
            return {"label": scores.astype(np.int64)}
        if not self._is_classifier:
            return {self._name(): scores.reshape(len(rows), -1)}
        chances = np.column_stack([1 - scores, scores]) if scores.ndim == 1 else scores
        return {"label": self._classes()[chances.argmax(axis=1)], "probabilities": chances}

    def write(self, rows: pd.DataFrame, settings: Settings) -> onnx.ModelProto:  # noqa: ARG002 - a tree needs no rows
        """Return the model as ONNX."""
        graph = Graph(self.width, double=settings.double, opset=settings.opset)
        source = graph.add("Cast", INPUT, to=1) if settings.double else INPUT
        graph.kind = np.dtype(np.float32)  # as the library reads every number
        base = self._base()
        scores = self._linear(graph, source, base) if "weights" in self._model else self._sum(graph, source, base)
        if self._objective in _SIGMOIDS:
            scores = graph.add("Sigmoid", scores)
        elif self._objective == "binary:hinge":
            scores = graph.add("Cast", graph.add("Greater", scores, np.array(0, np.float32)), to=1)
        elif self._objective in _EXPONENTIALS:
            scores = graph.add("Exp", scores)
        elif self._objective == "multi:softmax":
            graph.output(graph.add("ArgMax", scores, axis=1, keepdims=0), "label", 7, None)
            return graph.model()
        elif self._objective == "multi:softprob":
            scores = graph.add("Softmax", scores, axis=1)
        if not self._is_classifier:
            graph.scores(scores, self._name(), len(base))
            return graph.model()
        if len(base) == 1:
            other = graph.add("Sub", np.array(1, np.float32), scores)
            scores = graph.add("Concat", other, scores, axis=1)
        graph.classes(scores, self._classes())
        return graph.model()

    def _saved_estimator(self, booster: Any) -> Any:  # noqa: ANN401 - XGBoost's objects
        """Return the estimator that wrote the file; None if it was a booster."""
        kind = json.loads(booster.attr("scikit_learn") or "{}").get("_estimator_type")
        kinds = {"classifier": "XGBClassifier", "regressor": "XGBRegressor", "ranker": "XGBRanker"}
        if kind not in kinds:
            return None
        estimator = getattr(self._xgboost, kinds[kind])()
        estimator.load_model(self._source.file)
        return estimator

    def _check(self) -> None:
        """Raise if the model does what no operator of ONNX does."""
        why, hint = "", "train it with another setting"
        if any(int(tree["tree_param"]["size_leaf_vector"]) > 1 for tree in self._trees):
            why = "its leaves are vectors (multi_strategy='multi_output_tree')"
        elif self._model.get("cats", {}).get("enc"):
            why = "it was trained on columns of categories, whose numbers only the library knows"
            hint = "convert the categories to numbers before you train"
        elif self._objective not in _SIGMOIDS | _EXPONENTIALS | _PLAIN | {
            "binary:hinge",
            "multi:softmax",
            "multi:softprob",
        }:
            why = f"the objective {self._objective!r}, which scorer does not know"
        if why:
            raise refused(self._source, why, hint)

    def _classes(self) -> np.ndarray:
        return np.asarray(self._estimator.classes_)

    def _name(self) -> str:
        if self._objective in {"binary:logistic", "multi:softprob"}:
            return "probability" if self._objective.startswith("binary") else "probabilities"
        return "prediction"

    def _base(self) -> list[float]:
        """Return the base value of each target before the objective's transformation."""
        facts = self._learner["learner_model_param"]
        targets = max(int(facts["num_class"]), int(facts["num_target"]), 1)
        found = json.loads(facts["base_score"])
        base = np.array(found if isinstance(found, list) else [found], np.float32)
        if self._objective in _SIGMOIDS:
            base = -np.log(1 / base - 1)
        elif self._objective in _EXPONENTIALS:
            base = np.log(base)
        return [float(one) for one in np.broadcast_to(base, targets)]

    def _sum(self, graph: Graph, source: str, base: list[float]) -> str:
        trees = Trees()
        categories = np.zeros(self.width, bool)
        for number, (tree, target) in enumerate(zip(self._trees, self._model["tree_info"], strict=True)):
            drop = np.float32(1 if self._drops is None else self._drops[number])
            categories[_add_tree(trees, number, tree, target, drop)] = True
        if categories.any():
            source = graph.add("Where", categories[None], whole(graph, source), source)
        return graph.append(trees.node(source, graph.name("trees"), len(base), base, double=False))

    def _linear(self, graph: Graph, source: str, base: list[float]) -> str:
        """Return what a linear booster computes: missing values add nothing."""
        weights = np.array(self._model["weights"], np.float32).reshape(self.width + 1, len(base))
        known = graph.add("Where", graph.add("IsNaN", source), np.array(0, np.float32), source)
        sums = graph.add("MatMul", known, weights[:-1])
        return graph.add("Add", sums, (weights[-1] + np.array(base, np.float32))[None])


def _numeric(tree: dict[str, Any]) -> list[int]:
    """Return the nodes of a tree that compare a number."""
    pairs = enumerate(zip(tree["left_children"], tree["split_type"], strict=True))
    return [node for node, (child, kind) in pairs if child >= 0 and not kind]


def _add_tree(trees: Trees, number: int, tree: dict[str, Any], target: int, drop: np.float32) -> list[int]:
    """Add one tree, and return its columns of categories."""
    segments = zip(tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"], strict=True)
    sets = {node: tree["categories"][start : start + size] or [_NO_CATEGORY] for node, start, size in segments}
    following = len(tree["left_children"])
    columns = []
    for node, left in enumerate(tree["left_children"]):
        right, column = tree["right_children"][node], tree["split_indices"][node]
        value, default_left = tree["split_conditions"][node], bool(tree["default_left"][node])
        if left < 0:
            trees.leaf((number, node), target, float(np.float32(value) * drop))
        elif node in sets:  # these categories go to the right
            places = [node, *range(following, following + len(sets[node]) - 1)]
            following += len(sets[node]) - 1
            at = [(number, one) for one in places]
            trees.member(at, column, sets[node], (right, left), nan_true=not default_left)
            columns.append(column)
        else:
            trees.branch((number, node), "BRANCH_LT", column, value, (left, right), nan_true=default_left)
    return columns
