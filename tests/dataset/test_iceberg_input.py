"""Iceberg tables as input: the rows that are scored are the live rows of pyiceberg's own scan, in every case."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.iceberg_tables import (
    Warehouse,
    data_files,
    delete_positions,
    delete_values,
    live_rows,
    local,
    metadata_path,
    plain,
)
from support.runs import MODELS, cli

import scorer
from scorer.errors import InputChanged, PreflightError, RunFailed

MODEL = MODELS / "sum3.onnx"
FEEDS = ("a", "b", "c")


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory):
    found = Warehouse(tmp_path_factory.mktemp("lake"))
    with pytest.MonkeyPatch.context() as patch:
        found.configure(patch)
        yield found
    found.close()


def rows(first, stop, **more):
    """Rows with the numbers first..stop: three columns to feed, whose sum is the score, and others to keep."""
    ids = np.arange(first, stop)
    columns = {"id": ids, **{name: (ids % (i + 7)).astype(np.float32) for i, name in enumerate(FEEDS)}}
    return pa.table(columns | {"text": [f"row {i}" for i in ids]} | more)


def written(warehouse, *pieces, **options):
    """Return a table with one data file for each of the pieces."""
    table = warehouse.create(pieces[0].schema, **options)
    for piece in pieces:
        table.append(piece)
    return table


def run(table, output, **options):
    """Score a table, by its metadata file unless a location is given, in this thread."""
    location = table if isinstance(table, str | Path) else metadata_path(table)
    given = {"feed": {"x": list(FEEDS)}, "cluster": "synchronous", "tune": False, "batch_rows": 64, **options}
    return scorer.run(location, MODEL, output, **given)


def assert_exact(output, wanted):
    """The output has the wanted rows, each once, unchanged, and with its score."""
    files = sorted(Path(output).rglob("*.parquet"))
    got = pa.concat_tables([pq.read_table(file, partitioning=None) for file in files]).sort_by("id")
    names = [name for name in wanted.column_names if name in got.column_names]
    assert got.select(names).to_pylist() == wanted.select(names).to_pylist()
    sums = sum(wanted[name].to_numpy(zero_copy_only=False) for name in FEEDS)
    np.testing.assert_array_equal(got["total"].to_numpy(), sums)


@pytest.fixture
def deleted(warehouse):
    """A table of three files, of which rows of two are deleted; one row group is dead."""
    table = written(
        warehouse, rows(0, 1000), rows(1000, 2000), rows(2000, 2100), **{"write.parquet.row-group-limit": "200"}
    )
    one, two, _ = data_files(table)
    delete_positions(table, {one: [0, 1, 63, 64, 65, 500, *range(600, 800), 999]})
    delete_positions(table, {two: [7]}, bounds=False)
    return table


def test_only_live_rows_are_scored_and_deleted_ones_are_counted(deleted, tmp_path):
    out = tmp_path / "out"
    report = run(deleted, out)
    assert_exact(out, live_rows(deleted))
    assert (report.counts.rows, report.counts.scored, report.counts.deleted) == (1892, 1892, 208)
    snapshot = deleted.current_snapshot().snapshot_id
    note = f"an Iceberg table, snapshot {snapshot}: 3 files, 1,892 rows, and 208 deleted ones"
    assert note in report.notes
    verdict = scorer.verify(out, deep=True, rescore=200)
    assert verdict.whole, verdict.faults
    assert run(deleted, out).already_done


def test_a_table_is_named_by_its_catalog_its_folder_or_its_metadata_file(warehouse, deleted, tmp_path, capsys):
    folder = os.path.dirname(os.path.dirname(metadata_path(deleted)))
    name = f"iceberg://lake/{'.'.join(deleted.name())}"
    for i, location in enumerate((metadata_path(deleted), folder, name)):
        arguments = ["run", location, "--model", MODEL, "--output", tmp_path / f"{i}", "--feed", "x=a,b,c"]
        code, out, err = cli(*arguments, "--cluster", "synchronous")
        assert (code, "1,892 rows in = 1,892 scored" in out) == (0, True), err
        assert_exact(tmp_path / f"{i}", live_rows(deleted))
    for location in (name, metadata_path(deleted)):
        with pytest.raises(PreflightError, match="this input needs an --output"):
            run(location, None)
    assert (run(folder, None, batch_rows=32).output) == f"{folder}.scored"


@pytest.mark.parametrize(
    "options", [{"where": "id >= 950"}, {"where": ["id < 1100", "a > 2"], "part_bytes": 8192}, {"keep": "id"}], ids=str
)
def test_deleted_rows_are_left_out_with_every_option(deleted, tmp_path, options):
    out = tmp_path / "out"
    report = run(deleted, out, **options)
    wanted = live_rows(deleted)
    for condition in np.atleast_1d(options.get("where", [])):
        wanted = plain(pa.Table.from_pandas(wanted.to_pandas().query(str(condition)), preserve_index=False))
    assert_exact(out, wanted)
    assert report.counts.balanced
    assert report.counts.rows == 1892
    assert scorer.verify(out, deep=True, rescore=50).whole


def test_bad_rows_go_to_quarantine_under_the_names_of_the_table(warehouse, tmp_path):
    values = pa.array([None if i in {3, 50, 90} else 1.0 for i in range(100)], pa.float32())
    table = written(warehouse, rows(0, 100).set_column(1, "a", values))
    delete_positions(table, {data_files(table)[0]: [50, 51]})
    with table.update_schema() as change:
        change.rename_column("text", "words")
    report = run(table, tmp_path / "out", on_null="error", max_bad_rows=2)
    assert (report.counts.rows, report.counts.quarantined, report.counts.deleted) == (98, 2, 2)
    bad = pq.read_table(next((tmp_path / "out.scorer" / "quarantine").iterdir()))
    assert bad["_row"].to_pylist() == bad["id"].to_pylist() == [3, 90]
    assert bad["words"].to_pylist() == ["row 3", "row 90"]
    assert scorer.verify(tmp_path / "out", rescore=20).whole


def test_renamed_promoted_added_and_dropped_columns(warehouse, tmp_path):
    from pyiceberg.types import DoubleType, LongType

    first = rows(0, 100, n=pa.array(range(100), pa.int32()), old=pa.nulls(100, pa.string()))
    first = first.append_column("deep", pa.array([{"x": i, "y": "y"} for i in range(100)]))
    table = written(warehouse, first)
    with table.update_schema() as change:
        change.rename_column("a", "first").delete_column("old").rename_column(("deep", "x"), "z")
    with table.update_schema() as change:
        change.update_column("n", field_type=LongType()).update_column("b", field_type=DoubleType())
        change.add_column("old", LongType()).add_column("a", LongType())
    second = rows(100, 200).rename_columns(["id", "first", "b", "c", "text"])
    second = second.set_column(2, "b", second["b"].cast(pa.float64())).append_column("n", pa.array([2**40] * 100))
    table.append(second.append_column("old", pa.array(range(100))))
    delete_positions(table, {data_files(table)[0]: [5]})
    report = run(table, tmp_path / "out", feed={"x": ["first", "b", "c"]}, where=["n >= 50", "id < 150"])
    wanted = live_rows(table).filter((pc.field("n") >= 50) & (pc.field("id") < 150))
    names = list(FEEDS)
    got = pa.concat_tables([pq.read_table(file) for file in sorted((tmp_path / "out").iterdir())]).sort_by("id")
    assert plain(got.drop_columns("total")).to_pylist() == wanted.to_pylist()
    sums = sum(wanted[name].to_numpy() for name in ("first", *names[1:]))
    np.testing.assert_array_equal(got["total"].to_numpy(), sums)
    assert report.counts.deleted == 1
    assert scorer.verify(tmp_path / "out", rescore=20).whole


def test_a_field_of_a_struct_is_fed_under_its_new_name(warehouse, tmp_path):
    first = rows(0, 20).append_column("deep", pa.array([{"x": float(i)} for i in range(20)]))
    table = written(warehouse, first)
    with table.update_schema() as change:
        change.rename_column(("deep", "x"), "z")
    table.append(rows(20, 40).append_column("deep", pa.array([{"z": float(i)} for i in range(20, 40)])))
    run(table, tmp_path / "out", feed={"x": ["deep.z", "b", "c"]}, on_lossy="warn")
    got = pa.concat_tables([pq.read_table(file) for file in sorted((tmp_path / "out").iterdir())])
    wanted = got["id"].to_numpy() + got["b"].to_numpy() + got["c"].to_numpy()
    np.testing.assert_array_equal(got["total"].to_numpy(), wanted)


def test_partitions_that_change(warehouse, tmp_path):
    def days(first, stop):
        return rows(first, stop, day=[f"d{i % 2}" for i in range(first, stop)], k=[i % 3 for i in range(first, stop)])

    table = written(warehouse, days(0, 30))
    with table.update_spec() as change:
        change.add_identity("day")
    table.append(days(30, 60))
    run(table, tmp_path / "mixed", where="day == 'd1'")
    assert_exact(tmp_path / "mixed", live_rows(table).filter(pc.field("day") == "d1"))
    table.overwrite(days(0, 60))
    report = run(table, tmp_path / "one", where="day == 'd1'")
    assert report.files_left_out == 1
    assert_exact(tmp_path / "one", live_rows(table).filter(pc.field("day") == "d1"))
    with table.update_spec() as change:
        change.add_identity("k")
    table.append(days(60, 90))
    run(table, tmp_path / "two", feed={"x": ["a", "b", "k"]}, on_lossy="warn")
    got = pa.concat_tables([pq.read_table(f, partitioning=None) for f in (tmp_path / "two").rglob("*.parquet")])
    assert sorted(got["id"].to_pylist()) == list(range(90))
    np.testing.assert_array_equal(got["total"].to_numpy(), sum(got[name].to_numpy() for name in ("a", "b", "k")))


def test_snapshots_tags_and_branches(warehouse, tmp_path):
    table = written(warehouse, rows(0, 10))
    first = table.current_snapshot().snapshot_id
    table.manage_snapshots().create_tag(first, "monday").commit()
    table.append(rows(10, 20))
    for i, version in enumerate((first, str(first), "monday")):
        run(table, tmp_path / f"{i}", input_snapshot=version)
        assert_exact(tmp_path / f"{i}", live_rows(table, snapshot_id=first))
    run(table, tmp_path / "main", input_snapshot="main")
    assert_exact(tmp_path / "main", live_rows(table))
    with pytest.raises(PreflightError, match="this snapshot"):
        run(table, tmp_path / "gone", input_snapshot="tuesday")
    with pytest.raises(PreflightError, match="--input-version does not apply"):
        run(table, tmp_path / "gone", input_version=1)


def bad(first, stop):
    values = pa.array([None if i == first + 3 else 1.0 for i in range(first, stop)], pa.float32())
    return rows(first, stop).set_column(1, "a", values)


def test_an_unfinished_run_keeps_to_its_snapshot_and_schema_however_the_table_grows(warehouse, tmp_path):
    from pyiceberg.types import LongType

    table = written(warehouse, bad(0, 100))
    delete_positions(table, {data_files(table)[0]: [9]})
    with table.update_schema() as change:
        change.add_column("new", LongType())
    name, snapshot = f"iceberg://lake/{'.'.join(table.name())}", table.current_snapshot().snapshot_id
    with pytest.raises(RunFailed):
        run(name, tmp_path / "out", on_null="error")
    with table.update_schema() as change:
        change.add_column("newer", LongType())
    table.append(rows(100, 200))
    report = run(name, tmp_path / "out", on_null="error", max_bad_rows=1)
    assert (report.counts.rows, report.counts.deleted) == (99, 1)
    assert any(note.startswith(f"an Iceberg table, snapshot {snapshot}:1:") for note in report.notes)
    out = pq.read_table(next((tmp_path / "out").iterdir()))
    assert ("new" in out.column_names, "newer" in out.column_names) == (True, False)
    assert scorer.verify(tmp_path / "out", deep=True, rescore=20).whole
    with pytest.raises(PreflightError, match="of the table, now"):
        run(name, tmp_path / "out", on_null="error", max_bad_rows=1)


def test_an_expired_snapshot_is_an_input_that_changed(warehouse, tmp_path):
    table = written(warehouse, bad(0, 100))
    delete_positions(table, {data_files(table)[0]: [9]})
    name, old = f"iceberg://lake/{'.'.join(table.name())}", table.current_snapshot().snapshot_id
    file = local(data_files(table)[0].file_path)
    with pytest.raises(RunFailed):
        run(name, tmp_path / "out", on_null="error")
    table.overwrite(rows(0, 50))
    table.maintenance.expire_snapshots().by_id(old).commit()
    with pytest.raises(PreflightError, match="the snapshot with which this run began has expired") as raised:
        run(name, tmp_path / "out", on_null="error")
    assert isinstance(raised.value.problems[0], InputChanged)
    assert "--overwrite" in raised.value.problems[0].hint
    run(name, tmp_path / "out", on_null="error", overwrite=True)
    assert_exact(tmp_path / "out", live_rows(table))
    os.rename(local(data_files(table)[0].file_path), file)
    with pytest.raises(PreflightError, match="a file of the table is gone"):
        run(name, tmp_path / "other")


def test_what_is_not_supported_is_refused_before_the_run(warehouse, tmp_path):
    table = written(warehouse, rows(0, 10))
    delete_values(table, rows(0, 1).select(["id"]), [1], data_files(table)[0])
    with pytest.raises(PreflightError, match="deleted by the values of a key"):
        run(table, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.scorer").exists()


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000))
def test_any_table_with_any_deleted_rows_is_scored_exactly(warehouse, tmp_path_factory, seed):
    chance = random.Random(seed)
    folder = tmp_path_factory.mktemp("any")
    table, first = None, 0
    for _ in range(chance.randint(1, 4)):
        n = chance.choice([1, 5, 64, 300])
        key = pa.array([chance.choice(["x", "y/z", None])] * n, pa.string())
        piece = rows(first, first + n, day=key)
        table = written(warehouse, piece) if table is None else table
        if first:
            table.append(piece)
        elif chance.random() < 0.5:
            with table.update_spec() as change:
                change.add_identity("day")
        first += n
    for _ in range(chance.randint(0, 3)):
        files = [
            file for file in data_files(table) if file.spec_id == table.spec().spec_id
        ]  # pyiceberg writes no others
        if not files:
            continue
        file = chance.choice(files)
        n = chance.randint(1, file.record_count)
        delete_positions(table, {file: chance.sample(range(file.record_count), n)}, bounds=chance.random() < 0.5)
    options = {"part_bytes": chance.choice([4096, 1 << 26]), "batch_rows": chance.choice([1, 7, 64])}
    options |= {"where": f"a > {chance.randint(0, 6)}"} if chance.random() < 0.4 else {}
    report = run(table, folder / "out", **options)
    wanted = live_rows(table)
    if "where" in options:
        wanted = wanted.filter(pc.field("a") > int(options["where"].rpartition(" ")[2]))
    assert report.counts.scored == wanted.num_rows
    if wanted.num_rows:
        assert_exact(folder / "out", wanted)
    assert scorer.verify(folder / "out", rescore=10).whole
    shutil.rmtree(folder)


def test_without_pyiceberg_the_package_to_install_is_named(warehouse, tmp_path, monkeypatch):
    table = written(warehouse, rows(0, 10))
    monkeypatch.setattr("scorer.tables.iceberg_metadata.find_spec", {}.get)
    with pytest.raises(PreflightError, match="reading an Iceberg table needs another package") as raised:
        run(table, tmp_path / "out")
    assert raised.value.problems[0].hint == "pip install 'dask-scorer[iceberg]'"


@pytest.mark.slow
def test_a_killed_run_is_finished_from_its_snapshot(warehouse, tmp_path):
    table = written(warehouse, *(rows(1000 * i, 1000 * (i + 1)) for i in range(20)))
    for file in data_files(table)[::3]:
        delete_positions(table, {file: range(0, 1000, 7)})
    wanted, name = live_rows(table), f"iceberg://lake/{'.'.join(table.name())}"
    command = [sys.executable, "-m", "scorer", "run", name, "--model", str(MODEL), "--output", str(tmp_path / "out")]
    command += [
        "--feed",
        "x=a,b,c",
        "--cluster",
        "synchronous",
        "--batch-rows",
        "1",
        "--no-tune",
        "--part-bytes",
        "8192",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and len([*tmp_path.rglob("part-*.parquet")]) < 3:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "out").exists()
    table.append(rows(20_000, 21_000))
    subprocess.run(command, check=True, capture_output=True)
    assert_exact(tmp_path / "out", wanted)
    assert scorer.verify(tmp_path / "out", deep=True, rescore=50).whole
