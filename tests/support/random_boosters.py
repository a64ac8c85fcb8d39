"""Random models of LightGBM and XGBoost: data, missing values, categories, objectives and settings by a seed."""

from __future__ import annotations

import numpy as np
import pandas as pd

_AVERAGED = {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.6}


def table(random, n):
    """Return a frame with missing values, zeros, tiny numbers and ties, and its columns of categories."""
    width = int(random.integers(2, 9))
    values = random.standard_normal((n, width)).astype(np.float32)
    values[:, 0] = np.round(values[:, 0], 1)
    for share, value in ((0.1, np.nan), (0.2, 0.0), (0.02, 1e-36), (0.02, -1e-36), (0.01, np.inf), (0.01, -0.0)):
        if random.random() < 0.5:
            values[random.random(values.shape) < share] = value
    n_categories = int(random.integers(0, 3))
    for column in range(n_categories):
        values[:, column] = random.integers(0, random.integers(2, 40), n)
        values[random.random(n) < 0.05, column] = np.nan
    return pd.DataFrame(values, columns=[f"f{i}" for i in range(width)]), list(range(n_categories))


def target(random, frame, kind):
    """Return what to predict: two classes, three classes, a number or a positive number."""
    known = np.nan_to_num(frame.to_numpy(), posinf=1, neginf=-1)
    signal = known @ random.standard_normal(known.shape[1]) + random.standard_normal(len(known))
    signal /= signal.std() + 1e-9
    if kind == "classes":
        return (signal > 0).astype(int)
    return np.digitize(signal, [-0.5, 0.5]) if kind == "several" else signal if kind == "number" else np.exp(signal / 2)


def lightgbm_model(seed):
    """Return a booster of LightGBM, and rows for it."""
    import lightgbm

    random = np.random.default_rng(seed)
    frame, categories = table(random, 400)
    kind, objective, more = [
        ("classes", "binary", {}), ("classes", "binary", {"sigmoid": 1.7}), ("classes", "cross_entropy", {}),
        ("several", "multiclass", {"num_class": 3}), ("several", "multiclassova", {"num_class": 3}),
        ("number", "regression", {}), ("number", "regression", {"reg_sqrt": True}), ("number", "huber", {}),
        ("positive", "poisson", {}), ("positive", "gamma", {}), ("positive", "tweedie", {}),
    ][random.integers(11)]  # fmt: skip
    options = {
        "objective": objective, "verbose": -1, "num_threads": 1, "seed": seed, "deterministic": True,
        "num_leaves": int(random.integers(2, 60)), "min_data_in_leaf": int(random.integers(1, 20)),
        "use_missing": bool(random.random() < 0.8), "zero_as_missing": bool(random.random() < 0.3),
        "max_cat_to_onehot": int(random.integers(1, 6)), "min_data_per_group": 5, "cat_smooth": 1,
        **[{}, {"boosting": "dart"}, _AVERAGED][random.integers(3)], **more,
    }  # fmt: skip
    data = lightgbm.Dataset(frame, target(random, frame, kind), categorical_feature=categories or "auto")
    booster = lightgbm.train(options, data, int(random.integers(1, 20)))
    return booster, table(random, 300)[0].reindex(columns=frame.columns).astype(np.float32)


def xgboost_model(seed):
    """Return a booster of XGBoost, and rows for it."""
    import xgboost

    random = np.random.default_rng(seed)
    frame, categories = table(random, 400)
    kind, objective, more = [
        ("classes", "binary:logistic", {}), ("classes", "reg:logistic", {}), ("classes", "binary:logitraw", {}),
        ("classes", "binary:hinge", {}), ("several", "multi:softprob", {"num_class": 3}),
        ("number", "reg:squarederror", {}), ("number", "reg:absoluteerror", {}), ("number", "reg:pseudohubererror", {}),
        ("positive", "count:poisson", {}), ("positive", "reg:gamma", {}), ("positive", "reg:tweedie", {}),
    ][random.integers(11)]  # fmt: skip
    options = {
        "objective": objective, "nthread": 1, "seed": seed, "max_depth": int(random.integers(1, 8)),
        "tree_method": "hist", "grow_policy": ["depthwise", "lossguide"][random.integers(2)],
        "max_cat_to_onehot": int(random.integers(1, 6)), "num_parallel_tree": int(random.integers(1, 3)),
        **[{}, {"booster": "dart", "rate_drop": 0.3}, {"base_score": 0.4}][random.integers(3)], **more,
    }  # fmt: skip
    frame = frame.replace([np.inf, -np.inf], 9)  # the library refuses infinity
    kinds = ["c" if i in categories else "float" for i in range(frame.shape[1])]
    labels = target(random, frame, kind)
    data = xgboost.DMatrix(
        frame.to_numpy(), labels, feature_names=[*frame], feature_types=kinds, enable_categorical=True
    )
    booster = xgboost.train(options, data, int(random.integers(1, 20)))
    rows = table(random, 300)[0].reindex(columns=frame.columns).astype(np.float32)
    rows.iloc[:, categories] = rows.iloc[:, categories].abs().clip(upper=60)  # the library refuses others
    return booster, rows.replace([np.inf, -np.inf], 9)
