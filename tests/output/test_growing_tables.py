"""--new-only with a table as the output: each run adds the rows of new files, and replaces those of others, at once."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st
from pyiceberg.catalog import load_catalog
from pyiceberg.utils.config import Config
from support.runs import MODELS, cli, read, write

import scorer
from scorer.errors import CommitError
from scorer.output import publish_table
from scorer.tables import delta_commit

SUM = MODELS / "sum3.onnx"
ICE = "iceberg://prod/ml.scores"
REPLACING = {"on_changed": "rescore", "on_gone": "remove"}
FEED = {"feed": "x=a,b,c", "cluster": "synchronous", "tune": False, "batch_rows": 8, "new_only": True}
COLUMNS = ["id", "a", "b", "c", "total"]


class Cut(BaseException):
    """Stands for the end of the process."""


def add(top, day, number, rows=20):
    """Write a file of a day; its ids are unlike those of all others."""
    rng = np.random.default_rng(1000 * rows + number)
    columns = {"id": np.arange(rows) + 1000 * number, **{c: rng.standard_normal(rows) for c in "abc"}}
    return write(top / "in" / f"day={day}" / f"{number}.parquet", columns)


def grow(top, output=None, **options):
    options = {"format": "delta"} | FEED | options
    return scorer.run(top / "in", SUM, output or top / "out", **options)


def rows_of(top, version=None):
    return DeltaTable(top / "out", version).to_pyarrow_table().sort_by("id").select(COLUMNS)


def scored_at_once(top):
    for name in ("whole", "whole.scorer"):
        shutil.rmtree(top / name, ignore_errors=True)
    scorer.run(top / "in", SUM, top / "whole", **{**FEED, "new_only": False})
    return read(top / "whole").sort_by("id").select(COLUMNS)


@pytest.fixture
def first(tmp_path):
    """A table with two days."""
    add(tmp_path, 1, 1)
    add(tmp_path, 2, 2)
    grow(tmp_path)
    return tmp_path


def test_each_run_is_one_version_that_is_what_the_input_was(first):
    seen = [scored_at_once(first)]
    add(first, 2, 3)
    assert grow(first).generation == 2
    seen.append(scored_at_once(first))
    add(first, 1, 1, 21)
    (first / "in" / "day=2" / "2.parquet").unlink()
    report = grow(first, **REPLACING)
    assert report.notes[-1] == "the rows are in version 2 of the table"
    seen.append(scored_at_once(first))
    for version, rows in enumerate(seen):  # also for a reader that stays at an older version
        assert rows_of(first, version).equals(rows)
    assert grow(first, **REPLACING).already_done
    verdict = scorer.verify(first / "out", deep=True, rescore=41)
    assert verdict.whole, verdict
    assert verdict.counts.rows == 41
    assert scorer.status(first / "out").generations == 3
    entries = json.loads((first / "out.scorer" / "manifest.json").read_text())["generations"]
    assert [one["rows"] for one in entries] == [0, 20, 21]
    assert cli("report", first / "out")[0] == 0


@pytest.mark.slow
def test_rows_of_others_stay_and_rows_are_added_to_a_table_that_exists(tmp_path):
    add(tmp_path, 1, 1)
    theirs = {"id": [7], **{c: [1.0] for c in "abc"}, "total": pa.array([3.0], pa.float32()), "day": [1]}
    write_deltalake(tmp_path / "out", pa.table(theirs), partition_by=["day"])
    with pytest.raises(scorer.PreflightError, match="the table exists"):
        grow(tmp_path)
    grow(tmp_path, mode="append")
    add(tmp_path, 1, 1, 21)
    grow(tmp_path, **REPLACING)
    assert rows_of(tmp_path)["id"].to_pylist() == [7, *range(1000, 1021)]
    add(tmp_path, 1, 1, 22)
    grow(tmp_path, overwrite=True)
    assert rows_of(tmp_path)["id"].to_pylist() == [7, *range(1000, 1022)]


@pytest.mark.slow
def test_a_table_that_was_compacted_grows_and_its_rows_are_not_replaced(first):
    add(first, 1, 3)
    grow(first)
    DeltaTable(first / "out").optimize.compact()
    add(first, 1, 4)
    grow(first)
    assert rows_of(first).equals(scored_at_once(first))
    assert scorer.verify(first / "out", deep=True).faults == ()
    add(first, 1, 1, 21)
    with pytest.raises(
        scorer.PreflightError, match="rows that are to be replaced cannot be found in the table any more"
    ):
        grow(first, **REPLACING)
    with pytest.raises(
        scorer.PreflightError, match="rows that are to be replaced cannot be found in the table any more"
    ):
        grow(first, where="id > 0", overwrite=True)


@pytest.mark.slow
def test_overwrite_replaces_the_rows_of_all_earlier_runs_in_one_version(first):
    add(first, 1, 3)
    grow(first)
    add(first, 2, 2, 22)
    assert grow(first, overwrite=True).generation == 1
    assert DeltaTable(first / "out").version() == 2
    assert rows_of(first).equals(scored_at_once(first))
    verdict = scorer.verify(first / "out", deep=True)
    assert verdict.whole, verdict


@pytest.mark.slow
def test_a_compaction_during_the_run_keeps_its_rows_from_being_added_twice(first):
    add(first, 1, 3)
    grow(first)
    add(first, 1, 1, 21)
    commit = delta_commit.try_commit

    def compacted(*args):
        DeltaTable(first / "out").optimize.compact()
        return commit(*args)

    with (
        mock.patch.object(delta_commit, "try_commit", compacted),
        pytest.raises(CommitError, match="cannot be found in the table any more"),
    ):
        grow(first, **REPLACING)
    assert rows_of(first)["id"].to_pylist() == [*range(1000, 1020), *range(2000, 2020), *range(3000, 3020)]


@pytest.fixture
def prod(tmp_path, monkeypatch):
    """A catalog called prod with the namespace ml."""
    monkeypatch.setenv("PYICEBERG_HOME", str(tmp_path))
    monkeypatch.setenv("PYICEBERG_CATALOG__PROD__TYPE", "sql")
    monkeypatch.setenv("PYICEBERG_CATALOG__PROD__URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__PROD__WAREHOUSE", f"file://{tmp_path}/warehouse")
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())
    with load_catalog("prod") as catalog:
        catalog.create_namespace("ml")
        yield catalog


def in_iceberg(prod, snapshot=None):
    return prod.load_table("ml.scores").scan(snapshot_id=snapshot).to_arrow().sort_by("id").select(COLUMNS)


@pytest.mark.slow
def test_an_iceberg_table_grows_and_rows_are_replaced_in_one_snapshot(tmp_path, prod):
    add(tmp_path, 1, 1)
    add(tmp_path, 2, 2)
    grow(tmp_path, ICE, format="iceberg")
    add(tmp_path, 2, 3)
    assert grow(tmp_path, ICE, format="iceberg").generation == 2
    before, pinned = scored_at_once(tmp_path), prod.load_table("ml.scores").current_snapshot().snapshot_id
    add(tmp_path, 1, 1, 21)
    (tmp_path / "in" / "day=2" / "2.parquet").unlink()
    grow(tmp_path, ICE, format="iceberg", **REPLACING)
    assert len(prod.load_table("ml.scores").snapshots()) == 3
    assert in_iceberg(prod).equals(scored_at_once(tmp_path))
    assert in_iceberg(prod, pinned).equals(before)
    assert grow(tmp_path, ICE, format="iceberg", **REPLACING).already_done
    assert scorer.verify(ICE, deep=True, rescore=41).whole


def any_order(top, actions, output, table, **options):
    number = 1
    add(top, 1, number)
    for action, which in actions:
        there = sorted((top / "in").rglob("*.parquet"))
        chosen = there[which % len(there)]
        if action == "add":
            number += 1
            add(top, 1 + which % 2, number)
        elif action == "change":
            add(top, chosen.parent.name.partition("=")[2], int(chosen.stem), 1 + which)
        elif action == "remove" and len(there) > 1:
            chosen.unlink()
        elif action == "run":
            grow(top, output, **options, **REPLACING)
        elif action in {"cut before", "cut after"}:
            name = "_commit_once" if action == "cut before" else "move_proof"
            with mock.patch.object(publish_table, name, side_effect=Cut), suppress(Cut):
                grow(top, output, **options, **REPLACING)
    grow(top, output, **options, **REPLACING)
    assert table().equals(scored_at_once(top))
    assert grow(top, output, **options, **REPLACING).already_done
    verdict = scorer.verify(output, deep=True)
    assert verdict.whole, verdict


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "change", "remove", "run", "run", "cut before", "cut after"]), st.integers(0, 30)
    ),
    min_size=3,
    max_size=9,
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_after_any_changes_and_interruptions_the_table_is_as_scored_at_once(kind, tmp_path, prod):
    n = 0

    @settings(max_examples=25, deadline=None)
    @given(ACTIONS)
    def check(actions):
        nonlocal n
        n += 1
        top, name = tmp_path / str(n), f"ml.t{n}"
        output = f"iceberg://prod/{name}" if kind == "iceberg" else top / "out"

        def table():
            if kind == "delta":
                return rows_of(top)
            return prod.load_table(name).scan().to_arrow().sort_by("id").select(COLUMNS)

        any_order(top, actions, output, table, format=kind)
        shutil.rmtree(top)

    check()
