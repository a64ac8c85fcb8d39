"""Models, tokenizers and pictures on an S3 server, and workers that may not read them."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import LocalCluster
from onnx import TensorProto, helper
from PIL import Image
from support.runs import command, read
from tokenizers import Tokenizer, models

import scorer
from scorer.errors import ModelError, ModelNotFound, PreflightError
from scorer.model import copies
from scorer.model.protobuf import inspect_model
from scorer.storage import stores

pytestmark = pytest.mark.service
MODELS = Path(__file__).parents[1] / "models"


@pytest.fixture
def bucket(s3, tmp_path, monkeypatch):
    """An empty bucket, and an empty model cache."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return s3.bucket()


def put(url, data):
    """Store an object by boto3, which shares no code with scorer's client; return its URL."""
    import boto3  # only .ci/services installs it

    name, _, key = url.removeprefix("s3://").partition("/")
    boto3.client("s3").put_object(Bucket=name, Key=key, Body=data)
    return url


def identity(path, kind, shape):
    """Write a model that returns its input."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g",
        [helper.make_tensor_value_info("x", kind, shape)], [helper.make_tensor_value_info("y", kind, shape)],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def table(n):
    rng = np.random.default_rng(1)
    return pa.table({"id": range(n)} | {f"f{i}": rng.random(n, np.float32) for i in range(28)})


def test_a_run_with_worker_processes_reads_its_model_from_the_store(bucket, tmp_path):
    url = put(f"{bucket}/models/a b/external.onnx", (MODELS / "external.onnx").read_bytes())
    put(f"{bucket}/models/a b/external.bin", (MODELS / "external.bin").read_bytes())
    local = inspect_model(MODELS / "external.onnx")
    assert inspect_model(url).to_dict() == local.to_dict() | {"path": url}
    (tensor,) = local.inputs
    width = tensor.shape[-1]
    source = tmp_path / "in.parquet"
    pq.write_table(table(1000).select([f"f{i}" for i in range(width)]), source)
    for model, out in ((url, "remote"), (MODELS / "external.onnx", "local")):
        flags = ("--output", tmp_path / out, "--cluster", "processes", "--workers", 2, "--keep", "none")
        done = command("run", source, "--model", model, *flags)
        assert done.returncode == 0, done.stderr
    assert read(tmp_path / "remote").equals(read(tmp_path / "local"))


def test_an_unchanged_model_is_not_downloaded_twice_and_a_changed_one_is(bucket):
    url = put(f"{bucket}/m.onnx", (MODELS / "dense28.onnx").read_bytes())
    first = inspect_model(url)
    copy = copies.root() / first.digest / "m.onnx"
    written = copy.stat().st_mtime_ns
    assert (inspect_model(url), copy.stat().st_mtime_ns) == (first, written)
    put(url, (MODELS / "sum3.onnx").read_bytes())
    assert inspect_model(url).digest != first.digest


def test_missing_objects_and_rights_are_told_apart(bucket, monkeypatch):
    put(f"{bucket}/models/m.onnx", (MODELS / "dense28.onnx").read_bytes())
    for url, found in (
        (f"{bucket}/gone.onnx", "nothing"),
        (f"{bucket}/models", "a folder"),
        ("s3://no-such-bucket-here/m.onnx", "nothing"),
    ):
        with pytest.raises(ModelNotFound, match="does not exist") as caught:
            inspect_model(url)
        assert (caught.value.where, caught.value.found[: len(found)]) == (url, found)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    stores._stores.clear()  # so that this process makes its clients again
    with pytest.raises(ModelNotFound, match="the model cannot be read") as caught:
        inspect_model(f"{bucket}/models/m.onnx")
    assert "wrong" not in str(caught.value)


def test_workers_without_credentials_get_the_model_and_the_tokenizer_from_the_driver(bucket, tmp_path):
    model = identity(tmp_path / "m.onnx", TensorProto.INT64, ["N", "T"])
    url = put(f"{bucket}/m.onnx", model.read_bytes())
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    tokenizer = put(f"{bucket}/tokenizer.json", made.to_str().encode())
    source, elsewhere, notices = tmp_path / "in.parquet", tmp_path / "elsewhere", []
    pq.write_table(pa.table({"text": ["a", "b", "c"]}), source)
    elsewhere.mkdir()
    other = {"AWS_SECRET_ACCESS_KEY": "wrong", "TMPDIR": str(elsewhere)}
    with LocalCluster(n_workers=1, threads_per_worker=1, env=other, dashboard_address=None) as cluster:
        feed = f"x=text|text({tokenizer}, give=ids)"
        scorer.run(source, url, tmp_path / "out", feed=feed, client=cluster, observers=[notices.append])
    assert read(tmp_path / "out")["y"].to_pylist() == [[1], [2], [0]]
    copied = {path.name for path in elsewhere.rglob("*") if path.is_file() and path.parent.parent.name == "models"}
    assert copied >= {"m.onnx", "tokenizer.json"}
    assert any("the model was copied to 1 host" in str(event) for event in notices)


def test_a_model_that_changed_between_plan_and_run_is_refused_by_workers(bucket, tmp_path):
    url = put(f"{bucket}/m.onnx", (MODELS / "dense28.onnx").read_bytes())
    source = tmp_path / "in.parquet"
    pq.write_table(table(100), source)
    plan = scorer.prepare(source, url, tmp_path / "out")
    put(url, (MODELS / "sum3.onnx").read_bytes())
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        pytest.raises((PreflightError, ModelError), match="not the one that was planned"),
    ):
        scorer.execute(plan, client=cluster)
    assert not (tmp_path / "out").exists()


def test_pictures_beside_an_input_on_a_store_are_scored(bucket, tmp_path):
    model = identity(tmp_path / "m.onnx", TensorProto.FLOAT, ["N", 1, 2, 2])
    for level in range(100):
        file = io.BytesIO()
        Image.new("L", (2, 2), level).save(file, "PNG")
        put(f"{bucket}/data/pictures/{level} ü.png", file.getvalue())
    file = io.BytesIO()
    paths = [f"pictures/{level} ü.png" for level in range(99)] + [
        f"{bucket}/data/pictures/99 ü.png",
        "pictures/gone.png",
    ]
    pq.write_table(pa.table({"path": paths}), file)
    source = put(f"{bucket}/data/in.parquet", file.getvalue())
    scorer.run(source, model, tmp_path / "out", feed="x=path|image(scale=1)", keep="none", max_bad_rows="1")
    assert [np.ravel(one).tolist() for one in read(tmp_path / "out")["y"].to_pylist()] == [[i] * 4 for i in range(100)]
