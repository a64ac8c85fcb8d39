"""scorer lineage: each file of an output says which plan, model and input it is from."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.runs import MODELS, cli, write

import scorer

SUM3 = MODELS / "sum3.onnx"
FILES, ROWS = 20, 10


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An output of one file, joined from many small ones."""
    top = tmp_path_factory.mktemp("lineage")
    values = np.random.default_rng(1).standard_normal((FILES * ROWS, 3)).astype(np.float32)
    for i in range(FILES):
        write(top / "in" / f"{i:02}.parquet", dict(zip("abc", values[i * ROWS : (i + 1) * ROWS].T, strict=True)))
    scorer.run(top / "in", SUM3, top / "out", feed="x=a,b,c", cluster="synchronous")
    return top


def shown(file):
    code, text, errors = cli("lineage", file, "--json")
    assert code == 0, errors
    return json.loads(text)


def test_a_file_names_its_plan_model_and_input(made):
    plan = json.loads((made / "out.scorer" / "plan.json").read_text())
    (file,) = (made / "out").iterdir()
    found = shown(file)
    assert found["plan"] == plan["plan_hash"]
    assert found["scorer"] == scorer.__version__
    inner = hashlib.sha256(SUM3.read_bytes()).digest()
    assert found["model"] == {"path": str(SUM3), "digest": hashlib.sha256(inner).hexdigest()}
    assert (found["input"], found["files"], found["table"]) == (plan["request"]["input"], FILES, {})
    assert found["n_sources"] == FILES
    assert len(found["sources"]) == 16
    for i, source in enumerate(found["sources"]):
        path = made / "in" / f"{i:02}.parquet"
        stat = os.stat(path)
        assert source == {
            "path": str(path), "size": stat.st_size, "version": stat.st_mtime_ns, "start": 0, "stop": ROWS,
        }  # fmt: skip


def test_other_programs_find_the_model_in_the_metadata(made):
    (file,) = (made / "out").iterdir()
    metadata = pq.read_metadata(file).metadata
    assert metadata[b"_scorer_model"].decode() == f"{SUM3} sha256:{shown(file)['model']['digest']}"
    assert json.loads(metadata[b"_scorer_lineage"]) == shown(file)


def test_the_text_has_the_same(made):
    (file,) = (made / "out").iterdir()
    code, text, _ = cli("lineage", file)
    assert code == 0
    for words in (shown(file)["plan"], str(SUM3), "20 files", "rows of 4 other files"):
        assert words in text


def test_an_output_that_is_scored_again_has_its_own_lineage(made, tmp_path):
    scorer.run(made / "out", SUM3, tmp_path / "again", feed="x=a,b,c", prefix="new_", cluster="synchronous")
    (file,) = (tmp_path / "again").iterdir()
    assert [one["path"] for one in shown(file)["sources"]] == [str(next((made / "out").iterdir()))]
    assert list(pq.read_metadata(file).metadata).count(b"_scorer_lineage") == 1


def test_the_files_of_a_delta_table_have_it_too(made, tmp_path):
    deltalake = pytest.importorskip("deltalake")
    scorer.run(made / "in", SUM3, tmp_path / "table", feed="x=a,b,c", format="delta", cluster="synchronous")
    table = deltalake.DeltaTable(str(tmp_path / "table"))
    (file,) = table.file_uris()
    plan = json.loads((tmp_path / "table.scorer" / "plan.json").read_text())
    assert shown(file)["plan"] == plan["plan_hash"]
    scorer.run(tmp_path / "table", SUM3, tmp_path / "out", feed="x=a,b,c", prefix="p_", cluster="synchronous")
    (file,) = (tmp_path / "out").iterdir()
    assert shown(file)["table"] == {"kind": "delta", "location": str(tmp_path / "table"), "version": "0"}


@pytest.mark.parametrize("cluster", [{"cluster": "embedded"}, pytest.param({"workers": 2}, marks=pytest.mark.slow)])
def test_the_same_plan_gives_the_same_bytes(made, tmp_path, cluster):
    kind = {"cluster": "processes"} | cluster
    scorer.run(made / "in", SUM3, tmp_path / "out", feed="x=a,b,c", **kind)
    (first,), (second,) = ((top / "out").iterdir() for top in (made, tmp_path))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("in/00.parquet", 5, "the file has no lineage"),
        ("out", 3, "scorer lineage"),
        ("gone.parquet", 3, "the file does not exist"),
        ("out.scorer/plan.json", 3, "the file cannot be read"),
    ],
)
def test_what_has_no_lineage_is_an_error(made, name, code, says):
    got, out, errors = cli("lineage", made / name)
    assert (got, out) == (code, "")
    assert says in errors
