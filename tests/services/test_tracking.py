"""Models of a real tracking server of MLflow, and of the files and databases that MLflow itself writes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from support.runs import MODELS, cli, oracle, read, write

import scorer
from scorer.storage import stores as store_clients
from services import tracking
from services.conftest import enter_or_skip
from services.processes import Missing, kill

pytestmark = [pytest.mark.service, pytest.mark.timeout(600)]
SUM3 = MODELS / "sum3.onnx"


@pytest.fixture(scope="module")
def _server():
    with enter_or_skip(tracking.server(), "obstore") as found:
        yield found


@pytest.fixture
def server(_server, monkeypatch):
    """A tracking server, with the login in the environment; the clients of earlier tests are forgotten."""
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", _server[0])
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", tracking.USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", tracking.PASSWORD)
    store_clients._forget_after_fork()
    return _server[0]


@pytest.fixture
def rows(tmp_path):
    values = np.random.default_rng(3).standard_normal((40, 3)).astype(np.float32)
    return write(tmp_path / "rows.parquet", dict(zip("cba", values.T, strict=True))), values[:, ::-1]


def expected(values):
    return next(iter(oracle(SUM3, {"x": values}).values())).ravel()


def scores(out):
    return read(out).to_pandas().to_numpy().ravel()


def test_a_registered_model_is_scored_and_its_next_version_refused(server, rows, tmp_path):
    data, values = rows
    version, _ = tracking.publish(server, "sums", SUM3, "abc")
    run = ("run", data, "--model", "models:/sums@champion", "--output", tmp_path / "out", "--keep", "none")
    code, _, errors = cli(*run)
    assert code == 0, errors
    np.testing.assert_array_equal(scores(tmp_path / "out"), expected(values))
    (file,) = (tmp_path / "out").iterdir()
    found = json.loads(cli("lineage", file, "--json")[1])["model"]
    assert found["name"] == f"models:/sums/{version}"
    assert found["path"].startswith(f"{server}/api/2.0/mlflow-artifacts/")
    assert cli("verify", tmp_path / "out", "--rescore", 10)[0] == 0
    proto = onnx.load(SUM3)
    proto.doc_string = "the next version"
    onnx.save(proto, tmp_path / "next.onnx")
    later, _ = tracking.publish(server, "sums", tmp_path / "next.onnx", "abc")
    assert later == version + 1
    code, _, errors = cli(*run)
    assert (code, f"the model models:/sums/{version}, now models:/sums/{later}" in errors) == (3, True), errors
    code, _, errors = cli(*run, "--overwrite")
    assert code == 0, errors
    assert json.loads((tmp_path / "out.scorer" / "report.json").read_text())["model_name"] == f"models:/sums/{later}"


def test_worker_processes_fetch_it_with_their_own_login(server, rows, tmp_path):
    data, values = rows
    tracking.publish(server, "others", SUM3, "abc")
    report = scorer.run(data, "models:/others/latest", tmp_path / "out", keep="none", cluster="processes", workers=2)
    assert report.model_name == "models:/others/1"
    np.testing.assert_array_equal(scores(tmp_path / "out"), expected(values))


def test_what_a_run_logged_is_scored(server, rows, tmp_path):
    data, values = rows
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(SUM3, folder / "model.onnx")
    (folder / "config.json").write_text("{}")
    _, run = tracking.publish(server, "logged", SUM3, "abc", folder)
    flags = ("--feed", "x=a,b,c")
    for name, more in (("model", ()), ("folder", flags), ("folder/model.onnx", flags)):
        out = tmp_path / f"out-{name.replace('/', '-')}"
        code, _, errors = cli("run", data, "--model", f"runs:/{run}/{name}", "--output", out, "--keep", "none", *more)
        assert code == 0, errors
        np.testing.assert_array_equal(scores(out), expected(values))


def test_without_the_login_the_error_names_it(server, rows, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another-word")
    code, _, errors = cli("plan", rows[0], "--model", "models:/sums@champion")
    assert (code, "401" in errors, "MLFLOW_TRACKING_PASSWORD" in errors) == (3, True, True), errors
    assert "another-word" not in errors


def test_what_it_does_not_have_is_refused(server, rows):
    for name in ("models:/gone@champion", "models:/gone/1", "models:/gone/latest", "runs:/0123/model"):
        code, _, errors = cli("plan", rows[0], "--model", name)
        assert (code, "the tracking store has no such model" in errors) == (3, True), errors


@pytest.mark.parametrize("kind", ["files", "database"])
def test_stores_that_mlflow_writes_itself_are_read(rows, tmp_path, monkeypatch, kind):
    data, values = rows
    uri = f"sqlite:///{tmp_path}/mlflow.db" if kind == "database" else f"file://{tmp_path}/mlruns"
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    try:
        version, run = tracking.publish(uri, "sums", SUM3, "abc", here=tmp_path)
    except Missing as reason:
        pytest.skip(str(reason))
    for name in (f"models:/sums/{version}", "models:/sums@champion", "models:/sums/latest", f"runs:/{run}/model"):
        out = tmp_path / name.replace("/", "-").replace(":", "-")
        code, _, errors = cli("run", data, "--model", name, "--output", out, "--keep", "none")
        assert code == 0, errors
        np.testing.assert_array_equal(scores(out), expected(values))


def test_an_output_is_checked_when_the_server_is_gone(rows, tmp_path, monkeypatch):
    data, _ = rows
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", tracking.USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", tracking.PASSWORD)
    with enter_or_skip(tracking.server(), "obstore") as (url, process):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        store_clients._forget_after_fork()
        tracking.publish(url, "sums", SUM3, "abc")
        scorer.run(data, "models:/sums@champion", tmp_path / "out", keep="none", cluster="synchronous")
        kill(process)
        assert cli("verify", tmp_path / "out", "--rescore", 10)[0] == 0
        assert cli("replay", tmp_path / "out", "--row", 3)[0] == 0
        assert cli("run", data, "--model", "models:/sums@champion", "--output", tmp_path / "out")[0] == 3
