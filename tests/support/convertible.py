"""Models of other libraries, trained on the spot, and what a plain converter makes of each."""

from __future__ import annotations

import importlib
import pickle
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Callable

COLUMNS = 8
NAMES = [f"f{i}" for i in range(COLUMNS)]
SUFFIXES = {"lightgbm": "txt", "xgboost": "json", "catboost": "cbm"}


@dataclass(frozen=True)
class Case:
    """A model that can be trained."""

    library: str
    make: Callable[[], Any]
    """Returns the fitted model."""
    kind: str = ""
    """What its rows are like, see `rows`."""
    plain: Callable[[Any], Any] | None = None
    """Returns what a plain converter makes of it; None if the library has its own export."""
    refused: str = ""
    """A text in the reason why it is refused."""


def rows(kind="", n=1500, seed=0):
    """Return features of a kind: plain, with missing values, with zeros, with categories, or with text."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, COLUMNS)).astype(np.float32)
    if kind == "missing":
        x[random.random(x.shape) < 0.08] = np.nan
    elif kind == "zeros":
        x[random.random(x.shape) < 0.2] = 0
        x[random.random(x.shape) < 0.03] = 1e-36
    elif kind == "categories":
        x[:, 0], x[:, 1] = random.integers(0, 20, (2, n))
    elif kind == "odd categories":  # those that training never met
        x[:, 0] = random.choice([2.5, -1, -0.5, 99, 1e10, 3, 7, np.nan], n)
        x[:, 1] = random.integers(0, 20, n)
    frame = pd.DataFrame(x, columns=NAMES)
    if kind == "text":
        frame["f0"] = random.choice(["red", "green", "blue"], n)
        frame["f1"] = random.integers(0, 5, n)
    return frame


def targets(frame):
    """Return two classes, three classes, a number, and a positive number."""
    random = np.random.default_rng(1)
    x = frame.select_dtypes("number").fillna(0).to_numpy()[:, -6:]
    signal = x[:, 0] + x[:, 1] * x[:, 2] + 0.5 * random.standard_normal(len(x))
    return (signal > 0).astype(int), np.digitize(signal, [-0.7, 0.7]), signal, np.exp(signal / 3)


def write(model, case, folder):
    """Write a model as its library does, and return the path."""
    path = folder / f"model.{SUFFIXES.get(case.library, 'pkl')}"
    if case.library == "lightgbm":
        getattr(model, "booster_", model).save_model(path)
    elif case.library in SUFFIXES:
        model.save_model(path)
    else:
        path.write_bytes(pickle.dumps(model))
    return path


def _lightgbm(target=0, kind="", **options):
    import lightgbm

    options = {"verbose": -1, "n_jobs": 1, "n_estimators": 30, "random_state": 0} | options
    estimator = lightgbm.LGBMRegressor if target > 1 else lightgbm.LGBMClassifier
    frame = rows(kind)
    more = {"categorical_feature": [0, 1]} if kind == "categories" else {}
    if options.get("objective") == "lambdarank":
        more["group"] = [50] * (len(frame) // 50)
        return lightgbm.LGBMRanker(**options).fit(frame, targets(frame)[1], **more)
    return estimator(**options).fit(frame, targets(frame)[target], **more)


def _booster(target=0, kind="", **options):
    """LightGBM's own training, for objectives that no estimator has."""
    import lightgbm

    frame = rows(kind)
    data = lightgbm.Dataset(frame, targets(frame)[target])
    return lightgbm.train({"verbose": -1, "num_threads": 1, "seed": 0} | options, data, 30)


def _plain_lightgbm(model):
    import onnxmltools
    from onnxmltools.convert.common.data_types import FloatTensorType

    types = [("X", FloatTensorType([None, COLUMNS]))]
    return onnxmltools.convert_lightgbm(getattr(model, "booster_", model), initial_types=types, zipmap=False)


def _xgboost(target=0, kind="", *, early=False, inner=False, **options):
    import xgboost

    options = {"n_estimators": 30, "n_jobs": 1, "random_state": 0, "max_depth": 4} | options
    if options.get("booster") == "gblinear":
        del options["max_depth"]
    if early:
        options |= {"n_estimators": 200, "early_stopping_rounds": 3, "learning_rate": 0.5}
    forest = options.pop("forest", False)
    estimator = xgboost.XGBRegressor if target > 1 else xgboost.XGBRFClassifier if forest else xgboost.XGBClassifier
    frame = rows(kind)
    y = targets(frame)[target]
    more = {"eval_set": [(frame[1000:], y[1000:])], "verbose": False} if early else {}
    model = estimator(**options).fit(frame[:1000], y[:1000], **more)
    return model.get_booster() if inner else model


def _xgboost_booster(target=0, kind="", **options):
    import xgboost

    frame = rows(kind)
    types = ["c", "c", *["float"] * (COLUMNS - 2)] if kind == "categories" else None
    data = xgboost.DMatrix(
        frame.to_numpy(), targets(frame)[target], feature_names=NAMES, feature_types=types, enable_categorical=True
    )
    return xgboost.train({"nthread": 1, "max_depth": 4} | options, data, 30)


def _plain_xgboost(model):
    import onnxmltools
    from onnxmltools.convert.common.data_types import FloatTensorType

    booster = model if not hasattr(model, "get_booster") else model.get_booster()
    booster.feature_names = booster.feature_types = None
    return onnxmltools.convert_xgboost(model, initial_types=[("X", FloatTensorType([None, COLUMNS]))])


def _catboost(target=0, kind="", **options):
    import catboost

    kinds = catboost.CatBoostRegressor if target > 1 else catboost.CatBoostClassifier
    frame = rows(kind)
    options = {"iterations": 30, "verbose": 0, "allow_writing_files": False, "thread_count": 1} | options
    return kinds(**options).fit(frame, targets(frame)[target])


def _sklearn(estimator, target=0, kind=""):
    frame = rows(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return estimator.fit(frame, targets(frame)[target])


def _plain_sklearn(model):
    import skl2onnx
    from skl2onnx.common.data_types import FloatTensorType

    options = {id(model): {"zipmap": False}} if hasattr(model, "predict_proba") else None
    types = [("X", FloatTensorType([None, COLUMNS]))]
    return skl2onnx.convert_sklearn(model, initial_types=types, options=options, target_opset={"": 18, "ai.onnx.ml": 3})


def lightgbm_cases():
    """Return LightGBM's models by name."""
    options = {
        "two classes": {}, "a number": {"target": 2}, "three classes": {"target": 1},
        "poisson": {"target": 3, "objective": "poisson"}, "quantile": {"target": 2, "objective": "quantile"},
        "dart": {"boosting_type": "dart"}, "lambdarank": {"objective": "lambdarank"},
        "missing values": {"kind": "missing"}, "zero as missing": {"kind": "zeros", "zero_as_missing": True},
        "averaged": {"boosting_type": "rf", "bagging_freq": 1, "bagging_fraction": 0.7},
        "one against all": {"target": 1, "objective": "multiclassova"}, "another slope": {"sigmoid": 2.0},
        "square root": {"target": 2, "objective": "regression", "reg_sqrt": True},
        "categories": {"kind": "categories"},
        "linear leaves": {"target": 2, "linear_tree": True},
    }  # fmt: skip
    cases = {
        f"lightgbm, {name}": Case(
            "lightgbm", lambda own=own: _lightgbm(**own), own.get("kind", ""), _plain_lightgbm,
            refused="linear_tree" if name == "linear leaves" else "",
        )
        for name, own in options.items()
    }  # fmt: skip
    cases["lightgbm, odd categories"] = Case(
        "lightgbm", lambda: _lightgbm(kind="categories"), "odd categories", _plain_lightgbm
    )
    cases["lightgbm, nothing missing in training"] = Case("lightgbm", _lightgbm, "missing", _plain_lightgbm)
    for name in ("cross_entropy", "cross_entropy_lambda"):
        cases[f"lightgbm, {name}"] = Case("lightgbm", lambda name=name: _booster(objective=name), "", _plain_lightgbm)
    return cases


def xgboost_cases():
    """Return XGBoost's models by name."""
    options = {
        "two classes": {}, "a number": {"target": 2}, "three classes": {"target": 1},
        "poisson": {"target": 3, "objective": "count:poisson"}, "gamma": {"target": 3, "objective": "reg:gamma"},
        "missing values": {"kind": "missing"}, "base score": {"base_score": 0.3},
        "early stopping": {"early": True}, "forest": {"forest": True}, "a booster": {"inner": True},
        "dart": {"booster": "dart", "rate_drop": 0.2}, "linear": {"target": 2, "booster": "gblinear"},
        "logistic regression": {"target": 0, "objective": "reg:logistic"},
    }  # fmt: skip

    cases = {
        f"xgboost, {name}": Case("xgboost", lambda own=own: _xgboost(**own), own.get("kind", ""), _plain_xgboost)
        for name, own in options.items()
    }
    boosters = {
        "hinge": {"objective": "binary:hinge"}, "logistic": {"objective": "reg:logistic"},
        "classes only": {"target": 1, "objective": "multi:softmax", "num_class": 3},
        "no transformation": {"objective": "binary:logitraw"}, "categories": {"kind": "categories"},
    }  # fmt: skip
    for name, own in boosters.items():
        cases[f"xgboost, {name}"] = Case(
            "xgboost", lambda own=own: _xgboost_booster(**own), own.get("kind", ""), _plain_xgboost
        )
    return cases


def catboost_cases():
    """Return CatBoost's models by name; its own export is the only converter."""
    options = {
        "two classes": {}, "three classes": {"target": 1}, "a number": {"target": 2},
        "missing values": {"kind": "missing"},
    }  # fmt: skip
    return {
        f"catboost, {name}": Case("catboost", lambda own=own: _catboost(**own), own.get("kind", ""))
        for name, own in options.items()
    }


def _new(name, *arguments, **options):
    """Return an estimator of scikit-learn by its module and name."""
    module, _, kind = name.rpartition(".")
    return getattr(importlib.import_module(f"sklearn.{module}"), kind)(*arguments, **options)


def _pipeline(*steps):
    from sklearn.pipeline import make_pipeline

    return make_pipeline(*steps)


def _logistic():
    return _new("linear_model.LogisticRegression")


def _voting():
    forest = _new("ensemble.RandomForestClassifier", 5)
    return _new("ensemble.VotingClassifier", [("a", _logistic()), ("b", forest)], voting="soft")


def _stacking():
    trees = _new("tree.DecisionTreeRegressor", max_depth=4)
    return _new("ensemble.StackingRegressor", [("a", _new("linear_model.Ridge")), ("b", trees)])


def _of_frame():
    encoder = _new("preprocessing.OneHotEncoder", handle_unknown="ignore")
    parts = [("words", encoder, ["f0", "f1"]), ("numbers", _new("preprocessing.StandardScaler"), NAMES[2:])]
    return _pipeline(_new("compose.ColumnTransformer", parts), _logistic())


def _bins():
    bins = _new("preprocessing.KBinsDiscretizer", 5, quantile_method="averaged_inverted_cdf")
    return _pipeline(bins, _logistic())


def _boosted(package, *first):
    """Return a pipeline that ends with another library's trees."""
    library = importlib.import_module(package)
    kind = library.LGBMClassifier if package == "lightgbm" else library.XGBClassifier
    options = {"verbose": -1} if package == "lightgbm" else {}
    return _pipeline(*(first or (_new("impute.SimpleImputer"),)), kind(n_estimators=10, n_jobs=1, **options))


_ESTIMATORS = {
    "random forest": (lambda: _new("ensemble.RandomForestClassifier", 10, random_state=0), 0, ""),
    "random forest, missing values": (
        lambda: _new("ensemble.RandomForestClassifier", 10, random_state=0), 0, "missing"),
    "random forest, a number": (lambda: _new("ensemble.RandomForestRegressor", 10, random_state=0), 2, "missing"),
    "extra trees": (lambda: _new("ensemble.ExtraTreesClassifier", 10, random_state=0), 1, ""),
    "gradient boosting": (lambda: _new("ensemble.GradientBoostingClassifier", n_estimators=10), 1, ""),
    "decision tree": (lambda: _new("tree.DecisionTreeClassifier", max_depth=8), 0, "missing"),
    "histogram boosting": (lambda: _new("ensemble.HistGradientBoostingClassifier", max_iter=20), 0, "missing"),
    "histogram boosting, a number": (lambda: _new("ensemble.HistGradientBoostingRegressor", max_iter=20), 2, "missing"),
    "isolation forest": (lambda: _new("ensemble.IsolationForest", n_estimators=20, random_state=0), 0, ""),
    "voting": (_voting, 0, ""),
    "stacking": (_stacking, 2, ""),
    "calibrated": (lambda: _new("calibration.CalibratedClassifierCV", _new("naive_bayes.GaussianNB"), cv=3), 0, ""),
    "logistic": (lambda: _pipeline(_new("preprocessing.StandardScaler"), _logistic()), 1, ""),
    "ridge": (lambda: _new("linear_model.Ridge"), 2, ""),
    "lasso": (lambda: _new("linear_model.Lasso", 0.01), 2, ""),
    "support vectors": (lambda: _new("svm.SVC"), 0, ""),
    "support vectors, a number": (lambda: _new("svm.SVR"), 2, ""),
    "linear support vectors": (lambda: _new("svm.LinearSVC"), 0, ""),
    "neighbours": (lambda: _new("neighbors.KNeighborsClassifier"), 0, ""),
    "neural network": (lambda: _new("neural_network.MLPClassifier", (8,), max_iter=50, random_state=0), 0, ""),
    "naive bayes": (lambda: _new("naive_bayes.GaussianNB"), 0, ""),
    "gaussian process": (
        lambda: _new("gaussian_process.GaussianProcessRegressor", alpha=1e-6, optimizer=None), 2, ""),
    "components": (lambda: _new("decomposition.PCA", 3), 0, ""),
    "clusters": (lambda: _new("cluster.KMeans", 3, n_init=1, random_state=0), 0, ""),
    "quantiles": (lambda: _pipeline(_new("preprocessing.QuantileTransformer", n_quantiles=50), _logistic()), 0, ""),
    "polynomials": (
        lambda: _pipeline(_new("preprocessing.PolynomialFeatures", 2), _new("linear_model.Ridge")), 2, ""),
    "bins": (_bins, 0, ""),
    "columns of a frame": (_of_frame, 0, "text"),
    "before lightgbm": (lambda: _boosted("lightgbm"), 0, "missing"),
    "before xgboost": (lambda: _boosted("xgboost"), 0, "missing"),
    "words before lightgbm": (lambda: _boosted("lightgbm", _of_frame()[0]), 0, "text"),
}  # fmt: skip


def sklearn_cases():
    """Return estimators of scikit-learn by name."""
    return {
        f"sklearn, {name}": Case(
            "sklearn",
            lambda m=m, t=t, k=k: _sklearn(m(), t, k),
            k,
            None if k == "text" or "before" in name else _plain_sklearn,
        )
        for name, (m, t, k) in _ESTIMATORS.items()
    }


CASES = lightgbm_cases() | xgboost_cases() | catboost_cases() | sklearn_cases()
