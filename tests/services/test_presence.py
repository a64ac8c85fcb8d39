"""Tests of a missing service are skipped, or fail if services are required."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from services.conftest import enter_or_skip
from services.processes import Missing, require_modules


@contextmanager
def absent():
    """A service that is never installed."""
    raise Missing("not installed: a thing")
    yield


def test_a_missing_service_skips_its_tests_and_says_why(monkeypatch):
    monkeypatch.delenv("SCORER_SERVICES", raising=False)
    with pytest.raises(pytest.skip.Exception, match="not installed: a thing"), enter_or_skip(absent()):
        pass


def test_a_missing_service_that_is_required_fails_its_tests(monkeypatch):
    monkeypatch.setenv("SCORER_SERVICES", "required")
    with pytest.raises(pytest.fail.Exception, match="not installed: a thing"), enter_or_skip(absent()):
        pass


def test_a_missing_module_makes_a_service_missing():
    with pytest.raises(Missing, match="no_such_module"):
        require_modules("json", "no_such_module")
