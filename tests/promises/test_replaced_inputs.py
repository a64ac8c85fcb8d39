"""An input that is replaced by another file of the same size and time: no output has rows of both."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.runs import MODELS, cli, oracle, read, write

import scorer
from scorer.dataset.cursors import InputCache
from scorer.dataset.reader import Source
from scorer.dataset.reader import read as read_rows
from scorer.errors import InputChanged, RunFailed
from scorer.storage.files import file_id

SUM = MODELS / "sum3.onnx"
ROWS = 20_000
FLAGS = {"feed": "x=a,b,c", "part_bytes": "16KiB", "batch_rows": 64, "tune": False}
PLAIN = {"compression": "none", "use_dictionary": False}
TRANSFORM = """
import os, shutil

def replacing(frame):
    if os.path.exists("go"):
        os.rename("go", "gone")
        times = os.stat("in.parquet")
        shutil.copyfile("other.parquet", "in.parquet")
        os.utime("in.parquet", ns=(times.st_atime_ns, times.st_mtime_ns))
    return frame
"""


def table(first):
    """Return rows whose ids start at `first`; no column gets smaller by another encoding."""
    rng = np.random.default_rng(first)
    columns = {name: rng.standard_normal(ROWS).astype(np.float32) for name in "abc"}
    return {"id": first + rng.permutation(ROWS), "noise": rng.standard_normal(ROWS), **columns}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """20,000 rows in one row group, and other.parquet beside it, which has as many bytes."""
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "in.parquet", table(0), **PLAIN)
    other = write(tmp_path / "other.parquet", table(10**6), **PLAIN)
    assert path.stat().st_size == other.stat().st_size
    return path


def put(other, path, way="written"):
    """Put another file in the place of `path`, with the time of the old one: as cp and touch -r, or as rsync -t."""
    times = path.stat()
    if way == "written":
        shutil.copyfile(other, path)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    else:
        shutil.copyfile(other, path.with_suffix(".new"))
        os.utime(path.with_suffix(".new"), ns=(times.st_atime_ns, times.st_mtime_ns))
        path.with_suffix(".new").rename(path)
    now = path.stat()
    assert (now.st_size, now.st_mtime_ns) == (times.st_size, times.st_mtime_ns)


def exact(output, path):
    """Check that the output has the rows of one file, each with its own score."""
    found, rows = read(output), pq.ParquetFile(path).read()
    assert found["id"].to_pylist() == rows["id"].to_pylist()
    matrix = np.stack([rows[name].to_numpy() for name in "abc"], axis=1)
    assert np.allclose(found["total"].to_numpy(), oracle(SUM, {"x": matrix})["total"])
    assert cli("verify", output, "--deep")[0] == 0


def test_an_input_that_is_replaced_between_two_parts_is_refused_and_resumed_when_it_is_back(source, tmp_path, backend):
    way = "renamed" if backend["cluster"] == "synchronous" else "written"
    shutil.copyfile(source, tmp_path / "away")

    def replace(event):
        if isinstance(event, scorer.events.PartFinished) and not (tmp_path / "done").exists():
            (tmp_path / "done").touch()
            put(tmp_path / "other.parquet", source, way)

    with pytest.raises(RunFailed, match="the input changed after it was planned"):
        scorer.run(source, SUM, tmp_path / "out", observers=[replace], **FLAGS, **backend)
    assert not (tmp_path / "out").exists()
    put(tmp_path / "away", source, way)
    report = scorer.run(source, SUM, tmp_path / "out", **FLAGS, **backend)
    assert report.parts_resumed > 0
    exact(tmp_path / "out", source)


@pytest.mark.parametrize("keep", ["all", "id"])
@pytest.mark.slow
def test_an_input_that_is_replaced_before_kept_columns_are_copied_is_refused(source, tmp_path, backend, keep):
    (tmp_path / "replacing_transform.py").write_text(TRANSFORM)
    whole = FLAGS | {"part_bytes": "64MiB", "transform": "replacing_transform:replacing", "keep": keep}
    plan = scorer.prepare(source, SUM, tmp_path / "out", **whole, **backend)
    assert plan.frozen.storage.copied
    (tmp_path / "go").touch()
    with pytest.raises(RunFailed, match="the input changed after it was planned"):
        scorer.execute(plan)
    assert (tmp_path / "gone").exists()
    assert not (tmp_path / "out").exists()


def test_an_input_that_is_replaced_before_the_first_part_is_refused(source, tmp_path, backend):
    plan = scorer.prepare(source, SUM, tmp_path / "out", **FLAGS, **backend)
    put(tmp_path / "other.parquet", source)
    with pytest.raises(RunFailed, match="the input changed after it was planned"):
        scorer.execute(plan)
    assert not (tmp_path / "out").exists()


def test_a_resumed_run_refuses_an_input_that_is_replaced_before_its_first_part(source, tmp_path):
    class Cut(BaseException):
        pass

    def stop(event):
        if isinstance(event, scorer.events.PartFinished):
            raise Cut

    with pytest.raises(Cut):
        scorer.run(source, SUM, tmp_path / "out", observers=[stop], cluster="synchronous", **FLAGS)
    plan = scorer.prepare(source, SUM, tmp_path / "out", cluster="synchronous", **FLAGS)
    assert plan.resumes
    put(tmp_path / "other.parquet", source)
    with pytest.raises(RunFailed, match="the input changed after it was planned"):
        scorer.execute(plan)


def test_a_process_with_other_mounts_compares_with_the_file_that_it_read_first(source, tmp_path):
    """Workers on other hosts see other inodes than the driver, so they compare only with their own."""
    planned = Source(id=file_id(str(source)), start=0, stop=2000)
    schema = pq.read_schema(source)
    put(tmp_path / "other.parquet", source)
    elsewhere = InputCache()
    assert read_rows(planned, schema, (), (64,), elsewhere).table.num_rows == 2000
    with pytest.raises(InputChanged, match="replaced"):
        read_rows(planned, schema, (), (64,), InputCache(same_mounts=True))
    put(tmp_path / "other.parquet", source)
    with pytest.raises(InputChanged):
        read_rows(planned, schema, (), (64,), elsewhere)
