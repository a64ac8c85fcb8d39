"""Lines at the bottom of a terminal, redrawn in place, and errors wrapped to the window."""

from __future__ import annotations

import re

import pytest
from support.pseudo_terminal import PseudoTerminal
from support.runs import MODELS

from scorer.display.tables import width
from scorer.display.terminal import LiveLines, Terminal, error_text

DENSE = MODELS / "dense28.onnx"


SLOW = ("--batch-rows", 8, "--part-bytes", "96KiB", "--no-tune", "--threads", 1)


def test_lines_are_redrawn_in_place_and_other_text_stays_above(window):
    live = LiveLines(window)
    live.draw(["one", "two"])
    live.draw(["one", "three"])
    live.draw(["one", "four"], above=["a notice"])
    live.draw(["five"])
    assert window.screen.lines == ["a notice", "five"]
    live.clear()
    assert window.screen.lines == ["a notice"]
    assert (window.screen.row, window.screen.column) == (1, 0)


def test_a_frame_is_one_write_and_an_unchanged_frame_none(window):
    live = LiveLines(window)
    live.draw(["one", "two"])
    live.draw(["one", "two"])
    assert window.writes == 1
    live.draw(["one", "three"])
    assert window.writes == 2
    assert "\x1b[2J" not in window.getvalue()
    assert "?25" not in window.getvalue()


@pytest.mark.parametrize("length", [79, 80, 81, 160, 161])
def test_a_long_line_above_is_complete_and_erases_the_old_lines(window, length):
    live = LiveLines(window)
    live.draw(["." * 70] * 3)
    live.draw(["after"], above=["x" * length])
    assert "".join(window.screen.lines) == "x" * length + "after"


def test_at_the_bottom_of_a_full_screen_no_old_lines_remain(window):
    window.write("\n".join(f"line {n}" for n in range(40)) + "\n")
    live = LiveLines(window)
    for n in range(5):
        live.draw([f"a {n}", f"b {n}", f"c {n}"], above=[f"notice {n}"] if n % 2 else [])
    assert window.screen.text.splitlines()[-6:] == ["line 39", "notice 1", "notice 3", "a 4", "b 4", "c 4"]


@pytest.mark.parametrize("columns", [100, 61, 60, 40, 20])
def test_after_a_resize_no_old_lines_remain(window, columns):
    live = LiveLines(window)
    live.draw(["x" * 75, "y" * 60, "z"], above=["notice"])
    window.screen.resize(columns)
    live.draw(["after"])
    assert window.screen.lines == ["notice", "after"]


def test_a_window_with_few_rows_gets_fewer_lines(window):
    window.screen.rows = 4
    LiveLines(window).draw(["a", "b", "c", "d"])
    assert window.screen.lines == ["a", "b"]


@pytest.mark.slow
def test_output_of_worker_processes_and_native_code_is_printed_above_the_lines(fewer28, tmp_path):
    (tmp_path / "chatty.py").write_text(
        "import os\n\n\ndef make(frame):\n    print('printed in a worker')\n"
        "    os.write(2, b'written by native code\\n')\n    return frame\n"
    )
    seen = PseudoTerminal(
        "run", fewer28, "--model", DENSE, "--output", tmp_path / "out", *SLOW[:-2], "--transform", "chatty:make",
        cwd=tmp_path, rows=60,
    )  # fmt: skip
    seen.until(lambda screen: re.search(r"[3-9]\d of \d+ committed", screen.text))
    assert sum("committed" in one for one in seen.screen.text.splitlines()) == 1
    assert seen.end() == 0
    shown = seen.screen.text.splitlines()
    assert "━" not in seen.screen.text
    assert "printed in a worker" in shown
    assert "written by native code" in shown


def test_an_error_wraps_beside_its_labels_and_its_hint_stays_on_one_line():
    text = (
        "a column is missing\n  where:    in.parquet\n  found:    " + "f1, " * 20 + "f9\nHint: scorer run " + "x" * 60
    )
    shown = error_text(text, Terminal(columns=60)).splitlines()
    assert shown[:2] == ["Error: a column is missing", "  where:    in.parquet"]
    assert max(map(width, shown[:-1])) <= 60
    assert shown[3].startswith(" " * 12 + "f1,")
    assert shown[-1] == "Hint: scorer run " + "x" * 60
    assert len(error_text("a\nHint: " + "word " * 20, Terminal(columns=60)).splitlines()) == 3
    assert error_text(text, Terminal()) == f"Error: {text}"
    assert error_text(text, Terminal(colours=True)).startswith("\x1b[1;31mError:\x1b[0m a column")
