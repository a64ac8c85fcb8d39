"""Convert one column of (nested) lists: each list is one row of the tensor."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scorer.arrow import depth
from scorer.binding.features.numeric import Check, numpy_type, without_decimals
from scorer.binding.features.packed import Packed
from scorer.binding.features.strings import texts

if TYPE_CHECKING:
    from scorer.binding.features.packed import Rows
    from scorer.binding.spec import Feed


class Lists(Packed):
    """A list column as one array: a view if all lists have the right length, else a copy of the good rows."""

    def __init__(self, feed: Feed, table: pa.Table) -> None:
        super().__init__()
        self._is_text = feed.dtype == "string"
        self._dtype = np.dtype(object) if self._is_text else numpy_type(feed.dtype)
        self._feed = feed
        self._shape = tuple(size or 0 for size in feed.shape)
        column = table[feed.columns[0]]
        self._stored, self._axes = _stored_layout(column.type, self._shape)
        pieces, at = [], 0
        for chunk in column.chunks:
            lists = _plain_lists(chunk)
            self._dims = self._shape if depth(lists.type) == len(self._shape) else (prod(self._shape),)
            pieces.append(self._rows_of(lists, at))
            at += len(chunk)
        if len({piece.dtype for piece in pieces}) > 1:  # numpy would join them as float64, and round
            with np.errstate(over="ignore", invalid="ignore"):
                pieces = [piece.astype(self._dtype, copy=False) for piece in pieces]
        empty = np.empty((0, *self._shape), self._dtype)
        self._values = pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [empty])

    def _rows_of(self, chunk: pa.Array, at: int) -> np.ndarray:
        """Return the chunk as rows of the tensor; bad rows are zero."""
        flat, rows = self._flatten(chunk, at)
        reasons: dict[int, str] = {}
        values = self._numpy_values(flat, reasons).reshape(-1, *self._stored).transpose(self._axes)
        width = prod(self._shape)
        for place, reason in reasons.items():
            self.bad.setdefault(at + int(rows[place // width]), reason)
        if len(rows) == len(chunk):
            return values
        matrix = np.full((len(chunk), *self._shape), "" if self._is_text else 0, dtype=values.dtype)
        matrix[rows] = values
        return matrix

    def _numpy_values(self, flat: pa.Array, reasons: dict[int, str]) -> np.ndarray:
        """Return the innermost values as numpy; add those that cannot be fed to `reasons`, by position."""
        name, column = self._feed.columns[0], pa.chunked_array([flat])
        if self._is_text:
            return texts(self._feed, name, column, reasons)
        found = Packed()
        column = without_decimals(self._feed, name, column, found)
        reasons |= found.bad
        check = Check(self._feed, name, column)
        one = column.chunk(0) if column.num_chunks else pa.array([], column.type)  # a cast drops an empty chunk
        values = check.as_numpy(one, 0, reasons)
        self.lossy += check.lossy + found.lossy
        return values

    def _flatten(self, chunk: pa.Array, at: int) -> tuple[pa.Array, np.ndarray]:
        """Return the values of the rows whose lists have the right lengths, and the numbers of these rows."""
        rows = np.arange(len(chunk))
        for level, size in enumerate(self._dims):
            lists = prod(self._dims[:level])  # lists of this level in one row
            lengths = pc.fill_null(pc.list_value_length(chunk), -1).to_numpy(zero_copy_only=False)
            wrong = np.flatnonzero(lengths != size)
            if len(wrong):
                for place in wrong:
                    self.bad.setdefault(at + int(rows[place // lists]), self._reason(int(lengths[place]), size))
                good = np.ones(len(rows), bool)
                good[wrong // lists] = False
                chunk, rows = chunk.filter(pa.array(np.repeat(good, lists))), rows[good]
            chunk = chunk.flatten()
        return chunk, rows

    def _reason(self, length: int, size: int) -> str:
        column, tensor = self._feed.columns[0], self._feed.tensor
        if length < 0:
            return f"null in column {column!r} (tensor {tensor!r})"
        return f"a list of {length} in column {column!r} instead of {size} (tensor {tensor!r})"

    def batch(self, rows: Rows) -> np.ndarray:
        """Return the tensor of these rows."""
        with np.errstate(over="ignore", invalid="ignore"):
            return np.ascontiguousarray(self._values[rows], dtype=self._dtype)


def _plain_lists(chunk: pa.Array) -> pa.Array:
    """Return the plain lists of an extension or dictionary array."""
    if isinstance(chunk, pa.ExtensionArray):
        return chunk.storage
    return chunk.dictionary_decode() if isinstance(chunk, pa.DictionaryArray) else chunk


def _stored_layout(kind: pa.DataType, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape in which a row is stored, and the order of axes that turns it into the tensor's."""
    if not isinstance(kind, pa.FixedShapeTensorType) or not kind.permutation:
        return shape, tuple(range(len(shape) + 1))
    return tuple(kind.shape), (0, *(axis + 1 for axis in kind.permutation))
