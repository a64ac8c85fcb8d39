"""`--cluster MODULE:CLASS` with real clusters: a gateway, workers started by SSH, jobs of Slurm; a worker is killed."""

from __future__ import annotations

import time

import psutil
import pytest

from services.processes import environment, wait_until
from services.traces import LOCK, SHARED, Traces, of_environment
from services.work import Work

pytestmark = [pytest.mark.service, pytest.mark.timeout(300)]
MARK = "SCORER_TEST_OF_CLASSES"
BY_LOCAL = (
    "--cluster", "distributed:LocalCluster", "--workers", "2", "--cluster-option", "n_workers=0",
    "--cluster-option", "threads_per_worker=1", "--cluster-option", "dashboard_address=127.0.0.1:0",
)  # fmt: skip
BY_GATEWAY = ("--cluster", "dask_gateway:GatewayCluster")
BY_SLURM = (
    "--cluster", "dask_jobqueue:SLURMCluster", "--cluster-option", 'queue="debug"', "--cluster-option", "cores=1",
    "--cluster-option", "memory=2GB", "--cluster-option", "interface=lo", "--cluster-option", "processes=1",
    "--cluster-option", 'job_extra_directives=["--exclusive"]',
)  # fmt: skip


def work_of(tmp_path, name="work"):
    """Twenty-four parts of 0.3 s each."""
    return Work(tmp_path / name, parts=24, part_s=0.3)


def worker_processes(processes):
    """Return those of the processes that a nanny has started to score."""
    found = []
    for process in processes:
        try:
            if "multiprocessing.spawn" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_two_users_of_a_gateway_score_at_once_and_a_killed_worker_is_replaced(gateway, tmp_path):
    ann, ben = work_of(tmp_path, "ann"), work_of(tmp_path, "ben")
    drivers = [
        ann.start(*BY_GATEWAY, "--workers", 2, env=gateway.user("ann")),
        ben.start(*BY_GATEWAY, "--adapt", "0:2", env=gateway.user("ben")),
    ]
    ann.wait_for_parts(4, drivers[0])
    own = [process for process in gateway.processes("worker") if process.environ()["DASK_GATEWAY_CLUSTER_NAME"]]
    assert len(own) >= 2
    own[0].kill()
    assert [one.finish(driver) for one, driver in zip((ann, ben), drivers, strict=True)] == [0, 0], ann.log + ben.log
    ann.exact()
    ben.exact()
    gateway.wait_empty()


def test_a_gateway_refuses_a_wrong_password_and_nothing_is_written(gateway, tmp_path):
    work = work_of(tmp_path)
    assert work.finish(work.start(*BY_GATEWAY, "--workers", 2, env=gateway.user("ann", "wrong"))) == 4
    assert "GatewayCluster did not start" in work.log
    assert "401" in work.log
    assert "wrong" not in work.log
    assert "Traceback" not in work.log
    assert not work.output.exists()
    gateway.wait_empty()


def test_a_gateway_that_does_not_know_a_name_says_so(gateway, tmp_path):
    work = work_of(tmp_path)
    assert work.finish(work.start(*BY_GATEWAY, "--cluster-name", "nowhere", env=gateway.user("ann"))) == 4
    assert "GatewayCluster nowhere cannot be reached" in work.log
    assert "Traceback" not in work.log


def test_a_running_cluster_of_a_gateway_is_used_by_its_name_and_left_running(gateway, tmp_path):
    from dask_gateway import BasicAuth, Gateway

    work, user = work_of(tmp_path), gateway.user("cid")
    with Gateway(
        user["DASK_GATEWAY__ADDRESS"], proxy_address=user["DASK_GATEWAY__PROXY_ADDRESS"],
        auth=BasicAuth("cid", user["DASK_GATEWAY__AUTH__KWARGS__PASSWORD"]),
    ) as client, client.new_cluster() as cluster:  # fmt: skip
        cluster.scale(1)
        work.run(*BY_GATEWAY, "--cluster-name", cluster.name, env=user)
        work.exact()
        assert [one.name for one in client.list_clusters()] == [cluster.name]
    gateway.wait_empty()


def test_a_cluster_by_ssh_has_a_fixed_number_of_workers(sshd, tmp_path):
    work = work_of(tmp_path)
    assert work.finish(work.start(*sshd.options(1), "--adapt", "0:3")) == 4
    assert "the number of workers of SSHCluster cannot be set" in work.log
    assert "Traceback" not in work.log
    wait_until(lambda: not sshd.sessions(), 30, lambda: f"no session; there are {sshd.sessions()}")


def of_class(kind, request, tmp_path):
    """Return the flags of two workers, the driver's environment, a function that finds the processes, and folders.

    In these folders are the logs of the service itself, which stay.
    """
    own = {"TMPDIR": str(tmp_path / "scratch"), MARK: str(tmp_path)}
    marked = of_environment(MARK, str(tmp_path))
    if kind == "local":
        return BY_LOCAL, environment(**own), marked, []
    service = request.getfixturevalue(kind)
    if kind == "gateway":
        flags = (*BY_GATEWAY, "--workers", 2)
        return flags, service.user("dora") | own, lambda: [*marked(), *service.processes()], []
    if kind == "sshd":
        return service.options(2), environment(**own), lambda: [*marked(), *service.sessions()], [service.folder]
    daemons, settings = set(service.processes()), environment(SLURM_CONF=service.conf, **own)
    jobs = lambda: [*marked(), *(set(service.processes()) - daemons)]  # noqa: E731 - as above
    return (*BY_SLURM, "--workers", 2), settings, jobs, [service.folder]


@pytest.mark.parametrize("kind", ["local", "sshd", "gateway", "slurm"])
def test_a_killed_worker_changes_no_score_and_no_process_socket_or_file_is_left(kind, request, tmp_path, report_line):
    (tmp_path / "scratch").mkdir()
    flags, env, found, logs = of_class(kind, request, tmp_path)
    work = work_of(tmp_path)
    traces = Traces(found, keep=[work.folder, *logs])
    driver = work.start(*flags, env=env)
    work.wait_for_parts(4, driver)
    traces.look()
    workers = worker_processes(found())
    assert len(workers) >= 2
    workers[0].kill()
    while driver.poll() is None:
        traces.look()
        time.sleep(0.2)
    assert work.finish(driver) == 0, work.log
    work.exact()
    seen = f"{len(traces.processes)} processes, {len(traces.ports)} ports and {len(traces.files)} files"
    left = traces.left()
    report_line(f"{flags[1]}: {seen} while it ran, {len(left)} after it")
    assert len(traces.processes) >= 3
    assert traces.ports
    assert not left, left
    files = {path.name for path in (tmp_path / "scratch").rglob("*") if not path.is_dir() and path.suffix != LOCK}
    assert files <= SHARED
