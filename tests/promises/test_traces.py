"""Runs leave nothing behind in their process: one after the other, at the same time, failing or interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from support.runs import BACKENDS, MODELS, ROOT, write

import scorer


@pytest.fixture
def source(tmp_path):
    """2,000 rows in ten row groups; the column `nan` holds a NaN."""
    rng = np.random.default_rng(5)
    columns = {f"f{i}": rng.standard_normal(2000).astype(np.float32) for i in range(28)}
    return write(tmp_path / "in.parquet", {**columns, "nan": np.full(2000, np.nan, np.float32)}, row_group_size=200)


def script(name, *arguments, folder, timeout=110):
    """Run a script of tests/support in its own process and temporary folder; return what it prints as JSON."""
    temporary = folder / "temporary"
    temporary.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / name), *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.slow
def test_overlapping_runs_leave_the_process_as_it_was(source, tmp_path, backend):
    found, messages = script("overlapping_runs.py", backend, source, tmp_path, folder=tmp_path)
    ended = found["ended"]
    assert found["changes"] == {}
    assert (ended.pop("failing"), ended.pop("failing-warm")) == ("RunFailed", "PreflightError")
    assert (ended.pop("interrupted"), ended.pop("interrupted-twice")) == ("Interrupted", "KeyboardInterrupt")
    assert set(ended.values()) == {"done"}
    assert "distributed" not in messages  # a run that ends must not let Dask's messages of the others through


@pytest.mark.minutes
@pytest.mark.parametrize(("backend", "runs"), [("synchronous", 20), ("embedded", 40), ("processes", 3)])
@pytest.mark.slow
def test_memory_does_not_grow_from_run_to_run(source, tmp_path, backend, runs):
    found, _ = script("many_runs.py", backend, runs, source, tmp_path, folder=tmp_path)
    assert found["more"] == {}
    if runs > 10:  # otherwise one page more or less decides
        assert found["mb_per_run"] < 0.15


KILLED = """
import os, signal, sys
import scorer
from scorer.cluster import readiness

if __name__ == "__main__":
    readiness._ask = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    scorer.run(*sys.argv[1:4], feed="input=" + sys.argv[4], cluster="processes", workers=1, threads=1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["synchronous", "processes"])
def test_the_next_run_removes_what_a_death_left_while_workers_were_checked(source, tmp_path, backend):
    output, names = tmp_path / "out", ",".join(f"f{i}" for i in range(28))
    (tmp_path / "killed.py").write_text(KILLED)
    done = subprocess.run(
        [sys.executable, tmp_path / "killed.py", source, MODELS / "dense28.onnx", output, names],
        capture_output=True, timeout=100, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "out.scorer").glob("seen-*"))) == 1
    options = {"workers": 1, "threads": 1} if backend == "processes" else {}
    scorer.run(source, MODELS / "dense28.onnx", output, feed=f"input={names}", cluster=backend, **options)
    assert not list((tmp_path / "out.scorer").glob("seen-*"))


@pytest.mark.parametrize(
    ("backend", "when", "how"),
    [
        ("embedded", "after", "fork"), ("embedded", "during", "multiprocessing"),
        ("processes", "after", "multiprocessing"), ("processes", "during", "fork"),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_a_forked_process_can_run_after_and_during_a_run_of_its_parent(source, tmp_path, backend, when, how):
    found, _ = script("forked_runs.py", backend, when, how, source, tmp_path, folder=tmp_path)
    assert found == {"exit": 0, "scored": {"parent": 2000, "again": 2000}}
    assert json.loads((tmp_path / "child.json").read_text()) == {"scored": 2000, "same_config": True}
