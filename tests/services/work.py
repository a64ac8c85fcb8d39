"""An input that takes long to score but little CPU, and its exact scores by ONNX Runtime alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from faults.kill_runs import PROOF_FILES, n_parts
from support.runs import MODELS, cli, oracle, read, write

from services.processes import environment, kill, wait_until

MODEL = MODELS / "sum3.onnx"
ROWS = 1000
"""Rows of a row group, and of most parts; the last parts are smaller."""
_SLOWLY = """\
import time


def slowly(frame):
    time.sleep({row_s} * len(frame))
    return frame
"""


class Work:
    """A dataset in its own folder, the flags of its run, and the expected scores."""

    def __init__(self, folder, parts, part_s):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.source, self.output = self.folder / "in.parquet", self.folder / "out"
        self.seconds = parts * part_s
        """The seconds that one thread needs."""
        values = np.random.default_rng(11).integers(-1000, 1000, (parts * ROWS, 3)).astype(np.float32)
        columns = dict(zip("abc", values.T, strict=True))  # whole numbers, whose sums are exact
        write(self.source, {"id": np.arange(len(values)), **columns}, row_group_size=ROWS)
        (self.folder / "pace.py").write_text(_SLOWLY.format(row_s=part_s / ROWS))
        self.expected = oracle(MODEL, {"x": values})["total"]

    @property
    def options(self):
        """The keyword arguments of `scorer.run`, with this folder as the current one."""
        return {"feed": "x=a,b,c", "keep": "id", "transform": "pace:slowly", "part_bytes": "20KiB", "tune": False}

    def asked(self, *more):
        """Return the command line."""
        return [
            sys.executable, "-m", "scorer", "run", str(self.source), "--model", str(MODEL), "--output",
            str(self.output), "--feed", "x=a,b,c", "--keep", "id", "--transform", "pace:slowly", "--part-bytes",
            "20KiB", "--no-tune", *map(str, more),
        ]  # fmt: skip

    def start(self, *more, through=(), env=None):
        """Start the command line; `through` is put before it, such as the prefix of a host."""
        log = (self.folder / "driver.log").open("ab")
        with log:
            return subprocess.Popen(
                [*through, *self.asked(*more)], cwd=self.folder, env=env or environment(), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def finish(self, driver, seconds=200):
        """Wait for a started run and return its exit code; kill it after `seconds`."""
        try:
            return driver.wait(seconds)
        finally:
            if driver.poll() is None:
                kill(driver)

    def run(self, *more, through=(), env=None, seconds=200):
        """Run the command line to the end; fail with its output unless it exits with 0."""
        code = self.finish(self.start(*more, through=through, env=env), seconds)
        assert code == 0, self.log
        return code

    @property
    def log(self):
        """The output of all runs."""
        return (self.folder / "driver.log").read_text()

    def kill(self, driver):
        """Kill only the driver, as when a login node goes down."""
        driver.send_signal(signal.SIGKILL)
        driver.wait()

    def parts(self):
        """Return the number of committed parts."""
        return n_parts(self.output)

    def wait_for_parts(self, many, driver, seconds=100):
        """Wait until this many parts are committed, and assert that the run has not finished."""
        wait_until(
            lambda: self.parts() >= many or driver.poll() is not None, seconds, lambda: f"{many} parts\n{self.log}"
        )
        assert driver.poll() is None, self.log

    def commits(self):
        """Return the times at which parts were committed, in seconds since 1970, sorted."""
        folder = self.output if self.output.exists() else self.folder
        return sorted(path.stat().st_mtime for path in folder.rglob("part-*.parquet"))

    def receipts(self):
        """Return the ledger of a finished run."""
        return pq.read_table(f"{self.output}.scorer/ledger.parquet")

    def workers(self):
        """Return the number of parts that each worker committed."""
        return Counter(self.receipts()["worker"].to_pylist())

    def exact(self):
        """Assert exact scores, each row once and in order, a successful verify, and no leftover files."""
        table = read(self.output)
        assert table["id"].to_pylist() == list(range(len(self.expected)))
        assert np.array_equal(table["total"].to_numpy().view(np.int32), self.expected.view(np.int32))
        assert cli("verify", self.output, "--deep")[0] == 0
        assert set(os.listdir(f"{self.output}.scorer")) <= PROOF_FILES

    def clear(self):
        """Remove the output, so that the same work can be scored again."""
        for place in (self.output, f"{self.output}.scorer"):
            with suppress(FileNotFoundError):
                shutil.rmtree(place)
        (self.folder / "driver.log").unlink(missing_ok=True)


class Clock:
    """Seconds since its creation."""

    def __init__(self):
        self._begun = time.monotonic()

    def __call__(self):
        return time.monotonic() - self._begun
