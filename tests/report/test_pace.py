"""Speed now and on average, and the time left: between two ends, nine times in ten."""

from __future__ import annotations

import heapq
import random

import numpy as np
import pytest

from scorer.report._pace import Pace


def ends(seconds_of_part, threads, parts, seed):
    """When each of many parts ends, in order, if so many threads take one after the other."""
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
    """How often the end lay between the two, and how far they were apart beside the truth."""
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
def test_a_run_of_steady_speed_ends_between_the_two_about_nine_times_in_ten(kind, threads):
    within, wide = shares(kind, threads)
    assert within > 0.84, wide
    assert wide < {"even": 0.6, "uneven": 1.7, "in bursts": 1.2}[kind]


@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize("kind", ["slower and slower", "faster and faster"])
def test_a_run_whose_speed_doubles_or_halves_mostly_does_too(kind, threads):
    within, wide = shares(kind, threads)
    assert within > 0.65, wide
    assert wide < 1


def test_a_steady_run_is_known_closely():
    pace = Pace(0.0)
    for second in range(1, 101):
        pace.add(1000, float(second))
    low, high = pace.remaining(100_000, 100.0)
    assert 90 < low < 100 < high < 110


def test_nothing_is_said_before_every_thread_has_ended_a_part_and_little_soon_after():
    pace = Pace(0.0)
    assert pace.remaining(10, 1.0, 2) is None
    pace.add(5, 1.0)
    assert pace.remaining(10, 1.0, 2) is None
    pace.add(5, 1.1)
    low, high = pace.remaining(100, 1.1, 2)
    assert low < 8
    assert high > 16


def test_speed_now_is_that_of_the_last_moments_and_average_that_of_all():
    pace = Pace(0.0)
    for second in range(1, 101):
        pace.add(1000 if second <= 50 else 100, float(second))
    assert pace.average(100.0) == pytest.approx(550)
    assert pace.now(100.0) == pytest.approx(100)


def test_speed_now_sinks_while_nothing_ends():
    pace = Pace(0.0)
    for second in range(1, 21):
        pace.add(1000, float(second))
    assert pace.now(20.5) == pytest.approx(1000)
    assert pace.now(40.0) < 400
    assert pace.now(400.0) < 40


def test_parts_that_end_together_do_not_make_it_fast():
    pace = Pace(0.0)
    for second in range(5, 105, 5):
        for thread in range(8):
            pace.add(1000, second + thread / 1000)
    assert pace.now(100.0) == pytest.approx(1600, rel=0.2)


def test_what_is_kept_does_not_grow():
    pace = Pace(0.0)
    for part in range(200_000):
        pace.add(1, part / 1000)
    assert len(pace._marks) <= 64
    assert len(pace._recent) <= 240
    assert pace.rows == 200_000
