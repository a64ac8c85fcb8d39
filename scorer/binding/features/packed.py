"""The one interface of all converters: the columns of a part, ready to be cut into batches."""

from __future__ import annotations

import numpy as np

Rows = slice | np.ndarray
"""Rows of a part: a stretch, which numpy can view, or their numbers."""


class Packed:
    """The columns of a whole part, ready to be cut into batches."""

    lengths: np.ndarray | None = None
    """Of each row, where rows of like length should be scored together."""
    left = False
    """Whether padding comes before a row's own values, where lengths differ."""
    one_place = False
    """Whether a batch may be made where the one before it lay."""
    shared = False
    """Whether `batch` is the same for every batch and has no row of its own for each row."""

    def __init__(self) -> None:
        self.bad: dict[int, str] = {}
        """Rows that cannot be fed, with the reason; `batch` may add to it and fill their place with anything."""
        self.lossy = 0
        """Values that a cast changed and that are fed all the same."""
        self.truncated = 0
        """Rows that were cut to fit."""

    def batch(self, rows: Rows) -> np.ndarray:
        """Those rows as the tensor, in that order."""
        raise NotImplementedError
