"""Fixtures that many tests need: data, back ends and golden files."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from support.runs import BACKENDS
from support.watched_runs import Window

from scorer.display import terminal
from scorer.display.terminal import Terminal


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write the golden files again")


def pytest_configure(config):
    """Let commands of tests receive Ctrl-C, even if a shell ignores it because it runs the tests in the background.

    Hypothesis makes the same examples every time, so that a change fails or passes for its own sake; new ones come with
    `--hypothesis-profile random`. An example has no time limit, which a busy machine would exceed.
    """
    settings.register_profile("repeatable", deadline=None, derandomize=True)
    settings.register_profile("random", deadline=None)
    settings.load_profile(config.getoption("--hypothesis-profile") or "repeatable")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config):
    """Return 0 workers for service tests: one Slurm or Grid Engine uses the whole machine."""
    return 0 if config.option.markexpr.startswith("service") else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Run with worker processes, which take seconds to start, only in `-m slow`, except the most important promises."""
    for item in items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if (
            any(isinstance(value, str) and value == "processes" for value in values)
            and item.path.name != "test_flow.py"
        ):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def empty_cache(tmp_path_factory):
    """An empty cache folder, so that tuning neither reads nor writes the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def no_cloud(tmp_path_factory):
    """No credentials for object stores, so that no test uses the user's, and no question to a metadata service."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [*os.environ]:
            if name.startswith(("AWS_", "GOOGLE_", "AZURE_")) and not name.endswith("_BUNDLE"):
                patch.delenv(name)
        none = tmp_path_factory.mktemp("no-cloud")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", str(none / "config"))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(none / "credentials"))
        yield


@pytest.fixture(params=BACKENDS)
def backend(request):
    """The options that choose each back end, one after the other."""
    return {"cluster": request.param} | ({"workers": 2, "threads": 1} if request.param == "processes" else {})


@pytest.fixture
def golden(request):
    """Compare a text with a file in tests/golden, or write it with --update-golden."""

    def compare(name, text):
        path = Path(__file__).parent / "golden" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8")
        assert text == path.read_text("utf-8")

    return compare


def _floats28(folder, *files):
    rng = np.random.default_rng(7)
    folder.mkdir()
    first = 0
    for i, rows in enumerate(files):
        columns = {f"f{j}": rng.standard_normal(rows).astype(np.float32) for j in range(28)}
        table = pa.table({"id": np.arange(first, first + rows), **columns})
        pq.write_table(table, folder / f"data-{i}.parquet", row_group_size=-(-rows // 3))
        first += rows
    return folder


@pytest.fixture
def floats28(tmp_path):
    """200,000 rows of 28 random floats and an id, in 3 files of 3 row groups."""
    return _floats28(tmp_path / "input", 70_000, 70_000, 60_000)


@pytest.fixture
def fewer28(tmp_path):
    """The same with 60,000 rows."""
    return _floats28(tmp_path / "input", 21_000, 21_000, 18_000)


@pytest.fixture
def window(monkeypatch):
    """A terminal window of a given size, as `terminal_of` sees it."""
    made = Window()
    monkeypatch.setattr(
        terminal, "terminal_of", lambda _: Terminal(columns=made.screen.columns, rows=made.screen.rows, lines=True)
    )
    monkeypatch.setattr(
        "scorer.report.live.terminal_of", lambda _: Terminal(columns=made.screen.columns, rows=24, lines=True)
    )
    return made
