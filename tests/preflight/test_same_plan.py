"""The same command gives the same parts and the same batch rows, with and without cached tuning, on a busy machine."""

from __future__ import annotations

import shutil
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs import MODELS

import scorer
from scorer.preflight import tuning

ROWS = 120_000


@pytest.fixture
def busy():
    """A thread that computes all the time, as another program would."""
    stop = threading.Event()

    def work():
        values = np.ones((300, 300))
        while not stop.is_set():
            values @ values

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """A function that plans a run of random floats, with an empty or a warm cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    table = pa.table({f"f{i}": rng.standard_normal(ROWS, dtype=np.float32) for i in range(28)})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=ROWS // 4)

    def plan(*, empty_cache, **options):
        if empty_cache:
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        frozen = scorer.prepare(tmp_path / "in.parquet", MODELS / "dense28.onnx", tmp_path / "out", **options).check()
        return frozen.n_parts, frozen.most_rows, frozen.batch_rows

    return plan


def test_five_plans_on_a_busy_machine_have_the_same_parts_and_batch_rows(planned, busy):
    assert len({planned(empty_cache=i < 3, threads=2) for i in range(5)}) == 1


@pytest.mark.slow
def test_plans_that_are_tuned_have_the_same_parts(planned, busy, monkeypatch):
    monkeypatch.setattr(tuning, "_LONG_ENOUGH_S", 0.0)
    found = [planned(empty_cache=i < 3, threads=2) for i in range(5)]
    assert len({parts for parts, *_ in found}) == 1


def test_a_short_run_does_not_use_what_a_long_one_found(planned, tmp_path, monkeypatch):
    before = planned(empty_cache=True)
    monkeypatch.setattr(tuning, "_LONG_ENOUGH_S", 0.0)
    monkeypatch.setattr(tuning, "_clearly_fastest", lambda *_: 256)
    assert planned(empty_cache=True)[2] == 256
    assert list((tmp_path / "cache" / "scorer" / "tuning").iterdir())
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert planned(empty_cache=False) == before


def test_a_size_on_which_the_halves_of_a_probe_disagree_is_neither_used_nor_cached(planned, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "_LONG_ENOUGH_S", 0.0)
    monkeypatch.setattr(tuning, "_clearly_fastest", lambda _turns, _default, half: 256 if half else 1024)
    assert planned(empty_cache=True)[2] == tuning.BATCH_ROWS
    assert not (tmp_path / "cache" / "scorer" / "tuning").exists()


def turns(**costs):
    """Return turns of batch sizes with these costs, all alike."""
    return {int(n[1:]): [tuning._Trial(row_s=cost, cost=cost)] * 2 for n, cost in costs.items()}


@pytest.mark.parametrize(("costs", "chosen"), [
    ({"n256": 1.0, "n4096": 1.06}, 4096), ({"n256": 1.0, "n4096": 1.2}, 256),
    ({"n256": 1.0, "n1024": 1.05, "n4096": 1.5}, 1024), ({"n256": 1.0, "n1024": 1.04}, 1024),
])  # fmt: skip
def test_a_size_must_be_clearly_faster_than_the_default(costs, chosen):
    assert tuning._clearly_fastest(turns(**costs), 4096, 0) == chosen
