"""Short versions of the fault scripts of `.ci/nightly`: kills, stops at every step, disturbed workers, damaged files.

pytest -m slow
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter

import pytest
from faults import kill_runs, kill_workers
from support.runs import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("cluster", ["embedded", "processes"])
def test_a_killed_run_loses_no_row_and_doubles_none(cluster, tmp_path):
    tally = kill_runs.kill_many(2, 5, [cluster], tmp_path)
    assert tally.clean, tally
    assert tally.resumed == 2
    assert tally.seen_whole > 0


def script(name, *arguments):
    """Run a script in its own process: it forks, which needs a process without threads."""
    path = ROOT / "tests" / "faults" / name
    done = subprocess.run([sys.executable, path, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


def test_a_run_that_stops_at_any_step_is_completed_by_the_same_command():
    table = script("stop_at_every_step.py", 12)
    steps = {line.split()[1] for line in table.splitlines() if line.startswith(("before", "after"))}
    assert steps >= {"mkdir", "open", "fsync", "unlink"}
    assert table.splitlines()[-1].endswith("interruptions, 0 not exact after the same command")
    assert int(table.splitlines()[-1].split()[0]) > 50


def test_killed_paused_and_retired_workers_do_not_change_the_result(tmp_path):
    done = Counter()
    assert kill_workers.one_run(tmp_path, 1, random.Random(2), done, 3) == []
    assert done["kill"] >= 1


def test_damaged_and_hostile_files_get_an_error_and_write_nothing():
    found = json.loads(script("damaged_files.py", 12, 12, "--seed", 3))
    assert found["parquet files"] == found["onnx files"] == 12
    assert found["crafted files"] > 15
    assert not [name for name in found if name.startswith("FAULT")]
