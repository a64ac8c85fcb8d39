"""Timing batch sizes before a run: bounded, cached for this machine; threads that wait for the GIL are noticed."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from support.runs import MODELS, write

import scorer
from scorer.events import Stages
from scorer.host import cache as cache_
from scorer.plan.prepared import Plan
from scorer.preflight import tuning
from scorer.preflight.cutting import BATCH_ROWS
from scorer.report.outcome import bottleneck_of
from scorer.scoring import batches

ROWS = 60_000


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "scorer" / "tuning"


@pytest.fixture
def floats(tmp_path, monkeypatch):
    """A file of few rows, for which batch sizes are timed all the same."""
    monkeypatch.setattr(tuning, "_LONG_ENOUGH_S", 0.0)
    monkeypatch.setattr(tuning, "_clearly_fastest", lambda _turns, default, _half: default)  # on a busy machine, too
    rng = np.random.default_rng(0)
    return write(tmp_path / "in.parquet", {f"f{i}": rng.standard_normal(ROWS).astype(np.float32) for i in range(28)})


def test_a_result_is_cached_and_the_plan_says_so(floats, cache, tmp_path, monkeypatch):
    first = scorer.prepare(floats, MODELS / "dense28.onnx", tmp_path / "out").check()
    (kept,) = cache.iterdir()
    assert json.loads(kept.read_text())["batch_rows"] == first.batch_rows
    monkeypatch.setattr(tuning, "probe", lambda *_: pytest.fail("probed again"))
    again = scorer.prepare(floats, MODELS / "dense28.onnx", tmp_path / "out2").check()
    assert again.batch_rows == first.batch_rows
    assert again.scorers[0].trials == (*first.scorers[0].trials, "cached")


def test_another_model_is_timed_again(floats, cache, tmp_path):
    scorer.prepare(floats, MODELS / "dense28.onnx", tmp_path / "out").check()
    scorer.prepare(floats, MODELS / "sum3.onnx", tmp_path / "out", feed="x=f0..f2").check()
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_cache_file_is_ignored(floats, cache, tmp_path):
    scorer.prepare(floats, MODELS / "dense28.onnx", tmp_path / "out").check()
    next(cache.iterdir()).write_text("{")
    assert "cached" not in scorer.prepare(floats, MODELS / "dense28.onnx", tmp_path / "out").check().scorers[0].trials


def test_nothing_is_cached_if_the_folder_cannot_be_written(floats, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert scorer.prepare(floats, MODELS / "dense28.onnx", tmp_path / "out").check()


def test_nothing_is_cached_on_a_shared_file_system(cache, monkeypatch):
    monkeypatch.setattr(cache_, "_file_system", lambda _: "nfs4")
    cache_.store("key", {"batch_rows": 1})
    assert cache_.load("key") is None
    assert not cache.exists()


class Slow:
    """A session whose calls hold the GIL for as long as they take, or do not."""

    def __init__(self, *, holds, seconds=0.004):
        self.holds, self.seconds, self.fits = holds, seconds, None

    def run(self, _, feeds):
        (x,) = feeds.values()
        until = time.thread_time() + self.seconds
        if not self.holds:
            time.sleep(self.seconds)
        while self.holds and time.thread_time() < until:
            pass
        return [x[:, :1]]


def bound():
    from scorer.binding.spec import Binding, Feed, Fetch

    feed = Feed(
        tensor="x", kind="numeric", dtype="float32", columns=("a", "b"), shape=(2,), on_null="nan", on_lossy="error"
    )
    return Binding(feeds=(feed,), fetches=(Fetch(tensor="y", kind="flat", columns=("y",), type="float"),))


@pytest.mark.slow
@pytest.mark.parametrize("holds", [True, False])
def test_threads_that_wait_for_the_interpreters_lock_are_noticed(holds):
    table = pa.table({name: np.zeros(4096, np.float32) for name in "ab"})
    for _ in range(6):  # other tests run beside this one
        found = tuning.probe(Slow(holds=holds), bound(), table, 1e-6, 1e9)
        if found.together is not None and (found.together < 1.3) == holds:
            break
    if found.together is None:
        assert "two threads: the machine is busy" in found.trials
    else:
        assert (found.together < 1.3) == holds
    assert any("two threads" in trial for trial in found.trials)


def test_a_heavy_model_is_not_tried_with_large_batches():
    table = pa.table({name: np.zeros(16_384, np.float32) for name in "ab"})
    found = tuning.probe(Slow(holds=False, seconds=0.02), bound(), table, 2e-4, 1e4)
    assert [trial.split()[0] for trial in found.trials] == ["256"]


class Clock:
    """A clock that advances only while the model is called, however busy the machine is; it is the model, too."""

    now, fits, spec = 0.0, None, SimpleNamespace(device="cpu")

    def perf_counter(self):
        return self.now

    thread_time = perf_counter

    def run(self, _, feeds):
        self.now += 0.0001
        return [next(iter(feeds.values()))[:, :1]]

    def take(self, rows):
        """Advance by 10 us for each row, and by nothing for the call."""
        self.now += 1e-5 * len(rows)
        return [rows[:, :1]]


def test_a_first_call_that_took_long_does_not_make_a_model_heavy(monkeypatch):
    table = pa.table({name: np.zeros(300, np.float32) for name in "ab"})
    clock = Clock()
    monkeypatch.setattr(tuning, "time", clock)
    run, calls = clock.run, []

    def slow_at_first(names, feeds):
        calls.append(names)
        clock.now += 0.05 if len(calls) == 1 else 0
        return run(names, feeds)

    clock.run = slow_at_first
    row_s = tuning.row_seconds(clock, bound(), table)
    assert tuning.nominal_rate(bound(), row_s) == tuning._LIGHT_RATE


@pytest.mark.parametrize("threads", [1, 3])
def test_as_many_threads_try_at_once_as_will_score(threads):
    """Each thread scores the whole sample, so a session for one thread at a time makes each of them slower."""
    lock, gate = threading.Lock(), threading.Barrier(threads, timeout=10)
    warm: list[bool] = []

    class OneAtATime(Slow):
        def run(self, names, feeds):
            if warm:
                gate.wait()  # until each has begun to count
            warm.append(True)  # the first call is one thread's alone
            with lock:
                return super().run(names, feeds)

    table = pa.table({name: np.zeros(256, np.float32) for name in "ab"})
    found = tuning.probe(OneAtATime(holds=False, seconds=0.02), bound(), table, 1e-4, 4e4, threads)
    assert found.rows_per_s <= 256 / 0.02 / (1 + (threads - 1) / 2)  # the first waits for none, the last for all


@pytest.mark.parametrize(("together", "spawns", "threads", "expected"), [
    (1.0, True, None, "processes"), (1.9, True, None, "embedded"), (None, True, None, "embedded"),
    (1.0, False, None, "embedded"), (1.0, True, 2, "embedded"),
])  # fmt: skip
def test_processes_are_chosen_only_where_they_help_and_can_start(floats, together, spawns, threads, expected, tmp_path):
    from dataclasses import replace

    plan = scorer.prepare(floats, MODELS / "dense28.onnx", tmp_path / "out", threads=threads)
    scorers = tuple(replace(one, together=together) for one in plan.check().scorers)
    changed = replace(plan, frozen=replace(plan.check(), scorers=scorers, plan_hash=""), spawns=spawns)
    assert isinstance(changed, Plan)
    assert changed.cluster == expected


@pytest.mark.parametrize(("spent", "seconds", "stage", "gain"), [
    ({"infer": 8.0, "decode": 1.0, "write": 1.0}, 5.0, "infer", 5.0),
    ({"infer": 2.0}, 5.0, "wait", 5.0),
    ({"read": 6.0, "infer": 4.0}, 5.0, "read", 2.5),
])  # fmt: skip
def test_the_bottleneck_is_what_takes_the_most_of_the_threads_time(spent, seconds, stage, gain):
    found = bottleneck_of(Stages(**spent), seconds, 2)
    assert found.stage == stage
    assert found.gain == pytest.approx(gain)
    assert sum(found.shares.values()) == pytest.approx(1, abs=1e-3)
    assert found.change in str(found)


def test_the_start_of_processes_is_a_stage_and_no_reason_for_smaller_parts():
    found = bottleneck_of(Stages(pack=3.0), 5.0, 2, start_s=6.0)
    assert (found.stage, found.shares["start"], found.shares["wait"]) == ("start", 0.6, 0.1)
    assert "parts" not in found.change
    assert bottleneck_of(Stages(pack=3.0), 5.0, 2, start_s=99.0).shares["start"] == pytest.approx(0.7)


@pytest.mark.parametrize(("spent", "stage", "share"), [
    ({"read": 40.0, "infer": 9.5}, "infer", 0.95),  # read while others were scored
    ({"read": 40.0, "infer": 3.0}, "network", 0.7),
    ({"read": 2.0, "infer": 3.0, "write": 30.0}, "write", 0.7),
    ({"read": 1.0, "infer": 3.0}, "wait", 0.6),
])  # fmt: skip
def test_of_a_store_only_what_scoring_threads_waited_for_counts(spent, stage, share):
    found = bottleneck_of(Stages(**spent), 5.0, 2, on_store=True)
    assert (found.stage, found.shares[stage]) == (stage, share)
    assert sum(found.shares.values()) == pytest.approx(1, abs=1e-3)


def test_nothing_done_has_no_bottleneck():
    assert bottleneck_of(Stages(), 1.0, 2) is None


def test_a_heavy_net_is_given_the_rows_at_which_it_streams_its_weights_best():
    """Each call costs as much as 40 rows, as where many weights are read for each."""
    table = pa.table({name: np.zeros(256, np.float32) for name in "ab"})

    class Wide(Slow):
        def run(self, _, feeds):
            (x,) = feeds.values()
            time.sleep(0.008 + 0.0002 * len(x))
            return [x[:, :1]]

    found = tuning.probe(Wide(holds=False), bound(), table, 1e-3, 1e5, 2)
    assert [trial.split()[0] for trial in found.trials] == ["8", "32", "128"]
    assert found.batch_rows == 128
    assert found.together is None


def test_batches_of_a_heavy_net_are_tried_only_in_a_long_run():
    assert not tuning.worthwhile(bound(), 1e-3, 59_000, 2, "cpu")
    assert tuning.worthwhile(bound(), 1e-3, 61_000, 2, "cpu")
    assert tuning.worthwhile(bound(), 1e-5, 2_000_000, 2, "cpu")
    assert not tuning.worthwhile(bound(), 1e-5, 1_900_000, 2, "cpu")


def test_a_short_run_times_nothing_and_caches_nothing(floats, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "_LONG_ENOUGH_S", 2.0)
    plan = scorer.prepare(floats, MODELS / "dense28.onnx", tmp_path / "out").check()
    assert plan.batch_rows == BATCH_ROWS
    assert not plan.scorers[0].trials
    assert not cache.exists()


def test_preparing_columns_is_not_mistaken_for_slow_batches(monkeypatch):
    """Preparing the columns costs as much as twenty calls, which is no reason for larger batches."""
    clock, table = Clock(), pa.table({name: np.zeros(16_384, np.float32) for name in "ab"})
    monkeypatch.setattr(tuning, "_CALL_S", 0.0)
    monkeypatch.setattr(tuning, "time", clock)
    score = batches.score

    def looking(*args, **more):
        clock.now += 20 * 0.0001
        return score(*args, **more)

    clock.run = lambda _, feeds: clock.take(next(iter(feeds.values())))
    monkeypatch.setattr(batches, "score", looking)
    assert tuning.probe(clock, bound(), table, 1e-5, 5e5).batch_rows == BATCH_ROWS


def test_only_the_rows_of_the_limit_count(floats, tmp_path):
    assert scorer.prepare(floats, MODELS / "dense28.onnx", tmp_path / "out").check().scorers[0].trials
    assert not scorer.prepare(floats, MODELS / "dense28.onnx", tmp_path / "out", limit=1000).check().scorers[0].trials
