"""--join adds the columns of tables to rows of the same key: the scores are those of pandas' merge."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from support.buckets import ROOT, bucket
from support.iceberg_tables import Warehouse
from support.runs import MODELS, cli, oracle, read, write

import scorer
from scorer.errors import Interrupted, PreflightError
from scorer.events import PartFinished

NAMED, SUM3 = MODELS / "named3.onnx", MODELS / "sum3.onnx"
ROWS, SHOPS = 3000, 400
JOIN = "shops=shops.parquet on shop"
FEED = "x=a,shops.size,shops.kind|vocab(old, new)"
FLAGS = ("--model", SUM3, "--output", "out", "--batch-rows", 256)


@pytest.fixture
def at(tmp_path, monkeypatch):
    """A folder with sales of 500 shops, of which the table of shops has 400, as the current folder."""
    rng = np.random.default_rng(3)
    sales = {"sale": np.arange(ROWS), "shop": rng.integers(0, 500, ROWS), "a": rng.random(ROWS).astype(np.float32)}
    write(tmp_path / "sales.parquet", sales, row_group_size=700)
    shops = {
        "shop": pa.array(rng.permutation(500)[:SHOPS], pa.int16()),
        "size": pa.array(rng.random(SHOPS), mask=rng.random(SHOPS) < 0.1),
        "kind": pa.array(rng.choice(["old", "new"], SHOPS)).dictionary_encode(),
        "region": rng.choice(["n", "s"], SHOPS),
        "unused": rng.random(SHOPS),
    }
    write(tmp_path / "shops.parquet", shops)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def merged():
    """Return the sales with the columns of their shops, by pandas."""
    return pd.read_parquet("sales.parquet").merge(pd.read_parquet("shops.parquet"), on="shop", how="left")


def totals(frame):
    """Return the scores of ONNX Runtime for merged rows."""
    kind = frame["kind"].astype(object).map({"old": 0, "new": 1})
    x = np.column_stack([frame["a"], frame["size"], kind]).astype(np.float32)
    return oracle(SUM3, {"x": x}, 256)["total"]


def run(*flags, code=0, join=JOIN, feed=FEED):
    done, text, error = cli(
        "run", "sales.parquet", *FLAGS, "--join", join, "--feed", feed, "--on-null", "nan", *flags, "--json"
    )
    assert done == code, error
    return json.loads(text) if code == 0 else error


@pytest.mark.parametrize(
    "flags",
    [
        ("--cluster", "synchronous"), ("--threads", "2", "--part-bytes", "4096"), ("--keep", "none"),
        pytest.param(("--cluster", "processes", "--workers", "2"), marks=pytest.mark.slow),
    ],
    ids=["one thread", "threads", "nothing kept", "processes"],
)  # fmt: skip
def test_scores_are_those_of_rows_that_pandas_merged(at, flags):
    report = run(*flags)
    rows = merged()
    assert rows["size"].isna().sum() > ROWS / 5
    np.testing.assert_array_equal(read("out")["total"], totals(rows))
    assert report["counts"]["scored"] == ROWS
    assert report["counts"]["unmatched"] == rows["region"].isna().sum()
    assert pq.read_table("out.scorer/ledger.parquet")["unmatched"].to_pylist()
    assert read("out").column_names == ["sale", "shop", "a", "total"] if "none" not in flags else ["total"]
    assert cli("verify", "out", "--deep", "--rescore", "50")[0] == 0


def test_the_plan_shows_the_join_and_how_many_of_the_first_keys_are_missing(at):
    _, text, _ = cli("plan", "sales.parquet", *FLAGS, "--join", JOIN, "--feed", FEED, "--on-null", "nan")
    assert f"shops = {at / 'shops.parquet'} on shop; 2 columns; a missing key gives null" in " ".join(text.split())
    gone = merged()["region"][:256].isna().sum()
    assert f"{gone} of the first 256 rows have keys that shops does not have: null" in " ".join(text.split())
    assert "a, shops.size, shops.kind|vocab" in text


@pytest.mark.parametrize("how", ["feature names", "names of inputs"])
def test_a_model_that_names_its_columns_finds_those_of_a_joined_table(at, how):
    names = ["sale", "a", "size"]
    model = onnx.load(NAMED)
    model.metadata_props[0].value = json.dumps(names)
    if how == "names of inputs":
        inputs = [make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N"]) for name in names]
        total = make_tensor_value_info("total", onnx.TensorProto.FLOAT, ["N"])
        graph = make_graph([make_node("Sum", names, ["total"])], "g", inputs, [total])
        model = make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8)
    onnx.save(model, "m.onnx")
    plan = scorer.prepare("sales.parquet", "m.onnx", output="out", join=[JOIN])
    fed = [name for feed in plan.check().feeds for name in feed.columns]
    assert fed == ["sale", "a", "shops.size"]
    write(at / "other.parquet", {"shop": [1], "size": [1.0]})
    with pytest.raises(PreflightError) as caught:
        scorer.prepare(
            "sales.parquet",
            "m.onnx",
            output="out",
            join={"shops": "shops.parquet on shop", "o": "other.parquet on shop"},
        ).check()
    assert "size" in str(caught.value), "a plain name of two tables means neither"


def test_columns_are_kept_and_filtered_on_by_both_names(at):
    run("--keep", "sale,region,shops.size", "--where", "shops.kind = 'old'", "--where", "region != 'n'")
    rows = merged()
    rows = rows[(rows["kind"] == "old") & (rows["region"] == "s")]
    out = read("out").to_pandas()
    assert list(out.columns) == ["sale", "shops.size", "shops.region", "total"]
    np.testing.assert_array_equal(out["sale"], rows["sale"])
    np.testing.assert_array_equal(out["shops.size"], rows["size"])
    np.testing.assert_array_equal(out["total"], totals(rows))
    assert "unmatched" not in json.loads((at / "out.scorer" / "manifest.json").read_text())
    assert cli("verify", "out", "--deep", "--rescore", "50")[0] == 0


@pytest.mark.parametrize("policy", ["null", "error"])
def test_joined_columns_are_kept_beside_columns_that_are_copied_as_stored(at, policy):
    wide = {f"w{i}": np.random.default_rng(i).random(ROWS) for i in range(6)}
    write(at / "sales.parquet", pa.Table.from_pandas(pd.read_parquet("sales.parquet").assign(**wide)))
    run("--keep", "sale,region,w*", "--max-bad-rows", "50%", join=f"{JOIN} or {policy}")
    assert "w3" in json.loads((at / "out.scorer" / "plan.json").read_text())["storage"]["copied"]
    rows = merged()
    rows = rows[rows["region"].notna() | (policy == "null")]
    out = read("out").to_pandas()
    np.testing.assert_array_equal(out["total"], totals(rows))
    pd.testing.assert_frame_equal(
        out[["sale", "w3", "shops.region"]],
        rows[["sale", "w3", "region"]].reset_index(drop=True).rename(columns={"region": "shops.region"}),
    )


def test_a_missing_key_is_a_bad_row_if_that_is_requested(at):
    assert "575 x shops has no row with shop = 434 (or other numbers)" in run(join=f"{JOIN} or error", code=1)
    report = run("--max-bad-rows", "50%", join=f"{JOIN} or error")
    rows = merged()
    lost = rows["region"].isna()
    assert (report["counts"]["quarantined"], report["counts"]["unmatched"]) == (lost.sum(), 0)
    np.testing.assert_array_equal(read("out")["total"], totals(rows[~lost]))
    bad = pd.concat(map(pd.read_parquet, sorted((at / "out.scorer" / "quarantine").rglob("*.parquet"))))
    assert set(bad["_stage"]) == {"join"}
    assert bad["_row"].tolist() == np.flatnonzero(lost).tolist()
    assert bad["_error"].tolist() == [f"shops has no row with shop = {shop}" for shop in rows["shop"][lost]]


def test_bad_rows_come_before_a_filter_on_the_table_that_lacks_them(at):
    report = run("--max-bad-rows", "50%", "--where", "kind = 'old'", join=f"{JOIN} or error")
    rows = merged()
    counts = report["counts"]
    assert counts["quarantined"] == rows["region"].isna().sum()
    assert counts["scored"] == (rows["kind"] == "old").sum()
    assert counts["rows"] == counts["scored"] + counts["quarantined"] + counts["filtered"]


def test_a_stopped_run_is_resumed_and_one_row_is_replayed(at):
    def stop(event):
        if isinstance(event, PartFinished):
            raise KeyboardInterrupt

    options = {"output": "out", "join": [JOIN], "feed": [FEED], "on_null": "nan", "part_bytes": 8192, "keep": "sale"}
    options["cluster"] = "synchronous"
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        scorer.run("sales.parquet", SUM3, **options, observers=[stop])
    done = sum(1 for _ in (at / "out.scorer").rglob("part-*.parquet"))
    report = scorer.run("sales.parquet", SUM3, **options)
    assert 0 < done <= report.parts_resumed < report.parts
    np.testing.assert_array_equal(read("out")["sale"], np.arange(ROWS))
    row = int(np.flatnonzero(merged()["size"].notna())[7])
    _, text, _ = cli("replay", "out", "--row", row, "--json")
    found = json.loads(text)
    assert found["values"]["shops.size"] == merged()["size"][row]
    assert found["scores"]["total"]["equal"]


def test_a_changed_table_is_another_request_and_cannot_be_scored_again(at):
    run()
    assert "Done already" in cli("run", "sales.parquet", *FLAGS, "--join", JOIN, "--feed", FEED, "--on-null", "nan")[1]
    os.utime("shops.parquet", (1, 1))
    assert "found:    the output of another request: the contents of 'shops.parquet'" in run(code=3)
    code, text, error = cli("verify", "out", "--rescore", "5")
    assert code == 5
    assert "the table of --join shops changed after it was planned" in text + error
    run("--overwrite")
    assert cli("verify", "out", "--rescore", "5")[0] == 0


def test_new_files_are_joined_like_the_others(at):
    (at / "in").mkdir()
    os.rename("sales.parquet", "in/one.parquet")
    flags = ("run", "in", *FLAGS, "--join", JOIN, "--feed", FEED, "--on-null", "nan", "--new-only")
    assert cli(*flags)[0] == 0
    write(at / "in" / "two.parquet", {"sale": [1], "shop": [17], "a": pa.array([1], pa.float32())})
    assert cli(*flags)[0] == 0
    assert read("out").num_rows == ROWS + 1
    os.utime("shops.parquet", (1, 1))
    assert "the contents of 'shops.parquet'" in cli(*flags)[2]


def test_a_key_may_come_from_a_table_before_and_a_transform_gets_all_columns(at, monkeypatch):
    write(at / "regions.parquet", {"id": ["s", "n"], "tax": [0.5, 0.25]})
    joins = ["--join", JOIN, "--join", "regions=regions.parquet on shops.region = id"]
    feed = ("--feed", "x=a,a,tax", "--on-null", "nan")
    assert cli("run", "sales.parquet", *FLAGS, *joins, *feed)[0] == 0
    rows = merged()
    tax = rows["region"].map({"s": 0.5, "n": 0.25})
    x = np.column_stack([rows["a"], rows["a"], tax]).astype(np.float32)
    np.testing.assert_array_equal(read("out")["total"], oracle(SUM3, {"x": x}, 256)["total"])
    (at / "joined_twice.py").write_text("def twice(frame):\n    return frame.assign(b=frame['regions.tax'] * 2)\n")
    monkeypatch.syspath_prepend(at)
    flags = ("--transform", "joined_twice:twice", "--cluster", "synchronous", "--overwrite")
    assert cli("run", "sales.parquet", *FLAGS, *joins, "--feed", "x=a,a,b", "--on-null", "nan", *flags)[0] == 0
    x = np.column_stack([rows["a"], rows["a"], tax * 2]).astype(np.float32)
    np.testing.assert_array_equal(read("out")["total"], oracle(SUM3, {"x": x}, 256)["total"])


def test_a_field_of_a_struct_of_a_joined_table_is_fed(at):
    shops = pd.read_parquet("shops.parquet")
    struct = pa.StructArray.from_arrays(
        [pa.array(shops["size"]), pa.array(shops["kind"].astype(str))], ["size", "kind"]
    )
    write(at / "structs.parquet", {"shop": pa.array(shops["shop"]), "of": struct})
    run(join="shops=structs.parquet on shop", feed="x=a,shops.of.size,of.kind|vocab(old, new)")
    np.testing.assert_array_equal(read("out")["total"], totals(merged()))
    assert cli("verify", "out", "--rescore", "5")[0] == 0


@pytest.mark.parametrize("kind", ["delta", pytest.param("iceberg", marks=pytest.mark.slow)])
def test_the_live_rows_of_a_table_are_joined(kind, at, monkeypatch):
    shops = pd.read_parquet("shops.parquet").astype({"kind": str})
    rows = pa.Table.from_pandas(pd.concat([shops, shops.assign(size=9.0)]), preserve_index=False)
    if kind == "delta":
        location = "lake"
        write_deltalake(location, rows)
        table = DeltaTable(location)
    else:
        warehouse = Warehouse(at / "lake")
        warehouse.configure(monkeypatch)
        table, location = warehouse.create(rows.schema, rows, name="shops"), "iceberg://lake/ns.shops"
    table.delete("size = 9.0")
    run(join=f"shops={location} on shop")
    np.testing.assert_array_equal(read("out")["total"], totals(merged()))
    assert json.loads((at / "out.scorer" / "plan.json").read_text())["joins"][0]["kind"] == kind
    assert cli("verify", "out", "--rescore", "5")[0] == 0
    (write_deltalake("lake", rows, mode="append") if kind == "delta" else table.append(rows))
    assert cli("verify", "out", "--rescore", "5")[0] == 0, "it reads the version that was planned"
    assert "the contents of" in run(join=f"shops={location} on shop", code=3)
    if kind == "iceberg":
        warehouse.close()


def test_a_table_on_a_store_is_joined_and_another_object_in_its_place_is_noticed(at):
    with bucket() as store:
        for part in (0, 1):
            shops = pq.read_table("shops.parquet").slice(part * 200, 200)
            data = io.BytesIO()
            pq.write_table(shops, data, row_group_size=70)
            store.put(f"{ROOT}/shops/{part}.parquet", data.getvalue())
        run(join=f"shops={ROOT}/shops on shop")
        np.testing.assert_array_equal(read("out")["total"], totals(merged()))
        assert cli("verify", "out", "--rescore", "5")[0] == 0
        store.put(f"{ROOT}/shops/1.parquet", data.getvalue() + b"PAR1")
        assert cli("verify", "out", "--rescore", "5")[0] == 5


def test_a_job_file_names_tables_beside_it(at, monkeypatch):
    monkeypatch.chdir("/")
    common = f'input = "sales.parquet"\nmodel = "{SUM3}"\noutput = "out"\nfeed = ["{FEED}"]\non_null = ["nan"]\n'
    for i, join in enumerate((f'join = ["{JOIN}"]', '[join]\nshops = "shops.parquet on shop"')):
        (at / "job.toml").write_text(common + join)
        code, text, error = cli("run", "--config", at / "job.toml")
        assert (code, "Done already" in text) == (0, i > 0), error


@pytest.mark.parametrize("join", ["t=https://me:pw@h/x.parquet on a", {"t": "https://me:pw@h/x.parquet on a"}])
def test_a_password_in_the_url_of_a_table_is_refused(join):
    with pytest.raises(PreflightError, match="a secret does not belong in a URL") as caught:
        scorer.prepare("sales.parquet", SUM3, join=join)
    assert "pw" not in str(caught.value)


def test_a_table_without_rows_and_one_that_nothing_uses_do_no_harm(at):
    write(at / "none.parquet", {"shop": pa.array([], pa.int64()), "n": pa.array([], pa.float32())})
    more = ("--join", "none=none.parquet on shop", "--join", "idle=none.parquet on shop")
    report = run(*more, feed="x=a,a,none.n")
    assert np.isnan(read("out")["total"].to_numpy()).all()
    assert "no column of the joined table idle is used, so it is not read" in report["notes"]


@pytest.mark.slow
def test_a_run_without_a_join_loads_nothing_of_joins_but_their_description(at):
    code = (
        "import sys; from scorer.cli.main import main\n"
        f"main(['run', 'sales.parquet', '--model', {str(SUM3)!r}, '--feed', 'x=a,a,a', '--output', 'out'], "
        "standalone_mode=False)\n"
        "print(sorted(name for name in sys.modules if name.startswith('scorer.dataset.joins.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "['scorer.dataset.joins.requests', 'scorer.dataset.joins.spec']", done.stderr
