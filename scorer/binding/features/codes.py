"""Columns whose values stand for whole numbers: categories by a vocabulary, dates by an epoch."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scorer.arrow import values_type
from scorer.binding.features.numeric import EXACT, Numbers, is_float, numpy_type
from scorer.display.words import quoted_list
from scorer.errors import OptionsError

if TYPE_CHECKING:
    from scorer.binding.spec import Feed
    from scorer.options.grammar import Call, Setting


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
            words = _plain(table[name]).cast(pa.large_string())
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
        kind = numpy_type(feed.dtype)
        lost: dict[int, str] = {}
        columns, changed = {}, 0
        for name in feed.columns:
            column = _plain(table[name])
            whole, rest, units, over = _since(column, per)
            fractions = is_float(kind) and bool(rest.any())
            columns[name] = pa.array(units if fractions else whole, mask=column.is_null().to_numpy())
            lossy = _loses(whole, rest, units, kind) if fractions else np.zeros_like(over)
            if feed.on_lossy == "warn":
                changed += int(np.count_nonzero(lossy))
                lossy = np.zeros_like(over)
            for row in np.flatnonzero(over | lossy).tolist():
                reason = f"does not survive as {feed.dtype} (tensor {feed.tensor!r})"
                lost.setdefault(row, f"{_told(column[row])} in column {name!r} {reason}")
        super().__init__(feed, pa.table(columns))
        self.bad = lost | self.bad
        self.lossy += changed


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without a dictionary."""
    return column.cast(values_type(column.type))


def _since(column: pa.ChunkedArray, per: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Whole units since 1970, what is left over, both as a float, and which rows an int64 does not hold."""
    kind = column.type
    own = _UNITS[kind.unit] if pa.types.is_timestamp(kind) else _UNITS["ms" if pa.types.is_date64(kind) else "d"]
    counted = column.cast(pa.int32()) if pa.types.is_date32(kind) else column
    counts = pc.fill_null(counted.cast(pa.int64()), 0).to_numpy()
    if own < per:
        whole, rest = np.divmod(counts, per // own)
        exact = np.abs(counts) <= EXACT["float64"]
        units = np.where(exact, counts / (per // own), whole + rest / (per // own))
        return whole, rest, units, np.zeros(len(counts), bool)
    most = np.iinfo(np.int64).max // (own // per)
    over = (counts > most) | (counts < -most)
    whole = np.where(over, 0, counts) * (own // per)
    return whole, np.zeros_like(whole), whole, over


def _told(moment: pa.Scalar) -> str:
    """As a person writes it; as a number where Python has no such date."""
    try:
        return str(moment)
    except (OverflowError, ValueError):
        return str(moment.value)


def _loses(whole: np.ndarray, rest: np.ndarray, units: np.ndarray, target: np.dtype) -> np.ndarray:
    """Where the float is too large for fractions, and is not what was meant."""
    with np.errstate(over="ignore"):
        cast = units.astype(target).astype(np.float64)
    held = np.where(np.abs(cast) < float(2**63), cast, 0).astype(np.int64)
    return np.asarray((np.abs(whole) > EXACT[target.name]) & ((rest != 0) | (held != whole)))


def vocab_settings(call: Call, tensor: str) -> tuple[tuple[str, Setting], ...]:
    """vocab(a, b, c, unknown=-1), or vocab(FILE) with a word on each line."""
    where, hint = f"--feed {tensor}", f"--feed '{tensor}=COLUMN|vocab(red, green, unknown=-1)', or vocab(FILE)"
    words = call.args
    if len(words) == 1 and not os.path.isfile(os.path.expanduser(words[0])):
        what = "the vocabulary file is not there"
        raise OptionsError(what, where, "a file, or at least two words", repr(words[0]), hint)
    if len(words) == 1:
        try:
            with open(os.path.expanduser(words[0]), encoding="utf-8-sig") as file:
                words = tuple(file.read().removesuffix("\n").split("\n"))
        except (OSError, UnicodeDecodeError) as error:
            what = "the vocabulary cannot be read"
            raise OptionsError(what, words[0], "text in UTF-8, a word on each line", str(error), hint) from error
    twice = sorted(word for word, count in Counter(words).items() if count > 1)
    named = dict(call.named)
    unknown = named.pop("unknown", None)
    try:
        code = None if unknown is None else int(np.int64(int(unknown)))
    except (ValueError, OverflowError):
        raise OptionsError("unknown= is no code", where, "a whole number", repr(unknown), hint) from None
    if not words or twice or named:
        found = f"{quoted_list(twice)} twice" if twice else quoted_list(sorted(named)) if named else "no words"
        raise OptionsError("the vocabulary does not fit", where, "words, each once, and unknown=CODE", found, hint)
    return (("words", tuple(words)), ("unknown", code))


def epoch_settings(call: Call, tensor: str) -> tuple[tuple[str, Setting], ...]:
    """epoch(s): the unit."""
    if len(call.args) != 1 or call.named or call.args[0] not in _UNITS:
        what, hint = "epoch wants a unit", f"--feed '{tensor}=COLUMN|epoch(s)'"
        found = ", ".join(call.args) or "none"
        raise OptionsError(what, f"--feed {tensor}", f"one of {', '.join(_UNITS)}", found, hint)
    return (("unit", call.args[0]),)
