"""Columns of text as string tensors: Python strings, never 'None'."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scorer.features import Packed

if TYPE_CHECKING:
    from scorer.features import Feed, Rows


class Strings(Packed):
    """Text columns as one object array."""

    def __init__(self, feed: Feed, table: pa.Table) -> None:
        super().__init__()
        columns = [self._column(feed, name, table[name]) for name in feed.columns]
        self._values = columns[0] if not feed.shape else np.stack(columns, axis=1)

    def _column(self, feed: Feed, name: str, column: pa.ChunkedArray) -> np.ndarray:
        column = column.cast(pa.large_string())
        if column.null_count:
            if feed.on_null == "error":
                reason = f"null in column {name!r} (tensor {feed.tensor!r})"
                for row in np.flatnonzero(column.is_null().to_numpy()):
                    self.bad.setdefault(int(row), reason)
            column = pc.fill_null(column, "" if feed.on_null == "error" else feed.on_null)
        values = np.empty(len(column), dtype=object)
        values[:] = column.to_pylist()
        return values

    def batch(self, rows: Rows) -> np.ndarray:
        """Those rows."""
        return self._values[rows]
