"""Kill runs that write a Delta table at random moments, resume them, and compare the table: never half, never doubled.

    python tests/faults/kill_table_runs.py 40 --seed 1

Every trial starts the command line, in one mode after the other: a new table, rows added, all rows replaced, one
partition replaced, and --new-only, which replaces the rows of a changed file and adds those of a new one. It waits for
a random moment, kills all processes of the run with SIGKILL, and runs the same command again. A thread reads the table
all the time. Prints JSON at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import TableNotFoundError

from scorer.api.verification import check as verify
from scorer.output.place import Place

MODEL = Path(__file__).parent.parent / "models" / "sum3.onnx"
ROWS = 6_000
MODES = ("new", "append", "overwrite", "replace", "new only")
DAYS = ("2026-01-01", "2026-01-02")


def table(start: int, rows: int, *, scored: bool = False) -> pa.Table:
    """Return rows that sum3 scores, with their total if they are `scored`."""
    ids = np.arange(start, start + rows)
    numbers = (ids % 1000).astype(np.float32)
    columns = {"id": ids, "a": numbers, "b": numbers, "c": numbers}
    return pa.table(columns | ({"total": 3 * numbers} if scored else {}))


def make(folder: Path, mode: str) -> tuple[list[int], list[int]]:
    """Write the input, and the table unless it is new; return its ids before and after the run."""
    days = DAYS[:1] if mode == "replace" else DAYS
    for n, day in enumerate(days):
        (folder / "in" / f"day={day}").mkdir(parents=True)
        pq.write_table(table(n * ROWS, ROWS), folder / "in" / f"day={day}" / "p.parquet", row_group_size=ROWS // 6)
    new = list(range(len(days) * ROWS))
    if mode == "new":
        return [], new
    if mode == "new only":
        kept = folder / "in" / f"day={DAYS[1]}"
        kept.rename(folder / "kept")
        pq.write_table(table(500_000, 200), folder / "in" / f"day={DAYS[0]}" / "q.parquet")
        subprocess.run(command(folder, mode), check=True)
        (folder / "kept").rename(kept)
        pq.write_table(table(600_000, 300), folder / "in" / f"day={DAYS[0]}" / "q.parquet")
        return [*range(ROWS), *range(500_000, 500_200)], [*new, *range(600_000, 600_300)]
    old = {day: table(1_000_000 + n * 100, 100, scored=True) for n, day in enumerate(DAYS)}
    every = [one.append_column("day", pa.array([day] * one.num_rows)) for day, one in old.items()]
    write_deltalake(folder / "out", pa.concat_tables(every), partition_by=["day"])
    kept = {"append": list(old.values()), "overwrite": [], "replace": [old[DAYS[1]]]}[mode]
    before = [i for one in old.values() for i in one["id"].to_pylist()]
    return before, new + [i for one in kept for i in one["id"].to_pylist()]


def command(folder: Path, mode: str, *more: str) -> list[str]:
    """Return a command with small parts, so that there is time to interrupt it."""
    more = ("--new-only", "--on-changed", "rescore", *more) if mode == "new only" else more
    said = (
        [] if mode in {"new", "new only"} else ["--mode", f"replace day = '{DAYS[0]}'" if mode == "replace" else mode]
    )
    return [
        sys.executable, "-m", "scorer", "run", str(folder / "in"), "--model", str(MODEL), "--feed", "x=a,b,c",
        "--output", str(folder / "out"), "--format", "delta", *said, "--batch-rows", "4", "--part-bytes", "10000",
        "--threads", "2", "--quiet", *more,
    ]  # fmt: skip


def ids(output: Path) -> list[int]:
    """Return the ids in the table; none without a table."""
    try:
        found: list[int] = DeltaTable(output).to_pyarrow_table(columns=["id"])["id"].to_pylist()
    except TableNotFoundError:
        return []
    return found


class Watcher:
    """Reads the table in a thread until closed; each read must see the rows before the run, or those after it."""

    def __init__(self, output: Path, *accepted: list[int]) -> None:
        self._output, self._accepted = output, [sorted(one) for one in accepted]
        self._stop = threading.Event()
        self.seen: list[int] = []
        self.wrong = 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            found = sorted(ids(self._output))
            self.wrong += found not in self._accepted
            time.sleep(0.02)


def killed(folder: Path, mode: str, rng: random.Random) -> str:
    """Start the command and kill it at a random moment; return which moment that was."""
    run = subprocess.Popen(command(folder, mode), start_new_session=True)
    moment = rng.choice(["a part"] + ["the last part"] * 3 + ["the commit"] * 2)
    log = folder / "out" / "_delta_log"
    commits = len(list(log.glob("*.json"))) if log.exists() else 0
    until = time.monotonic() + 60
    while run.poll() is None and time.monotonic() < until:
        if moment == "the commit":
            reached = log.exists() and len(list(log.glob("*.json"))) > commits
        elif moment == "the last part":
            reached = (folder / "out.scorer").exists() and any((folder / "out.scorer").glob("work-*/ledger.parquet"))
        else:
            reached = (folder / "out").exists() and any(
                path.stem.startswith("part-") for path in (folder / "out").rglob("*.parquet")
            )
        if reached:
            break
        time.sleep(0.001)
    time.sleep(rng.choice([0.0, 0.005, 0.02]))
    if run.poll() is not None:
        return "after its end"
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    return f"after {moment}"


def trial(folder: Path, mode: str, rng: random.Random, result: Counter[str]) -> None:
    """Kill a run once or twice, finish it, and count what is wrong."""
    before, after = make(folder, mode)
    watcher = Watcher(folder / "out", before, after)
    try:
        for _ in range(rng.choice([1, 1, 2])):
            result[f"killed {killed(folder, mode, rng)}"] += 1
            found = sorted(ids(folder / "out"))
            result["there already" if found == sorted(after) and before != after else "not there yet"] += 1
        done = subprocess.run(command(folder, mode), check=False)
        again = subprocess.run(command(folder, mode), check=False)
    finally:
        watcher.close()
    result["wrong"] += sorted(ids(folder / "out")) != sorted(after)
    result["seen half"] += watcher.wrong
    result["not finished"] += done.returncode != 0 or again.returncode != 0
    result["not proven"] += not verify(Place.at(folder / "out", None), deep=True).whole
    totals = DeltaTable(folder / "out").to_pyarrow_table(columns=["id", "total"])
    result["other scores"] += totals["total"].to_pylist() != [3.0 * (i % 1000) for i in totals["id"].to_pylist()]
    listed = {
        path
        for v in range(DeltaTable(folder / "out").version() + 1)
        for path in DeltaTable(folder / "out", v).file_uris()
    }
    there = {str(path) for path in (folder / "out").rglob("*.parquet") if "_delta_log" not in path.parts}
    result["left"] += len(there - listed) + any((folder / "out.scorer").glob("work-*"))


def main() -> int:
    """Run the trials."""
    parser = argparse.ArgumentParser()
    parser.add_argument("trials", type=int)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    result: Counter[str] = Counter(dict.fromkeys(FAULTS, 0))
    for n in range(given.trials):
        with tempfile.TemporaryDirectory() as folder:
            trial(Path(folder), MODES[n % len(MODES)], random.Random(given.seed * 1000 + n), result)
    print(json.dumps(result))
    return int(any(result[name] for name in FAULTS))


FAULTS = ("wrong", "seen half", "not finished", "not proven", "other scores", "left")

if __name__ == "__main__":
    sys.exit(main())
