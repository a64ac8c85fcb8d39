"""Clients and clusters, loaded models, listening sockets, signals, and the lock of an output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from dask.distributed import Client, LocalCluster
from support.runs import MODELS, command, read

import scorer
from scorer.errors import ClusterError, OptionsError
from scorer.events import PlanReady

DENSE = MODELS / "dense28.onnx"


LOOPBACK = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}


def start(*arguments):
    """Start the command line, and return its process."""
    return subprocess.Popen(
        [sys.executable, "-m", "scorer", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for_parts(output, many, process):
    """Wait until so many parts are committed."""
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        if len(list(Path(f"{output}.scorer").glob("work-*/parts/*.parquet"))) >= many:
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate())


def test_threads_that_do_not_start_are_not_blamed_on_a_script(fewer28, tmp_path):
    """No machine has room for threads with a stack of this size."""
    plan = scorer.prepare(fewer28, DENSE, tmp_path / "out", cluster="embedded", tune=False)
    before = threading.stack_size(1 << 46)
    try:
        with pytest.raises(ClusterError, match="worker threads did not start") as caught:
            scorer.execute(plan)
    finally:
        threading.stack_size(before)
    assert "can't start new thread" in caught.value.found
    assert "ulimit" in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("option", ["cluster='processes'", "transform=features.same"])
def test_a_script_without_a_guard_gets_one_error_with_the_line_to_add(option, fewer28, tmp_path):
    """The worker processes, which import the script too, print nothing, and neither does Dask."""
    (tmp_path / "features.py").write_text("def same(rows):\n    return rows\n")
    request = f"{str(fewer28)!r}, {str(DENSE)!r}, 'out', feed='input=f0..f27', {option}, workers=2, threads=1"
    script = tmp_path / "script.py"
    script.write_text(f"import features\nimport scorer\n\nscorer.run({request})\n")
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONSAFEPATH"}  # Dask leaves it set
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert 'Hint: in a script, call scorer under `if __name__ == "__main__":`' in done.stderr
    assert done.stderr.count("the worker processes did not start") == done.stderr.count("Traceback") == 1
    assert "distributed" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_script_with_the_line_to_add_uses_processes(fewer28, tmp_path):
    request = f"{str(fewer28)!r}, {str(DENSE)!r}, 'out', cluster='processes', workers=1, threads=1"
    script = tmp_path / "script.py"
    call = f"print(len(scorer.run({request}).worker_peak_bytes))"
    script.write_text(f"import scorer\n\nif __name__ == '__main__':\n    {call}\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_one_session_per_process_with_four_threads(fewer28, tmp_path):
    done = command(
        "run", fewer28, "--model", DENSE, "--output", tmp_path / "out", "--threads", 4, "--no-tune", "--json"
    )
    assert list(json.loads(done.stdout)["sessions"].values()) == [1], done.stderr


TRIES_ALL = """
from scorer.cli import main; from scorer.preflight import tuning
tuning._LONG_ENOUGH_S, tuning._BEHIND = 0.0, 1e9  # try every batch size, even with few rows
main.main()
"""


@pytest.mark.slow
def test_tuning_creates_one_session_more_than_the_trials_in_the_plan(fewer28, tmp_path):
    arguments = [fewer28, "--model", DENSE, "--output", tmp_path / "out", "--json"]
    planned, done = (
        subprocess.run(
            [sys.executable, "-c", TRIES_ALL, one, *map(str, arguments)],
            capture_output=True, text=True, timeout=100, check=False,
        )
        for one in ("plan", "run")
    )  # fmt: skip
    plan = json.loads(planned.stdout)
    assert len(plan["trials"]) >= 3, planned.stderr
    report = json.loads(done.stdout)
    assert list(report["sessions"].values()) == [1 + plan["trial_sessions"]]


@pytest.mark.slow
def test_one_session_in_each_of_two_processes(fewer28, tmp_path):
    done = command(
        "run", fewer28, "--model", DENSE, "--output", tmp_path / "out", "--cluster", "processes",
        "--workers", 2, "--threads", 2, "--part-bytes", "384KiB", "--no-tune", "--json",
    )  # fmt: skip
    sessions = json.loads(done.stdout)["sessions"]
    assert sorted(sessions.values()) == [1, 1, 1], done.stderr  # two workers, and the driver's preflight


@pytest.mark.parametrize("what", ["client", "cluster"])
def test_a_given_client_or_cluster_is_used_and_stays_open(fewer28, tmp_path, what):
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, **LOOPBACK | {"host": None}) as cluster:
        with Client(cluster, set_as_default=False) as client:
            before = set(client.nthreads())
            given, seen = {"client": client, "cluster": cluster}[what], []
            report = scorer.run(fewer28, DENSE, tmp_path / "out", client=given, observers=[seen.append], keep="none")
            assert [event.where for event in seen if isinstance(event, PlanReady)] == [f"the given {what}"]
            assert report.counts.scored == 60_000
            assert set(client.nthreads()) == before
            assert client.submit(sum, [1, 2]).result() == 3
        assert cluster.status.name == "running"


def test_a_closed_client_or_another_object_is_refused(fewer28, tmp_path):
    with LocalCluster(n_workers=1, processes=False, **LOOPBACK | {"host": None}) as cluster:
        closed = Client(cluster, set_as_default=False)
        closed.close()
        for given, found in ((closed, "a closed client"), ("tcp://127.0.0.1:8786", "str")):
            with pytest.raises(OptionsError, match="the given client cannot be used") as refused:
                scorer.run(fewer28, DENSE, tmp_path / "out", client=given)
            assert refused.value.found == found
    assert not (tmp_path / "out.scorer").exists()


@pytest.mark.slow
def test_a_worker_that_joins_later_loads_the_model_once(fewer28, tmp_path):
    with LocalCluster(n_workers=1, threads_per_worker=1, **LOOPBACK) as cluster, Client(cluster) as client:

        def grow(event):
            if isinstance(event, scorer.events.PlanReady):
                cluster.scale(2)

        report = scorer.run(
            fewer28, DENSE, tmp_path / "out", client=client, observers=[grow], batch_rows=1, tune=False,
            part_bytes="128KiB",
        )  # fmt: skip
        assert client.status == "running"
        assert client.run(lambda dask_worker: [n for n in dask_worker.plugins if n.startswith("scorer")]) == {
            address: [] for address in client.scheduler_info()["workers"]
        }
    workers = {name: made for name, made in report.sessions.items() if not name.endswith(f":{os.getpid()}")}
    assert list(workers.values()) == [1, 1]
    assert read(tmp_path / "out").num_rows == 60_000


@pytest.mark.slow
def test_a_scheduler_by_address_is_used_and_left_running(fewer28, tmp_path):
    with LocalCluster(n_workers=1, threads_per_worker=2, **LOOPBACK) as cluster:
        done = command(
            "run", fewer28, "--model", DENSE, "--output", tmp_path / "out", "--scheduler", cluster.scheduler_address
        )
        assert done.returncode == 0, done.stderr
        assert cluster.scheduler_address in done.stderr
        with Client(cluster) as client:
            assert client.submit(sum, [1, 2]).result() == 3
    assert read(tmp_path / "out").num_rows == 60_000


@pytest.mark.parametrize("mode", ["embedded", "processes", "synchronous"])
def test_only_processes_listen_and_only_on_loopback(fewer28, tmp_path, mode):
    run = start(
        "run", fewer28, "--model", DENSE, "--output", tmp_path / "out", "--cluster", mode,
        "--batch-rows", 8, "--part-bytes", "96KiB",
    )  # fmt: skip
    try:
        wait_for_parts(tmp_path / "out", 1, run)
        family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
        sockets = [s for process in family for s in process.net_connections("inet") if s.status == psutil.CONN_LISTEN]
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert {s.laddr.ip for s in sockets} == ({"127.0.0.1"} if mode == "processes" else set())


@pytest.mark.parametrize("mode", ["embedded", pytest.param("processes", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_running_parts_and_the_same_command_resumes(fewer28, tmp_path, mode, number, code):
    arguments = (
        "run", fewer28, "--model", DENSE, "--output", tmp_path / "out", "--cluster", mode, "--threads", 1,
        "--batch-rows", 8, "--part-bytes", "96KiB",
    )  # fmt: skip
    run = start(*arguments)
    wait_for_parts(tmp_path / "out", 3, run)
    os.killpg(run.pid, number) if number == signal.SIGINT else run.send_signal(number)
    _, text = run.communicate(timeout=60)
    assert run.returncode == code, text
    assert "repeat the same command" in text
    assert "Traceback" not in text
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "out.scorer").glob("work-*/tmp/*"))
    again = command(*arguments, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["parts_resumed"] >= 3
    assert read(tmp_path / "out")["id"].to_pylist() == list(range(60_000))


@pytest.mark.slow
def test_a_killed_run_is_resumed_with_another_number_of_threads(fewer28, tmp_path):
    arguments = (
        "run", fewer28, "--model", DENSE, "--output", tmp_path / "out", "--batch-rows", 64, "--part-bytes", "96KiB",
    )  # fmt: skip
    run = start(*arguments, "--threads", 2)
    wait_for_parts(tmp_path / "out", 5, run)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert not (tmp_path / "out").exists()
    again = command(*arguments, "--threads", 1, "--json")
    report = json.loads(again.stdout)
    assert report["parts_resumed"] >= 5, again.stderr
    scorer.run(fewer28, DENSE, tmp_path / "whole", batch_rows=64, part_bytes="96KiB")
    whole, resumed = read(tmp_path / "whole"), read(tmp_path / "out")
    assert np.array_equal(whole["score"].to_numpy().view(np.int32), resumed["score"].to_numpy().view(np.int32))
    assert whole["id"].equals(resumed["id"])
    assert not list((tmp_path / "out.scorer").glob("work-*"))


@pytest.mark.slow
def test_a_second_driver_is_refused_while_the_first_runs(floats28, tmp_path):
    arguments = (
        "run", floats28, "--model", DENSE, "--output", tmp_path / "out", "--batch-rows", 1, "--part-bytes", "256KiB",
    )  # fmt: skip
    run = start(*arguments)
    wait_for_parts(tmp_path / "out", 1, run)
    driver = json.loads((tmp_path / "out.scorer" / "lock").read_text())["pid"]
    second = command(*arguments)
    status = command("status", tmp_path / "out", "--json")
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert second.returncode == 3
    assert f"process {driver}" in second.stderr
    assert json.loads(status.stdout)["state"] == "running"
    after = command("status", tmp_path / "out", "--json")
    assert json.loads(after.stdout)["state"] == "unfinished"
