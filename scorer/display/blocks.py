"""The pieces of a page or card as data: sections, headings, paragraphs, facts, tables, meters.

Holds no markup. `templates/report.html` turns blocks into HTML for the report, `templates/cell.html` into HTML for a
notebook cell, and `cli/text.py` turns facts and tables into text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scorer.display.plots import Plot

if TYPE_CHECKING:
    from collections.abc import Sequence


class Heading(NamedTuple):
    """A heading inside a section."""

    text: str
    more: str = ""
    """Text beside it, in a softer tone."""
    kind: str = "heading"


class Words(NamedTuple):
    """A paragraph."""

    text: str
    lead: str = ""
    """Its first words, in bold."""
    tone: str = ""
    """A class of the style sheet: '', soft, warn, bad or good."""
    kind: str = "words"


class Facts(NamedTuple):
    """A list of names and values."""

    pairs: Sequence[tuple[str, str]]
    kind: str = "facts"


class Link(NamedTuple):
    """A link to a page with more."""

    name: str
    text: str
    to: str
    kind: str = "link"


class Table(NamedTuple):
    """Rows of texts under a head, and perhaps a foot."""

    head: Sequence[str]
    classes: Sequence[str]
    """Class of each column: '', n for numbers, name for names, or long for long texts."""
    rows: Sequence[Sequence[str]]
    foot: Sequence[str] = ()
    kind: str = "table"


class Meter(NamedTuple):
    """A label, a bar and a value on one line."""

    label: str
    share: float
    """Length of the bar, as a percentage."""
    value: str
    tint: str = "bar"
    """A class of the style sheet: the bar's colour."""
    says: str = ""
    """Text shown when the pointer is on the bar."""


class Meters(NamedTuple):
    """Meters below each other."""

    lines: Sequence[Meter]
    tone: str = ""
    kind: str = "meters"


class Keys(NamedTuple):
    """A legend of colours: pairs of a style sheet class and a text."""

    keys: Sequence[tuple[str, str]]
    kind: str = "keys"


class Code(NamedTuple):
    """Text to copy, such as a command."""

    text: str
    kind: str = "code"


class Cards(NamedTuple):
    """Blocks side by side, as many as fit."""

    cards: Sequence[Sequence[Block]]
    kind: str = "cards"


Block = Heading | Words | Facts | Link | Table | Meters | Keys | Code | Cards | Plot
"""A piece of a page or card; its `kind` names the part of the template that draws it."""


class Section(NamedTuple):
    """A part of the page with a title and a link to it in the navigation."""

    name: str
    """Its id in links."""
    title: str
    link: str
    """Its text in the navigation."""
    blocks: Sequence[Block]
