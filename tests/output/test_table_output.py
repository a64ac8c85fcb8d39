"""A Delta table as the output: one commit shows all rows of a run or none, whatever happens in between."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import date, datetime
from decimal import Decimal

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from support.drivers import run_at_once
from support.runs import MODELS, ROOT, cli, write

import scorer
from scorer.api.cleaning import clean
from scorer.api.verification import check as verify
from scorer.errors import CommitError, PreflightError
from scorer.output import publish_table
from scorer.output.place import Place
from scorer.plan.frozen import FrozenPlan
from scorer.tables import delta_commit

SUM = MODELS / "sum3.onnx"
DAYS = ("2026-01-01", "2026-01-02")


def rows(start, count, **more):
    """Return columns that sum3 scores, and their total."""
    numbers = np.arange(start, start + count)
    table = {"id": numbers, **{name: numbers.astype(np.float32) for name in "abc"}, **more}
    return {name: values[:count] if len(values) > count else values for name, values in table.items()}


def source(folder, days=DAYS, count=40):
    """Write two files with 40 rows each for each day, and return the folder."""
    for n, day in enumerate(days):
        for i in range(2):
            write(folder / f"day={day}" / f"p{i}.parquet", rows(1000 * n + 100 * i, count), row_group_size=20)
    return folder


def score(given, output, **options):
    """Score into a Delta table."""
    options = {"format": "delta", "feed": "x=a,b,c", "cluster": "synchronous", "tune": False} | options
    return scorer.run(given, SUM, output, **options)


def problems(given, output, **options):
    """Return the problems of a run into a Delta table."""
    options = {"format": "delta", "feed": "x=a,b,c", "cluster": "synchronous", "tune": False} | options
    return scorer.prepare(given, SUM, output, **options).problems


def ids(output, version=None):
    """Return the ids in a table, sorted."""
    return sorted(DeltaTable(output, version).to_pyarrow_table(columns=["id"])["id"].to_pylist())


def expected(days=2, count=40):
    """Return the ids that `source` writes."""
    return sorted(
        i for n in range(days) for f in range(2) for i in range(1000 * n + 100 * f, 1000 * n + 100 * f + count)
    )


def parts_of(output):
    """Return the names of the files in a table's folder that are not its log's."""
    return {str(path.relative_to(output)) for path in output.rglob("*.parquet") if "_delta_log" not in path.parts}


# -- values and types


EVERY_TYPE = {
    "flag": pa.array([True, None, False]),
    "i8": pa.array([-128, None, 127], pa.int8()),
    "u8": pa.array([0, None, 255], pa.uint8()),
    "u16": pa.array([0, None, 65_535], pa.uint16()),
    "u32": pa.array([0, None, 2**32 - 1], pa.uint32()),
    "f64": pa.array([0.1, None, -1e300]),
    "text": pa.array(["", None, "ü 'x'"]),
    "bytes": pa.array([b"", None, b"\xff"]),
    "fixed": pa.array([b"ab", None, b"cd"], pa.binary(2)),
    "category": pa.array(["x", None, "y"]).dictionary_encode(),
    "day": pa.array([date(1, 1, 1), None, date(9999, 12, 31)]),
    "at": pa.array([datetime(2026, 1, 1, 1, 2, 3, 4000), None, datetime(1969, 1, 1)], pa.timestamp("ms")),  # noqa: DTZ001
    "at_zone": pa.array([1, None, -1], pa.timestamp("us", "Europe/Berlin")),
    "price": pa.array([Decimal("1.25"), None, Decimal("-99999.99")], pa.decimal128(7, 2)),
    "pair": pa.array([[1, 2], None, [3, 2**32 - 1]], pa.list_(pa.uint32(), 2)),
    "words": pa.array([["a"], None, []], pa.list_(pa.string())),
    "place": pa.array(
        [{"lat": 1.5, "n": 200}, None, {"lat": None, "n": 0}], pa.struct([("lat", pa.float32()), ("n", pa.uint8())])
    ),
}


def test_four_readers_see_the_same_values_and_types(tmp_path):
    given = write(tmp_path / "in.parquet", rows(0, 3) | EVERY_TYPE)
    output = tmp_path / "out"
    report = score(given, output)
    assert any("'u32' (uint32 as int64)" in note for note in report.notes)
    table = DeltaTable(output)
    files = table.file_uris()
    by_library = table.to_pyarrow_table()
    plain = pa.concat_tables([pq.ParquetFile(file).read() for file in files])
    for name, column in EVERY_TYPE.items():
        want = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        assert plain[name].to_pylist() == want.to_pylist(), name
        assert by_library[name].to_pylist() == want.to_pylist(), name
        assert by_library.schema.field(name).type.equals(plain.schema.field(name).type), name
    assert plain["u32"].type == pa.int64()
    polars = pl.read_delta(str(output))
    assert polars.equals(pl.from_arrow(by_library))
    by_duckdb = duckdb.connect().sql(f"select * from read_parquet({files!r})").to_arrow_table()
    assert by_duckdb.column_names == by_library.column_names
    for name in by_library.column_names:
        assert by_duckdb[name].to_pylist() == by_library[name].to_pylist(), name
    assert by_library["total"].to_pylist() == [0.0, 3.0, 6.0]


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("u64", pa.array([1], pa.uint64())),
        ("half", pa.array([np.float16(1)], pa.float16())),
        ("clock", pa.array([1], pa.time64("us"))),
        ("took", pa.array([1], pa.duration("s"))),
        ("at", pa.array([1], pa.timestamp("ns"))),
        ("inside", pa.array([[{"n": 1}]], pa.list_(pa.struct([("n", pa.uint64())])))),
    ],
)
def test_a_type_that_tables_do_not_have_is_refused_by_name(tmp_path, name, column):
    given = write(tmp_path / "in.parquet", rows(0, 1) | {name: column})
    (problem,) = problems(given, tmp_path / "out")
    assert problem.what == "columns cannot be held by a Delta table"
    assert problem.found == f"{name}: {column.type}".replace("item:", "element:")
    assert "--keep" in problem.hint
    assert score(given, tmp_path / "out", keep=["id"]).counts.scored == 1


def test_names_that_differ_in_case_only_are_refused(tmp_path):
    given = write(tmp_path / "in.parquet", rows(0, 1) | {"ID": [1]})
    (problem,) = problems(given, tmp_path / "out")
    assert "upper and lower case" in problem.what
    assert problem.found == "'id', 'ID'"


def test_the_log_has_counts_and_ranges_that_are_right(tmp_path):
    numbers = rows(5, 40)
    numbers["a"] = numbers["a"].copy()
    numbers["a"][3] = np.nan
    long_text = "x" * 40
    texts = ["b", None, "a", *["c"] * 37]
    times = pa.array([datetime(2026, 1, 1, 0, 0, 0, 1), *[None] * 39], pa.timestamp("us"))  # noqa: DTZ001
    given = write(tmp_path / "in.parquet", numbers | {"text": texts, "long": [long_text] * 40, "at": times})
    score(given, tmp_path / "out", on_null="nan")
    (added,) = [json.loads(line)["add"] for line in _log(tmp_path / "out", 0) if '"add"' in line]
    statistics = json.loads(added["stats"])
    assert statistics["numRecords"] == 40
    assert statistics["nullCount"]["text"] == 1
    assert (statistics["minValues"]["id"], statistics["maxValues"]["id"]) == (5, 44)
    assert (statistics["minValues"]["text"], statistics["maxValues"]["text"]) == ("a", "c")
    assert statistics["minValues"]["at"] == "2026-01-01T00:00:00.000"
    assert statistics["maxValues"]["at"] == "2026-01-01T00:00:00.001"
    assert "a" not in statistics["minValues"]  # a kept float, which may have NaN
    assert "total" not in statistics["minValues"]  # one total is NaN
    assert "long" not in statistics["minValues"]
    assert added["size"] == (tmp_path / "out" / added["path"]).stat().st_size


def test_scores_without_nan_have_a_range(tmp_path):
    score(write(tmp_path / "in.parquet", rows(0, 40)), tmp_path / "out")
    (added,) = [json.loads(line)["add"] for line in _log(tmp_path / "out", 0) if '"add"' in line]
    assert json.loads(added["stats"])["maxValues"]["total"] == 117.0
    assert DeltaTable(tmp_path / "out").to_pyarrow_dataset().filter(pa.compute.field("total") > 116).count_rows() == 1


def _log(output, version):
    return (output / "_delta_log" / f"{version:020d}.json").read_text().splitlines()


# -- modes


def test_a_new_table_has_the_partitions_of_the_input_and_one_version(tmp_path):
    output = tmp_path / "out"
    report = score(source(tmp_path / "in"), output)
    table = DeltaTable(output)
    assert (table.version(), table.metadata().partition_columns) == (0, ["day"])
    assert ids(output) == expected()
    days = table.to_pyarrow_table(filters=[("day", "=", DAYS[0])])
    assert sorted(days["id"].to_pylist()) == expected(1)
    assert report.notes[-1] == "the rows are in version 0 of the table"
    history = table.history()[0]
    assert (history["scorer.rows"], history["scorer.plan"]) == ("160", report.plan)
    assert verify(Place.at(output, None), deep=True).whole
    assert [line for line in _log(output, 0) if '"txn"' in line]


def test_partition_values_with_odd_characters_and_nulls_come_back(tmp_path):
    values = {"São Paulo/%": "S%C3%A3o Paulo%2F%25", "a b=c": "a b%3Dc", None: "__HIVE_DEFAULT_PARTITION__"}
    for n, folder in enumerate(values.values()):
        write(tmp_path / "in" / f"city={folder}" / "n=1" / "p.parquet", rows(100 * n, 10))
    score(tmp_path / "in", tmp_path / "out", partition_by=["n", "city"])
    table = DeltaTable(tmp_path / "out").to_pyarrow_table()
    found = {
        (city, n, id_ // 100) for city, n, id_ in zip(*(table[c].to_pylist() for c in ("city", "n", "id")), strict=True)
    }
    assert found == {(city, 1, n) for n, city in enumerate(values)}
    assert DeltaTable(tmp_path / "out").metadata().partition_columns == ["n", "city"]
    assert verify(Place.at(tmp_path / "out", None)).whole


def test_the_same_command_twice_adds_the_rows_once(tmp_path):
    given, output = source(tmp_path / "in"), tmp_path / "out"
    write_deltalake(
        output,
        pa.table({**rows(9000, 5), "total": pa.array([0.0] * 5, pa.float32()), "day": ["x"] * 5}),
        partition_by=["day"],
    )
    for done in (False, True, True):
        assert score(given, output, mode="append").already_done is done
    assert ids(output) == [*expected(), *range(9000, 9005)]
    assert DeltaTable(output).version() == 1


def test_a_request_whose_rows_were_added_before_another_one_is_refused(tmp_path):
    first, second = source(tmp_path / "first", DAYS[:1]), source(tmp_path / "second", DAYS[1:], 7)
    output = tmp_path / "out"
    for given in (first, second):
        score(given, output, mode="append")
    (problem,) = problems(first, output, mode="append")
    assert problem.what == "the table has the rows of this request already"
    shutil.rmtree(tmp_path / "out.scorer")
    assert problems(second, output, mode="append")[0].what == problem.what
    assert len(ids(output)) == 94


def test_overwriting_replaces_all_rows_and_keeps_the_older_version(tmp_path):
    output = tmp_path / "out"
    score(source(tmp_path / "in"), output)
    other = source(tmp_path / "other", count=3)
    score(other, output, mode="overwrite")
    assert (ids(output), ids(output, 0)) == (expected(count=3), expected())
    assert score(other, output, mode="overwrite").already_done
    write_deltalake(output, DeltaTable(output, 0).to_pyarrow_table(), mode="overwrite", partition_by=["day"])
    assert not score(other, output, mode="overwrite").already_done  # its rows are not in the table any more
    assert ids(output) == expected(count=3)


def test_a_reader_of_the_older_version_is_not_disturbed_while_a_partition_is_replaced(tmp_path):
    given, output = source(tmp_path / "in"), tmp_path / "out"
    score(given, output)
    pinned = DeltaTable(output, 0)
    files = set(pinned.file_uris())
    for i in range(2):
        write(tmp_path / "in" / f"day={DAYS[0]}" / f"p{i}.parquet", rows(5000 + 100 * i, 40))
    for mode in (f"replace day = '{DAYS[0]}'",):
        score(given, output, mode=mode, where=f"day = '{DAYS[0]}'")
    assert sorted(pinned.to_pyarrow_table()["id"].to_pylist()) == expected()
    assert set(DeltaTable(output, 0).file_uris()) == files
    assert ids(output) == [*range(1000, 1040), *range(1100, 1140), *range(5000, 5040), *range(5100, 5140)]
    assert verify(Place.at(output, None), deep=True).whole


@pytest.mark.parametrize(
    ("mode", "what", "found"),
    [
        ("replace day = '2026-01-01'", "the input has rows of partitions that are not replaced", "day=2026-01-02"),
        ("replace id = 4", "--mode replace names a column that is no partition column", "'id'"),
        ("replace day > '2026-01-01'", "the condition of --mode replace cannot be used", "day >"),
        ("replace day", "the condition of --mode replace cannot be used", "'day'"),
    ],
)
def test_a_replacement_that_is_not_whole_partitions_is_refused(tmp_path, mode, what, found):
    (problem,) = problems(source(tmp_path / "in"), tmp_path / "out", mode=mode)
    assert problem.what == what
    assert found in problem.found


def test_parts_without_rows_are_not_in_the_table(tmp_path):
    given, output = source(tmp_path / "in"), tmp_path / "out"
    score(given, output, where=["id < 1010", "id >= 1000"])
    assert ids(output) == list(range(1000, 1010))
    assert parts_of(output) == {DeltaTable(output).get_add_actions().column("path")[0].as_py()}
    assert verify(Place.at(output, None)).whole


def test_no_row_at_all_gives_an_empty_table_with_the_columns(tmp_path):
    score(source(tmp_path / "in"), tmp_path / "out", where=["id < 0"])
    table = DeltaTable(tmp_path / "out").to_pyarrow_table()
    assert (table.num_rows, table.column_names) == (0, ["id", "a", "b", "c", "total", "day"])


def test_text_keys_of_folders_take_the_types_of_the_tables_partitions(tmp_path):
    output = tmp_path / "out"
    theirs = {**rows(9000, 1), "total": pa.array([0.0], pa.float32()), "day": [date(2025, 1, 1)]}
    write_deltalake(output, pa.table(theirs), partition_by=["day"])
    score(source(tmp_path / "in"), output, mode="append")
    days = DeltaTable(output).to_pyarrow_table()["day"]
    assert days.type == pa.date32()
    assert set(days.to_pylist()) == {date(2025, 1, 1), date(2026, 1, 1), date(2026, 1, 2)}
    (problem,) = problems(source(tmp_path / "other", ("no-date",)), output, mode="append")
    assert problem.found == "day: string, in the table date32[day]"


@pytest.mark.parametrize("name", ["a b", "ü+&"])
def test_the_name_of_a_table_may_have_spaces_and_other_letters(tmp_path, name):
    score(write(tmp_path / "in.parquet", rows(0, 3)), tmp_path / name)
    assert verify(Place.at(tmp_path / name, None)).whole
    assert DeltaTable(tmp_path / name).to_pyarrow_table().num_rows == 3


@pytest.mark.parametrize("name", ["50%20", "x#1", "a?"])
def test_a_name_that_the_library_takes_for_an_encoded_one_is_refused(tmp_path, name):
    (problem,) = problems(write(tmp_path / "in.parquet", rows(0, 3)), tmp_path / name)
    assert problem.what == "the path of the table has letters that its library reads as another path"
    assert problem.found in name


def test_a_run_is_done_although_the_log_has_forgotten_its_commit(tmp_path):
    given, output = source(tmp_path / "in"), tmp_path / "out"
    score(given, output, mode="append")
    for _ in range(2):
        write_deltalake(output, DeltaTable(output).to_pyarrow_table().slice(0, 1), mode="append")
    DeltaTable(output).create_checkpoint()
    for version in (0, 1):
        (output / "_delta_log" / f"{version:020d}.json").unlink()
    assert score(given, output, mode="append").already_done
    assert verify(Place.at(output, None)).faults == ()
    shutil.rmtree(output)
    assert not score(given, output, mode="append").already_done
    assert ids(output) == expected()


# -- refusals


def test_an_existing_table_is_refused_without_a_mode(tmp_path):
    output = tmp_path / "out"
    score(source(tmp_path / "in"), output)
    (problem,) = problems(source(tmp_path / "other", count=2), output)
    assert (problem.what, problem.exit_code) == ("the table exists", 3)
    assert "--mode append" in problem.hint


def test_differences_of_columns_are_named(tmp_path):
    output = tmp_path / "out"
    theirs = {**rows(0, 2), "b": ["x", "y"], "total": pa.array([0.0] * 2, pa.float32()), "more": [1, 2]}
    write_deltalake(output, pa.table(theirs))
    given = write(tmp_path / "in.parquet", rows(0, 3) | {"extra": [1, 2, 3]})
    (problem,) = problems(given, output, mode="append")
    assert problem.what == "the output does not have the columns of the table"
    assert problem.found == "b: float, in the table string; extra: int64 is not in the table; more: only in the table"
    assert len(ids(output)) == 2


def test_other_partition_columns_are_refused(tmp_path):
    output = tmp_path / "out"
    write_deltalake(output, pa.table({**rows(0, 2), "total": pa.array([0.0] * 2, pa.float32()), "day": ["a", "b"]}))
    (problem,) = problems(source(tmp_path / "in"), output, mode="append")
    assert "partition columns" in problem.what
    (problem,) = problems(source(tmp_path / "in"), tmp_path / "new", partition_by=["id"])
    assert problem.found == "partitions by 'id'"


@pytest.mark.parametrize(
    ("configuration", "mode", "found"),
    [
        ({"delta.appendOnly": "true"}, "overwrite", "'appendOnly, with --mode overwrite'"),
        ({"delta.appendOnly": "true"}, "append", ""),
        ({"delta.enableChangeDataFeed": "true"}, "append", ""),
        ({"delta.constraints.positive": "id >= 0"}, "append", "'checkConstraints'"),
    ],
)
def test_features_that_ask_more_of_a_writer_are_refused_by_name(tmp_path, configuration, mode, found):
    output = tmp_path / "out"
    constraint = {name: value for name, value in configuration.items() if "constraints" in name}
    table = pa.table({**rows(0, 2), "total": pa.array([0.0] * 2, pa.float32())})
    write_deltalake(output, table, configuration={n: v for n, v in configuration.items() if n not in constraint})
    for name, value in constraint.items():
        DeltaTable(output).alter.add_constraint({name.rpartition(".")[2]: value})
    given = write(tmp_path / "in.parquet", rows(10, 3))
    refused = problems(given, output, mode=mode)
    assert [problem.found for problem in refused] == ([found] if found else [])
    if not found:
        score(given, output, mode=mode)
        assert ids(output) == [0, 1, 10, 11, 12]


def test_a_folder_with_other_files_is_not_made_a_table(tmp_path):
    write(tmp_path / "out" / "mine.parquet", {"a": [1]})
    (problem,) = problems(write(tmp_path / "in.parquet", rows(0, 3)), tmp_path / "out")
    assert problem.what == "the folder of the new table holds files"
    assert problem.found == "'mine.parquet'"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"format": "parquet", "mode": "append"}, "--mode is for tables"),
        ({"format": "parquet", "partition_by": ["day"]}, "--partition-by is for tables"),
        ({"overwrite": True}, "--overwrite cannot be used with a table"),
        ({"success_file": True}, "--success-file cannot be used with a table"),
        ({"mode": "merge"}, "the value of 'mode' is not valid"),
        ({"format": "orc"}, "the value of 'format' is not valid"),
    ],
)
def test_options_that_contradict_a_table_are_refused(tmp_path, options, what):
    with pytest.raises(PreflightError) as refused:
        problems(tmp_path / "in.parquet", tmp_path / "out", **options)
    assert [problem.what for problem in refused.value.problems] == [what]


# -- interruptions


def staged(given, output, monkeypatch, **options):
    """Run until everything is staged, and stop before the commit."""
    with monkeypatch.context() as patch:
        patch.setattr(publish_table, "_commit_once", _stopped)
        with pytest.raises(KeyboardInterrupt):
            score(given, output, **options)


def _stopped(*_):
    raise KeyboardInterrupt


def test_nothing_is_seen_before_the_commit_and_the_same_command_makes_it(tmp_path, monkeypatch):
    given, output = source(tmp_path / "in"), tmp_path / "out"
    staged(given, output, monkeypatch)
    assert len(parts_of(output)) == 2
    assert not DeltaTable.is_deltatable(str(output))
    assert cli("status", output)[1].startswith("unfinished")
    score(given, output)
    assert ids(output) == expected()
    assert verify(Place.at(output, None), deep=True).whole


def test_a_lost_answer_does_not_double_the_rows(tmp_path, monkeypatch):
    given, output = source(tmp_path / "in"), tmp_path / "out"
    tried, real = [], delta_commit.try_commit

    def lost(*arguments):
        tried.append(real(*arguments))
        return OSError("connection reset")

    monkeypatch.setattr(delta_commit, "try_commit", lost)
    score(given, output, mode="append")
    assert tried == [None]
    assert ids(output) == expected()


def test_commits_of_others_are_passed_over_and_five_of_them_end_the_run(tmp_path, monkeypatch):
    given, output = source(tmp_path / "in"), tmp_path / "out"
    theirs = pa.table({**rows(9000, 1), "total": pa.array([0.0], pa.float32()), "day": ["x"]})
    write_deltalake(output, theirs, partition_by=["day"])
    real, others = delta_commit.refuse_changed, []

    def overtaken(location, *arguments):
        real(location, *arguments)
        if len(others) < limit:
            others.append(write_deltalake(location, theirs, mode="append"))

    monkeypatch.setattr(delta_commit, "refuse_changed", overtaken)
    monkeypatch.setattr(publish_table, "_WAIT_S", 0.0)
    limit = 2
    score(given, output, mode="append")
    assert ids(output) == [*expected(), 9000, 9000, 9000]
    others.clear()
    limit = 5
    with pytest.raises(CommitError, match="did not take the commit"):
        score(given, output, mode="overwrite")
    assert len(ids(output)) == 168
    score(given, output, mode="overwrite")
    assert ids(output) == expected()


def test_a_table_that_another_program_created_meanwhile_is_left_alone(tmp_path, monkeypatch):
    given, output = source(tmp_path / "in"), tmp_path / "out"
    staged(given, output, monkeypatch)
    write_deltalake(output, pa.table({"other": [1]}))
    with pytest.raises(CommitError, match="created or changed during the run"):
        score(given, output)
    assert DeltaTable(output).to_pyarrow_table().column_names == ["other"]


def test_clean_removes_the_parts_of_an_unfinished_run_and_nothing_of_the_table(tmp_path, monkeypatch):
    output = tmp_path / "out"
    score(source(tmp_path / "in", count=5), output)
    live = parts_of(output)
    more = source(tmp_path / "more", ("2026-02-01",))
    code, _, err = cli(
        "run",
        more,
        "--model",
        SUM,
        "-o",
        output,
        "--feed",
        "x=a,b,c",
        "--format",
        "delta",
        "--limit",
        "1",
        "--overwrite",
    )
    assert (code, "--overwrite cannot be used" in err) == (2, True)
    _interrupted(more, output, monkeypatch)
    assert len(parts_of(output)) > len(live)
    other = problems(source(tmp_path / "third", count=1), output, mode="append")
    assert "discard it with `scorer clean OUT`" in other[0].hint
    cleaned = clean(Place.at(output, None), print)
    assert any(name.endswith(".parquet") for name in cleaned.removed)
    assert parts_of(output) == live
    assert not (output / "day=2026-02-01").exists()
    assert ids(output) == expected(count=5)


def _interrupted(given, output, monkeypatch):
    """Run until the parts are committed, and stop before the proof is staged."""
    with monkeypatch.context() as patch:
        patch.setattr("scorer.output.ledger.write_proof", _stopped)
        with pytest.raises(KeyboardInterrupt):
            score(given, output, mode="append")


# -- later


def test_verify_compares_the_log_with_the_ledger(tmp_path):
    output = tmp_path / "out"
    score(source(tmp_path / "in"), output)
    log = output / "_delta_log" / f"{0:020d}.json"
    lines = log.read_text().splitlines()
    log.write_text("\n".join(line for line in lines if f"day={DAYS[0]}" not in line) + "\n")
    verdict = verify(Place.at(output, None))
    assert [fault.partition(": ")[2] for fault in verdict.faults] == ["not in version 0 of the table"]


def test_verify_excuses_files_that_were_compacted_and_removed(tmp_path):
    output = tmp_path / "out"
    given = source(tmp_path / "in")
    score(given, output)
    write_deltalake(
        output, DeltaTable(output).to_pyarrow_table(filters=[("id", "<", 10)]), mode="overwrite", partition_by=["day"]
    )
    assert verify(Place.at(output, None)).whole  # the older version is still there
    DeltaTable(output).vacuum(0, dry_run=False, enforce_retention_duration=False)
    verdict = verify(Place.at(output, None))
    assert verdict.faults == ()
    assert "which the newest version of the table has no more" in verdict.unchecked[0]
    assert score(given, output).already_done


def test_the_plan_names_the_table_and_what_becomes_of_it(tmp_path):
    given, output = source(tmp_path / "in"), tmp_path / "out"
    score(given, output)
    more = write(tmp_path / "more" / f"day={DAYS[0]}" / "p.parquet", rows(0, 3)).parent.parent
    options = {"format": "delta", "feed": "x=a,b,c", "mode": f"replace day in ('{DAYS[0]}')"}
    plan = scorer.prepare(more, SUM, output, **options)
    assert f"a Delta table, version 0: the rows with day = {DAYS[0]} are replaced" in str(plan)
    assert plan.to_dict()["target"] == {
        "kind": "delta", "mode": "replace", "version": 0, "partition_by": ["day"], "replaced": [f"day = {DAYS[0]}"],
    }  # fmt: skip
    again = FrozenPlan.from_dict(json.loads(json.dumps(plan.frozen.to_dict())))
    assert (again.table, again.plan_hash) == (plan.frozen.table, plan.frozen.plan_hash)


# -- processes


@pytest.mark.slow
def test_a_killed_run_is_seen_as_a_whole_or_not_at_all_and_the_same_command_finishes_it():
    script = ROOT / "tests" / "faults" / "kill_table_runs.py"
    done = subprocess.run([sys.executable, script, "8", "--seed", "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["not there yet"] + found["there already"] >= 8


def together(given, output, tmp_path):
    """Run a driver for each input at once, with a work folder each; return their exit codes and what they wrote."""
    return run_at_once(
        [
            sys.executable, "-m", "scorer", "run", source, "--model", SUM, "--feed", "x=a,b,c", "-o", output,
            "--format", "delta", "--mode", "append", "--work-dir", tmp_path / f"work-{n}", "--quiet",
        ]
        for n, source in enumerate(given)
    )  # fmt: skip


@pytest.mark.slow
def test_two_drivers_of_one_request_at_once_add_its_rows_once(tmp_path):
    given, output = source(tmp_path / "in"), tmp_path / "out"
    codes, said = together([given, given], output, tmp_path)
    assert 0 in codes, said
    assert set(codes) <= {0, 3, 5}, said
    assert ids(output) == expected()


@pytest.mark.slow
def test_drivers_of_several_requests_at_once_add_all_their_rows(tmp_path):
    each = [write(tmp_path / f"in-{n}.parquet", rows(100 * n, 10)) for n in range(4)]
    codes, said = together(each, tmp_path / "out", tmp_path)
    assert codes == [0] * 4, said
    assert ids(tmp_path / "out") == [100 * n + i for n in range(4) for i in range(10)]
    assert DeltaTable(tmp_path / "out").version() == 3
    for n in range(4):
        assert verify(Place.at(tmp_path / "out", tmp_path / f"work-{n}")).whole
