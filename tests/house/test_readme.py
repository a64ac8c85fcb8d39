"""The README is short and current: its commands run, and the outputs it shows are what is printed."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pandas as pd
import pytest
from support import pages
from support.runs import FLIGHTS, ROOT

TEXT = pages.README.read_text("utf-8")
FIRST_SCREEN, REST = TEXT.split("\n## Your first result\n")


@pytest.fixture
def shell(tmp_path):
    """A copy of the repository in which the README's commands run."""
    (tmp_path / "tmp").mkdir()
    folder = pages.copy_of_repository(tmp_path / "scorer")
    return pages.Shell(folder, pages.environment(tmp_path / "tmp"))


def test_the_readme_has_at_most_180_lines():
    assert len(TEXT.splitlines()) <= 180


def test_the_first_44_lines_of_the_readme_have_both_setup_commands():
    setups = [block for block in pages.blocks(pages.README) if "-m venv" in block.text]
    assert [block.kind for block in setups] == ["sh", "sh"]
    assert setups[1].line + len(setups[1].text.splitlines()) + 1 <= 44


def test_the_readme_has_two_setup_commands():
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "readme_commands", pages.README],
        capture_output=True,
        text=True,
        check=True,
    )
    run, test = done.stdout.splitlines()
    assert "scorer run examples/" in run
    assert test.endswith("pytest -q")


def test_every_other_command_of_the_readme_is_run_by_a_test():
    first = [block for block in pages.blocks_of(FIRST_SCREEN) if "-m venv" not in block.text]
    assert [block.kind for block in first] == ["console", "python"]


def test_the_first_command_prints_what_the_readme_shows(shell):
    shell.folder /= "examples/flights"
    assert pages.run_blocks(pages.blocks_of(FIRST_SCREEN)[:1], shell, "README.md") == []


def test_the_first_python_of_the_readme_runs(tmp_path, monkeypatch):
    for name in ("flights.parquet", "late.onnx"):
        shutil.copy(FLIGHTS / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    names = {"my_frame": pd.read_parquet("flights.parquet").head(100)}
    exec(pages.blocks_of(FIRST_SCREEN)[1].text, names)
    assert names["report"].counts.scored == 84_292
    assert len(names["scored"]) == 100


def test_the_first_result_is_what_the_readme_shows(shell):
    assert pages.run_blocks(pages.blocks_of(REST), shell, "README.md") == []
