"""Compare two scorings of the same rows, and say how much they may differ."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

TOLERANCE = 1e-4
"""Allowed change of a score, relative to the largest score.

Kernels that round differently for another batch size stay below 1e-5.
"""
_SMALLEST = float(np.finfo(np.float64).tiny)  # the share of a denormal score would be 0, and nobody could divide by it
_CHANGED_LABELS = 0.01  # share of rows whose label may change: two classes may have nearly the same score


def changed(one: pa.Array, other: pa.Array) -> tuple[float, float]:
    """Return the largest change of a column, and the largest that is allowed; for labels, shares of the rows."""
    while pa.types.is_list(one.type) or pa.types.is_fixed_size_list(one.type):
        one, other = one.flatten(), other.flatten()
    if len(one.drop_null()) != len(other.drop_null()):
        return float("inf"), _CHANGED_LABELS
    if not pa.types.is_floating(one.type):
        return sum(a != b for a, b in zip(one.to_pylist(), other.to_pylist(), strict=True)) / max(
            len(one), 1
        ), _CHANGED_LABELS
    a, b = (array.drop_null().to_numpy(zero_copy_only=False).astype(np.float64) for array in (one, other))
    both = np.isfinite(a) & np.isfinite(b)
    allowed = max(TOLERANCE * (float(np.abs(a[both]).max(initial=0)) or 1.0), _SMALLEST)
    if not np.array_equal(a[~both], b[~both], equal_nan=True):
        return float("inf"), allowed
    return float(np.abs(a[both] - b[both]).max(initial=0)), allowed
