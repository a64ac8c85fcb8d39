"""Runs on a real Grid Engine of four hosts: the driver on the first, jobs on the others."""

from __future__ import annotations

import sys

import pytest

from services.processes import environment, wait_until
from services.work import MODEL, Work

pytestmark = [pytest.mark.service, pytest.mark.timeout(300)]
BY_HAND = """\
import sys

import scorer
from dask.distributed import Client
from dask_jobqueue import SGECluster

if __name__ == "__main__":
    source, model, output = sys.argv[1:4]
    with SGECluster(
        queue="debug", cores=1, processes=1, memory="2GB", walltime="00:10:00", interface="eth0",
        job_extra_directives=["-V"], scheduler_options={"dashboard_address": "127.0.0.1:0"},
        worker_extra_args=["--no-dashboard"],
    ) as cluster, Client(cluster) as client:
        cluster.scale(jobs=3)
        client.wait_for_workers(3, timeout=60)
        scorer.run(source, model, output, client=client, feed="x=a,b,c", keep="id", transform="pace:slowly",
                   part_bytes="20KiB", tune=False)
"""
ON_SGE = ("--cluster", "sge", "--queue", "debug", "--memory", "2GB", "--interface", "eth0", "--job-extra=-V",
          "--threads", 1)  # fmt: skip


def test_a_cluster_made_by_hand_puts_three_workers_on_three_hosts(grid_engine, work, report_line):
    (work.folder / "by_hand.py").write_text(BY_HAND)
    command = (sys.executable, "by_hand.py", work.source, MODEL, work.output)
    grid_engine.first.run(*command, cwd=work.folder, timeout=200, **grid_engine.environment)
    work.exact()
    hosts = {worker.split(":")[0] for worker in work.workers()}
    assert hosts == {"h2", "h3", "h4"}
    report_line(f"the queue was empty {grid_engine.wait_empty():.1f} s after the end")


def driver(grid_engine, work, *flags):
    """Start the command line on the submit host."""
    env = environment(**grid_engine.environment)
    return work.start(*ON_SGE, *flags, through=grid_engine.prefix(work.folder), env=env)


def test_three_jobs_score_and_leave_the_queue_empty(grid_engine, work):
    run = driver(grid_engine, work, "--workers", 3, "--walltime", "00:10:00")
    assert work.finish(run) == 0, work.log + grid_engine.log()
    grid_engine.wait_empty()
    work.exact()
    assert {worker.split(":")[0] for worker in work.workers()} == {"h2", "h3", "h4"}


def test_a_job_deleted_in_mid_run_is_replaced_and_costs_no_row(grid_engine, work):
    run = driver(grid_engine, work, "--workers", 3, "--walltime", "00:10:00")
    work.wait_for_parts(8, run)
    first, *others = grid_engine.jobs()
    grid_engine.cancel(first)
    known = {job.id for job in (first, *others)}
    wait_until(lambda: {job.id for job in grid_engine.jobs()} - known, 60, lambda: f"another job\n{work.log}")
    assert work.finish(run) == 0, work.log + grid_engine.log()
    grid_engine.wait_empty()
    work.exact()


@pytest.mark.minutes
def test_jobs_whose_walltime_ends_in_mid_run_are_replaced(grid_engine, tmp_path, report_line):
    work = Work(tmp_path / "work", parts=200, part_s=1.0)  # a minute and more for three workers
    run = driver(grid_engine, work, "--workers", 3, "--walltime", "00:00:40")
    seen = set()
    while run.poll() is None:
        seen |= {job.id for job in grid_engine.jobs()}
    assert work.finish(run) == 0, work.log + grid_engine.log()
    grid_engine.wait_empty()
    work.exact()
    assert len(seen) >= 6, seen
    report_line(f"walltime of 40 s: {len(seen)} jobs for three workers")
