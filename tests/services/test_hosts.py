"""Scheduler, workers and client on hosts of their own; a cable that is pulled."""

from __future__ import annotations

import threading
import time

import pytest

from services.work import Clock, Work

pytestmark = [pytest.mark.service, pytest.mark.timeout(300)]


def test_scheduler_workers_and_client_on_four_hosts_give_the_exact_result(scattered, work, shown):
    lan, address = scattered
    client = lan.hosts[-1]
    clock = Clock()
    work.run("--scheduler", address, through=client.prefix(work.folder))
    shown(f"four hosts: {clock():.1f} s for {work.seconds:.0f} s of work by two workers")
    work.exact()
    hosts = {worker.rsplit(":", 1)[0] for worker in work.workers()}
    assert len(hosts) == 2, work.workers()


def cut_in_mid_run(scattered, work, mended_after_s=None):
    """A worker's cable is cut while it scores; says what that cost."""
    lan, address = scattered
    _, _, loses, client = lan
    driver = work.start("--scheduler", address, through=client.prefix(work.folder))
    work.wait_for_parts(8, driver)
    loses.cut()
    cut_at, clock = time.time(), Clock()
    timer = threading.Timer(mended_after_s or 0, loses.mend)
    if mended_after_s:
        timer.start()
    assert work.finish(driver) == 0, work.said + lan.log()
    took = clock()
    timer.cancel()
    work.exact()
    moments = work.commits()
    left = sum(moment > cut_at for moment in moments) / len(moments) * work.seconds
    when = f"mended after {mended_after_s} s" if mended_after_s else "not mended"
    return (
        f"cable cut, {when}: {took:.1f} s until the end where the worker left needs {left:.1f} s, {took - left:.1f} s "
        f"lost; the last part was on disk after {moments[-1] - cut_at:.1f} s"
    )


def test_a_cable_cut_for_good_in_mid_run_costs_time_and_no_row(scattered, work, shown):
    shown(cut_in_mid_run(scattered, work))


def test_a_cable_cut_for_five_seconds_costs_no_row(scattered, work, shown):
    shown(cut_in_mid_run(scattered, work, 5))


@pytest.mark.minutes
def test_a_worker_that_was_given_up_and_comes_back_costs_no_row(scattered, tmp_path, shown):
    shown(cut_in_mid_run(scattered, Work(tmp_path / "work", parts=160, part_s=0.5), 45))
