"""Small things that many tests need: datasets, models, back ends and the bare runtime as oracle."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import scorer
from scorer.cli.main import main

MODELS = Path(__file__).parent / "models"
FLIGHTS = Path(__file__).parent.parent / "examples" / "flights"
BACKENDS = ("synchronous", "embedded", "processes")


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew")


def pytest_xdist_auto_num_workers(config):
    """Services fill the machine: their tests run one after the other."""
    return 0 if config.option.markexpr.startswith("service") else None


@pytest.fixture(autouse=True, scope="session")
def nothing_remembered(tmp_path_factory):
    """What tuning keeps for the next time goes nowhere near the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Options that choose each execution back end."""
    return {"cluster": request.param} | ({"workers": 2, "threads": 1} if request.param == "processes" else {})


@pytest.fixture
def golden(request):
    """Compare a text with a file in tests/golden, or write it with --update-golden."""

    def compare(name, text):
        path = Path(__file__).parent / "golden" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8")
        assert text == path.read_text("utf-8")

    return compare


def _floats28(folder, *files):
    rng = np.random.default_rng(7)
    folder.mkdir()
    first = 0
    for i, rows in enumerate(files):
        columns = {f"f{j}": rng.standard_normal(rows).astype(np.float32) for j in range(28)}
        table = pa.table({"id": np.arange(first, first + rows), **columns})
        pq.write_table(table, folder / f"data-{i}.parquet", row_group_size=-(-rows // 3))
        first += rows
    return folder


@pytest.fixture
def floats28(tmp_path):
    """200,000 rows of 28 random floats and an id, in 3 files of 3 row groups."""
    return _floats28(tmp_path / "input", 70_000, 70_000, 60_000)


@pytest.fixture
def fewer28(tmp_path):
    """The same with 60,000 rows."""
    return _floats28(tmp_path / "input", 21_000, 21_000, 18_000)


def write(path, columns, **options):
    """One Parquet file from plain columns or a table; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, path, **options)
    return path


def read(output):
    """The whole output in the order of its parts."""
    paths = sorted(Path(output).rglob("*.parquet"), key=lambda path: path.name)
    return pa.concat_tables([pq.ParquetFile(path).read() for path in paths])


def oracle(model, feeds, batch_rows=None):
    """What the bare runtime gives, in batches of the given size; a dict of output to array."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    rows = len(next(iter(feeds.values())))
    step = batch_rows or max(rows, 1)
    batches = [
        session.run(None, {name: values[at : at + step] for name, values in feeds.items()})
        for at in range(0, rows, step)
    ]
    return {
        name: [row for batch in batches for row in batch[i]]
        if isinstance(batches[0][i], list)
        else np.concatenate([b[i] for b in batches])
        for i, name in enumerate(names)
    }


def cli(*arguments):
    """The command line in this process: (exit code, stdout, stderr)."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def command(*arguments, timeout=100, **options):
    """The command line in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        [sys.executable, "-m", "scorer", *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout, env=environment, check=False, **options,
    )  # fmt: skip


def plain(text, *folders):
    """A text without what changes from run to run: folders, hashes, process ids, versions."""
    for i, folder in enumerate(folders):
        text = text.replace(str(folder), "DIR" if i == 0 else f"DIR{i}")
    text = re.sub(r"\b[0-9a-f]{16,64}\b", "HASH", text)
    return re.sub(r"onnxruntime [0-9.]+", "onnxruntime VERSION", text)


def report_of(output):
    """report.json of a finished run."""
    return json.loads((Path(f"{output}.scorer") / "report.json").read_text())


__all__ = ["BACKENDS", "FLIGHTS", "MODELS", "cli", "command", "oracle", "plain", "read", "report_of", "scorer", "write"]
