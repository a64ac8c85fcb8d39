"""Numbers for a person: bytes, seconds, counts."""

from __future__ import annotations

_STEP = 1000
_EXACT_S = 10  # below, a tenth of a second matters
_SMALL = 1e-3


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


def many(count: int, noun: str) -> str:
    """A count and its noun."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def short(value: float) -> str:
    """A number with three figures: 1.25M, 40k, 0.037."""
    for step, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= step * 0.9995:
            return f"{value / step:.3g}{unit}"
    return "0" if value == 0 else f"{value:.3g}" if abs(value) >= _SMALL else f"{value:.1e}"
