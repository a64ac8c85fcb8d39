"""How fast rows go by, now and on average, and when the last one will, with how little is known of it.

Pure: the clock's reading is an argument.
"""

from __future__ import annotations

import math
from collections import deque

_NOW_S = 10.0  # what "now" looks back on, at the least
_NOW_ENDS = 6  # moments at which parts ended that it needs, at the least
_NOW_STEP_S = 0.5  # ends nearer to each other are one moment
_MARKS = 64
_PIECES = 12  # of the run so far, whose speeds are compared
_MEMORY = 0.2  # of the time gone by, after which what was seen counts half
_WIDTH = 1.64  # of a normal distribution: nine in ten lie within
_DOUBT, _FEW = 0.02, 0.25  # of the time left, however steady the speed; and more while pieces are few
_TREND, _MOST = 3.0, 0.6  # how a change of speed goes on, by simulation; and how far it is believed


class Pace:
    """Rows that have gone by, and when.

    What is kept does not grow with the run: a few moments for the speed now, and at most 64 marks over the whole
    run, of which every second one goes when they are too many.
    """

    def __init__(self, at: float) -> None:
        self._began = at
        self.rows = 0
        self._recent: deque[tuple[float, int]] = deque([(at, 0)], maxlen=4 * _NOW_ENDS * round(_NOW_S))
        self._ended = 0
        self._marks = [(at, 0, 0)]
        self._skip, self._skipped = 1, 0

    def add(self, rows: int, at: float) -> None:
        """A part with so many rows has ended."""
        self.rows += rows
        if len(self._recent) > 1 and at - self._recent[-2][0] < _NOW_STEP_S:
            self._recent[-1] = (at, self.rows)
        else:
            self._recent.append((at, self.rows))
        self._ended += 1
        self._skipped += 1
        if self._skipped < self._skip:
            return
        self._skipped = 0
        self._marks = [*self._marks, (at, self.rows, self._ended)] if len(self._marks) < _MARKS else self._thinned(at)

    def _thinned(self, at: float) -> list[tuple[float, int, int]]:
        self._skip *= 2
        return [*self._marks[::2], (at, self.rows, self._ended)]

    def average(self, at: float) -> float:
        """Rows per second since the beginning."""
        return self.rows / max(at - self._began, 1e-9)

    def now(self, at: float) -> float:
        """Rows per second lately: over some seconds, or some parts if those are few."""
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
        return (after - before) / max(until - since, at - gap - since, 1e-9)  # a gap that grows is slowness, too

    def left(self, rows: int, at: float, at_once: int = 1) -> tuple[float, float] | None:
        """Seconds until so many more rows have gone by, scored so many parts at once; None while nobody knows.

        Of runs whose speed stays what it is, nine in ten end between the two. A speed that changes is taken to
        change on, and the stretch reaches from no further change to that.
        """
        stretches = self._stretches(at_once)
        if not stretches:
            return None
        half = max(_MEMORY * (at - self._began), 1e-3)
        weighed = [(0.5 ** ((at - end) / half), seconds, some) for end, seconds, some in stretches]
        seconds = sum(w * t for w, t, _ in weighed)
        rate = sum(w * r for w, _, r in weighed) / seconds
        noise = sum(w * (r - rate * t) ** 2 / t for w, t, r in weighed) / sum(w for w, _, _ in weighed) / rate**2
        known_s = seconds**2 / sum(w * w * t for w, t, _ in weighed)
        todo = rows / rate
        doubt = _DOUBT + _FEW / len(stretches)
        off = _WIDTH * math.sqrt(noise * (todo + todo**2 / known_s) + (todo * doubt) ** 2)
        change = (rate - self.average(at)) / rate * todo / max(at - self._began, 1e-9)
        trend = todo / (1 + min(max(_TREND * change, -_MOST), _MOST))
        straggling = 0.0 if at_once == 1 else 0.5 * at_once * self.rows / max(self._ended, 1) / rate
        waited = min(max(0.0, at - self._recent[-1][0]), todo)  # parts in flight are part of what is to do
        low, high = min(todo, trend) - off - straggling - waited, max(todo, trend) + off + 2 * straggling - waited / 2
        return max(low, 0.0), max(high, 0.0)

    def _stretches(self, at_once: int) -> list[tuple[float, float, int]]:
        """The run so far in pieces in which each thread has ended a part: their end, seconds and rows."""
        least = max(at_once, self._ended / _PIECES)
        found, (since, before, first) = [], self._marks[0]
        for moment, rows, ended in self._marks[1:]:
            if ended - first >= least and moment > since:
                found.append((moment, moment - since, rows - before))
                since, before, first = moment, rows, ended
        return found if sum(rows for _, _, rows in found) else []
