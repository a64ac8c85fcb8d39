"""What other users of the machine get from a run: from its ports."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support import access
from support.runs import MODELS, write

from scorer.cluster.dashboard import Scheduler

SUM = MODELS / "sum3.onnx"
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
ROWS = {"a": [1.0, 2.0], "b": [1.0, 2.0], "c": [1.0, 2.0]}
PROCESSES = {"cluster": "processes", "workers": 1, "threads": 1}


@AS_ROOT
@pytest.mark.parametrize("values", [{"cluster": "synchronous"}, {"cluster": "embedded", "threads": 1}], ids=str)
def test_a_run_in_this_process_does_not_listen(tmp_path, values):
    assert access.of_cluster(values, tmp_path)[0] == []


@AS_ROOT
def test_only_who_has_the_keys_gets_anything_from_worker_processes(tmp_path):
    ports, found = access.of_cluster(PROCESSES, tmp_path)
    assert len(ports) == 3
    me = os.getuid()
    assert sorted(found.pop("the user with the keys")["ports"]) == [
        f"runs code as user {me} in the {kind}" for kind in ("Nanny", "Scheduler", "Worker")
    ]
    assert [user["ports"] for user in found.values()] == [["nothing"] * 3] * 2


@AS_ROOT
def test_without_tls_every_user_of_the_machine_can_run_code_in_worker_processes(tmp_path):
    """What `--no-tls` gives up, and that these attempts would notice it."""
    _, found = access.of_cluster(PROCESSES | {"tls": False}, tmp_path)
    assert all(got.startswith(f"runs code as user {os.getuid()}") for got in found["another local user"]["ports"])


@AS_ROOT
def test_the_dashboard_shows_but_does_not_act(tmp_path):
    import dask

    name = "distributed.scheduler.http.routes"
    with dask.config.set({name: [*dask.config.get(name), "distributed.http.scheduler.api"]}):
        ports, found = access.of_cluster({"cluster": "embedded", "threads": 1, "dashboard": True}, tmp_path)
    assert {host for host, _ in ports} == {"127.0.0.1"}
    (pages,) = {*found["another local user"]["ports"]} - {"sees /metrics /health"}  # the worker's
    assert pages == "sees /status /metrics /health /info/main/logs.html /json/counts.json"


def test_opening_a_page_of_the_dashboard_does_not_measure_the_workers():
    import asyncio

    assert asyncio.run(Scheduler.benchmark_hardware(None)) == {"disk": {}, "memory": {}, "network": {}}


def test_an_embedded_run_does_not_import_cryptography(tmp_path):
    source = write(tmp_path / "in.parquet", ROWS)
    code = (
        "import sys, scorer\n"
        f"scorer.run({str(source)!r}, {str(SUM)!r}, {str(tmp_path / 'out')!r}, feed='x=a,b,c', on_lossy='warn')\n"
        "print([name for name in sys.modules if name.partition('.')[0] == 'cryptography'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_run_without_cryptography_is_refused_with_the_command_to_install_it(tmp_path):
    source = write(tmp_path / "in.parquet", ROWS)
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from scorer.cli.main import main\n"
        f"main(['run', {str(source)!r}, '--model', {str(SUM)!r}, '--output', {str(tmp_path / 'out')!r}, '--feed', "
        "'x=a,b,c', '--on-lossy', 'warn', '--cluster', 'processes', '--workers', '1'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "TLS needs a package that cannot be imported" in done.stderr
    assert "pip install --force-reinstall cryptography" in done.stderr
    assert not list(tmp_path.glob("out*"))


def test_doctor_reports_that_cryptography_cannot_be_imported():
    code = "import sys; sys.modules['cryptography'] = None\nfrom scorer.cli.main import main\nmain(['doctor'])\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "tls fails" in done.stdout
    assert "worker processes need TLS: pip install --force-reinstall cryptography" in " ".join(done.stdout.split())
