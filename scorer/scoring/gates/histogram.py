"""Counts of numbers in fixed, fine bins: a bin is at most 0.1 % as wide as the numbers in it.

The bins are the same for all columns and runs: they follow from the first ten binary digits of a number after its
leading one. So histograms are added bin by bin, and are the same for any order and any division into parts.
"""

from __future__ import annotations

import base64
import math
import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction

_DIGITS = 10
_SHIFT = 52 - _DIGITS
_MAGNITUDE = np.int64(0x7FFF_FFFF_FFFF_FFFF)
_SPARSE = 8  # bins beyond so many times the numbers are counted by sorting
_DENSE = 1 << 16  # always counted in a table of this size
_PSI_BINS = 10
_LEAST_SHARE = 1e-4  # smaller shares count as this one, as usual, so that an empty bin does not make PSI infinite


@dataclass(frozen=True, slots=True)
class Histogram:
    """The numbers of bins, in ascending order, with their counts."""

    keys: np.ndarray
    counts: np.ndarray

    @property
    def total(self) -> int:
        """How many numbers are counted."""
        return int(self.counts.sum())

    def encode(self) -> str:
        """Return the histogram as text."""
        steps = np.diff(self.keys, prepend=0).astype("<i8")
        planes = np.concatenate([steps, self.counts.astype("<i8")]).view(np.uint8).reshape(-1, 8).T
        return base64.b64encode(zlib.compress(np.ascontiguousarray(planes).tobytes(), 6)).decode()

    @classmethod
    def decode(cls, text: str) -> Histogram:
        """Return the histogram that `encode` wrote."""
        planes = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(8, -1)
        steps, counts = np.split(np.ascontiguousarray(planes.T).reshape(-1).view("<i8"), 2)
        return cls(np.cumsum(steps), counts)


def count(values: np.ndarray) -> Histogram:
    """Count float64 numbers, infinities among them and no NaN."""
    bits = (values + 0.0).view(np.int64)  # -0.0 becomes 0.0
    magnitudes = (bits & _MAGNITUDE) >> _SHIFT
    keys = np.where(bits < 0, -1 - magnitudes, magnitudes)
    if not len(keys):
        return Histogram(np.empty(0, np.int64), np.empty(0, np.int64))
    least = int(keys.min())
    span = int(keys.max()) - least + 1
    if span > max(_DENSE, _SPARSE * len(keys)):
        return Histogram(*np.unique(keys, return_counts=True))
    counts = np.bincount(keys - least)
    used = np.flatnonzero(counts)
    return Histogram(used + least, counts[used])


def added(several: Sequence[Histogram]) -> Histogram:
    """Return the sum of several histograms."""
    keys, places = np.unique(np.concatenate([one.keys for one in several]), return_inverse=True)
    counts = np.zeros(len(keys), np.int64)
    np.add.at(counts, places, np.concatenate([one.counts for one in several]))
    return Histogram(keys, counts)


def bounds(key: int) -> tuple[float, float]:
    """Return the ends of a bin; those of a positive one belong to it and to the next one."""
    magnitude = key if key >= 0 else -1 - key
    low, high = (float(np.int64(at << _SHIFT).view(np.float64)) for at in (magnitude, magnitude + 1))
    if math.isinf(low):
        high = low
    return (low, high) if key >= 0 else (-high, -low)


def quantile(one: Histogram, share: Fraction, *, whole: bool) -> tuple[float, float] | None:
    """Return about the smallest number that at least this share of the numbers do not exceed, and the largest error."""
    if not one.total:
        return None
    rank = max(1, math.ceil(share * one.total))
    low, high = bounds(int(one.keys[np.searchsorted(np.cumsum(one.counts), rank)]))
    if math.isinf(low) or low == high:
        return low, 0.0
    if whole:
        low, high = (float(math.ceil(low)), float(math.ceil(high) - 1)) if low >= 0 else (
            float(math.floor(low) + 1), float(math.floor(high)))  # fmt: skip
        middle = float((int(low) + int(high)) // 2)
        return middle, max(middle - low, high - middle)
    middle = low if math.isinf(high) else low / 2 + high / 2
    return middle, 0.0 if math.isinf(high) else high / 2 - low / 2


def area(positive: Histogram, negative: Histogram) -> tuple[float, float] | None:
    """Return the area under the ROC curve and its largest error; None without positive or without negative rows.

    Two rows in one bin count half, whatever their order is; the error is for the case that it always is the same.
    """
    if not positive.total or not negative.total:
        return None
    keys = np.union1d(positive.keys, negative.keys)
    hits, misses = (_counts_at(one, keys).astype(np.float64) for one in (positive, negative))
    below = np.cumsum(misses) - misses
    pairs = float(positive.total) * float(negative.total)
    ties = float((hits * misses).sum()) / 2
    return (float((hits * below).sum()) + ties) / pairs, ties / pairs


def _counts_at(one: Histogram, keys: np.ndarray) -> np.ndarray:
    counts = np.zeros(len(keys), np.int64)
    counts[np.searchsorted(keys, one.keys)] = one.counts
    return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """The shares of rows in the groups of two distributions, and their population stability index."""

    groups: tuple[str, ...]
    before: tuple[float, ...]
    now: tuple[float, ...]
    psi: float


def drift_of_numbers(before: Histogram, now: Histogram, missing: tuple[int, int], *, whole: bool) -> Drift | None:
    """Compare two distributions in groups between the deciles of the first; missing values are a group of their own."""
    if not before.total:
        return None
    ranks = [-(-before.total * n // _PSI_BINS) for n in range(1, _PSI_BINS)]
    cumulated = np.cumsum(before.counts)
    edges = np.unique(before.keys[np.searchsorted(cumulated, ranks)])  # the last bin of each group but the last one
    counts = []
    for one in (before, now):
        up_to = np.concatenate([[0], np.cumsum(one.counts)])[np.searchsorted(one.keys, edges, side="right")]
        counts.append(np.diff([0, *up_to.tolist(), one.total]).tolist())
    ends = [_last_number(int(key), whole=whole) for key in edges]
    names = [f"up to {ends[0]!r}", *(f"{a!r} to {b!r}" for a, b in pairwise(ends))]
    return _drift([*names, f"above {ends[-1]!r}"], counts[0], counts[1], missing)


def _last_number(key: int, *, whole: bool) -> float:
    """Return the end of a bin; of whole numbers, the largest one in it."""
    end = bounds(key)[1]
    if not whole or math.isinf(end):
        return end
    return math.ceil(end) - 1 if key >= 0 else math.floor(end)


def drift_of_values(before: dict[str, int], now: dict[str, int], missing: tuple[int, int]) -> Drift | None:
    """Compare how often each value occurs."""
    if not before:
        return None
    names = sorted({*before, *now})
    return _drift(names, [before.get(name, 0) for name in names], [now.get(name, 0) for name in names], missing)


def _drift(names: list[str], before: list[int], now: list[int], missing: tuple[int, int]) -> Drift | None:
    if any(missing):
        names, before, now = [*names, "missing"], [*before, missing[0]], [*now, missing[1]]
    if not sum(now):
        return None
    used = [at for at in range(len(names)) if before[at] or now[at]]
    shares = [[max(one[at] / sum(one), _LEAST_SHARE) for at in used] for one in (before, now)]
    psi = math.fsum((b - a) * math.log(b / a) for a, b in zip(*shares, strict=True))
    real = [tuple(one[at] / sum(one) for at in used) for one in (before, now)]
    return Drift(groups=tuple(names[at] for at in used), before=real[0], now=real[1], psi=psi)
