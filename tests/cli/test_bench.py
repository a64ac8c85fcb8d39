"""`scorer bench` compares scorer with hand-written loops, and shows no time before the scores agree."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs import MODELS, cli, write

from scorer.cli.bench import _compare
from scorer.errors import PlanError

ROWS = 20_000
PEER = """
import json, sys
import numpy as np, onnxruntime as ort, pyarrow as pa, pyarrow.parquet as pq
job = json.load(open(sys.argv[1]))
table = pa.concat_tables(pq.read_table(path) for path in job["input"])
x = np.stack([table[name].to_numpy() for name in job["feeds"][0]["columns"]], axis=1)
session = ort.InferenceSession(job["model"], providers=["CPUExecutionProvider"])
scores = session.run(None, {job["feeds"][0]["tensor"]: x})[0].reshape(-1)
import os
os.makedirs(job["output"])
pq.write_table(pa.table({job["fetches"][0]["columns"][0]: scores + %s}), job["output"] + "/0.parquet")
print(json.dumps({"versions": {}}))
"""


@pytest.fixture
def floats(tmp_path):
    rng = np.random.default_rng(0)
    return write(tmp_path / "in.parquet", {f"f{i}": rng.standard_normal(ROWS).astype(np.float32) for i in range(28)},
                 row_group_size=5_000)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_all_contenders_are_listed_and_agree(floats, tmp_path):
    peers = tmp_path / "peers"
    peers.mkdir()
    (peers / "honest.py").write_text(PEER % 0)
    (peers / "absent.py").write_text("import sys; print('not installed'); sys.exit(77)")
    (peers / "_shared.py").write_text("raise SystemExit(1)")
    command = ("bench", floats, "--model", MODELS / "dense28.onnx", "--turns", 1, "--peers", peers,
               "--peers-python", sys.executable)  # fmt: skip
    code, out, err = cli(*command, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["left_out"] == {"absent": "not installed"}
    named = {one["name"]: one for one in found["contenders"]}
    assert list(named) == ["upper bound", "scorer", "upper bound again", "default pool", "default loop", "honest"]
    assert named["honest"]["agrees"].endswith("in order")
    assert named["scorer"]["agrees"] == "equal, in order"
    assert all(one["seconds"] > 0 and one["peak_bytes"] > 2**20 for one in named.values())
    assert set(named["scorer"]["stages"]) == {"read", "decode", "pack", "infer", "unpack", "write"}
    assert found["left_out"] == {"absent": "not installed"}
    assert found["curve"]
    assert {path.name for path in tmp_path.iterdir()} <= {"in.parquet", "peers"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_peer_with_different_scores_is_an_error(floats, tmp_path):
    peers = tmp_path / "peers"
    peers.mkdir()
    (peers / "wrong.py").write_text(PEER % 0.5)
    code, out, err = cli("bench", floats, "--model", MODELS / "dense28.onnx", "--turns", 1, "--peers", peers)
    assert code == 3
    assert "'wrong' computes different scores" in err
    assert out == ""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_job_file_with_a_table_of_feeds_is_measured_too(floats, tmp_path):
    table = pq.read_table(floats).append_column("a, b", pa.array(np.arange(ROWS)))
    write(tmp_path / "in.parquet", table, row_group_size=5_000)
    names = ", ".join(f'"f{i}"' for i in range(28))
    (tmp_path / "job.toml").write_text(
        f'input = "in.parquet"\nmodel = "{MODELS / "dense28.onnx"}"\nkeep = ["a, b"]\n[feed]\ninput = [{names}]\n'
    )
    code, out, err = cli("bench", "--config", tmp_path / "job.toml", "--turns", 1, "--json")
    assert code == 0, err
    named = {one["name"]: one for one in json.loads(out)["contenders"]}
    assert named["scorer"]["agrees"] == "equal, in order"


def test_too_few_rows_are_an_error(tmp_path):
    source = write(tmp_path / "in.parquet", {f"f{i}": np.ones(100, np.float32) for i in range(28)})
    code, _, err = cli("bench", source, "--model", MODELS / "dense28.onnx")
    assert code == 3
    assert "too few rows" in err


INF, NAN = float("inf"), float("nan")


def compared(tmp_path, expected, found):
    """Compare two outputs of one column as bench does."""
    for name, values in (("expected", expected), ("found", found)):
        write(tmp_path / name / "0.parquet", {"score": pa.array(values, pa.float32())})
    plan = SimpleNamespace(outputs=["score"])
    return _compare(tmp_path / "expected", tmp_path / "found", plan)


@pytest.mark.parametrize(
    "found", [[1.0, 3.0, INF], [1.0, 2.0, -INF], [1.0, 2.0, 9.0], [1.0, NAN, INF], [INF, 2.0, INF]]
)
def test_one_infinite_score_does_not_make_others_agree(tmp_path, found):
    with pytest.raises(PlanError, match="computes different scores"):
        compared(tmp_path, [1.0, 2.0, INF], found)


def test_equal_infinities_and_nans_agree(tmp_path):
    values = [1.0, INF, -INF, NAN]
    assert compared(tmp_path, values, values) == "equal, in order"
    assert compared(tmp_path, values, [NAN, -INF, 1.0, INF]) == "equal, in another order"
