"""The speed of a run, current and average, and the remaining time as a 90 % interval.

Reads no clock: the time is an argument of each function.
"""

from __future__ import annotations

import math
from collections import deque

_NOW_S = 10.0  # the current speed is measured over at least so many seconds
_NOW_ENDS = 6  # and over at least so many moments at which parts ended
_NOW_STEP_S = 0.5  # parts that end within this time count as one moment
_MARKS = 64  # marks that are kept of the whole run
_PIECES = 12  # pieces of the run whose speeds are compared
_HALF_LIFE = 0.2  # share of the elapsed time after which a piece has half its weight
_WIDTH = 1.64  # standard deviations: 90 % of a normal distribution lie within
_DOUBT, _FEW = 0.02, 0.25  # least uncertainty, as a share of the remaining time; and its increase if pieces are few
_TREND, _MAX_TREND = 3.0, 0.6  # how strongly a change of speed is extrapolated, tuned by simulation; and the limit


class Pace:
    """How many rows were finished, and when.

    Memory does not grow with the run. Kept are the last moments, for the current speed, and at most 64 marks of the
    whole run. When there are more, every second mark is dropped.
    """

    def __init__(self, at: float) -> None:
        self._began = at
        self.rows = 0
        self._recent: deque[tuple[float, int]] = deque([(at, 0)], maxlen=4 * _NOW_ENDS * round(_NOW_S))
        self._parts = 0
        self._marks = [(at, 0, 0)]
        self._every, self._since_mark = 1, 0

    def add(self, rows: int, at: float) -> None:
        """Count a part with so many rows that ended at this time."""
        self.rows += rows
        if len(self._recent) > 1 and at - self._recent[-2][0] < _NOW_STEP_S:
            self._recent[-1] = (at, self.rows)
        else:
            self._recent.append((at, self.rows))
        self._parts += 1
        self._since_mark += 1
        if self._since_mark < self._every:
            return
        self._since_mark = 0
        self._marks = [*self._marks, (at, self.rows, self._parts)] if len(self._marks) < _MARKS else self._thinned(at)

    def _thinned(self, at: float) -> list[tuple[float, int, int]]:
        self._every *= 2
        return [*self._marks[::2], (at, self.rows, self._parts)]

    def average(self, at: float) -> float:
        """Return rows per second since the start."""
        return self.rows / max(at - self._began, 1e-9)

    def now(self, at: float) -> float:
        """Return the current rows per second: of the last ten seconds, or of more if few parts ended in them."""
        recent = list(self._recent)
        if len(recent) == 1:
            return 0.0
        first = 0
        for place in range(len(recent) - 1, -1, -1):
            first = place
            if recent[-1][0] - recent[place][0] >= _NOW_S and len(recent) - 1 - place >= _NOW_ENDS:
                break
        (since, before), (until, after) = recent[first], recent[-1]
        gap = (until - since) / (len(recent) - 1 - first)
        return (after - before) / max(until - since, at - gap - since, 1e-9)  # while no part ends, the speed sinks

    def remaining(self, rows: int, at: float, at_once: int = 1) -> tuple[float, float] | None:
        """Return the seconds until `rows` more rows are finished, as a 90 % interval; None while too little is known.

        `at_once` parts are scored at the same time. The interval holds for a steady speed. If the speed changes, the
        interval covers both no further change and the same change continued.
        """
        pieces = self._pieces(at_once)
        if not pieces:
            return None
        half_life = max(_HALF_LIFE * (at - self._began), 1e-3)
        weighted = [(0.5 ** ((at - end) / half_life), seconds, done) for end, seconds, done in pieces]
        seconds = sum(w * t for w, t, _ in weighted)
        rate = sum(w * r for w, _, r in weighted) / seconds
        noise = sum(w * (r - rate * t) ** 2 / t for w, t, r in weighted) / sum(w for w, _, _ in weighted) / rate**2
        known_s = seconds**2 / sum(w * w * t for w, t, _ in weighted)
        todo = rows / rate
        doubt = _DOUBT + _FEW / len(pieces)
        half_width = _WIDTH * math.sqrt(noise * (todo + todo**2 / known_s) + (todo * doubt) ** 2)
        change = (rate - self.average(at)) / rate * todo / max(at - self._began, 1e-9)
        trend = todo / (1 + min(max(_TREND * change, -_MAX_TREND), _MAX_TREND))
        straggling = 0.0 if at_once == 1 else 0.5 * at_once * self.rows / max(self._parts, 1) / rate
        waited = min(max(0.0, at - self._recent[-1][0]), todo)  # the parts in progress are done in part
        low = min(todo, trend) - half_width - straggling - waited
        high = max(todo, trend) + half_width + 2 * straggling - waited / 2
        return max(low, 0.0), max(high, 0.0)

    def _pieces(self, at_once: int) -> list[tuple[float, float, int]]:
        """Return the run so far in pieces, each long enough for a part per thread: end, seconds and rows."""
        least = max(at_once, self._parts / _PIECES)
        found, (since, before, first) = [], self._marks[0]
        for moment, rows, ended in self._marks[1:]:
            if ended - first >= least and moment > since:
                found.append((moment, moment - since, rows - before))
                since, before, first = moment, rows, ended
        return found if sum(rows for _, _, rows in found) else []
