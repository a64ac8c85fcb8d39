"""report.html in headless Chromium: no network request and no error, with any column names."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from support import headless_browser
from support.runs import MODELS, write

import scorer
from scorer.output.place import Place
from services.conftest import enter_or_skip
from services.processes import Missing

pytestmark = pytest.mark.service
GATHER = MODELS / "gather.onnx"
EVIL = "<script>alert(1)</script>"


@contextmanager
def _browser():
    if headless_browser.chromium() is None:
        raise Missing("not installed: chromium; .ci/services installs it")
    yield Path(headless_browser.__file__)


@pytest.fixture(name="browser")
def browser_():
    """The script that checks a page."""
    with enter_or_skip(_browser(), "playwright") as script:
        yield script


def test_the_page_works_in_a_browser_light_and_dark_wide_and_narrow(browser, tmp_path):
    index = np.arange(3_000) % 10
    index[[7, 8, 2000]] = 77
    columns = {"idx": index, EVIL: [f"{EVIL}{i}" for i in range(3_000)]}
    source = write(tmp_path / "in.parquet", columns, row_group_size=200)
    scorer.run(source, GATHER, tmp_path / "out", prefix=EVIL, max_bad_rows=3, batch_rows=64)
    path = Place.of(str(tmp_path / "out"), None).folder / "report.html"
    done = subprocess.run([sys.executable, browser, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing is wrong\n", "")
