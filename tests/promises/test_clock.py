"""The system clock is set back by decades during a run: the run ends, and the same command finishes the rest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.runs import MODELS, ROOT, command, write

import scorer
from scorer.cluster import waves
from scorer.errors import ClusterError

SLOW = "import time\n\n\ndef slow(frame):\n    time.sleep({})\n    return frame\n"


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The arguments of a run with twelve slow parts."""
    for i in range(12):
        write(tmp_path / "in" / f"{i:02}.parquet", {name: np.ones(50, np.float32) for name in "abc"})
    (tmp_path / "lazy.py").write_text(SLOW.format(0.4))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{tmp_path}")
    return [
        "run", str(tmp_path / "in"), "--model", str(MODELS / "sum3.onnx"), "--output", str(tmp_path / "out"),
        "--feed", "x=a,b,c", "--transform", "lazy:slow", "--part-bytes", "4096", "--cluster", "processes",
        "--workers", "2", "--threads", "1",
    ]  # fmt: skip


@pytest.mark.minutes
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("tls", ["--tls", "--no-tls"])
def test_a_clock_that_is_set_back_by_decades_does_not_hang_worker_processes(asked, tmp_path, tls):
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc, for a library that shifts the clock")
    library, shift = tmp_path / "clock.so", tmp_path / "shift"
    source = ROOT / "tests" / "support" / "shifted_clock.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    run = subprocess.Popen(
        [sys.executable, "-m", "scorer", *asked, tls], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env={**os.environ, "LD_PRELOAD": str(library), "SHIFT_FILE": str(shift)},
    )  # fmt: skip
    until = time.monotonic() + 60
    while not list(tmp_path.glob("out.scorer/work-*/parts/*")) and time.monotonic() < until:
        time.sleep(0.01)
    shift.with_suffix(".new").write_text("-1500000000")
    shift.with_suffix(".new").rename(shift)
    _, messages = run.communicate(timeout=150)
    assert run.returncode in {0, 4}, messages
    if run.returncode:  # about every second time; otherwise no message waited for the clock
        assert "the system clock was set back, and Dask no longer delivers messages" in messages
        assert command(*asked, tls).returncode == 0
    assert command("verify", tmp_path / "out", "--deep").returncode == 0


@pytest.mark.slow
def test_a_run_without_results_since_the_clock_was_set_back_ends_with_an_error(tmp_path, monkeypatch):
    class Clock:
        monotonic, sleep, began = staticmethod(time.monotonic), staticmethod(time.sleep), time.monotonic()

        @classmethod
        def time(cls):
            return time.time() - (3_000_000 if time.monotonic() - cls.began > 2 else 0)

    source = write(tmp_path / "in.parquet", {name: np.ones(50, np.float32) for name in "abc"})
    (tmp_path / "lazier.py").write_text("import os\n" + SLOW.format("8 if os.path.exists('started') else 0"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(waves, "_CLOCK_BACK_S", 0.5)
    monkeypatch.setattr(waves, "time", Clock)

    def begin(event):
        if isinstance(event, scorer.events.PlanReady):
            Path("started").touch()
            Clock.began = time.monotonic()

    with pytest.raises(ClusterError, match="the system clock was set back") as raised:
        scorer.run(
            source, MODELS / "sum3.onnx", tmp_path / "out", feed="x=a,b,c", transform="lazier:slow", cluster="embedded",
            observers=[begin],
        )  # fmt: skip
    assert raised.value.found == "a clock set back by 34 days, 17:20:00"
    Path("started").unlink()
    options = {"feed": "x=a,b,c", "transform": "lazier:slow", "cluster": "embedded"}
    assert scorer.run(source, MODELS / "sum3.onnx", tmp_path / "out", **options).counts.scored == 50
