"""Scheduler, workers and client on hosts of their own; a cable that is pulled."""

from __future__ import annotations

import itertools
import time

import pytest

from services.work import Clock

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


@pytest.mark.parametrize("mended_after_s", [None, 5, 60], ids=["for good", "for 5 s", "for 60 s"])
def test_a_cable_cut_in_mid_run_costs_time_and_no_row(scattered, work, shown, mended_after_s):
    lan, address = scattered
    _, _, loses, client = lan
    driver = work.start("--scheduler", address, through=client.prefix(work.folder))
    work.wait_for_parts(8, driver)
    loses.cut()
    cut_at, clock = time.time(), Clock()
    if mended_after_s:
        time.sleep(mended_after_s)
        loses.mend()
    assert work.finish(driver) == 0, work.said + lan.log()
    took = clock()
    work.exact()
    moments = work.commits()
    left = sum(moment > cut_at for moment in moments) / len(moments) * work.seconds
    pause = max(later - sooner for sooner, later in itertools.pairwise([cut_at, *(m for m in moments if m > cut_at)]))
    shown(f"cable cut {mended_after_s or 'for good'}: {took:.1f} s until the end where the one worker left needs "
          f"{left:.1f} s: {took - left:.1f} s lost; nothing was committed for {pause:.1f} s")  # fmt: skip
