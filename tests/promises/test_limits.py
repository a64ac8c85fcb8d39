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

NO_MORE_FILES = """
import os, resource, sys, threading

start, moment = threading.Thread.start, sys.argv.pop(1)

def limited(thread):
    global moment
    if moment and thread.name.startswith(moment):
        moment = ""
        free = os.open(os.devnull, os.O_RDONLY)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    start(thread)

threading.Thread.start = limited
from scorer.cli.main import main
main()
"""
"""A command that can open no further file once its first thread of one name starts."""


@pytest.fixture
def asked(tmp_path):
    """The arguments of a run over twelve files."""
    for i in range(12):
        write(tmp_path / "in" / f"{i}.parquet", {f"f{j}": np.ones(50, np.float32) for j in range(28)})
    return ["run", str(tmp_path / "in"), "--model", str(MODELS / "dense28.onnx"), "--output", str(tmp_path / "out")]


@pytest.mark.parametrize("name", ["ThreadPoolExecutor", "scorer-load", "scorer-lock"])
@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("moment", "code"), [("scorer-load", 4), ("ThreadPoolExecutor", 4), ("scorer-lock", 4), ("Dask", 5)]
)
@pytest.mark.slow
def test_without_a_file_descriptor_the_error_says_so_and_the_next_run_finishes(asked, tmp_path, moment, code):
    done = subprocess.run(
        [sys.executable, "-c", NO_MORE_FILES, moment, *asked, "--cluster", "embedded", "--part-bytes", "4096"],
        capture_output=True, text=True, timeout=100, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Too many open files" in done.stderr
    assert "raise the limit on open files with `ulimit -n`" in done.stderr
    assert "Traceback" not in done.stderr
    if moment != "scorer-lock":  # with no descriptor at all the lock cannot be read again: the next run takes it over
        assert not (tmp_path / "out.scorer" / "lock").exists()
    assert not (tmp_path / "out").exists()
    assert command(*asked, "--cluster", "embedded", "--part-bytes", "4096").returncode == 0


def test_without_a_temporary_folder_the_error_says_so(asked, tmp_path):
    without = """
import sys, tempfile
folders = [sys.argv.pop(1)]
tempfile._candidate_tempdir_list = lambda: folders
from scorer.cli.main import main
main()
"""
    missing = str(tmp_path / "missing")
    done = subprocess.run(
        [sys.executable, "-c", without, missing, *asked, "--cluster", "embedded"], cwd=tmp_path,
        capture_output=True, text=True, timeout=100, check=False,
        env={name: value for name, value in os.environ.items() if name != "TMPDIR"} | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert done.stderr.startswith("Error: there is no usable temporary folder\n")
    assert missing in done.stderr
    assert "set TMPDIR" in done.stderr
    assert not (tmp_path / "out.scorer").exists()
