"""scorer convert: models of other libraries as ONNX. The original library is the oracle."""

from __future__ import annotations

import json
import os
import pickle

import numpy as np
import onnx
import onnxruntime as ort
import pandas as pd
import pyarrow as pa
import pytest
from support import convertible, random_boosters
from support.runs import cli, command, read, write

from scorer.errors import ConversionRefused, InputError, ModelError
from scorer.model.converting import conversion, gate, sources
from scorer.model.converting.edges import on_thresholds
from scorer.model.converting.graphs import floor32
from scorer.model.converting.request import Request, Settings
from scorer.model.spec import CONVERSION

ROWS = 3000
QUICK = (
    "lightgbm, two classes", "lightgbm, zero as missing", "lightgbm, odd categories", "lightgbm, averaged",
    "xgboost, two classes", "xgboost, dart", "xgboost, categories", "sklearn, random forest, missing values",
    "sklearn, columns of a frame",
)  # fmt: skip
WRONG = {
    "lightgbm, zero as missing": 1000, "lightgbm, averaged": ROWS, "lightgbm, odd categories": 100,
    "lightgbm, one against all": ROWS, "lightgbm, another slope": ROWS, "lightgbm, square root": 2900,
    "xgboost, logistic": ROWS, "xgboost, hinge": ROWS, "xgboost, no transformation": 2900,
    "sklearn, random forest, missing values": 500, "sklearn, random forest, a number": 500,
    "sklearn, decision tree": 200,
}  # fmt: skip
"""Models of which a plain converter scores at least so many of 3,000 rows differently from their library."""
NOT_PLAIN = {
    "lightgbm, cross_entropy", "lightgbm, cross_entropy_lambda",
    "xgboost, dart", "xgboost, linear", "xgboost, categories",
    "sklearn, histogram boosting", "sklearn, histogram boosting, a number", "sklearn, voting", "sklearn, bins",
    "sklearn, support vectors",
}  # fmt: skip
"""Models that a plain converter does not convert, or whose conversion gives no matrix."""


_SCORES = {
    "probability": ("predict_proba", "predict"), "probabilities": ("predict_proba", "predict"), "label": ("predict",),
    "prediction": ("predict",), "scores": ("decision_function", "transform"), "transformed": ("transform",),
}  # fmt: skip
"""The methods of a library that compute an output."""


def prepared(name, folder, n=ROWS):
    """Train a model and write it; return it, and the request to convert it."""
    case = convertible.CASES[name]
    pytest.importorskip(case.library)
    model = case.make()
    frame = convertible.rows(case.kind, n, seed=5)
    return model, request_of(convertible.write(model, case, folder), frame)


def request_of(path, frame, **options):
    table = pa.Table.from_pandas(frame, preserve_index=False)
    options = {"tolerance": 1e-5, "trust": True} | options
    return Request(source=sources.find(str(path)), table=table, data="rows.parquet", **options)


def session_of(data):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def converts(name, folder, n):
    """Convert a model, and compare it with its library once more, by a plain loop."""
    model, request = prepared(name, folder, n)
    converted = conversion.convert(request)
    assert converted.record["largest_difference"] < 1e-5
    assert converted.record["rows"] == n
    if "xgboost" in name and not hasattr(model, "get_booster"):
        return  # a booster predicts only its own kind of data
    frame = request.table.to_pandas()
    session = session_of(converted.model)
    output = session.get_outputs()[-1].name
    (got,) = session.run([output], feeds_of(converted.model, frame))
    scores = next(getattr(model, n) for n in _SCORES[output] if hasattr(model, n))
    expected = np.asarray(scores(frame.to_numpy() if name.startswith("lightgbm") else frame))
    if output == "label":
        assert (got.astype(str) == expected.astype(str)).all()
        return
    expected = expected[:, 1] if output == "probability" and expected.ndim > 1 else expected
    np.testing.assert_allclose(got, expected.reshape(got.shape), rtol=2e-5, atol=2e-5)


def feeds_of(data, frame):
    """Return the frame as the inputs of a model: one matrix, or a tensor for each column."""
    kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(string)": object}
    inputs = session_of(data).get_inputs()
    if len(inputs) == 1:
        return {inputs[0].name: frame.to_numpy(kinds[inputs[0].type])}
    return {one.name: frame[[one.name]].to_numpy(kinds[one.type]) for one in inputs}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", QUICK)
def test_a_converted_model_gives_the_scores_of_its_library(tmp_path, name):
    converts(name, tmp_path, 500)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n for n, case in convertible.CASES.items() if not case.refused])
def test_each_kind_of_model_gives_the_scores_of_its_library(tmp_path, name):
    converts(name, tmp_path, ROWS)


@pytest.mark.minutes
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name, case in convertible.CASES.items() if case.plain and not case.refused])
def test_what_a_plain_converter_makes_of_it(tmp_path, name):
    model, request = prepared(name, tmp_path)
    original = conversion._loaded(request.source, trust=True)
    if name in NOT_PLAIN:
        with pytest.raises(Exception):  # noqa: B017, PT011 - each converter raises another
            plain_differences(original, convertible.CASES[name].plain(model), request)
        return
    real, edge = plain_differences(original, convertible.CASES[name].plain(model), request)
    print(f"{name}: {real} of {ROWS} rows, {edge} on thresholds")
    assert real >= WRONG.get(name, 0)
    assert real == 0 or name in WRONG
    if request.source.kind == "lightgbm":
        assert edge > 300


def plain_differences(original, plain, request):
    """Return how many rows differ for a plain converter's model, of real ones and of those on thresholds."""
    runtime = gate.Runtime(plain)
    frame = request.table.to_pandas()
    counts = []
    for rows in (frame, on_thresholds(frame, original.thresholds, plain, double=False)):
        if not len(rows):
            counts.append(0)
            continue
        expected, outputs = [*original.score(rows).values()][-1], [*runtime.score(rows, len(rows)).values()]
        got = np.asarray(outputs[0 if expected.ndim == 1 else -1])
        if expected.ndim == 1:
            counts.append(int((expected.astype(str) != got.reshape(-1).astype(str)).sum()))
            continue
        got = got.reshape(len(rows), -1).astype(float)
        got = got[:, 1:] if got.shape[1] == 2 and expected.shape[1] == 1 else got
        apart = np.abs(got - expected).max(axis=1) / max(1, np.abs(expected).max())
        counts.append(int((~(apart <= 1e-5)).sum()))
    return counts


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_random_models_are_converted_exactly(tmp_path, library):
    train = getattr(random_boosters, f"{library}_model")
    for seed in range(20):
        model, rows = train(seed)
        path = tmp_path / f"{seed}.{convertible.SUFFIXES[library]}"
        model.save_model(path)
        assert conversion.convert(request_of(path, rows)).record["largest_difference"] < 1e-5, seed


@pytest.mark.parametrize("name", [name for name, case in convertible.CASES.items() if case.refused])
def test_a_model_without_an_exact_form_is_refused_with_the_reason(tmp_path, name):
    _, request = prepared(name, tmp_path)
    with pytest.raises(ModelError, match=convertible.CASES[name].refused):
        conversion.convert(request)


# The gate


@pytest.fixture(scope="module")
def booster(tmp_path_factory):
    """A small LightGBM model in a file, and rows for it."""
    folder = tmp_path_factory.mktemp("booster")
    case = convertible.CASES["lightgbm, two classes"]
    path = convertible.write(case.make(), case, folder)
    return path, convertible.rows(n=600, seed=5)


def moved(model, at, steps):
    """Return the model with one threshold moved by so many float32s."""
    own = {one.name: one for one in model.graph.node[0].attribute}
    values = own["nodes_values"].floats
    new = np.float32(values[at])
    for _ in range(steps):
        new = np.nextafter(new, np.float32(np.inf))
    values[at] = new
    return model


def test_any_threshold_moved_by_one_float_is_found(booster):
    path, _ = booster
    frame = convertible.rows(n=ROWS, seed=5)
    request = request_of(path, frame)
    original = conversion._loaded(request.source, trust=False)
    model = original.write(frame, Settings())
    conversion._compared(original, model, frame, request)
    modes = next(one for one in model.graph.node[0].attribute if one.name == "nodes_modes").strings
    inner = [at for at, mode in enumerate(modes) if mode != b"LEAF"]
    for at in np.random.default_rng(0).choice(inner, 5, replace=False):
        wrong = moved(original.write(frame, Settings()), int(at), 1)
        with pytest.raises(ConversionRefused) as refused:
            conversion._compared(original, wrong, frame, request)
        assert "rows on thresholds of the trees differ by up to" in refused.value.found
        assert "by the library and" in refused.value.found
        assert "f0=" in refused.value.found
        assert refused.value.exit_code == 1


def test_a_wrong_label_is_found_and_one_of_two_equal_classes_is_not():
    chances = np.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]])
    expected = {"label": np.array(["b", "a", "a"]), "probabilities": chances}
    got = np.array(["b", "b", "b"], object)
    assert gate._difference("label", expected, got, 1e-5, 3).tolist() == [0, 0, np.inf]


def test_a_score_that_is_not_a_number_differs_from_every_number():
    expected = {"prediction": np.array([[1.0], [np.nan], [np.inf], [2.0]])}
    got = np.array([[np.nan], [np.nan], [np.inf], [2.5]])
    assert gate._difference("prediction", expected, got, 1e-5, 4).tolist() == [np.inf, 0, 0, 0.25]


def test_thresholds_are_rounded_down():
    values = np.array([0.1, 1 / 3, -0.1, 1e300, -1e300, 0.5, 1e-46])
    rounded = floor32(values)
    assert rounded.dtype == np.float32
    assert (rounded.astype(np.float64) <= values).all()
    with np.errstate(over="ignore"):
        assert (np.nextafter(rounded, np.float32(np.inf)).astype(np.float64) > values).all()


def test_doubles_are_compared_as_they_are_and_float32_is_refused_with_the_columns(tmp_path):
    lightgbm = pytest.importorskip("lightgbm")
    prices = np.random.default_rng(0).integers(0, 2000, 2000) + 16_777_216  # ids that float32 cannot tell apart
    frame = pd.DataFrame({"price": prices, "size": np.arange(2000) % 7})
    model = lightgbm.LGBMClassifier(n_estimators=20, verbose=-1, n_jobs=1).fit(frame, prices % 2)
    model.booster_.save_model(tmp_path / "m.txt")
    with pytest.raises(ConversionRefused) as refused:
        conversion.convert(request_of(tmp_path / "m.txt", frame))
    assert "of the values of 'price': pass --double" in refused.value.hint
    converted = conversion.convert(request_of(tmp_path / "m.txt", frame, settings=Settings(double=True)))
    assert converted.record["largest_difference"] < 1e-6
    assert session_of(converted.model).get_inputs()[0].type == "tensor(double)"


# Refused, and nothing written


def convert(model, data, out, *flags):
    """Run the command; return the exit code and what it prints, and check that nothing is left if it fails."""
    before = {path.name for path in out.parent.iterdir()}
    code, text, errors = cli("convert", model, "--output", out, "--check", data, *flags)
    if code:
        assert {path.name for path in out.parent.iterdir()} == before
    return code, text, errors


class Stranger:
    """A pickle that ends its process, or says that it was loaded."""

    def __init__(self, target, *arguments):
        self.call = target, arguments

    def __reduce__(self):
        return self.call


def test_a_pickle_is_loaded_only_with_trust(tmp_path, booster):
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(Stranger(os.mkdir, str(tmp_path / "loaded"))))
    data = write(tmp_path / "d.parquet", pa.Table.from_pandas(booster[1]))
    code, _, errors = convert(tmp_path / "m.pkl", data, tmp_path / "m.onnx")
    assert code == 3
    assert "a pickle runs code when it is loaded" in errors
    assert "Hint: add --trust" in errors


@pytest.mark.parametrize(
    ("columns", "flags", "code", "words"),
    [
        ({"a": [1.0]}, (), 3, "expected: 'f0', 'f1', 'f2', 'f3', 'f4', 'f5', 'f6', 'f7'"),
        ({f"f{i}": pa.array([], pa.float32()) for i in range(8)}, (), 3, "the data has no rows"),
        ({f"f{i}": [1.0] for i in range(8)}, ("--features", "f0..f6"), 3, "the number of columns is not the model's"),
        ({f"f{i}": [1.0] for i in range(8)}, ("--features", "f0..f9"), 3, "does not have: 'f8', 'f9'"),
        ({f"f{i}": ["x"] for i in range(8)}, (), 3, "the original does not score these rows"),
        ({f"f{i}": [[1.0]] for i in range(8)}, (), 3, "f0: list<element: double>"),
        ({f"f{i}": [1.0] for i in range(8)}, ("--tolerance", "0"), 2, "--tolerance"),
    ],
)
def test_data_that_does_not_fit_the_model_is_refused(tmp_path, booster, columns, flags, code, words, monkeypatch):
    monkeypatch.setattr("scorer.host.isolation.call", lambda _, request: conversion.convert(request))
    data = write(tmp_path / "d.parquet", columns)
    found, _, errors = convert(booster[0], data, tmp_path / "m.onnx", *flags)
    assert (found, words in errors) == (code, True), errors


def test_rows_that_cannot_be_compared_are_left_out_and_counted(tmp_path):
    _, request = prepared("sklearn, columns of a frame", tmp_path, 100)
    frame = request.table.to_pandas()
    frame["f0"] = frame["f0"].astype(object)
    frame.loc[:9, "f0"] = None
    converted = conversion.convert(request_of(request.source.path, frame))
    assert converted.notes == ("10 rows with missing texts left out, which no tensor holds",)
    frame["f0"] = pd.Series([None] * 100, dtype="string")
    with pytest.raises(InputError, match="does not score") as refused:
        conversion.convert(request_of(request.source.path, frame))
    assert "a missing text in every row" in refused.value.found
    _, request = prepared("sklearn, logistic", tmp_path, 100)
    frame = request.table.to_pandas()
    frame.loc[:4, "f3"] = np.nan
    converted = conversion.convert(request_of(request.source.path, frame))
    assert converted.notes == ("5 rows with missing values left out, which the library refuses",)
    assert converted.record["rows"] == 95


def test_an_existing_file_is_replaced_only_on_request(tmp_path, booster):
    data = write(tmp_path / "d.parquet", pa.Table.from_pandas(booster[1]))
    (tmp_path / "m.onnx").write_text("kept")
    code, _, errors = convert(booster[0], data, tmp_path / "m.onnx")
    assert code == 3
    assert "pass --overwrite to replace it" in errors
    assert (tmp_path / "m.onnx").read_text() == "kept"


def test_folders_where_files_belong_are_refused(tmp_path, booster):
    data = write(tmp_path / "d.parquet", pa.Table.from_pandas(booster[1]))
    assert "the converted model is one file" in convert(booster[0], data, tmp_path)[2]
    code, _, errors = cli("convert", booster[0], "--output", tmp_path / "gone" / "m.onnx", "--check", data)
    assert (code, "the folder of the converted model does not exist" in errors) == (2, True)
    code, _, errors = cli("convert", tmp_path / "gone", "--output", tmp_path / "m.onnx", "--check", data)
    assert (code, "the model does not exist" in errors) == (3, True)
    assert "the folder has no model" in convert(tmp_path, data, tmp_path / "m.onnx")[2]


@pytest.mark.slow
@pytest.mark.parametrize("at", [60, 300, 3000])
def test_a_damaged_model_is_an_error_also_where_it_ends_its_process(tmp_path, booster, at):
    (tmp_path / "m.txt").write_bytes(booster[0].read_bytes()[:at])
    data = write(tmp_path / "d.parquet", pa.Table.from_pandas(booster[1]))
    code, _, errors = convert(tmp_path / "m.txt", data, tmp_path / "m.onnx")
    assert code == 3, errors
    assert "Error: the " in errors


def test_what_was_compared_is_in_the_model_and_shown(tmp_path, booster, monkeypatch):
    monkeypatch.setattr("scorer.host.isolation.call", lambda _, request: conversion.convert(request))
    data = write(tmp_path / "d.parquet", pa.Table.from_pandas(booster[1]))
    code, text, errors = convert(booster[0], data, tmp_path / "m.onnx", "--json")
    assert code == 0, errors
    found = json.loads(text)
    kept = {one.key: one.value for one in onnx.load(tmp_path / "m.onnx").metadata_props}
    record = json.loads(kept[CONVERSION])
    assert record == {key: found[key] for key in record}
    assert (record["rows"], record["threshold_rows"]) == (600, 600)
    assert json.loads(kept["feature_names"]) == convertible.NAMES
    shown = cli("inspect", tmp_path / "m.onnx")[1]
    assert "converted  from model.txt; 600 rows of " in " ".join(shown.split()).replace(
        "converted from", "converted  from"
    )
    assert CONVERSION not in shown


# In processes


@pytest.mark.slow
@pytest.mark.parametrize(("name", "flags"), [
    ("lightgbm, two classes", ()), ("xgboost, two classes", ()), ("sklearn, columns of a frame", ("--trust",)),
])  # fmt: skip
def test_two_commands_lead_from_a_trained_model_to_its_scores(tmp_path, name, flags):
    case = convertible.CASES[name]
    model, frame = case.make(), convertible.rows(case.kind, 500, seed=5)
    path = convertible.write(model, case, tmp_path)
    data = write(tmp_path / "d.parquet", pa.Table.from_pandas(frame, preserve_index=False))
    done = command("convert", path, "-o", tmp_path / "m.onnx", "--check", data, *flags)
    assert done.returncode == 0, done.stderr
    done = command("run", data, "--model", tmp_path / "m.onnx", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    scored = read(tmp_path / "out").to_pandas()
    own = scored["probability" if "probability" in scored else "probabilities_1"]
    np.testing.assert_allclose(own, model.predict_proba(frame)[:, 1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("end", [(os._exit, 0), (os._exit, 7), (os.abort,)])
def test_a_pickle_that_ends_its_process_is_an_error(tmp_path, booster, end):
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(Stranger(*end)))
    data = write(tmp_path / "d.parquet", pa.Table.from_pandas(booster[1]))
    code, _, errors = convert(tmp_path / "m.pkl", data, tmp_path / "m.onnx", "--trust")
    assert code == 3
    assert "the process that loaded the model ended" in errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": 1}, "an object of builtins.dict"),
        (Stranger(int, "x"), "ValueError: invalid literal"),
        (Stranger(__import__, "nonsense_package"), "pip install nonsense_package"),
    ],
)
def test_a_pickle_without_a_model_is_an_error(tmp_path, booster, value, words):
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(value))
    data = write(tmp_path / "d.parquet", pa.Table.from_pandas(booster[1]))
    code, _, errors = convert(tmp_path / "m.pkl", data, tmp_path / "m.onnx", "--trust")
    assert (code, words in errors) == (3, True), errors


def test_a_missing_library_is_an_error_with_the_line_that_installs_it(tmp_path, monkeypatch):
    (tmp_path / "m.cbm").write_bytes(b"CBM1" + bytes(100))
    monkeypatch.setitem(__import__("sys").modules, "catboost", None)
    with pytest.raises(ModelError) as error:
        conversion.convert(request_of(tmp_path / "m.cbm", convertible.rows(n=5)))
    assert error.value.hint == "pip install catboost"
