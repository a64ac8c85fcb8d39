"""The progress moves before the first part ends, never goes back, and costs no message for short parts."""

from __future__ import annotations

import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from support.runs import MODELS, write
from support.watched_runs import TICK, Clock, ended

import scorer
from scorer.events import PartFailed, PartFinished, PartRetried, PlanReady, Tick
from scorer.output.place import Place
from scorer.report.progress import Progress
from scorer.scoring.job import JOBS, ROWS_IN_PARTS, Spec

READY = PlanReady(parts=10, done=0, rows=1000, rows_done=0, output="out", where="2 threads of this process")


def tick(**rows):
    """Return a tick with so many rows inside parts, such as p3=40."""
    return replace(TICK, in_parts={int(name[1:]): count for name, count in rows.items()})


@pytest.mark.slow
def test_the_rows_of_one_long_part_are_shown_while_it_is_scored(tmp_path, backend):
    rows = 400_000 if "processes" in backend.values() else 40_000  # a worker process only reports parts over a second
    columns = {f"f{i}": np.zeros(rows, np.float32) for i in range(28)}
    source = write(tmp_path / "in.parquet", columns, row_group_size=rows)
    progress, shown, at_first_end = Progress(), [], []

    def watch(event):
        progress(event)
        snapshot = progress.snapshot()
        if snapshot is not None:
            shown.append(snapshot.rows_done)
        if isinstance(event, PartFinished) and not at_first_end:
            at_first_end.append(max(shown[:-1]))

    scorer.run(
        source, MODELS / "dense28.onnx", tmp_path / "out", batch_rows=1, part_bytes="1GiB", keep="none", tune=False,
        where=["f0 >= 0"], **backend, observers=[watch],
    )  # fmt: skip
    assert 0 < at_first_end[0] < rows
    assert shown == sorted(shown)
    assert shown[-1] == rows
    assert len(set(shown)) > 2


def test_rows_inside_parts_count_once_and_never_sink_or_exceed_the_total():
    progress = Progress(clock := Clock())
    progress(READY)
    shown = []

    def after(*events):
        for event in events:
            clock.now += 1
            progress(event)
        shown.append(progress.snapshot().rows_done)
        return shown[-1]

    assert after(tick(p0=40, p1=10)) == 50
    assert after(ended(0)) == 110, "the part's own rows take the place of those inside it"
    assert after(tick(p1=60)) == 160
    assert after(PartRetried(part=1)) == 160, "the rows of a lost part are finished again"
    assert after(tick(p1=10)) == 160
    assert after(tick(p1=70)) == 170
    assert after(PartFailed(part=1, error="x"), tick()) == 170
    for part in range(2, 10):
        after(ended(part), tick(p1=100))
    assert after(tick(p1=500)) == 1000
    assert shown == sorted(shown)


def test_before_a_part_ends_the_speed_is_that_of_the_rows_inside_parts():
    progress = Progress(clock := Clock())
    progress(READY)
    clock.now += 4
    progress(tick(p0=40))
    seen = progress.snapshot()
    assert (seen.rows_done, seen.rows_per_s, seen.rows_per_s_now, seen.left_s) == (40, 10, 10, None)


@pytest.fixture
def job(tmp_path, monkeypatch):
    """The job of a run in a worker process, with the messages that it sends and its clock."""
    write(tmp_path / "in.parquet", {f"f{i}": np.zeros(10, np.float32) for i in range(28)})
    plan = scorer.prepare(tmp_path / "in.parquet", MODELS / "dense28.onnx", tmp_path / "out").frozen
    spec = replace(Spec.of(plan, Place.at(tmp_path / "out", None).staging("1")), driver="elsewhere:1")
    sent = []
    JOBS.add(spec, publish_event=lambda _, message: sent.append(pickle.loads(message)))
    clock = Clock()
    monkeypatch.setattr("scorer.scoring.job.time", SimpleNamespace(monotonic=clock))
    yield JOBS.job(spec.key), sent, clock
    monkeypatch.undo()
    JOBS.remove(spec.key)


def test_a_worker_sends_nothing_for_a_part_that_takes_a_second(job):
    job, sent, clock = job
    for part in range(5):
        count = job.row_counter(part, 0)
        for _ in range(10):
            clock.now += 0.1
            count(7)
    assert sent == []
    assert JOBS.rows_in_parts(job.spec.key) == dict.fromkeys(range(5), 70)


def test_a_worker_sends_the_rows_of_long_parts_at_most_once_a_second(job):
    job, sent, clock = job
    first, second = job.row_counter(3, filtered=5), job.row_counter(4, filtered=0)
    for _ in range(500):
        clock.now += 0.01
        first(1)
        second(2)
    assert [index for index, _ in sent] == [ROWS_IN_PARTS] * len(sent)
    assert 3 <= len(sent) <= 5
    assert sent[-1][1][3] > 300
    assert sent[-1][1][4] > 600


def test_events_on_disk_have_no_rows_inside_parts():
    from scorer.events import to_dict

    assert "in_parts" not in to_dict(tick(p0=1))
    assert Tick(workers=1, threads=1, memory_bytes=0).in_parts == {}
