"""Plots as data: shapes with a text each, placed in percentages of the frame.

Holds no markup; `templates/report.html` draws the plots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from scorer.display.words import short_number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


_DECIMAL_STEPS = (1, 2, 5, 10)
_MINUTE_STEPS = (1, 2, 5, 10, 15, 30, 60)
_MAX_SECONDS_S, _MAX_MINUTES_S = 180.0, 3 * 3600.0  # longest spans whose ticks are in seconds, in minutes
_DAYS_ABOVE = 4  # longer spans have ticks in days
_OVERLAP = 0.05  # percent of the width by which adjacent bars overlap, so that no background shows between them
_MIN_WIDTH = 0.12  # percent of the width: about a pixel
_MIN_HEIGHT = 0.8  # percent of the height, so that small values stay visible
_EDGE = 4.0  # percent of the width; a centred text nearer to a side would stick out


class Shape(NamedTuple):
    """A rectangle, in percentages of the frame."""

    x: float
    y: float
    width: float
    height: float
    tint: str = "bar"
    """A class of the style sheet: the colour."""
    says: str = ""
    """Text shown when the pointer is on the shape."""


class Tick(NamedTuple):
    """A text beside an axis."""

    at: float
    """Position along the axis, as a percentage."""
    text: str
    anchor: str = "middle"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A frame with shapes, and ticks under and beside it."""

    name: str
    """What it shows, for screen readers."""
    height: int
    """Height in pixels; the width follows the page."""
    shapes: tuple[Shape, ...]
    across: tuple[Tick, ...] = ()
    """Ticks of the horizontal axis."""
    up: tuple[Tick, ...] = ()
    """Ticks of the vertical axis."""
    rules: tuple[Tick, ...] = ()
    """Horizontal lines, such as a mean."""
    gutter: str = "narrow"
    """Width of the column for the ticks at the left: none, narrow or wide."""
    grid: bool = True
    """Whether lines are drawn at the vertical ticks."""
    kind: ClassVar[str] = "plot"


def shape(x: float, y: float, width: float, height: float, tint: str = "bar", says: str = "") -> Shape:
    """Return a rectangle, wide enough to be seen."""
    return Shape(round(x, 2), round(y, 2), round(max(width, _MIN_WIDTH), 2), round(max(height, 0.0), 2), tint, says)


def bars(
    name: str, values: Sequence[float], says: Callable[[int], str], across: tuple[Tick, ...],
    *, height: int = 150, gap: float = 0.1, rules: Sequence[tuple[float, str]] = (),
) -> Plot:  # fmt: skip
    """Return a bar chart, with horizontal lines at the values of `rules`."""
    highest = max([*values, *(at for at, _ in rules)], default=0.0) or 1.0
    up = [tick for tick in nice(0, highest, 4) if 0 < tick <= highest]
    step = 100 / max(len(values), 1)
    shapes = tuple(
        shape(i * step + gap * step / 2, 100 - tall, step * (1 - gap) + (0 if gap else _OVERLAP), tall, says=says(i))
        for i, value in enumerate(values)
        if value and (tall := max(_MIN_HEIGHT, 96 * value / highest))
    )
    return Plot(
        name=name,
        height=height,
        shapes=shapes,
        across=across,
        up=tuple(Tick(round(100 - 96 * tick / highest, 2), short_number(tick)) for tick in up),
        rules=tuple(Tick(round(100 - 96 * at / highest, 2), text) for at, text in rules),
    )


def band(name: str, low: float, high: float, measured: float, words: Callable[[float], str]) -> Plot:
    """Return a plot of a forecast range and the measured value; `words` formats a value as text."""
    end = 1.08 * max(high, measured) or 1.0
    forecast = f"forecast {words(low)} to {words(high)}"
    return Plot(
        name=f"{name}: {forecast}, measured {words(measured)}",
        height=26,
        shapes=(
            shape(0, 30, 100, 40, "track"),
            shape(100 * low / end, 15, 100 * (high - low) / end, 70, "band", forecast),
            shape(100 * measured / end - 0.3, 0, 0.6, 100, "fact", f"measured {words(measured)}"),
        ),
        across=tuple(_tick(100 * at / end, words(at).replace(".0 ", " ")) for at in nice(0, end, 5) if at <= end),
        gutter="none",
        grid=False,
    )


def number_ticks(low: float, high: float) -> tuple[Tick, ...]:
    """Return the horizontal ticks of a plot from `low` to `high`."""
    span = (high - low) or 1.0
    inside = [at for at in nice(low, high, 5) if low <= at <= high]
    return tuple(_tick(100 * (at - low) / span, short_number(at)) for at in inside)


def time_ticks(span: float) -> tuple[Tick, ...]:
    """Return the horizontal ticks of a plot that begins at 0 s and is `span` seconds long."""
    unit, name = (1.0, "s") if span <= _MAX_SECONDS_S else (60.0, "min") if span <= _MAX_MINUTES_S else (3600.0, "h")
    if span > _DAYS_ABOVE * 86_400:
        unit, name = 86_400.0, "d"
    steps = _MINUTE_STEPS if unit == 60 else _DECIMAL_STEPS  # noqa: PLR2004 - a minute
    inside = [at for at in nice(0, span / unit, 7, steps) if at * unit <= span]
    return tuple(_tick(100 * at * unit / span, f"{short_number(at)} {name}") for at in inside)


def nice(low: float, high: float, about: int, steps: Sequence[int] = _DECIMAL_STEPS) -> list[float]:
    """Return about `about` round numbers from `low` to a little beyond `high`."""
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low] if math.isfinite(low) else []
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough)) if steps is _DECIMAL_STEPS else 1.0
    step = next((n * power for n in steps if n * power >= rough), steps[-1] * power)
    first = math.floor(low / step)
    return [round(n * step, 12) for n in range(first, first + about * 3) if n * step <= high + step]


def _tick(at: float, text: str) -> Tick:
    return Tick(round(at, 2), text, "start" if at < _EDGE else "end" if at > 100 - _EDGE else "middle")
