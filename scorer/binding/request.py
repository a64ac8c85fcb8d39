"""What --feed and --on-null say, tensor by tensor."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scorer.binding.features import text as text_
from scorer.binding.spec import CONVERTERS
from scorer.display.words import did_you_mean, quoted_list
from scorer.errors import OptionsError, ScorerError
from scorer.options.grammar import split_known, split_pipe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scorer.model.spec import ModelSpec
    from scorer.options.grammar import Call, FeedText

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


_MIXED = "give them as numbers with --transform"


@dataclass(frozen=True, slots=True)
class FeedRequest:
    """What --feed says of one tensor."""

    tokens: tuple[str, ...] = ()
    call: Call | None = None


def requested_feeds(
    feeds: Sequence[FeedText], model: ModelSpec
) -> tuple[dict[str, FeedRequest], set[str], list[ScorerError]]:
    """Return the request for each tensor, the tensors whose --feed is not understood, and the problems.

    A text feeds every tensor that its tokens can fill.
    """
    problems: list[ScorerError] = []
    names = [tensor.name for tensor in model.inputs]
    asked: dict[str, FeedRequest] = {}
    unclear: set[str] = set()
    for feed in feeds:
        tensor, tokens, call = feed.split(names, CONVERTERS)
        text = str(feed)
        if tensor is None or tensor not in names:
            problems.append(_unknown(text, names))
            continue
        before = asked.get(tensor)
        if (not tokens and call is None) or (before and (before.call or call)) or _columns_for_constant(call, tokens):
            problems.append(
                _not_understood(text, tensor, twice=before is not None, idle=_columns_for_constant(call, tokens))
            )
            unclear.add(tensor)
            continue
        asked[tensor] = FeedRequest((*(before.tokens if before else ()), *tokens), call)
    read = [(name, wish) for name, wish in asked.items() if wish.call is not None and wish.call.name == "text"]
    if len(read) == 1:
        (_, wish) = read[0]
        call = wish.call and type(wish.call)(wish.call.name, wish.call.args, _without(wish.call.named, "give"))
        shared = FeedRequest(wish.tokens, call)
        asked |= {name: shared for name in text_.roles(names) if name not in asked and name not in unclear}
    return asked, unclear, problems


def null_policies(
    said: Sequence[str], asked: Mapping[str, FeedRequest], model: ModelSpec
) -> tuple[dict[str, str], list[ScorerError]]:
    """Return the null policy of each tensor, and the problems. The tensors of one text share a policy."""
    problems: list[ScorerError] = []
    names = [tensor.name for tensor in model.inputs]
    common = [text for text in said if split_known(text, names)[0] is None and "=" not in text]
    policies = dict.fromkeys(names, common[-1]) if common else {}
    own = {}
    for text in said:
        tensor, policy = split_known(text, names)
        if tensor is not None:
            own[tensor] = policy
        elif "=" in text:
            what, hint = (
                "--on-null names an input that the model does not have",
                did_you_mean(text.split("=")[0], names),
            )
            problems.append(OptionsError(what, f"--on-null {text}", f"one of {quoted_list(names)}", repr(text), hint))
    read = [name for name, wish in asked.items() if wish.call is not None and wish.call.name == "text"]
    told = [own[name] for name in read if name in own]
    if told and len({asked[name].tokens for name in read}) == 1:
        own |= dict.fromkeys(read, told[0])
    return policies | own, problems


def _columns_for_constant(call: Call | None, tokens: Sequence[str]) -> bool:
    """Whether columns are named for a converter that takes none."""
    return call is not None and call.name == "const" and bool(tokens)


def _without(named: tuple[tuple[str, str], ...], key: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in named if name != key)


def _unknown(text: str, names: Sequence[str]) -> OptionsError:
    what = f"--feed names an input that the model does not have: {text!r}"
    hint = did_you_mean(text.split("=", maxsplit=1)[0], names)
    if "=" not in text:
        hint = f"--feed '{names[0] if names else 'TENSOR'}={text}'"
    return OptionsError(what, f"--feed {text}", f"one of {quoted_list(names)}", repr(text), hint)


def _not_understood(text: str, tensor: str, *, twice: bool, idle: bool) -> OptionsError:
    where = f"--feed {text}"
    if idle:
        what, hint = "const(...) takes no column", f"--feed '{tensor}=const(VALUE)'"
        return OptionsError(what, where, "no column", repr(text), hint)
    if twice:
        what, hint = f"{tensor!r} is fed twice, and once through a converter", "feed it once"
        return OptionsError(what, where, "columns, or one converter", repr(text), hint)
    pieces = split_pipe(text)
    if len(pieces) > 1 or "(" in text:
        what = f"--feed {text!r} has a converter that cannot be understood"
        if "," in split_pipe(text)[0]:
            hint = f"a converter takes one column and fills a tensor by itself; columns of several kinds: {_MIXED}"
            return OptionsError(what, where, "one column before the bar", repr(pieces[0]), hint)
        hint = f"--feed '{tensor}=COLUMN|{CONVERTERS[0]}(...)', with every bracket and quote closed"
        return OptionsError(what, where, f"one of {quoted_list(CONVERTERS)}", repr(pieces[-1]), hint)
    what, hint = f"--feed {text!r} names no columns", f"--feed '{tensor}=COLUMN,...'"
    found = f"{text!r}, which is not a list of names" if "=" in text else "none"
    return OptionsError(what, where, "columns: names, globs, ranges, 'quoted, names'", found, hint)
