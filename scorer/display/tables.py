"""Text in columns: how wide it is, wrapped, cut, as facts and as tables.

Widths are a terminal's: a Chinese letter takes two columns, an accent of its own none.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from scorer.display.words import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Paint = Callable[[str, str], str]


LABEL = 11
CAUTION = frozenset({"note", "caution", "quarantine", "nan", "cut", "lossy", "silent", "fault"})
"""Labels of facts that want a second look."""
_LEAST = 8  # columns that a cell keeps when the window is narrow
_GAP = 2
_DOTS = "..."
_PAINTED = re.compile("\x1b\\[[0-9;]*m")


def width(text: str) -> int:
    """Columns that a text takes; paint takes none."""
    if "\x1b" in text:
        text = _PAINTED.sub("", text)
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(letter: str) -> int:
    if unicodedata.category(letter) in {"Mn", "Me", "Cf"} or "\u1160" <= letter <= "\u11ff":  # vowels inside a syllable
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def shorten(text: str, columns: int) -> str:
    """No wider than so many columns; what is missing is shown by dots."""
    if width(text) <= columns:
        return text
    dots = _DOTS[: max(columns, 0)]
    return _head(text, columns - len(dots)) + dots


def _head(text: str, columns: int) -> str:
    """As much of the beginning as fits."""
    taken = 0
    for place, letter in enumerate(text):
        taken += _columns(letter)
        if taken > columns:
            return text[:place]
    return text


def pad(text: str, columns: int, *, right: bool = False) -> str:
    """Filled up with spaces; numbers stand at the right."""
    spaces = " " * (columns - width(text))
    return spaces + text if right else text + spaces


def wrap(text: str, columns: int | None, *, inside: bool = False) -> list[str]:
    """As lines, broken at spaces; `inside` also breaks a word that is wider than a line, else it sticks out.

    Spaces that the text has in a row are kept inside a line.
    """
    if columns is None or width(text) <= columns:
        return [text]
    lines, line = [], ""
    for word in re.findall(r" *[^ ]+", text):
        if line and width(line) + width(word) > columns:
            lines.append(line)
            line = word.lstrip()
        else:
            line += word
        while inside and width(line) > columns > 1:
            head = _head(line, columns) or line[0]
            lines.append(head)
            line = line[len(head) :]
    return [*lines, line]


def plain(kind: str, text: str) -> str:  # noqa: ARG001 - a Paint
    """No paint at all."""
    return text


def facts(lines: Sequence[tuple[str, str]], columns: int | None = None, paint: Paint = plain) -> list[str]:
    """A label and a text each; long texts go on below themselves."""
    wide = max([LABEL, *(width(name) + 1 for name, _ in lines)])
    shown = []
    for name, text in lines:
        label = pad(visible(name), wide)
        room = None if columns is None else max(columns - wide - 2, _LEAST)
        first, *rest = wrap(visible(text), room)
        shown.append(f"  {paint('label', label)}{first}".rstrip())
        shown += [f"  {' ' * wide}{line}" for line in rest]
    return shown


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], columns: int | None = None, paint: Paint = plain,
    right: frozenset[int] = frozenset(),
) -> list[str]:  # fmt: skip
    """A head and rows below it, no wider than the window: the widest columns give way and wrap.

    `right` names the columns of numbers.
    """
    cells = [[visible(cell) for cell in row] for row in rows]
    wide = [max(map(width, column)) for column in zip(head, *cells, strict=True)]
    if columns is not None:
        words = [
            max(width(word) for cell in column for word in cell.split(" ")) for column in zip(head, *cells, strict=True)
        ]
        room = columns - 2 - _GAP * (len(wide) - 1)
        wide = _narrowed(_narrowed(wide, room, words), room, [_LEAST] * len(wide))
    shown = ["  " + paint("head", line) for line in _row(head, wide, right)]
    return shown + ["  " + line for row in cells for line in _row(row, wide, right)]


def _narrowed(wide: Sequence[int], room: int, least: Sequence[int]) -> list[int]:
    """The widest columns made narrower until all fit, none below what it needs at the least."""
    wide = list(wide)
    while sum(wide) > room:
        spare = [columns if columns > need else 0 for columns, need in zip(wide, least, strict=True)]
        if not any(spare):
            break
        wide[spare.index(max(spare))] -= 1
    return wide


def _row(cells: Sequence[str], wide: Sequence[int], right: frozenset[int]) -> list[str]:
    """The lines of one row."""
    wrapped = [wrap(cell, columns, inside=True) for cell, columns in zip(cells, wide, strict=True)]
    lines = []
    for n in range(max(map(len, wrapped))):
        parts = [part[n] if n < len(part) else "" for part in wrapped]
        padded = [
            pad(part, columns, right=i in right) for i, (part, columns) in enumerate(zip(parts, wide, strict=True))
        ]
        lines.append((" " * _GAP).join(padded).rstrip())
    return lines


def beside(left: Sequence[str], right: Sequence[str], columns: int) -> list[str]:
    """Two blocks of lines side by side, each no wider than half of the window."""
    half = columns // 2
    tall = max(len(left), len(right))
    both = zip([*left, *[""] * (tall - len(left))], [*right, *[""] * (tall - len(right))], strict=True)
    return [(pad(one, half) + other).rstrip() for one, other in both]
