"""What scorer relies on, on each kind of store: SeaweedFS, Azurite, an emulator of Google Cloud Storage, and a disk."""

from __future__ import annotations

import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from threading import Barrier

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scorer.output import writer
from scorer.storage import stores
from scorer.storage.objects import Changed

pytestmark = pytest.mark.service

RACES, RUNNERS, AT_ONCE, ROUNDS = 100, 8, 50, 2
SERVERS = ("s3", "az", "gs")
LARGE = (64 << 20) + 1
NAMES = {
    "blanks": "a  b c/d e",
    "percent": "100%/%20%2F%zz",
    "equals and plus": "day=2026-01-01+02/a+b=c",
    "umlauts": "größe/naïve-日本語-🙂",
    "decomposed umlaut": "u\u0308ber",
    "hash and question mark": "a#b/c?d&e=f",
    "quotes": "it's \"so\"/`'",
    "punctuation": "!$&(),;:@/[]{}|^~*",
    "angle brackets": "<a>/&amp;",
    "dots": "...a/b..c/.d",
    "very long": "/".join(letter * 200 for letter in "abcd") + "/" + "e" * 190,  # 1,024 bytes are allowed
}


@pytest.fixture(params=SERVERS)
def server(request):
    """Each server in turn, with its credentials in the environment."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def buckets():
    """One bucket on each server, made when it is needed."""
    return {}


@pytest.fixture
def top(server, buckets):
    """A folder of its own."""
    if server not in buckets:
        buckets[server] = server.bucket()
    return f"{buckets[server]}/{uuid.uuid4().hex[:8]}"


@pytest.fixture
def store(top):
    """The store on which it is."""
    return stores.of(top)


def raced(races, run):
    """Call run(race, runner) for each runner of each race at once; return what each race's runners got, in order.

    Many races are under way at the same time, because SeaweedFS lets those who wait for an object look once a second.
    """
    starts = [Barrier(RUNNERS) for _ in range(races)]

    def one(race, runner):
        starts[race].wait()
        return run(race, runner)

    with ThreadPoolExecutor(RUNNERS * AT_ONCE) as pool:
        got = list(pool.map(one, *zip(*product(range(races), range(RUNNERS)), strict=True)))
    return [got[at : at + RUNNERS] for at in range(0, len(got), RUNNERS)]


def oracle_reads(server, location):
    """Return what pyarrow finds there."""
    with server.files().open_input_stream(location.partition("://")[2]) as file:
        return file.read()


def content(race, runner):
    """Return what this runner writes: never the same twice, and of the same length as the others."""
    return f"{race:04d} by {runner}".encode()


def test_of_eight_that_write_a_new_object_one_wins_and_its_content_is_there(store, top):
    for race, got in enumerate(
        raced(RACES, lambda race, runner: store.put_new(f"{top}/{race}", content(race, runner)))
    ):
        (winner,) = [runner for runner, written in enumerate(got) if written]
        assert store.read_with_identity(f"{top}/{race}") == (content(race, winner), got[winner])


def test_of_eight_that_replace_an_object_one_wins_and_its_content_is_there(store, top):
    seen = [store.put_new(f"{top}/{number}", b"0") for number in range(RACES // ROUNDS)]
    for beat in range(ROUNDS):

        def replace(number, runner, beat=beat):
            return store.put_over(f"{top}/{number}", content(beat, runner), seen[number])

        for number, got in enumerate(raced(len(seen), replace)):
            (winner,) = [runner for runner, written in enumerate(got) if written]
            assert store.read_with_identity(f"{top}/{number}") == (content(beat, winner), got[winner])
            seen[number] = got[winner]


def test_an_object_that_is_gone_is_not_replaced(store, top):
    seen = store.put(f"{top}/a", b"1")
    store.remove([f"{top}/a"])
    assert store.put_over(f"{top}/a", b"2", seen) is None
    with pytest.raises(FileNotFoundError):
        store.read(f"{top}/a")


def test_the_identity_is_the_same_however_it_is_asked_for(store, top):
    written = store.put_new(f"{top}/a", b"123")
    assert written.version
    assert [written] == [store.identity(written.path)] == list(store.objects(top)) == store.folder(top)[0]
    assert store.read_with_identity(written.path) == (b"123", written)
    assert store.put(written.path, b"456") == store.identity(written.path) != written


def test_a_listing_shows_what_was_written_before_and_nothing_that_was_removed(store, top):
    for number in range(20):
        store.put_new(f"{top}/{number}", b"")
        assert len(list(store.objects(top))) == 1
        store.remove([f"{top}/{number}"])
        assert list(store.objects(top)) == []


def test_a_range_is_of_the_object_that_was_seen(store, top):
    old = store.put(f"{top}/a", bytes(range(200)))
    assert store.read_range(old, 0, 200) == bytes(range(200))
    assert store.read_range(old, 150, 200) == bytes(range(150, 200))
    new = store.put(f"{top}/a", bytes(reversed(range(200))))
    with pytest.raises(Changed):
        store.read_range(old, 0, 10)
    assert store.read_range(new, 1, 3) == bytes([198, 197])


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_any_name_is_kept(server, store, top, name):
    place, other = f"{top}/{name}", f"{top}/copies/{name}"
    written = store.put_new(place, name.encode())
    assert [store.identity(place)] == list(store.objects(top)) == [written]
    assert oracle_reads(server, place) == store.read(place) == store.read_range(written, 0, 10_000) == name.encode()
    store.copy(place, other)
    assert [one.path for one in store.objects(f"{top}/copies")] == [other]
    store.remove([place, other])
    assert list(store.objects(top)) == []


def test_what_the_oracle_writes_is_read_under_its_name(server, store, top):
    for name in NAMES.values():
        with server.files().open_output_stream(f"{top}/{name}".partition("://")[2]) as file:
            file.write(name.encode())
    found = {one.path: store.read(one.path) for one in store.objects(top) if one.size}
    assert found == {f"{top}/{name}": name.encode() for name in NAMES.values()}


def test_a_copy_replaces_what_is_there(store, top):
    store.put(f"{top}/a", b"new")
    store.put(f"{top}/b", b"old one")
    store.copy(f"{top}/a", f"{top}/b")
    assert store.read(f"{top}/a") == store.read(f"{top}/b") == b"new"


def test_a_missing_object_is_not_found(store, top):
    seen = store.put(f"{top}/a", b"1")
    store.remove([seen.path])
    for ask in (
        lambda: store.read(seen.path),
        lambda: store.identity(seen.path),
        lambda: store.copy(seen.path, f"{top}/b"),
    ):
        with pytest.raises(FileNotFoundError) as error:
            ask()
        assert error.value.filename in {seen.path, f"{top}/b"}
    with pytest.raises((FileNotFoundError, Changed)):  # some say that it has another ETag
        store.read_range(seen, 0, 1)
    store.remove([seen.path])
    assert list(store.objects(top)) == []
    assert store.folder(top) == ([], [])


@pytest.mark.parametrize(
    ("server", "many"),
    [
        ("s3", 2_500),
        ("gs", 2_500),
        ("az", 600),
        pytest.param("az", 2_500, marks=pytest.mark.minutes),
    ],  # Azurite is slow
    indirect=["server"],
)
def test_many_objects_are_listed_in_order_and_removed_although_some_are_gone(store, top, many):
    names = [f"{top}/{number % 3}/{number:05d}" for number in range(many)]
    beside = store.put(f"{top}-beside", b"")
    with ThreadPoolExecutor(16) as pool:
        written = list(pool.map(lambda name: store.put(name, name.encode()), names))
    assert list(store.objects(top)) == sorted(written, key=lambda one: one.path)
    assert store.folder(top) == ([], [f"{top}/0", f"{top}/1", f"{top}/2"])
    assert len(store.folder(f"{top}/0")[0]) == len(names[::3])
    store.remove([names[3], names[-70]])
    store.remove(names)
    assert list(store.objects(top)) == []
    assert store.identity(beside.path) == beside


def test_an_empty_object_is_one(store, top):
    written = store.put_new(f"{top}/empty", b"")
    assert (written.size, store.put_new(f"{top}/empty", b"1"), store.read(f"{top}/empty")) == (0, None, b"")
    assert store.identity(f"{top}/empty") == written


@pytest.mark.parametrize(
    ("server", "form"),
    [("s3", "s3a://{}"), ("gs", "gcs://{}")]
    + [
        ("az", form)
        for form in ("abfs://{}", "abfss://{}", "azure://{}", "abfss://{}@scoreraccount.dfs.core.windows.net")
    ],
    indirect=["server"],
)
def test_the_other_forms_of_a_url_reach_the_same_objects(store, top, form):
    store.put(f"{top}/a b", b"1")
    bucket, _, folder = top.partition("://")[2].partition("/")
    other = stores.path_of(f"{form.format(bucket)}/{folder}")
    assert (other / "a b").read_bytes() == b"1"
    assert [path.name for path in other.iterdir()] == ["a b"]


def test_a_large_object_is_written_at_once(server, store, top):
    data = os.urandom(1 << 20) * (LARGE >> 20) + b"."
    written = store.put_new(f"{top}/large", data)
    assert store.put_new(f"{top}/large", data) is None
    assert store.identity(f"{top}/large") == written
    assert store.read(f"{top}/large") == data
    assert store.read_range(written, LARGE - 5, LARGE) == data[-5:]
    assert oracle_reads(server, f"{top}/large") == data


def test_on_a_disk_too_of_eight_that_commit_a_file_one_wins_and_its_content_is_there(tmp_path):
    def commit(race, runner):
        attempt = tmp_path / f"attempt-{race}-{runner}"
        pq.write_table(pa.table({"by": [runner]}), attempt)
        return writer.commit(attempt, tmp_path / f"{race}.parquet", 1)

    for race, got in enumerate(raced(RACES, commit)):
        assert sorted(got) == [False] * (RUNNERS - 1) + [True]
        assert pq.read_table(tmp_path / f"{race}.parquet")["by"].to_pylist() == [got.index(True)]
    assert len(list(tmp_path.iterdir())) == RACES
