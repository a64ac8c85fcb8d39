"""Crashes in native code, hanging batches, failing disks: at most one part is lost, and it is named."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
import pyarrow as pa
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor, make_tensor_value_info
from support.runs import MODELS, ROOT, cli, command, read, write

import scorer
from scorer.dataset import reader
from scorer.host import isolation
from scorer.host import process as process_
from scorer.output import attempts, writer
from scorer.output.place import Staging
from scorer.storage import files

ROWS, GROUP, POISON = 4000, 400, 2600
FLAGS = ("--batch-rows", 64, "--part-bytes", "8KiB", "--no-tune", "--quiet")
IN_PROCESSES = ("--cluster", "processes", "--workers", 2, "--threads", 1)


def value(name, shape=("N", 1)):
    return make_tensor_value_info(name, TensorProto.INT64, shape)


def saved(graph, path):
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 13)], ir_version=8), path)
    return path


@pytest.fixture
def dividing(tmp_path):
    """A quotient of whole numbers: the smallest one by -1 is a floating point exception, which ends the process."""
    graph = make_graph([make_node("Div", ["a", "b"], ["y"])], "g", [value("a"), value("b")], [value("y")])
    a, b = np.arange(ROWS), np.ones(ROWS, np.int64)
    a[POISON], b[POISON] = -(2**63), -1
    write(tmp_path / "in.parquet", {"id": np.arange(ROWS), "a": a, "b": b}, row_group_size=GROUP)
    return tmp_path, saved(graph, tmp_path / "m.onnx")


@pytest.fixture
def looping(tmp_path):
    """A model that loops as often as the largest value of its batch; the loop does not change the output."""
    nothing, truth = value("v", ()), make_tensor_value_info("c", TensorProto.BOOL, [])
    body = make_graph(
        [make_node("Identity", ["c"], ["c2"]), make_node("Add", ["v", "one"], ["v2"])], "body",
        [value("i", ()), truth, nothing], [make_tensor_value_info("c2", TensorProto.BOOL, []), value("v2", ())],
        [make_tensor("one", TensorProto.INT64, [], [1])],
    )  # fmt: skip
    nodes = [
        make_node("ReduceMax", ["a"], ["m"], keepdims=0), make_node("Loop", ["m", "yes", "zero"], ["v"], body=body),
        make_node("Mul", ["v", "zero"], ["n"]), make_node("Add", ["a", "n"], ["y"]),
    ]  # fmt: skip
    constants = [make_tensor("yes", TensorProto.BOOL, [], [True]), make_tensor("zero", TensorProto.INT64, [], [0])]
    a = np.arange(ROWS) % 7
    a[POISON] = 10**12
    write(tmp_path / "in.parquet", {"id": np.arange(ROWS), "a": a}, row_group_size=GROUP)
    return tmp_path, saved(make_graph(nodes, "g", [value("a")], [value("y")], constants), tmp_path / "m.onnx")


def run(place, *flags):
    folder, model = place
    return command("run", folder / "in.parquet", "--model", model, "--output", folder / "out", *FLAGS, *flags)


def all_but_one_part(folder):
    """Check that all parts are kept but the one with the poisonous row."""
    (parts,) = Path(f"{folder}/out.scorer").glob("work-*/parts")
    ids = read(parts)["id"].to_pylist()
    missing = sorted(set(range(ROWS)) - set(ids))
    assert len(ids) == len(set(ids))
    assert POISON in missing
    assert missing[-1] - missing[0] + 1 == len(missing) <= GROUP
    assert not (folder / "out").exists()


@pytest.mark.slow
def test_a_part_that_ends_the_process_is_named_and_the_rest_is_scored(dividing):
    folder, _ = dividing
    first = run(dividing)
    assert (first.returncode, first.stdout) == (1, "")
    assert "the process crashed in native code (SIGFPE)" in first.stderr
    assert "in progress: part-0000" in first.stderr
    second = run(dividing)
    assert second.returncode == 1
    assert "1 of 10 parts failed; nothing was published" in second.stderr
    assert "rows 2400 to 2800" in second.stderr
    assert "ended by SIGFPE" in second.stderr
    all_but_one_part(folder)
    assert cli("status", folder / "out")[0] == 0


@pytest.mark.slow
def test_in_worker_processes_nothing_but_the_part_is_lost(dividing):
    done = run(dividing, *IN_PROCESSES)
    assert done.returncode == 1
    assert "1 of 10 parts failed" in done.stderr
    assert "ended by SIGFPE" in done.stderr
    all_but_one_part(dividing[0])


def test_a_crash_before_the_first_part_is_reported_as_json_too(dividing):
    folder, model = dividing
    write(folder / "in.parquet", {"id": [0, 1], "a": pa.array([-(2**63)] * 2), "b": pa.array([-1, -1])})
    done = command("run", folder / "in.parquet", "--model", model, "--output", folder / "out", "--json")
    assert done.returncode == 3
    found = json.loads(done.stdout)["error"]
    assert (found["code"], found["exit_code"]) == ("native-crash", 3)
    assert "sending the first rows" in found["where"]
    assert sorted(path.name for path in folder.iterdir()) == ["in.parquet", "m.onnx"]


CRASHES = {
    "rename": "os.rename = lambda a, b: os.kill(os.getpid(), 11) if str(b).endswith('/out') else move(a, b)",
    "lseek": "os.lseek = lambda *_: os.kill(os.getpid(), 11)",
}


def crashing(folder, call):
    """Return an environment in which this call of the system crashes Python."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"import os\nmove = os.rename\n{CRASHES[call]}\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


@pytest.mark.slow
def test_a_crash_while_publishing_has_the_exit_code_of_a_failed_publish(tmp_path):
    write(tmp_path / "in.parquet", {"a": [1.0, 2.0], "b": [1.0, 2.0], "c": [1.0, 2.0]})
    asked = ("run", tmp_path / "in.parquet", "--model", MODELS / "sum3.onnx", "--feed", "x=a,b,c", "--output")
    done = command(*asked, tmp_path / "out", "--json", extra=crashing(tmp_path / "code", "rename"))
    assert done.returncode == 5, done.stderr
    found = json.loads(done.stdout)["error"]
    assert (found["code"], found["exit_code"], found["where"]) == ("native-crash", 5, f"publishing {tmp_path / 'out'}")
    assert "nothing was" not in done.stderr
    assert "repeat the command: it publishes the parts" in found["hint"]
    again = command(*asked, tmp_path / "out", "--json")
    assert (again.returncode, json.loads(again.stdout)["parts_resumed"]) == (0, 1)
    verified = command("verify", tmp_path / "out", extra=crashing(tmp_path / "verifying", "lseek"))
    assert verified.returncode == 5
    assert f"verifying {tmp_path / 'out'}" in verified.stderr
    assert "score again with --overwrite" in verified.stderr


@pytest.mark.slow
def test_a_batch_that_hangs_ends_the_run_and_the_next_run_skips_its_part(looping):
    folder, _ = looping
    began = time.monotonic()
    first = run(looping, "--batch-timeout", 1)
    assert first.returncode == 1
    assert "a batch hangs in the model" in first.stderr
    assert "rows 2400 to 2800" in first.stderr
    assert time.monotonic() - began < 30
    second = run(looping, "--batch-timeout", 1)
    assert second.returncode == 1
    assert "1 of 10 parts failed" in second.stderr
    assert "longer than --batch-timeout" in second.stderr
    all_but_one_part(folder)


@pytest.mark.slow
def test_a_worker_process_whose_batch_hangs_is_ended(looping):
    done = run(looping, "--batch-timeout", 1, *IN_PROCESSES)
    assert done.returncode == 1
    assert "1 of 10 parts failed" in done.stderr
    all_but_one_part(looping[0])


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_an_invalid_timeout_is_refused(seconds, tmp_path):
    code, _, stderr = cli("run", tmp_path, "--model", "m.onnx", "--batch-timeout", seconds)
    assert code == 2
    assert "--batch-timeout" in stderr


@pytest.fixture
def staging(tmp_path):
    place = Staging(root=tmp_path / "work")
    place.started.mkdir(parents=True)
    return place


def left_by(staging, name, n, **owner):
    (staging.started / f"{name}.{n}").write_text(
        json.dumps(process_.myself() | {"pid": 2**22 + 1, "born": "1"} | owner)
    )


def test_a_part_is_suspected_after_a_crash_or_two_deaths(staging):
    name = "k=1/part-00003.parquet"
    mark = attempts.begin(staging, name)
    assert (mark.deaths, mark.suspect) == (0, False)
    twin = attempts.begin(staging, name)  # the same part a second time, in a process that lives
    assert (twin.deaths, twin.path != mark.path) == (0, True)
    attempts.end(twin)
    attempts.end(mark)
    assert not list(staging.started.iterdir())
    left_by(staging, "k=1__part-00003", 0)
    assert not attempts.begin(staging, name).suspect
    left_by(staging, "k=1__part-00003", 1)
    assert attempts.begin(staging, name).suspect
    attempts.clear_marks(staging, name)
    assert not attempts.begin(staging, name).suspect


def test_a_crash_file_makes_one_death_enough(staging):
    left_by(staging, "part-1", 0)
    owner = json.loads((staging.started / "part-1.0").read_text())
    words = staging.started / f"{owner['host']}-{owner['pid']}-{owner['born']}.crash"
    words.write_text("")
    assert not attempts.crash_seen(staging)
    words.write_text("Fatal Python error: Segmentation fault")
    assert attempts.crash_seen(staging)
    assert attempts.begin(staging, "part-1.parquet").suspect


def test_a_part_of_another_host_is_suspected_only_with_a_crash_file(staging):
    left_by(staging, "part-1", 0, host="elsewhere")
    left_by(staging, "part-1", 1, host="elsewhere")
    assert attempts.begin(staging, "part-1.parquet").deaths == 0
    (staging.started / f"elsewhere-{2**22 + 1}-1.crash").write_text("Fatal Python error: Floating point exception")
    assert attempts.begin(staging, "part-1.parquet").suspect


def test_an_incomplete_mark_does_not_count_as_a_death(staging):
    (staging.started / "part-1.0").write_text("{")
    assert attempts.begin(staging, "part-1.parquet").deaths == 0


def test_an_isolated_function_returns_its_result_its_error_or_its_exit():
    assert isolation.call("operator:add", 2, 3) == 5
    with pytest.raises(ZeroDivisionError):
        isolation.call("operator:truediv", 1, 0)
    with pytest.raises(isolation.Died, match="SIGABRT"):
        isolation.call("os:abort")
    with pytest.raises(isolation.Died, match="exit code 3"):
        isolation.call("os:_exit", 3)


def test_an_isolated_process_ends_with_the_one_that_started_it(tmp_path):
    asker = subprocess.Popen(
        [sys.executable, "-c", "from scorer.host import isolation; isolation.call('time:sleep', 100)"]
    )
    until = time.monotonic() + 20
    while not (children := psutil.Process(asker.pid).children()) and time.monotonic() < until:
        time.sleep(0.01)
    assert children
    time.sleep(0.5)
    asker.kill()
    asker.wait()
    _, alive = psutil.wait_procs([c for c in children if c.status() != psutil.STATUS_ZOMBIE], timeout=5)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_a_run_whose_parts_all_fail_stops_early(tmp_path):
    columns = {"id": np.arange(4000), **{c: np.ones(4000, np.float32) for c in "abc"}}
    source = write(tmp_path / "in.parquet", columns, row_group_size=100)
    plan = scorer.prepare(source, MODELS / "sum3.onnx", tmp_path / "out", feed="x=a,b,c", part_bytes=4096, threads=1,
                          cluster="synchronous")  # fmt: skip
    assert plan.frozen.n_parts >= 20
    source.write_bytes(b"PAR1")
    seen = []
    with pytest.raises(scorer.RunFailed, match="10 of "):
        scorer.execute(plan, observers=[seen.append])
    assert sum(isinstance(event, scorer.events.PartFailed) for event in seen) == 10


class Hesitant:
    """Fails so many times, then succeeds."""

    def __init__(self, times, number):
        self.times, self.number, self.calls = times, number, 0

    def __call__(self):
        self.calls += 1
        if self.calls <= self.times:
            raise OSError(self.number, "as the system says")
        return "done"


@pytest.fixture
def waits(monkeypatch):
    """Record the waiting times instead of waiting."""
    waited = []
    monkeypatch.setattr(files.time, "sleep", waited.append)
    return waited


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR])
def test_a_transient_error_is_retried(number, waits):
    cleared = []
    attempt = Hesitant(3, number)
    assert files.retry(attempt, lambda: cleared.append(1)) == "done"
    assert (attempt.calls, len(cleared)) == (4, 3)
    assert waits == sorted(waits)
    with pytest.raises(OSError, match="as the system says"):
        files.retry(Hesitant(4, number))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.ENOENT, errno.EROFS, errno.EDQUOT])
def test_a_permanent_error_is_raised_at_once(number, waits):
    attempt = Hesitant(1, number)
    with pytest.raises(OSError, match="as the system says"):
        files.retry(attempt)
    assert (attempt.calls, waits) == (1, [])


def test_a_run_survives_transient_file_system_errors(tmp_path, monkeypatch, waits):
    rows = {"id": np.arange(900), **{c: np.arange(900, dtype=np.float32) for c in "abc"}}
    source = write(tmp_path / "in.parquet", rows, row_group_size=300)
    reading, linking, writing = reader._rows, os.link, writer.write_once
    calls = {"read": 0, "link": 0, "write": 0}

    def now_and_then(name, real, number):
        def call(*args):
            calls[name] += 1
            if calls[name] % 2:
                raise OSError(number, "not now")
            return real(*args)

        return call

    monkeypatch.setattr("scorer.dataset.reader._rows", now_and_then("read", reading, errno.ESTALE))
    monkeypatch.setattr(os, "link", now_and_then("link", linking, errno.EIO))
    monkeypatch.setattr("scorer.output.writer.write_once", now_and_then("write", writing, errno.ETIMEDOUT))
    scorer.run(source, MODELS / "sum3.onnx", tmp_path / "out", feed="x=a,b,c", cluster="synchronous", part_bytes=8192)
    table = read(tmp_path / "out")
    assert table["id"].to_pylist() == list(range(900))
    assert table["total"].to_pylist() == [3.0 * i for i in range(900)]
    assert min(calls.values()) >= 4
    assert cli("verify", tmp_path / "out", "--deep")[0] == 0
