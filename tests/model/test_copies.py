"""The model cache: what is fetched from a URL, once and whole, and what is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.web import web_server

from scorer.errors import ModelError, ModelLoadError, ModelNotFound
from scorer.model import copies
from scorer.model.protobuf import inspect_model
from scorer.model.resident import Sessions
from scorer.model.spec import SessionSpec

MODELS = Path(__file__).parents[1] / "models"
DENSE = (MODELS / "dense28.onnx").read_bytes()


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A web server, and an empty model cache."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with web_server() as server:
        yield server


def cached():
    """The files in the cache, without the notes about URLs."""
    files = [path for path in copies.root().rglob("*") if path.is_file() and ".urls" not in path.parts]
    return sorted(str(path.relative_to(copies.root())) for path in files)


def session_spec(model):
    return SessionSpec(path=model.path, digest=model.digest, files=model.files, device="cpu")


def test_a_model_behind_a_url_is_the_local_one_under_another_name(web):
    url = web.put("a b/dense28.onnx", DENSE)
    local = inspect_model(MODELS / "dense28.onnx")
    fetched = inspect_model(url)
    assert fetched.to_dict() == local.to_dict() | {"path": url}
    assert cached() == [f"{local.digest}/dense28.onnx"]


def test_external_data_beside_the_url_is_fetched_with_the_model(web):
    url = web.put("m/external.onnx", (MODELS / "external.onnx").read_bytes())
    web.put("m/external.bin", (MODELS / "external.bin").read_bytes())
    local, fetched = inspect_model(MODELS / "external.onnx"), inspect_model(url)
    assert (fetched.digest, fetched.files, fetched.bytes) == (local.digest, local.files, local.bytes)
    assert Sessions().session(session_spec(fetched)).spec.path.startswith(str(copies.root()))


def test_an_unchanged_model_is_downloaded_once_and_a_changed_one_again(web):
    url = web.put("m.onnx", DENSE)
    first = inspect_model(url)
    assert inspect_model(url) == first
    assert web.count("GET") == 1
    web.put("m.onnx", (MODELS / "sum3.onnx").read_bytes())
    assert inspect_model(url).digest != first.digest
    assert web.count("GET", "m.onnx") == 2


def test_a_model_without_any_identity_is_downloaded_each_time(web):
    web.tags, url = False, web.put("m.onnx", DENSE)
    web.times["m.onnx"] = 0
    inspect_model(url)
    inspect_model(url)
    assert web.count("GET") == 2


def test_a_damaged_copy_is_downloaded_again(web):
    url = web.put("m.onnx", DENSE)
    model = inspect_model(url)
    copy = copies.root() / model.digest / "m.onnx"
    copy.write_bytes(DENSE[:-1] + b"x")
    assert inspect_model(url) == model
    assert copy.read_bytes() == DENSE


def test_equal_models_with_two_names_share_the_cache(web):
    one, other = (inspect_model(web.put(name, DENSE)) for name in ("a.onnx", "b.onnx"))
    assert one.digest == other.digest
    assert cached() == [f"{one.digest}/a.onnx", f"{one.digest}/b.onnx"]


def test_a_server_without_ranges_gives_the_model_whole(web):
    web.ranges = False
    assert inspect_model(web.put("m.onnx", DENSE)).bytes == len(DENSE)


def test_a_download_that_breaks_off_once_goes_on(web):
    web.cut = 1
    assert inspect_model(web.put("m.onnx", DENSE)).bytes == len(DENSE)


@pytest.mark.slow
def test_half_a_download_is_an_error_and_leaves_nothing(web, monkeypatch):
    monkeypatch.setattr("scorer.storage.objects._PATIENCE_S", 0.5)
    web.cut = 1000
    url = web.put("m.onnx", DENSE)
    with pytest.raises(ModelError, match="the model cannot be downloaded") as caught:
        inspect_model(url)
    assert caught.value.where == url
    assert cached() == []


def test_what_a_url_does_not_give_is_said(web):
    gone = f"{web.root}/gone.onnx"
    with pytest.raises(ModelNotFound, match="the model does not exist") as caught:
        inspect_model(gone)
    assert (caught.value.where, caught.value.found) == (gone, "nothing")
    url = web.put("m/external.onnx", (MODELS / "external.onnx").read_bytes())
    with pytest.raises(ModelNotFound, match="the model's external data is missing") as caught:
        inspect_model(url)
    assert caught.value.expected == repr(f"{web.root}/m/external.bin")
    web.status["denied.onnx"] = 403
    with pytest.raises(ModelNotFound, match="the model cannot be read"):
        inspect_model(web.put("denied.onnx", DENSE))
    with pytest.raises(ModelLoadError, match="the file is not an ONNX model") as refused:
        inspect_model(web.put("data.onnx", b"PAR1" + bytes(100)))
    assert refused.value.found == "a Parquet file"
    assert cached() == []


def test_a_model_that_does_not_fit_on_the_disk_is_not_downloaded(web, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    url = web.put("m.onnx", DENSE)
    with pytest.raises(ModelError, match="there is no room for a copy of the model") as caught:
        inspect_model(url)
    assert caught.value.where == str(copies.root())
    assert web.count("GET") == 0


def test_a_file_larger_than_a_protobuf_is_refused_before_it_is_downloaded(web, monkeypatch):
    monkeypatch.setattr("scorer.model.protobuf._MAX_PROTOBUF_BYTES", 1000)
    with pytest.raises(ModelLoadError, match="not an ONNX model") as caught:
        inspect_model(web.put("m.onnx", DENSE))
    assert f"{len(DENSE)} bytes" in caught.value.found
    assert web.count("GET") == 0


def test_a_model_that_changed_after_it_was_planned_is_refused(web):
    url = web.put("m.onnx", DENSE)
    spec = session_spec(inspect_model(url))
    web.put("m.onnx", (MODELS / "sum3.onnx").read_bytes())
    with pytest.raises(ModelError, match="the model is not the one that was planned") as caught:
        Sessions().session(spec)
    assert spec.digest.startswith(caught.value.expected.removeprefix("sha256 "))


def test_a_process_that_cannot_reach_the_url_uses_what_was_delivered(web):
    url = web.put("m.onnx", DENSE)
    spec = session_spec(inspect_model(url))
    web.status["m.onnx"] = 403
    assert Sessions().session(spec).spec.digest == spec.digest
    shutil.rmtree(copies.root())
    assert copies.local_spec(spec) is None
    with pytest.raises(ModelError, match="the model cannot be read") as caught:
        Sessions().session(spec)
    assert "403" in caught.value.found
    copies.receive(spec, "a", "m.onnx", DENSE)
    assert copies.complete(spec, "a")
    assert Sessions().session(spec).spec.digest == spec.digest


def test_processes_of_a_host_download_a_model_once(web):
    url = web.put("m.onnx", DENSE)
    code = f"from scorer.model import copies; print(copies.fetch({url!r}).digest)"
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(4)]
    digests = {process.communicate(timeout=60)[0] for process in started}
    assert digests == {f"{copies.digest_of(MODELS / 'dense28.onnx')}\n".encode()}
    assert web.count("GET") == 1
