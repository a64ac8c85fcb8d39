"""Hypothesis strategies: row groups, slices, batch edges and columns, as small as a bug allows."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import strategies as st

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def chunked(draw, kind, values, max_rows=40):
    """Draw (a chunked array, its values): random chunks, some of them slices of longer arrays, some empty."""
    rows = draw(st.lists(st.none() | values, max_size=max_rows))
    cuts = sorted(draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    chunks = []
    for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        before = draw(st.lists(st.none() | values, max_size=3))
        chunks.append(pa.array([*before, *rows[start:stop], *before], kind).slice(len(before), stop - start))
    return pa.chunked_array(chunks, kind), rows


def row_groups(max_rows=5_000):
    """Draw the rows of each row group of a file, empty ones included."""
    return st.lists(st.integers(0, max_rows), max_size=12)


@st.composite
def edges(draw, rows):
    """Draw batch boundaries: 0, some rows, and `rows`."""
    inner = draw(st.lists(st.integers(0, rows), max_size=6))
    return sorted({0, rows, *inner})
