"""Tree ensembles trained and converted by other libraries: a model, and rows with missing values for it."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
from support.runs import MODELS

COLUMNS = 12


def data(seed=0, rows=3000):
    """Return features with missing values, two classes, three classes and a number to predict."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, COLUMNS)).astype(np.float32)
    signal = x[:, 0] + x[:, 1] * x[:, 2] + 0.5 * rng.standard_normal(rows)
    x[rng.random(x.shape) < 0.05] = np.nan
    return x, (signal > 0).astype(int), np.digitize(signal, [-0.7, 0.7]), signal


def lightgbm_model(**options):
    """Train and convert LightGBM; `target` is 1 for two classes, 2 for three, 3 for a number."""
    import lightgbm
    import onnxmltools
    from onnxmltools.convert.common.data_types import FloatTensorType

    target = options.pop("target", 1)
    known = data()
    kind = lightgbm.LGBMRegressor if target == 3 else lightgbm.LGBMClassifier
    model = kind(n_estimators=60, verbose=-1, n_jobs=1, random_state=0, **options).fit(known[0], known[target])
    types = [("x", FloatTensorType([None, COLUMNS]))]
    return onnxmltools.convert_lightgbm(model, initial_types=types, zipmap=False, target_opset=15)


def categories():
    """Train LightGBM on two columns of categories, and convert it."""
    import lightgbm
    import onnxmltools
    from onnxmltools.convert.common.data_types import FloatTensorType

    x, y, *_ = data()
    x[:, 0], x[:, 1] = np.random.default_rng(1).integers(0, 30, (2, len(x)))
    y = (x[:, 0] % 3 == 1).astype(int) ^ (x[:, 1] > 15)
    model = lightgbm.LGBMClassifier(n_estimators=40, verbose=-1, n_jobs=1).fit(x, y, categorical_feature=[0, 1])
    types = [("x", FloatTensorType([None, COLUMNS]))]
    return onnxmltools.convert_lightgbm(model, initial_types=types, zipmap=False, target_opset=15)


def xgboost_model(**options):
    """Train and convert XGBoost."""
    import onnxmltools
    import xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    target = options.pop("target", 1)
    known = data()
    kind = xgboost.XGBRegressor if target == 3 else xgboost.XGBClassifier
    model = kind(n_estimators=60, max_depth=6, n_jobs=1, random_state=0, **options).fit(known[0], known[target])
    return onnxmltools.convert_xgboost(model, initial_types=[("x", FloatTensorType([None, COLUMNS]))], target_opset=15)


def sklearn_model(make, target=1, *, scaled=False):
    """Train and convert an estimator of scikit-learn, perhaps behind a scaler."""
    import skl2onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = data()
    x = np.nan_to_num(known[0])
    model = make_pipeline(StandardScaler(), make) if scaled else make
    model.fit(x, known[target]) if target else model.fit(x)
    plain = hasattr(model, "predict_proba") and not type(make).__name__.startswith("Voting")
    options = {"zipmap": False} if plain else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return skl2onnx.convert_sklearn(
            model, initial_types=[("x", FloatTensorType([None, COLUMNS]))], options=options or None,
            target_opset={"": 18, "ai.onnx.ml": 3},
        )  # fmt: skip


def _forests():
    from sklearn import ensemble, tree

    return {
        "random forest": lambda: sklearn_model(ensemble.RandomForestClassifier(40, random_state=0)),
        "random forest, 3 classes": lambda: sklearn_model(ensemble.RandomForestClassifier(20, random_state=0), 2),
        "random forest regressor": lambda: sklearn_model(ensemble.RandomForestRegressor(20, random_state=0), 3),
        "extra trees": lambda: sklearn_model(ensemble.ExtraTreesClassifier(20, random_state=0)),
        "extra trees regressor": lambda: sklearn_model(ensemble.ExtraTreesRegressor(20, random_state=0), 3),
        "gradient boosting": lambda: sklearn_model(ensemble.GradientBoostingClassifier(random_state=0)),
        "gradient boosting, 3 classes": lambda: sklearn_model(ensemble.GradientBoostingClassifier(n_estimators=20), 2),
        "gradient boosting regressor": lambda: sklearn_model(ensemble.GradientBoostingRegressor(random_state=0), 3),
        "decision tree": lambda: sklearn_model(tree.DecisionTreeClassifier(max_depth=8, random_state=0)),
        "isolation forest": lambda: sklearn_model(ensemble.IsolationForest(n_estimators=30, random_state=0), 0),
        "behind a scaler": lambda: sklearn_model(ensemble.RandomForestClassifier(20, random_state=0), scaled=True),
        "voting": lambda: sklearn_model(ensemble.VotingClassifier(
            [("a", ensemble.RandomForestClassifier(10)), ("b", ensemble.ExtraTreesClassifier(10))],
            voting="soft", flatten_transform=False)),
        "stacking": lambda: sklearn_model(ensemble.StackingRegressor(
            [("a", ensemble.RandomForestRegressor(10)), ("b", ensemble.ExtraTreesRegressor(10))],
            ensemble.GradientBoostingRegressor(n_estimators=10)), 3),
    }  # fmt: skip


def catboost_model(name):
    """Return a model that CatBoost 1.2.10 trained on such data and wrote, with our name for its input."""
    model = onnx.load(MODELS / "catboost" / f"{name}.onnx")
    own = model.graph.input[0].name
    for node in model.graph.node:
        node.input[:] = ["x" if one == own else one for one in node.input]
    model.graph.input[0].name = "x"
    return model


def trained():
    """Return a function that makes each model, by name."""
    return {
        "lightgbm": lightgbm_model,
        "lightgbm, 255 leaves": lambda: lightgbm_model(num_leaves=255, min_child_samples=2),
        "lightgbm, 3 classes": lambda: lightgbm_model(target=2),
        "lightgbm regressor": lambda: lightgbm_model(target=3),
        "lightgbm dart": lambda: lightgbm_model(boosting_type="dart"),
        "lightgbm, one against all": lambda: lightgbm_model(target=2, objective="multiclassova"),
        "lightgbm categories": categories,
        "catboost": lambda: catboost_model("two_classes"),
        "catboost, 3 classes": lambda: catboost_model("three_classes"),
        "catboost regressor": lambda: catboost_model("regressor"),
        "xgboost": xgboost_model,
        "xgboost, 3 classes": lambda: xgboost_model(target=2),
        "xgboost regressor": lambda: xgboost_model(target=3),
        **_forests(),
    }
