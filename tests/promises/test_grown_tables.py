"""A run over a Delta table that is killed while the table grows: the same command finishes on the planned version."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from support.delta_tables import delete_rows, live
from support.runs import MODELS

import scorer

pytestmark = pytest.mark.slow


def rows(first, stop):
    ids = np.arange(first, stop)
    return pa.table(
        {"id": ids, **{name: (ids % k).astype(np.float32) for name, k in zip("abc", (7, 5, 3), strict=True)}}
    )


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table"
    for i in range(4):
        write_deltalake(path, rows(5_000 * i, 5_000 * i + 5_000), mode="append")
    delete_rows(path, {0: range(0, 5_000, 3), 2: [17]})
    return path


def start(table, out, *more):
    command = [sys.executable, "-m", "scorer", "run", table, "--model", MODELS / "sum3.onnx", "--feed", "x=a,b,c"]
    command += ["--output", out, "--part-bytes", "4096", "--batch-rows", "64", "--quiet", *more]
    return subprocess.Popen(map(str, command), start_new_session=True)


def exact(out, wanted):
    """Whether the output has the wanted rows, each once and with its score."""
    got = pa.concat_tables(pq.ParquetFile(file).read() for file in out.rglob("*.parquet")).sort_by("id")
    wanted = wanted.sort_by("id")
    name = next(iter(set(got.column_names) - {"id", *"abc"}))
    sums = pc.add(pc.add(wanted["a"], wanted["b"]), wanted["c"])
    return got.select(["id", *"abc"]).equals(wanted.select(["id", *"abc"])) and got[name].equals(sums)


@pytest.mark.parametrize("more", [(), ("--cluster", "processes", "--workers", "2")], ids=["threads", "two workers"])
def test_killed_runs_are_finished_on_their_version_while_the_table_grows(table, tmp_path, more):
    chance = random.Random(7)
    wanted, killed = live(table), 0
    out = tmp_path / "out"
    for attempt in range(12):
        process = start(table, out, *more)
        if attempt < 4:
            staged = tmp_path / "out.scorer"
            end = time.monotonic() + 60
            while not any(staged.glob("work-*/parts/*.parquet")) and process.poll() is None and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.3))
        else:
            process.wait(100)
        if process.poll() is not None:
            assert process.returncode == 0
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
        write_deltalake(table, rows(20_000 + 100 * attempt, 20_100 + 100 * attempt), mode="append")
        DeltaTable(table).optimize.compact() if attempt == 1 else None
    assert killed
    assert exact(out, wanted)
    verdict = scorer.verify(out, deep=True, rescore=100)
    assert verdict.whole, verdict.faults
    assert (verdict.counts.scored, verdict.counts.deleted) == (wanted.num_rows, 20_000 - wanted.num_rows)
