"""Inputs on object stores keep the promises of local ones. The store is one in memory."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.parquet import encryption
from support.buckets import ROOT, bucket
from support.runs import MODELS, read, write
from support.stored import hive, rows, stored_bytes

import scorer
from scorer.errors import PreflightError, RunFailed
from scorer.storage.fetched import Fetched, pieces
from scorer.storage.footers import open_parquet

DENSE, SUM = MODELS / "dense28.onnx", MODELS / "sum3.onnx"
FEED = {"feed": "x=a,b,c", "tune": False}


@pytest.fixture
def store():
    with bucket() as found:
        yield found


def upload(store, top):
    for path in top.rglob("*.parquet"):
        store.put(f"{ROOT}/in/{path.relative_to(top)}", path.read_bytes())
    return f"{ROOT}/in"


def abc(n=20_000, first=0):
    return pa.table({"id": range(first, first + n), **{c: pa.array(range(n), pa.float32()) for c in "abc"}})


OPTIONS = {
    "nothing else": {},
    "one thread": {"cluster": "synchronous"},
    "encoded columns": {"compression": "zstd"},
    "small parts": {"part_bytes": "200KB"},
    "joined files": {"file_rows": 20_000},
    "a filter on a column and on a key": {"where": ("id > 100", "day >= 1")},
    "a limit": {"limit": 12_345},
    "few columns": {"keep": ("id", "day")},
    "no columns": {"keep": "none"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_input_on_a_store_gives_the_bytes_of_the_same_local_files(store, tmp_path, options):
    top = hive(tmp_path / "in")
    for place, out in ((top, "local"), (upload(store, top), "remote")):
        report = scorer.run(place, model=DENSE, output=tmp_path / out, batch_rows=1000, **options)
        assert report.counts.scored > 0
    assert stored_bytes(tmp_path / "remote") == stored_bytes(tmp_path / "local")
    assert scorer.verify(tmp_path / "remote", deep=True).whole


def test_several_inputs_with_a_base_give_the_bytes_of_the_same_local_files(store, tmp_path):
    top = hive(tmp_path / "in")
    for place, out in ((top, "local"), (upload(store, top), "remote")):
        inputs = [f"{place}/day=2", f"{place}/day=0/*"]
        scorer.run(inputs, model=DENSE, output=tmp_path / out, batch_rows=1000, base=str(place))
    assert stored_bytes(tmp_path / "remote") == stored_bytes(tmp_path / "local")


def test_local_files_and_objects_may_be_one_input(store, tmp_path):
    store.fill("a.parquet", table=abc())
    local = write(tmp_path / "b.parquet", abc(first=20_000))
    scorer.run([f"{ROOT}/a.parquet", local], model=SUM, output=tmp_path / "out", **FEED)
    assert read(tmp_path / "out")["id"].to_pylist() == list(range(40_000))


def test_a_run_asks_the_store_for_lists_and_ranges_only(store, tmp_path):
    upload(store, hive(tmp_path / "in"))
    scorer.run(f"{ROOT}/in", model=DENSE, output=tmp_path / "out", cluster="synchronous")
    assert set(store.requests) == {"HEAD", "LIST", "GET"}
    assert store.requests["HEAD"] == 1  # whether the input is one object
    assert store.requests["LIST"] == 2  # whether it may be listed, and which objects it has


def test_row_ids_and_quarantine_name_the_object(store, tmp_path):
    table = abc()
    table = table.set_column(1, "a", pa.array([None if i % 5000 == 7 else i for i in range(len(table))], pa.float32()))
    store.fill("x/a.parquet", table=table)
    report = scorer.run(
        f"{ROOT}/x", model=SUM, output=tmp_path / "out", row_id=True, on_null="x=error", max_bad_rows="1%", **FEED
    )
    assert (report.counts.scored, report.counts.quarantined) == (19_996, 4)
    found = read(tmp_path / "out")
    assert set(found["_file"].to_pylist()) == {f"{ROOT}/x/a.parquet"}
    assert found["_row"].to_pylist() == found["id"].to_pylist()
    bad = read(tmp_path / "out.scorer" / "quarantine")
    assert bad["id"].to_pylist() == bad["_row"].to_pylist() == [7, 5007, 10_007, 15_007]
    assert set(bad["_file"].to_pylist()) == {f"{ROOT}/x/a.parquet"}


@pytest.mark.parametrize("others", [abc(19_000), abc(first=1), None], ids=["another size", "the same size", "gone"])
def test_an_object_that_changes_after_the_plan_is_refused_with_both_etags(store, tmp_path, others):
    store.fill("x/a.parquet", "x/b.parquet", table=abc())
    plan = scorer.prepare(f"{ROOT}/x", model=SUM, output=tmp_path / "out", **FEED)
    before = store.identity(f"{ROOT}/x/b.parquet")
    store.remove([before.path])
    if others is not None:
        store.fill("x/b.parquet", table=others)
    with pytest.raises(RunFailed) as caught:
        scorer.execute(plan)
    text = str(caught.value)
    assert f"the {before.size} bytes with ETag {before.version} that were planned" in text
    now = None if others is None else store.identity(before.path)
    assert ("nothing" if now is None else f"{now.size} bytes with ETag {now.version}") in text
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_over_other_objects_is_refused_without_asking_for_each(store, tmp_path):
    store.fill(*(f"x/{i}.parquet" for i in range(50)), table=abc(100))
    store.fill("x/bad.parquet", table=abc(100))
    plan = scorer.prepare(f"{ROOT}/x", model=SUM, output=tmp_path / "out", **FEED)
    store.fill("x/bad.parquet", table=abc(99))
    with pytest.raises(RunFailed):
        scorer.execute(plan)
    store.remove([f"{ROOT}/x/7.parquet"])
    store.requests.clear()
    with pytest.raises(PreflightError) as caught:
        scorer.run(f"{ROOT}/x", model=SUM, output=tmp_path / "out", **FEED)
    (problem,) = caught.value.problems
    assert f"2 input files changed, 1 of them gone: '{ROOT}/x/7.parquet', '{ROOT}/x/bad.parquet'" in problem.found
    assert (store.requests["HEAD"], store.requests["LIST"]) == (1, 3)


def test_a_footer_is_one_range_and_a_longer_one_two(store):
    store.fill("short.parquet", table=rows(1))
    store.fill("long.parquet", table=pa.table({f"c{i}": [1] for i in range(1500)}))
    for name, requests in (("short", 1), ("long", 2)):
        store.requests.clear()
        file = store.identity(f"{ROOT}/{name}.parquet")
        assert open_parquet(file).metadata.num_rows > 0
        assert store.requests["GET"] == requests


def test_an_object_is_read_from_what_was_fetched_and_by_its_url(store):
    store.fill("a.parquet", table=rows(1))
    file = store.identity(f"{ROOT}/a.parquet")
    store.requests.clear()
    footer = open_parquet(file.path).metadata
    assert store.requests == {"HEAD": 1, "GET": 1}
    fetched = Fetched(file, footer, [0], [(0, file.size)])
    assert open_parquet(file, footer, fetched=fetched).read().equals(rows(1))
    assert store.requests == {"HEAD": 1, "GET": 1 + len(pieces([(0, file.size)], file.size))}


def test_an_object_that_is_replaced_after_the_list_is_refused_by_its_footer(store, monkeypatch):
    store.fill("x/a.parquet", "x/b.parquet", table=abc())
    objects = list(store.objects(f"{ROOT}/x"))
    monkeypatch.setattr(store, "objects", lambda _: iter(objects))
    store.fill("x/b.parquet", table=abc(first=1))
    (problem,) = scorer.prepare(f"{ROOT}/x", model=SUM, output="out", **FEED).problems
    assert (problem.where, problem.found) == (f"{ROOT}/x/b.parquet", "another object is there now")


class _Keys(encryption.KmsClient):
    def __init__(self, _):
        super().__init__()

    def wrap_key(self, key, _):
        return key.hex()

    def unwrap_key(self, wrapped, _):
        return bytes.fromhex(wrapped)


def test_encrypted_columns_of_an_object_are_named(store):
    configuration = encryption.EncryptionConfiguration("f", column_keys={"c": ["a", "b"]}, plaintext_footer=True)
    factory = encryption.CryptoFactory(_Keys)
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), configuration)
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, abc().schema, encryption_properties=properties) as writer:
        writer.write_table(abc())
    store.put(f"{ROOT}/x.parquet", sink.getvalue())
    (problem,) = scorer.prepare(f"{ROOT}/x.parquet", model=SUM, output="out", **FEED).problems
    assert (problem.what, problem.found) == ("a file has encrypted columns", "'a', 'b'")
