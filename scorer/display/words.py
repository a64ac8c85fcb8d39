"""Names, numbers and times as text for a person."""

from __future__ import annotations

import difflib
import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^\s/@:]*:(?!\d+/)[^\s@]*|[^\s/@]*)@")
"""A password may hold slashes; host:9000/a@b holds none."""
_SIGNED = re.compile(
    r"\?(?:[^\s?&]*&)*(?:(?:x-amz|x-goog)-(?:signature|credential|security-token)|awsaccesskeyid|signature|sig"
    r"|(?:access_|auth_)?token|api_?key|secret|password)=[^\s\"'<>]*",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """Return the text with its URLs cut to scheme, host and path where they hold a password or a signature."""
    if "://" not in text:
        return text
    return _SIGNED.sub("", _USER.sub(_without_user, text))


def _without_user(found: re.Match[str]) -> str:
    plain = ":" not in found[2] and not found[1].lower().startswith("http")  # container@account, or a user's name
    return found[0] if plain else f"{found[1]}://"


def visible(text: str) -> str:
    """Return the text with control characters escaped, so that a foreign name cannot send terminal escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_utf8(text: str) -> bool:
    """Return whether the text can be written as UTF-8; Python reads other bytes of a file name as lone surrogates."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def cut(text: str, limit: int = 200) -> str:
    """Return a text of at most `limit` letters and dots; a longer one ends after a word, if one ends near the limit."""
    if len(text) <= limit:
        return text
    head = text[: limit + 1]
    at = max(head.rfind(" "), head.rfind("\n"))
    return f"{text[:at] if at > limit // 2 else text[:limit]}..."


def quoted_list(names: Iterable[object], limit: int = 10) -> str:
    """Return the first `limit` names, quoted, in the given order, and the number of the others."""
    quoted = [repr(name) for name in names]
    rest = len(quoted) - limit
    return ", ".join(quoted[:limit]) + (f" and {rest} more" if rest > 0 else "")


def did_you_mean(word: str, known: Sequence[str], listed: str = "") -> str:
    """Return a hint: the closest known word; if none is close, the known words, or `listed` instead of a long list."""
    near = nearest(word, known)
    if near:
        return f"did you mean {near!r}?"
    return listed if listed and len(known) > _MANY_WORDS else f"known: {quoted_list(known, 100)}"


def nearest(word: str, known: Sequence[str]) -> str:
    """Return the closest known word, or '' if none is close."""
    return next(iter(difflib.get_close_matches(word, known, n=1)), "")


_MANY_WORDS = 20  # a longer list of words is not read
_UNIT_STEP = 1000  # from one unit of size to the next
_TENTHS_BELOW_S = 10  # shorter durations are shown with tenths of a second
_SCIENTIFIC_BELOW = 1e-3  # smaller numbers are shown as 1.2e-05
_MINUTE_S, _HOUR_S = 60, 3600
_FIVES_FROM_S = 20  # from here on, a range in seconds is rounded to multiples of five
_TENTHS_BELOW_H = 10  # fewer hours are shown with tenths


def size(count: float) -> str:
    """Return a number of bytes in a suitable unit: 1.2 kB, 5.6 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < _UNIT_STEP:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= _UNIT_STEP
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Return a duration in hours, minutes and seconds: 0.3 s, 1 min 15 s, 1 h 2 min."""
    if seconds < _TENTHS_BELOW_S:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: 1 part, 1,200 parts."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def as_text(value: object) -> str:
    """Return a value of a column as text: null for None, true and false."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def name_list(names: Sequence[str], limit: int = 8) -> str:
    """Return the first `limit` names, and the number of the others."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def short_number(value: float) -> str:
    """Return a number with three significant digits: 1.25M, 40k, 0.037."""
    for step, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= step * 0.9995:
            return f"{value / step:.3g}{unit}"
    return "0" if value == 0 else f"{value:.3g}" if abs(value) >= _SCIENTIFIC_BELOW else f"{value:.1e}"


def time_range(low: float, high: float) -> str:
    """Return an estimated time as a rounded range: 3 to 8 s, 50 min to 2.5 h."""
    if high >= 2 * _HOUR_S:
        first, last = _hours(low), _hours(high)
        if low < _HOUR_S:
            return f"{_minutes(low)} min to {last} h"
        return f"about {last} h" if first == last else f"{first} to {last} h"
    if high >= 2 * _MINUTE_S:
        first, last = str(_minutes(low)), str(math.ceil(high / _MINUTE_S))
        if low < _MINUTE_S:
            return f"{_seconds(low, up=False)} s to {last} min"
        return f"about {last} min" if first == last else f"{first} to {last} min"
    first, last = _seconds(low, up=False), _seconds(high, up=True)
    if first == "0":
        return f"up to {last} s"
    return f"about {last} s" if first == last else f"{first} to {last} s"


def _hours(seconds: float) -> str:
    hours = seconds / _HOUR_S
    return f"{hours:.0f}" if hours >= _TENTHS_BELOW_H else f"{hours:.1f}"


def _minutes(seconds: float) -> int:
    return max(1, math.floor(seconds / _MINUTE_S))


def _seconds(seconds: float, *, up: bool) -> str:
    """Round to whole seconds, or to multiples of five from 20 s on."""
    step = 5 if seconds >= _FIVES_FROM_S else 1
    steps = math.ceil(seconds / step) if up else math.floor(seconds / step)
    return str(max(steps * step, int(up)))
