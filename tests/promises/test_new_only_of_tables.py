"""--new-only on Delta and Iceberg tables: what commits and snapshots say is new, and only that, is added."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st
from support.iceberg_tables import Warehouse, local
from support.runs import MODELS, read

import scorer
from scorer.output import publish

SUM = MODELS / "sum3.onnx"
FEED = {"feed": "x=a,b,c", "cluster": "synchronous", "tune": False, "batch_rows": 8}


class Cut(BaseException):
    """Stands for the end of the process."""


def append(top, number, rows=30):
    rng = np.random.default_rng(number)
    columns = {"id": np.arange(rows) + 1000 * number, "night": [number % 3] * rows}
    table = pa.table(columns | {c: rng.standard_normal(rows) for c in "abc"})
    write_deltalake(top / "table", table, mode="append", partition_by=["night"])


def grow(top, **options):
    return scorer.run(top / "table", SUM, top / "out", new_only=True, **FEED, **options)


def is_as_scored_at_once(top):
    for name in ("whole", "whole.scorer"):
        shutil.rmtree(top / name, ignore_errors=True)
    scorer.run(top / "table", SUM, top / "whole", **FEED)
    columns = ["id", "a", "b", "c", "total"]
    assert read(top / "out").sort_by("id").select(columns).equals(read(top / "whole").sort_by("id").select(columns))
    verdict = scorer.verify(top / "out", deep=True)
    assert verdict.faults == ()
    assert verdict.whole


@pytest.fixture
def first(tmp_path):
    append(tmp_path, 1)
    append(tmp_path, 2)
    grow(tmp_path)
    return tmp_path


def test_appended_files_are_added_and_a_compaction_adds_nothing(first):
    append(first, 3)
    assert grow(first).counts.rows == 30
    is_as_scored_at_once(first)
    assert DeltaTable(first / "table").optimize.compact()["numFilesRemoved"] == 0  # a file for each partition
    append(first, 6)
    DeltaTable(first / "table").optimize.compact()
    report = grow(first)
    assert (report.generation, report.counts.rows) == (3, 30)
    DeltaTable(first / "table").optimize.z_order(["id"])
    assert grow(first).already_done
    is_as_scored_at_once(first)
    assert scorer.verify(first / "out", rescore=60).whole


@pytest.mark.parametrize("compacted", [False, True])
def test_updated_and_deleted_rows_are_refused(compacted, first):
    if compacted:
        append(first, 5)
        DeltaTable(first / "table").optimize.compact()
    DeltaTable(first / "table").delete("id = 2005")
    append(first, 3)
    with pytest.raises(scorer.PreflightError, match="rows of the table were updated or deleted") as caught:
        grow(first)
    assert caught.value.problems[0].found.startswith("1 file with other rows in version ")
    assert grow(first, overwrite=True).generation == 1
    is_as_scored_at_once(first)


def test_a_deleted_partition_is_noted_and_its_rows_stay(first):
    DeltaTable(first / "table").delete("night = 1")
    append(first, 3)
    assert "1 file of the table were deleted; their rows stay in the output" in grow(first).notes[0]
    assert sorted(set(read(first / "out")["id"].to_numpy() // 1000)) == [1, 2, 3]


def test_rows_that_are_new_and_deleted_again_are_not_added(first):
    append(first, 3)
    append(first, 6)
    DeltaTable(first / "table").delete("id = 3001")
    append(first, 4)
    assert grow(first).counts.rows == 89
    is_as_scored_at_once(first)


def test_a_log_that_was_cleaned_up_is_refused(first):
    append(first, 3)
    append(first, 4)
    DeltaTable(first / "table").create_checkpoint()
    (first / "table" / "_delta_log" / f"{2:020d}.json").unlink()
    with pytest.raises(scorer.PreflightError, match="what changed since version 1 of the table can no longer be told"):
        grow(first)
    assert grow(first, overwrite=True).counts.rows == 120


def test_an_older_version_and_another_table_are_refused(first):
    append(first, 3)
    grow(first)
    with pytest.raises(scorer.PreflightError, match="older than the one that was scored"):
        grow(first, input_version=1)
    shutil.rmtree(first / "table")
    append(first, 1)
    with pytest.raises(scorer.PreflightError, match="another input: a Delta table"):
        grow(first)


def test_an_unfinished_generation_is_finished_after_a_compaction_and_then_newer_rows_are_added(first):
    append(first, 3)
    append(first, 6)
    with mock.patch.object(publish, "publish", side_effect=Cut), pytest.raises(Cut):
        grow(first)
    DeltaTable(first / "table").optimize.compact()
    append(first, 7)
    assert grow(first).generation == 3
    entries = json.loads((first / "out.scorer" / "manifest.json").read_text())["generations"]
    assert [one["rows"] for one in entries] == [60, 60, 30]
    is_as_scored_at_once(first)


@pytest.fixture
def ice(tmp_path):
    """An Iceberg table with two appends, scored as the first generation."""
    warehouse = Warehouse(tmp_path / "ice")
    table = warehouse.create(night_of(1).schema, night_of(1))
    table.append(night_of(2))
    grow_ice(tmp_path, table)
    yield tmp_path, table
    warehouse.close()


def night_of(number, rows=30):
    rng = np.random.default_rng(number)
    columns = {"id": np.arange(rows) + 1000 * number} | {c: rng.standard_normal(rows) for c in "abc"}
    return pa.table(columns)


def grow_ice(top, table, **options):
    return scorer.run(local(table.location()), SUM, top / "out", new_only=True, **FEED, **options)


def test_appends_of_an_iceberg_table_are_added_and_deleted_rows_are_refused(ice):
    top, table = ice
    assert grow_ice(top, table).already_done
    for number in (3, 4):
        table.append(night_of(number))
    report = grow_ice(top, table)
    assert (report.generation, report.counts.rows) == (2, 60)
    assert any("2 files that are new since snapshot" in note for note in report.notes)
    assert sorted(read(top / "out")["id"].to_pylist()) == sorted(table.scan().to_arrow()["id"].to_pylist())
    assert scorer.verify(top / "out", deep=True, rescore=50).whole
    table.delete("id = 2005")
    table.append(night_of(5))
    with pytest.raises(scorer.PreflightError, match="rows of the table were updated or deleted"):
        grow_ice(top, table)
    assert grow_ice(top, table, overwrite=True).counts.rows == 149


def test_an_iceberg_table_whose_scored_snapshot_expired_is_refused(ice):
    top, table = ice
    scored = table.current_snapshot().snapshot_id
    table.append(night_of(3))
    table.maintenance.expire_snapshots().by_id(scored).commit()
    with pytest.raises(scorer.PreflightError, match=f"since snapshot {scored} of the table can no longer be told"):
        grow_ice(top, table)


ACTIONS = st.lists(st.sampled_from(["append", "append", "compact", "run", "cut", "delete new"]), min_size=2, max_size=8)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=30, deadline=None)
@given(ACTIONS)
def test_after_any_appends_compactions_and_interruptions_the_output_is_as_scored_at_once(actions):
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        top, night, scored, compacted = Path(folder), 1, 0, False
        append(top, night)
        for action in actions:
            table = DeltaTable(top / "table")
            if action == "append":
                night += 1
                append(top, night)
            elif action == "compact":
                table.optimize.compact()
                compacted = True
            elif action == "delete new":
                if scored < night and not compacted:
                    table.delete(f"id = {1000 * night + 7}")
            elif action == "run":
                grow(top)
                scored, compacted = night, False
            else:
                with mock.patch.object(publish, "publish", side_effect=Cut), suppress(Cut):
                    grow(top)
                scored, compacted = night, False  # what is planned may not be deleted any more
        grow(top)
        is_as_scored_at_once(top)
