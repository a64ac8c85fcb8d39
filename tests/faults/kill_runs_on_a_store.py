"""Kill runs onto an object store at random moments, resume them, and watch the output 20 times a second.

    python tests/faults/kill_runs_on_a_store.py 60 --seed 1

Every trial starts the command line on a new output and waits for a random moment. Then it kills all processes of the
run with SIGKILL (in a third of the trials only the driver, so that workers live a little longer) and runs the same
command again; a fifth of the trials kill that one too. A thread lists OUT all the time: whenever the manifest is there,
OUT must be exactly what the ledger says. Prints JSON at the end.

It starts SeaweedFS; if AWS_ENDPOINT_URL is set, it uses that server instead, with the credentials of the environment.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from kill_runs import ROWS, command, kill, make_input
from stop_at_every_request import PROOF_FILES, names_below, server, store

MOMENTS = ["at any time"] * 2 + ["after a part"] * 2 + ["while publishing"] * 3
PARTS = 57
LOOK_S = 0.05


@dataclass
class Tally:
    """The results of all trials."""

    killed: Counter[str] = field(default_factory=Counter)
    looks: int = 0
    seen_complete: int = 0
    seen_parts_only: int = 0
    lies: int = 0
    wrong: int = 0
    unfinished: int = 0
    left: int = 0
    blind: int = 0

    @property
    def clean(self) -> bool:
        """Whether there was no fault."""
        return not (self.lies or self.wrong or self.unfinished or self.left or self.blind)


def read(files, path: str) -> bytes | None:
    """Return an object; None if there is none."""
    try:
        with files.open_input_stream(path) as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        if "RESOURCE_NOT_FOUND" in str(error) or "NO_SUCH_KEY" in str(error):  # removed since it was opened
            return None
        raise


class Observer:
    """Looks at OUT in a thread until closed."""

    def __init__(self, output: str, tally: Tally) -> None:
        self._files, self._output, self._tally = store(), output, tally
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        self._tally.blind += 1  # until the end of the thread: an observer that dies is a fault
        while not self._stop.wait(LOOK_S):
            self._look()
        self._tally.blind -= 1

    def _look(self) -> None:
        manifest = read(self._files, f"{self._output}.scorer/manifest.json")
        found = {name: size_of(self._files, self._output, name) for name in names_below(self._files, self._output)}
        ledger = read(self._files, f"{self._output}.scorer/ledger.parquet")
        self._tally.looks += 1
        if manifest is None or read(self._files, f"{self._output}.scorer/manifest.json") != manifest:
            self._tally.seen_parts_only += bool(found)
            return  # nothing is claimed, or it was replaced meanwhile
        exact = ledger is not None and json.loads(manifest)["ledger"] == hashlib.sha256(ledger).hexdigest()
        if exact:
            table = pq.read_table(pa.BufferReader(ledger))
            exact = dict(zip(table["name"].to_pylist(), table["size"].to_pylist(), strict=True)) == found
        self._tally.seen_complete += exact
        self._tally.lies += not exact


def size_of(files, output: str, name: str) -> int | None:
    """Return the size of a part; None if it has gone since it was listed."""
    return files.get_file_info(f"{output}/{name}").size


def wait_for(moment: str, run: subprocess.Popen, output: str, usual_s: float, draw: random.Random) -> None:
    """Wait for the moment to kill, or for the end of the run."""
    if moment == "at any time":
        time.sleep(draw.uniform(0, usual_s))
        return
    files, enough = store(), draw.randint(1, PARTS - 4) if moment == "after a part" else PARTS
    while run.poll() is None:
        staged = [name for name in names_below(files, f"{output}.scorer") if "/parts/" in name]
        if len(staged) >= enough:
            break
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.02 if moment == "after a part" else 0.8))


def check(output: str, expected: np.ndarray, tally: Tally) -> None:
    """Count faults in rows, scores and leftover objects."""
    files = store()
    names = sorted(names_below(files, output))
    table = pa.concat_tables([pq.read_table(f"{output}/{name}", filesystem=files) for name in names])
    exact = table["id"].to_pylist() == list(range(ROWS)) and np.array_equal(table["total"].to_numpy(), expected)
    tally.wrong += not exact
    tally.left += len({*names_below(files, f"{output}.scorer")} - PROOF_FILES)


def trial(number: int, folder: Path, bucket: str, usual_s: float, draw: random.Random, tally: Tally) -> None:
    """Start a run, kill it, and resume it."""
    source, output = folder / "input", f"{bucket}/trial-{number}-{uuid.uuid4().hex[:6]}"
    expected = make_input(source, number)
    asked = command(source, f"s3://{output}", draw.choice(["embedded", "embedded", "processes"]))
    if draw.random() < 0.3:  # another complete output exists until it is replaced
        other = folder / "other.parquet"
        pq.write_table(pa.table({"id": np.arange(7), **{c: np.ones(7, np.float32) for c in "abc"}}), other)
        subprocess.run(command(other, f"s3://{output}", "embedded"), check=True, timeout=100, capture_output=True)
        asked.append("--overwrite")
    observer = Observer(output, tally)
    try:
        for _ in range(2 if draw.random() < 0.2 else 1):
            moment = draw.choice(MOMENTS)
            run = subprocess.Popen(asked, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            wait_for(moment, run, output, usual_s, draw)
            alive = kill(run, only_driver=draw.random() < 1 / 3)
            tally.killed[moment if alive else "ended before the kill"] += 1
        done = subprocess.run(asked, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            print(f"trial {number}: exit {done.returncode}\n{done.stderr}", file=sys.stderr)
            tally.unfinished += 1
            return
        time.sleep(2 * LOOK_S)
    finally:
        with suppress(ProcessLookupError):
            run.send_signal(signal.SIGKILL)
        observer.close()
    check(output, expected, tally)


def kill_many(trials: int, seed: int) -> Tally:
    """Run this many trials, with random numbers from the seed."""
    tally, bucket = Tally(), f"b{uuid.uuid4().hex[:12]}"
    store().create_dir(bucket)
    usual_s = 6.0
    for number in range(trials):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            trial(number, Path(folder), bucket, usual_s, random.Random(f"{seed}-{number}"), tally)
        if number % 10 == 9:
            print(f"{number + 1} of {trials}: {tally}", file=sys.stderr)
    return tally


def main() -> None:
    """Print the results as JSON; exit with 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trials", type=int)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with server():
        tally = kill_many(asked.trials, asked.seed)
    print(json.dumps({**vars(tally), "killed": dict(tally.killed)}, indent=1))
    sys.exit(not tally.clean)


if __name__ == "__main__":
    main()
