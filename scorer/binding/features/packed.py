"""The interface of all converters: the columns of a part, ready to be cut into batches."""

from __future__ import annotations

import numpy as np

Rows = slice | np.ndarray
"""Rows of a part: a slice, which numpy can view without a copy, or row numbers."""
NOT_UTF8 = "text that is not UTF-8"
"""The reason for a row with a text that cannot be decoded."""


class Packed:
    """The columns of a whole part for one tensor."""

    lengths: np.ndarray | None = None
    """The length of each row, if rows of similar length should be scored together."""
    pads_left = False
    """Whether padding is before a row's values, if rows differ in length."""
    reuse_buffer = False
    """Whether `batch` may overwrite the buffer of the batch before."""
    shared = False
    """Whether `batch` returns the same array for every batch, without a row axis."""

    def __init__(self) -> None:
        self.bad: dict[int, str] = {}
        """The reason for each row that cannot be fed. `batch` may add rows, and fills bad rows with any value."""
        self.lossy = 0
        """Number of values that are fed although the cast changed them."""
        self.truncated = 0
        """Number of rows that were truncated to fit."""

    def batch(self, rows: Rows) -> np.ndarray:
        """Return the tensor of these rows, in this order."""
        raise NotImplementedError
