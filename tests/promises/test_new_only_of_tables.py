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
from scorer.output import publish, publish_table

SUM = MODELS / "sum3.onnx"
FEED = {"feed": "x=a,b,c", "cluster": "synchronous", "tune": False, "batch_rows": 8}


class Cut(BaseException):
    """Stands for the end of the process."""


def append(top, number, rows=30):
    rng = np.random.default_rng(number)
    columns = {"id": np.arange(rows) + 1000 * number, "night": [number % 3] * rows}
    table = pa.table(columns | {c: rng.standard_normal(rows) for c in "abc"})
    write_deltalake(top / "table", table, mode="append", partition_by=["night"])


def grow(top, output=None, **options):
    return scorer.run(top / "table", SUM, output or top / "out", new_only=True, **FEED, **options)


def is_as_scored_at_once(top):
    for name in ("whole", "whole.scorer"):
        shutil.rmtree(top / name, ignore_errors=True)
    scorer.run(top / "table", SUM, top / "whole", **FEED)
    columns, is_table = ["id", "a", "b", "c", "total"], (top / "out" / "_delta_log").exists()
    out = DeltaTable(top / "out").to_pyarrow_table() if is_table else read(top / "out")
    assert out.sort_by("id").select(columns).equals(read(top / "whole").sort_by("id").select(columns))
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
    assert "1 file of the table cannot be found any more; their rows stay in the output" in grow(first).notes[0]
    assert sorted(set(read(first / "out")["id"].to_numpy() // 1000)) == [1, 2, 3]


def test_rows_of_deleted_files_are_removed_but_not_the_last_ones_of_a_folder(first):
    options = {"where": "night = 1", "on_gone": "remove"}
    whole = scorer.run(first / "table", SUM, first / "one", new_only=True, where="night = 1", **FEED)
    DeltaTable(first / "table").delete("night = 1")
    with pytest.raises(scorer.PreflightError, match="no file would be left in the output"):
        scorer.run(first / "table", SUM, first / "one", new_only=True, **FEED, **options)
    append(first, 4)
    assert scorer.run(first / "table", SUM, first / "one", new_only=True, **FEED, **options).counts.rows == 30
    assert whole.counts.rows == 30
    assert read(first / "one")["id"].to_pylist() == list(range(4000, 4030))
    assert scorer.verify(first / "one", rescore=30).whole


@pytest.mark.slow
def test_a_table_from_which_all_rows_were_deleted_leaves_the_output_as_it_is_or_empties_a_table(first):
    grow(first, output=first / "copy", format="delta")
    DeltaTable(first / "table").delete()
    assert grow(first).already_done
    with pytest.raises(scorer.PreflightError, match="no file would be left in the output"):
        grow(first, on_gone="remove")
    report = grow(first, output=first / "copy", format="delta", on_gone="remove")
    assert (report.generation, report.counts.rows) == (2, 0)
    assert DeltaTable(first / "copy").to_pyarrow_table().num_rows == 0
    assert grow(first, output=first / "copy", format="delta", on_gone="remove").already_done
    append(first, 3)
    assert grow(first, output=first / "copy", format="delta", on_gone="remove").counts.rows == 30
    assert scorer.verify(first / "copy", rescore=30).whole
    DeltaTable(first / "table").delete()
    with pytest.raises(scorer.PreflightError, match="the table is empty"):
        grow(first, output=first / "new")


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
    append(first, 5)
    report = grow(first, since=3)  # the rows of versions 2 and 3 count as scored
    assert (report.generation, report.counts.rows) == (2, 30)
    assert "--new-only adds 1 file that are new since version 3" in report.notes
    assert sorted(set(read(first / "out")["id"].to_numpy() // 1000)) == [1, 2, 5]
    assert grow(first).already_done
    with pytest.raises(scorer.PreflightError, match="rows that were added after --since are scored already"):
        grow(first, since=3)
    with pytest.raises(scorer.PreflightError, match="--since needs an output to which rows of a table are added"):
        scorer.run(first / "table", SUM, first / "new", new_only=True, since=3, **FEED)
    assert grow(first, overwrite=True, row_id=True).counts.rows == 150


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
    since = table.refresh().current_snapshot().snapshot_id
    table.append(night_of(4))
    assert grow_ice(top, table, since=since).counts.rows == 30
    assert sorted(set(read(top / "out")["id"].to_numpy() // 1000)) == [1, 2, 4]


REPLACING = {"on_changed": "rescore", "on_gone": "remove"}
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "compact", "z-order", "delete", "update", "delete a night", "run", "cut"]),
        st.integers(0, 30),
    ),
    min_size=2,
    max_size=9,
)


def change(top, action, number, night):
    """Change the table as a program of its own would."""
    table = DeltaTable(top / "table")
    chosen = 1000 * (1 + number % night) + number % 30
    if action == "compact":
        table.optimize.compact()
    elif action == "z-order":
        table.optimize.z_order(["id"])
    elif action == "delete":
        table.delete(f"id = {chosen}")
    elif action == "update":
        table.update({"a": "a + 1"}, predicate=f"id = {chosen}")
    elif action == "delete a night" and table.to_pyarrow_table(filters=[("night", "!=", number % 3)]).num_rows:
        table.delete(f"night = {number % 3}")


def any_order_of_changes(actions, **options):
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    module, name = (publish_table, "_commit_once") if options.get("format") else (publish, "publish")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        top, night = Path(folder), 1
        append(top, night)
        for action, number in actions:
            if action == "append":
                night += 1
                append(top, night)
            elif action == "run":
                grow(top, **REPLACING, **options)
            elif action == "cut" and number < 20:
                with mock.patch.object(module, name, side_effect=Cut), suppress(Cut):
                    grow(top, **REPLACING, **options)
            elif action == "cut":
                with mock.patch.object(module, "move_proof", side_effect=Cut), suppress(Cut):
                    grow(top, **REPLACING, **options)
            else:
                change(top, action, number, night)
        grow(top, **REPLACING, **options)
        is_as_scored_at_once(top)
        assert grow(top, **REPLACING, **options).already_done
        assert not list((top / "out.scorer").glob("work-*"))


@settings(max_examples=3, deadline=None)
@given(ACTIONS)
def test_after_any_changes_and_interruptions_the_output_is_as_scored_at_once(actions):
    any_order_of_changes(actions)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("options", [{}, {"format": "delta"}], ids=["folder", "table"])
@settings(max_examples=60, deadline=None)
@given(actions=ACTIONS)
def test_after_many_changes_and_interruptions_the_output_is_as_scored_at_once(options, actions):
    any_order_of_changes(actions, **options)
