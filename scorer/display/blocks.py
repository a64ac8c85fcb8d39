"""What a page is made of, as data: sections of headings, words, facts, tables, bars and plots.

Knows no type of ours and no markup; `templates/report.html` turns each kind of block into HTML, `templates/cell.html`
those that values show in a notebook, and `render` those into text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Heading(NamedTuple):
    """Of a part of a section."""

    text: str
    more: str = ""
    """Beside it, in a softer tone."""
    kind: str = "heading"


class Words(NamedTuple):
    """A paragraph."""

    text: str
    lead: str = ""
    """Its first words, in bold."""
    tone: str = ""
    """'' or soft or warn."""
    kind: str = "words"


class Facts(NamedTuple):
    """Names and values."""

    pairs: Sequence[tuple[str, str]]
    kind: str = "facts"


class Link(NamedTuple):
    """Where there is more."""

    name: str
    text: str
    to: str
    kind: str = "link"


class Table(NamedTuple):
    """Rows of texts under a head."""

    head: Sequence[str]
    classes: Sequence[str]
    """Of each column: '' or n for a number, name or told for what may be long."""
    rows: Sequence[Sequence[str]]
    foot: Sequence[str] = ()
    kind: str = "table"


class Meter(NamedTuple):
    """A line with a bar in it."""

    label: str
    share: float
    """Of the bar's room, in hundredths."""
    value: str
    tint: str = "bar"
    """A class of the style sheet, as a shape's."""
    says: str = ""


class Meters(NamedTuple):
    """Bars below each other, with a name and a value."""

    lines: Sequence[Meter]
    tone: str = ""
    kind: str = "meters"


class Keys(NamedTuple):
    """What the colours mean: (class, text)."""

    keys: Sequence[tuple[str, str]]
    kind: str = "keys"


class Code(NamedTuple):
    """Something to paste."""

    text: str
    kind: str = "code"


class Cards(NamedTuple):
    """Blocks side by side, as many as fit."""

    cards: Sequence[Sequence[object]]
    kind: str = "cards"


class Section(NamedTuple):
    """A part of the page that can be jumped to."""

    name: str
    """In links."""
    title: str
    link: str
    blocks: Sequence[object]
