"""Plots as data: shapes in hundredths of their frame, each with what it says.

Knows no type of ours and no markup; `templates/report.html` draws them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from scorer.display.words import short_number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


_NICE = (1, 2, 5, 10)
_CLOCK = (1, 2, 5, 10, 15, 30, 60)
_SECONDS, _MINUTES = 180.0, 3 * 3600.0  # the longest span that is told in them
_MANY_DAYS = 4
_SEAM = 0.05  # of the width, by which neighbours overlap, or the paper would shine through
_THIN = 0.12  # of the width: about a pixel
_LOW = 0.8  # of the height: what is there can be seen
_EDGE = 4.0  # nearer to a side, a word would stick out


class Shape(NamedTuple):
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float
    tint: str = "bar"
    """A class of the style sheet."""
    says: str = ""


class Tick(NamedTuple):
    """A word beside an axis."""

    at: float
    text: str
    anchor: str = "middle"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A frame with shapes, and words under and beside it."""

    name: str
    """What it shows, for whoever cannot see it."""
    height: int
    """In pixels; the width is the page's affair."""
    shapes: tuple[Shape, ...]
    across: tuple[Tick, ...] = ()
    up: tuple[Tick, ...] = ()
    rules: tuple[Tick, ...] = ()
    """Lines from side to side, such as a mean."""
    gutter: str = "narrow"
    """How much room the words beside it get: none, narrow or wide."""
    grid: bool = True
    kind: ClassVar[str] = "plot"


def shape(x: float, y: float, width: float, height: float, tint: str = "bar", says: str = "") -> Shape:
    """A rectangle that can be seen, however small it is."""
    return Shape(round(x, 2), round(y, 2), round(max(width, _THIN), 2), round(max(height, 0.0), 2), tint, says)


def bars(
    name: str, values: Sequence[float], says: Callable[[int], str], across: tuple[Tick, ...],
    *, height: int = 150, gap: float = 0.1, rules: Sequence[tuple[float, str]] = (),
) -> Plot:  # fmt: skip
    """Upright bars side by side, and lines at some values."""
    most = max([*values, *(at for at, _ in rules)], default=0.0) or 1.0
    up = [tick for tick in nice(0, most, 4) if 0 < tick <= most]
    step = 100 / max(len(values), 1)
    shapes = tuple(
        shape(i * step + gap * step / 2, 100 - tall, step * (1 - gap) + (0 if gap else _SEAM), tall, says=says(i))
        for i, value in enumerate(values)
        if value and (tall := max(_LOW, 96 * value / most))
    )
    return Plot(
        name=name,
        height=height,
        shapes=shapes,
        across=across,
        up=tuple(Tick(round(100 - 96 * tick / most, 2), short_number(tick)) for tick in up),
        rules=tuple(Tick(round(100 - 96 * at / most, 2), text) for at, text in rules),
    )


def band(name: str, low: float, high: float, fact: float, words: Callable[[float], str]) -> Plot:
    """A range that was foretold, and where the fact lies."""
    most = 1.08 * max(high, fact) or 1.0
    told = f"forecast {words(low)} to {words(high)}"
    return Plot(
        name=f"{name}: {told}, measured {words(fact)}",
        height=26,
        shapes=(
            shape(0, 30, 100, 40, "track"),
            shape(100 * low / most, 15, 100 * (high - low) / most, 70, "band", told),
            shape(100 * fact / most - 0.3, 0, 0.6, 100, "fact", f"measured {words(fact)}"),
        ),
        across=tuple(_tick(100 * at / most, words(at).replace(".0 ", " ")) for at in nice(0, most, 5) if at <= most),
        gutter="none",
        grid=False,
    )


def number_ticks(low: float, high: float) -> tuple[Tick, ...]:
    """Numbers under a plot that reaches from `low` to `high`."""
    span = (high - low) or 1.0
    inside = [at for at in nice(low, high, 5) if low <= at <= high]
    return tuple(_tick(100 * (at - low) / span, short_number(at)) for at in inside)


def time_ticks(span: float) -> tuple[Tick, ...]:
    """Times under a plot that begins at 0."""
    unit, name = (1.0, "s") if span <= _SECONDS else (60.0, "min") if span <= _MINUTES else (3600.0, "h")
    if span > _MANY_DAYS * 86_400:
        unit, name = 86_400.0, "d"
    inside = [at for at in nice(0, span / unit, 7, _CLOCK if unit == 60 else _NICE) if at * unit <= span]  # noqa: PLR2004 - a minute
    return tuple(_tick(100 * at * unit / span, f"{short_number(at)} {name}") for at in inside)


def nice(low: float, high: float, about: int, steps: Sequence[int] = _NICE) -> list[float]:
    """Round numbers from `low` to a little beyond `high`, about so many."""
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low] if math.isfinite(low) else []
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough)) if steps is _NICE else 1.0
    step = next((n * power for n in steps if n * power >= rough), steps[-1] * power)
    first = math.floor(low / step)
    return [round(n * step, 12) for n in range(first, first + about * 3) if n * step <= high + step]


def _tick(at: float, text: str) -> Tick:
    return Tick(round(at, 2), text, "start" if at < _EDGE else "end" if at > 100 - _EDGE else "middle")
