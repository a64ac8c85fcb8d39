"""Names, ranges and quotes are written as they are parsed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorer.binding import request
from scorer.options import grammar
from scorer.options.grammar import split_names


@pytest.mark.parametrize(
    ("columns", "tokens"),
    [
        ([f"f{i}" for i in range(28)], ["f0..f27"]),
        (["id", "f1", "f2", "f3", "age"], ["id", "f1..f3", "age"]),
        (["f1", "f2"], ["f1", "f2"]),
        (["x08", "x09", "x10"], ["x08..x10"]),
        (["x8", "x9", "x10", "x12"], ["x8..x10", "x12"]),
        (["f3", "f2", "f1"], ["f3", "f2", "f1"]),
        (["a,1", "a,2", "a,3"], ["'a,1'", "'a,2'", "'a,3'"]),
        (["a1", "a2", "a3", "a1..a3"], ["a1", "a2", "a3", "'a1..a3'"]),
        ([], []),
    ],
)
def test_numbered_columns_are_written_as_ranges(columns, tokens):
    assert grammar.ranged(columns) == tokens


@given(st.lists(st.from_regex(r"\A[ab]?0{0,2}[0-9]{1,2}\Z"), unique=True, max_size=12))
def test_a_written_range_is_parsed_as_the_same_columns(columns):
    tokens = split_names(",".join(grammar.ranged(columns))) or []
    assert request.expand(tokens, sorted(columns)) == (columns, [])
