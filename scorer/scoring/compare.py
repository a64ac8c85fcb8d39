"""Compare two scorings of the same rows, and say how much they may differ."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Sequence


TOLERANCE = 1e-4
"""Allowed change of a score, relative to the largest score.

Kernels that round differently for another batch size stay below 1e-5.
"""
_SMALLEST = float(np.finfo(np.float64).tiny)  # the share of a denormal score would be 0, and nobody could divide by it
_CHANGED_LABELS = 0.01  # share of rows whose label may change: two classes may have nearly the same score


def changed(one: pa.Array, other: pa.Array) -> tuple[float, float]:
    """Return the largest change of a column, and the largest that is allowed; for labels, shares of the rows."""
    one, other = _items(one), _items(other)
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


_FEW_DIMENSIONS = 8  # shorter vectors of length one may be something else than embeddings
_NEAREST, _COMPARED_ROWS = 5, 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much the scores of two models differ for the same rows; a figure without a meaning for them is None."""

    largest: float | None = None
    """The largest change of a score, relative to the largest score."""
    mean: float | None = None
    same: float | None = None
    """Share of the labels that stay; of class probabilities, share of the rows whose most likely class stays."""
    cosine: float | None = None
    """The least cosine of a row's two embeddings."""
    nearest: float | None = None
    """Share of the five nearest rows of each row that stay its nearest."""


def difference(one: Sequence[pa.Array], other: Sequence[pa.Array], *, embedding: bool) -> Difference:
    """Compare the columns of one output; `embedding` if it is known to hold embeddings."""
    missing = [column.is_null() for column in (*one, *other)]
    if any(not nulls.equals(missing[0]) for nulls in missing):  # rows that only one model can score
        return Difference(largest=float("inf"), mean=float("inf"), same=0.0)
    one, other = [column.drop_null() for column in one], [column.drop_null() for column in other]
    scores = [at for at, column in enumerate(one) if pa.types.is_floating(_items(column).type)]
    changed_labels = [changed(one[at], other[at])[0] for at in range(len(one)) if at not in scores]
    same = max(0.0, 1 - max(changed_labels)) if changed_labels else None
    if not scores:
        return Difference(same=same)
    flat, flat_other = (pa.concat_arrays([_items(side[at]).cast("float64") for at in scores]) for side in (one, other))
    change, allowed = changed(flat, flat_other)
    unit = allowed / TOLERANCE
    matrix, matrix_other = (_matrix([side[at] for at in scores]) for side in (one, other))
    mean = float("inf") if np.isinf(change) else _mean_change(flat, flat_other) / unit
    found = Difference(largest=change / unit, mean=mean, same=same)
    if matrix is None or matrix_other is None or matrix.shape != matrix_other.shape or np.isinf(change):
        return found
    finite = np.isfinite(matrix).all(axis=1)
    matrix, matrix_other = matrix[finite], matrix_other[finite]
    if not len(matrix) or matrix.shape[1] < 2:  # noqa: PLR2004 - a single number is no vector
        return found
    if _are_probabilities(matrix):
        kept = float((matrix.argmax(axis=1) == matrix_other.argmax(axis=1)).mean())
        return replace(found, same=kept if same is None else min(kept, same))
    if embedding or _have_length_one(matrix):
        a, b = _of_length_one(matrix), _of_length_one(matrix_other)
        return replace(found, cosine=float((a * b).sum(axis=1).min()), nearest=_nearest_kept(a, b))
    return found


def _items(column: pa.Array) -> pa.Array:
    """Return the innermost values of lists; a column without lists as it is."""
    while pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        column = column.flatten()
    return column


def _mean_change(one: pa.Array, other: pa.Array) -> float:
    a, b = (array.drop_null().to_numpy(zero_copy_only=False) for array in (one, other))
    both = np.isfinite(a)  # those of the other are at the same places
    return float(np.abs(a[both] - b[both]).mean()) if both.any() else 0.0


def _matrix(columns: Sequence[pa.Array]) -> np.ndarray | None:
    """Return columns as a matrix with a line for each row; None if the rows have different lengths."""
    if any(pa.types.is_list(column.type) for column in columns) or not len(columns[0]):
        return None
    parts = [_items(column).to_numpy(zero_copy_only=False).astype(np.float64) for column in columns]
    return np.concatenate([part.reshape(len(columns[0]), -1) for part in parts], axis=1)


def _are_probabilities(matrix: np.ndarray) -> bool:
    """Whether each line holds the probabilities of classes."""
    return bool(matrix.min() >= -TOLERANCE and np.abs(matrix.sum(axis=1) - 1).max() <= _CHANGED_LABELS)


def _have_length_one(matrix: np.ndarray) -> bool:
    lengths = np.linalg.norm(matrix, axis=1)
    return matrix.shape[1] >= _FEW_DIMENSIONS and bool(np.abs(lengths - 1).max() <= _CHANGED_LABELS)


def _of_length_one(matrix: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.asarray(matrix / np.where(lengths == 0, 1, lengths))


def _nearest_kept(one: np.ndarray, other: np.ndarray) -> float | None:
    """Return which share of the nearest rows by the second embedding is as near by the first; None for few rows."""
    one, other = one[:_COMPARED_ROWS], other[:_COMPARED_ROWS]
    if len(one) <= _NEAREST:
        return None
    near, near_other = one @ one.T, other @ other.T
    np.fill_diagonal(near, -np.inf)
    np.fill_diagonal(near_other, -np.inf)
    least = np.sort(near, axis=1)[:, -_NEAREST]  # several rows may be equally near
    chosen = np.argsort(-near_other, axis=1, kind="stable")[:, :_NEAREST]
    return float((np.take_along_axis(near, chosen, axis=1) >= least[:, None] - TOLERANCE).mean())
