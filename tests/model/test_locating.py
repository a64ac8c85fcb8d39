"""--model with a folder of Hugging Face or MLflow, or with a name in a tracking store of MLflow."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
from support import real_models
from support.model_folders import encoder, hugging_face, mlflow, tracking_database, tracking_files
from support.runs import MODELS, cli, oracle, read, write

import scorer
from scorer.model.protobuf import inspect_model

SUM3 = MODELS / "sum3.onnx"
"""Its input x has three columns."""


@pytest.fixture
def rows(tmp_path):
    """Rows whose columns are not in the order of the model."""
    values = np.random.default_rng(3).standard_normal((20, 3)).astype(np.float32)
    return write(tmp_path / "rows.parquet", dict(zip("cba", values.T, strict=True))), values[:, ::-1]


def folder_of_mlflow(path, columns=("a", "b", "c"), model=SUM3):
    mlflow(path, {"onnx": {"data": "model.onnx"}, "python_function": {}}, columns)
    shutil.copy(model, path / "model.onnx")
    return path


def scores(data, model, out, *flags):
    code, _, errors = cli("run", data, "--model", model, "--output", out, "--keep", "none", *flags)
    assert code == 0, errors
    return read(out).to_pandas().to_numpy()


def test_the_signature_of_an_mlflow_folder_feeds_an_onnx_model(rows, tmp_path):
    data, values = rows
    got = scores(data, folder_of_mlflow(tmp_path / "m"), tmp_path / "out")
    (expected,) = oracle(SUM3, {"x": values}).values()
    np.testing.assert_array_equal(got.ravel(), expected.ravel())


def test_a_signature_that_contradicts_the_model_is_refused(tmp_path):
    proto = onnx.load(SUM3)
    onnx.helper.set_model_props(proto, {"feature_names": json.dumps(["c", "b", "a"])})
    onnx.save(proto, tmp_path / "named.onnx")
    with pytest.raises(scorer.ScorerError, match="in another order"):
        inspect_model(folder_of_mlflow(tmp_path / "m", model=tmp_path / "named.onnx"))


def test_a_folder_that_lacks_its_model_is_refused(tmp_path, rows):
    (folder_of_mlflow(tmp_path / "m") / "model.onnx").unlink()
    code, _, errors = cli("run", rows[0], "--model", tmp_path / "m")
    assert (code, "the MLflow folder is incomplete" in errors) == (3, True)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    code, _, errors = cli("run", rows[0], "--model", tmp_path / "hf")
    assert (code, "the folder has no ONNX model" in errors) == (3, True)
    for name in ("a.onnx", "b.onnx"):
        shutil.copy(SUM3, tmp_path / "hf" / name)
    code, _, errors = cli("run", rows[0], "--model", tmp_path / "hf")
    assert (code, f"--model {tmp_path / 'hf' / 'a.onnx'}" in errors) == (3, True)


def described(folder):
    spec = inspect_model(folder)
    return spec.feeds, spec.fetches, spec.labels, spec.notes


TRANSFORMER, POOLING = ({"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling"))


@pytest.mark.parametrize(
    ("outputs", "files", "fetches", "labels", "note"),
    [
        (["last_hidden_state"], {}, (), (), ""),
        (
            ["last_hidden_state"],
            {"modules": [TRANSFORMER, POOLING], "1_Pooling__config": {"pooling_mode_cls_token": True}},
            ("last_hidden_state|cls=embedding",), (), "",
        ),
        (
            ["last_hidden_state"],
            {"modules": [TRANSFORMER, POOLING | {"path": "p"}], "p__config": {"pooling_mode": "mean"}},
            ("last_hidden_state|mean_pool(attention_mask)=embedding",), (), "",
        ),
        (
            ["last_hidden_state"],
            {"modules": [TRANSFORMER, POOLING], "1_Pooling__config": {"pooling_mode_max_tokens": True}},
            (), (), "pooling_mode_max_tokens",
        ),
        (
            ["last_hidden_state"],
            {"modules": [TRANSFORMER, POOLING, {"type": "x.Dense"}],
             "1_Pooling__config": {"pooling_mode_mean_tokens": True}},
            (), (), "(Dense)",
        ),
        (
            ["logits"], {"config": {"id2label": {"0": "no", "1": "yes, sure", "2": "c", "3": "d"}}},
            ("logits|softmax=probabilities", "logits|label=label"), ("no,'yes, sure',c,d",), "",
        ),
        (
            ["logits"], {"config": {"id2label": {"0": "a", "1": "b"}, "problem_type": "multi_label_classification"}},
            ("logits|sigmoid=probabilities",), ("a,b",), "",
        ),
        (["logits"], {"config": {"id2label": {"0": "LABEL_0"}}}, ("logits=prediction",), (), ""),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_folder_says_of_the_outputs(tmp_path, outputs, files, fetches, labels, note):
    folder = hugging_face(tmp_path / "m", encoder(outputs), **files)
    feeds, *found, notes = described(folder)
    assert feeds[0].startswith("input_ids=text(")
    assert found == [fetches, labels]
    assert note in " ".join(notes)
    assert bool(notes) == bool(note)


@pytest.mark.parametrize(
    ("files", "length"),
    [
        ({"config": {"max_position_embeddings": 514, "model_type": "xlm-roberta", "pad_token_id": 1}}, 512),
        ({"tokenizer_config": {"model_max_length": 1e30}, "config": {"max_position_embeddings": 64}}, 64),
        ({"tokenizer_config": {"model_max_length": 32}, "sentence_bert_config": {"max_seq_length": 16}}, 16),
    ],
    ids=str,
)
def test_the_longest_text_is_the_one_that_the_folder_names(tmp_path, files, length):
    (feed,), *_ = described(hugging_face(tmp_path / "m", encoder(["logits"]), **files))
    assert feed.endswith(f", max_length={length})")


def test_a_folder_without_a_tokenizer_says_so(tmp_path):
    folder = hugging_face(tmp_path / "m", encoder(["logits"]))
    (folder / "tokenizer.json").unlink()
    feeds, *_, notes = described(folder)
    assert (feeds, "no tokenizer.json" in notes[0]) == ((), True)


def pictures_folder(tmp_path, **given):
    """A folder with the real net of RapidOCR, described as Hugging Face describes its models."""
    pytest.importorskip("PIL")
    try:
        model = real_models.within("rapidocr", "models", "ch_ppocr_mobile_v2.0_cls_mobile.onnx")
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    folder = tmp_path / "upright"
    folder.mkdir()
    shutil.copy(model, folder / "model.onnx")
    usual = {"size": {"height": 48, "width": 192}, "resample": 2, "do_normalize": True, "image_mean": [0.5] * 3,
             "image_std": [0.5] * 3, "rescale_factor": 1 / 255}  # fmt: skip
    (folder / "config.json").write_text("{}")
    (folder / "preprocessor_config.json").write_text(json.dumps(usual | given))
    return folder


@pytest.mark.slow
def test_pictures_are_treated_as_the_folder_says(tmp_path):
    folder = pictures_folder(tmp_path, image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.25, 0.2])
    files, _ = real_models.snippets()
    data = write(tmp_path / "pictures.parquet", {"picture": files})
    got = scores(data, folder, tmp_path / "out")
    stacked = np.stack([real_models.pixels(one, 192, 48) for one in files]) / np.float32(255)
    mean, std = np.float32([0.5, 0.4, 0.3]), np.float32([0.5, 0.25, 0.2])
    (expected,) = real_models.bare(
        folder / "model.onnx", {"x": ((stacked - mean) / std).transpose(0, 3, 1, 2)}
    ).values()
    np.testing.assert_allclose(got, expected, atol=1e-5)


_UNSCALED = "image(size=48x192, resize=stretch, filter=bilinear, scale=1)"


@pytest.mark.parametrize(
    ("given", "feed", "note"),
    [
        ({"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True,
          "resample": 3, "do_normalize": False}, "image(size=224x224, resize=crop, filter=bicubic)", ""),
        ({"size": 256, "crop_size": 224, "do_center_crop": True}, "", "shorter side of pictures to 256"),
        ({"do_rescale": False, "do_normalize": False}, _UNSCALED, ""),
        ({"resample": 5}, "", "another filter"),
        ({"do_pad": True}, "", "pads pictures"),
    ],
    ids=str,
)  # fmt: skip
def test_the_treatment_of_pictures_becomes_a_feed_or_a_note(tmp_path, given, feed, note):
    folder = pictures_folder(tmp_path, **given)
    feeds, _, _, notes = described(folder)
    assert feeds == ((f"x={feed}",) if feed else ())
    assert note in " ".join(notes)


@pytest.mark.slow
def test_a_real_folder_of_hugging_face_needs_no_flags(tmp_path):
    folder, lines = real_models.minilm_folder(tmp_path / "minilm"), real_models.LINES
    data = write(tmp_path / "texts.parquet", {"text": lines})
    hidden = [one["last_hidden_state"][0] for one in real_models.one_by_one(folder / "model.onnx", lines, types=True)]
    expected = real_models.unit(np.stack([tokens.mean(axis=0) for tokens in hidden]))
    code, text, errors = cli("plan", data, "--model", folder, "--json")
    assert code == 0, errors
    shown = json.loads(text)["folder_flags"]
    for name, flags in (("own", ()), ("typed", shown)):
        got = scores(data, folder if name == "own" else folder / "model.onnx", tmp_path / name, *flags)
        np.testing.assert_allclose(np.stack(got[:, 0]), expected, atol=1e-6)
    frame = scorer.score(pq.read_table(data), folder, keep="none")
    np.testing.assert_allclose(np.stack(frame["embedding"].to_pylist()), expected, atol=1e-6)
    got = scores(data, folder, tmp_path / "fetched", "--fetch", "last_hidden_state|cls=first")
    np.testing.assert_allclose(np.stack(got[:, 0]), np.stack([tokens[0] for tokens in hidden]), atol=1e-6)
    write(tmp_path / "two.parquet", {"text": lines, "more": lines})
    code, _, errors = cli("run", tmp_path / "two.parquet", "--model", folder)
    assert code == 3
    assert errors.count("it is not clear which column text(...) takes") == 1
    assert f"--feed 'input_ids=text|text({folder}/tokenizer.json, max_length=256)'" in errors
    code, _, errors = cli(
        "run", tmp_path / "two.parquet", "--model", folder, "--feed", "input_ids=more|text(gone.json)"
    )
    assert (code, "gone.json" in errors) == (2, True)


@pytest.fixture(params=["files", "database"])
def store(request, tmp_path, monkeypatch):
    """A tracking store with two versions of a model, the second of which is the champion."""
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    versions = [folder_of_mlflow(tmp_path / "art" / name) for name in ("one", "two")]
    proto = onnx.load(SUM3)
    proto.doc_string = "the second"
    onnx.save(proto, versions[1] / "model.onnx")

    def publish(count):
        given = versions[:count]
        if request.param == "files":
            uri = tracking_files(tmp_path / "mlruns", "sums", given, "champion")
        else:
            uri = tracking_database(tmp_path / "mlflow.db", "sums", given, "champion")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)

    publish(2)
    return publish


@pytest.mark.parametrize(
    ("name", "found", "folder"),
    [
        ("models:/sums@champion", "models:/sums/2", "two"),
        ("models:/sums/1", "models:/sums/1", "one"),
        ("models:/sums/latest", "models:/sums/2", "two"),
        ("models:/sums/Production", "models:/sums/1", "one"),
        (f"models:/m-{2:032x}", f"models:/m-{2:032x}", "two"),
        (f"runs:/{1:032x}/model", f"runs:/{1:032x}/model", "one"),
        (f"runs:/{1:032x}/two/model.onnx", f"runs:/{1:032x}/two/model.onnx", "two"),
    ],
)
def test_a_name_in_a_tracking_store_is_found(store, tmp_path, name, found, folder):
    spec = inspect_model(name)
    assert (spec.name, spec.path) == (found, str(tmp_path / "art" / folder / "model.onnx"))
    assert spec.feature_names == (() if name.endswith(".onnx") else ("a", "b", "c"))


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("models:/sums@nobody", 3, "the tracking store has no such model"),
        ("models:/sums/7", 3, "the tracking store has no such model"),
        ("models:/sums/Staging", 3, "no stage of this name"),
        ("models:/gone/latest", 3, "no version 'latest' of 'gone'"),
        (f"models:/m-{9:032x}", 3, "the tracking store has no such model"),
        ("runs:/0/model", 3, "the tracking store has no such model"),
        (f"runs:/{1:032x}/gone", 3, "the tracking store has no ONNX model there"),
        ("models:/sums", 2, "the model's name cannot be understood"),
        ("models:/../1", 2, "the model's name cannot be understood"),
    ],
)
def test_a_name_that_is_not_there_is_refused(store, rows, name, code, says):
    got, out, errors = cli("run", rows[0], "--model", name)
    assert (got, out) == (code, "")
    assert says in errors


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("", "MLFLOW_TRACKING_URI is not set"),
        ("postgresql://me:word@host/db", "mlflow server --backend-store-uri postgresql://"),
        ("http://127.0.0.1:9", "Connection refused"),
        ("sqlite:////gone/mlflow.db", "a database that cannot be read"),
        ("databricks", "no file"),
    ],
)
def test_a_tracking_store_that_does_not_answer_is_an_error(rows, tmp_path, monkeypatch, uri, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    code, _, errors = cli("run", rows[0], "--model", "models:/sums@champion")
    assert (code, says in errors, "word" in errors) == (3, True, False), errors


def test_the_version_is_in_the_proof_and_another_one_is_refused(store, rows, tmp_path):
    data, values = rows
    store(1)
    got = scores(data, "models:/sums@champion", tmp_path / "out")
    np.testing.assert_array_equal(got.ravel(), next(iter(oracle(SUM3, {"x": values}).values())).ravel())
    assert cli("run", data, "--model", "models:/sums@champion", "--output", tmp_path / "out", "--keep", "none")[0] == 0
    proof = tmp_path / "out.scorer"
    assert json.loads((proof / "plan.json").read_text())["request"]["model_name"] == "models:/sums/1"
    assert json.loads((proof / "report.json").read_text())["model_name"] == "models:/sums/1"
    store(2)
    code, _, errors = cli(
        "run", data, "--model", "models:/sums@champion", "--output", tmp_path / "out", "--keep", "none"
    )
    assert (code, "the model models:/sums/1, now models:/sums/2" in errors) == (3, True), errors
    assert cli("verify", tmp_path / "out", "--rescore", 5)[0] == 0


def test_several_models_of_a_tracking_store_are_in_the_proof_by_their_names(store, rows, tmp_path):
    store(1)
    flags = [
        "--model",
        "now=models:/sums@champion",
        "--model",
        f"plain={SUM3}",
        "--feed",
        "plain:x=a,b,c",
        "--keep",
        "none",
    ]
    code, _, errors = cli("run", rows[0], *flags, "--output", tmp_path / "out")
    assert code == 0, errors
    request = json.loads((tmp_path / "out.scorer" / "plan.json").read_text())["request"]
    assert request["model_name"] == {"now": "models:/sums/1"}
    assert json.loads((tmp_path / "out.scorer" / "report.json").read_text())["model_name"] == "now=models:/sums/1"
    (file,) = (tmp_path / "out").glob("*.parquet")
    models = json.loads(cli("lineage", file, "--json")[1])["model"]
    assert [one.get("name") for one in models.values()] == ["models:/sums/1", None]
    found = json.loads(cli("replay", tmp_path / "out", "--row", 0, "--json")[1])
    assert found["model_name"] == {"now": "models:/sums/1", "plain": ""}
    store(2)
    code, _, errors = cli("run", rows[0], *flags, "--output", tmp_path / "out")
    assert code == 3
    assert "the contents of the model 'now'; the model now=models:/sums/1, now now=models:/sums/2" in errors


def test_a_job_file_may_name_a_model_of_a_tracking_store(store, rows, tmp_path):
    job = tmp_path / "job.toml"
    job.write_text(f'input = ["{rows[0].name}"]\nmodel = "models:/sums@champion"\n')
    code, text, errors = cli("plan", "--config", job, "--json")
    assert code == 0, errors
    assert json.loads(text)["model"]["name"] == "models:/sums/2"


def test_an_unfinished_run_of_another_version_is_refused(store, rows, tmp_path):
    store(1)
    options = {"keep": "none", "cluster": "synchronous"}
    plan = scorer.prepare(rows[0], "models:/sums@champion", tmp_path / "out", **options)

    def interrupt(event):
        if type(event).__name__ == "PartFinished":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scorer.execute(plan, observers=[interrupt])
    store(2)
    (problem,) = scorer.prepare(rows[0], "models:/sums@champion", tmp_path / "out", **options).problems
    assert "the model models:/sums/1, now models:/sums/2" in problem.found
    store(1)
    assert scorer.run(rows[0], "models:/sums@champion", tmp_path / "out", **options).counts.scored == 20


def test_a_model_in_a_file_imports_nothing_of_it():
    code = "import sys, scorer; scorer.inspect_model(sys.argv[1]); print([m for m in sys.modules if 'locating' in m])"
    assert subprocess.check_output([sys.executable, "-c", code, str(SUM3)], text=True).strip() == "[]"
