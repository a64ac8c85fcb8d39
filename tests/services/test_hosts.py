"""Scheduler, workers and client on separate hosts; cables that are cut."""

from __future__ import annotations

import threading
import time

import pytest

from scorer.cluster.kinds import queues
from services.conftest import start_scheduler, start_worker, wait_for_workers
from services.work import MODEL, Clock, Work

pytestmark = [pytest.mark.service, pytest.mark.timeout(300)]


def test_scheduler_workers_and_client_on_four_hosts_give_the_exact_result(scattered, work, report_line):
    lan, address = scattered
    client = lan.hosts[-1]
    clock = Clock()
    work.run("--scheduler", address, through=client.prefix(work.folder))
    report_line(f"four hosts: {clock():.1f} s for {work.seconds:.0f} s of work by two workers")
    work.exact()
    hosts = {worker.rsplit(":", 1)[0] for worker in work.workers()}
    assert len(hosts) == 2, work.workers()


def cut_in_mid_run(scattered, work, mended_after_s=None):
    """Cut a worker's cable while it scores; return a line about the time that it cost."""
    lan, address = scattered
    _, _, loses, client = lan
    driver = work.start("--scheduler", address, through=client.prefix(work.folder))
    work.wait_for_parts(8, driver)
    loses.cut()
    cut_at, clock = time.time(), Clock()
    timer = threading.Timer(mended_after_s or 0, loses.mend)
    if mended_after_s:
        timer.start()
    assert work.finish(driver) == 0, work.log + lan.log()
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


@pytest.mark.minutes
def test_a_cable_cut_for_good_in_mid_run_costs_time_and_no_row(scattered, work, report_line):
    report_line(cut_in_mid_run(scattered, work))


def test_a_cable_cut_for_five_seconds_costs_no_row(scattered, work, report_line):
    report_line(cut_in_mid_run(scattered, work, 5))


OURS = {queues.variable(name): value for name, value in {**queues.WORKER_CONFIG, **queues.SCHEDULER_CONFIG}.items()}


@pytest.mark.parametrize("scattered", [OURS], ids=["settings of queue jobs"], indirect=True)
def test_a_cable_cut_for_good_costs_no_row_with_the_settings_of_queue_jobs(scattered, work, report_line):
    report_line(cut_in_mid_run(scattered, work))


def test_the_model_is_copied_once_to_each_host_without_it(lan, work, report_line):
    first, second, third, client = lan
    address = start_scheduler(first)
    for host, many in ((second, 2), (third, 1)):
        scratch = lan.folder / f"scratch-{host.name}"
        scratch.mkdir()
        host.private(MODEL.parent)
        for i in range(many):
            start_worker(host, address, f"{host.name}-{i}", TMPDIR=str(scratch))
    wait_for_workers(client, address, 3)
    work.run("--scheduler", address, through=client.prefix(work.folder))
    work.exact()
    assert "the model was copied to 2 hosts that cannot read its file" in work.log
    for host in (second, third):
        shelf = next((lan.folder / f"scratch-{host.name}").glob("scorer-*/models"))
        assert len(list(shelf.iterdir())) == 1
    report_line("a model that two hosts with three workers do not see: copied to each host once")


def test_a_host_that_joins_late_without_the_model_gets_a_copy(lan, work):
    first, second, third, client = lan
    address = start_scheduler(first)
    start_worker(second, address, "early")
    wait_for_workers(client, address, 1)
    driver = work.start("--scheduler", address, through=client.prefix(work.folder))
    work.wait_for_parts(4, driver)
    scratch = lan.folder / "scratch"
    scratch.mkdir()
    third.private(MODEL.parent)
    start_worker(third, address, "late", TMPDIR=str(scratch))
    assert work.finish(driver) == 0, work.log + lan.log()
    work.exact()
    assert {worker.partition(":")[0] for worker in work.workers()} == {"h2", "h3"}


def test_an_input_that_workers_do_not_see_is_refused_with_a_hint(lan, work):
    first, second, _, client = lan
    address = start_scheduler(first)
    second.private(work.folder)
    start_worker(second, address, "blind")
    wait_for_workers(client, address, 1)
    assert work.finish(work.start("--scheduler", address, through=client.prefix(work.folder))) == 4
    assert "workers do not see the input" in work.log
    assert "workers cannot write the output" in work.log
    assert "a file system that every worker mounts at the same path" in work.log
    assert not list(work.folder.glob("out*"))


@pytest.mark.minutes
def test_a_worker_that_returns_after_dask_removed_it_costs_no_row(scattered, tmp_path, report_line):
    report_line(cut_in_mid_run(scattered, Work(tmp_path / "work", parts=160, part_s=0.5), 45))
