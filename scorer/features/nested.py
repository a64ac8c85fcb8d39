"""One list column whose every row is the tensor's row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scorer.features.numeric import Check

if TYPE_CHECKING:
    from scorer.features import Feed


class Lists:
    """A list column as one matrix: a view where lists are whole, else a copy of the good rows."""

    def __init__(self, feed: Feed, table: pa.Table) -> None:
        self.bad: dict[int, str] = {}
        self.lossy = 0
        self._dtype = np.dtype(feed.dtype)
        self._feed = feed
        self._width = feed.width or 0
        pieces, at = [], 0
        for chunk in table[feed.columns[0]].chunks:
            pieces.append(self._matrix(chunk, at))
            at += len(chunk)
        empty = np.empty((0, self._width), self._dtype)
        self._values = pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [empty])

    def _matrix(self, chunk: pa.Array, at: int) -> np.ndarray:
        width = self._width
        lengths = pc.fill_null(pc.list_value_length(chunk), -1).to_numpy(zero_copy_only=False)
        wrong = lengths != width
        for row in np.flatnonzero(wrong):
            self.bad[at + int(row)] = self._reason(int(lengths[row]))
        whole = chunk.filter(pa.array(~wrong)) if wrong.any() else chunk
        flat = whole.flatten()
        found: dict[int, str] = {}
        check = Check(self._feed, self._feed.columns[0], pa.chunked_array([flat]))
        values = check.view(flat, 0, found).reshape(-1, width)
        self.lossy += check.lossy
        rows = np.flatnonzero(~wrong)
        for place, reason in found.items():
            self.bad.setdefault(at + int(rows[place // width]), reason)
        if not wrong.any():
            return values
        matrix = np.zeros((len(chunk), width), dtype=values.dtype)
        matrix[~wrong] = values
        return matrix

    def _reason(self, length: int) -> str:
        column, tensor = self._feed.columns[0], self._feed.tensor
        if length < 0:
            return f"null in column {column!r} (tensor {tensor!r})"
        return f"a list of {length} in column {column!r} instead of {self._width} (tensor {tensor!r})"

    def batch(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop."""
        with np.errstate(over="ignore", invalid="ignore"):
            return np.ascontiguousarray(self._values[start:stop], dtype=self._dtype)


def pack(feed: Feed, table: pa.Table) -> Lists:
    """The list column of one feed."""
    return Lists(feed, table)
