"""A run in a notebook cell: redrawn in place, interrupted and resumed, in real kernels."""

from __future__ import annotations

import itertools
import re
import signal
import socket
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.jupyter_kernel import at_home, kernel
from support.runs import FLIGHTS, read
from support.watched_runs import HALF, TICK, Clock, ended

import scorer
from scorer.display import html
from scorer.events import Notice, PartFailed, PlanReady, Stopping
from scorer.host import signals
from scorer.report import notebook
from scorer.report.live import READY, facts_of
from scorer.report.notebook import DRAW_S, Cell

ROWS, MANY = 84_292, 4
PROCESSES = """
from distributed import LocalCluster
loopback = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
cluster = LocalCluster(n_workers=2, threads_per_worker=1, **loopback)
client = asked["client"] = cluster.get_client()
"""
READ = PlanReady(parts=4, done=0, rows=4000, rows_done=0, output="out", where="2 threads of this process")


@pytest.fixture
def jupyter(tmp_path, monkeypatch):
    """A kernel with the arguments of a run that scores row by row and so takes some seconds."""
    at_home(tmp_path, monkeypatch)
    with kernel(tmp_path) as running:
        running.do(f"""
import os, signal, scorer
asked = dict(
    input={str(FLIGHTS / "flights.parquet")!r}, model={str(FLIGHTS / "late.onnx")!r}, output="out", keep="none",
    batch_rows=1, part_bytes="128KiB", threads=2, tune=False,
)
""")
        yield running


def committed(shown):
    """Numbers of committed parts that the display has shown."""
    found = [re.search(r"parts:? +(\d+) of (\d+)", text) for text in shown.drawn]
    return [int(match[1]) for match in found if match]


def some_committed(shown):
    return max(committed(shown), default=0) >= 3


# ---------------------------------------------------------------- what is drawn


class Place:
    """Records what a cell would show."""

    def __init__(self):
        self.shown = []

    def __call__(self, forms):
        self.shown.append(forms)

    @property
    def last(self):
        return self.shown[-1]


@pytest.fixture
def place():
    return Place()


def watched(place, *events, clock=None, each_s=DRAW_S):
    """A cell that has received these events, `each_s` apart."""
    clock = clock or Clock()
    found = Cell(place, clock)
    for event in events:
        clock.now += each_s
        found(event)
    return found


def test_the_cell_shows_the_figures_of_the_terminal(place):
    watched(place, READ, ended(0), TICK)
    assert place.shown[0]["text/plain"] == READY
    page, text = place.last["text/html"], place.last["text/plain"]
    assert 'aria-valuenow="' in page
    for part in ("scoring 4,000 rows in 4 parts, on 2 threads of this process", "1 of 4 committed", "300.0 MB"):
        assert part in page
        assert part in text


def test_every_fact_of_a_snapshot_is_in_the_cell():
    page = html.card("", notebook._blocks(HALF))
    for name, text in facts_of(HALF):
        assert name in page
        assert text in page


def test_drawn_no_more_than_a_few_times_a_second(place):
    watched(place, READ, *itertools.repeat(TICK, 1000), each_s=0.01)
    assert 30 <= len(place.shown) <= 10 / DRAW_S + 3


def test_a_signal_handler_draws_nothing(place):
    found = watched(place, READ, TICK)
    before = len(place.shown)
    found(Stopping(text="stopping: soon"))
    assert len(place.shown) == before
    found.abort()
    assert "stopping: soon" in place.last["text/plain"]
    assert "parts: 0 of 4 committed" in place.last["text/html"]


def test_the_last_messages_stay_visible(place):
    found = watched(
        place, READ, Notice(text="<b>first"), *(PartFailed(part=i, error=f"bad {i}\nmore") for i in range(50))
    )
    found.end("the end")
    page = place.last["text/html"]
    assert "... 44 earlier messages" in page
    assert "part 49 failed: bad 49" in page
    assert "more" not in page
    assert "<b>" not in page
    assert page.count("failed") == 8
    assert place.last["text/plain"].endswith("the end")


def test_a_disconnected_front_end_does_not_end_the_run():
    def gone(forms):
        raise BrokenPipeError

    watched(gone, READ, TICK).end("the end")


def test_without_a_kernel_progress_is_shown_only_on_request(tmp_path, capfd):
    asked = {"keep": "none", "tune": False, "limit": 1000}
    scorer.run(FLIGHTS / "flights.parquet", FLIGHTS / "late.onnx", tmp_path / "a", **asked)
    assert capfd.readouterr() == ("", "")
    scorer.run(FLIGHTS / "flights.parquet", FLIGHTS / "late.onnx", tmp_path / "b", progress=True, **asked)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("scoring 1,000 rows in ")


# ---------------------------------------------------------------- in a kernel


@pytest.mark.slow
def test_a_cell_shows_progress_and_ends_with_one_line(jupyter, tmp_path):
    shown = jupyter.do("scorer.run(**asked)")
    ids = {content["transient"]["display_id"] for content in shown.of("display_data", "update_display_data")}
    assert len(ids) == 1
    assert len(shown.of("display_data")) == 1
    seen = committed(shown)
    assert seen == sorted(seen)
    assert len(set(seen)) >= 4
    assert f"{ROWS:,} rows in = {ROWS:,} scored + 0 quarantined + 0 filtered; " in shown.drawn[-1]
    assert all("<div" in content["data"]["text/html"] for content in shown.of("update_display_data"))
    (result,) = shown.of("execute_result")
    assert "report.html" in result["data"]["text/html"]
    assert len(read(tmp_path / "out")) == ROWS
    again = jupyter.do("scorer.run(**asked)")
    assert "nothing was done" in again.drawn[-1]
    for quiet in ("progress=False", "observers=[lambda event: None]"):
        assert jupyter.do(f"scorer.run(**asked, {quiet});").of("display_data") == []
    assert jupyter.do("scorer.run(**asked, observers=[lambda event: None], progress=True);").drawn


@pytest.mark.slow
def test_widgets_stay_responsive_while_a_cell_scores(jupyter):
    subshell = jupyter.subshell()
    run = jupyter.send("report = scorer.run(**asked)")
    jupyter.follow(run, until=some_committed)
    answers = [jupyter.follow(jupyter.send("print(6 * 7)", subshell), within_s=5) for _ in range(3)]
    assert [shown.printed for shown in answers] == ["42\n"] * 3
    state = jupyter.follow(jupyter.send("print('report' in globals())", subshell), within_s=5)
    assert state.printed == "False\n"  # the cell was still running
    jupyter.interrupt()
    jupyter.follow(run)


@pytest.mark.parametrize(
    "workers", ["threads of the kernel", pytest.param("a cluster of the notebook", marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_an_interrupted_cell_finishes_running_parts_and_the_next_one_resumes(jupyter, tmp_path, workers):
    given = workers == "a cluster of the notebook"
    if given:
        jupyter.do(PROCESSES)
    run = jupyter.send("scorer.run(**asked)")
    jupyter.follow(run, until=some_committed)
    jupyter.interrupt()
    shown = jupyter.follow(run, within_s=20)
    jupyter.interrupt()  # a second click is meant for the run, not for the cluster of the notebook
    name, lines = shown.error
    assert (name, lines[0]) == ("Interrupted", "Interrupted: stopped on request; nothing was published")
    assert len(lines) == 3
    done = committed(shown)[-1]
    assert lines[1].split()[1] == str(done)
    assert "stopping: parts that have started are finished" in shown.drawn[-1]
    assert not (tmp_path / "out").exists()
    (work,) = (tmp_path / "out.scorer").glob("work-*")
    assert len(list((work / "parts").rglob("*.parquet"))) == done >= 3
    assert not list((work / "tmp").iterdir())
    jupyter.do("assert signal.getsignal(signal.SIGINT) is signal.default_int_handler")
    if given:
        assert jupyter.do("print(len(client.nthreads()), client.submit(sum, [1, 2]).result())").printed == "2 3\n"
    again = jupyter.do("report = scorer.run(**asked)\nprint(report.parts_resumed, report.counts.scored)")
    assert again.printed == f"{done} {ROWS}\n"
    assert f"{done} of them already done" in again.drawn[-1]
    assert len(read(tmp_path / "out")) == ROWS
    if given:
        jupyter.do("client.close(); cluster.close()")


@pytest.mark.slow
def test_a_second_interrupt_stops_at_once(jupyter, tmp_path):
    flights = pq.read_table(FLIGHTS / "flights.parquet")
    pq.write_table(pa.concat_tables([flights] * MANY), tmp_path / "many.parquet", row_group_size=60_000)
    # a part takes some seconds; compiled trees would be too fast
    jupyter.do("asked |= {'input': 'many.parquet', 'threads': 1, 'part_bytes': '64MiB', 'trees': 'runtime'}")
    run = jupyter.send("scorer.run(**asked)")
    jupyter.follow(run, until=lambda shown: "of memory" in "".join(shown.drawn))
    jupyter.interrupt()
    with pytest.raises(AssertionError, match="not within"):
        jupyter.follow(run, within_s=0.5)  # running parts are finished
    jupyter.interrupt()
    name, lines = jupyter.follow(run, within_s=5).error
    assert (name, lines) == ("KeyboardInterrupt", [f"KeyboardInterrupt: {signals.INTERRUPTED_TEXT}"])
    assert not (tmp_path / "out").exists()
    jupyter.do("assert signal.getsignal(signal.SIGINT) is signal.default_int_handler")
    jupyter.do("report = scorer.run(**asked)")
    assert len(read(tmp_path / "out")) == MANY * ROWS


@pytest.mark.slow
def test_a_cell_interrupted_at_any_moment_can_be_resumed(jupyter, tmp_path):
    jupyter.do("asked['batch_rows'] = 64\nscorer.run(**asked | {'output': 'warm'})")
    ended = []
    for n in range(24):
        jupyter.do(f"asked['output'] = 'out{n}'")
        run = jupyter.send("scorer.run(**asked)")
        jupyter.follow(run, until=lambda shown: shown.of("execute_input"))
        time.sleep(n * 0.06)
        jupyter.interrupt()
        shown = jupyter.follow(run, within_s=20)
        ended.append(shown.error[0] if shown.of("error") else "")
        if ended[-1] == "Interrupted":
            assert not (tmp_path / f"out{n}").exists()
        jupyter.do("scorer.run(**asked)\nassert signal.getsignal(signal.SIGINT) is signal.default_int_handler")
        assert len(read(tmp_path / f"out{n}")) == ROWS
        assert not list((tmp_path / f"out{n}.scorer").glob("work-*"))
    assert set(ended) <= {"", "Interrupted", "KeyboardInterrupt"}
    assert ended.count("Interrupted") >= 3


# ---------------------------------------------------------------- which processes receive an interrupt


@pytest.fixture
def heard():
    """Interrupts that reached this process; the handler is restored afterwards."""
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    yield seen
    signal.signal(signal.SIGINT, before)


def origin(**other):
    here = signals.Origin.here()
    return signals.Origin(**{"host": here.host, "pid": here.pid + 1, "group": here.group} | other)


@pytest.mark.parametrize("other", [{"group": -1}, {"host": "elsewhere"}, {"pid": signals.Origin.here().pid}])
def test_interrupts_from_other_processes_than_the_driver_are_received(heard, other):
    again = signals.ignore_interrupts_from(origin(**other))
    signal.raise_signal(signal.SIGINT)
    again()
    assert len(heard) == 1


def test_the_driver_s_interrupts_are_ignored_until_ten_seconds_after_the_last_run(heard, monkeypatch):
    assert origin().host == socket.gethostname()
    clock = Clock()
    monkeypatch.setattr(signals.time, "monotonic", clock)
    first, second = signals.ignore_interrupts_from(origin()), signals.ignore_interrupts_from(origin())
    first()
    signal.raise_signal(signal.SIGINT)
    second()
    clock.now += 5
    signal.raise_signal(signal.SIGINT)
    assert heard == []
    clock.now += 6
    signal.raise_signal(signal.SIGINT)
    assert len(heard) == 1
