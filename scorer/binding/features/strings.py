"""Convert columns of text into string tensors of Python strings; a null never becomes 'None'."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scorer.arrow import python_values, values_type
from scorer.binding.features.packed import NOT_UTF8, Packed

if TYPE_CHECKING:
    from scorer.binding.features.packed import Rows
    from scorer.binding.spec import Feed


class Strings(Packed):
    """Text columns as one array of Python strings."""

    def __init__(self, feed: Feed, table: pa.Table) -> None:
        super().__init__()
        columns = [texts(feed, name, table[name], self.bad) for name in feed.columns]
        self._values = np.stack(columns, axis=1).reshape(table.num_rows, *feed.shape)

    def batch(self, rows: Rows) -> np.ndarray:
        """Return the tensor of these rows."""
        return self._values[rows]


def texts(feed: Feed, name: str, column: pa.ChunkedArray, bad: dict[int, str]) -> np.ndarray:
    """Return a column's texts; add to `bad` what is not UTF-8, and nulls that the policy does not fill."""
    column = column.cast(values_type(column.type)).cast(pa.large_string())
    if column.null_count:
        if feed.on_null == "error":
            reason = f"null in column {name!r} (tensor {feed.tensor!r})"
            for row in np.flatnonzero(column.is_null().to_numpy()):
                bad.setdefault(int(row), reason)
        column = pc.fill_null(column, "" if feed.on_null == "error" else feed.on_null)
    values = np.empty(len(column), dtype=object)
    try:
        values[:] = column.to_pylist()
    except UnicodeDecodeError:
        values[:] = [_checked_text(feed, name, row, text, bad) for row, text in enumerate(python_values(column))]
    return values


def _checked_text(feed: Feed, name: str, row: int, text: str | bytes, bad: dict[int, str]) -> str:
    """Return the text; '' if it is not UTF-8, which is added to `bad`."""
    if isinstance(text, str):
        return text
    bad.setdefault(row, f"{NOT_UTF8} in column {name!r} (tensor {feed.tensor!r})")
    return ""
