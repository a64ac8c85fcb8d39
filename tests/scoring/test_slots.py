"""The scoring slots of a worker."""

from __future__ import annotations

import threading
import time

import pytest

from scorer.scoring import job as job_
from scorer.scoring.job import Slots


def start_waiting(slots, order, name):
    def work():
        slots.acquire(lambda: None)
        order.append(name)
        slots.release()

    before = len(slots._waiting)
    thread = threading.Thread(target=work)
    thread.start()
    while len(slots._waiting) == before:
        time.sleep(0.001)
    return thread


def test_slots_are_given_in_the_order_in_which_parts_ask():
    slots, order = Slots(1), []
    slots.acquire(lambda: None)
    threads = [start_waiting(slots, order, name) for name in range(8)]
    slots.release()
    for thread in threads:
        thread.join()
    assert order == list(range(8))
    assert slots._free == 1


def test_a_part_that_gives_up_waiting_keeps_no_slot(monkeypatch):
    monkeypatch.setattr(job_, "_STOP_CHECK_S", 0.001)
    slots, order = Slots(1), []
    slots.acquire(lambda: None)

    def ended():
        raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        slots.acquire(ended)
    thread = start_waiting(slots, order, "next")
    slots.release()
    thread.join()
    assert (order, slots._free, len(slots._waiting)) == (["next"], 1, 0)


def test_a_slot_that_is_given_while_a_part_gives_up_goes_to_the_next(monkeypatch):
    monkeypatch.setattr(job_, "_STOP_CHECK_S", 0.001)
    slots = Slots(1)
    slots.acquire(lambda: None)

    def ended():
        slots.release()
        raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        slots.acquire(ended)
    slots.acquire(lambda: pytest.fail("no slot is free"))
