"""A path on a store answers as pathlib's does for the same tree on a disk, as far as a store has folders."""

from __future__ import annotations

import os
import pickle
from pathlib import PurePosixPath

import pytest

from scorer.storage import stores
from scorer.storage.objects import ObjectStore
from scorer.storage.stores import ObjectPath

obstore_store = pytest.importorskip("obstore.store")

FILES = {
    "part-0.parquet": b"0",
    "part-1.parquet": b"11",
    "notes.txt": b"",
    ".hidden": b"h",
    "no-suffix": b"n",
    "two.dots.gz": b"2",
    "day=2026-01-01/part-0.parquet": b"a b",
    "day=2026-01-02/part-0.parquet": b"c",
    "day=2026-01-02/deep/er/x %20=ü.parquet": b"d",
    "ab/c": b"e",
    "abc/d": b"f",
}
EVERY = [*FILES, "", "ab", "abc", "day=2026-01-02", "day=2026-01-02/deep", "gone", "ab/gone", "part-0.parquet.tmp"]


@pytest.fixture
def both(tmp_path, monkeypatch):
    """The same tree on a disk and on a store: the paths of its two tops."""
    root = "s3://tests-in-memory"
    monkeypatch.setattr(stores, "_stores", {})
    monkeypatch.setattr(stores, "_open", lambda root, **_: ObjectStore(root, obstore_store.MemoryStore()))
    here, there = tmp_path / "top", ObjectPath(f"{root}/top")
    for name, data in FILES.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(data)
        (there / name).write_bytes(data)
    ObjectPath(f"{root}/top-beside").write_bytes(b"beside")
    return here, there


def pair(both, name):
    return tuple(top / name if name else top for top in both)


def relative(paths, top):
    return sorted(str(path).removeprefix(str(top)).strip("/") for path in paths)


@pytest.mark.parametrize("name", EVERY)
def test_the_parts_of_a_name_are_those_of_pathlib(both, name):
    here, there = pair(both, name)
    assert (there.name, there.suffix, there.stem) == (here.name, here.suffix, here.stem)
    assert there.with_name("other.json").name == "other.json"
    assert there.with_name("other.json").parent == there.parent
    assert there.relative_to(both[1]) == PurePosixPath(here.relative_to(both[0]))
    assert there.is_relative_to(both[1])
    assert there.parts[-2:] == here.parts[-2:] if name else there.parts == ("s3://tests-in-memory", "top")
    above = [one for one in there.parents if one.is_relative_to(both[1])]
    assert relative(above, both[1]) == relative([one for one in here.parents if one.is_relative_to(both[0])], both[0])


@pytest.mark.parametrize("name", EVERY)
def test_what_is_there_is_what_pathlib_finds(both, name):
    here, there = pair(both, name)
    assert (there.exists(), there.is_file(), there.is_dir()) == (here.exists(), here.is_file(), here.is_dir())
    assert stores.exists(there) == stores.exists(here)
    assert stores.is_folder(there) == stores.is_folder(here)
    if here.is_file():
        assert there.read_bytes() == here.read_bytes()
        assert there.read_text() == here.read_text()
        assert there.stat().st_size == here.stat().st_size == stores.size_of(there) == stores.size_of(here)
    elif here.is_dir():
        assert relative(there.iterdir(), both[1]) == relative(here.iterdir(), both[0])
        inside = [path for path in here.rglob("*") if path.is_file()]
        assert relative(there.files(), "") == relative(inside, here)
    else:
        assert stores.size_of(there) == stores.size_of(here) == -1
        for read in (there.read_bytes, there.read_text, there.stat):
            with pytest.raises(FileNotFoundError) as error:
                read()
            assert error.value.filename == str(there)


PATTERNS = ("*", "*.parquet", "part-?.parquet", "part-[1-9]*", "*/*.parquet", "day=*/part-0.parquet", "ab*/*", "ab/c",
            "no/such", "*.PARQUET")  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_finds_what_pathlib_finds(both, pattern):
    here, there = both
    assert relative(there.glob(pattern), there) == relative(here.glob(pattern), here)


def test_a_file_is_written_replaced_and_removed_as_with_pathlib(both):
    for top in both:
        path = top / "new" / "a b.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("ü")
        assert path.read_bytes() == "ü".encode()
        path.write_bytes(b"other")
        assert path.read_text() == "other"
        path.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        assert not path.exists()
        if path.parent.exists():  # on a store there is no folder any more
            path.parent.rmdir()
        assert not path.parent.exists()


def test_a_path_that_is_not_below_another_has_no_relative_path(both):
    here, there = both
    for top in (here, there):
        with pytest.raises(ValueError, match="top"):
            (top / "abc").relative_to(top / "ab")
    assert not (there / "abc").is_relative_to(there / "ab")
    assert not there.is_relative_to(here)


def test_equal_paths_are_one_in_sets_sort_by_their_text_and_travel_as_text():
    path = ObjectPath("s3://b/a/c")
    assert {path, ObjectPath("s3a://b//a/c/")} == {path}
    assert pickle.loads(pickle.dumps(path)) == path != "s3://b/a/c"
    assert sorted([ObjectPath("s3://b/b"), path]) == [path, ObjectPath("s3://b/b")]
    assert (str(path), repr(path)) == ("s3://b/a/c", "ObjectPath('s3://b/a/c')")
    assert path.parent.parent == path.parent.parent.parent == ObjectPath("s3://b")
    assert path.parents == (ObjectPath("s3://b/a"), ObjectPath("s3://b"))
    with pytest.raises(TypeError):
        os.fspath(path)


def test_a_store_is_opened_once_for_each_bucket_and_again_after_other_options(monkeypatch):
    for name, value in {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    one = stores.of("s3://bucket-1/a")
    assert stores.of("s3a://bucket-1/b/c") is one is not stores.of("s3://bucket-2/a")
    assert stores.of("s3://bucket-1", hasty=True) is not one
    stores.configure(["region=eu-west-1"])
    assert stores.of("s3://bucket-1/a") is not one
    stores.configure([])
