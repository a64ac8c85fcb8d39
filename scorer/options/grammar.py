"""How columns and tensors are named in a request: names, lists, ranges, globs, quotes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAME = re.compile(r"\s*(?:'((?:[^']|'')+)'|([^,'\s](?:[^,']*[^,'\s])?))\s*(?:,(?=.)|$)", re.DOTALL)
_CALL = re.compile(r"^\s*([A-Za-z_]+)\s*(?:\((.*)\))?\s*$", re.DOTALL)

Setting = str | int | float | bool | None | tuple[str, ...] | tuple[float, ...]
"""One thing that a converter or a step was told; goes to plan.json and back."""

FeedText = str | tuple[str, tuple[str, ...]]
"""`TENSOR=COLUMNS` as typed, or the tensor with a list of exact column tokens."""


def split_names(text: str) -> list[str] | None:
    """Comma-separated names, where 'a, name' is one; None when it cannot be understood."""
    names = _names(text)
    return None if names is None else [name for name, _ in names]


def _names(text: str) -> list[tuple[str, bool]] | None:
    """As `split_names`, each with whether it was quoted."""
    names, at = [], 0
    while at < len(text):
        match = _NAME.match(text, at)
        if match is None:
            return None
        quoted = match[1] is not None
        names.append((match[1].replace("''", "'") if quoted else match[2], quoted))
        at = match.end()
    return names


@dataclass(frozen=True, slots=True)
class Call:
    """A converter or a step with its arguments, as in topk(3) or text(tokenizer.json, max_length=256)."""

    name: str
    args: tuple[str, ...] = ()
    named: tuple[tuple[str, str], ...] = ()


def split_pipe(text: str) -> list[str]:
    """The pieces between bars that are neither quoted nor inside brackets."""
    pieces, start, depth, quoted = [], 0, 0, False
    for at, letter in enumerate(text):
        quoted ^= letter == "'"
        depth += 0 if quoted else (letter == "(") - (letter == ")")
        if letter == "|" and not quoted and depth <= 0:
            pieces.append(text[start:at].strip())
            start = at + 1
    return [*pieces, text[start:].strip()]


def parse_call(text: str) -> Call | None:
    """A converter or a step; None when it is not written as one."""
    match = _CALL.match(text)
    if match is None:
        return None
    args, named = [], []
    inside = match[2] or ""
    names = _names(inside)
    if names is None:
        return None
    for name, quoted in names:
        key, equals, value = name.partition("=")
        if equals and not quoted and key.strip().isidentifier():
            named.append((key.strip(), value.strip().strip("'")))
        elif named:
            return None
        else:
            args.append(name)
    return Call(match[1], tuple(args), tuple(named))


def call_in(feed: str) -> Call | None:
    """The converter of TENSOR=COLUMNS|converter(...), whatever the tensor's name."""
    cuts = [0, *(at + 1 for at, letter in enumerate(feed) if letter in "=|")]
    return next((call for cut in cuts if (call := parse_call(feed[cut:])) is not None), None)


def beside(folder: str, feed: str) -> str:
    """The feed with the file that its converter names, if that lies in `folder`."""
    call = call_in(feed)
    if call is None or len(call.args) != 1 or call.name not in {"text", "vocab"}:
        return feed
    path = os.path.join(folder, call.args[0])
    if not os.path.isfile(path):
        return feed
    head, _, _ = feed.rpartition(call.name + "(")
    quoted = path.replace("'", "''")
    inside = ", ".join([f"'{quoted}'", *(f"{name}={value}" for name, value in call.named)])
    return f"{head}{call.name}({inside})"


_NUMBERED = re.compile(r"^(.*?)(\d+)$", re.ASCII)
_WORTH_A_RANGE = 3  # columns


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
