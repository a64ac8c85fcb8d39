"""How columns and tensors are named in a request: names, lists, ranges, globs, quotes."""

from __future__ import annotations

import fnmatch
import re
from typing import TYPE_CHECKING

from scorer.rules import parse_call, split_names, split_pipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.rules import Call

_NUMBERED = re.compile(r"^(.*?)(\d+)$", re.ASCII)
_WORTH_A_RANGE = 3  # columns
_RANGE = re.compile(r"^(.*?)(\d+)\.\.(.*?)(\d+)$")


def expand(tokens: Sequence[str], columns: Sequence[str]) -> tuple[list[str], list[str]]:
    """Columns that names, ranges and globs stand for, and the tokens that match nothing."""
    found: list[str] = []
    unknown: list[str] = []
    for token in tokens:
        if token in columns:
            found.append(token)
            continue
        match = _RANGE.match(token)
        if match and match[1] == match[3]:
            width = len(match[2]) if match[2].startswith("0") else 0
            names = [f"{match[1]}{n:0{width}}" for n in range(int(match[2]), int(match[4]) + 1)]
            found += [name for name in names if name in columns]
            unknown += [name for name in names if name not in columns]
            unknown += [] if names else [token]
            continue
        hits = [name for name in columns if fnmatch.fnmatchcase(name, token)]
        found += hits
        unknown += [] if hits else [token]
    return found, unknown


def parse_feed(text: str, names: Sequence[str], converters: Sequence[str]) -> tuple[str | None, list[str], Call | None]:
    """The tensor, the column tokens and the converter of TENSOR=COLUMNS|converter(...).

    Without tokens and without a converter it cannot be understood.
    """
    tensor, rest = split_known(text, names)
    columns, *calls = split_pipe(rest)
    if not calls:
        call = parse_call(columns)
        if call is not None and call.name in converters and "(" in columns:
            return tensor, [], call
        return tensor, split_names(columns) or [], None
    call = parse_call(calls[0]) if len(calls) == 1 else None
    return tensor, (split_names(columns) or []) if call is not None else [], call


def quoted(name: str) -> str:
    """A column name as `parse_feed` reads it."""
    plain = name and name == name.strip() and not set(name) & set(",'*?[|") and ".." not in name
    return name if plain else "'" + name.replace("'", "''") + "'"


def ranged(columns: Sequence[str]) -> list[str]:
    """The shortest tokens that stand for these columns in this order: f0..f27 for many that count on."""
    told: list[str] = []
    left = list(columns)
    while left:
        match = _NUMBERED.match(left[0])
        run = 1
        if match:
            width = len(match[2]) if match[2].startswith("0") else 0
            while run < len(left) and left[run] == f"{match[1]}{int(match[2]) + run:0{width}}":
                run += 1
        first, last = left[0], left[run - 1]
        short = run >= _WORTH_A_RANGE and quoted(first) == first and f"{first}..{last}" not in columns
        told += [f"{first}..{last}"] if short else map(quoted, left[:run])
        left = left[run:]
    return told


def feed_line(tensor: str, columns: Sequence[str]) -> str:
    """A --feed that can be pasted into a shell."""
    text = tensor + "=" + ",".join(ranged(columns))
    return "--feed '" + text.replace("'", "'\"'\"'") + "'"


def split_known(text: str, names: Sequence[str]) -> tuple[str | None, str]:
    """Cut at the first '=' that leaves a known name; the whole text may be one."""
    if text in names:
        return text, ""
    for match in re.finditer("=", text):
        if text[: match.start()].strip() in names:
            return text[: match.start()].strip(), text[match.end() :].strip()
    return None, text


def same_name(name: str, columns: Sequence[str]) -> str | None:
    """Exactly, then without case, then with spaces as underscores, each only if unique."""
    for view in (str, str.lower, _underscored):
        hits = [column for column in columns if view(column) == view(name)]
        if len(hits) == 1:
            return hits[0]
    return None


def _underscored(name: str) -> str:
    """As converters name an input after a column."""
    return re.sub(r"\W", "_", name).lower()
