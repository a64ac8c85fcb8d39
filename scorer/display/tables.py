"""Text in columns: widths, shortening, wrapping, tables, and lists of labelled facts.

Widths are those of a terminal: a Chinese letter takes two columns, a combining accent none.
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
"""Least width of the labels of facts."""
CAUTION = frozenset({"note", "caution", "quarantine", "nan", "cut", "lossy", "silent", "fault"})
"""Labels of facts that are highlighted."""
_MIN_CELL = 8  # columns that a cell keeps in a narrow window
_FILE_COLUMNS = 120  # width of a table that is not shown in a window
_GAP = 2  # columns between two cells
_DOTS = "..."
_COLOUR_CODES = re.compile("\x1b\\[[0-9;]*m")


def width(text: str) -> int:
    """Return the number of columns that a text takes; colour codes take none."""
    if "\x1b" in text:
        text = _COLOUR_CODES.sub("", text)
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(letter: str) -> int:
    if (
        unicodedata.category(letter) in {"Mn", "Me", "Cf"} or "\u1160" <= letter <= "\u11ff"
    ):  # vowels and final consonants of a Korean syllable
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def shorten(text: str, columns: int) -> str:
    """Cut a text to this many columns, with dots at the end if it was longer."""
    if width(text) <= columns:
        return text
    dots = _DOTS[: max(columns, 0)]
    return _head(text, columns - len(dots)) + dots


def _head(text: str, columns: int) -> str:
    """Return as much of the beginning as fits."""
    taken = 0
    for place, letter in enumerate(text):
        taken += _columns(letter)
        if taken > columns:
            return text[:place]
    return text


def pad(text: str, columns: int, *, right: bool = False) -> str:
    """Fill a text up with spaces; `right` aligns it at the right, as for numbers."""
    spaces = " " * (columns - width(text))
    return spaces + text if right else text + spaces


def wrap(text: str, columns: int | None, *, inside: bool = False) -> list[str]:
    """Break a text into lines at spaces; several spaces in a row are kept inside a line.

    A word wider than a line is broken if `inside`; otherwise it gets a line that is too wide.
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
    """Return the text without colour."""
    return text


def facts(lines: Sequence[tuple[str, str]], columns: int | None = None, paint: Paint = plain) -> list[str]:
    """Return lines of labels and texts; a long text continues below its first line."""
    label_width = max([LABEL, *(width(name) + 1 for name, _ in lines)])
    shown = []
    for name, text in lines:
        label = pad(visible(name), label_width)
        available = None if columns is None else max(columns - label_width - 2, _MIN_CELL)
        first, *rest = wrap(visible(text), available)
        shown.append(f"  {paint('label', label)}{first}".rstrip())
        shown += [f"  {' ' * label_width}{line}" for line in rest]
    return shown


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], columns: int | None = None, paint: Paint = plain,
    right: frozenset[int] = frozenset(),
) -> list[str]:  # fmt: skip
    """Return a table as lines no wider than the window: the widest columns become narrower, and their cells wrap.

    Without a window, as in a file, they become as narrow as a line of 120 letters needs, but no word is broken.
    `right` holds the indices of columns that are aligned at the right.
    """
    cells = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(width, column)) for column in zip(head, *cells, strict=True)]
    available = (_FILE_COLUMNS if columns is None else columns) - 2 - _GAP * (len(widths) - 1)
    if sum(widths) > available:
        words = [
            max(width(word) for cell in column for word in cell.split(" ")) for column in zip(head, *cells, strict=True)
        ]
        widths = _narrowed(widths, available, words)
        if columns is not None:
            widths = _narrowed(widths, available, [_MIN_CELL] * len(widths))
    shown = ["  " + paint("head", line) for line in _row(head, widths, right)]
    return shown + ["  " + line for row in cells for line in _row(row, widths, right)]


def _narrowed(widths: Sequence[int], available: int, least: Sequence[int]) -> list[int]:
    """Reduce the widest columns until all fit, none below its least width."""
    widths = list(widths)
    while sum(widths) > available:
        spare = [columns if columns > need else 0 for columns, need in zip(widths, least, strict=True)]
        if not any(spare):
            break
        widths[spare.index(max(spare))] -= 1
    return widths


def _row(cells: Sequence[str], widths: Sequence[int], right: frozenset[int]) -> list[str]:
    """Return the lines of one row."""
    wrapped = [wrap(cell, columns, inside=True) for cell, columns in zip(cells, widths, strict=True)]
    lines = []
    for n in range(max(map(len, wrapped))):
        parts = [part[n] if n < len(part) else "" for part in wrapped]
        padded = [
            pad(part, columns, right=i in right) for i, (part, columns) in enumerate(zip(parts, widths, strict=True))
        ]
        lines.append((" " * _GAP).join(padded).rstrip())
    return lines


def beside(left: Sequence[str], right: Sequence[str], columns: int) -> list[str]:
    """Return two blocks of lines side by side; each must fit into half of the window."""
    half = columns // 2
    height = max(len(left), len(right))
    pairs = zip([*left, *[""] * (height - len(left))], [*right, *[""] * (height - len(right))], strict=True)
    return [(pad(one, half) + other).rstrip() for one, other in pairs]
