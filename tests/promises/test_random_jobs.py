"""Random tables, models and flags give what pyarrow, numpy and the bare runtime say; tests/faults/random_jobs.py."""

from __future__ import annotations

import pytest
from faults.random_jobs import run_many, working_folder

CASES, CHUNKS = 500, 10


@pytest.mark.parametrize("chunk", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, CHUNKS))])
def test_random_jobs_give_what_the_oracle_says(chunk, capfd):
    with working_folder() as folder:
        found = run_many([f"ci-{n}" for n in range(chunk, CASES, CHUNKS)], folder)
    assert (found["cases"], found["different"]) == (CASES // CHUNKS, 0), capfd.readouterr().err
    assert found["refused"] < 0.15 * found["cases"]
