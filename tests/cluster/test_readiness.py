"""The check of the workers before a row is scored; unfit workers are reported and get no parts."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from dask.distributed import Client, LocalCluster
from support.runs import MODELS, cli, command, read, write

import scorer
from scorer.errors import PreflightError
from scorer.model import copies
from scorer.model.protobuf import inspect_model
from scorer.model.spec import SessionSpec

DENSE = MODELS / "dense28.onnx"
LOOPBACK = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}


@contextmanager
def worker(address, folder, **environment):
    """Start a worker process by hand, without scorer."""
    with (folder / "worker.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--nthreads", "1",
             "--no-dashboard", "--local-directory", str(folder), "--host", "127.0.0.1"],
            env=os.environ | environment, stdout=log, stderr=log, cwd=folder,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


def path_with_versions(folder, **versions):
    """Return a PYTHONPATH on which packages have other versions."""
    for name, version in versions.items():
        home = folder / "other" / f"{name}-{version}.dist-info"
        home.mkdir(parents=True)
        (home / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return os.pathsep.join([str(folder / "other"), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture
def empty_cluster():
    """A scheduler without workers."""
    with LocalCluster(n_workers=0, **LOOPBACK) as cluster, Client(cluster) as client:
        yield cluster, client


def wait_for(client, many):
    client.wait_for_workers(many, timeout=40)


@pytest.mark.slow
def test_a_worker_with_other_versions_is_refused_and_every_version_is_reported(fewer28, tmp_path, empty_cluster):
    cluster, client = empty_cluster
    path = path_with_versions(tmp_path, onnxruntime="1.0.1", pyarrow="1.0.2")
    with worker(cluster.scheduler_address, tmp_path, PYTHONPATH=path):
        wait_for(client, 1)
        done = command(
            "run", fewer28, "--model", DENSE, "--output", tmp_path / "out", "--scheduler", cluster.scheduler_address
        )
    assert done.returncode == 4
    assert "2 problems were found; nothing was written" in done.stderr
    assert "workers have another version of onnxruntime" in done.stderr
    assert "found:    1.0.1" in done.stderr
    assert "workers have another version of pyarrow" in done.stderr
    assert not list(tmp_path.glob("out*"))


@pytest.mark.slow
def test_a_later_worker_with_another_version_is_reported_and_gets_no_parts(fewer28, tmp_path, empty_cluster):
    cluster, client = empty_cluster
    path, notices = path_with_versions(tmp_path, onnxruntime="1.0.1"), []
    with worker(cluster.scheduler_address, tmp_path), worker_later(cluster, tmp_path, PYTHONPATH=path) as late:
        wait_for(client, 1)

        def watch(event):
            if isinstance(event, scorer.events.PlanReady):
                late()
            if isinstance(event, scorer.events.Notice):
                notices.append(event.text)

        report = scorer.run(
            fewer28, DENSE, tmp_path / "out", client=client, observers=[watch], batch_rows=1, tune=False,
            part_bytes="128KiB", keep="none",
        )  # fmt: skip
    assert read(tmp_path / "out").num_rows == report.counts.scored == 60_000
    assert any("gets no further parts: onnxruntime 1.0.1" in text for text in notices), notices
    assert len([name for name in report.sessions if not name.endswith(f":{os.getpid()}")]) == 1


@contextmanager
def worker_later(cluster, folder, **environment):
    """Yield a function that starts a worker; stop the worker afterwards."""
    started = []

    def start():
        started.append(worker(cluster.scheduler_address, folder, **environment))
        started[-1].__enter__()
        with Client(cluster) as client:
            wait_for(client, 2)

    try:
        yield start
    finally:
        for one in started:
            one.__exit__(None, None, None)


@pytest.mark.slow
def test_a_worker_closes_before_its_job_ends_and_finishes_its_parts(fewer28, tmp_path, empty_cluster):
    cluster, client = empty_cluster
    folder = tmp_path / "leaving"
    folder.mkdir()
    with worker(cluster.scheduler_address, tmp_path):
        wait_for(client, 1)
        with worker(cluster.scheduler_address, folder, SCORER_JOB_ENDS=str(time.time() + 16)) as leaving:
            wait_for(client, 2)
            report = scorer.run(
                fewer28, DENSE, tmp_path / "out", client=client, batch_rows=1, tune=False, part_bytes="64KiB",
                limit=30_000, keep="none",
            )  # fmt: skip
            assert leaving.wait(30) == 0
    log = (folder / "worker.log").read_text()
    assert "the job ends soon" in log or "Closing worker gracefully" in log, log
    assert read(tmp_path / "out").num_rows == report.counts.scored == 30_000
    assert len([name for name in report.sessions if not name.endswith(f":{os.getpid()}")]) == 2
    assert not list(tmp_path.glob("out.scorer/work-*"))


def test_workers_that_cannot_import_scorer_are_reported(fewer28, tmp_path, empty_cluster):
    cluster, client = empty_cluster
    (tmp_path / "broken" / "scorer").mkdir(parents=True)
    (tmp_path / "broken" / "scorer" / "__init__.py").write_text("raise ImportError('no such luck')\n")
    with worker(cluster.scheduler_address, tmp_path, PYTHONPATH=str(tmp_path / "broken")):
        wait_for(client, 1)
        with pytest.raises(PreflightError, match="workers cannot run scorer's check") as refused:
            scorer.run(fewer28, DENSE, tmp_path / "out", client=client)
    assert refused.value.exit_code == 4
    assert not list(tmp_path.glob("out*"))


def test_a_cached_model_is_complete_or_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    model = inspect_model(DENSE)
    spec = SessionSpec(path="/not/here/dense28.onnx", digest=model.digest, files=model.files, device="cpu")
    data = DENSE.read_bytes()
    assert copies.local_spec(spec) is None
    copies.receive(spec, "a", "dense28.onnx", data[:100])
    assert copies.local_spec(spec) is None
    assert not copies.complete(spec, "a")
    assert copies.local_spec(spec) is None
    for chunk in (data[:100], data[100:]):
        copies.receive(spec, "b", "dense28.onnx", chunk)
    assert copies.complete(spec, "b")
    there = copies.local_spec(spec)
    assert Path(there.path).read_bytes() == data
    assert (copies.root().parent.stat().st_mode & 0o777) == 0o700
    copies.receive(spec, "c", "dense28.onnx", data)
    assert not copies.complete(spec, "c")
    assert [path.name for path in copies.root().iterdir()] == [model.digest]


@pytest.mark.slow
def test_encrypted_processes_give_the_same_scores(fewer28, tmp_path):
    plain, secret = tmp_path / "plain", tmp_path / "secret"
    flags = ("run", fewer28, "--model", DENSE, "--no-tune", "--cluster", "processes", "--workers", 2)
    assert cli(*flags[:4], "--no-tune", "--output", plain)[0] == 0
    done = command(*flags, "--tls", "--output", secret)
    assert done.returncode == 0, done.stderr
    assert read(secret).equals(read(plain))


def test_a_client_without_the_certificate_is_refused(fewer28, tmp_path):
    run = subprocess.Popen(
        [sys.executable, "-m", "scorer", "run", fewer28, "--model", DENSE, "--output", tmp_path / "out", "--cluster",
         "processes", "--workers", "1", "--tls", "--batch-rows", "1", "--no-tune"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        address = wait_for_listener(run)
        for scheme in ("tcp", "tls"):
            with pytest.raises((OSError, TypeError)):
                Client(f"{scheme}://{address}", timeout=2)
            gc.collect()  # close the client now: in the event loop of the next test's cluster, closing would deadlock
    finally:
        run.kill()
        run.wait()


def wait_for_listener(run):
    """Return the address of the scheduler of a run."""
    import psutil

    until = time.monotonic() + 60
    while time.monotonic() < until:
        family = [process for process in psutil.Process(run.pid).children(recursive=True) if process.is_running()]
        owner = family[0] if family else psutil.Process(run.pid)
        listening = [s for s in owner.net_connections("tcp") if s.status == psutil.CONN_LISTEN]
        if len(family) > 2 and listening:
            return f"127.0.0.1:{listening[0].laddr.port}"
        time.sleep(0.2)
    raise AssertionError(run.returncode)


@pytest.mark.slow
def test_workers_that_cannot_read_a_joined_table_are_refused_before_the_run(fewer28, tmp_path, empty_cluster):
    cluster, client = empty_cluster
    table = tmp_path / "only-here" / "t.parquet"
    write(table, {"id": [1, 2], "v": [1.0, 2.0]})
    flags = ("run", fewer28, "--model", DENSE, "--output", tmp_path / "out", "--feed", "input=f0..f26,t.v")
    flags += ("--join", f"t={table} on id", "--scheduler", cluster.scheduler_address)
    code = (  # the module that Python imports first: on this worker, the folder does not exist
        "import os\n_stat = os.stat\n"
        f"def stat(path, *a, **k):\n    if {str(table.parent)!r} in str(path):\n"
        "        raise FileNotFoundError(2, 'No such file or directory', str(path))\n    return _stat(path, *a, **k)\n"
        "os.stat = stat\n"
    )
    (tmp_path / "sitecustomize.py").write_text(code)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    with worker(cluster.scheduler_address, tmp_path, PYTHONPATH=path):
        wait_for(client, 1)
        done = command(*flags)
    assert done.returncode == 4, done.stderr
    assert "workers cannot read a joined table" in done.stderr
    assert str(table) in done.stderr
    assert not list(tmp_path.glob("out*"))
    with worker(cluster.scheduler_address, tmp_path):
        wait_for(client, 1)
        assert command(*flags).returncode == 0
    assert read(tmp_path / "out").num_rows
