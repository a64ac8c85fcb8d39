"""events.jsonl: what programs that follow a run can rely on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.runs import MODELS, ROOT, cli, read, report_of, write
from support.watched_runs import STARTED, finished

import scorer
from scorer import events
from scorer.errors import RunFailed
from scorer.report.eventlog import EventLog
from scorer.report.progress import Progress

SUM, DENSE, GATHER = MODELS / "sum3.onnx", MODELS / "dense28.onnx", MODELS / "gather.onnx"
FEED = {"feed": "x=a,b,c", "keep": "id", "part_bytes": 4096, "batch_rows": 64}


@pytest.fixture
def source(tmp_path):
    """2,000 rows in ten row groups."""
    rng = np.random.default_rng(5)
    columns = {"id": np.arange(2000)} | {name: rng.standard_normal(2000).astype(np.float32) for name in "abc"}
    return write(tmp_path / "in.parquet", columns, row_group_size=200)


def lines(output):
    """Return every line of the log; fail if a line is not JSON."""
    return [json.loads(line) for line in (Path(f"{output}.scorer") / "events.jsonl").read_text("utf-8").splitlines()]


def kinds(output):
    return [line["event"] for line in lines(output)]


def test_the_log_has_the_start_then_every_part_then_the_end(source, tmp_path, backend):
    report = scorer.run(source, SUM, tmp_path / "out", **FEED, **backend)
    told = lines(tmp_path / "out")
    first, last = told[0], told[-1]
    assert first["event"] == "RunStarted"
    assert (first["plan"], first["model"], first["pid"]) == (report.plan, report.model, os.getpid())
    assert first["run"] == f"out-{report.plan[:8]}"
    assert first["versions"] == report.versions
    assert [line["event"] for line in told if line["event"] in {"PlanReady", "Published"}] == ["PlanReady", "Published"]
    assert (last["event"], last["exit_code"], last["error"]) == ("RunEnded", 0, "")
    assert last["seconds"] >= report.seconds
    assert abs(last["time"] - time.time()) < 60


def test_parts_have_the_names_and_values_of_the_ledger(source, tmp_path):
    report = scorer.run(source, SUM, tmp_path / "out", **FEED)
    parts = [line for line in lines(tmp_path / "out") if line["event"] == "PartFinished"]
    assert len(parts) == report.parts
    ledger = {row["part"]: row for row in pq.read_table(tmp_path / "out.scorer" / "ledger.parquet").to_pylist()}
    for line in parts:
        row = ledger[line["part"]]
        said = {name: value for name, value in line.items() if name not in {"time", "event", "tries"}}
        assert said == pytest.approx({name: row[name] for name in said}, abs=0.001)
    assert sum(line["rows"] for line in parts) == report.counts.rows == 2000


def test_a_part_is_in_the_log_as_soon_as_it_is_committed(source, tmp_path):
    seen = []

    def look(event):
        if isinstance(event, events.PartFinished):
            seen.append(lines(tmp_path / "out")[-1]["part"] == event.receipt.proof.part)

    scorer.run(source, SUM, tmp_path / "out", observers=[look], **FEED)
    assert seen == [True] * 10


def test_a_resumed_run_is_appended_and_another_plan_replaces_the_log(source, tmp_path):
    bad = write(tmp_path / "bad.parquet", {"idx": np.array([0, 1, 99, 1] * 10)}, row_group_size=4)
    asked = {"tune": False, "batch_rows": 4}
    with pytest.raises(RunFailed, match="10 rows could not be scored"):
        scorer.run(bad, GATHER, tmp_path / "out", **asked)
    before = lines(tmp_path / "out")
    assert (before[-1]["event"], before[-1]["exit_code"]) == ("RunEnded", 1)
    assert "10 rows could not be scored" in before[-1]["error"]
    scorer.run(bad, GATHER, tmp_path / "out", max_bad_rows="50%", **asked)
    after = lines(tmp_path / "out")
    assert after[: len(before)] == before
    assert [line["event"] for line in after[len(before) :]][:1] == ["RunStarted"]
    assert after[-1]["exit_code"] == 0
    scorer.run(bad, GATHER, tmp_path / "out", max_bad_rows="50%", **asked)  # already done
    assert lines(tmp_path / "out") == after
    scorer.run(source, SUM, tmp_path / "out", overwrite=True, **FEED)
    assert kinds(tmp_path / "out").count("RunStarted") == 1
    assert lines(tmp_path / "out")[0]["plan"] == report_of(tmp_path / "out")["plan"]


def test_a_refused_run_writes_no_log(source, tmp_path):
    code, _, _ = cli("run", source, "--model", SUM, "--output", tmp_path / "out", "--feed", "x=a,b,nothing")
    assert (code, (tmp_path / "out.scorer").exists()) == (3, False)


def test_events_before_the_start_are_in_the_log(source, tmp_path):
    scorer.run(source, SUM, tmp_path / "out", dashboard=True, **FEED)
    assert kinds(tmp_path / "out")[:3] == ["RunStarted", "Notice", "PlanReady"]


def test_the_log_is_not_part_of_the_proof(source, tmp_path):
    scorer.run(source, SUM, tmp_path / "out", **FEED)
    (tmp_path / "out.scorer" / "events.jsonl").write_text("nonsense")
    assert cli("verify", tmp_path / "out", "--deep")[0] == 0
    (tmp_path / "out.scorer" / "events.jsonl").unlink()
    assert cli("verify", tmp_path / "out", "--deep")[0] == 0
    assert scorer.run(source, SUM, tmp_path / "out", **FEED).already_done


def test_a_log_that_cannot_be_written_gives_one_warning_and_the_run_continues(source, tmp_path):
    (tmp_path / "out.scorer" / "events.jsonl").mkdir(parents=True)
    told = []
    scorer.run(source, SUM, tmp_path / "out", observers=[told.append], **FEED)
    said = [event.text for event in told if isinstance(event, events.Notice)]
    assert len([text for text in said if "events.jsonl is no longer written" in text]) == 1
    assert read(tmp_path / "out").num_rows == 2000


def test_a_full_disk_ends_the_log_and_not_the_run(tmp_path):
    code = (
        "import resource, sys; sys.path.insert(0, 'tests')\n"
        "from pathlib import Path\n"
        "from support.watched_runs import STARTED, finished\n"
        "from scorer.report.eventlog import EventLog\n"
        "from scorer.report.progress import Progress\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "said = []\n"
        f"log = EventLog(Path({str(tmp_path / 'events.jsonl')!r}), Progress(), said.append)\n"
        "log(STARTED)\n"
        "for part in range(100): log(finished(part))\n"
        "print(len(said), said[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.startswith("1 ")
    assert "events.jsonl is no longer written" in done.stdout
    assert (tmp_path / "events.jsonl").stat().st_size == 2000


def test_a_line_that_was_cut_short_does_not_damage_the_next(source, tmp_path):
    scorer.run(source, SUM, tmp_path / "out", **FEED)
    path = tmp_path / "out.scorer" / "events.jsonl"
    plan = lines(tmp_path / "out")[0]["plan"]
    whole = len(path.read_bytes().splitlines())
    path.write_bytes(path.read_bytes()[:-20])
    log = EventLog(path, Progress(), print)
    log(events.RunStarted(**{name: getattr(STARTED, name) for name in STARTED.__slots__} | {"plan": plan}))
    log(events.RunEnded(exit_code=0, seconds=1.0))
    after = path.read_bytes().splitlines()
    assert len(after) == whole + 2
    assert [json.loads(line)["event"] for line in after[-2:]] == ["RunStarted", "RunEnded"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_run_leaves_complete_lines(fewer28, tmp_path, number, code):
    run = subprocess.Popen(
        [sys.executable, "-m", "scorer", "run", str(fewer28), "--model", str(DENSE), "--output", str(tmp_path / "out"),
         "--batch-rows", "8", "--part-bytes", "96KiB", "--threads", "1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    path, until = tmp_path / "out.scorer" / "events.jsonl", time.monotonic() + 60
    while time.monotonic() < until and not (path.exists() and b"PartFinished" in path.read_bytes()):
        time.sleep(0.02)
    run.send_signal(number)
    assert run.wait() == code
    committed = [line["name"] for line in lines(tmp_path / "out") if line["event"] == "PartFinished"]
    (staged,) = (tmp_path / "out.scorer").glob("work-*/parts")
    assert set(committed) <= {name.name for name in staged.iterdir()}
    if number == signal.SIGINT:
        assert "Stopping" in kinds(tmp_path / "out")
        assert (lines(tmp_path / "out")[-1]["event"], lines(tmp_path / "out")[-1]["exit_code"]) == ("RunEnded", 130)


def test_ticks_are_few_and_contain_the_progress(tmp_path):
    now = [0.0]
    progress = Progress(lambda: now[0])
    log = EventLog(tmp_path / "out.scorer", progress, print, lambda: now[0])
    both = [events.PlanReady(parts=1, done=0, rows=10, rows_done=0, output="out", where="here")]
    both += [events.Tick(workers=2, threads=4, memory_bytes=5)] * (5 * 3600 * 24)
    log(STARTED)
    for event in both:
        now[0] += 0.2
        progress(event)
        log(event)
    told = [json.loads(line) for line in (tmp_path / "out.scorer").read_text().splitlines()]
    ticks = [line for line in told if line["event"] == "Tick"]
    assert 1440 <= len(ticks) <= 2000  # a day: one every five seconds at first, one a minute in the end
    assert {"workers", "threads", "memory_bytes", "rows_done", "rows_per_s_now", "done", "parts"} <= ticks[0].keys()
    assert ticks[0]["time"] == pytest.approx(5.0, abs=0.5)


def test_a_hundred_thousand_parts_take_less_than_50_mb_and_a_tenth_of_a_millisecond_each(tmp_path):
    log = EventLog(tmp_path / "events.jsonl", Progress(), print)
    log(STARTED)
    parts = [finished(part) for part in range(10_000)]
    began = time.process_time()
    for part in parts:
        log(part)
    each = (time.process_time() - began) / len(parts)
    assert (tmp_path / "events.jsonl").stat().st_size * 10 < 50_000_000
    assert each < 100e-6
