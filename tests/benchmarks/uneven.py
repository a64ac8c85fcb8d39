"""Two worker processes, one of them slowed down: the parts of each, and wall time relative to the ideal.

    python tests/benchmarks/uneven.py [ROWS] [SLOWER]

The ideal is the time of the fast worker alone, divided by 1 + 1 / SLOWER.
"""

from __future__ import annotations

import os
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
from dask.distributed import Client, LocalCluster

import scorer

sys.path.insert(0, str(Path(__file__).parent))
from jobs import COLUMNS, wide

LOOPBACK = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
SLICE_S = 0.05


def worker(address):
    """Start a worker with one thread."""
    return subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--nthreads", "1",
         "--no-dashboard", "--host", "127.0.0.1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def hold_back(pid, slower, until):
    """Slow a process down by stopping it most of the time."""
    while not until.is_set():
        os.kill(pid, signal.SIGSTOP)
        time.sleep(SLICE_S * (slower - 1))
        os.kill(pid, signal.SIGCONT)
        time.sleep(SLICE_S)


def seconds(client, data, model, out):
    """Return the wall time of a run, and the number of parts of each worker."""
    shares, times = Counter(), []

    def watch(event):
        times.append(time.monotonic())
        if isinstance(event, scorer.events.PartFinished):
            shares[event.receipt.worker] += 1

    scorer.run(data, model, out, client=client, observers=[watch], keep="none", part_bytes="1MiB", tune=False)
    return times[-1] - times[0], sorted(shares.values(), reverse=True)


def main():
    """Measure one worker alone, then both."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 600_000
    slower = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with tempfile.TemporaryDirectory() as folder, LocalCluster(n_workers=0, **LOOPBACK) as cluster:
        at = Path(folder)
        rng = np.random.default_rng(0)
        columns = {f"f{j}": rng.standard_normal(rows, dtype=np.float32) for j in range(COLUMNS)}
        pq.write_table(pa.table(columns), at / "in.parquet", row_group_size=rows // 64)
        wide(at / "wide.onnx")
        done, started = threading.Event(), []
        try:
            with Client(cluster) as client:
                started.append(worker(cluster.scheduler_address))
                client.wait_for_workers(1)
                alone, parts = seconds(client, at / "in.parquet", at / "wide.onnx", at / "alone")
                started.append(worker(cluster.scheduler_address))
                client.wait_for_workers(2)
                threading.Thread(target=hold_back, args=(started[1].pid, slower, done), daemon=True).start()
                both, shares = seconds(client, at / "in.parquet", at / "wide.onnx", at / "both")
                done.set()
        finally:
            done.set()
            for process in started:
                process.kill()
        ideal = alone / (1 + 1 / slower)
        print(f"one worker alone: {alone:.1f} s for {sum(parts)} parts")
        print(f"with another that is {slower} times slower: {both:.1f} s, parts {shares}")
        print(f"ideal {ideal:.1f} s: {both / ideal:.2f} times that")


if __name__ == "__main__":
    main()
