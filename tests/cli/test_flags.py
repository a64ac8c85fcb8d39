"""Short flags: -m, -o and -V."""

from __future__ import annotations

import pytest
from support.runs import MODELS, cli, read, write

import scorer


@pytest.mark.parametrize("spelled", [("-m", "{m}", "-o", "{o}"), ("-m{m}", "-o{o}"), ("-vm", "{m}", "--output={o}")])
def test_short_flags_are_the_model_and_the_output(tmp_path, spelled):
    write(tmp_path / "in.parquet", {f"f{i}": [0.5, 1.5] for i in range(28)})
    flags = [flag.format(m=MODELS / "dense28.onnx", o=tmp_path / "out") for flag in spelled]
    code, _, stderr = cli("run", tmp_path / "in.parquet", *flags, "--cluster", "synchronous", "--quiet")
    assert code == 0, stderr
    assert read(tmp_path / "out").num_rows == 2


@pytest.mark.parametrize("command", ["run", "plan", "bench"])
def test_the_help_shows_the_short_flags(command):
    shown = cli(command, "--help")[1]
    assert "-m, --model [NAME=]MODEL" in shown
    assert "-o, --output DIR" in shown


def test_the_version_has_a_short_flag():
    assert cli("-V") == cli("--version") == (0, f"scorer {scorer.__version__}\n", "")
    assert "-V, --version" in cli("--help")[1]
