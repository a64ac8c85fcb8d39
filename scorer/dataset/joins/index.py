"""Find the rows of a table by key: a hash index that is built once, and looked up with NumPy for many rows at a time.

Each row has a code, a hash of 64 bits of its key. The rows are sorted by code. The first bits of a code are its bucket,
and a second array has the first row of each bucket. A lookup starts at the first row of the bucket and goes on until it
finds the code or a larger one; buckets have one or two rows. If two keys can have one code, the keys are compared too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scorer.arrow import is_encoded, is_text, plain, values_type

if TYPE_CHECKING:
    from collections.abc import Sequence


_FACTORS = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))
_SHIFT = np.uint64(33)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_WORD = 8
_MOST_WORDS = 1024  # of a text that are hashed; longer texts are told apart by comparing them
_BITS = 64
_INTEGERS = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}


def key_type(left: pa.DataType, right: pa.DataType) -> pa.DataType | None:
    """Return the type in which keys of both types are compared, each value exactly as it is; None if there is none."""
    one, other = plain(values_type(left)), plain(values_type(right))
    if pa.types.is_integer(one) and pa.types.is_integer(other):
        if pa.types.is_unsigned_integer(one) and pa.types.is_unsigned_integer(other):
            return pa.uint64()
        return None if pa.uint64() in {one, other} else pa.int64()
    if is_text(one) and is_text(other):
        return pa.large_string()
    if is_encoded(one) and is_encoded(other):
        return pa.large_binary()
    same = one == other and (
        pa.types.is_boolean(one) or pa.types.is_decimal(one) or (pa.types.is_temporal(one) and one.bit_width <= _BITS)
    )
    return one if same else None


def as_key(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    """Return a column as one array of the type in which keys are compared; dictionaries stay as they are."""
    if pa.types.is_dictionary(column.type):
        found = column.combine_chunks()
        return pa.DictionaryArray.from_arrays(found.indices, found.dictionary.cast(kind))
    found = column if column.type == kind else column.cast(kind)
    return found.combine_chunks()


@dataclass(frozen=True, slots=True)
class Index:
    """The rows of a table by their keys, which are different."""

    codes: np.ndarray
    """The code of each row, sorted."""
    starts: np.ndarray
    """The first row of each bucket, or the first one after it if the bucket is empty."""
    bits: int
    """How many bits of a code are its bucket."""
    keys: tuple[pa.Array, ...]
    """The keys of the rows; none if each code belongs to one key."""

    @classmethod
    def of(cls, codes: np.ndarray, keys: tuple[pa.Array, ...]) -> Index:
        """Return the index of rows that are sorted by their codes."""
        bits = max(1, len(codes).bit_length() - 1)
        edges = np.arange(1 << bits, dtype=np.uint64) << np.uint64(_BITS - bits)
        starts = np.searchsorted(codes, edges).astype(np.int32 if len(codes) < 2**31 else np.int64)
        return cls(codes, starts, bits, keys)

    def find(self, keys: Sequence[pa.Array]) -> np.ndarray:
        """Return the number of the row with each key, and -1 where no row has it or it is null."""
        if len(keys) == 1 and pa.types.is_dictionary(keys[0].type):
            return self._by_dictionary(keys[0])
        codes, valid = codes_of(keys)
        found = np.full(len(codes), -1, np.int64)
        if not len(self.codes):
            return found
        left = None if valid is None else np.flatnonzero(valid)
        codes = codes if left is None else codes[left]
        at = self.starts[(codes >> np.uint64(_BITS - self.bits)).astype(np.int64)].astype(np.int64)
        last = len(self.codes)
        while len(codes):
            seen = self.codes[np.minimum(at, last - 1)]
            hit = (seen == codes) & (at < last)
            rows = np.flatnonzero(hit)
            own = rows if left is None else left[rows]
            if self.keys and len(rows):
                same = self._are_equal(at[rows], keys, own)
                hit[rows[~same]] = False
                rows, own = rows[same], own[same]
            found[own] = at[rows]
            on = np.flatnonzero(~hit & (seen <= codes) & (at < last - 1))
            left = on if left is None else left[on]
            codes, at = codes[on], at[on] + 1
        return found

    def _by_dictionary(self, key: pa.DictionaryArray) -> np.ndarray:
        """Return the same for a dictionary, of which each value is looked up once."""
        rows = np.append(self.find([key.dictionary]), -1)
        places = key.indices.cast(pa.int64())
        return np.asarray(rows[places.fill_null(len(key.dictionary)).to_numpy(zero_copy_only=False)])

    def _are_equal(self, rows: np.ndarray, keys: Sequence[pa.Array], places: np.ndarray) -> np.ndarray:
        """Return whether the keys of these rows are those at these places."""
        equal = np.ones(len(rows), bool)
        rows, at = pa.array(rows), None if len(places) == len(keys[0]) else pa.array(places)
        for own, key in zip(self.keys, keys, strict=True):
            asked = _decoded(key if at is None else key.take(at))
            equal &= pc.equal(own.take(rows), asked).to_numpy(zero_copy_only=False)
        return equal


def build(keys: Sequence[pa.Array]) -> tuple[Index, np.ndarray]:
    """Return the index of rows with these keys, and the number of each row in the order of the index. No key is null.

    If two rows have one key, the index finds one of them; `duplicates` says which rows these are.
    """
    keys = [_decoded(key) for key in keys]
    codes, _ = codes_of(keys)
    order = np.argsort(codes, kind="stable")
    exact = len(keys) == 1 and _is_word(keys[0].type)
    held = () if exact else tuple(key.take(pa.array(order)) for key in keys)
    return Index.of(codes[order], held), order


def duplicates(index: Index) -> np.ndarray:
    """Return the places in the index of rows whose key a row before them has."""
    places = np.flatnonzero(index.codes[1:] == index.codes[:-1]) + 1
    if not index.keys or not len(places):
        return places
    keys = [key.take(pa.array(places)) for key in index.keys]
    return np.asarray(places[index.find(keys) != places])


def codes_of(keys: Sequence[pa.Array]) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the code of each key, and which keys have no null; None if none has."""
    codes = None
    for key in keys:
        words = _words(_decoded(key))
        codes = _mixed(words if codes is None else codes * _STEP + words)
    valid = None
    for key in keys:
        if key.null_count:
            own = key.is_valid().to_numpy(zero_copy_only=False)
            valid = own if valid is None else valid & own
    return codes if codes is not None else np.empty(0, np.uint64), valid


def _decoded(key: pa.Array) -> pa.Array:
    return key.cast(key.type.value_type) if pa.types.is_dictionary(key.type) else key


def _is_word(kind: pa.DataType) -> bool:
    """Return whether each value of a type has a word of its own, so that different keys have different codes."""
    number = pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_temporal(kind)
    return bool(number or (pa.types.is_decimal(kind) and kind.bit_width <= _BITS))


def _words(key: pa.Array) -> np.ndarray:
    """Return a word of 64 bits for each value; null has any."""
    kind = key.type
    if pa.types.is_boolean(kind):
        return np.asarray(key.cast(pa.uint8()).fill_null(0).to_numpy(), np.uint64)
    if is_text(kind) or is_encoded(kind):
        return _words_of_texts(key)
    width = kind.bit_width // 8
    first, count = key.offset * width, len(key)
    if width <= _WORD:
        data = np.frombuffer(key.buffers()[1], _INTEGERS[width], count, first)
        return data.astype(np.int64, copy=False).view(np.uint64)
    words = np.frombuffer(key.buffers()[1], np.uint64, count * width // _WORD, first).reshape(count, -1)
    found = words[:, 0].copy()
    for word in words.T[1:]:
        found = _mixed(found) * _STEP + word
    return found


def _words_of_texts(key: pa.Array) -> np.ndarray:
    """Return a hash of each text, from its length and its words of 8 bytes."""
    offsets = np.frombuffer(key.buffers()[1], np.int64, offset=key.offset * _WORD, count=len(key) + 1)
    found = np.diff(offsets).view(np.uint64)
    data = key.buffers()[2]
    if data is None or not len(key):
        return found
    size = data.size
    if size < _WORD:
        data, size = np.frombuffer(data.to_pybytes().ljust(_WORD, b"\0"), np.uint8), _WORD
    words = np.ndarray((size - _WORD + 1,), "<u8", data, strides=(1,))
    masks = np.array([(1 << 8 * n) - 1 for n in range(_WORD)] + [2**64 - 1], np.uint64)
    at, left, rows = offsets[:-1], np.diff(offsets), None
    for _ in range(_MOST_WORDS):
        more = np.flatnonzero(left > 0)
        if not len(more):
            break
        if len(more) < len(left):
            at, left, rows = at[more], left[more], more if rows is None else rows[more]
        first = np.minimum(at, size - _WORD)
        word = words[first] >> ((at - first) * 8).view(np.uint64) & masks[np.minimum(left, _WORD)]
        if rows is None:
            found = _mixed(found) * _STEP + word
        else:
            found[rows] = _mixed(found[rows]) * _STEP + word
        at, left = at + _WORD, left - _WORD
    return found


def _mixed(codes: np.ndarray) -> np.ndarray:
    """Return the codes with their bits mixed, so that each bit depends on all; different codes stay different."""
    codes = codes ^ (codes >> _SHIFT)
    for factor in _FACTORS:
        codes = codes * factor
        codes ^= codes >> _SHIFT
    return codes
