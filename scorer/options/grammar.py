"""The syntax of --feed, --fetch, --keep, --labels and --join: names, lists, ranges, globs, quotes, pipes and calls.

x=f0..f27                          a range of columns for the tensor x
x='a, b',c*                        a column with a comma in its name, and a glob
ids=text|text(tokenizer.json)      one column through a converter
x=age,day|epoch(d),kind|vocab(a, b)    columns side by side, each through its own converter
x=(first,last)|epoch(d),age        two columns through one converter, and one beside them
y=const(1)                         a converter that needs no column
logits|softmax['late']=p           one element of an output, after a step, under a name
shops=shops.parquet on shop = id, day    a joined table: its name, where it is, and the keys

A converter belongs to the column before it, or to the columns in brackets before it. A single converter at the end
of a list, as in x=first,last|epoch(d), may belong to the whole list: the types of the columns decide.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_NAME = re.compile(r"\s*(?:'((?:[^']|'')*)'|([^,'\s](?:[^,']*[^,'\s])?))\s*(?:,(?=.)|$)", re.DOTALL)
_ELEMENT = re.compile(r"""\[\s*(?:'((?:[^']|'')+)'|"([^"]+)"|([^][,'"][^]['"]*?))\s*\]""", re.DOTALL)
_PLACE = re.compile(r"-?\d+(\s*,\s*-?\d+)*", re.ASCII)
_CALL = re.compile(r"^\s*([A-Za-z_]+)\s*(?:\((.*)\))?\s*$", re.DOTALL)

CONVERTERS = ("text", "image", "vocab", "epoch", "const")

Setting = str | int | float | bool | None | tuple[str, ...] | tuple[float, ...] | tuple["PartSettings", ...]
"""The value of one setting of a converter or a step, as plan.json holds it."""
PartSettings = tuple[str, int, tuple[tuple[str, Any], ...]]
"""The converter of some of a feed's columns: its kind, the number of columns, and its settings."""


_PART = r"(?:'(?:[^']|'')+'|[^,'\s.](?:[^,'.]*[^,'\s.])?)"
_PATH = re.compile(rf"\s*({_PART}(?:\.{_PART})+)\s*(?:,(?=.)|$)", re.DOTALL)
"""A field of a struct whose name, or whose column's name, is quoted."""


def split_names(text: str) -> list[str] | None:
    """Return comma-separated names, where 'a, name' is one; None if the text cannot be parsed.

    The path of a field keeps its quotes, as in geo.'x.y', because only they show where its names end.
    """
    names = _names(text, paths=True)
    return None if names is None else [name for name, _ in names]


def _names(text: str, *, paths: bool = False) -> list[tuple[str, bool]] | None:
    """Return what `split_names` does, each name with whether it was quoted."""
    names, at = [], 0
    while at < len(text):
        match = _NAME.match(text, at)
        path = _PATH.match(text, at) if match is None and paths else None
        if path is not None:
            names.append((path[1], False))
            at = path.end()
            continue
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
    """Return the pieces between the bars; a bar that is quoted or in brackets does not split."""
    return [piece.strip() for _, piece in _split(text, "|")]


def _split(text: str, separator: str) -> list[tuple[int, str]]:
    """Return the pieces between the separators that are neither quoted nor in brackets, each with its place."""
    pieces, start, depth, quoted = [], 0, 0, False
    for at, letter in enumerate(text):
        quoted ^= letter == "'"
        depth += 0 if quoted else (letter == "(") - (letter == ")")
        if letter == separator and not quoted and depth <= 0:
            pieces.append((start, text[start:at]))
            start = at + 1
    return [*pieces, (start, text[start:])]


def parse_call(text: str) -> Call | None:
    """Return a converter or a step; None if the text is not a call."""
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


def split_fetch(text: str, names: Sequence[str]) -> tuple[str | None, list[str], str | None]:
    """Return the tensor of a --fetch, its steps, among them elements such as [1] and ['late'], and the column.

    The tensor is None if no known name fits, and the column if what follows the tensor cannot be understood.
    """
    tensor, column = split_known(text, names)
    if tensor is not None:
        return tensor, [], column
    text = text.strip()
    heads = [name for name in names if text.startswith(name) and text[len(name) :].lstrip().startswith(("[", "|"))]
    tensor = max(heads, key=len, default=None)
    steps: list[str] = []
    rest = "" if tensor is None else text[len(tensor) :].lstrip()
    while rest and not rest.startswith("="):
        element = _ELEMENT.match(rest)
        end = element.end() if element else _end_of_step(rest)
        if not element and not rest.startswith("|"):
            return tensor, steps, None
        steps.append(rest[:end] if element else rest[1:end].strip())
        rest = rest[end:].lstrip()
    column = rest[1:].strip()
    return tensor, steps, column if column or not rest else None


def _end_of_step(text: str) -> int:
    """Return where the step that follows a bar ends: at an element, at the next bar, or at the column's name."""
    depth, quoted = 0, False
    for at, letter in enumerate(text):
        quoted ^= letter == "'"
        depth += 0 if quoted else (letter == "(") - (letter == ")")
        if at and letter in "|[=" and not quoted and depth <= 0:
            return at
    return len(text)


def parse_element(step: str) -> str | tuple[int, ...] | None:
    """Return which element of a row a step selects: a class, or its place on each axis; None for other steps."""
    match = _ELEMENT.fullmatch(step)
    if match is None:
        return None
    if match[3] and _PLACE.fullmatch(match[3]):
        return tuple(int(number) for number in match[3].split(","))
    return match[1].replace("''", "'") if match[1] else match[2] or match[3]


def labels_file(text: str, folder: str = "", is_file: Callable[[str], bool] = os.path.isfile) -> tuple[str, str] | None:
    """Return what precedes the file in a --labels, and the file's path; None if the text names no existing file."""
    for at in (0, *(match.end() for match in re.finditer("=", text))):
        name = text[at:].strip()
        path = os.path.join(folder, os.path.expanduser(name))
        if name and is_file(path):
            return text[:at], path
    return None


_WITH_FILE = ("text", "vocab")
"""Converters whose first argument may be a file."""


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a list of columns: its column tokens, and the converter that follows them."""

    tokens: tuple[str, ...]
    call: Call | None = None
    grouped: bool = False
    """Whether the columns are in brackets."""
    text: str = ""
    """The item as typed, which is a column's name if there is such a column."""
    columns: str = ""
    """The text of the columns, with the brackets."""
    converter: str = ""
    """The text of the converter."""


def parse_item(text: str) -> Item | None:
    """Return one item of a list of columns; None if it cannot be parsed."""
    columns, *calls = split_pipe(text)
    if not calls:
        names = split_names(text) or []
        return Item(tuple(names), text=text, columns=text) if len(names) == 1 else None
    call = parse_call(calls[0]) if len(calls) == 1 else None
    grouped = columns.startswith("(") and columns.endswith(")")
    names = split_names(columns[1:-1] if grouped else columns) or []
    if call is None or not names or (len(names) > 1 and not grouped):
        return None
    return Item(tuple(names), call, grouped, text, columns, calls[0])


def _listed_item(token: str) -> Item:
    """Return one item of a list that was given as a list: a name, or a column through a known converter."""
    item = parse_item(token) if len(split_pipe(token)) > 1 and token.rstrip().endswith(")") else None
    known = item is not None and item.call is not None and item.call.name in CONVERTERS
    return item if item is not None and known else Item((token,), text=token, columns=quoted(token))


@dataclass(frozen=True, slots=True)
class FeedText:
    """One --feed, parsed once. Only `split`, which knows the model, finds where the tensor's name ends."""

    text: str
    """The text as typed, without the tensor if that is given separately."""
    tensor: str | None = None
    """The tensor, if it is given separately as the key of a table."""
    tokens: tuple[str, ...] | None = None
    """The column tokens, if they are given as a list."""
    call: Call | None = None
    """The converter, if there is one."""
    at: int = 0
    """Where the converter starts in the text."""

    @classmethod
    def parse(cls, text: str, tensor: str | None = None) -> FeedText:
        """Parse a text: the converter follows the last bar, or else the first '=' that a converter can follow."""
        bars = [at for at in range(len(text) - 1, -1, -1) if text[at] == "|"]
        equals = [at for at in range(len(text)) if text[at] == "="] if text.rstrip().endswith(")") else []
        for cut in bars + equals:
            tail = text[cut + 1 :].lstrip()
            call = parse_call(tail) if len(_split(tail, ",")) == 1 else None
            if call is not None:
                return cls(text, tensor, None, call, len(text) - len(tail))
        return cls(text, tensor)

    @classmethod
    def of(cls, tensor: str, tokens: Sequence[str]) -> FeedText:
        """Return the feed of a tensor from a list: column tokens, or one text with a converter."""
        if len(tokens) == 1 and len(split_pipe(tokens[0])) > 1:
            return cls.parse(tokens[0], tensor)
        return cls("", tensor, tuple(tokens))

    def __str__(self) -> str:
        """Return the text of a --feed."""
        text = self.text if self.tokens is None else ",".join(self.tokens)
        return text if self.tensor is None else f"{self.tensor}={text}"

    @property
    def value(self) -> str | tuple[str, tuple[str, ...]]:
        """The plain value that this feed was parsed from, for JSON."""
        if self.tensor is None:
            return self.text
        return self.tensor, (self.text,) if self.tokens is None else self.tokens

    @property
    def calls(self) -> tuple[Call, ...]:
        """All converters of the feed."""
        return tuple(call for _, _, call in self._placed_calls())

    @property
    def files(self) -> tuple[str, ...]:
        """The arguments of converters that may name files."""
        return tuple(name for call in self.calls if call.name in _WITH_FILE for name in call.args)

    def _placed_calls(self) -> list[tuple[int, int, Call]]:
        """Return each converter with the places of its first letter and of its end in the text.

        Without knowing the model, the last converter is certain; those before it follow the last bar of their item.
        """
        if self.tokens is not None:
            items = map(_listed_item, self.tokens)
            return [(0, 0, item.call) for item in items if item.call is not None]
        found = []
        pieces = _split(self.text, ",") if self.call is None else _split(self.text[: self.at], ",")[:-1]
        for start, item in pieces:
            bar, tail = _split(item, "|")[-1]
            call = parse_call(tail) if bar else None
            if call is not None:
                found.append((start + len(item) - len(tail.lstrip()), start + len(item), call))
        return found if self.call is None else [*found, (self.at, len(self.text), self.call)]

    def beside(self, folder: str) -> FeedText:
        """Return the feed with the paths of the files that its converters name, if those files are in `folder`."""
        if self.tokens is not None:
            return replace(self, tokens=tuple(_token_beside(token, folder) for token in self.tokens))
        text = self.text
        for start, end, call in reversed(self._placed_calls()):
            text = text[:start] + (_call_beside(call, folder) or text[start:end]) + text[end:]
        return self if text == self.text else FeedText.parse(text, self.tensor)

    def split(self, names: Sequence[str], converters: Sequence[str]) -> tuple[str | None, list[str], Call | None]:
        """Return the tensor, the column tokens and the converter; the tensor is None if no known name fits.

        Without tokens and without a converter, the feed cannot be understood.
        """
        if self.tokens is not None:
            return self.tensor, list(self.tokens), None
        tensor, rest = (self.tensor, self.text) if self.tensor is not None else split_known(self.text, names)
        columns, *pieces = split_pipe(rest)
        converter = self.text[self.at :].strip()
        if pieces:
            call = self.call if pieces == [converter] else None
            return tensor, (split_names(columns) or []) if call is not None else [], call
        if self.call is not None and self.call.name in converters and rest == converter:
            return tensor, [], self.call
        return tensor, split_names(rest) or [], None

    def items(self, names: Sequence[str]) -> tuple[Item, ...]:
        """Return the items of the list of columns; none if no item has a converter, or one cannot be parsed."""
        if self.tokens is not None:
            items: list[Item | None] = [_listed_item(token) for token in self.tokens]
        else:
            rest = self.text if self.tensor is not None else split_known(self.text, names)[1]
            items = [parse_item(piece.strip()) for _, piece in _split(rest, ",")]
        known = tuple(item for item in items if item is not None)
        return known if len(known) == len(items) and any(item.call for item in known) else ()


def _call_beside(call: Call, folder: str) -> str | None:
    """Return the text of a converter with the path of its file in `folder`; None if it names no such file."""
    if call.name not in _WITH_FILE or len(call.args) != 1:
        return None
    path = os.path.join(folder, call.args[0])
    if not os.path.isfile(path):
        return None
    return call_text(call.name, [path], dict(call.named), plain=False)


def call_text(name: str, args: Sequence[str], named: Mapping[str, object], *, plain: bool = True) -> str:
    """Return a converter as --feed reads it; arguments are quoted if necessary, or always if not `plain`."""

    def written(one: str) -> str:
        safe = plain and one.replace("/", "").replace(".", "").replace("-", "").replace("_", "").isalnum()
        return one if safe else "'" + one.replace("'", "''") + "'"

    return f"{name}({', '.join([*map(written, args), *(f'{key}={value}' for key, value in named.items())])})"


def _token_beside(token: str, folder: str) -> str:
    item = _listed_item(token)
    call = None if item.call is None else _call_beside(item.call, folder)
    return token if call is None else f"{token[: _split(token, '|')[-1][0]]}{call}"


_JOIN = re.compile(r"\s*([A-Za-z_]\w*)\s*=\s*(\S.*)", re.DOTALL | re.ASCII)
_ON = re.compile(r"\s+on\s+")
_MISSING = re.compile(r"(.*\S)\s+or\s+(null|error)\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class JoinText:
    """One --join, parsed."""

    name: str
    location: str
    left: tuple[str, ...]
    """The keys among the columns of the input."""
    right: tuple[str, ...]
    """The keys among the columns of the table."""
    missing: str
    """What happens to a row whose key the table does not have: null or error."""
    on: str
    """The text of the keys, and of what happens without one."""

    def at(self, location: str) -> str:
        """Return the text of the same --join with the table at another location."""
        return f"{self.name}={location} on {self.on}"


def parse_join(text: str) -> JoinText | None:
    """Return a --join; None if it cannot be parsed. The keys follow the last ' on ' that keys can follow."""
    match = _JOIN.fullmatch(text)
    if match is None:
        return None
    for on in reversed([*_ON.finditer(match[2])]):
        location, rest = match[2][: on.start()], match[2][on.end() :]
        policy = _MISSING.fullmatch(rest)
        pairs = [_key(piece) for _, piece in _split(policy[1] if policy else rest, ",")]
        known = [pair for pair in pairs if pair is not None]
        if location.strip() and known and len(known) == len(pairs):
            left, right = zip(*known, strict=True)
            return JoinText(match[1], location.strip(), left, right, policy[2] if policy else "null", rest.strip())
    return None


def _key(text: str) -> tuple[str, str] | None:
    """Return the column of the input and that of the table; None if the text is no key."""
    sides = [split_names(side.strip()) or [] for _, side in _split(text, "=")]
    if len(sides) > 2 or any(len(names) != 1 for names in sides):  # noqa: PLR2004 - two sides
        return None
    return sides[0][0], sides[-1][0]


_NUMBERED = re.compile(r"^(.*?)(\d+)$", re.ASCII)
_MIN_RANGE = 3  # columns; fewer are shorter without a range


def quoted(name: str) -> str:
    """Return a column name as --feed and --keep read it, quoted if necessary."""
    plain = name and name == name.strip() and not set(name) & set(",'*?[|") and ".." not in name
    path = _PATH.fullmatch(name) if "'" in name else None  # the path of a field has its own quotes
    return name if plain or (path is not None and path[1] == name) else "'" + name.replace("'", "''") + "'"


def ranged(columns: Sequence[str]) -> list[str]:
    """Return the shortest tokens for these columns in this order: f0..f27 for columns numbered in sequence."""
    tokens: list[str] = []
    rest = list(columns)
    while rest:
        match = _NUMBERED.match(rest[0])
        run = 1
        if match:
            width = len(match[2]) if match[2].startswith("0") else 0
            while run < len(rest) and rest[run] == f"{match[1]}{int(match[2]) + run:0{width}}":
                run += 1
        first, last = rest[0], rest[run - 1]
        short = run >= _MIN_RANGE and quoted(first) == first and f"{first}..{last}" not in columns
        tokens += [f"{first}..{last}"] if short else map(quoted, rest[:run])
        rest = rest[run:]
    return tokens


def listed(tokens: Sequence[str]) -> str:
    """Return column tokens that were given as a list as the text of a --feed.

    An item with a converter is put in brackets, because at the end of a list the converter might belong to all columns.
    """
    items = [_listed_item(token) for token in tokens]
    if not any(item.call for item in items):
        return ",".join(ranged(tokens))
    return ",".join(in_brackets([item.columns], item) if item.call else item.columns for item in items)


def in_brackets(columns: Sequence[str], item: Item) -> str:
    """Return the columns, and in brackets those that the item's converter converts."""
    return f"{item.columns if item.grouped else '(' + ','.join(columns) + ')'}|{item.converter}"


def feed_line(tensor: str, columns: Sequence[str]) -> str:
    """Return a --feed that can be pasted into a shell."""
    return feed_flag(tensor, ",".join(ranged(columns)))


def feed_flag(tensor: str, text: str) -> str:
    """Return a --feed of this text that can be pasted into a shell."""
    return "--feed '" + f"{tensor}={text}".replace("'", "'\"'\"'") + "'"


def split_known(text: str, names: Sequence[str]) -> tuple[str | None, str]:
    """Split a text at the first '=' that follows a known name: (the name or None, the rest)."""
    if text in names:
        return text, ""
    for match in re.finditer("=", text):
        if text[: match.start()].strip() in names:
            return text[: match.start()].strip(), text[match.end() :].strip()
    return None, text
