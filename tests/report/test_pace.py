"""Current and average speed, and the remaining time as a 90 % interval."""

from __future__ import annotations

import heapq
import random

import numpy as np
import pytest

from scorer.report._pace import Pace


def ends(seconds_of_part, threads, parts, seed):
    """End times of the parts, in order, if each thread takes one part after the other."""
    rng = random.Random(seed)
    free = [0.0] * threads
    found = []
    for part in range(parts):
        end = heapq.heappop(free) + seconds_of_part(part / parts, rng)
        heapq.heappush(free, end)
        found.append(end)
    return sorted(found)


KINDS = {
    "even": lambda _, rng: rng.uniform(0.95, 1.05),
    "uneven": lambda _, rng: rng.lognormvariate(0, 0.7),
    "in bursts": lambda share, rng: (1 if int(share * 10) % 2 else 2) * rng.uniform(0.9, 1.1),
    "slower and slower": lambda share, rng: (1 + share) * rng.uniform(0.9, 1.1),
    "faster and faster": lambda share, rng: (2 - share) * rng.uniform(0.9, 1.1),
}


def shares(kind, threads):
    """How often the interval contained the end, and its median width relative to the true remaining time."""
    within, wide = [], []
    for seed in range(25):
        moments = ends(KINDS[kind], threads, 40 * threads, seed)
        pace = Pace(0.0)
        for n, moment in enumerate(moments, 1):
            pace.add(1000, moment)
            if n % (2 * threads + 1) == 0 and 0.1 < n / len(moments) < 0.97:
                low, high = pace.remaining(1000 * (len(moments) - n), moment, threads)
                truth = moments[-1] - moment
                within.append(low <= truth <= high)
                wide.append((high - low) / truth)
    return np.mean(within), np.median(wide)


@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize("kind", ["even", "uneven", "in bursts"])
def test_the_interval_contains_the_end_of_a_steady_run_in_about_nine_of_ten_cases(kind, threads):
    within, wide = shares(kind, threads)
    assert within > 0.84, wide
    assert wide < {"even": 0.6, "uneven": 1.7, "in bursts": 1.2}[kind]


@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize("kind", ["slower and slower", "faster and faster"])
def test_the_interval_mostly_contains_the_end_if_the_speed_doubles_or_halves(kind, threads):
    within, wide = shares(kind, threads)
    assert within > 0.65, wide
    assert wide < 1


def test_the_interval_of_a_steady_run_is_narrow():
    pace = Pace(0.0)
    for second in range(1, 101):
        pace.add(1000, float(second))
    low, high = pace.remaining(100_000, 100.0)
    assert 90 < low < 100 < high < 110


def test_there_is_no_interval_before_each_thread_has_ended_a_part_and_a_wide_one_soon_after():
    pace = Pace(0.0)
    assert pace.remaining(10, 1.0, 2) is None
    pace.add(5, 1.0)
    assert pace.remaining(10, 1.0, 2) is None
    pace.add(5, 1.1)
    low, high = pace.remaining(100, 1.1, 2)
    assert low < 8
    assert high > 16


def test_current_speed_is_that_of_the_last_seconds_and_average_speed_that_of_the_run():
    pace = Pace(0.0)
    for second in range(1, 101):
        pace.add(1000 if second <= 50 else 100, float(second))
    assert pace.average(100.0) == pytest.approx(550)
    assert pace.now(100.0) == pytest.approx(100)


def test_current_speed_sinks_while_no_part_ends():
    pace = Pace(0.0)
    for second in range(1, 21):
        pace.add(1000, float(second))
    assert pace.now(20.5) == pytest.approx(1000)
    assert pace.now(40.0) < 400
    assert pace.now(400.0) < 40


def test_parts_that_end_together_do_not_inflate_the_current_speed():
    pace = Pace(0.0)
    for second in range(5, 105, 5):
        for thread in range(8):
            pace.add(1000, second + thread / 1000)
    assert pace.now(100.0) == pytest.approx(1600, rel=0.2)


def test_memory_does_not_grow_with_the_run():
    pace = Pace(0.0)
    for part in range(200_000):
        pace.add(1, part / 1000)
    assert len(pace._marks) <= 64
    assert len(pace._recent) <= 240
    assert pace.rows == 200_000
