"""Made-up batches of a model that says no more than its inputs: the walk runs them, and the check compares on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.model.spec import TensorSpec

    Feeds = dict[str, np.ndarray]

SIZES = (16, 1, 2, 4, 8, 32, 64, 128, 256, 512)
"""Sizes of the free dimensions besides the rows; the first that the model accepts is used."""
ROWS = (2, 3, 1)
"""Rows of the batches: what grows from the first to the second has the rows as an axis. With one row, some models drop
that axis."""


def batches(inputs: Sequence[TensorSpec], size: int) -> tuple[Feeds, ...]:
    """Return a batch for each number of rows; equal ones if the model has a fixed number of rows."""
    return tuple(_batch(inputs, rows, size) for rows in ROWS)


def _batch(inputs: Sequence[TensorSpec], rows: int, size: int) -> Feeds:
    rng, feeds = np.random.default_rng(0), {}
    for tensor in inputs:
        free = [rows, *[size] * (len(tensor.shape or ()) - 1)]
        shape = [one if isinstance(one, int) else free[axis] for axis, one in enumerate(tensor.shape or ())]
        kind = np.dtype(object if tensor.type == "string" else tensor.type)
        values = rng.standard_normal(shape) if kind.kind == "f" else rng.integers(0, 2, shape)
        feeds[tensor.name] = np.asarray(values).astype(str if kind.kind == "O" else kind).astype(kind)
    return feeds
