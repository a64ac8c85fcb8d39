"""scikit-learn: a model as its library loads it, and skl2onnx's conversion with what that needs to be right."""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from scorer.display.words import cut
from scorer.model.converting.graphs import INPUT, OPSETS, floor32, followed, renamed, without_zipmaps
from scorer.model.converting.original import BOOSTERS, Thresholds, imported, matrix, refused, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from scorer.model.converting.request import Settings
    from scorer.model.converting.sources import Source

_MOST_DEPTH = 12  # estimators inside estimators
_THRESHOLDS, _INNER, _NAN_LEFT = 1, 2, 3  # fields of _Tree


class Sklearn:
    """An estimator, or a pipeline of them."""

    def __init__(self, source: Source, loaded: Any) -> None:  # noqa: ANN401 - an estimator
        library = imported("sklearn", "scikit-learn", source)
        self._base = imported("sklearn.base", "scikit-learn", source)
        self._source = source
        self._model = loaded
        self._converted_part, self._last = _split(loaded)
        self._parts = [*_estimators(self._converted_part)]
        self.library = f"scikit-learn {library.__version__}"
        self.features = tuple(str(name) for name in getattr(loaded, "feature_names_in_", ()))
        self.width = int(getattr(loaded, "n_features_in_", 0))
        if not self.width:
            raise refused(source, f"a {type(loaded).__name__} that is not fitted", "fit it, and write it again")
        self._by_columns = bool(self.features) and any(type(one).__name__ == "ColumnTransformer" for one in self._parts)
        self.thresholds = Thresholds() if hasattr(loaded, "steps") else _thresholds(self._parts)

    def score(self, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        """Return the library's scores."""
        model, values = self._model, rows if self.features else self._values(rows)
        if hasattr(model, "predict_proba"):
            chances = model.predict_proba(values)
            if isinstance(chances, list):
                raise refused(self._source, f"{len(chances)} targets with classes", "train a model for each target")
            return {"label": np.asarray(model.predict(values)), "probabilities": np.asarray(chances)}
        if not hasattr(model, "predict"):
            found = model.transform(values)
            found = found.toarray() if hasattr(found, "toarray") else np.asarray(found)
            return {"transformed": found.reshape(len(rows), -1)}
        found = np.asarray(model.predict(values))
        if self._base.is_regressor(model):
            return {"prediction": found.reshape(len(rows), -1)}
        scores = "decision_function" if hasattr(model, "decision_function") else "transform"
        if not hasattr(model, scores):
            return {"label": found}
        return {"label": found, "scores": np.asarray(getattr(model, scores)(values)).reshape(len(rows), -1)}

    def write(self, rows: pd.DataFrame, settings: Settings) -> onnx.ModelProto:
        """Return the model as ONNX."""
        _without_obstacles(self._parts)
        failures: list[Exception] = []
        for whole_numbers in (True, False) if self._by_columns else (True,):
            types = self._types(rows, settings, whole_numbers=whole_numbers)
            try:
                with _plain_lists():
                    model = self._converted(types, settings)
                break
            except Exception as error:  # noqa: BLE001 - converters raise anything
                failures.append(error)
        else:
            raise refused(
                self._source,
                f"skl2onnx: {cut(' '.join(str(failures[0]).split())) or type(failures[0]).__name__}",
                "replace that step, or export the part before it; see the list of supported models of skl2onnx",
            ) from failures[0]
        without_zipmaps(model)
        _exact_trees(model, self._parts)
        if self._last is not None:
            model = followed(model, wrapped(_package(self._last), self._source, self._last).write(rows, settings))
        self._name_outputs(model, [*self.score(rows)])
        return model

    def _converted(self, types: list[tuple[str, Any]], settings: Settings) -> onnx.ModelProto:
        skl2onnx = imported("skl2onnx", "skl2onnx", self._source)
        versions = OPSETS | ({"": settings.opset} if settings.opset else {})
        part = self._converted_part
        options = {id(part): {"zipmap": False}} if hasattr(part, "predict_proba") else None
        try:
            return skl2onnx.convert_sklearn(part, initial_types=types, target_opset=versions, options=options)
        except NameError:  # the option does not exist for this model
            return skl2onnx.convert_sklearn(part, initial_types=types, target_opset=versions)

    def _types(self, rows: pd.DataFrame, settings: Settings, *, whole_numbers: bool) -> list[tuple[str, Any]]:
        """Return the inputs as skl2onnx describes them: one for each column, or one matrix."""
        kinds = imported("skl2onnx.common.data_types", "skl2onnx", self._source)
        number = kinds.DoubleTensorType if settings.double else kinds.FloatTensorType

        def kind(dtype: Any) -> Any:  # noqa: ANN401 - pandas' and skl2onnx's types
            if not isinstance(dtype, np.dtype) or dtype.kind in "OUS":
                return kinds.StringTensorType
            return kinds.Int64TensorType if dtype.kind in "iu" and whole_numbers else number

        if self._by_columns:
            return [(str(name), kind(dtype)([None, 1])) for name, dtype in rows.dtypes.items()]
        texts = {kind(dtype) for dtype in rows.dtypes} == {kinds.StringTensorType}
        return [(INPUT, (kinds.StringTensorType if texts else number)([None, self.width]))]

    def _values(self, rows: pd.DataFrame) -> np.ndarray:
        texts = any(not isinstance(dtype, np.dtype) or dtype.kind in "OUS" for dtype in rows.dtypes)
        return rows.to_numpy(object) if texts else matrix(rows)

    @staticmethod
    def _name_outputs(model: onnx.ModelProto, names: list[str]) -> None:
        """Give the outputs the names of what the library computes, in their order; leave out any others."""
        del model.graph.output[len(names) :]
        for output, name in zip(model.graph.output, names, strict=False):
            if any(
                name == one for node in model.graph.node for one in (*node.input, *node.output) if one != output.name
            ):
                renamed(model, name, f"{name}_inside")
            renamed(model, output.name, name)


def _package(found: Any) -> str:  # noqa: ANN401 - any object
    return type(found).__module__.partition(".")[0]


def _split(model: Any) -> tuple[Any, Any]:  # noqa: ANN401 - estimators
    """Return what skl2onnx converts, and the boosted trees that follow it in a pipeline; None if there are none."""
    steps = getattr(model, "steps", [])
    if len(steps) > 1 and _package(steps[-1][1]) in BOOSTERS:
        return model[:-1], steps[-1][1]
    return model, None


def _estimators(found: Any, depth: int = 0) -> Iterator[Any]:  # noqa: ANN401 - estimators, lists and anything else
    """Yield an estimator and all fitted estimators inside it."""
    if depth > _MOST_DEPTH:
        return
    if isinstance(found, list | tuple | np.ndarray):
        for one in found if not isinstance(found, np.ndarray) or found.dtype == object else ():
            yield from _estimators(one, depth + 1)
    elif isinstance(found, dict):
        yield from _estimators(list(found.values()), depth + 1)
    elif hasattr(found, "get_params") and not isinstance(found, type):
        yield found
        for name, value in vars(found).items():
            if name != "estimators" or not hasattr(found, "estimators_"):  # those are not fitted
                yield from _estimators(value, depth + 1)


class _Tree(NamedTuple):
    """The nodes of one tree, as arrays."""

    columns: np.ndarray
    thresholds: np.ndarray
    inner: np.ndarray
    """Which nodes compare a number."""
    nan_left: np.ndarray
    """Where a missing value goes to the left."""


def _trees(parts: list[Any]) -> list[_Tree]:
    """Return all trees of the estimators, in their order."""
    found = []
    for one in parts:
        tree = getattr(one, "tree_", None)
        if tree is not None:
            nan_left = np.asarray(getattr(tree, "missing_go_to_left", np.zeros(tree.node_count)), bool)
            found.append(_Tree(tree.feature, tree.threshold, tree.children_left >= 0, nan_left))
        for trees in getattr(one, "_predictors", ()):  # of histogram gradient boosting
            for nodes in (tree.nodes for tree in trees):
                inner, nan_left = nodes["is_leaf"] == 0, nodes["missing_go_to_left"] == 1
                found.append(_Tree(nodes["feature_idx"], nodes["num_threshold"], inner, nan_left))
    return found


def _thresholds(parts: list[Any]) -> Thresholds:
    """Return the thresholds of all trees, which look at the columns of the model itself."""
    trees = _trees(parts)
    if not trees:
        return Thresholds()
    return Thresholds(
        np.concatenate([tree.columns[tree.inner] for tree in trees]).astype(np.int64),
        np.concatenate([tree.thresholds[tree.inner] for tree in trees]),
    )


def _exact_trees(model: onnx.ModelProto, parts: list[Any]) -> None:
    """Round thresholds down, because the library compares doubles, and send missing values where it does.

    This needs nodes in the library's order; where the converter wrote others, they stay as they are.
    """
    ensembles = [node for node in model.graph.node if node.op_type.startswith("TreeEnsemble")]
    if len(ensembles) != 1:
        return
    own = {one.name: one for one in ensembles[0].attribute}
    trees, ids = _trees(parts), np.array(own["nodes_treeids"].ints)
    at = np.array(own["nodes_nodeids"].ints)
    starts = np.cumsum([0, *(len(tree.inner) for tree in trees)])
    if not len(ids) or ids.max() + 1 != len(trees) or (at >= np.diff(starts)[ids]).any():
        return
    places = starts[ids] + at
    inner, exact, nan_left = (
        np.concatenate([tree[part] for tree in trees])[places] for part in (_INNER, _THRESHOLDS, _NAN_LEFT)
    )
    branches = np.array(own["nodes_modes"].strings) == b"BRANCH_LEQ"
    tensor = own.get("nodes_values_as_tensor")
    values = np.array(own["nodes_values"].floats if tensor is None else numpy_helper.to_array(tensor.t))
    apart = np.abs(values - exact) > np.abs(np.spacing(exact.astype(np.float32)))  # each converter rounds in its way
    if not np.array_equal(branches, inner) or (apart & inner).any():
        return
    if tensor is None:
        own["nodes_values"].floats[:] = np.where(inner, floor32(exact), values).tolist()
    if "nodes_missing_value_tracks_true" in own:
        ensembles[0].attribute.remove(own["nodes_missing_value_tracks_true"])
    tracks = helper.make_attribute("nodes_missing_value_tracks_true", (inner & nan_left).astype(int).tolist())
    ensembles[0].attribute.append(tracks)


def _without_obstacles(parts: list[Any]) -> None:
    """Set what changes no score, but stops the converter."""
    for one in parts:
        if hasattr(one, "flatten_transform"):
            one.flatten_transform = False
        if type(one).__name__ == "KBinsDiscretizer" and one.encode == "onehot":
            one.encode = "onehot-dense"
            one._encoder.sparse_output = False  # noqa: SLF001 - it has no public name


@contextmanager
def _plain_lists() -> Iterator[None]:
    """Let converters pass numpy's numbers and truth values where ONNX takes only Python's."""
    container: Any = importlib.import_module("skl2onnx.common._container")
    onnx_helper: Any = importlib.import_module("onnx.helper")
    own = onnx_helper.make_node

    def make_node(*arguments: Any, **attributes: Any) -> onnx.NodeProto:  # noqa: ANN401 - ONNX's values
        for name, value in attributes.items():
            if isinstance(value, list | tuple):
                attributes[name] = [int(one) if isinstance(one, bool | np.bool_) else _python(one) for one in value]
        return own(*arguments, **attributes)

    kept = container.make_node
    onnx_helper.make_node = container.make_node = make_node
    try:
        yield
    finally:
        container.make_node = kept
        onnx_helper.make_node = own


def _python(value: Any) -> Any:  # noqa: ANN401 - a number of numpy, or anything else
    return value.item() if isinstance(value, np.generic) else value
