"""Text in columns: widths as in a terminal, no line wider than the window, no text lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorer.display.tables import beside, facts, pad, shorten, table, width, wrap
from scorer.display.words import duration, plural, size, time_range

WORDS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=60)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("plain", 5),
        ("naïve", 5),
        ("nai\u0308ve", 5),
        ("数据", 4),
        ("데이터", 6),
        ("\u1103\u1166", 2),
        ("データ.parquet", 14),
        ("ﾃﾞｰﾀ", 4),
        ("\x1b[2mdim\x1b[0m", 3),
        ("é\u200bx", 2),
        ("🐧", 2),
    ],
)
def test_width_is_the_number_of_terminal_columns(text, columns):
    assert width(text) == columns


def test_shorten_never_splits_a_wide_letter():
    assert shorten("数据数据", 6) == "数..."
    assert width(shorten("数据数据", 6)) <= 6
    assert shorten("abc", 3) == "abc"
    assert shorten("abcd", 2) == ".."


@given(WORDS, st.integers(0, 40))
def test_shortened_text_fits_and_padded_text_fills_the_width(text, columns):
    assert width(shorten(text, columns)) <= columns
    assert width(pad(shorten(text, columns), columns)) == columns


@given(WORDS, st.integers(2, 40))
def test_wrap_fits_and_loses_nothing_but_spaces(text, columns):
    lines = wrap(text, columns, inside=True)
    assert all(width(line) <= columns for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_wrap_never_breaks_a_word_such_as_a_path():
    path = "/data/" + "x" * 50
    assert wrap(f"see {path} please", 20) == ["see", path, "please"]


@pytest.mark.parametrize("columns", [40, 60, 80, 160])
def test_a_table_is_no_wider_than_the_window(columns):
    rows = [("数据" * 12, "float32", "a, b, c and more of them " * 4, "1,234"), ("x", "int64", "y", "5")]
    lines = table(("tensor", "type", "fed from", "n"), rows, columns, right=frozenset({3}))
    assert max(map(width, lines)) <= columns
    assert ("".join(lines).count("数"), "".join(lines).count("据")) == (12, 12)
    assert lines[-1].endswith("    5") or lines[-1].split()[-1] == "5"


def test_columns_of_a_table_are_aligned_with_their_heads():
    head, one, two = table(("name", "type"), [("数据", "int64"), ("e\u0301tat", "string")])
    assert [width(line[: line.index(word)]) for line, word in ((head, "type"), (one, "int64"), (two, "string"))] == [
        8
    ] * 3


def test_a_long_fact_continues_below_its_first_line():
    lines = facts([("note", "one two three four five six seven")], 30)
    assert lines == ["  note       one two three", "             four five six", "             seven"]


def test_terminal_escapes_in_cells_are_escaped():
    shown = "\n".join([*facts([("a\x1b[31m", "b\x1b]0;x\x07")]), *table(("h",), [("c\x1b[2J",)])])
    assert "\x1b" not in shown
    assert "\\x1b[31m" in shown
    assert "\\x1b[2J" in shown


def test_two_blocks_are_shown_side_by_side():
    assert beside(["a", "数"], ["1"], 20) == ["a         1", "数"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        ((0.2, 0.9), "up to 1 s"),
        ((3.2, 7.1), "3 to 8 s"),
        ((41, 58), "40 to 60 s"),
        ((50, 150), "50 s to 3 min"),
        ((125, 170), "2 to 3 min"),
        ((170, 179), "2 to 3 min"),
        ((180, 180), "about 3 min"),
        ((3000, 9000), "50 min to 2.5 h"),
        ((7300, 14_000), "2.0 to 3.9 h"),
        ((100_000, 101_000), "about 28 h"),
        ((0, 0), "up to 1 s"),
        ((7, 7), "about 7 s"),
    ],
)
def test_a_time_range_is_rounded(seconds, text):
    assert time_range(*seconds) == text


def test_sizes_durations_and_counts_as_text():
    assert [size(n) for n in (0, 999, 1234, 5.6e9, 2e15)] == ["0 B", "999 B", "1.2 kB", "5.6 GB", "2000.0 TB"]
    assert [duration(s) for s in (0.31, 12, 75, 3725)] == ["0.3 s", "12 s", "1 min 15 s", "1 h 2 min"]
    assert [plural(n, "part") for n in (0, 1, 1200)] == ["0 parts", "1 part", "1,200 parts"]
