"""Services as fixtures; a missing one skips the test, or fails it if SCORER_SERVICES=required."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import pytest

from scorer.storage import stores as store_clients
from services import gateway, grid_engine, hosts, mpi, slurm, sshd, stores
from services.processes import Missing, require_modules
from services.work import Work

PORT = 8786
_WAIT = "import sys; from distributed import Client; Client(sys.argv[1]).wait_for_workers(int(sys.argv[2]), timeout=60)"


@contextmanager
def enter_or_skip(service, *modules):
    """Enter the service; if it is missing, skip or fail the test with the reason."""
    with ExitStack() as stack:
        try:
            require_modules(*modules)
            entered = stack.enter_context(service)
        except Missing as reason:
            if os.environ.get("SCORER_SERVICES") == "required":
                pytest.fail(str(reason), pytrace=False)
            pytest.skip(str(reason))
        yield entered


@pytest.fixture(scope="session")
def _slurm():
    with enter_or_skip(slurm.slurm(), "dask_jobqueue") as queue:
        yield queue


@pytest.fixture(name="slurm")
def slurm_(_slurm, monkeypatch):
    """Slurm with four nodes and an empty queue, for this process and the programs it starts."""
    monkeypatch.setenv("SLURM_CONF", str(_slurm.conf))
    yield _slurm
    _slurm.cancel()
    _slurm.wait_empty()


@pytest.fixture(name="mpi")
def mpi_():
    """A scheduler and two workers under mpirun."""
    with enter_or_skip(mpi.mpi(3), "dask_mpi", "mpi4py") as cluster:
        yield cluster


@pytest.fixture(name="grid_engine")
def grid_engine_():
    """Grid Engine on four hosts, three of which run one job each."""
    with enter_or_skip(grid_engine.grid_engine(3), "dask_jobqueue") as queue:
        yield queue


@pytest.fixture(name="gateway", scope="session")
def gateway_():
    """A gateway that starts clusters on this machine for users with a password."""
    with enter_or_skip(gateway.gateway(), "dask_gateway", "dask_gateway_server") as server:
        yield server


@pytest.fixture(name="sshd", scope="session")
def sshd_():
    """An SSH server on this machine."""
    with enter_or_skip(sshd.sshd(), "asyncssh") as server:
        yield server


@pytest.fixture
def lan():
    """Four hosts on one switch."""
    with enter_or_skip(hosts.lan(4)) as hosts_:
        yield hosts_


@pytest.fixture
def scattered(lan, request):
    """Four hosts: a scheduler on the first, a worker on each of the next two; and the scheduler's address.

    Its parameter, if it has one, is Dask's settings.
    """
    first, *workers, last = lan
    settings = getattr(request, "param", {})
    address = start_scheduler(first, **settings)
    for host in workers:
        start_worker(host, address, host.name, **settings)
    wait_for_workers(last, address, len(workers))
    return lan, address


def start_scheduler(host, **environment):
    """Start a scheduler on the host; return its address."""
    dask = (sys.executable, "-m", "dask", "scheduler")
    host.start(*dask, "--interface", "eth0", "--port", PORT, "--no-dashboard", **environment)
    return f"tcp://{host.address}:{PORT}"


def start_worker(host, address, name, **environment):
    """Start a worker on the host."""
    host.start(
        sys.executable, "-m", "dask", "worker", address, "--interface", "eth0", "--nthreads", 1, "--no-dashboard",
        "--name", name, "--local-directory", host.lan.folder, **environment,
    )  # fmt: skip


def wait_for_workers(host, address, many):
    """Wait until the scheduler has this many workers."""
    try:
        host.run(sys.executable, "-c", _WAIT, address, many, cwd=host.lan.folder, timeout=100)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(host.lan.log()) from error


@pytest.fixture
def work(tmp_path):
    """Sixty parts of half a second each."""
    return Work(tmp_path / "work", parts=60, part_s=0.5)


@pytest.fixture
def report_line(capsys):
    """A function that prints a line to the terminal although pytest captures the output."""

    def show(text):
        with capsys.disabled():
            print(f"\n  {text}")

    return show


@pytest.fixture(scope="session")
def _seaweed():
    with enter_or_skip(stores.seaweed(), "obstore") as server:
        yield server


@pytest.fixture(scope="session")
def _azurite():
    with enter_or_skip(stores.azurite(), "obstore") as server:
        yield server


@pytest.fixture(scope="session")
def _fake_gcs():
    with enter_or_skip(stores.fake_gcs(), "obstore") as server:
        yield server


@contextmanager
def credentials_of(server, monkeypatch):
    """Set the credentials of a server for this process and the programs it starts."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    store_clients.configure(())
    yield server
    store_clients.configure(())


@pytest.fixture
def s3(_seaweed, monkeypatch):
    """An S3 server, with its credentials in the environment of this process and of the programs it starts."""
    with credentials_of(_seaweed, monkeypatch) as server:
        yield server


@pytest.fixture
def az(_azurite, monkeypatch):
    """A server for Azure's blobs, with its credentials in the environment."""
    with credentials_of(_azurite, monkeypatch) as server:
        yield server


@pytest.fixture
def gs(_fake_gcs, monkeypatch):
    """A server for Google Cloud Storage, with its credentials in the environment."""
    with credentials_of(_fake_gcs, monkeypatch) as server:
        yield server
