"""Closed and full standard streams, and readers that end: no traceback, and the exit code says what the command did."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest
from support.runs import MODELS, command

SCORER = shlex.join([sys.executable, "-m", "scorer"])
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")


def shell(line, folder):
    """Run a line of bash in the folder; return the exit code of `scorer`, and its stderr if the line redirects none."""
    done = subprocess.run(
        ["bash", "-c", f"{line}; echo ${{PIPESTATUS[0]}} > code"], cwd=folder, capture_output=True, text=True,
        timeout=100, check=False,
    )  # fmt: skip
    return int((folder / "code").read_text()), done.stderr


@pytest.fixture
def published(fewer28, tmp_path):
    """Return a folder with a published output, `out`."""
    done = command("run", fewer28, "--model", MODELS / "dense28.onnx", "--output", "out", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path


@FULL
@pytest.mark.parametrize(
    "how",
    [">/dev/full", "2>/dev/full", ">&- 2>&- <&-", "--json | head -0", "2>&1 | head -0"],
)
@pytest.mark.slow
def test_a_run_publishes_and_exits_with_0_whatever_its_standard_streams_are(how, fewer28, tmp_path):
    job = f"run {shlex.quote(str(fewer28))} --model {shlex.quote(str(MODELS / 'dense28.onnx'))} --output out"
    code, err = shell(f"{SCORER} {job} {how}", tmp_path)
    assert code == 0, err
    assert "Traceback" not in err
    assert ("Warning: the result could not be printed: No space left on device." in err) == (how == ">/dev/full")
    verified = command("verify", "out", "--deep", cwd=tmp_path)
    assert verified.returncode == 0, verified.stdout


@FULL
@pytest.mark.parametrize(("name", "how"), [("verify out", ">&-"), ("status out", "2>&-"), ("--help", "| head -0")])
def test_a_command_whose_reader_has_ended_or_that_nobody_reads_exits_with_0(name, how, published):
    code, err = shell(f"{SCORER} {name} {how}", published)
    assert (code, err) == (0, "")


@FULL
def test_a_command_that_only_prints_fails_if_its_text_is_lost_and_one_that_checks_keeps_its_exit_code(published):
    code, err = shell(f"{SCORER} status out >/dev/full", published)
    assert code == 5
    assert err.startswith("Error: the result cannot be printed\n")
    assert "No space left on device" in err
    code, err = shell(f"{SCORER} verify out >/dev/full", published)
    assert code == 0
    assert err == "Warning: the result could not be printed: No space left on device. The exit code is valid.\n"
    next((published / "out").rglob("*.parquet")).unlink()
    code, err = shell(f"{SCORER} verify out >/dev/full", published)
    assert code == 5
    assert err.startswith("Warning: the result")


@FULL
@pytest.mark.parametrize("how", [">&-", "2>/dev/full"])
@pytest.mark.slow
def test_a_refusal_keeps_its_exit_code_whatever_the_standard_streams_are(how, tmp_path):
    assert shell(f"{SCORER} run gone.parquet --model gone.onnx --json {how}", tmp_path)[0] == 3
    assert shell(f"{SCORER} nothing {how}", tmp_path)[0] == 2
