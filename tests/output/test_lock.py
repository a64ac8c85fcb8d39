"""The lock of an output: who holds it, and when it is taken over."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support.runs import MODELS, ROOT, write

from scorer.host import process
from scorer.output import lock

RUN = """
import sys
import scorer
from scorer.output import lock
lock.held.__wrapped__.__defaults__ = (float(sys.argv[4]),)
sys.path.insert(0, sys.argv[5])
try:
    scorer.run(sys.argv[1], sys.argv[2], sys.argv[3], feed="x=a,b,c", transform="slow:wait", cluster="synchronous",
               observers=[lambda event: print(getattr(event, "text", ""), flush=True)])
except scorer.ScorerError as error:
    print(error)
    sys.exit(error.exit_code)
"""
WAITS = """
import os, sys, time

def wait(frame):
    while sys.argv[6] == "waits" and os.path.exists(sys.argv[3] + ".scorer/lock"):
        time.sleep(0.05)
    return frame
"""


def in_namespace():
    """Return the start of a command that runs in a PID namespace of its own; skip if that is not allowed."""
    start = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*start, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs `unshare --pid`, which is root's")
    return start


def driver(tmp_path, stale_s, then="ends"):
    """Start a run in a PID namespace of its own; its only part waits for ever if `then` is `waits`."""
    (tmp_path / "modules").mkdir(exist_ok=True)
    (tmp_path / "modules" / "slow.py").write_text(WAITS)
    arguments = (tmp_path / "in.parquet", MODELS / "sum3.onnx", tmp_path / "out", stale_s, tmp_path / "modules", then)
    return subprocess.Popen(
        [*in_namespace(), sys.executable, "-c", RUN, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_in_another_pid_namespace_keeps_its_lock_while_it_lives(tmp_path):
    write(tmp_path / "in.parquet", {name: np.ones(10, np.float32) for name in "abc"})
    path = tmp_path / "out.scorer" / "lock"
    first = driver(tmp_path, 60, "waits")
    try:
        until = time.monotonic() + 60
        while not path.exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert (lock.read(path) or {})["host"] == process.myself()["host"]
        assert lock.is_alive(lock.read(path)) is None  # its id means another process here, or none
        second = driver(tmp_path, 60)
        text, _ = second.communicate(timeout=80)
        assert second.returncode == 3, text
        assert "the output is locked by a process in another container on" in text
        assert "another run is writing this output" in text
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    third = driver(tmp_path, 15)
    text, _ = third.communicate(timeout=80)
    assert third.returncode == 0, text
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == ["part-00000.parquet"]


@pytest.mark.parametrize(
    "changed",
    [
        {"host": "elsewhere"}, {"boot": "another"}, {"pid_namespace": "pid:[1]"},
        {"pid": None}, {"pid": -1}, {"pid": 0}, {"pid": "7"},
    ],
)  # fmt: skip
def test_only_the_heartbeat_tells_whether_a_process_that_is_not_visible_here_lives(changed):
    assert lock.is_alive(process.myself() | changed) is None


@pytest.mark.parametrize("changed", [{"pid": 2**22 + 1}, {"pid": 2**70}, {"born": "1"}, {"token": "of an older run"}])
def test_a_process_that_does_not_exist_here_is_dead(changed):
    assert lock.is_alive(process.myself() | changed) is False


def test_the_lock_of_an_older_version_is_read_as_before(tmp_path):
    older = {name: value for name, value in process.myself().items() if name not in {"boot", "pid_namespace"}}
    assert lock.is_alive(older) is True
    assert lock.is_alive(older | {"born": "1"}) is False


def test_a_lock_without_a_process_is_taken_over_once_its_heartbeat_stops(tmp_path):
    path = tmp_path / "lock"
    path.write_text(json.dumps({"beat": 3}))
    with lock.held(path, lambda _: None, stale_s=0.2):
        assert lock.is_alive(lock.read(path)) is True
