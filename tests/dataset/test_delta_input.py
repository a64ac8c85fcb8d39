"""Delta tables as input: the rows that are scored are the live rows of the table's own reader, in every case."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import CommitProperties, DeltaTable, write_deltalake
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.delta_tables import commit, delete_rows, live, mapped_table
from support.runs import MODELS, cli

import scorer
from scorer.errors import InputChanged, PreflightError, RunFailed

MODEL = MODELS / "sum3.onnx"
FEEDS = ("a", "b", "c")


def rows(first, stop, **more):
    """Rows with the numbers first..stop, of which scores are known: three columns to feed, and others to keep."""
    ids = np.arange(first, stop)
    columns = {"id": ids, **{name: (ids % (i + 7)).astype(np.float32) for i, name in enumerate(FEEDS)}}
    return pa.table(columns | {"text": [f"row {i}" for i in ids]} | more)


def table(path, *pieces, **options):
    """Write a table, one version for each of the pieces."""
    for piece in pieces:
        write_deltalake(path, piece, mode="append", **options)
    return path


def run(path, output, **options):
    """Score a table in this thread."""
    given = {"feed": {"x": list(FEEDS)}, "cluster": "synchronous", "tune": False, "batch_rows": 64, **options}
    return scorer.run(path, MODEL, output, **given)


def scored(output, schema=None):
    """Return the rows of an output with the keys of its folders, sorted by id."""
    found = []
    for file in sorted(Path(output).rglob("*.parquet")):
        part = pq.ParquetFile(file).read()
        for pair in file.parent.relative_to(output).parts:
            key, _, value = pair.partition("=")
            text = None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
            column = pa.repeat(pa.scalar(text, pa.string()).cast(schema.field(key).type), part.num_rows)
            part = part.append_column(schema.field(key), column)
        found.append(part)
    return pa.concat_tables(found).sort_by("id")


def assert_exact(output, wanted):
    """The output has the wanted rows, each once, unchanged, and with its score."""
    got, wanted = scored(output, wanted.schema), wanted.sort_by("id")
    assert got.select(wanted.column_names).to_pylist() == wanted.to_pylist()
    sums = sum(wanted[name].to_numpy(zero_copy_only=False) for name in FEEDS)
    name = next(iter(set(got.column_names) - set(wanted.column_names)))
    np.testing.assert_array_equal(got[name].to_numpy(), sums)


@pytest.fixture
def deleted(tmp_path):
    """A table of three files, of which rows of two are deleted; one row group is dead, and another one is whole."""
    path = table(tmp_path / "table", rows(0, 1000), rows(1000, 2000), rows(2000, 2100))
    numbers = [0, 1, 63, 64, 65, 500, *range(600, 800), 999]
    delete_rows(path, {1: numbers, 0: [7]})
    return path


def test_only_live_rows_are_scored_and_deleted_ones_are_counted(deleted, tmp_path):
    out = tmp_path / "out"
    report = run(deleted, out)
    assert_exact(out, live(deleted))
    assert (report.counts.rows, report.counts.scored, report.counts.deleted) == (1892, 1892, 208)
    assert report.summary.endswith("; 208 more are deleted in the table")
    assert any(note == "a Delta table, version 3: 3 files, 1,892 rows, and 208 deleted ones" for note in report.notes)
    verdict = scorer.verify(out, deep=True, rescore=200)
    assert verdict.whole, verdict.faults
    assert verdict.counts == report.counts
    assert scorer.status(out).deleted == 208
    ledger = pq.read_table(tmp_path / "out.scorer" / "ledger.parquet")
    assert sum(ledger["deleted"].to_pylist()) == 208
    page = (tmp_path / "out.scorer" / "report.html").read_text()
    assert "208 more are deleted in the table" in page
    assert "--input-version 3" in page
    code, text, _ = cli("status", out)
    assert (code, "1,892 in = 1,892 scored" in text, "208 more are deleted" in text) == (0, True, True)


def test_what_is_done_is_not_done_again_and_a_grown_table_is_another_request(deleted, tmp_path):
    run(deleted, tmp_path / "out")
    assert run(deleted, tmp_path / "out").already_done
    table(deleted, rows(2100, 2200))
    with pytest.raises(PreflightError, match="version 3 of the table, now 4"):
        run(deleted, tmp_path / "out")
    assert run(deleted, tmp_path / "out", input_version=3).already_done
    run(deleted, tmp_path / "out", overwrite=True)
    assert_exact(tmp_path / "out", live(deleted))


@pytest.mark.parametrize("options", [
    {"where": "id >= 950"}, {"where": ["id < 1100", "a > 2"]}, {"limit": 650}, {"limit": 1}, {"part_bytes": 8192},
    {"keep": "id"}, {"row_id": True}, {"file_rows": 100}, {"where": "id == 7"},
], ids=str)  # fmt: skip
def test_deleted_rows_are_left_out_with_every_option(deleted, tmp_path, options):
    out = tmp_path / "out"
    report = run(deleted, out, **options)
    wanted = live(deleted).to_pandas()
    in_order = scored_in_order(out)
    if "limit" in options:
        assert report.counts.scored == len(in_order) == options["limit"]
        assert set(in_order) <= set(wanted["id"])
        assert len(set(in_order)) == len(in_order)
        return
    for condition in np.atleast_1d(options.get("where", [])):
        wanted = wanted.query(str(condition))
    assert sorted(in_order) == sorted(wanted["id"])
    assert report.counts.balanced
    assert report.counts.rows == 1892
    assert scorer.verify(out, deep=True, rescore=50).whole


def scored_in_order(output):
    files = sorted(Path(output).rglob("*.parquet"))
    return [one for file in files for one in pq.ParquetFile(file).read()["id"].to_pylist()]


def test_row_ids_are_positions_in_the_files(deleted, tmp_path):
    run(deleted, tmp_path / "out", row_id=True)
    for row in scored(tmp_path / "out").to_pylist()[::97]:
        assert pq.read_table(row["_file"])["id"][row["_row"]].as_py() == row["id"]


def test_bad_rows_go_to_quarantine_and_deleted_ones_do_not(tmp_path):
    values = pa.array([None if i in {3, 50, 90} else 1.0 for i in range(100)], pa.float32())
    path = table(tmp_path / "table", rows(0, 100).set_column(1, "a", values))
    delete_rows(path, {0: [50, 51]})
    report = run(path, tmp_path / "out", on_null="error", max_bad_rows=2)
    assert (report.counts.rows, report.counts.quarantined, report.counts.deleted) == (98, 2, 2)
    bad = pq.read_table(next((tmp_path / "out.scorer" / "quarantine").iterdir()))
    assert bad["_row"].to_pylist() == bad["id"].to_pylist() == [3, 90]
    assert scorer.verify(tmp_path / "out", rescore=20).whole


def test_a_deletion_moves_no_other_row_into_another_batch(tmp_path):
    path = table(tmp_path / "table", rows(0, 400))
    delete_rows(path, {0: [0, 70, 71, 399]})
    report = run(path, tmp_path / "out", batch_rows=100)
    plan = json.loads((tmp_path / "out.scorer" / "plan.json").read_text())
    assert plan["batch_rows"] == 100
    ledger = pq.read_table(tmp_path / "out.scorer" / "ledger.parquet")
    assert sum(ledger["calls"].to_pylist()) == 4  # 98, 100, 100 and 98 rows: the grid is that of the file
    assert report.counts.scored == 396


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000))
@example(373)  # every row deleted
def test_any_table_with_any_deleted_rows_is_scored_exactly(tmp_path_factory, seed):
    chance = random.Random(seed)
    folder = tmp_path_factory.mktemp("any")
    path, first = folder / "table", 0
    for _ in range(chance.randint(1, 4)):
        n = chance.choice([1, 5, 64, 300])
        key = pa.array([chance.choice(["x", "y/z", None])] * n, pa.string())
        table(path, rows(first, first + n, day=key), partition_by=["day"])
        first += n
    for _ in range(chance.randint(0, 2)):
        files = pa.table(DeltaTable(path).get_add_actions())["num_records"].to_pylist()
        which = chance.randrange(len(files))
        add = pa.table(DeltaTable(path).get_add_actions())["path"][which].as_py()
        delete_rows(path, {add: chance.sample(range(files[which]), chance.randint(1, files[which]))})
    options = {"part_bytes": chance.choice([4096, 1 << 26]), "batch_rows": chance.choice([1, 7, 64])}
    options |= {"where": f"a > {chance.randint(0, 6)}"} if chance.random() < 0.4 else {}
    wanted = live(path)
    if not DeltaTable(path).file_uris():  # every file was deleted with its last row
        with pytest.raises(PreflightError, match="the table is empty"):
            run(path, folder / "out", **options)
        return
    report = run(path, folder / "out", **options)
    if "where" in options:
        wanted = wanted.filter(pa.compute.field("a") > int(options["where"].rpartition(" ")[2]))
    assert report.counts.scored == wanted.num_rows
    if wanted.num_rows:
        assert_exact(folder / "out", wanted)
    assert scorer.verify(folder / "out", rescore=10).whole
    shutil.rmtree(folder)


@pytest.mark.parametrize("mode", ["name", "id"])
def test_mapped_columns_are_found_by_their_physical_names_or_ids(tmp_path, mode):
    names = {name: f"col-{i}" for i, name in enumerate(["id", *FEEDS, "text", "day"])}
    pieces = [rows(0, 50, day=["a"] * 50), rows(50, 60, day=["b / %"] * 10)]
    mapped_table(tmp_path / "table", pieces, names, mode, partition_by=["day"])
    run(tmp_path / "table", tmp_path / "out", where="id != 55")
    assert_exact(tmp_path / "out", live(tmp_path / "table").filter(pa.compute.field("id") != 55))
    assert [*json.loads((tmp_path / "out.scorer" / "plan.json").read_text())["files"][1][6]] == [["day", "b / %"]]


def test_added_columns_are_null_and_dropped_ones_are_not_there(tmp_path):
    path = table(tmp_path / "table", rows(0, 10))
    write_deltalake(path, rows(10, 20, added=np.arange(10.0)), mode="append", schema_mode="merge")
    run(path, tmp_path / "out", on_null="nan")
    assert_exact(tmp_path / "out", live(path))
    assert scored(tmp_path / "out")["added"].null_count == 10


def test_types_that_a_writer_stored_narrower_are_widened(tmp_path):
    path = table(tmp_path / "table", rows(0, 10))
    narrow = rows(10, 20).set_column(0, "id", pa.array(range(10, 20), pa.int32()))
    pq.write_table(narrow, path / "narrow.parquet")
    size = (path / "narrow.parquet").stat().st_size
    add = {"path": "narrow.parquet", "size": size, "partitionValues": {}, "modificationTime": 0, "dataChange": True}
    commit(path, [{"add": add}])
    run(path, tmp_path / "out")
    assert_exact(tmp_path / "out", live(path))
    assert scored(tmp_path / "out").schema.field("id").type == pa.int64()


def test_types_that_do_not_fit_are_refused_by_name(tmp_path):
    path = table(tmp_path / "table", rows(0, 10))
    pq.write_table(rows(10, 20).set_column(0, "id", pa.array(["x"] * 10)), path / "other.parquet")
    size = (path / "other.parquet").stat().st_size
    add = {"path": "other.parquet", "size": size, "partitionValues": {}, "modificationTime": 0, "dataChange": True}
    commit(path, [{"add": add}])
    with pytest.raises(PreflightError, match="column 'id' has another type in a file than in the table"):
        run(path, tmp_path / "out")


KEYS = {
    "text": ["A/B", "100 %", "a=b", "ü", None, "it's", "+ #&?"],
    "number": [1, -20, None, 2**40, 3, 4, 5],
    "day": [datetime(2026, 1, d, tzinfo=UTC).date() if d != 3 else None for d in range(1, 8)],
    "time": [datetime(2026, 1, 1, 2, 3, 4, d, tzinfo=UTC) for d in range(1, 8)],
    "flag": [True, False, None, True, False, True, False],
    "real": [0.1, -2.5, 1e30, None, 0.0, 3.0, 1 / 3],
}


@pytest.mark.parametrize("key", KEYS)
def test_partition_values_are_those_of_the_log_with_their_types(tmp_path, key):
    values = KEYS[key]
    path = table(tmp_path / "table", rows(0, 7, key=values), partition_by=["key"])
    run(path, tmp_path / "out")
    assert_exact(tmp_path / "out", live(path))
    value = next(value for value in values if value is not None)
    text = str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, str) else f"{value}"
    if key not in {"time", "day"}:
        report = run(path, tmp_path / "some", where=f"key == {text}")
        assert report.counts.scored == sum(one == value for one in values)
        assert report.files_left_out == len({repr(one) for one in values}) - 1


def test_a_partition_column_can_be_fed(tmp_path):
    path = table(tmp_path / "table", rows(0, 20, k=np.repeat([1, 2], 10)), partition_by=["k"])
    run(path, tmp_path / "out", feed={"x": ["a", "b", "k"]}, on_lossy="warn")
    out = scored(tmp_path / "out", live(path).schema)
    assert out.num_rows == 20
    name = next(iter(set(out.column_names) - set(live(path).column_names)))
    np.testing.assert_array_equal(out[name], out["a"].to_numpy() + out["b"].to_numpy() + out["k"].to_numpy())


def test_time_travel_by_version_and_time(tmp_path):
    path = table(tmp_path / "table", rows(0, 10))
    log = path / "_delta_log"
    for number in (1, 2):
        table(path, rows(10 * number, 10 * number + 10))
    for number in range(3):
        file = log / f"{number:020d}.json"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            if "commitInfo" in line:
                line["commitInfo"]["timestamp"] = int(datetime(2026, 1, 1 + number, tzinfo=UTC).timestamp() * 1000)
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        stamp = datetime(2026, 1, 1 + number, tzinfo=UTC).timestamp()
        os.utime(file, (stamp, stamp))
    run(path, tmp_path / "v1", input_version=1)
    assert_exact(tmp_path / "v1", live(path, 1))
    run(path, tmp_path / "t", input_version="2026-01-02T12:00:00Z")
    assert_exact(tmp_path / "t", live(path, 1))
    run(path, tmp_path / "d", input_version="2026-01-01")
    assert_exact(tmp_path / "d", live(path, 0))
    with pytest.raises(PreflightError, match="no version from that time"):
        run(path, tmp_path / "out", input_version="2025-12-31")
    with pytest.raises(PreflightError, match=r"(?s)does not have this version.*versions up to 2"):
        run(path, tmp_path / "out", input_version=99)


def test_an_unfinished_run_keeps_to_its_version_however_the_table_grows(tmp_path):
    values = pa.array([None if i == 3 else 1.0 for i in range(100)], pa.float32())
    path = table(tmp_path / "table", rows(0, 100).set_column(1, "a", values))
    delete_rows(path, {0: [9]})
    with pytest.raises(RunFailed):
        run(path, tmp_path / "out", on_null="error")
    table(path, rows(100, 200))
    report = run(path, tmp_path / "out", on_null="error", max_bad_rows=1)
    assert (report.counts.rows, report.counts.deleted) == (99, 1)
    assert any(note.startswith("a Delta table, version 1:") for note in report.notes)
    assert scorer.verify(tmp_path / "out", deep=True, rescore=20).whole


def test_a_vacuumed_version_is_an_input_that_changed(tmp_path):
    values = pa.array([None if i == 3 else 1.0 for i in range(100)], pa.float32())
    path = table(tmp_path / "table", rows(0, 100).set_column(1, "a", values))
    delete_rows(path, {0: [9]})
    with pytest.raises(RunFailed):
        run(path, tmp_path / "out", on_null="error")
    write_deltalake(path, rows(0, 50), mode="overwrite")
    DeltaTable(path).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    with pytest.raises(PreflightError, match="version 1 was vacuumed") as raised:
        run(path, tmp_path / "out", on_null="error")
    assert isinstance(raised.value.problems[0], InputChanged)
    run(path, tmp_path / "out", on_null="error", overwrite=True)
    assert_exact(tmp_path / "out", live(path))


def test_a_file_that_is_vacuumed_during_a_run_is_named(tmp_path):
    path = table(tmp_path / "table", rows(0, 10), rows(10, 20))
    plan = scorer.prepare(
        path, MODEL, tmp_path / "out", feed={"x": list(FEEDS)}, cluster="synchronous", tune=False, file_rows=10
    )
    for file in plan.frozen.files:
        Path(file.path).unlink()
    with pytest.raises(RunFailed, match=r"(?s)a file of the table is gone|they were vacuumed"):
        scorer.execute(plan)
    assert not (tmp_path / "out").exists()


def test_a_run_on_plain_files_imports_no_library_of_tables(tmp_path):
    pq.write_table(rows(0, 10), tmp_path / "in.parquet")
    code = (
        "import sys, scorer\n"
        f"scorer.run({str(tmp_path / 'in.parquet')!r}, {str(MODEL)!r}, {str(tmp_path / 'out')!r}, "
        "feed={'x': ['a', 'b', 'c']}, cluster='synchronous', tune=False)\n"
        "print([name for name in ('deltalake', 'arro3', 'pyiceberg') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_the_numbers_of_deleted_rows_an_output_is_not_whole(deleted, tmp_path):
    run(deleted, tmp_path / "out")
    (tmp_path / "out.scorer" / "deleted.npy").write_bytes(b"other")
    assert scorer.verify(tmp_path / "out").faults == ("deleted.npy: not as it was planned",)
    (tmp_path / "out.scorer" / "deleted.npy").unlink()
    assert scorer.verify(tmp_path / "out").faults == ("deleted.npy: the numbers of the deleted rows are gone",)
    run(deleted, tmp_path / "out", overwrite=True, input_version=2)
    assert not (tmp_path / "out.scorer" / "deleted.npy").exists()
    assert scorer.verify(tmp_path / "out").whole


def test_a_table_needs_one_input_and_flags_that_fit(tmp_path):
    path = table(tmp_path / "table", rows(0, 10))
    pq.write_table(rows(0, 10), tmp_path / "plain.parquet")
    (tmp_path / "above" / "x").mkdir(parents=True)
    shutil.copytree(path, tmp_path / "above" / "x" / "table")
    for inputs, options, text in (
        ([path, tmp_path / "plain.parquet"], {}, "a table is scored on its own"),
        (path, {"input_format": "parquet"}, "the input has another format"),
        (path, {"input_format": "iceberg"}, "the input has another format"),
        (tmp_path / "plain.parquet", {"input_format": "delta"}, "the input has another format"),
        (tmp_path / "plain.parquet", {"input_version": 1}, "--input-version does not apply to this input"),
        (path, {"input_snapshot": "main"}, "--input-snapshot does not apply to this input"),
        (path, {"base": str(tmp_path)}, "--base does not apply to a table"),
        (tmp_path / "above", {}, "(?s)files that do not belong.*a Delta table.*name this folder as the input"),
    ):
        with pytest.raises(PreflightError, match=text):
            run(inputs, tmp_path / "out", **options)
    assert run(tmp_path / "plain.parquet", tmp_path / "out", input_format="parquet").counts.scored == 10
    assert run(path, tmp_path / "out2", input_format="delta").counts.scored == 10


def test_features_of_other_readers_are_refused_by_name(tmp_path):
    path = table(tmp_path / "table", rows(0, 10))
    for feature in ("variantType", "typeWidening", "somethingNew"):
        other = tmp_path / feature
        shutil.copytree(path, other)
        protocol = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": [feature]}
        commit(other, [{"protocol": protocol | {"writerFeatures": [feature]}}])
        with pytest.raises(PreflightError, match=f"(?s)a reader that scorer does not have.*{feature}"):
            run(other, tmp_path / "out")


def test_an_empty_table_and_a_damaged_log_are_refused(tmp_path):
    path = table(tmp_path / "table", rows(0, 10))
    DeltaTable(path).delete(commit_properties=CommitProperties())
    with pytest.raises(PreflightError, match=r"(?s)the table is empty.*version 1, without files"):
        run(path, tmp_path / "out")
    (path / "_delta_log" / f"{0:020d}.json").write_text("{")
    with pytest.raises(PreflightError, match="the Delta table cannot be opened"):
        run(path, tmp_path / "out")


def test_a_table_whose_rows_are_all_deleted_gives_an_empty_output(tmp_path):
    path = table(tmp_path / "table", rows(0, 10))
    delete_rows(path, {0: range(10)})
    report = run(path, tmp_path / "out")
    assert (report.counts.rows, report.counts.deleted) == (0, 10)
    assert scorer.verify(tmp_path / "out").whole
