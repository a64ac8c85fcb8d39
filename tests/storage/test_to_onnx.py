"""Models of other formats: each is refused with what it is, and with a command that converts it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scorer.errors import ModelLoadError
from scorer.model.protobuf import inspect_model

CHANCE = np.random.default_rng(7)
X = CHANCE.random((100, 4), dtype=np.float32)
Y = (X.sum(axis=1) > 2).astype(int)


def refused(path):
    """Return the error for a model of another format."""
    with pytest.raises(ModelLoadError, match="not an ONNX model") as caught:
        inspect_model(path)
    return caught.value


def typed(hint, folder):
    """Run the command in a hint in a folder with its data; the models were trained on arrays, without names."""
    pq.write_table(pa.table({name: X[:, n] for n, name in enumerate("abcd")}), folder / "DATA.parquet")
    command = hint[hint.index("scorer convert") :].replace("scorer", f"{sys.executable} -m scorer", 1)
    subprocess.run(f"{command} --features a,b,c,d", shell=True, check=True, capture_output=True, text=True, cwd=folder)


def scores(path):
    """Return the last output of a converted model; of a classifier, the probability of class 1."""
    values = ort.InferenceSession(path).run(None, {inspect_model(path).inputs[0].name: X})[-1]
    return np.asarray(values).reshape(len(X), -1)[:, -1]


def sklearn_model(folder, name):
    joblib = pytest.importorskip("joblib")
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression().fit(X, Y)
    path = folder / name
    if "joblib" in name:
        joblib.dump(model, path, compress=3 if name.endswith(".z") else 0)
    else:
        path.write_bytes(pickle.dumps(model, protocol=0 if "old" in name else None))
    return path, model.predict_proba(X)[:, 1]


def lightgbm_model(folder, name):
    lightgbm = pytest.importorskip("lightgbm")
    trees = lightgbm.train({"objective": "binary", "verbose": -1, "num_threads": 1}, lightgbm.Dataset(X, Y), 3)
    if name.endswith(".txt"):
        trees.save_model(folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(trees))
    return folder / name, trees.predict(X)


def xgboost_model(folder, name):
    xgboost = pytest.importorskip("xgboost")
    model = xgboost.XGBClassifier(n_estimators=3, n_jobs=1).fit(X, Y)
    if name.endswith(".pkl"):
        (folder / name).write_bytes(pickle.dumps(model))
    else:
        model.save_model(folder / name)
    return folder / name, model.predict_proba(X)[:, 1]


@pytest.mark.parametrize(
    ("make", "name", "found"),
    [
        (sklearn_model, "m.joblib", "a joblib file of sklearn.linear_model._logistic.LogisticRegression"),
        (sklearn_model, "m.joblib.z", "a joblib file of sklearn.linear_model._logistic.LogisticRegression, compressed"),
        (sklearn_model, 'it\'s a "model" $HOME.pkl', "a pickle of sklearn.linear_model._logistic.LogisticRegression"),
        (sklearn_model, "old.pkl", "a pickle of sklearn.linear_model._logistic.LogisticRegression"),
        (lightgbm_model, "m.txt", "a LightGBM model"),
        (lightgbm_model, "m.pkl", "a pickle of lightgbm.basic.Booster"),
        (xgboost_model, "m.json", "an XGBoost model"),
        (xgboost_model, "m.ubj", "an XGBoost model"),
        (xgboost_model, "m.pkl", "a pickle of xgboost.sklearn.XGBClassifier"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value and " of " not in value else "",
)
@pytest.mark.slow
def test_the_command_in_the_hint_converts_the_model_to_the_same_scores(tmp_path, make, name, found):
    pytest.importorskip("skl2onnx")
    path, expected = make(tmp_path, name)
    error = refused(path)
    assert error.found.startswith(found)
    assert ("if you trust the file" in error.hint) == ("pickle" in found or "joblib" in found)
    typed(error.hint, tmp_path)
    np.testing.assert_allclose(scores(f"{os.path.splitext(path)[0]}.onnx"), expected, atol=1e-5)


def test_the_command_never_replaces_a_model_that_exists(tmp_path):
    path, _ = sklearn_model(tmp_path, "m.pkl")
    (tmp_path / "m.onnx").write_bytes(b"mine")
    assert str(tmp_path / "m.converted.onnx") in refused(path).hint
    path = path.rename(tmp_path / "m.onnx")
    assert str(tmp_path / "m.converted.onnx") in refused(path).hint


class Harmful:
    """Fails the test if it is loaded from a pickle."""

    def __reduce__(self):
        return (pytest.fail, ("the model was unpickled",))


def test_a_pickle_is_never_loaded(tmp_path):
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(Harmful()))
    assert refused(tmp_path / "m.pkl").found == "a pickle of _pytest.outcomes._Fail"


KERAS = """python -c 'import keras; keras.saving.load_model("{path}").export("{out}", format="onnx")'"""
CATBOOST = "scorer convert {path} --output {out} --check DATA.parquet"
PMML = (
    "export the model again from the program that trained it: "
    "`scorer convert` reads files of LightGBM, XGBoost, CatBoost and scikit-learn"
)
TFLITE = "with tf2onnx installed: python -m tf2onnx.convert --tflite {path} --output {out}"
LFS = "run `git lfs pull`: the file is a Git LFS pointer"


@pytest.mark.parametrize(
    ("content", "found", "hint"),
    [
        (b"CBM1", "a CatBoost model", f"with catboost installed: {CATBOOST}"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file", f"with keras, tensorflow and tf2onnx installed: {KERAS}"),
        (b"\x1c\0\0\0TFL3", "a TensorFlow Lite model", TFLITE),
        (b"\x1c\0\0\0ORTM", "a model in ONNX Runtime's own format", "pass the .onnx file that it was created from"),
        (b"<PMML version='4.4'>", "a PMML file", PMML),
        (b"a,b\n1,2\n", "a CSV file", "pass the ONNX model as --model, and the data as INPUT"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer", LFS),
    ],
)
def test_a_model_that_no_installed_library_reads_has_the_line_that_converts_it(tmp_path, content, found, hint):
    path, out = tmp_path / "m.bin", tmp_path / "m.onnx"
    path.write_bytes(content + bytes(100) * (not content.isascii()))
    error = refused(path)
    assert error.found == found
    assert error.hint == hint.replace("{path}", str(path)).replace("{out}", str(out))


@pytest.mark.parametrize(("member", "call"), [("data.pkl", "torch.load("), ("constants.pkl", "torch.jit.load(")])
def test_a_pytorch_file_has_the_lines_that_export_it(tmp_path, member, call):
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        for name in {"data.pkl", member}:
            archive.writestr(f"m/{name}", pickle.dumps({}))
    hint = refused(tmp_path / "m.pt").hint
    assert call in hint
    assert 'torch.onnx.export(m.eval(), (torch.zeros(1, 10),), "' in hint
    assert 'dynamic_axes={"x": {0: "N"}}' in hint
    assert "number of features instead of 10" in hint
    assert "{" not in hint.replace('{"x": {0: "N"}}', "")


def test_a_saved_model_folder_has_the_command_that_converts_it(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "saved_model.pb").write_bytes(b"\x08\x01\x12")
    for path in (tmp_path / "model", tmp_path / "model" / "saved_model.pb"):
        error = refused(path)
        assert error.found == "a TensorFlow SavedModel"
        assert error.hint == (
            f"with tf2onnx installed: python -m tf2onnx.convert --saved-model {tmp_path}/model "
            f"--output {tmp_path}/model.onnx"
        )
