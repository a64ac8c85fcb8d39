"""Paths that no run can use, the root folder and names that are not UTF-8, are refused in a sentence."""

from __future__ import annotations

import os
import shutil

import pytest
from support.runs import MODELS, command

ODD = os.fsdecode(b"odd\xff")


@pytest.fixture
def folder(fewer28, tmp_path):
    """Return a folder with in.parquet and m.onnx, and both again under names that are not UTF-8."""
    here = tmp_path / "here"
    (here / ODD).mkdir(parents=True)
    (here / "data").mkdir()
    for name in ("in.parquet", f"{ODD}.parquet", f"data/{ODD}.parquet", f"{ODD}/in.parquet"):
        shutil.copyfile(next(fewer28.glob("*.parquet")), here / name)
    for name in ("m.onnx", f"{ODD}.onnx", f"{ODD}/m.onnx"):
        shutil.copyfile(MODELS / "dense28.onnx", here / name)
    return here


def refused(folder, *arguments):
    before = sorted(folder.rglob("*"))
    done = command(*arguments, cwd=folder)
    assert "Traceback" not in done.stderr
    assert sorted(folder.rglob("*")) == before
    return done.returncode, done.stderr.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((f"{ODD}.parquet", "--model", "m.onnx"), 3, "the path of an input file is not valid UTF-8"),
        (("in.parquet", "--model", f"{ODD}.onnx"), 3, "the path of the model is not valid UTF-8"),
        (("in.parquet", "--model", "m.onnx", "--output", ODD), 2, "the path of the output is not valid UTF-8"),
        (("in.parquet", "--model", "m.onnx", "--fetch", f"score={ODD}"), 2, "the value of 'fetch' is not valid UTF-8"),
        (("in.parquet", "--model", "m.onnx", "--prefix", ODD), 2, "the value of 'prefix' is not valid UTF-8"),
        (("data", "--model", "m.onnx"), 3, "the path of an input file is not valid UTF-8"),
        (("in.parquet", "--model", "m.onnx", "--output", "/"), 2, "the root folder cannot be an output"),
        (("in.parquet", "--model", "m.onnx", "--output", "/", "--overwrite"), 2, "the root folder cannot be an output"),
    ],
)  # fmt: skip
def test_a_run_with_a_path_that_it_cannot_use_is_refused_and_writes_nothing(arguments, code, message, folder):
    assert refused(folder, "run", *arguments) == (code, f"Error: {message}")


@pytest.mark.parametrize("name", ["status", "verify", "report"])
def test_a_command_about_an_output_refuses_the_root_folder(name, folder):
    assert refused(folder, name, "/") == (2, "Error: the root folder cannot be an output")


@pytest.mark.slow
def test_a_current_folder_whose_name_is_not_utf8_is_refused_unless_all_paths_are_elsewhere(folder):
    assert refused(folder / ODD, "run", "in.parquet", "--model", "m.onnx")[0] == 3
    away = ("--output", folder / "out")
    assert refused(folder / ODD, "run", "in.parquet", "--model", folder / "m.onnx", *away)[0] == 3
    assert refused(folder / ODD, "run", folder / "in.parquet", "--model", "m.onnx", *away) == (
        3, "Error: the path of the model is not valid UTF-8",
    )  # fmt: skip
    done = command("run", folder / "in.parquet", "--model", folder / "m.onnx", *away, cwd=folder / ODD)
    assert done.returncode == 0, done.stderr
