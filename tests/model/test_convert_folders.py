"""scorer convert: folders of MLflow and Hugging Face, and files of skops."""

from __future__ import annotations

import json
import shlex

import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pytest
from support import convertible, real_models
from support.model_folders import encoder, hugging_face, mlflow
from support.runs import cli, read, write

from scorer.errors import ModelError, ModelLoadError, ModelNotFound, ScorerError
from scorer.model.converting import conversion, sources
from scorer.model.converting.request import Request

NAMES = convertible.NAMES


def request_of(folder, frame, **options):
    table = pa.Table.from_pandas(frame, preserve_index=False)
    return Request(source=sources.find(str(folder)), table=table, data="rows.parquet", tolerance=1e-5, **options)


@pytest.fixture(scope="module")
def unnamed(tmp_path_factory):
    """An MLflow folder with a LightGBM model that was trained on an array, and whose signature has the names."""
    import lightgbm

    frame = convertible.rows(n=400)
    model = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1)
    model.fit(frame.to_numpy(), convertible.targets(frame)[0])
    folder = mlflow(tmp_path_factory.mktemp("mlflow") / "m", {"lightgbm": {"data": "model.lgb"}}, NAMES)
    model.booster_.save_model(folder / "model.lgb")
    return folder, frame, model


def test_the_signature_of_an_mlflow_folder_names_the_columns(unnamed):
    folder, frame, _ = unnamed
    converted = conversion.convert(request_of(folder, frame[NAMES[::-1]]))
    assert converted.features == tuple(NAMES)
    assert converted.record["format"] == "an MLflow folder with a LightGBM model"
    assert (converted.record["model"], converted.record["rows"]) == ("m", 400)


def test_a_signature_in_another_order_than_the_model_is_refused(tmp_path):
    import lightgbm

    frame = convertible.rows(n=200)
    model = lightgbm.LGBMClassifier(n_estimators=2, verbose=-1, n_jobs=1).fit(frame, convertible.targets(frame)[0])
    folder = mlflow(tmp_path / "m", {"lightgbm": {"data": "model.lgb"}}, NAMES[::-1])
    model.booster_.save_model(folder / "model.lgb")
    with pytest.raises(ScorerError, match="in another order"):
        conversion.convert(request_of(folder, frame))


def test_an_mlflow_folder_that_is_not_complete_is_refused(tmp_path):
    folder = mlflow(tmp_path / "m", {"lightgbm": {"data": "model.lgb"}})
    with pytest.raises(ModelNotFound, match="incomplete"):
        sources.find(str(folder))
    mlflow(folder, {"prophet": {"data": "x"}, "python_function": {}})
    with pytest.raises(ModelLoadError, match="no flavour"):
        sources.find(str(folder))
    for broken in ("[1, 2]", "a: [", "", "flavors: 3", "\x00"):
        (folder / "MLmodel").write_text(broken)
        with pytest.raises(ModelLoadError, match="MLmodel cannot be read"):
            sources.find(str(folder))


def test_a_pickle_in_an_mlflow_folder_needs_trust(tmp_path):
    folder = mlflow(tmp_path / "m", {"sklearn": {"pickled_model": "model.pkl"}})
    (folder / "model.pkl").write_bytes(b"\x80\x04N.")
    data = write(tmp_path / "d.parquet", {"a": [1.0]})
    code, _, errors = cli("convert", folder, "-o", tmp_path / "m.onnx", "--check", data)
    assert (code, "a pickle runs code" in errors, "model.pkl" in errors) == (3, True, True)


def test_a_run_with_such_a_folder_names_the_command(unnamed, tmp_path):
    data = write(tmp_path / "d.parquet", {"a": [1.0]})
    code, _, errors = cli("run", data, "--model", unnamed[0])
    assert code == 3
    assert "found:    an MLflow folder" in errors
    assert f"scorer convert {unnamed[0]} --output {unnamed[0]}.onnx --check DATA.parquet" in errors


TEXTS = pd.DataFrame({"id": [1], "review": ["good"]})


def test_the_pooling_of_a_hugging_face_folder_becomes_flags(tmp_path):
    folder = hugging_face(
        tmp_path / "mini-lm", encoder(["last_hidden_state"]),
        **{"1_Pooling__config": {"pooling_mode_mean_tokens": True}}, sentence_bert_config={"max_seq_length": 256},
        modules=[{"type": "sentence_transformers.models.Pooling"}, {"type": "sentence_transformers.models.Normalize"}],
    )  # fmt: skip
    converted = conversion.convert(request_of(folder, TEXTS))
    assert converted.flags == (
        "--feed", f"input_ids=text({folder}/tokenizer.json, max_length=256)",
        "--fetch", "last_hidden_state|mean_pool(attention_mask)|normalize=embedding",
    )  # fmt: skip
    assert converted.record["rows"] == 0


def test_the_classes_of_a_hugging_face_folder_become_labels(tmp_path):
    names = {"0": "bad", "1": "fair", "2": "good", "3": "best"}
    folder = hugging_face(tmp_path / "a b", encoder(["logits"]), config={"id2label": names})
    converted = conversion.convert(request_of(folder, TEXTS.assign(other="x")))
    assert converted.flags == (
        "--feed", f"input_ids=text('{folder}/tokenizer.json')",
        "--fetch", "logits|softmax=probabilities", "--fetch", "logits|label=label",
    )  # fmt: skip
    (tmp_path / "m.onnx").write_bytes(converted.model)
    shown = cli("inspect", tmp_path / "m.onnx")[1]
    assert "classes    bad, fair, good, best" in shown
    assert "from a b, which has this ONNX model; no scores were compared" in shown


def test_a_hugging_face_folder_without_an_onnx_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no ONNX model"):
        sources.find(str(tmp_path))
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ModelLoadError):
        conversion.convert(request_of(tmp_path, TEXTS))


def test_an_onnx_model_needs_no_conversion(tmp_path):
    onnx.save(encoder(["logits"]), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="is ONNX already"):
        conversion.convert(request_of(tmp_path / "m.onnx", TEXTS))


@pytest.mark.slow
def test_a_real_hugging_face_folder_runs_by_the_command_that_is_shown(tmp_path):
    folder, lines = real_models.minilm_folder(tmp_path / "minilm"), real_models.LINES
    data = write(tmp_path / "texts.parquet", {"text": lines})
    code, text, errors = cli("convert", folder, "-o", tmp_path / "m.onnx", "--check", data, "--json")
    assert code == 0, errors
    code, _, errors = cli(
        "run", data, "--model", tmp_path / "m.onnx", "--output", tmp_path / "out", *json.loads(text)["flags"]
    )
    assert code == 0, errors
    got = np.stack(read(tmp_path / "out").to_pandas()["embedding"])
    hidden = [one["last_hidden_state"][0] for one in real_models.one_by_one(folder / "model.onnx", lines, types=True)]
    expected = real_models.unit(np.stack([tokens.mean(axis=0) for tokens in hidden]))
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("flavour", ["sklearn", "lightgbm", "xgboost", "catboost", "onnx"])
def test_a_folder_that_mlflow_wrote_is_converted_and_scored(tmp_path, flavour):
    written = pytest.importorskip(f"mlflow.{flavour}", exc_type=ImportError)
    from mlflow.models import infer_signature

    frame = convertible.rows(n=500)
    y = convertible.targets(frame)[0]
    name = {"sklearn": "sklearn, random forest", "onnx": "sklearn, ridge"}.get(flavour, f"{flavour}, two classes")
    if flavour == "catboost":
        pytest.importorskip("catboost")
    model = convertible.CASES[name].make()
    saved = convertible.CASES[name].plain(model) if flavour == "onnx" else model
    more = {"serialization_format": "cloudpickle"} if flavour == "sklearn" else {}
    written.save_model(saved, str(tmp_path / "m"), signature=infer_signature(frame, y), **more)
    data = write(tmp_path / "d.parquet", pa.Table.from_pandas(frame))
    flags = ("--trust",) if flavour != "onnx" else ()
    code, text, errors = cli("convert", tmp_path / "m", "-o", tmp_path / "m.onnx", "--check", data, *flags)
    assert code == 0, errors
    (line,) = [line.split(None, 1)[1] for line in text.splitlines() if line.split()[0] == "next"]
    code, _, errors = cli(*shlex.split(line)[1:], "--output", tmp_path / "out")
    assert code == 0, errors
    scored = read(tmp_path / "out").to_pandas()
    own = scored["variable" if flavour == "onnx" else "probabilities_1"]
    expected = model.predict(frame) if flavour == "onnx" else model.predict_proba(frame)[:, 1]
    np.testing.assert_allclose(own, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["sklearn, logistic", "lightgbm, two classes", "xgboost, two classes"])
def test_a_file_of_skops_needs_no_trust(tmp_path, name):
    skops = pytest.importorskip("skops.io")
    model, frame = convertible.CASES[name].make(), convertible.rows(n=300)
    skops.dump(model, tmp_path / "m.skops")
    assert conversion.convert(request_of(tmp_path / "m.skops", frame)).record["format"] == "a skops file"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_types_that_skops_does_not_trust_need_trust(tmp_path):
    skops = pytest.importorskip("skops.io")
    model, frame = convertible.CASES["sklearn, random forest"].make(), convertible.rows(n=300)
    skops.dump(model, tmp_path / "m.skops")
    with pytest.raises(ModelError, match="skops does not trust") as refused:
        conversion.convert(request_of(tmp_path / "m.skops", frame))
    assert "sklearn.tree._tree.Tree" in refused.value.found
    assert conversion.convert(request_of(tmp_path / "m.skops", frame, trust=True)).record["rows"] == 300
    skops.dump({"run": np.testing.assert_equal}, tmp_path / "m.skops")
    with pytest.raises(ModelError, match="skops does not trust"):
        conversion.convert(request_of(tmp_path / "m.skops", frame))
