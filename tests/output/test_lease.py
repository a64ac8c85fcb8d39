"""One driver per output on a store: who gets the lease, and when its holder stops."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from support.buckets import ROOT, bucket

from scorer.errors import OutputLocked
from scorer.host.process import myself
from scorer.output import lease, lock
from scorer.storage.stores import ObjectPath

PATH = ObjectPath(f"{ROOT}/out.scorer/lock")
STALE_S = 1.0


@pytest.fixture
def store():
    with bucket() as found:
        yield found


def write(store, **owner):
    """Write a lease of another driver; return which object it is."""
    return store.put(str(PATH), json.dumps(owner).encode())


def owner():
    return lock.read(PATH)


def elsewhere(beat=0):
    return {"host": "elsewhere", "pid": 7, "token": "other", "beat": beat}


def hold(notices=None):
    return lease.held(PATH, (notices if notices is not None else []).append, STALE_S)


def test_the_lease_is_held_in_the_block_and_gone_after_it(store):
    with hold() as held:
        assert owner()["pid"] == os.getpid()
        assert held.loss() is None
    assert not PATH.exists()


def test_a_second_driver_is_refused_while_the_first_lives(store):
    with hold(), pytest.raises(OutputLocked, match="another run is writing this output"), hold():
        pass
    assert not PATH.exists()


def test_a_lease_of_a_dead_process_of_this_host_is_taken_over_at_once(store):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    write(store, **(myself() | {"pid": int(dead.stdout), "born": "1", "token": "dead"}))
    started = time.monotonic()
    with hold():
        assert owner()["pid"] == os.getpid()
    assert time.monotonic() - started < STALE_S


def test_a_lease_of_another_host_is_taken_over_when_nobody_renews_it(store):
    write(store, **elsewhere())
    notices, started = [], time.monotonic()
    with hold(notices):
        assert time.monotonic() - started >= STALE_S
        assert owner()["pid"] == os.getpid()
    assert notices == ["the output is locked by a process on elsewhere; waiting 1 s for its heartbeat"]


def test_a_lease_of_another_host_that_is_renewed_is_respected(store):
    write(store, **elsewhere())
    renewal = threading.Timer(STALE_S / 2, lambda: write(store, **elsewhere(beat=1)))
    renewal.start()
    with pytest.raises(OutputLocked, match="process 7 on elsewhere"), hold():
        pass
    assert owner()["token"] == "other"


def test_a_renewal_replaces_the_lease_and_shows_the_counters(store):
    with hold() as held:
        held.attach_counters(lambda: {"done": 5})
        first = owner()
        assert held._renew()
        assert (owner()["beat"], owner()["done"]) == (first["beat"] + 1, 5)


def test_no_request_is_sent_once_another_driver_has_the_lease(store):
    with hold() as held:
        write(store, **elsewhere())
        assert not held._renew()
        with pytest.raises(OutputLocked, match="process 7 on elsewhere took over"):
            held.store().put(f"{ROOT}/out.scorer/manifest.json", b"{}")
    assert not ObjectPath(f"{ROOT}/out.scorer/manifest.json").exists()
    assert owner()["token"] == "other", "the lease of the other driver stays"


def test_a_driver_that_was_stopped_goes_on_if_nobody_took_the_lease(store):
    with hold() as held:
        held._renewed = lease._Moment(time.monotonic() - 100, time.time() - 100)
        held.store().put(f"{ROOT}/x", b"")
        assert held.loss() is None


def test_a_clock_that_jumps_by_a_day_loses_no_lease(store):
    with hold() as held:
        held._renewed = lease._Moment(held._renewed.monotonic, held._renewed.wall - 86_400)
        assert held.loss() is None
        held._renewed = lease._Moment(held._renewed.monotonic, held._renewed.wall + 86_400)
        assert held.loss() is None


def test_a_holder_that_cannot_renew_sends_no_more_requests_before_others_take_over(store, monkeypatch):
    with hold() as held:

        def fails(*_):
            raise OSError(121, "no answer")

        monkeypatch.setattr(held._renewals, "put_over", fails)
        began = time.monotonic()
        while held.loss() is None:
            assert time.monotonic() - began < STALE_S
            time.sleep(0.01)
        with pytest.raises(OutputLocked, match="so this run stopped writing"):
            held.store().put(f"{ROOT}/x", b"")
    assert not ObjectPath(f"{ROOT}/x").exists()


def test_a_renewal_whose_answer_was_lost_counts(store, monkeypatch):
    with hold() as held:
        put_over = held._renewals.put_over
        monkeypatch.setattr(held._renewals, "put_over", lambda *args: put_over(*args) and None)
        held._renewed = lease._Moment(0.0, 0.0)
        assert held.loss() is None
        monkeypatch.undo()
        assert held._renew()


def test_a_damaged_lease_is_taken_over_after_the_same_time(store):
    store.put(str(PATH), b"not JSON")
    with hold():
        assert owner()["pid"] == os.getpid()
