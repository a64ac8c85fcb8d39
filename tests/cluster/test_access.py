"""What other users of the machine get from a run: from its ports, and from the folders of the temporary directory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support import access
from support.runs import MODELS, read, write
from support.stranger import NOBODY

from scorer.cluster._servers import Scheduler
from scorer.cluster.connect import connect
from scorer.errors import ClusterError
from scorer.host.private import private_folder
from scorer.options.request import build_cluster

SUM = MODELS / "sum3.onnx"
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
ROWS = {"a": [1.0, 2.0], "b": [1.0, 2.0], "c": [1.0, 2.0]}
PROCESSES = {"cluster": "processes", "workers": 1, "threads": 1}


@pytest.fixture
def temporary(monkeypatch):
    """A temporary directory of its own in which every user can create files, as in /tmp."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o1777)
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)


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


def prepared_by_another(folder, kind):
    """Create the name `folder` as another user would: a folder that everybody can write to, or a link to one."""
    target = folder if kind == "folder" else folder.parent / "elsewhere"
    target.mkdir()
    target.chmod(0o777)
    os.chown(target, NOBODY, NOBODY)
    if kind == "link":
        folder.symlink_to(target)
        os.chown(folder, NOBODY, NOBODY, follow_symlinks=False)
    return target


@AS_ROOT
@pytest.mark.parametrize(("cluster", "kind"), [("embedded", "link"), ("processes", "folder")])
def test_a_folder_that_another_user_prepared_is_not_used(temporary, tmp_path, kind, cluster):
    """Dask imports from its scratch folder, and empties every file that ends with .dirlock in it, through links too."""
    kept = write(tmp_path / "in.parquet", ROWS)
    before, ran = kept.read_bytes(), tmp_path / "ran"
    mine = prepared_by_another(temporary / f"scorer-{os.getuid()}", kind)
    for scratch in (temporary / "dask-scratch-space", mine / "dask-scratch-space"):
        scratch.mkdir()
        scratch.chmod(0o777)
        (scratch / "x.dirlock").symlink_to(kept)
        (scratch / "scorer_test_module.py").write_text(f"open({str(ran)!r}, 'w')")
        os.chown(scratch, NOBODY, NOBODY)
    code = (
        "import scorer, scorer.events\n"
        "def look(event):\n"
        " if isinstance(event, scorer.events.PlanReady):\n"
        "  try: import scorer_test_module\n"
        "  except ImportError: print('not found')\n"
        f"scorer.run({str(kept)!r}, {str(SUM)!r}, {str(tmp_path / 'out')!r}, feed='x=a,b,c', on_lossy='warn', "
        f"cluster={cluster!r}, workers={'1' if cluster == 'processes' else 'None'}, threads=1, observers=[look])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "not found\n"), done.stderr
    assert kept.read_bytes() == before
    assert not ran.exists()
    assert read(tmp_path / "out").num_rows == 2
    assert sorted(path.name for path in mine.iterdir()) == ["dask-scratch-space"]
    (used,) = temporary.glob(f"scorer-{os.getuid()}-*")
    assert access.attempts([], [used, mine])["another local user"]["paths"] == ["nothing", "read and write"]


def test_the_private_folder_is_the_same_each_time_and_closed(temporary):
    first = private_folder()
    assert first == private_folder() == str(temporary / f"scorer-{os.getuid()}")
    assert os.stat(first).st_mode & 0o777 == 0o700


def test_a_private_folder_that_became_open_is_replaced_once(temporary):
    Path(private_folder()).chmod(0o770)
    other = private_folder()
    assert other == private_folder()
    assert Path(other).name.startswith(f"scorer-{os.getuid()}-")
    assert os.stat(other).st_mode & 0o777 == 0o700


def test_a_temporary_directory_that_cannot_be_used_is_reported(tmp_path):
    import dask

    (tmp_path / "file").touch()
    with (
        dask.config.set({"temporary-directory": str(tmp_path / "file")}),
        pytest.raises(ClusterError, match="the temporary directory cannot be used") as caught,
        connect(build_cluster({"cluster": "embedded"}), tmp_path),
    ):
        pass
    assert caught.value.where == str(tmp_path / "file")
