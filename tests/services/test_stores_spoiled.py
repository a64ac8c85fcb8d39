"""Each verb of a store gives the right result although one request is spoiled, in each way in which requests fail."""

from __future__ import annotations

import errno
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from scorer.storage import objects as objects_
from scorer.storage import stores
from scorer.storage.files import THROTTLED
from scorer.storage.objects import Changed
from services.spoiling import FAULTS, OTHERS, spoiling

pytestmark = pytest.mark.service

BYTES = bytes(range(256)) * 40
LOST = {"reset after", "cut", "stall"}
"""After these the write is done, but nobody was told: a conditional write that is repeated finds itself."""


def objects(store, top):
    return [(file.path, file.size) for file in store.objects(top)] == [(f"{top}/a", len(BYTES)), (f"{top}/b/c", 3)]


def folder(store, top):
    files, folders = store.folder(top)
    return [file.path for file in files] == [f"{top}/a"] and folders == [f"{top}/b"]


def identity(store, top):
    return store.identity(f"{top}/a").size == len(BYTES)


def read(store, top):
    return store.read(f"{top}/a") == BYTES


def read_range(store, top):
    return store.read_range(store.identity(f"{top}/a"), 5, 7000) == BYTES[5:7000]


def put(store, top):
    store.put(f"{top}/new", b"put")
    return store.read(f"{top}/new") == b"put"


def copy(store, top):
    store.copy(f"{top}/a", f"{top}/new")
    return store.read(f"{top}/new") == BYTES


def remove(store, top):
    store.remove([f"{top}/a", f"{top}/b/c"])
    return not list(store.objects(top))


PASSING = [fault for fault in FAULTS + OTHERS if fault not in {"403", "401", "expired"}]
READS = {"LIST": (objects, folder), "HEAD": (identity,), "GET": (read, read_range)}
WRITES = {"PUT": (put,), "COPY": (copy,), "DELETE": (remove,)}


@pytest.fixture(scope="module")
def _proxy(_seaweed):
    with spoiling(_seaweed) as proxy:
        yield proxy, _seaweed.bucket()


@pytest.fixture
def spoiled(_proxy, s3, monkeypatch):
    """A proxy before the server, a store behind it, and a folder there with two objects."""
    proxy, bucket = _proxy
    for name, value in proxy.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(stores, "_TIMEOUT", timedelta(seconds=1))
    top = f"{bucket}/{uuid.uuid4().hex}"
    store = stores.of(top)
    store.put(f"{top}/a", BYTES)
    store.put(f"{top}/b/c", b"123")
    proxy.faults.clear()
    return proxy, store, top


CASES = [
    (verb, call, fault)
    for verb, calls in (READS | WRITES).items()
    for call in calls
    for fault in PASSING
    if fault != "409" and (verb, fault) != ("HEAD", "400")  # without a body it says nothing, and is final
]


@pytest.mark.parametrize(("verb", "call", "fault"), CASES)
def test_a_verb_survives_a_spoiled_request(spoiled, verb, call, fault):
    proxy, store, top = spoiled
    proxy.spoil(verb, fault)
    assert call(store, top)
    assert proxy.faults == {(verb, fault): 1}


@pytest.mark.parametrize("fault", PASSING)
def test_a_new_object_is_written_once_although_its_request_is_spoiled(spoiled, fault):
    proxy, store, top = spoiled
    proxy.spoil("PUT", fault)
    written = store.put_new(f"{top}/new", b"first")
    assert (written is None) == (fault in LOST)
    assert store.put_new(f"{top}/new", b"second") is None
    assert store.read(f"{top}/new") == b"first"
    assert proxy.faults == {("PUT", fault): 1}


@pytest.mark.parametrize("fault", PASSING)
def test_an_object_is_replaced_once_although_its_request_is_spoiled(spoiled, fault):
    proxy, store, top = spoiled
    seen = store.identity(f"{top}/a")
    proxy.spoil("PUT", fault)
    written = store.put_over(f"{top}/a", b"first", seen)
    assert (written is None) == (fault in LOST)
    assert store.put_over(f"{top}/a", b"second", seen) is None
    assert store.read(f"{top}/a") == b"first"
    with pytest.raises(Changed):
        store.read_range(seen, 0, 5)
    assert proxy.faults == {("PUT", fault): 1}


@pytest.mark.parametrize(("verb", "call"), [(verb, call) for verb, calls in (READS | WRITES).items() for call in calls])
def test_a_missing_right_is_reported_at_once(spoiled, verb, call):
    proxy, store, top = spoiled
    proxy.spoil(verb, "403")
    with pytest.raises(PermissionError, match="Forbidden" if verb == "HEAD" else "AccessDenied|Access Denied"):
        call(store, top)
    assert proxy.faults == {(verb, "403"): 1}


@pytest.mark.parametrize("fault", ["500", "503", "stall"])
def test_a_store_that_fails_for_ever_is_given_up_in_time_and_each_attempt_is_counted(spoiled, fault, monkeypatch):
    proxy, store, top = spoiled
    monkeypatch.setattr(objects_, "_PATIENCE_S", 3.5)
    monkeypatch.setattr(proxy, "rate", 1.0)
    monkeypatch.setattr(proxy, "fault_kinds", (fault,))
    before, began = THROTTLED.so_far, time.monotonic()
    with pytest.raises(OSError, match=r"error sending request|Error performing GET|InternalError|SlowDown") as refused:
        store.read(f"{top}/a")
    took = time.monotonic() - began
    times, seconds = THROTTLED.since(before)
    assert refused.value.errno == errno.EREMOTEIO
    assert took < 3.5 + 1  # an attempt takes a second at most
    assert times == proxy.faults["GET", fault] - 1 > 0
    assert 0 < seconds <= took


@pytest.mark.parametrize("fault", ["401", "expired"])
def test_credentials_that_expired_are_waited_for_once_and_taken_anew(spoiled, s3, fault, monkeypatch):
    proxy, _, top = spoiled
    monkeypatch.setattr(objects_, "_RENEWAL_S", 0.3)
    for name, value in (s3.user("reader") | {"AWS_ENDPOINT_URL": proxy.endpoint}).items():
        monkeypatch.setenv(name, value)
    stores._stores.clear()
    store = stores.of(top)
    with pytest.raises(PermissionError):
        store.put(f"{top}/a", b"1")
    for name, value in proxy.environment.items():  # meanwhile, the environment gets credentials that may write
        monkeypatch.setenv(name, value)
    proxy.spoil("PUT", fault)
    began = time.monotonic()
    store.put(f"{top}/a", b"1")
    assert time.monotonic() - began >= 0.3
    proxy.spoil("GET", fault, times=2)
    with pytest.raises(OSError, match=r"ExpiredToken|InvalidToken|Unauthorized"):
        store.read(f"{top}/a")
    assert store.read(f"{top}/a") == b"1"


@pytest.mark.parametrize("fault", ["400", "cut"])
def test_a_listing_goes_on_after_a_spoiled_page_without_doubles(spoiled, fault):
    proxy, store, top = spoiled
    names = [f"{top}/many/{number:04d}" for number in range(1_100)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: store.put(name, b""), names))
    proxy.spoil("LIST", fault, name="continuation-token=")
    assert [file.path for file in store.objects(f"{top}/many")] == names
    assert proxy.faults == {("LIST", fault): 1}


def test_one_request_in_five_may_be_spoiled_and_the_same_ones_again_with_the_same_seed(s3, monkeypatch):
    counts = []
    bucket = s3.bucket()
    for _ in range(2):
        with spoiling(s3, rate=0.2, seed=3) as proxy:
            for name, value in proxy.environment.items():
                monkeypatch.setenv(name, value)
            stores._stores.clear()
            store = stores.of(bucket)
            for number in range(20):
                store.put(f"{bucket}/{number}", b"%d" % number)
            assert sorted(int(store.read(file.path)) for file in store.objects(bucket)) == list(range(20))
            store.remove([f"{bucket}/{number}" for number in range(20)])
            counts.append((proxy.requests, proxy.faults))
    assert counts[0] == counts[1]
    assert counts[0][1].total() > 4
