"""Whether a service that is missing lets its tests off."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from services.conftest import present
from services.processes import Missing, importable


@contextmanager
def absent():
    """A service that nobody has."""
    raise Missing("not installed: a thing")
    yield


def test_a_missing_service_skips_its_tests_and_says_why(monkeypatch):
    monkeypatch.delenv("SCORER_SERVICES", raising=False)
    with pytest.raises(pytest.skip.Exception, match="not installed: a thing"), present(absent()):
        pass


def test_a_missing_service_that_is_required_fails_its_tests(monkeypatch):
    monkeypatch.setenv("SCORER_SERVICES", "required")
    with pytest.raises(pytest.fail.Exception, match="not installed: a thing"), present(absent()):
        pass


def test_a_missing_module_counts_as_well():
    with pytest.raises(Missing, match="no_such_module"):
        importable("json", "no_such_module")
