"""Parse --feed and --on-null: the request and the null policy of each tensor."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from scorer.binding.features import text as text_
from scorer.dataset import fields
from scorer.display.words import did_you_mean, quoted_list
from scorer.errors import OptionsError, ScorerError
from scorer.model.spec import flags_of
from scorer.options.grammar import CONVERTERS, FeedText, split_known, split_pipe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scorer.model.spec import ModelSpec
    from scorer.options.fields import BindingOptions
    from scorer.options.grammar import Call, Item

_RANGE = re.compile(r"^(.*?)(\d+)\.\.(.*?)(\d+)$")


def expand(
    tokens: Sequence[str], columns: Sequence[str], order: Callable[[list[str]], list[str]] = list
) -> tuple[list[str], list[str]]:
    """Return the columns that names, ranges and globs match, and the names that match nothing.

    `order` orders the columns that one glob matches, which are in the order of `columns` otherwise.
    """
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
        found += order(hits)
        unknown += [] if hits else [token]
    return found, unknown


def matching_column(name: str, columns: Sequence[str]) -> str | None:
    """Return the column of this name: the exact one, else without case, else with `_` for other characters.

    The inexact matches must be unique. None if no column matches.
    """
    for view in (str, str.lower, _underscored):
        hits = [column for column in columns if view(column) == view(name)]
        if len(hits) == 1:
            return hits[0]
    return None


def _underscored(name: str) -> str:
    """Return the name that model converters give to the input for a column."""
    return re.sub(r"\W", "_", name).lower()


@dataclass(frozen=True, slots=True)
class FeedRequest:
    """The columns and the converter that --feed requests for one tensor."""

    tokens: tuple[str, ...] = ()
    """All columns, if they share the converter or have none; none if only `items` tells them apart."""
    call: Call | None = None
    """The converter of all columns."""
    items: tuple[Item, ...] = ()
    """The columns, each with its own converter, if any of them has one."""


def with_fields(request: FeedRequest, columns: pa.Schema) -> tuple[FeedRequest, pa.Schema]:
    """Return the request with columns by their full names, and the columns with the fields of structs that it names.

    A name, range or glob that columns match means only columns.
    """
    names, aliases = columns.names, fields.known_names(columns)
    inner = [field for field in columns if pa.types.is_struct(field.type)]
    added: dict[str, pa.Field] = {}

    def plainest(token: str) -> str:
        """Return the token; for a column of a joined table its full name, for the path of a field the plainest one."""
        if token in aliases:
            return aliases[token]
        if "." not in token or expand([token], names)[0]:
            return token
        field = fields.find(columns, token)
        if field is not None:
            added[field.name] = field
            return str(field.name)
        known = {field.name: field for field in fields.fields_of(columns)}
        added.update((name, known[name]) for name in expand([token], list(known))[0])
        return token

    if not inner and len(aliases) == len(names):
        return request, columns
    tokens = tuple(map(plainest, request.tokens))
    items = tuple(replace(item, tokens=tuple(map(plainest, item.tokens))) for item in request.items)
    extended = pa.schema([*columns, *added.values()], metadata=columns.metadata)
    return replace(request, tokens=tokens, items=items), extended


def with_folder_flags(options: BindingOptions, model: ModelSpec) -> tuple[BindingOptions, tuple[str, ...]]:
    """Return the options with what the model's folder says, where they do not say it; and that as flags."""
    names = [tensor.name for tensor in model.inputs]
    fed = {feed.split(names, CONVERTERS)[0] for feed in options.feed}
    feeds = [text for text in model.feeds if split_known(text, names)[0] not in fed]
    fetches = () if options.fetch else model.fetches
    labels = () if options.labels else model.labels
    completed = replace(
        options,
        feed=(*options.feed, *map(FeedText.parse, feeds)),
        fetch=(*options.fetch, *fetches),
        labels=(*options.labels, *labels),
    )
    return completed, flags_of(feed=feeds, fetch=fetches, labels=labels)


def requested_feeds(
    feeds: Sequence[FeedText], model: ModelSpec
) -> tuple[dict[str, FeedRequest], set[str], list[ScorerError]]:
    """Return the request for each tensor, the tensors whose --feed cannot be parsed, and the problems.

    If one tensor is fed by the text converter, the same text feeds the model's other token tensors too.
    """
    problems: list[ScorerError] = []
    names = [tensor.name for tensor in model.inputs]
    requests: dict[str, FeedRequest] = {}
    unclear: set[str] = set()
    for feed in feeds:
        tensor, tokens, call = feed.split(names, CONVERTERS)
        text, items = str(feed), feed.items(names)
        if tensor is None or tensor not in names:
            problems.append(_unknown(text, names))
            unclear |= {_colon(text, names)}
            continue
        before = requests.get(tensor)
        twice = before is not None and bool(before.call or before.items or call or items)
        if not (tokens or call or items) or twice or _columns_for_constant(call, tokens):
            problems.append(_not_understood(text, tensor, twice=twice, constant=_columns_for_constant(call, tokens)))
            unclear.add(tensor)
            continue
        requests[tensor] = FeedRequest((*(before.tokens if before else ()), *tokens), call, items)
    texts = [request for request in requests.values() if request.call is not None and request.call.name == "text"]
    if len(texts) == 1:
        (request,) = texts
        call = request.call and type(request.call)(
            request.call.name, request.call.args, _without(request.call.named, "give")
        )
        shared = FeedRequest(request.tokens, call)
        requests |= {name: shared for name in text_.roles(names) if name not in requests and name not in unclear}
    return requests, unclear, problems


def null_policies(
    texts: Sequence[str], requests: Mapping[str, FeedRequest], model: ModelSpec
) -> tuple[dict[str, str], list[ScorerError]]:
    """Return the null policy of each tensor, and the problems. Tensors of one text column share a policy."""
    problems: list[ScorerError] = []
    names = [tensor.name for tensor in model.inputs]
    common = [text for text in texts if split_known(text, names)[0] is None and "=" not in text]
    policies = dict.fromkeys(names, common[-1]) if common else {}
    problems += [_two_policies("all tensors", common)] if len(set(common)) > 1 else []
    own: dict[str, str] = {}
    for text in texts:
        tensor, policy = split_known(text, names)
        if tensor is not None:
            if own.setdefault(tensor, policy) != policy:
                problems.append(_two_policies(repr(tensor), [f"{tensor}={own[tensor]}", text]))
        elif "=" in text:
            problems.append(
                OptionsError(
                    "--on-null names an input that the model does not have",
                    where=f"--on-null {text}",
                    expected=f"one of {quoted_list(names)}",
                    found=repr(text),
                    hint=did_you_mean(text.split("=")[0], names),
                )
            )
    tensors = [name for name, request in requests.items() if request.call is not None and request.call.name == "text"]
    shared = [own[name] for name in tensors if name in own]
    if shared and len({requests[name].tokens for name in tensors}) == 1:
        if len(set(shared)) > 1:
            given = [f"{name}={own[name]}" for name in tensors if name in own]
            problems.append(_two_policies("tensors of one text", given))
        own |= dict.fromkeys(tensors, shared[0])
    return policies | own, problems


def _two_policies(place: str, given: Sequence[str]) -> OptionsError:
    return OptionsError(
        f"--on-null is given twice for {place}",
        where="--on-null",
        expected="one policy",
        found=" and ".join(dict.fromkeys(given)),
        hint=f"leave out all but one, such as --on-null {given[0]}",
    )


def _columns_for_constant(call: Call | None, tokens: Sequence[str]) -> bool:
    """Return whether columns are given for const(...), which takes none."""
    return call is not None and call.name == "const" and bool(tokens)


def _without(named: tuple[tuple[str, str], ...], key: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in named if name != key)


_LISTED = re.compile(r"\b(\w+)\s*=\s*(?:[(\[]([^()\[\]]*)[)\]]|(-?[\d.]+(?:\s*[,;]\s*-?[\d.]+)+))")
"""A setting of a converter with several values, in brackets or with commas."""


def _colon(text: str, names: Sequence[str]) -> str:
    """Return the tensor if a colon follows it in place of an equals sign, else ''."""
    name, colon, columns = text.partition(":")
    return name.strip() if colon and columns.strip() and name.strip() in names else ""


def _unknown(text: str, names: Sequence[str]) -> OptionsError:
    hint = did_you_mean(text.split("=", maxsplit=1)[0], names)
    if _colon(text, names):
        hint = f"--feed '{_colon(text, names)}={text.partition(':')[2].strip()}', with = in place of the colon"
    elif "=" not in text:
        hint = f"--feed '{names[0] if names else 'TENSOR'}={text}'"
    return OptionsError(
        f"--feed names an input that the model does not have: {text!r}",
        where=f"--feed {text}",
        expected=f"one of {quoted_list(names)}",
        found=repr(text),
        hint=hint,
    )


def _not_understood(text: str, tensor: str, *, twice: bool, constant: bool) -> OptionsError:
    where = f"--feed {text}"
    if constant:
        return OptionsError(
            "const(...) takes no column",
            where=where,
            expected="no column",
            found=repr(text),
            hint=f"--feed '{tensor}=const(VALUE)'",
        )
    if twice:
        return OptionsError(
            f"{tensor!r} is fed twice, and one of the two --feed has a converter",
            where=where,
            expected="one --feed with all columns of the tensor",
            found=repr(text),
            hint=f"remove one of the two, or list all columns in one: --feed '{tensor}=COLUMN,COLUMN|epoch(d)'",
        )
    pieces = split_pipe(text)
    listed = _LISTED.search(pieces[-1]) if len(pieces) > 1 else None
    if listed is not None:
        numbers = " ".join(re.split(r"[\s,;]+", (listed[2] or listed[3]).strip()))
        return OptionsError(
            f"--feed {text!r} has a setting with several values",
            where=where,
            expected="values without brackets, separated by blanks",
            found=repr(listed[0]),
            hint=f"write {listed[1]}={numbers}",
        )
    if len(pieces) > 1 or "(" in text:
        what = f"--feed {text!r} has a converter that cannot be understood"
        return OptionsError(
            what,
            where=where,
            expected=f"one of {quoted_list(CONVERTERS)}",
            found=repr(pieces[-1]),
            hint=f"--feed '{tensor}=COLUMN|{CONVERTERS[0]}(...)', with every bracket and quote closed",
        )
    return OptionsError(
        f"--feed {text!r} names no columns",
        where=where,
        expected="columns: names, globs, ranges, 'quoted, names'",
        found=f"{text!r}, which is not a list of names" if "=" in text else "none",
        hint=f"--feed '{tensor}=COLUMN,...'",
    )
