"""`scorer run --cluster slurm` on a real queue: jobs that are cancelled, end and are replaced; the queue ends empty."""

from __future__ import annotations

import itertools
import json
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from support import access

from services.processes import wait_until
from services.work import Clock, Work

pytestmark = [pytest.mark.service, pytest.mark.timeout(300)]
ON_SLURM = (
    "--cluster", "slurm", "--queue", "debug", "--memory", "2GB", "--interface", "lo", "--job-extra=--exclusive",
    "--threads", 1,
)  # fmt: skip
FOUR = ("--workers", 4, "--walltime", "00:10:00")
FOLLOW_S = 60
"""Seconds in which jobs must leave the queue after their driver has ended."""


class Watch:
    """Polls the queue during a run."""

    def __init__(self, slurm, driver):
        self._slurm, self._driver = slurm, driver
        self.seen = {}
        """Jobs by id, in the last state seen."""
        self.at_once = 0
        """The largest number of jobs at one time, without those that were ending."""

    def until_the_end(self, seconds=240):
        """Poll until the run ends; return its exit code."""
        until = time.monotonic() + seconds
        while self._driver.poll() is None and time.monotonic() < until:
            jobs = self._slurm.jobs()
            self.seen |= {job.id: job for job in jobs}
            self.at_once = max(self.at_once, sum(job.state in {"PENDING", "RUNNING"} for job in jobs))
            time.sleep(0.2)
        return self._driver.poll()


def running(slurm, work, *flags, parts=4):
    """Start a run, wait for its first parts, and return its driver and its running jobs."""
    driver = work.start(*ON_SLURM, *flags)
    work.wait_for_parts(parts, driver)
    return driver, slurm.jobs("RUNNING")


def longest_pause(moments):
    """Return the most seconds between two commits."""
    return max(later - sooner for sooner, later in itertools.pairwise(moments))


def test_four_jobs_score_and_leave_the_queue_empty(slurm, work, report_line):
    driver, jobs = running(slurm, work, *FOUR)
    jobs = slurm.wait_for_jobs(4, "RUNNING", seconds=20)
    assert sorted(job.node for job in jobs) == ["n1", "n2", "n3", "n4"]
    assert work.finish(driver) == 0, work.log
    assert slurm.jobs("RUNNING", "PENDING") == []  # the jobs end before the command does
    emptied = slurm.wait_empty()
    work.exact()
    assert len(work.workers()) == 4, work.workers()
    report_line(
        f"four jobs: parts by worker {sorted(work.workers().values())}; queue empty {emptied:.1f} s after the end"
    )


def test_a_job_cancelled_in_mid_run_is_replaced_and_costs_no_row(slurm, work, report_line):
    driver, jobs = running(slurm, work, *FOUR)
    slurm.cancel(jobs[0])
    watch = Watch(slurm, driver)
    assert watch.until_the_end() == 0, work.log
    slurm.wait_empty()
    work.exact()
    assert set(watch.seen) - {job.id for job in jobs}, "the cancelled job was not replaced"
    pause = longest_pause(work.commits())
    report_line(f"one of four jobs cancelled: {len(watch.seen)} jobs in all, at most {pause:.1f} s without a commit")


def test_the_dashboard_and_the_metrics_of_jobs_are_on_the_drivers_loopback(slurm, work):
    driver, _ = running(slurm, work, *FOUR, "--dashboard")
    told = [json.loads(line) for line in Path(f"{work.output}.scorer/events.jsonl").read_text().splitlines()]
    (ready,) = [line for line in told if line["event"] == "PlanReady"]
    assert ready["dashboard"].startswith("http://127.0.0.1:")
    with urllib.request.urlopen(ready["dashboard"], timeout=10) as page:
        assert "Dask Diagnostic UI" in page.read().decode()
    with urllib.request.urlopen(ready["metrics"], timeout=10) as page:
        assert 'scorer_parts_total{outcome="committed"} ' in page.read().decode()
    assert work.finish(driver) == 0, work.log
    work.exact()


def test_only_who_has_the_keys_gets_anything_from_jobs(slurm, work):
    driver, _ = running(slurm, work, *FOUR)
    workers = [p.pid for p in psutil.process_iter(["cmdline"]) if "dask_worker" in " ".join(p.info["cmdline"] or ())]
    ports = access.listening(driver.pid, *workers)
    (keys,) = Path(f"{work.output}.scorer").glob("keys-*")
    found = access.attempts(ports, [keys, *keys.iterdir()])
    assert len(ports) >= 9  # the scheduler, and for each job a nanny and a worker
    assert {got for user in found.values() for got in user["ports"]} == {"nothing"}
    assert set(found["another local user"]["paths"]) == {"nothing"}
    assert work.finish(driver) == 0, work.log
    work.exact()


def test_adaptive_jobs_stay_within_their_bounds(slurm, work, report_line):
    driver = work.start(*ON_SLURM, "--adapt", "0:3", "--walltime", "00:10:00")
    watch = Watch(slurm, driver)
    assert watch.until_the_end() == 0, work.log
    slurm.wait_empty()
    work.exact()
    assert 1 <= watch.at_once <= 3
    report_line(f"adapt 0:3: {watch.at_once} jobs at once, {len(watch.seen)} in all")


def test_after_a_driver_is_killed_its_jobs_end_and_the_same_command_resumes(slurm, work, report_line):
    driver, _ = running(slurm, work, *FOUR, parts=8)
    work.kill(driver)
    emptied = slurm.wait_empty(FOLLOW_S)
    assert not work.output.exists()
    before = work.parts()
    assert 8 <= before < 60
    work.run(*ON_SLURM, *FOUR)
    slurm.wait_empty()
    work.exact()
    assert f"{before}" in work.log
    report_line(f"driver killed: its jobs were gone after {emptied:.1f} s; {before} parts were not scored again")


@pytest.mark.minutes
def test_the_same_command_works_while_jobs_of_a_killed_driver_still_run(slurm, work):
    driver, _ = running(slurm, work, *FOUR, parts=8)
    work.kill(driver)
    work.run(*ON_SLURM, *FOUR)
    work.exact()
    slurm.wait_empty(FOLLOW_S)


def test_a_driver_stopped_by_sigterm_ends_its_jobs(slurm, work):
    driver, _ = running(slurm, work, *FOUR)
    driver.terminate()
    assert work.finish(driver, 60) == 143, work.log
    slurm.wait_empty(20)
    work.run(*ON_SLURM, *FOUR)
    work.exact()


def test_a_missing_queue_is_reported_and_no_job_is_submitted(slurm, work):
    flags = [flag if flag != "debug" else "nonsense" for flag in ON_SLURM]
    clock = Clock()
    assert work.finish(work.start(*flags, *FOUR)) == 4, work.log
    assert clock() < 60
    assert "nonsense" in work.log
    assert "Traceback" not in work.log
    assert slurm.jobs() == []


def test_a_driver_may_itself_be_a_job(slurm, tmp_path):
    work = Work(tmp_path / "work", parts=30, part_s=0.3)
    script = tmp_path / "driver.sh"
    command = " ".join(work.asked(*ON_SLURM, "--workers", 3, "--walltime", "00:10:00"))
    script.write_text(f"#!/bin/sh\ncd {work.folder}\nexec {command}\n")
    submitted = slurm.ask(
        "sbatch", "--parsable", "--exclusive", f"--chdir={work.folder}", f"--output={work.folder}/driver.log", script
    )
    driver = int(submitted)
    wait_until(lambda: driver not in {job.id for job in slurm.jobs()}, 120, lambda: f"the driver's end\n{work.log}")
    slurm.wait_empty()
    work.exact()


@pytest.mark.minutes
@pytest.mark.timeout(600)
def test_jobs_whose_walltime_ends_in_mid_run_are_replaced(slurm, tmp_path, report_line):
    work = Work(tmp_path / "work", parts=300, part_s=1.5)  # 225 s of two workers; a walltime is at least a minute
    driver, jobs = running(slurm, work, "--workers", 2, "--walltime", "00:01:00")
    watch = Watch(slurm, driver)
    assert watch.until_the_end(500) == 0, work.log
    slurm.wait_empty()
    work.exact()
    assert len(watch.seen) >= len(jobs) + 2, watch.seen
    pause = longest_pause(work.commits())
    report_line(
        f"walltime of one minute: {len(watch.seen)} jobs for two workers, at most {pause:.1f} s without a commit"
    )
