"""Numbers for a person: bytes, seconds, stretches of time, counts of things."""

from __future__ import annotations

import math

_MINUTE, _HOUR = 60, 3600
_FINE_S = 20  # from here on, a stretch of seconds is known by fives
_TENTHS = 10


def size(count: float) -> str:
    """Bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:  # noqa: PLR2004 - SI
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def many(count: int, noun: str) -> str:
    """So many of something."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def duration(seconds: float) -> str:
    """How long something took."""
    if seconds < _TENTHS:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), _MINUTE)
    hours, minutes = divmod(minutes, _MINUTE)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def between(low: float, high: float) -> str:
    """How long something will take, no finer than it is known."""
    if high >= 2 * _HOUR:
        first, last = _hours(low), _hours(high)
        if low < _HOUR:
            return f"{_minutes(low)} min to {last} h"
        return f"about {last} h" if first == last else f"{first} to {last} h"
    if high >= 2 * _MINUTE:
        first, last = str(_minutes(low)), str(math.ceil(high / _MINUTE))
        if low < _MINUTE:
            return f"{_seconds(low, up=False)} s to {last} min"
        return f"about {last} min" if first == last else f"{first} to {last} min"
    first, last = _seconds(low, up=False), _seconds(high, up=True)
    if first == "0":
        return f"up to {last} s"
    return f"about {last} s" if first == last else f"{first} to {last} s"


def _hours(seconds: float) -> str:
    hours = seconds / _HOUR
    return f"{hours:.0f}" if hours >= _TENTHS else f"{hours:.1f}"


def _minutes(seconds: float) -> int:
    return max(1, math.floor(seconds / _MINUTE))


def _seconds(seconds: float, *, up: bool) -> str:
    """Whole seconds, or fives of them: down at the low end, up at the high one."""
    step = 5 if seconds >= _FINE_S else 1
    steps = math.ceil(seconds / step) if up else math.floor(seconds / step)
    return str(max(steps * step, int(up)))
