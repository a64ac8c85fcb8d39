"""Settings of the process that several runs change at once."""

from __future__ import annotations

import os

import dask
import pytest

from scorer.cluster._overrides import DASK_CONFIG, ENVIRONMENT

SPILL, OWN = "distributed.worker.memory.spill", "distributed.nanny.pre-spawn-environ.SCORER_TEST"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_settings_are_restored_in_whatever_order_the_runs_end(order, monkeypatch):
    monkeypatch.setenv("SCORER_THERE", "mine")
    monkeypatch.delenv("SCORER_NEW", raising=False)
    before = dask.config.get(SPILL)
    runs = [
        (DASK_CONFIG.set({SPILL: i, OWN: i}), ENVIRONMENT.set({"SCORER_THERE": str(i), "SCORER_NEW": str(i)}))
        for i in range(3)
    ]
    for config, variables in runs:
        config.__enter__()
        variables.__enter__()
    left = [0, 1, 2]
    for one in order:
        assert dask.config.get(SPILL) == dask.config.get(OWN) == left[-1]
        for setting in runs[one]:
            setting.__exit__(None, None, None)
        left.remove(one)
    assert dask.config.get(SPILL) == before
    assert dask.config.get(OWN, default=None) is None
    assert os.environ["SCORER_THERE"] == "mine"
    assert "SCORER_NEW" not in os.environ


def test_what_a_setting_was_before_is_known_during_runs():
    before = dask.config.get(SPILL)
    assert DASK_CONFIG.before(SPILL) == before
    with DASK_CONFIG.set({SPILL: 1}), DASK_CONFIG.set({SPILL: 2}):
        assert dask.config.get(SPILL) == 2
        assert DASK_CONFIG.before(SPILL) == before


def test_a_setting_that_the_user_changes_during_a_run_stays():
    before = dask.config.get(SPILL)
    with DASK_CONFIG.set({SPILL: 0.1}):
        dask.config.set({SPILL: 0.9})
    assert dask.config.get(SPILL) == 0.9
    dask.config.set({SPILL: before})
