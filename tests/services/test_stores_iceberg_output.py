"""Iceberg tables in a bucket as outputs: one snapshot shows all rows of a run or none.

The catalog is a database on this machine, as in tests/output/test_iceberg_output.py; the files of the table and
scorer's work folder are in the bucket. pyiceberg's own client reads the tables.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from pyiceberg.catalog import load_catalog
from pyiceberg.utils.config import Config
from support.drivers import run_at_once
from support.runs import MODELS, cli, write

import scorer
from scorer.api.verification import check as verify
from scorer.output.place import Place
from scorer.tables import iceberg_commit

pytestmark = pytest.mark.service
SUM = MODELS / "sum3.onnx"
NAME = "iceberg://prod/ml.scores"
DAYS = ("2026-01-01", "2026-01-02")


@pytest.fixture
def prod(s3, tmp_path, monkeypatch):
    """A catalog called prod; this one has the keys, scorer finds them in the environment."""
    user = s3.environment
    keys = {"access-key-id": user["AWS_ACCESS_KEY_ID"], "secret-access-key": user["AWS_SECRET_ACCESS_KEY"]}
    settings = {f"s3.{key}": value for key, value in (keys | {"endpoint": s3.endpoint, "region": "us-east-1"}).items()}
    monkeypatch.setenv("PYICEBERG_HOME", str(tmp_path))
    monkeypatch.setenv("PYICEBERG_CATALOG__PROD__TYPE", "sql")
    monkeypatch.setenv("PYICEBERG_CATALOG__PROD__URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__PROD__WAREHOUSE", f"{s3.bucket()}/warehouse")
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())  # read once, when the package is imported
    with load_catalog("prod", **settings) as catalog:
        catalog.create_namespace("ml")
        yield catalog


def source(folder, count=40, days=DAYS):
    for n, day in enumerate(days):
        numbers = np.arange(1000 * n, 1000 * n + count)
        columns = {"id": numbers, **{name: numbers.astype(np.float32) for name in "abc"}}
        write(folder / f"day={day}" / "p.parquet", columns, row_group_size=10)
    return folder


def score(given, **options):
    return scorer.run(given, SUM, NAME, **{"format": "iceberg", "feed": "x=a,b,c", "tune": False} | options)


def ids(prod, snapshot=None):
    return sorted(prod.load_table("ml.scores").scan(snapshot_id=snapshot).to_arrow()["id"].to_pylist())


def expected(count=40, days=2):
    return [1000 * n + i for n in range(days) for i in range(count)]


def command(given, *more):
    """Return a command with small parts, so that there is time to interrupt it."""
    return [
        sys.executable, "-m", "scorer", "run", str(given), "--model", str(SUM), "--feed", "x=a,b,c", "-o", NAME,
        "--format", "iceberg", "--mode", "append", "--batch-rows", "2", "--part-bytes", "4096", "--quiet", *more,
    ]  # fmt: skip


def test_a_table_in_a_bucket_is_created_added_to_replaced_and_proven(tmp_path, prod):
    given = source(tmp_path / "in")
    score(given)
    assert ids(prod) == expected()
    assert prod.load_table("ml.scores").location().startswith("s3://")
    first = prod.load_table("ml.scores").current_snapshot().snapshot_id
    assert score(given).already_done
    few = source(tmp_path / "few", 3)
    score(few, mode="append")
    assert score(few, mode="append").already_done
    assert ids(prod) == sorted(expected() + expected(3))
    score(few, mode=f"replace day = '{DAYS[0]}'", where=f"day = '{DAYS[0]}'")
    assert ids(prod) == sorted(expected(3, 1) + [i for i in expected() + expected(3) if i >= 1000])
    assert ids(prod, first) == expected()
    table = prod.load_table("ml.scores").scan().to_arrow()
    np.testing.assert_array_equal(table["total"].to_numpy(), 3.0 * table["id"].to_numpy())
    verdict = verify(Place.at(NAME, None), deep=True)
    assert verdict.whole, verdict
    assert cli("status", NAME)[1].startswith("done")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_that_ends_at_its_commit_is_finished_by_the_same_command(tmp_path, prod, monkeypatch, when):
    given = source(tmp_path / "in")
    score(given)
    more = source(tmp_path / "more", 7)
    real = iceberg_commit.try_commit

    def ended(*arguments):
        if when == "after":
            real(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(iceberg_commit, "try_commit", ended)
        with pytest.raises(KeyboardInterrupt):
            score(more, mode="append")
    assert ids(prod) == (expected() if when == "before" else sorted(expected() + expected(7)))
    score(more, mode="append")
    assert ids(prod) == sorted(expected() + expected(7))
    assert verify(Place.at(NAME, None)).whole
    assert score(more, mode="append").already_done


def test_a_killed_run_is_seen_as_a_whole_or_not_at_all(tmp_path, prod):
    score(source(tmp_path / "in", 2))
    more = source(tmp_path / "more", 400)
    before = prod.load_table("ml.scores").metadata_location
    for wait_s in (1.0, 2.0, 3.0):
        run = subprocess.Popen(command(more), start_new_session=True)
        stop = time.monotonic() + wait_s
        while run.poll() is None and time.monotonic() < stop:
            if prod.load_table("ml.scores").metadata_location != before:
                break
            time.sleep(0.01)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        assert ids(prod) in (expected(2), sorted(expected(2) + expected(400)))
    done = subprocess.run(command(more), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ids(prod) == sorted(expected(2) + expected(400))
    assert verify(Place.at(NAME, None)).whole


def test_drivers_with_work_folders_of_their_own_add_their_rows_once(tmp_path, prod):
    score(source(tmp_path / "in", 2))
    work = prod.load_table("ml.scores").location()
    first, second = source(tmp_path / "first"), source(tmp_path / "second", 7)
    codes, said = run_at_once(
        [command(given, "--work-dir", f"{work}-{n}") for n, given in enumerate([first, second, second])]
    )
    assert codes[0] == 0, said[0]
    assert 0 in codes[1:], said
    assert ids(prod) == sorted(expected(2) + expected() + expected(7))
