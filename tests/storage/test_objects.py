"""What an object store promises its callers, on a store in memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from scorer.storage.files import FileId
from scorer.storage.objects import Changed, ObjectStore, _etag

obstore_store = pytest.importorskip("obstore.store")

TOP = "s3://tests-in-memory/top"


@pytest.fixture
def store():
    return ObjectStore("s3://tests-in-memory", obstore_store.MemoryStore(), waits=())


def test_a_new_object_is_written_once(store):
    first = store.put_new(f"{TOP}/a", b"1")
    assert (store.put_new(f"{TOP}/a", b"2"), store.read(f"{TOP}/a")) == (None, b"1")
    assert first == store.identity(f"{TOP}/a") == FileId(f"{TOP}/a", 1, first.version)


def test_an_object_is_replaced_only_by_who_saw_it_last(store):
    first = store.put_new(f"{TOP}/a", b"1")
    second = store.put_over(f"{TOP}/a", b"22", first)
    assert store.put_over(f"{TOP}/a", b"333", first) is None
    assert store.read_with_identity(f"{TOP}/a") == (b"22", second)
    store.remove([f"{TOP}/a"])
    assert store.put_over(f"{TOP}/a", b"4444", second) is None


def test_of_many_threads_one_writes_a_new_object(store):
    with ThreadPoolExecutor(8) as pool:
        for race in range(50):
            got = list(pool.map(lambda n, race=race: store.put_new(f"{TOP}/{race}", b"%d" % n), range(8)))
            (winner,) = [number for number, written in enumerate(got) if written]
            assert store.read(f"{TOP}/{race}") == b"%d" % winner


def test_a_range_is_read_of_the_object_that_was_seen(store):
    seen = store.put(f"{TOP}/a", b"0123456789")
    assert store.read_range(seen, 2, 5) == b"234"
    store.put(f"{TOP}/a", b"9876543210")
    with pytest.raises(Changed):
        store.read_range(seen, 2, 5)


def test_a_folder_has_the_objects_and_folders_directly_below(store):
    for name in ("a", "b/c", "b/d/e", "f/g"):
        store.put(f"{TOP}/{name}", b"1")
    store.put(f"{TOP}-beside/a", b"1")
    files, folders = store.folder(TOP)
    assert [file.path for file in files] == [f"{TOP}/a"]
    assert sorted(folders) == [f"{TOP}/b", f"{TOP}/f"]
    assert [file.path for file in store.objects(TOP)] == [f"{TOP}/{name}" for name in ("a", "b/c", "b/d/e", "f/g")]
    assert len(list(store.objects("s3://tests-in-memory"))) == 5


def test_an_error_is_an_oserror_with_the_location_and_without_debug_output(store):
    for ask in (store.read, store.identity, lambda location: store.copy(location, f"{TOP}/b")):
        with pytest.raises(FileNotFoundError) as error:
            ask(f"{TOP}/gone")
        assert error.value.filename.startswith(TOP)
        assert "Debug source" not in str(error.value)
        assert "\n" not in str(error.value)


def test_a_location_on_another_store_is_a_mistake(store):
    with pytest.raises(OSError, match="is not in s3://tests-in-memory"):
        store.read("s3://other/a")


def test_objects_that_are_gone_do_not_stop_a_removal(store):
    names = [f"{TOP}/{number}" for number in range(30)]
    for name in names[::2]:
        store.put(name, b"1")
    store.remove(names)
    store.remove(names)
    store.remove([])
    assert list(store.objects(TOP)) == []


@pytest.mark.parametrize(
    ("given", "etag"), [('"a"', '"a"'), ("0x8D", '"0x8D"'), ('W/"a"', 'W/"a"'), ("", ""), (None, "")]
)
def test_an_etag_has_its_quotes_also_where_a_listing_leaves_them_out(given, etag):
    assert _etag(given) == etag
