"""Convert categories into their indices in a vocabulary, and dates into time since 1970.

Each converter returns columns of numbers, from which `Numbers` cuts the batches. So columns through different
converters can fill one tensor, and are copied as often as plain numbers: once.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scorer.arrow import python_values, values_type
from scorer.binding.features.numeric import EXACT, as_stored, is_float, numpy_type
from scorer.binding.features.packed import NOT_UTF8
from scorer.display.words import quoted_list
from scorer.errors import OptionsError
from scorer.model.copies import readable
from scorer.storage.stores import may_be_file

if TYPE_CHECKING:
    from scorer.binding.features.packed import Packed
    from scorer.binding.spec import Feed
    from scorer.options.grammar import Call, Setting


_UNITS = {"d": 86_400 * 10**9, "h": 3_600 * 10**9, "m": 60 * 10**9, "s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
"""Nanoseconds in each unit."""


def vocab(feed: Feed, table: pa.Table, packed: Packed) -> list[pa.ChunkedArray]:
    """Return for each text or whole number its index in the vocabulary."""
    vocabulary = pa.array(feed.setting("words"), pa.large_string())
    unknown = feed.setting("unknown")
    columns = []
    for name in feed.columns:
        words = _decode_dictionary(table[name]).cast(pa.large_string())
        codes = pc.index_in(words, vocabulary).cast(pa.int64())
        missing = pc.and_(codes.is_null(), words.is_valid())
        if unknown is None or not _all_utf8(words.filter(missing)):
            rows = np.flatnonzero(missing.to_numpy())
            for row, word in zip(rows, python_values(words.take(pa.array(rows))), strict=True):
                if isinstance(word, bytes):
                    packed.bad.setdefault(int(row), f"{NOT_UTF8} in column {name!r} (tensor {feed.tensor!r})")
                elif unknown is None:
                    packed.bad.setdefault(
                        int(row), f"{word!r} in column {name!r} is not in the vocabulary of {feed.tensor!r}"
                    )
        columns.append(pc.if_else(missing, pa.scalar(unknown or 0, pa.int64()), codes))
    return columns


def epoch(feed: Feed, table: pa.Table, packed: Packed) -> list[pa.ChunkedArray]:
    """Return for each date or time the units since 1970 in UTC, for a time of day those since midnight.

    Integer tensors get the floor.
    """
    per = _UNITS[str(feed.setting("unit"))]
    kind = numpy_type(feed.dtype)
    columns = []
    for name in feed.columns:
        column = _decode_dictionary(table[name])
        whole, rest, units, over = _units_since_1970(column, per)
        fractions = is_float(kind) and bool(rest.any())
        numbers = pa.array(units if fractions else whole, mask=column.is_null().to_numpy())
        columns.append(pa.chunked_array([numbers]))
        lossy = _lossy_values(whole, rest, units, kind) if fractions else np.zeros_like(over)
        if feed.on_lossy == "warn":
            packed.lossy += int(np.count_nonzero(lossy))
            lossy = np.zeros_like(over)
        for row in np.flatnonzero(over | lossy).tolist():
            problem = f"cannot be stored exactly as {feed.dtype} (tensor {feed.tensor!r})"
            packed.bad.setdefault(row, f"{_date_text(column[row])} in column {name!r} {problem}")
    return columns


def mixed(feed: Feed, table: pa.Table, packed: Packed) -> list[pa.ChunkedArray]:
    """Return the columns of a feed with several converters, each through its own."""
    converters = {"numeric": as_stored, "vocab": vocab, "epoch": epoch}
    return [column for part in feed.parts for column in converters[part.kind](part, table, packed)]


def _all_utf8(words: pa.ChunkedArray) -> bool:
    """Return whether all texts are UTF-8."""
    try:
        words.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _decode_dictionary(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Decode a dictionary column into its values."""
    return column.cast(values_type(column.type))


def _units_since_1970(column: pa.ChunkedArray, per: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the whole units since 1970, the remainder, both as a float, and which rows exceed an int64.

    Times of day count from midnight, and durations are counted themselves.
    """
    kind = column.type
    own = _UNITS["ms" if pa.types.is_date64(kind) else "d"] if pa.types.is_date(kind) else _UNITS[kind.unit]
    counted = column.cast(pa.int32()) if pa.types.is_date32(kind) or pa.types.is_time32(kind) else column
    counts = pc.fill_null(counted.cast(pa.int64()), 0).to_numpy()
    if own < per:
        whole, rest = np.divmod(counts, per // own)
        exact = np.abs(counts) <= EXACT["float64"]
        units = np.where(exact, counts / (per // own), whole + rest / (per // own))
        return whole, rest, units, np.zeros(len(counts), bool)
    largest = np.iinfo(np.int64).max // (own // per)
    over = (counts > largest) | (counts < -largest)
    whole = np.where(over, 0, counts) * (own // per)
    return whole, np.zeros_like(whole), whole, over


def _date_text(moment: pa.Scalar) -> str:
    """Return the date or time as text; as a number if it is outside the range of Python's dates."""
    try:
        return str(moment)
    except (OverflowError, ValueError):
        return str(moment.value)


def _lossy_values(whole: np.ndarray, rest: np.ndarray, units: np.ndarray, target: np.dtype) -> np.ndarray:
    """Return which values change beyond the usual rounding of fractions.

    These are values too large for the float type to hold fractions, whose cast differs from the exact value.
    """
    with np.errstate(over="ignore"):
        cast = units.astype(target).astype(np.float64)
    back = np.where(np.abs(cast) < float(2**63), cast, 0).astype(np.int64)
    return np.asarray((np.abs(whole) > EXACT[target.name]) & ((rest != 0) | (back != whole)))


def vocab_settings(call: Call, tensor: str) -> tuple[tuple[str, Setting], ...]:
    """Return the settings of vocab(a, b, c, unknown=-1), or of vocab(FILE) with one word on each line."""
    where, hint = f"--feed {tensor}", f"--feed '{tensor}=COLUMN|vocab(red, green, unknown=-1)', or vocab(FILE)"
    words = call.args
    if len(words) == 1 and not may_be_file(os.path.expanduser(words[0])):
        raise OptionsError(
            "the vocabulary file does not exist",
            where=where,
            expected="a file, or at least two words",
            found=repr(words[0]),
            hint=hint,
        )
    if len(words) == 1:
        try:
            with open(readable(os.path.expanduser(words[0])), encoding="utf-8-sig") as file:
                words = tuple(file.read().removesuffix("\n").split("\n"))
        except (OSError, UnicodeDecodeError) as error:
            raise OptionsError(
                "the vocabulary cannot be read",
                where=words[0],
                expected="text in UTF-8, one word on each line",
                found=str(error),
                hint=hint,
            ) from error
    duplicates = sorted(word for word, count in Counter(words).items() if count > 1)
    named = dict(call.named)
    unknown = named.pop("unknown", None)
    try:
        code = None if unknown is None else int(np.int64(int(unknown)))
    except (ValueError, OverflowError):
        raise OptionsError(
            "unknown= is not a whole number", where=where, expected="a whole number", found=repr(unknown), hint=hint
        ) from None
    if not words or duplicates or named:
        found = (
            f"{quoted_list(duplicates)} twice" if duplicates else quoted_list(sorted(named)) if named else "no words"
        )
        raise OptionsError(
            "the vocabulary is not valid",
            where=where,
            expected="words, each once, and unknown=CODE",
            found=found,
            hint=hint,
        )
    return (("words", tuple(words)), ("unknown", code))


def epoch_settings(call: Call, tensor: str) -> tuple[tuple[str, Setting], ...]:
    """Return the settings of epoch(s): the unit."""
    if len(call.args) != 1 or call.named or call.args[0] not in _UNITS:
        raise OptionsError(
            "epoch needs a unit",
            where=f"--feed {tensor}",
            expected=f"one of {', '.join(_UNITS)}",
            found=", ".join(call.args) or "none",
            hint=f"--feed '{tensor}=COLUMN|epoch(s)'",
        )
    return (("unit", call.args[0]),)
