"""Hive folders: --where on a key opens no file that its path rules out, and keys are found above the input too."""

from __future__ import annotations

import datetime as dt
import html
import json
import signal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from support.runs import MODELS, cli, read, write

import scorer
from scorer.dataset.summary import summarise
from scorer.errors import InputError, Interrupted
from scorer.events import PartFinished

MODEL = MODELS / "sum3.onnx"
DAYS = [str(dt.date(2025, 1, 1) + dt.timedelta(day)) for day in range(365)]
FEED = ("--feed", "x=a,b,c", "--cluster", "synchronous")


def numbers(rows=5, start=0, **more):
    """Return the columns a, b, c, which the model adds up, and others."""
    values = np.arange(start, start + rows)
    return {name: values.astype(np.float32) for name in "abc"} | {"id": values} | more


def run(at, where, *flags, code=0, entry="in"):
    conditions = [flag for one in where for flag in ("--where", one)]
    done, text, error = cli(
        "run", at / entry, "--model", MODEL, "--output", at / "out", *FEED, *conditions, *flags, "--json"
    )
    assert done == code, error
    return json.loads(text) if code == 0 else error


def garbage(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"this is no Parquet file")


def files(top):
    return sorted(path.relative_to(top).as_posix() for path in top.rglob("*.parquet"))


def proof(at, name):
    return json.loads((at / "out.scorer" / name).read_text())


@pytest.fixture
def year(tmp_path):
    """A folder for each day of a year; only one of them holds a file that can be read."""
    for day in DAYS:
        garbage(tmp_path / "in" / f"day={day}" / "x.parquet")
    write(tmp_path / "in" / f"day={DAYS[180]}" / "x.parquet", numbers())
    return tmp_path


def test_a_file_whose_path_where_rules_out_is_not_opened(year):
    report = run(year, [f"day = '{DAYS[180]}'"])
    assert report["counts"] | {"rows": 5, "scored": 5, "filtered": 0} == report["counts"]
    assert report["files_left_out"] == 364
    assert files(year / "out") == [f"day={DAYS[180]}/part-00000.parquet"]
    left_out = "364 files left out by --where on 'day', not opened"
    assert left_out in report["notes"]
    assert left_out in html.unescape((year / "out.scorer" / "report.html").read_text())
    assert left_out in cli("verify", year / "out", "--deep")[1]


def test_the_proof_names_the_files_that_were_left_out(year):
    run(year, [f"day = '{DAYS[180]}'"])
    paths = [str(year / "in" / f"day={day}" / "x.parquet") for day in DAYS if day != DAYS[180]]
    assert (proof(year, "plan.json")["left_out"], proof(year, "manifest.json")["files_left_out"]) == (paths, 364)
    manifest = proof(year, "manifest.json") | {"files_left_out": 3}
    (year / "out.scorer" / "manifest.json").write_text(json.dumps(manifest))
    assert "files_left_out" in cli("verify", year / "out")[1]


def test_the_plan_says_how_many_files_are_left_out(year):
    typed = ("plan", year / "in", "--model", MODEL, *FEED, "--where", f"day = '{DAYS[180]}'")
    assert "364 files left out by --where on 'day', not opened" in cli(*typed)[1].replace("\n", " ")
    assert json.loads(cli(*typed, "--json")[1])["input"] == {"files": 1, "rows": 5, "parts": 1, "files_left_out": 364}


def test_a_repeated_run_is_done_although_a_file_that_is_left_out_changed(year):
    where = [f"day = '{DAYS[180]}'"]
    run(year, where)
    (year / "in" / f"day={DAYS[3]}" / "x.parquet").write_bytes(b"other garbage, and longer")
    assert run(year, where)["already_done"] is True


def test_one_more_file_makes_another_request_although_it_is_left_out(year):
    where = [f"day = '{DAYS[180]}'"]
    run(year, where)
    garbage(year / "in" / f"day={DAYS[3]}" / "y.parquet")
    assert "another request: the input's files" in run(year, where, code=3)


@pytest.mark.slow
def test_an_interrupted_run_is_finished_with_the_files_it_left_out(year):
    where = f"day >= '{DAYS[179]}' "
    for day in DAYS[179:]:
        write(year / "in" / f"day={day}" / "x.parquet", numbers())
    asked = {"feed": "x=a,b,c", "where": where, "cluster": "synchronous"}

    def interrupt(event):
        if isinstance(event, PartFinished) and event.receipt.proof.part == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        scorer.run(year / "in", MODEL, year / "out", observers=[interrupt], **asked)
    report = scorer.run(year / "in", MODEL, year / "out", **asked)
    assert (report.parts_resumed > 0, report.files_left_out, report.counts.scored) == (True, 179, 5 * 186)


@pytest.mark.parametrize(
    ("values", "where", "kept"),
    [
        ("1 2 10", ["k > 2"], "10"), ("1 2 10", ["k in (1, 10)"], "1 10"), ("1 2 10", ["k not in (1, 10)"], "2"),
        ("01 02 10", ["k > '02'"], "10"), ("1 x", ["k = 'x'"], "x"), ("1 2 10", ["k != 2", "k >= 2"], "10"),
        ("1 __HIVE_DEFAULT_PARTITION__", ["k is null"], "__HIVE_DEFAULT_PARTITION__"),
        ("1 __HIVE_DEFAULT_PARTITION__", ["k is not null"], "1"), ("1 __HIVE_DEFAULT_PARTITION__", ["k != 7"], "1"),
        ("a%20b%2Fc d", ["k = 'a b/c'"], "a%20b%2Fc"), ("%C3%A4 d", ["k = 'ä'"], "%C3%A4"),
        ("1 2", ["k = 2", "id >= 0"], "2"),
    ],
)  # fmt: skip
def test_each_kind_of_condition_rules_out_files_by_their_keys(tmp_path, values, where, kept):
    for value in values.split():
        at = tmp_path / "in" / f"k={value}" / "x.parquet"
        if value in kept.split():
            write(at, numbers())
        else:
            garbage(at)
    report = run(tmp_path, where)
    assert report["counts"]["scored"] == 5 * len(kept.split())
    assert files(tmp_path / "out") == [f"k={value}/part-{i:05d}.parquet" for i, value in enumerate(kept.split())]


@pytest.mark.parametrize("where", [["id = 3"], ["k = 'one'"], []])
def test_conditions_on_other_columns_or_of_another_type_rule_out_no_file(tmp_path, where):
    write(tmp_path / "in" / "k=1" / "x.parquet", numbers())
    garbage(tmp_path / "in" / "k=2" / "x.parquet")
    assert "k=2" in run(tmp_path, where, code=3)


def test_with_a_limit_the_rows_of_every_file_are_counted(tmp_path):
    for k in range(3):
        write(tmp_path / "in" / f"k={k}" / "x.parquet", numbers())
    counts = run(tmp_path, ["k = 1"], "--limit", 8)["counts"]
    assert (counts["rows"], counts["scored"], counts["filtered"]) == (8, 3, 5)


def test_if_every_file_is_ruled_out_the_first_one_gives_the_columns(tmp_path):
    write(tmp_path / "in" / "k=1" / "x.parquet", numbers())
    garbage(tmp_path / "in" / "k=2" / "x.parquet")
    report = run(tmp_path, ["k = 7"])
    assert (report["counts"]["filtered"], report["files_left_out"]) == (5, 1)
    assert files(tmp_path / "out") == ["k=1/part-00000.parquet"]
    table = pq.ParquetFile(tmp_path / "out" / "k=1" / "part-00000.parquet").read()
    assert (table.num_rows, table.schema.names[:4]) == (0, ["a", "b", "c", "id"])
    assert cli("verify", tmp_path / "out")[0] == 0


@pytest.mark.parametrize(
    ("kind", "values", "where", "kept", "left_out"),
    [
        (pa.date32(), ["2025-01-31", "2025-02-01"], "k > '2025-01-31'", ["2025-02-01"], 1),
        (pa.date32(), ["2025-01-31", "2025-02-01"], "k > '2025-01-31T00:00'", ["2025-02-01"], 1),
        (pa.date32(), ["2025-02-01", "2025-02-02"], "k >= '2025-02-02T00:00'", ["2025-02-02"], 0),
        (pa.int8(), ["1", "2"], "k = 2", ["2"], 1), (pa.string(), ["9", "10"], "k = '10'", ["10"], 0),
        (pa.dictionary(pa.int8(), pa.string()), ["x", "y"], "k = 'y'", ["y"], 1),
    ],
)  # fmt: skip
def test_a_key_that_is_a_column_too_has_the_type_of_the_column(tmp_path, kind, values, where, kept, left_out):
    for value in values:
        column = pa.array([value] * 5, pa.string()).cast(pa.string() if pa.types.is_dictionary(kind) else kind)
        table = pa.table(numbers(k=column.cast(kind)))
        write(tmp_path / "in" / f"k={value}" / "x.parquet", table)
    report = scorer.run(
        tmp_path / "in", MODEL, tmp_path / "out", feed="x=a,b,c", keep="id", where=where, cluster="synchronous",
        max_bad_rows=0,
    )  # fmt: skip
    assert report.counts.scored == 5 * len(kept)
    assert report.files_left_out == left_out
    with_rows = [path for path in files(tmp_path / "out") if pq.read_metadata(tmp_path / "out" / path).num_rows]
    assert {path.split("/")[0] for path in with_rows} == {f"k={value}" for value in kept}


def test_a_request_without_left_out_files_and_base_is_stored_as_before(tmp_path):
    write(tmp_path / "in" / "k=1" / "x.parquet", numbers())
    run(tmp_path, [])
    plan = proof(tmp_path, "plan.json")
    assert {"left_out"}.isdisjoint(plan)
    assert {"base"}.isdisjoint(plan["request"])
    assert {"files_left_out"}.isdisjoint(proof(tmp_path, "manifest.json"))
    footer = pq.read_metadata(tmp_path / "out" / "k=1" / "part-00000.parquet").metadata[b"scorer"]
    assert {"where"}.isdisjoint(json.loads(footer))


@pytest.fixture
def sales(tmp_path):
    for month in (12, 13):
        for name in "xy":
            write(tmp_path / "in" / "year=2026" / f"month={month}" / f"{name}.parquet", numbers(start=month))
    return tmp_path


@pytest.mark.parametrize(
    ("entry", "rows"),
    [("", 10), ("x.parquet", 5), ("*.parquet", 10), ("[xy].parquet", 10)],
)
def test_keys_directly_above_the_input_are_columns(sales, entry, rows):
    at = "in/year=2026/month=13" + (f"/{entry}" if entry else "")
    report = run(sales, ["month = 13", "year = 2026"], entry=at)
    assert report["counts"]["scored"] == rows
    assert {path.rpartition("/")[0] for path in files(sales / "out")} == {"year=2026/month=13"}
    assert set(ds.dataset(sales / "out", partitioning="hive").to_table()["month"].to_pylist()) == {13}
    assert set(pd.read_parquet(sales / "out")["year"].astype(int)) == {2026}


def test_a_folder_of_a_tree_gives_the_rows_that_where_takes_from_the_tree(sales):
    run(sales, ["month = 13"])
    whole = ds.dataset(sales / "out", partitioning="hive").to_table()
    scorer.run(sales / "in/year=2026/month=13", MODEL, sales / "one", feed="x=a,b,c", cluster="synchronous")
    assert ds.dataset(sales / "one", partitioning="hive").to_table().equals(whole)


def test_a_key_above_the_input_can_be_fed(tmp_path):
    write(tmp_path / "in" / "c=4" / "x.parquet", {name: numbers()[name] for name in "ab"})
    report = scorer.run(
        tmp_path / "in" / "c=4", MODEL, tmp_path / "out", feed="x=a,b,c", keep="a", cluster="synchronous"
    )
    assert report.counts.scored == 5
    table = read(tmp_path / "out")
    np.testing.assert_allclose(np.ravel(table[-1].to_numpy()), 2 * table["a"].to_numpy() + 4)


@pytest.mark.parametrize(
    ("base", "folder"),
    [
        ("in", "year=2026/month=13"), ("in/year=2026", "month=13"), ("in/year=2026/month=13", ""),
        (".", "in/year=2026/month=13"), ("in/year=2026/", "month=13"),
    ],
)  # fmt: skip
def test_base_says_below_which_folder_keys_are_columns(sales, base, folder):
    run(sales, [], "--base", sales / base, entry="in/year=2026/month=13/x.parquet")
    assert files(sales / "out") == [f"{folder}/part-00000.parquet".lstrip("/")]


def test_relative_paths_in_columns_still_start_at_the_input(sales):
    folder = sales / "in/year=2026/month=13"
    assert summarise([str(folder)]).folder == summarise([str(folder / "x.parquet")]).folder == str(folder)
    assert summarise([str(folder)], base=str(sales)).folders == {str(folder)}


def test_only_key_folders_directly_above_the_input_are_keys(tmp_path):
    write(tmp_path / "run=7" / "plain" / "k=1" / "x.parquet", numbers())
    assert summarise([str(tmp_path / "run=7" / "plain")]).hive.names == ["k"]
    assert summarise([str(tmp_path / "run=7" / "plain" / "k=1")]).hive.names == ["k"]
    assert summarise([str(tmp_path / "run=7" / "plain" / "k=1")], base=str(tmp_path)).hive.names == ["run", "k"]


def test_keys_above_the_inputs_are_columns_only_if_all_files_have_them(tmp_path):
    write(tmp_path / "k=1" / "x.parquet", numbers())
    write(tmp_path / "other" / "x.parquet", numbers())
    plan = scorer.prepare(
        [tmp_path / "k=1", tmp_path / "other"], MODEL, tmp_path / "out", feed="x=a,b,c", cluster="synchronous"
    )
    assert plan.problems == ()
    assert any("not all files have the same ones: 'k'" in note for note in plan.notes)
    assert {file.folder for file in plan.frozen.files} == {""}


def test_an_input_that_is_not_below_base_is_refused(sales):
    with pytest.raises(InputError, match="not below --base"):
        summarise([str(sales / "in")], base=str(sales / "in" / "year=2026" / "month=12"))


def test_a_column_with_other_values_than_a_key_above_the_input_is_refused_with_the_way_out(tmp_path):
    write(tmp_path / "k=1" / "x.parquet", numbers(k=[5] * 5))
    error = run(tmp_path, [], code=3, entry="k=1")
    assert f"pass --base {tmp_path / 'k=1'} to ignore the folder name" in error
    assert run(tmp_path, [], "--base", tmp_path / "k=1", entry="k=1")["counts"]["scored"] == 5
    assert read(tmp_path / "out")["k"].to_pylist() == [5] * 5
