"""A terminal's screen as an SVG picture, from text with escape sequences for colour."""

from __future__ import annotations

import re
import unicodedata
from html import escape

CELL, LINE, EDGE = 8.4, 19, 14
INK, PAPER, DIM = "#d8dee9", "#1e222a", "#8b93a3"
COLOURS = {31: "#e06c75", 32: "#98c379", 33: "#e5c07b", 34: "#61afef", 35: "#c678dd", 36: "#56b6c2", 39: INK}
_SAID = re.compile(r"\x1b\[([\d;]*)m")


def cells(letter):
    """Return the columns that a letter takes in a terminal."""
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def runs(line, style):
    """Return (column, text, style) of each word of a line, and the style after it; non-ASCII letters are words."""
    column, found = 0, []
    for n, piece in enumerate(_SAID.split(line)):
        if n % 2:
            style = told(piece, style)
            continue
        for text in re.findall(r" +|[\x21-\x7e]+|[^\x20-\x7e][\u0300-\u036f]*", piece):
            found.append((column, text, style))
            column += sum(map(cells, text))
    return found, style


def told(codes, style):
    """Return the style after these codes, as (colour, bold)."""
    colour, bold = style
    for code in [int(one or 0) for one in codes.split(";")]:
        if code == 0:
            colour, bold = INK, False
        elif code == 1:
            bold = True
        elif code == 2:
            colour = DIM
        elif code == 22:
            colour, bold = INK, False
        elif code in COLOURS:
            colour = COLOURS[code]
    return colour, bold


def svg(text, columns):
    """Return the SVG of a window with this many columns, as high as its text."""
    lines = text.rstrip("\n").split("\n")
    wide, high = columns * CELL + 2 * EDGE, len(lines) * LINE + 2 * EDGE
    drawn, style = [], (INK, False)
    for row, line in enumerate(lines):
        found, style = runs(line, style)
        for column, words, (colour, bold) in found:
            if words.strip():
                place = f'x="{EDGE + column * CELL:g}" y="{EDGE + (row + 0.75) * LINE:g}"'
                weight = ' font-weight="bold"' if bold else ""
                length = f' textLength="{len(words) * CELL:g}"' if len(words) > 1 else ""
                drawn.append(f'<text {place} fill="{colour}"{weight}{length}>{escape(words)}</text>')
    size = f'width="{wide:g}" height="{high:g}" viewBox="0 0 {wide:g} {high:g}"'
    font = 'font-family="ui-monospace,\'DejaVu Sans Mono\',Menlo,Consolas,monospace" font-size="14"'
    paper = f'<rect width="100%" height="100%" rx="8" fill="{PAPER}"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>', paper, *drawn, "</svg>", ""])
