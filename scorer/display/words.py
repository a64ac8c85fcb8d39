"""Numbers for a person: bytes, seconds, stretches of time, counts, how many more."""

from __future__ import annotations

import difflib
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def visible(text: str) -> str:
    """Line breaks, terminal escapes and other control characters of foreign names, made visible."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quoted_list(names: Iterable[object], limit: int = 10) -> str:
    """Names quoted, sorted as given, cut at `limit` with a count."""
    quoted = [repr(name) for name in names]
    rest = len(quoted) - limit
    return ", ".join(quoted[:limit]) + (f" and {rest} more" if rest > 0 else "")


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A suggestion, or the list when nothing is near."""
    near = nearest(word, known)
    return f"did you mean {near!r}?" if near else f"known: {quoted_list(known, 40)}"


def nearest(word: str, known: Sequence[str]) -> str:
    """The one that was probably meant; '' when nothing is near."""
    return next(iter(difflib.get_close_matches(word, known, n=1)), "")


_STEP = 1000
_EXACT_S = 10  # below, a tenth of a second matters
_SMALL = 1e-3
_MINUTE, _HOUR = 60, 3600
_FINE_S = 20  # from here on, a stretch of seconds is known by fives
_FEW = 10  # hours, whose tenths matter


def size(count: float) -> str:
    """Bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < _STEP:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= _STEP
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds, as hours and minutes where there are many."""
    if seconds < _EXACT_S:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def plural(count: int, noun: str) -> str:
    """A count and its noun."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def name_list(names: Sequence[str], limit: int = 8) -> str:
    """The first names of many."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def short_number(value: float) -> str:
    """A number with three figures: 1.25M, 40k, 0.037."""
    for step, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= step * 0.9995:
            return f"{value / step:.3g}{unit}"
    return "0" if value == 0 else f"{value:.3g}" if abs(value) >= _SMALL else f"{value:.1e}"


def time_range(low: float, high: float) -> str:
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
    return f"{hours:.0f}" if hours >= _FEW else f"{hours:.1f}"


def _minutes(seconds: float) -> int:
    return max(1, math.floor(seconds / _MINUTE))


def _seconds(seconds: float, *, up: bool) -> str:
    """Whole seconds, or fives of them: down at the low end, up at the high one."""
    step = 5 if seconds >= _FINE_S else 1
    steps = math.ceil(seconds / step) if up else math.floor(seconds / step)
    return str(max(steps * step, int(up)))
