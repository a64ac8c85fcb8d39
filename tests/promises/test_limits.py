"""Where threads or file descriptors run out, the error says so and what to raise; no traceback, no lock is left."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from support.runs import MODELS, ROOT, command, write

WITHOUT = """
import sys, threading

start, refused = threading.Thread.start, sys.argv.pop(1)

def limited(thread):
    if thread.name.startswith(refused):
        raise RuntimeError("can't start new thread")
    start(thread)

threading.Thread.start = limited
from scorer.cli.main import main
main()
"""
"""A command whose threads of one name cannot start: root has no limit on processes."""

LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""The start of a command that may open only so many files."""


@pytest.fixture
def asked(tmp_path):
    """The arguments of a run over twelve files."""
    for i in range(12):
        write(tmp_path / "in" / f"{i}.parquet", {f"f{j}": np.ones(50, np.float32) for j in range(28)})
    return ["run", str(tmp_path / "in"), "--model", str(MODELS / "dense28.onnx"), "--output", str(tmp_path / "out")]


@pytest.mark.parametrize("name", ["ThreadPoolExecutor", "scorer-load", "scorer-lock"])
def test_without_a_thread_the_error_says_so(asked, tmp_path, name):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, name, *asked, "--cluster", "synchronous"],
        capture_output=True, text=True, timeout=100, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert done.stderr.startswith("Error: this process cannot start another thread")
    assert "`ulimit -u`" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.scorer").exists()
    assert command(*asked, "--cluster", "synchronous").returncode == 0


@pytest.mark.parametrize("files", [8, 12, 16])
def test_without_a_file_descriptor_the_error_says_so_and_the_next_run_finishes(asked, tmp_path, files):
    limit = [sys.executable, "-c", LIMITED, str(files)]
    done = command(*asked, "--cluster", "embedded", "--part-bytes", "4096", start=limit)
    assert done.returncode in {4, 5}, done.stderr
    assert "Too many open files" in done.stderr
    assert "raise the limit on open files with `ulimit -n`" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.scorer" / "lock").exists()
    assert not (tmp_path / "out").exists()
    assert command(*asked, "--cluster", "embedded", "--part-bytes", "4096").returncode == 0
