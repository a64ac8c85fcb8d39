"""Progress on terminals of any size and in logs; nothing of it stays on the terminal after the run."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time

import numpy as np
import pytest
from support.pseudo_terminal import PseudoTerminal
from support.runs import MODELS, command, write
from support.watched_runs import HALF, TICK, Clock, ended

from scorer.display.tables import width
from scorer.display.terminal import Terminal, Watcher
from scorer.events import (
    Notice,
    PartFailed,
    PartRetried,
    PlanReady,
    Stopping,
)
from scorer.report.live import DRAW_S, Lines, Live, block, line
from scorer.report.progress import Progress, Snapshot

DENSE = MODELS / "dense28.onnx"


SLOW = ("--batch-rows", 8, "--part-bytes", "96KiB", "--no-tune", "--threads", 1)


READY = PlanReady(parts=10, done=0, rows=1000, rows_done=0, output="out", where="2 threads of this process")


@pytest.mark.parametrize("columns", [40, 60, 80, 119, 120, 121, 160, 300])
@pytest.mark.parametrize("lines", [True, False])
def test_no_live_line_reaches_the_edge_of_the_window(columns, lines):
    shown = block(HALF, Terminal(columns=columns, lines=lines, colours=True))
    assert max(map(width, shown)) < columns
    assert lines or "\n".join(shown).isascii()


def test_live_lines_show_every_fact_at_80_columns():
    assert block(HALF, Terminal(columns=80)) == [
        "  " + "#" * 43 + "." * 27 + "  62%",
        "  time       13 s, 20 to 25 s left",
        "  rows       4,960,000 of 8,000,000, 12 quarantined, 9,120 filtered",
        "  speed      1,203,000 rows/s now, 1,150,000 on average",
        "  parts      79 of 128 committed, 12 from an earlier run, 3 retried",
        "  data       312.0 MB read, 84.1 MB written",
        "  workers    2, 8 threads, 812.3 MB of memory",
    ]


def test_a_wide_window_has_two_blocks():
    assert len(block(HALF, Terminal(columns=80))) == 7
    assert len(block(HALF, Terminal(columns=160))) == 4


def test_the_line_of_a_log_shows_the_same_facts():
    assert line(HALF) == (
        " 62%  79 of 128 parts  1,203,000 rows/s, 1,150,000 on average  20 to 25 s left  812.3 MB  12 quarantined"
        "  3 parts retried"
    )


def test_before_a_speed_is_known_the_plan_s_forecast_is_shown():
    progress = Progress(clock := Clock())
    progress(PlanReady(parts=10, done=0, rows=1000, rows_done=0, output="out", where="", forecast_s=(30.0, 90.0)))
    clock.now += 10
    assert "10 s, 20 to 80 s left (forecast)" in "\n".join(block(progress.snapshot(), Terminal(columns=80)))


def test_progress_adds_up_and_survives_json():
    progress = Progress(clock := Clock())
    assert progress.to_dict() == {}
    progress(READY)
    for part in range(5):
        clock.now += 1
        progress(ended(part, tries=2 if part == 3 else 1))
    for event in (PartRetried(part=3), PartRetried(part=7), PartFailed(part=8, error="x"), TICK):
        progress(event)
    seen = progress.snapshot()
    assert (seen.done, seen.failed, seen.retried, seen.rows_done, seen.scored) == (5, 1, 2, 500, 500)
    assert (seen.bytes_read, seen.bytes_written, seen.workers, seen.threads) == (15_000, 5_000, 1, 2)
    assert (seen.rows_per_s, seen.rows_per_s_now) == pytest.approx((100, 100))
    told = json.loads(json.dumps(progress.to_dict()))
    assert Snapshot.from_dict({"host": "a", **told}).to_dict() == told
    assert Snapshot.from_dict({"host": "a"}) is None


def test_messages_are_printed_above_the_live_lines(window):
    clock = Clock()
    live = Live(window, Watcher(window), clock)
    live(READY)
    for part in range(6):
        clock.now += 1
        live(ended(part))
        live(TICK)
    live(Notice(text="the model was\x1b[31m halved"))
    live(PartFailed(part=7, error="bad\nmore"))
    assert window.screen.lines == [
        "scoring 1,000 rows in 10 parts, on 2 threads of this process",
        "the model was\\x1b[31m halved",
        "part 7 failed: bad",
        "  " + "━" * 42 + "─" * 28 + "  60%",
        "  time       6 s, 2 to 7 s left",
        "  rows       600 of 1,000",
        "  speed      100 rows/s now, 100 on average",
        "  parts      6 of 10 committed, 1 failed",
        "  data       18.0 kB read, 6.0 kB written",
        "  workers    1, 2 threads, 300.0 MB of memory",
    ]


def test_live_draws_a_few_times_a_second_and_not_for_each_part(window):
    clock = Clock()
    live = Live(window, Watcher(window), clock)
    live(PlanReady(parts=100_000, done=0, rows=10_000_000, rows_done=0, output="", where=""))
    for part in range(10_000):
        clock.now += 0.001
        live(ended(part))
        if part % 50 == 0:
            live(TICK)
    assert window.writes <= 10 / DRAW_S + 2


def test_a_signal_handler_can_announce_stopping_while_lines_are_drawn(window):
    watcher = Watcher(window)
    live = Live(window, watcher, clock := Clock())
    live(READY)
    with watcher._lock:  # the drawing that the handler interrupts
        live(Stopping(text="stopping: soon"))
    clock.now += 1
    live(TICK)
    assert "stopping: soon" in window.screen.lines
    assert any(one.endswith("stopping") for one in window.screen.lines)


@pytest.mark.slow
def test_synchronous_mode_for_debuggers_draws_nothing_in_place(tmp_path):
    write(tmp_path / "in.parquet", {f"f{i}": np.ones(10, np.float32) for i in range(28)})
    seen = PseudoTerminal("run", tmp_path / "in.parquet", "--model", DENSE, "--cluster", "synchronous")
    assert seen.end() == 0
    assert "\x1b[J" not in seen.output


def test_a_log_gets_a_line_every_few_seconds_and_fewer_after_hours():
    stream, clock = io.StringIO(), Clock()
    lines = Lines(stream, clock)
    lines(PlanReady(parts=10_000, done=0, rows=1_000_000, rows_done=0, output="out", where="2 threads"))
    lines(Notice(text="a notice"))
    for part in range(60):
        clock.now += 1
        lines(ended(part))
        lines(TICK)
    first = stream.getvalue().splitlines()
    assert first[:2] == ["scoring 1,000,000 rows in 10,000 parts, on 2 threads", "a notice"]
    assert len(first) == 2 + 12
    assert first[-1].startswith("  1%  60 of 10,000 parts  100 rows/s, 100 on average  ")
    assert "\x1b" not in stream.getvalue()
    clock.now += 10_000
    before = len(stream.getvalue().splitlines())
    for _ in range(600):
        clock.now += 1
        lines(TICK)
    assert len(stream.getvalue().splitlines()) - before <= 11


@pytest.mark.parametrize("columns", [*(pytest.param(n, marks=pytest.mark.slow) for n in (60, 80)), 160])
def test_a_run_on_a_terminal_shows_its_lines_and_leaves_a_summary(fewer28, tmp_path, columns):
    seen = PseudoTerminal(
        "run", fewer28, "--model", DENSE, "--output", tmp_path / "out", *SLOW, columns=columns, rows=40
    )
    during = list(seen.until(lambda screen: re.search(r"[1-9]\d* of \d+ committed", screen.text)).lines)
    assert any(set("━╸─") & set(one) for one in during)  # nothing is full yet where parts are many
    labels = re.findall(r"(?m) {2}(time|rows|speed|parts|data|workers) {2}", "\n".join(during))
    assert sorted(labels) == ["data", "parts", "rows", "speed", "time", "workers"]
    assert len(during) == (5 if columns == 160 else 8)
    assert seen.end() == 0
    assert "━" not in seen.screen.text
    assert "committed" not in seen.screen.text
    assert "60,000 rows in = 60,000 scored + 0 quarantined + 0 filtered" in seen.screen.text
    assert len(seen.screen.lines) < 24
    assert not seen.screen.hidden


@pytest.mark.slow
def test_ctrl_c_leaves_a_clean_terminal(fewer28, tmp_path):
    arguments = ("run", fewer28, "--model", DENSE, "--output", tmp_path / "out", *SLOW)
    seen = PseudoTerminal(*arguments)
    seen.until(lambda screen: re.search(r"[1-9]\d* of \d+ committed", screen.text))
    seen.type("\x03")
    assert seen.end() == 130
    text = seen.screen.text
    assert "stopping: parts that have started are finished" in text
    assert "Error: " in text
    assert "━" not in text
    assert "^C" not in text
    assert seen.screen.column == 0
    again = PseudoTerminal(*arguments)
    assert again.end() == 0
    assert "from an earlier run" in again.screen.text


@pytest.mark.slow
def test_a_window_made_narrow_during_a_run_keeps_no_old_lines(floats28, tmp_path):
    seen = PseudoTerminal("run", floats28, "--model", DENSE, "--output", tmp_path / "out", *SLOW, columns=100, rows=40)
    seen.until(lambda screen: re.search(r"[1-9]\d* of \d+ committed", screen.text))
    seen.resize(50, 40)
    seen.screen.resize(50)
    ends = time.monotonic() + 1
    whole = lambda screen: sum("committed" in one for one in screen.lines) == 1  # noqa: E731 - none: half a frame was read
    seen.until(lambda screen: time.monotonic() > ends and whole(screen))
    seen.type("\x03")
    assert seen.end() == 130
    assert "━" not in seen.screen.text


@pytest.mark.slow
def test_no_color_removes_the_colours_and_keeps_the_lines(fewer28, tmp_path):
    seen = PseudoTerminal("run", fewer28, "--model", DENSE, "--output", tmp_path / "out", *SLOW, NO_COLOR="1")
    seen.until("committed")
    assert seen.end() == 0
    assert not re.search(r"\x1b\[[0-9;]*m", seen.output)


@pytest.mark.slow
def test_a_dumb_terminal_gets_lines_only(tmp_path):
    write(tmp_path / "in.parquet", {f"f{i}": np.ones(10, np.float32) for i in range(28)})
    seen = PseudoTerminal("run", tmp_path / "in.parquet", "--model", DENSE, TERM="dumb")
    assert seen.end() == 0
    assert "\x1b" not in seen.output


@pytest.mark.slow
def test_quiet_shows_the_summary_only(tmp_path):
    write(tmp_path / "in.parquet", {f"f{i}": np.ones(10, np.float32) for i in range(28)})
    seen = PseudoTerminal("run", tmp_path / "in.parquet", "--model", DENSE, "--quiet")
    assert seen.end() == 0
    assert seen.screen.lines[0].startswith("10 rows in = 10 scored")


def test_a_refusal_on_a_terminal_removes_the_lines(tmp_path):
    write(tmp_path / "in.parquet", {"a": [1.0]})
    seen = PseudoTerminal("run", tmp_path / "in.parquet", "--model", DENSE, columns=60)
    assert seen.end() == 3
    assert seen.screen.lines[0].startswith("Error: ")
    assert "getting ready" not in seen.screen.text


@pytest.mark.parametrize("what", ["plan", "inspect", "run"])
def test_escapes_in_names_are_shown_not_sent_on_a_terminal_with_colours(tmp_path, what):
    name = "a\x1b[2J\x1b]0;x\x07"
    write(tmp_path / "in.parquet", {name: np.ones(9, np.float32), "b": np.ones(9, np.float32)})
    asked = {
        "plan": ("plan", "in.parquet", "--model", MODELS / "lying.onnx"),
        "inspect": ("inspect", MODELS / "lying.onnx", "--input", "in.parquet"),
        "run": ("run", "in.parquet", "--model", MODELS / "lying.onnx", "-v"),
    }[what]
    seen = PseudoTerminal(*asked, "--by-position", cwd=tmp_path)
    assert seen.end() == 0, seen.screen.text
    assert "\x1b[2J" not in seen.output
    assert "\x07" not in seen.output
    assert "\\x1b[2J" in seen.screen.text or what == "run"


@pytest.mark.slow
def test_status_reads_files_only_and_follows_a_run_to_its_end(floats28, tmp_path):
    run = PseudoTerminal("run", floats28, "--model", DENSE, "--output", tmp_path / "out", *SLOW[2:], "--batch-rows", 1)
    run.until(lambda screen: re.search(r"[1-9]\d* of \d+ committed", screen.text))
    ends = time.monotonic() + 2.5
    run.until(lambda _: time.monotonic() > ends)
    found = json.loads(command("status", tmp_path / "out", "--json").stdout)
    assert found["state"] == "running"
    assert 0 < found["done"] <= found["parts"]
    assert {"rows_per_s", "rows_per_s_now", "left_s", "memory_bytes", "workers", "bytes_read", "age_s"} <= found.keys()
    watch = PseudoTerminal("status", tmp_path / "out", "--watch")
    watch.until("committed")
    assert run.end() == 0
    assert watch.end() == 0
    assert "━" not in watch.screen.text
    assert watch.screen.lines[0] == f"done: {tmp_path / 'out'}"[:80]


@pytest.mark.slow
def test_ctrl_c_ends_watching_and_the_run_continues(floats28, tmp_path):
    run = PseudoTerminal("run", floats28, "--model", DENSE, "--output", tmp_path / "out", *SLOW)
    run.until(lambda screen: re.search(r"[1-9]\d* of \d+ committed", screen.text))
    watch = PseudoTerminal("status", tmp_path / "out", "--watch")
    watch.until("running: ")
    watch.type("\x03")
    assert watch.end() == 0
    assert "Traceback" not in watch.screen.text
    before = run.screen.text
    run.until(lambda screen: screen.text != before)
    run.type("\x03")
    assert run.end() == 130


def test_status_reports_a_driver_without_recent_heartbeat(tmp_path):
    folder = tmp_path / "out.scorer"
    folder.mkdir()
    state = {"host": "elsewhere", "pid": 4711, "now": time.time() - 3600, "beat": 7, "token": "x"}
    (folder / "lock").write_text(json.dumps(state | HALF.to_dict()))
    shown = command("status", tmp_path / "out").stdout
    assert "last heartbeat 1 h 0 min ago" in shown
    assert "repeat the command to continue" in shown
    assert "79 of 128 committed" in shown


def test_a_shell_completes_commands_flags_words_and_files(tmp_path):
    def completed(*words):
        asked = {
            "_SCORER_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["scorer", *words]),
            "COMP_CWORD": str(len(words)),
        }
        import subprocess

        code = "import sys; sys.argv = ['scorer']; from scorer.cli.main import main; main(prog_name='scorer')"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | asked, check=False
        )
        return done.stdout.split()

    assert "plain,status" in completed("st")
    assert "plain,--max-bad-rows" in completed("run", "--max")
    assert completed("run", "--cluster", "pro") == ["plain,processes"]
    assert completed("run", "--model", "m") == ["file,m"]
    assert completed("run", "-m", "m") == ["file,m"]
    assert completed("run", "-o", "m") == ["dir,m"]
    assert completed("run", "in") == ["file,in"]
    assert completed("status", "sc") == ["dir,sc"]
