"""Columns whose values stand for whole numbers: categories by a vocabulary, dates by an epoch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scorer.errors import OptionsError, some
from scorer.features.numeric import Numbers

if TYPE_CHECKING:
    from scorer.features import Feed
    from scorer.rules import Call, Setting

_UNITS = {"d": 86_400 * 10**9, "h": 3_600 * 10**9, "m": 60 * 10**9, "s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
"""Nanoseconds in each."""


class Codes(Numbers):
    """Texts or whole numbers as their places in a vocabulary."""

    def __init__(self, feed: Feed, table: pa.Table) -> None:
        known = pa.array(feed.setting("words"), pa.large_string())
        unknown = feed.setting("unknown")
        strange: dict[int, str] = {}
        columns = {}
        for name in feed.columns:
            words = table[name].cast(pa.large_string())
            codes = pc.index_in(words, known).cast(pa.int64())
            lost = pc.and_(codes.is_null(), words.is_valid())
            if unknown is None:
                where = np.flatnonzero(lost.to_numpy())
                for row, word in zip(where, words.take(pa.array(where)).to_pylist(), strict=True):
                    strange.setdefault(
                        int(row), f"{word!r} in column {name!r} is not in the vocabulary of {feed.tensor!r}"
                    )
            columns[name] = pc.if_else(lost, pa.scalar(unknown or 0, pa.int64()), codes)
        super().__init__(feed, pa.table(columns))
        self.bad |= strange


class Epochs(Numbers):
    """Dates and times as what has passed since 1970, in UTC; whole tensors are floored."""

    def __init__(self, feed: Feed, table: pa.Table) -> None:
        per = _UNITS[str(feed.setting("unit"))]
        whole = "int" in feed.dtype
        columns = {
            name: pa.chunked_array([_since(table[name].combine_chunks(), per, whole=whole)]) for name in feed.columns
        }
        super().__init__(feed, pa.table(columns))


def _since(column: pa.Array, per: int, *, whole: bool) -> pa.Array:
    """Units since 1970; a column's own unit is kept as long as it divides evenly."""
    if pa.types.is_date(column.type):
        column = column.cast(pa.date32())
        own, counted = _UNITS["d"], column.cast(pa.int32()).cast(pa.int64())
    else:
        own, counted = _UNITS[column.type.unit], column.cast(pa.int64())
    mask = column.is_null().to_numpy(zero_copy_only=False)
    counts = pc.fill_null(counted, 0).to_numpy(zero_copy_only=False)
    if not whole:
        return pa.array(counts * (own / per), mask=mask)
    return pa.array(counts * (own // per) if own >= per else counts // (per // own), mask=mask)


def vocab_settings(call: Call, tensor: str) -> tuple[tuple[str, Setting], ...]:
    """vocab(a, b, c, unknown=-1), or vocab(FILE) with a word on each line."""
    where, hint = f"--feed {tensor}", f"--feed '{tensor}=COLUMN|vocab(red, green, unknown=-1)', or vocab(FILE)"
    words = call.args
    if len(words) == 1 and os.path.isfile(words[0]):
        try:
            with open(words[0], encoding="utf-8") as file:
                words = tuple(file.read().splitlines())
        except (OSError, UnicodeDecodeError) as error:
            what = "the vocabulary cannot be read"
            raise OptionsError(what, words[0], "text in UTF-8, a word on each line", str(error), hint) from error
    twice = sorted({word for word in words if words.count(word) > 1}) if len(words) < 10**4 else []
    named = dict(call.named)
    unknown = named.pop("unknown", None)
    try:
        code = None if unknown is None else int(unknown)
    except ValueError:
        raise OptionsError("unknown= is no code", where, "a whole number", repr(unknown), hint) from None
    if not words or twice or named:
        found = f"{some(twice)} twice" if twice else some(sorted(named)) if named else "no words"
        raise OptionsError("the vocabulary does not fit", where, "words, each once, and unknown=CODE", found, hint)
    return (("words", tuple(words)), ("unknown", code))


def epoch_settings(call: Call, tensor: str) -> tuple[tuple[str, Setting], ...]:
    """epoch(s): the unit."""
    if len(call.args) != 1 or call.named or call.args[0] not in _UNITS:
        what, hint = "epoch wants a unit", f"--feed '{tensor}=COLUMN|epoch(s)'"
        found = ", ".join(call.args) or "none"
        raise OptionsError(what, f"--feed {tensor}", f"one of {', '.join(_UNITS)}", found, hint)
    return (("unit", call.args[0]),)
