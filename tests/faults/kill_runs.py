"""Kill runs at random moments, resume them, and count rows: none lost, none doubled, OUT never incomplete.

    python tests/faults/kill_runs.py 200 --seed 1

Every trial starts the command line on a new output and waits for a random moment. Then it kills all processes of the
run with SIGKILL (in a third of the trials only the driver, so that workers live a little longer) and runs the same
command again. A thread reads OUT all the time. Prints JSON at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from scorer.api.verification import check as verify
from scorer.output.place import Place

MODEL = Path(__file__).parent.parent / "models" / "sum3.onnx"
ROWS, FILES = 24_000, 3
PARTS = 57
PROOF_FILES = {"events.jsonl", "plan.json", "ledger.parquet", "manifest.json", "report.html", "report.json"}
MOMENTS = ["before a part"] * 2 + ["after a part"] * 12 + ["after the last part"] * 7 + ["at the very end"] * 3
END_S = 0.03  # roughly the time between the last part and the end of publishing


@dataclass
class Tally:
    """The results of all trials."""

    killed: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    half: int = 0
    seen_whole: int = 0
    temps: int = 0
    unproven: int = 0

    @property
    def clean(self) -> bool:
        """Whether there was no fault."""
        return not (self.lost or self.doubled or self.wrong or self.half or self.temps or self.unproven)


def make_input(folder: Path, seed: int) -> np.ndarray:
    """Write three files of six row groups each; return the expected scores."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    values = rng.integers(-1000, 1000, (ROWS, 3)).astype(np.float32)  # sums are exact
    each = ROWS // FILES
    for i in range(FILES):
        rows = slice(i * each, (i + 1) * each)
        table = pa.table({"id": np.arange(rows.start, rows.stop), **dict(zip("abc", values[rows].T, strict=True))})
        pq.write_table(table, folder / f"data-{i}.parquet", row_group_size=each // 6)
    return values.sum(axis=1)


def command(source: Path, output: Path, cluster: str, *more: str) -> list[str]:
    """Return a command with small parts and batches, so that there is time to interrupt it."""
    own = ["--workers", "2", "--threads", "1"] if cluster == "processes" else ["--threads", "2"]
    return [
        sys.executable, "-m", "scorer", "run", str(source), "--model", str(MODEL), "--feed", "x=a,b,c", "--keep", "id",
        "--output", str(output), "--batch-rows", "4", "--part-bytes", "10000", "--cluster", cluster, *own, "--quiet",
        *more,
    ]  # fmt: skip


class Watcher:
    """Reads OUT in a thread until closed; each read must see all rows of one run."""

    def __init__(self, output: Path, accepted: list[int]) -> None:
        self._output, self._accepted = output, accepted
        self._stop = threading.Event()
        self.whole = self.half = 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            seen = self._look()
            self.whole += seen is True
            self.half += seen is False
            time.sleep(0.002)

    def _look(self) -> bool | None:
        """Return whether OUT is complete; None if it does not exist or was replaced during the read."""
        try:
            before = os.stat(self._output).st_ino
            names = sorted(os.listdir(self._output))
            ids = [pq.ParquetFile(self._output / name).read(["id"])["id"].to_numpy() for name in names]
            found = np.concatenate(ids) if ids else np.empty(0, np.int64)
        except (FileNotFoundError, NotADirectoryError):
            return None if self._replaced(None) else False
        if self._replaced(before):
            return None
        return len(found) in self._accepted and np.array_equal(found, np.arange(len(found)))

    def _replaced(self, before: int | None) -> bool:
        try:
            return os.stat(self._output).st_ino != before
        except FileNotFoundError:
            return True


def n_parts(output: Path) -> int:
    return sum(1 for _ in Path(f"{output}.scorer").glob("work-*/parts/*.parquet"))


def wait_for(moment: str, run: subprocess.Popen, output: Path, draw: random.Random) -> None:
    """Wait for the moment to kill, or for the end of the run."""
    if moment == "before a part":
        time.sleep(draw.uniform(0.0, 1.2))
        return
    enough = draw.randint(1, PARTS - 4) if moment == "after a part" else PARTS
    while run.poll() is None and n_parts(output) < enough:
        if moment != "after a part" and output.exists() and not list(Path(f"{output}.scorer").glob("work-*")):
            return
        time.sleep(0.0005)
    if moment == "after a part":
        time.sleep(draw.uniform(0, 0.02))
    elif moment == "after the last part":
        time.sleep(draw.uniform(0, END_S))
    else:
        while run.poll() is None and not list(Path(f"{output}.scorer").glob("work-*/publish.json")):
            time.sleep(0.0002)
        time.sleep(draw.uniform(0, END_S / 6))


def kill(run: subprocess.Popen, *, only_driver: bool) -> bool:
    """Kill the run with SIGKILL; return False if it had already ended."""
    if run.poll() is not None:
        return False
    family = [psutil.Process(run.pid)]
    with suppress(psutil.NoSuchProcess):
        family += family[0].children(recursive=not only_driver)
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    run.wait()
    while any(alive(process) for process in family):
        time.sleep(0.001)
    return True


def alive(process: psutil.Process) -> bool:
    """Return whether the process runs; a zombie does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def state(output: Path) -> str:
    """Return the state that the kill left on disk."""
    done = n_parts(output)
    publishing = bool(list(Path(f"{output}.scorer").glob("work-*/publish.json")))
    working = bool(list(Path(f"{output}.scorer").glob("work-*")))
    if publishing:
        return "publishing, OUT there" if output.exists() else "publishing, OUT not yet there"
    if not working:
        return "published" if output.exists() else "nothing begun"
    if not done:
        return "no part yet"
    return "all parts, not publishing" if done >= PARTS else f"{10 * (10 * done // PARTS):2d}% of the parts"


def check(output: Path, expected: np.ndarray, tally: Tally) -> None:
    """Count faults in rows, scores, proof and leftover files."""
    table = pa.concat_tables([pq.ParquetFile(path).read() for path in sorted(output.glob("*.parquet"))])
    ids = table["id"].to_numpy()
    tally.lost += len(expected) - len(np.unique(ids))
    tally.doubled += len(ids) - len(np.unique(ids))
    if np.array_equal(ids, np.arange(len(expected))):
        tally.wrong += int((table["total"].to_numpy() != expected).sum())
    else:
        tally.wrong += len(expected)
    tally.unproven += not verify(Place.of(str(output), None), deep=True).whole
    folder = Path(f"{output}.scorer")
    tally.temps += len([name for name in os.listdir(folder) if name not in PROOF_FILES])
    tally.temps += len([name for name in os.listdir(output.parent) if name.startswith(".")])


def trial(number: int, folder: Path, draw: random.Random, tally: Tally, cluster: str) -> None:
    """Start a run, kill it, and resume it."""
    source, output = folder / "input", folder / "out"
    expected = make_input(source, number)
    moment = draw.choice(MOMENTS)
    overwrite = draw.random() < 0.25
    accepted = [ROWS]
    more = ()
    if overwrite:  # another complete output exists until it is replaced
        other = folder / "other.parquet"
        pq.write_table(pa.table({"id": np.arange(7), **{c: np.ones(7, np.float32) for c in "abc"}}), other)
        subprocess.run(command(other, output, "embedded"), check=True, timeout=100, capture_output=True)
        accepted, more = [7, ROWS], ("--overwrite",)
    asked = command(source, output, cluster, *more)
    watcher = Watcher(output, accepted)
    try:
        run = subprocess.Popen(asked, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        wait_for(moment, run, output, draw)
        alive = kill(run, only_driver=draw.random() < 1 / 3)
        tally.killed[moment if alive else "ended before the kill"] += 1
        tally.states[state(output)] += alive
        done = subprocess.run(asked, capture_output=True, text=True, timeout=200, check=False)
        if done.returncode:
            print(f"trial {number}: exit {done.returncode}\n{done.stderr}", file=sys.stderr)
            tally.unproven += 1
            return
        tally.resumed += 1
    finally:
        watcher.close()
    tally.half += watcher.half
    tally.seen_whole += watcher.whole
    check(output, expected, tally)


def kill_many(trials: int, seed: int, clusters: list[str], keep: Path | None = None) -> Tally:
    """Run this many trials, with random numbers from the seed."""
    tally = Tally()
    for number in range(trials):
        draw = random.Random(f"{seed}-{number}")
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            before = Tally(**{**vars(tally), "killed": Counter(), "states": Counter()})
            trial(number, Path(folder), draw, tally, clusters[number % len(clusters)])
            if not tally.clean and before.clean and keep is not None:
                shutil.copytree(folder, keep / f"trial-{number}")
                print(f"trial {number} failed; its folder was copied to {keep}", file=sys.stderr)
        if number % 10 == 9:
            print(f"{number + 1} of {trials}: {dict(tally.states)}", file=sys.stderr)
    return tally


def main() -> None:
    """Print the results as JSON; exit with 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trials", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cluster", action="append", choices=["embedded", "processes"])
    parser.add_argument("--keep", type=Path, help="folder for the files of a failed trial")
    asked = parser.parse_args()
    tally = kill_many(asked.trials, asked.seed, asked.cluster or ["embedded", "embedded", "processes"], asked.keep)
    print(
        json.dumps(
            {**vars(tally), "killed": dict(tally.killed), "states": dict(sorted(tally.states.items()))}, indent=1
        )
    )
    sys.exit(not tally.clean)


if __name__ == "__main__":
    main()
