"""Helpers for runs in tests: the command line, ONNX Runtime as the oracle, and the files that a run wrote."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner

from scorer.cli.main import main
from scorer.model.protobuf import inspect_model
from scorer.model.spec import SessionSpec

ROOT = Path(__file__).parent.parent.parent
MODELS = ROOT / "tests" / "models"
FLIGHTS = ROOT / "examples" / "flights"
BACKENDS = ("synchronous", "embedded", "processes")


def write(path, columns, **options):
    """Write one Parquet file from plain columns or a table, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, path, **options)
    return path


def read(output):
    """Return all rows of an output, in the order of its parts."""
    paths = sorted(Path(output).rglob("*.parquet"), key=lambda path: path.name)
    return pa.concat_tables([pq.ParquetFile(path).read() for path in paths])


def session_spec(name, device="cpu", **options):
    """Return the session spec of one of the small models."""
    found = inspect_model(MODELS / f"{name}.onnx")
    return SessionSpec(path=found.path, digest=found.digest, files=found.files, device=device, **options)


def oracle(model, feeds, batch_rows=None):
    """Score in batches of this size with ONNX Runtime alone; return an array for each output."""
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
    """Run the command line in this process; return (exit code, stdout, stderr)."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def without_rights():
    """Return the start of a command that may not read what permissions forbid, which root may; None if impossible."""
    if os.getuid():
        return []
    if shutil.which("setpriv") is None:
        return None
    rights = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"]


def command(*arguments, timeout=100, start=(), extra=(), **options):
    """Run the command line in its own process, by the command `start` and with the variables `extra` if given."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | dict(extra)
    return subprocess.run(
        [*start, sys.executable, "-m", "scorer", *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout, env=environment, check=False, **options,
    )  # fmt: skip


def plain(text, *folders):
    """Return the text with placeholders for what differs from run to run: folders, hashes, versions."""
    for i, folder in enumerate(folders):
        text = text.replace(str(folder), "DIR" if i == 0 else f"DIR{i}")
    text = re.sub(r"\b[0-9a-f]{16,64}\b", "HASH", text)
    return re.sub(r"onnxruntime [0-9.]+", "onnxruntime VERSION", text)


def report_of(output):
    """Return report.json of a finished run."""
    return json.loads((Path(f"{output}.scorer") / "report.json").read_text())
