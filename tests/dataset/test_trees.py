"""Inputs on object stores are listed as local ones are, with few requests. The store is one in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.buckets import ROOT, bucket
from support.runs import write

from scorer.dataset.listing import list_files
from scorer.dataset.summary import summarise
from scorer.errors import InputError, InputNotFound, UnreadableFile

ONE = {"a": [1]}
NAMES = ["1.parquet", "10.parquet", "2.parquet", "a/1.parquet", "a/c/2.parquet", "b/2.pq", ".h/3.parquet",
         "_d/4.parquet", "out/x.parquet", "out.scorer/ledger.parquet", "a/_m.parquet", "a b/ü%20=.parquet",
         "day=2026-01-01/hour=3/x.parquet", "day=2026-01-02/hour=10/x.parquet"]  # fmt: skip
INPUTS = ["", "a", "a/", "a/1.parquet", "_d/4.parquet", "out", "*", "*.parquet", "**/*.parquet", "a/**/*.parquet",
          "[ab]/?.p*", "?/c/2.*", ".*/*", "_*/*", "**/2.parquet", "*/*", "*/", "day=*/hour=3", "day=*", "**/c/*",
          "b//2.pq", "out.scorer/*", "[1-2].parquet", "day=*/hour=3/x.parquet", "*/1.parquet"]  # fmt: skip


@pytest.fixture
def store():
    with bucket() as found:
        yield found


def relative(inputs, top, ignore=()):
    files, skipped = list_files([f"{top}/{text}" for text in inputs], set(ignore))
    return [
        (file.path.removeprefix(f"{top}/"), file.folder, file.top.removeprefix(str(top))) for file in files
    ], skipped


@pytest.mark.parametrize("text", INPUTS)
def test_a_store_lists_what_a_disk_lists_in_the_same_order(tmp_path, store, text):
    for name in NAMES:
        write(tmp_path / name, ONE)
    store.fill(*NAMES)
    assert relative([text], ROOT) == relative([text], tmp_path)


@pytest.mark.parametrize("text", ["", "nothing", "a/nothing", "1.parqet", "*.nothing", "e", "n/*.parquet"])
def test_what_a_disk_refuses_a_store_refuses_with_the_same_words(tmp_path, store, text):
    write(tmp_path / "1.parquet", ONE)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "notes.txt").write_text("hello")
    store.fill("1.parquet")
    store.put(f"{ROOT}/e/notes.txt", b"hello")
    if not text:
        (tmp_path / "1.parquet").unlink()
        store.remove([f"{ROOT}/1.parquet"])
    with pytest.raises(InputNotFound) as wanted:
        relative([text], tmp_path)
    with pytest.raises(InputNotFound) as found:
        relative([text], ROOT)
    assert (found.value.what, found.value.expected) == (wanted.value.what, wanted.value.expected)


def test_a_missing_object_is_refused_with_similar_names(store):
    store.fill("x/orders-1.parquet", "x/orders-2.parquet")
    with pytest.raises(InputNotFound) as caught:
        relative(["x/order-1.parquet"], ROOT)
    assert caught.value.found == "nothing; similar names: 'orders-1.parquet', 'orders-2.parquet'"
    with pytest.raises(InputNotFound) as caught:
        relative(["y/orders-1.parquet"], ROOT)
    assert caught.value.found == f"nothing; nothing is below {ROOT}/y either"


@pytest.mark.parametrize("marker", ["_delta_log/0.json", ".hoodie/x", "_temporary/0", "metadata/v1.metadata.json"])
@pytest.mark.parametrize("text", ["", "deep", "deep/t", "d*"])
def test_folders_of_table_formats_are_refused_on_a_store(store, marker, text):
    store.fill("deep/t/a.parquet")
    store.put(f"{ROOT}/deep/t/{marker}", b"{}")
    with pytest.raises(InputError, match="do not belong to its current data") as caught:
        relative([text], ROOT)
    assert caught.value.where == f"{ROOT}/deep/t"


def test_empty_objects_that_mark_folders_are_no_files(store):
    store.fill("t.parquet/a.parquet", "t.parquet/b/c.parquet")
    for marker in ("t.parquet", "t.parquet/b", "t.parquet/empty", "t.parquet/empty_$folder$"):
        store.put(f"{ROOT}/{marker}", b"")
    for text in ("", "t.parquet", "*"):
        files, skipped = relative([text], ROOT)
        assert [path for path, *_ in files] == ["t.parquet/a.parquet", "t.parquet/b/c.parquet"]
        assert skipped == 0


@pytest.mark.parametrize("text", ["x", "x/a.parquet", "x/*", "**/a.parquet"])
def test_another_name_of_a_scheme_is_the_same_store(store, text):
    store.fill("x/a.parquet")
    files, _ = list_files([f"S3A://mem/{text}"], set())
    assert [file.path for file in files] == [f"{ROOT}/x/a.parquet"]


def test_a_name_that_no_client_can_hold_is_refused(store):
    with pytest.raises(InputError, match="name of an object cannot be read"):
        relative(["a\tb.parquet"], ROOT)


def test_one_object_twice_is_refused(store):
    store.fill("a/1.parquet")
    with pytest.raises(InputError, match="contains one file twice"):
        relative(["a/1.parquet", "a"], ROOT)


def test_folders_to_ignore_are_ignored_on_a_store(store):
    store.fill("in/a.parquet", "new/b.parquet")
    assert relative([""], ROOT, {f"{ROOT}/new"})[0] == [("in/a.parquet", "in", "")]


def test_an_object_whose_name_looks_like_a_pattern_is_itself(store):
    store.fill("a[1].parquet", "a1.parquet")
    assert [path for path, *_ in relative(["a[1].parquet"], ROOT)[0]] == ["a[1].parquet"]


def test_a_thousand_objects_cost_one_page_and_one_range_for_each_footer(store):
    store.fill(*(f"t/day={day}/{i}.parquet" for day in range(10) for i in range(100)))
    for text in ("t", "t/*", "t/*/*.parquet", "t/day=[0-9]/?*.parquet"):
        store.requests.clear()
        dataset = summarise([f"{ROOT}/{text}"])
        assert len(dataset.files) == 1000
        assert store.requests["GET"] == 1000
        assert store.requests["HEAD"] <= 1  # whether an object has the pattern as its name
        assert store.requests["LIST"] <= 12 + 1
    assert store.identity(f"{ROOT}/t/day=3/7.parquet") in {file.id for file in dataset.files}


def test_objects_that_where_rules_out_by_their_keys_are_not_read(store):
    store.fill(*(f"t/day={day}/x.parquet" for day in range(20)))
    from scorer.dataset import conditions

    dataset = summarise([f"{ROOT}/t"], conditions=[conditions.parse("day >= 17")])
    assert [file.hive for file in dataset.files] == [{"day": str(day)} for day in (17, 18, 19)]
    assert (len(dataset.left_out), store.requests["GET"]) == (17, 3)


@pytest.mark.parametrize("base", [f"{ROOT}/t", f"{ROOT}/t/", "s3a://mem//t"])
def test_keys_are_read_from_the_folders_below_a_base_on_a_store(store, base):
    store.fill("t/year=2026/day=3/x.parquet", "t/year=2025/day=4/y.parquet")
    dataset = summarise([f"{ROOT}/t/year=2026", f"{ROOT}/t/year=2025/day=4"], base=base)
    assert [file.folder for file in dataset.files] == ["year=2026/day=3", "year=2025/day=4"]


@pytest.mark.parametrize("base", [f"{ROOT}/other", f"{ROOT}/t/year", "/tmp"])
def test_an_object_that_is_not_below_the_base_is_refused(store, base):
    store.fill("t/year=2026/x.parquet")
    with pytest.raises(InputError, match="not below --base"):
        summarise([f"{ROOT}/t"], base=base)


def test_a_local_file_is_not_below_a_base_on_a_store(tmp_path, store):
    with pytest.raises(InputError, match="not below --base"):
        summarise([str(write(tmp_path / "x.parquet", ONE))], base=f"{ROOT}/t")


def test_an_object_that_is_no_parquet_file_is_refused(store):
    store.fill("t/a.parquet")
    store.put(f"{ROOT}/t/b.parquet", b"a,b\n1,2\n" * 100)
    store.put(f"{ROOT}/t/c.parquet", b"")
    with pytest.raises(UnreadableFile) as caught:
        summarise([f"{ROOT}/t"])
    assert (caught.value.where, caught.value.found) == (f"{ROOT}/t/b.parquet", "a CSV file")
    assert "and 1 more" in caught.value.what
    assert caught.value.hint.startswith("download it first")
    assert ROOT not in caught.value.hint


def test_a_folder_of_another_format_is_refused_with_what_converts_it(store):
    store.put(f"{ROOT}/t/b.csv", b"a,b\n1,2\n" * 100)
    for text in ("t", "t/*"):
        with pytest.raises(InputNotFound) as caught:
            summarise([f"{ROOT}/{text}"])
        assert f"such as {ROOT}/t/b.csv, a CSV file" in caught.value.found


def test_a_url_as_a_path_of_pathlib_is_refused_with_a_hint():
    with pytest.raises(InputNotFound) as caught:
        summarise([str(Path("s3://bucket/x.parquet"))])
    assert "as a str" in caught.value.hint
