"""The servers of the tests do what tests ask of them: identities with fewer rights, pauses, stops and restarts."""

from __future__ import annotations

from datetime import timedelta

import pytest

from scorer.storage import stores
from services import stores as servers
from services.conftest import enter_or_skip

pytestmark = pytest.mark.service

RIGHTS = {"tests": servers.RIGHTS["tests"], "reader": ("Read", "List"), "writer": ("Write",), "stranger": ()}


@pytest.fixture(scope="module")
def own():
    """A server that only the tests here use."""
    with enter_or_skip(servers.seaweed(RIGHTS), "obstore") as server:
        yield server


def store_as(name, own, monkeypatch, location):
    """Return the store as this identity sees it."""
    for key, value in own.user(name).items():
        monkeypatch.setenv(key, value)
    stores._stores.clear()
    return stores.of(location)


def may(action):
    """Return whether the store allows it."""
    try:
        action()
    except PermissionError:
        return False
    return True


def test_an_identity_may_do_what_its_rights_allow(own, monkeypatch):
    place = f"{own.bucket()}/a"
    store_as("tests", own, monkeypatch, place).put(place, b"1")
    allowed = {}
    for name in (*RIGHTS, "nobody"):
        store = store_as(name, own, monkeypatch, place)
        actions = {
            "list": lambda store=store: list(store.objects(place)),
            "read": lambda store=store: store.read(place),
            "write": lambda store=store, name=name: store.put(f"{place} by {name}", b"1"),
            "remove": lambda store=store, name=name: store.remove([f"{place} by {name}"]),
        }
        allowed[name] = [action for action, call in actions.items() if may(call)]
    assert allowed == {
        "tests": ["list", "read", "write", "remove"],
        "reader": ["list", "read"],
        "writer": ["write", "remove"],
        "stranger": [],
        "nobody": [],
    }


def test_a_server_is_paused_stopped_and_started_again_with_its_objects(own, monkeypatch):
    monkeypatch.setattr(stores, "_HASTY_TIMEOUT", timedelta(milliseconds=500))
    monkeypatch.setattr(stores, "_HASTY", stores._HASTY | {"max_retries": 0})
    place = f"{own.bucket()}/a"
    store_as("tests", own, monkeypatch, place).put(place, b"1")
    store = stores.of(place, hasty=True)
    with own.programs.paused(), pytest.raises(OSError, match=r"timed out|error sending request"):
        store.read(place)
    assert store.read(place) == b"1"
    own.programs.stop()
    with pytest.raises(OSError, match="error sending request"):
        store.read(place)
    own.programs.start()
    assert stores.of(place).read(place) == b"1"
