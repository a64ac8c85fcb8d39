"""Short versions of what `.ci/nightly` does for long: kills, faults at every step, disturbed workers, hostile files.

pytest -m slow
"""

from __future__ import annotations

import random
from collections import Counter

import chaos
import commit_steps
import fuzzing
import killing
import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("cluster", ["embedded", "processes"])
def test_a_run_that_is_killed_loses_and_doubles_nothing(cluster, tmp_path):
    tally = killing.kill_many(2, 5, [cluster], tmp_path)
    assert tally.clean, tally
    assert tally.resumed == 2
    assert tally.seen_whole > 0


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "replacing"])
def test_whatever_step_was_the_last_the_same_command_makes_it_whole(overwrite):
    steps = commit_steps.recorded(overwrite=overwrite)
    assert len(steps) > 50
    names = {step.split()[0] for step in steps}
    assert names >= {"mkdir", "open", "fsync", "link", "replace", "rename", "unlink", "rmdir", "receipt"}
    wrong = {}
    for at in range(int(overwrite), len(steps), 4):
        for after in (False, True):
            state, fault = commit_steps.interrupted(at, after=after, overwrite=overwrite)
            if fault:
                wrong[steps[at], after] = (state, fault)
    assert not wrong


def test_workers_that_are_killed_paused_and_retired_change_nothing(tmp_path):
    done = Counter()
    assert chaos.one_run(tmp_path, 1, random.Random(2), done, 3) == []
    assert done["kill"] >= 1


def test_damaged_and_hostile_files_get_an_error_and_write_nothing():
    found = fuzzing.fuzz(12, 12, 3)
    assert found["parquet files"] == found["onnx files"] == 12
    assert not [name for name in found if name.startswith("FAULT")]
