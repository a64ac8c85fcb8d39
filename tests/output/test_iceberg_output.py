"""An Iceberg table as the output: one snapshot shows all rows of a run or none, whatever happens in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog import load_catalog
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import DayTransform
from pyiceberg.types import FloatType, LongType, NestedField, StringType, TimestampType
from pyiceberg.utils.config import Config
from support.drivers import run_at_once
from support.runs import MODELS, cli, write

import scorer
from scorer.api.verification import check as verify
from scorer.errors import CommitError, PreflightError
from scorer.output import publish_table
from scorer.output.place import Place
from scorer.tables import iceberg_commit

SUM = MODELS / "sum3.onnx"
NAME = "iceberg://prod/ml.scores"
DAYS = ("2026-01-01", "2026-01-02")


@pytest.fixture(autouse=True)
def prod(tmp_path, monkeypatch):
    """A catalog called prod with the namespace ml, for this process and those that it starts."""
    monkeypatch.setenv("PYICEBERG_HOME", str(tmp_path))
    monkeypatch.setenv("PYICEBERG_CATALOG__PROD__TYPE", "sql")
    monkeypatch.setenv("PYICEBERG_CATALOG__PROD__URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__PROD__WAREHOUSE", f"file://{tmp_path}/warehouse")
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())  # read once, when the package is imported
    with load_catalog("prod") as catalog:
        catalog.create_namespace("ml")
        yield catalog


def rows(start, count):
    """Return columns that sum3 scores."""
    numbers = np.arange(start, start + count)
    return {"id": numbers, **{name: numbers.astype(np.float32) for name in "abc"}}


def source(folder, days=DAYS, count=40):
    """Write a file for each day, and return the folder."""
    for n, day in enumerate(days):
        write(folder / f"day={day}" / "p.parquet", rows(1000 * n, count), row_group_size=20)
    return folder


def options(more):
    return {"format": "iceberg", "feed": "x=a,b,c", "cluster": "synchronous", "tune": False} | more


def score(given, **more):
    """Score into the table."""
    return scorer.run(given, SUM, NAME, **options(more))


def problems(given, **more):
    """Return the problems of a run into the table."""
    return scorer.prepare(given, SUM, NAME, **options(more)).problems


def ids(prod, snapshot=None):
    """Return the ids in the table, sorted."""
    return sorted(prod.load_table("ml.scores").scan(snapshot_id=snapshot).to_arrow()["id"].to_pylist())


def expected(days=2, count=40):
    """Return the ids that `source` writes."""
    return [1000 * n + i for n in range(days) for i in range(count)]


def test_four_readers_see_the_same_values(tmp_path, prod):
    given = {
        "u32": pa.array([0, None, 2**32 - 1], pa.uint32()),
        "i8": pa.array([-128, None, 127], pa.int8()),
        "text": pa.array(["", None, "ü"]),
        "category": pa.array(["x", None, "y"]).dictionary_encode(),
        "at": pa.array([1, None, -1], pa.timestamp("us", "UTC")),
        "pair": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.float32(), 2)),
        "place": pa.array([{"lat": 1.5, "n": 200}, None, {"lat": None, "n": 0}], pa.struct({"lat": "f4", "n": "u1"})),
        "counts": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int64())),
    }
    score(write(tmp_path / "in.parquet", rows(0, 3) | given))
    table = prod.load_table("ml.scores")
    by_library = table.scan().to_arrow()
    files = [task.file.file_path.removeprefix("file://") for task in table.scan().plan_files()]
    plain = pa.concat_tables([pq.ParquetFile(file).read() for file in files])
    for name, column in given.items():
        want = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        assert by_library[name].to_pylist() == want.to_pylist(), name
        assert plain[name].to_pylist() == want.to_pylist(), name
    assert (plain["u32"].type, plain["i8"].type) == (pa.int64(), pa.int32())
    polars = pl.scan_iceberg(table).collect().to_arrow()
    by_duckdb = duckdb.connect().sql(f"select * from read_parquet({files!r})").to_arrow_table()
    for other in (polars, by_duckdb):
        assert [other[name].to_pylist() for name in plain.column_names] == [column.to_pylist() for column in plain]
    assert by_library["total"].to_pylist() == [0.0, 3.0, 6.0]
    ids_ = [field.metadata[b"PARQUET:field_id"] for field in pq.ParquetFile(files[0]).schema_arrow]
    assert ids_ == [str(field.field_id).encode() for field in table.schema().fields]


@pytest.mark.slow
def test_rows_are_added_once_and_replace_others(tmp_path, prod):
    given = source(tmp_path / "in")
    report = score(given)
    first = prod.load_table("ml.scores").current_snapshot()
    assert report.notes[-1] == f"the rows are in snapshot {first.snapshot_id} of the table"
    assert (ids(prod), first.summary["scorer.rows"]) == (expected(), "80")
    assert score(given).already_done
    few = source(tmp_path / "few", count=3)
    score(few, mode="append")
    assert score(few, mode="append").already_done
    assert ids(prod) == sorted(expected() + expected(count=3))
    score(few, mode=f"replace day = '{DAYS[0]}'", where=f"day = '{DAYS[0]}'")
    assert ids(prod) == sorted(expected(1, 3) + [i for i in expected() + expected(count=3) if i >= 1000])
    score(few, mode="overwrite")
    assert (ids(prod), ids(prod, first.snapshot_id)) == (expected(count=3), expected())
    table = prod.load_table("ml.scores")
    assert len(table.snapshots()) == 4  # one for each run
    assert [field.name for field in table.spec().fields] == ["day"]
    assert verify(Place.at(NAME, None), deep=True).whole
    assert cli("status", NAME)[1].startswith("done")
    assert problems(given, mode="append") == ()
    assert problems(few, mode="append")[0].what == "the table has the rows of this request already"


@pytest.mark.slow
@pytest.mark.parametrize("mode", [f"replace day = '{DAYS[0]}'", "overwrite"])
def test_a_reader_that_stays_at_a_snapshot_sees_its_rows_while_they_are_replaced(tmp_path, prod, mode):
    score(source(tmp_path / "in"))
    table = prod.load_table("ml.scores")
    pinned = table.current_snapshot().snapshot_id
    scan = table.scan(snapshot_id=pinned)
    planned = list(scan.plan_files())
    where = {"where": f"day = '{DAYS[0]}'"} if mode.startswith("replace") else {}
    score(source(tmp_path / "few", count=3), mode=mode, **where)
    assert sorted(scan.to_arrow()["id"].to_pylist()) == expected()
    assert (
        sorted(
            i
            for task in planned
            for i in pq.ParquetFile(task.file.file_path.removeprefix("file://")).read(["id"])["id"].to_pylist()
        )
        == expected()
    )
    assert ids(prod, pinned) == expected()
    new = expected(count=3) if mode == "overwrite" else [*range(3), *range(1000, 1040)]
    assert ids(prod) == new
    metadata = prod.load_table("ml.scores").metadata_location.removeprefix("file://")
    again = {"keep": "id", "feed": "x=a,b,c", "fetch": "total=t", "cluster": "synchronous", "tune": False}
    assert scorer.run(metadata, SUM, tmp_path / "again", input_snapshot=str(pinned), **again).counts.rows == 80


def test_partitions_with_odd_values_come_back(tmp_path, prod):
    values = {"São Paulo/%": "S%C3%A3o Paulo%2F%25", None: "__HIVE_DEFAULT_PARTITION__"}
    for n, folder in enumerate(values.values()):
        write(tmp_path / "in" / f"city={folder}" / "n=1" / "p.parquet", rows(100 * n, 10))
    score(tmp_path / "in", partition_by=["n", "city"])
    found = prod.load_table("ml.scores").scan().to_arrow()
    columns = (found[name].to_pylist() for name in ("city", "n", "id"))
    assert {(city, n, id_ // 100) for city, n, id_ in zip(*columns, strict=True)} == {
        (city, 1, n) for n, city in enumerate(values)
    }
    assert prod.load_table("ml.scores").scan(row_filter="city is null").to_arrow().num_rows == 10


def test_rows_are_added_to_a_table_whose_columns_have_other_ids(tmp_path, prod):
    table = prod.create_table("ml.scores", pa.schema({"gone": pa.int64(), "total": pa.float32(), "key": pa.int64()}))
    with table.update_schema() as update:
        update.delete_column("gone")
        update.rename_column("key", "id")
    score(write(tmp_path / "in.parquet", rows(0, 5)), mode="append", keep=["id"])
    found = prod.load_table("ml.scores").scan().to_arrow()
    assert found["id"].to_pylist() == [0, 1, 2, 3, 4]
    assert found["total"].to_pylist() == [0.0, 3.0, 6.0, 9.0, 12.0]


@pytest.mark.parametrize(
    ("fields", "transform", "found"),
    [
        ({"total": FloatType(), "id": StringType()}, None, "id: int64, in the table large_string"),
        ({"total": FloatType(), "id": LongType(), "x": LongType()}, None, "x: only in the table"),
        ({"total": FloatType(), "id": LongType(), "at": TimestampType()}, DayTransform(), "partitions by day"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, prod, fields, transform, found):
    schema = Schema(*(NestedField(n, name, kind) for n, (name, kind) in enumerate(fields.items(), 1)))
    spec = PartitionSpec(*([PartitionField(3, 1000, transform, "at_day")] if transform else []))
    prod.create_table("ml.scores", schema, partition_spec=spec)
    refused = problems(write(tmp_path / "in.parquet", rows(0, 5)), mode="append", keep=["id"])
    assert any(found in problem.found for problem in refused)
    assert prod.load_table("ml.scores").current_snapshot() is None


def test_a_catalog_a_namespace_and_flags_that_do_not_fit_are_named(tmp_path):
    given = write(tmp_path / "in.parquet", rows(0, 5))
    for name, what in {
        "iceberg://prod/other.scores": "the namespace of the new table cannot be used",
        "iceberg://nowhere/ml.scores": "the Iceberg catalog cannot be used",
        "iceberg://prod/scores": "this URL names no Iceberg table",
    }.items():
        code, _, err = cli("run", given, "--model", SUM, "-o", name, "--format", "iceberg", "--feed", "x=a,b,c")
        assert (code > 0, what in err) == (True, True), err
        assert "Hint: " in err
    for more in ({"output": NAME}, {"output": str(tmp_path / "out"), "format": "iceberg"}, {"format": "iceberg"}):
        with pytest.raises(PreflightError, match="an Iceberg table is named by its catalog"):
            scorer.prepare(given, SUM, **more)


def test_a_run_that_ends_at_its_commit_is_finished_by_the_same_command(tmp_path, prod, monkeypatch):
    given, real = source(tmp_path / "in"), iceberg_commit.try_commit
    for when, count in (("before", 0), ("after", 1)):

        def ended(*arguments, when=when):
            if when == "after":
                real(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(iceberg_commit, "try_commit", ended)
            with pytest.raises(KeyboardInterrupt):
                score(given, mode="append", prefix=f"{when}_") if count else score(given, mode="append")
        if not count:
            assert not prod.table_exists("ml.scores")
            score(given, mode="append")
            prod.drop_table("ml.scores")
            shutil.rmtree(Place.at(NAME, None).output)
    score(given, mode="append", prefix="after_")
    assert ids(prod) == expected()
    assert len(prod.load_table("ml.scores").snapshots()) == 1
    assert verify(Place.at(NAME, None)).whole


def test_a_lost_answer_and_commits_of_others_do_not_double_the_rows(tmp_path, prod, monkeypatch):
    given = source(tmp_path / "in")
    score(given)
    table, real, tries = prod.load_table("ml.scores"), iceberg_commit.refuse_changed, []

    def overtaken(*arguments):
        real(*arguments)
        tries.append(1)
        if len(tries) < 3:
            prod.load_table("ml.scores").append(table.scan(limit=1).to_arrow())

    monkeypatch.setattr(iceberg_commit, "refuse_changed", overtaken)
    monkeypatch.setattr(publish_table, "_WAIT_S", 0.0)
    taken = iceberg_commit.try_commit
    monkeypatch.setattr(iceberg_commit, "try_commit", lambda *given: taken(*given) or OSError("connection reset"))
    score(source(tmp_path / "more", count=7), mode="append")
    assert len(tries) == 3
    assert len(ids(prod)) == 80 + 14 + 2
    left = {path.name for path in Place.at(NAME, None).output.rglob("part-*.parquet")}
    listed = {task.file.file_path.rpartition("/")[2] for task in prod.load_table("ml.scores").scan().plan_files()}
    assert left <= listed


def test_clean_removes_the_parts_of_an_unfinished_run(tmp_path, prod, monkeypatch):
    score(source(tmp_path / "in"))
    top = Place.at(NAME, None).output
    before = set(top.rglob("part-*"))

    def ended(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("scorer.output.ledger.write_proof", ended)
        with pytest.raises(KeyboardInterrupt):
            score(source(tmp_path / "more", count=5), mode="append")
    assert set(top.rglob("part-*")) > before
    assert cli("clean", NAME)[0] == 0
    assert set(top.rglob("part-*")) == before
    assert ids(prod) == expected()


def test_a_table_that_another_program_created_meanwhile_is_left_alone(tmp_path, prod, monkeypatch):
    given = source(tmp_path / "in")

    def ended(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publish_table, "_commit_once", ended)
        with pytest.raises(KeyboardInterrupt):
            score(given)
    prod.create_table("ml.scores", pa.schema({"other": pa.int64()}))
    with pytest.raises(CommitError, match="created or changed during the run"):
        score(given)
    assert prod.load_table("ml.scores").current_snapshot() is None


def command(given, *more):
    """Return a command with small parts, so that there is time to interrupt it."""
    return [
        sys.executable, "-m", "scorer", "run", str(given), "--model", str(SUM), "--feed", "x=a,b,c", "-o", NAME,
        "--format", "iceberg", "--mode", "append", "--batch-rows", "4", "--part-bytes", "10000", "--quiet", *more,
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["a part", "the proof", "the commit"])
def test_a_killed_run_is_seen_as_a_whole_or_not_at_all_and_the_same_command_finishes_it(tmp_path, prod, moment):
    given, place = source(tmp_path / "in", count=4000), Place.at(NAME, None)
    reached = {
        "a part": lambda: any(place.output.rglob("part-*.parquet")),
        "the proof": lambda: any(place.folder.glob("work-*/ledger.parquet")),
        "the commit": lambda: prod.table_exists("ml.scores"),
    }[moment]
    run = subprocess.Popen(command(given), start_new_session=True)
    while run.poll() is None and not reached():
        time.sleep(0.002)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert not prod.table_exists("ml.scores") or ids(prod) == sorted(expected(count=4000))
    done = subprocess.run(command(given), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ids(prod) == sorted(expected(count=4000))
    assert verify(place).whole
    assert json.loads((place.folder / "manifest.json").read_text())["table"]["commit"] == 1


@pytest.mark.slow
def test_drivers_with_work_folders_of_their_own_add_their_rows_once(tmp_path, prod):
    first, second = source(tmp_path / "first"), source(tmp_path / "second", count=7)
    codes, said = run_at_once(
        [command(given, "--work-dir", tmp_path / f"work-{n}") for n, given in enumerate([first, second, second])]
    )
    assert codes[0] == 0, said[0]
    assert 0 in codes[1:], said
    assert ids(prod) == sorted(expected() + expected(count=7))
