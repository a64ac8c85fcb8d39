"""Kill, pause and retire worker processes while they score; the result must be exact.

    python tests/faults/kill_workers.py 60 --seed 1

Repeats runs on a Dask cluster of three worker processes until this many workers were killed with SIGKILL. Between the
kills, workers are paused (SIGSTOP) until the scheduler removes them, then continued, and retired while they score, so
that parts run twice at the same time. Prints JSON at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dask.distributed import Client, LocalCluster

import scorer
from scorer.api.verification import check as verify
from scorer.output.place import Place

MODEL = Path(__file__).parent.parent / "models" / "sum3.onnx"
ROWS, PARTS, WORKERS = 60_000, 60, 3
GIVEN_UP_S = 4
LOOPBACK = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}


def make_input(path: Path, seed: int) -> np.ndarray:
    """Write whole numbers, whose sums are exact; return the expected scores."""
    values = np.random.default_rng(seed).integers(-1000, 1000, (ROWS, 3)).astype(np.float32)
    table = pa.table({"id": np.arange(ROWS), **dict(zip("abc", values.T, strict=True))})
    pq.write_table(table, path, row_group_size=ROWS // PARTS)
    return values.sum(axis=1)


def disturb(client: Client, draw: random.Random, done: Counter[str], stop: threading.Event, kills: int) -> None:
    """Disturb one worker after another until the run has ended."""
    grown = time.monotonic()
    while not stop.wait(draw.uniform(0.1, 0.8)):
        with suppress(Exception):  # the worker may have gone already
            workers = client.scheduler_info(n_workers=-1)["workers"]
            if len(workers) < WORKERS and time.monotonic() - grown > GIVEN_UP_S:
                client.cluster.scale(len(client.cluster.worker_spec) + 1)  # a removed worker is not replaced
                grown = time.monotonic()
            address = draw.choice(sorted(workers))
            pids = client.run(os.getpid, workers=[address])
            what = draw.choices(["kill", "pause", "retire"], [6 if done["kill"] < kills else 0, 1, 1])[0]
            if what == "kill":
                os.kill(pids[address], signal.SIGKILL)
            elif what == "pause":
                os.kill(pids[address], signal.SIGSTOP)
                time.sleep(draw.choice([0.3, 0.3, GIVEN_UP_S + 2]))
                os.kill(pids[address], signal.SIGCONT)
            else:
                client.retire_workers([address], close_workers=True, remove=True)
            done[what] += 1


def one_run(folder: Path, number: int, draw: random.Random, done: Counter[str], kills: int) -> list[str]:
    """Run and disturb once; return the faults of the output."""
    source, output = folder / "in.parquet", folder / "out"
    expected = make_input(source, number)
    config = {"distributed.scheduler.worker-ttl": f"{GIVEN_UP_S}s", "distributed.comm.timeouts.connect": "5s"}
    stop = threading.Event()
    with (
        dask.config.set(config),
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, silence_logs=50, **LOOPBACK) as cluster,
        Client(cluster) as client,
    ):
        trouble = threading.Thread(target=disturb, args=(client, draw, done, stop, kills))

        def begin(event: object) -> None:
            if isinstance(event, scorer.events.PlanReady):
                trouble.start()

        try:
            scorer.run(source, MODEL, output, client=client, observers=[begin], feed="x=a,b,c", keep="id",
                       batch_rows=1, part_bytes=8192, tune=False)  # fmt: skip
        finally:
            stop.set()
            trouble.join()
    receipts = pq.read_table(f"{output}.scorer/ledger.parquet")
    done["workers that committed parts"] += len(set(receipts["worker"].to_pylist()))
    table = pa.concat_tables([pq.ParquetFile(path).read() for path in sorted(output.glob("*.parquet"))])
    wrong = list(verify(Place.of(str(output), None), deep=True).faults)
    if table["id"].to_pylist() != list(range(ROWS)):
        wrong.append("other rows")
    elif not np.array_equal(table["total"].to_numpy(), expected):
        wrong.append("other scores")
    return wrong


def main() -> None:
    """Print the results as JSON; exit with 1 if a run was not exact."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    done: Counter[str] = Counter()
    runs, wrong = 0, []
    while done["kill"] < asked.kills:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            draw = random.Random(f"{asked.seed}-{runs}")
            wrong += [f"run {runs}: {fault}" for fault in one_run(Path(folder), runs, draw, done, asked.kills)]
        runs += 1
        print(f"{runs} runs, {dict(done)}, {len(wrong)} faults", file=sys.stderr)
    print(json.dumps({"runs": runs, **done, "faults": wrong}))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
