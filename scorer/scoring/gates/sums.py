"""Exact sums of floating-point numbers: the same for any order and any division into parts."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

Exact = tuple[int, int]
"""A number m * 2**e as (m, e); m is odd or 0, so that equal numbers are equal pairs."""
ZERO: Exact = (0, 0)
_ROWS = 1 << 20  # added at once: the sums of halves of mantissas stay below 2**53
_MANTISSA, _HALF = 53, 27
_SPLITTER = float(2**_HALF + 1)
_SAFE = 480  # products of numbers from 2**-480 to 2**480 do not overflow, and lose no digit


def total(values: np.ndarray) -> Exact:
    """Return the exact sum of finite float64 numbers."""
    found = ZERO
    for at in range(0, len(values), _ROWS):
        found = add(found, _total(values[at : at + _ROWS]))
    return found


def _total(values: np.ndarray) -> Exact:
    mantissas, exponents = np.frexp(values)
    whole = (mantissas * float(2**_MANTISSA)).astype(np.int64)
    least = int(exponents.min())
    at = exponents - least
    high = np.bincount(at, whole >> _HALF)
    low = np.bincount(at, whole & (2**_HALF - 1))
    found = 0
    for place in np.flatnonzero((high != 0) | (low != 0)).tolist():
        found += ((int(high[place]) << _HALF) + int(low[place])) << place
    return _normal(found, least - _MANTISSA)


def products(one: np.ndarray, other: np.ndarray) -> Exact:
    """Return the exact sum of the products of two rows of finite float64 numbers."""
    found = ZERO
    for at in range(0, len(one), _ROWS // 4):
        found = add(found, _products(one[at : at + _ROWS // 4], other[at : at + _ROWS // 4]))
    return found


def _products(one: np.ndarray, other: np.ndarray) -> Exact:
    safe = _is_safe(one) & _is_safe(other)
    (high, low), (high_other, low_other) = _halves(one[safe]), _halves(other[safe])
    each = [high * high_other, high * low_other, low * high_other, low * low_other]
    found = total(np.concatenate(each))
    for a, b in zip(one[~safe].tolist(), other[~safe].tolist(), strict=True):
        found = add(found, _exact(Fraction(a) * Fraction(b)))
    return found


def _is_safe(values: np.ndarray) -> np.ndarray:
    _, exponents = np.frexp(values)
    return np.asarray(np.abs(exponents) < _SAFE)  # 0 has exponent 0


def _halves(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split numbers into two with half as many digits, whose products are exact (Veltkamp's method)."""
    scaled = _SPLITTER * values
    high = scaled - (scaled - values)
    return high, values - high


def add(one: Exact, other: Exact) -> Exact:
    """Return the sum of two exact numbers."""
    (a, e), (b, f) = one, other
    least = min(e, f)
    return _normal((a << (e - least)) + (b << (f - least)), least)


def fraction(number: Exact) -> Fraction:
    """Return the number as a fraction."""
    mantissa, exponent = number
    return Fraction(mantissa << exponent) if exponent >= 0 else Fraction(mantissa, 1 << -exponent)


def _exact(number: Fraction) -> Exact:
    return _normal(number.numerator, 1 - number.denominator.bit_length())  # the denominator is a power of two


def _normal(mantissa: int, exponent: int) -> Exact:
    if not mantissa:
        return ZERO
    zeros = (mantissa & -mantissa).bit_length() - 1
    return mantissa >> zeros, exponent + zeros


def rounded(number: Fraction) -> float:
    """Return the nearest float; infinity beyond the largest one."""
    try:
        return float(number)
    except OverflowError:
        return float("inf") if number > 0 else float("-inf")
