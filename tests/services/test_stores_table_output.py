"""Delta tables as outputs on a real store: one commit shows all rows of a run or none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid

import numpy as np
import pytest
from deltalake import DeltaTable
from support.drivers import run_at_once
from support.runs import MODELS, cli, write

import scorer
from scorer.api.verification import check as verify
from scorer.output import publish_objects, publish_table
from scorer.output.place import Place
from scorer.tables import clients, delta_commit

pytestmark = pytest.mark.service

SUM = MODELS / "sum3.onnx"
DAYS = ("2026-01-01", "2026-01-02")


@pytest.fixture(scope="module")
def bucket(_seaweed):
    """One bucket for all tests: each bucket takes volumes of the server."""
    return _seaweed.bucket()


@pytest.fixture
def output(s3, bucket):
    """A location on the store that nothing is at yet."""
    return f"{bucket}/{uuid.uuid4().hex[:8]}/out"


def source(folder, count=40, days=DAYS):
    for n, day in enumerate(days):
        ids = np.arange(1000 * n, 1000 * n + count)
        columns = {"id": ids, **{name: ids.astype(np.float32) for name in "abc"}}
        write(folder / f"day={day}" / "p.parquet", columns, row_group_size=10)
    return folder


def score(given, output, **options):
    return scorer.run(given, SUM, output, **{"format": "delta", "feed": "x=a,b,c", "tune": False} | options)


def ids(output, version=None):
    table = DeltaTable(output, version, storage_options=clients.for_delta(output))
    return sorted(table.to_pyarrow_table(columns=["id"])["id"].to_pylist())


def expected(count=40, days=2):
    return [1000 * n + i for n in range(days) for i in range(count)]


def test_a_table_on_a_store_is_created_added_to_replaced_and_proven(tmp_path, output):
    given = source(tmp_path / "in")
    score(given, output)
    assert ids(output) == expected()
    assert score(given, output).already_done
    few = source(tmp_path / "few", 3)
    score(few, output, mode="append")
    assert score(few, output, mode="append").already_done
    assert ids(output) == sorted(expected() + expected(3))
    report = score(few, output, mode=f"replace day = '{DAYS[0]}'", where=f"day = '{DAYS[0]}'")
    assert report.notes[-1] == "the rows are in version 2 of the table"
    assert ids(output) == sorted(expected(3, 1) + [i for i in expected() + expected(3) if i >= 1000])
    assert ids(output, 0) == expected()
    assert verify(Place.at(output, None), deep=True).whole
    assert cli("status", output)[1].startswith("done")
    manifest = json.loads((Place.at(output, None).folder / "manifest.json").read_text())
    assert manifest["table"].pop("id")
    assert manifest["table"] == {"kind": "delta", "mode": "replace", "version": 2, "commit": 1}
    assert cli("clean", output)[1].startswith("Nothing to remove")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_that_ends_at_its_commit_is_finished_by_the_same_command(tmp_path, output, monkeypatch, when):
    given = source(tmp_path / "in")
    real = delta_commit.try_commit

    def ended(*arguments):
        if when == "after":
            real(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(delta_commit, "try_commit", ended)
        with pytest.raises(KeyboardInterrupt):
            score(given, output, mode="append")
    score(given, output, mode="append")
    assert ids(output) == expected()
    assert verify(Place.at(output, None)).whole
    assert score(given, output, mode="append").already_done


def command(given, output, *more):
    """Return a command with small parts, so that there is time to interrupt it."""
    return [
        sys.executable, "-m", "scorer", "run", str(given), "--model", str(SUM), "--feed", "x=a,b,c", "-o", output,
        "--format", "delta", "--mode", "append", "--batch-rows", "2", "--part-bytes", "4096", "--quiet", *more,
    ]  # fmt: skip


def test_a_killed_run_is_seen_as_a_whole_or_not_at_all(tmp_path, output):
    given = source(tmp_path / "in", 400)
    log = Place.at(output, None).output / "_delta_log"
    run = subprocess.Popen(command(given, output), start_new_session=True)
    while run.poll() is None and not log.is_dir():
        time.sleep(0.002)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    done = subprocess.run(command(given, output), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ids(output) == expected(400)
    assert verify(Place.at(output, None)).whole


def test_drivers_with_work_folders_of_their_own_add_their_rows_once(tmp_path, output):
    first, second = source(tmp_path / "first"), source(tmp_path / "second", 7)
    codes, said = run_at_once(
        [command(given, output, "--work-dir", f"{output}-{n}") for n, given in enumerate([first, second, second])]
    )
    assert codes[0] == 0, said[0]
    assert 0 in codes[1:], said
    assert ids(output) == sorted(expected() + expected(7))


def test_clean_removes_the_parts_of_an_unfinished_run(tmp_path, output, monkeypatch):
    score(source(tmp_path / "in"), output)
    before = set(Place.at(output, None).output.files())

    def ended(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("scorer.output.ledger.write_proof", ended)
        with pytest.raises(KeyboardInterrupt):
            score(source(tmp_path / "more", 5), output, mode="append")
    assert set(Place.at(output, None).output.files()) > before
    assert cli("clean", output)[0] == 0
    assert set(Place.at(output, None).output.files()) == before
    assert ids(output) == expected()


REPLACING = {"new_only": True, "on_changed": "rescore", "on_gone": "remove"}


def test_a_table_on_a_store_grows_and_rows_are_replaced_in_one_version(tmp_path, output):
    given = source(tmp_path / "in", days=DAYS[:1])
    score(given, output, **REPLACING)
    source(given)
    assert score(given, output, **REPLACING).generation == 2
    source(given, 45, DAYS[:1])
    (given / f"day={DAYS[1]}" / "p.parquet").unlink()
    assert score(given, output, **REPLACING).notes[-1] == "the rows are in version 2 of the table"
    assert (ids(output, 1), ids(output)) == (expected(), expected(45, 1))
    assert score(given, output, **REPLACING).already_done
    verdict = verify(Place.at(output, None), deep=True, rescore=45)
    assert verdict.whole, verdict


@pytest.mark.parametrize("step", ["_commit_once", "_keep_proofs_of_generations", "_copy_proof", "_put_manifest"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_run_that_ends_while_rows_of_a_table_on_a_store_are_replaced_is_finished(
    tmp_path, output, monkeypatch, step, after
):
    given = source(tmp_path / "in")
    score(given, output, **REPLACING)
    source(given, 45, DAYS[:1])
    (given / f"day={DAYS[1]}" / "p.parquet").unlink()
    module = publish_table if step == "_commit_once" else publish_objects

    def ended(*args, **options):
        if after:
            function(*args, **options)
        raise KeyboardInterrupt

    function = getattr(module, step)
    with monkeypatch.context() as patch:
        patch.setattr(module, step, ended)
        with pytest.raises(KeyboardInterrupt):
            score(given, output, **REPLACING)
    assert ids(output) in (expected(), expected(45, 1))
    score(given, output, **REPLACING)
    assert ids(output) == expected(45, 1)
    verdict = verify(Place.at(output, None), deep=True)
    assert verdict.whole, verdict
    assert score(given, output, **REPLACING).already_done
