"""Count the bytes that reach the scheduler in a run: in total and per part, from client and workers.

    python tests/benchmarks/bytes_to_scheduler.py 1000 10000

Two worker processes on TCP; bytes are counted where the scheduler's socket is read.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from distributed import Client, LocalCluster
from distributed.comm import tcp

import scorer

ROWS_IN_PART = 320
COLUMNS = 28
MODEL = Path(__file__).parent.parent / "models" / "dense28.onnx"
LOOPBACK = "127.0.0.1"


def count_reads() -> Counter[tuple[int, int]]:
    """Count the bytes read in this process, by (own port, peer's port)."""
    read: Counter[tuple[int, int]] = Counter()
    plain = tcp.read_bytes_rw

    async def counting(stream: Any, n: int) -> memoryview:
        if stream.socket is not None:
            read[stream.socket.getsockname()[1], stream.socket.getpeername()[1]] += n
        return await plain(stream, n)

    tcp.read_bytes_rw = counting
    return read


def measure(parts: int, read: Counter[tuple[int, int]]) -> dict[str, Any]:
    """Measure one run of this many parts."""
    rows = parts * ROWS_IN_PART
    rng = np.random.default_rng(1)
    table = pa.table({f"f{i}": rng.standard_normal(rows).astype(np.float32) for i in range(COLUMNS)})
    local = {"host": LOOPBACK, "dashboard_address": f"{LOOPBACK}:0", "worker_dashboard_address": f"{LOOPBACK}:0"}
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=2, threads_per_worker=1, **local) as cluster,
        Client(cluster) as client,
    ):
        source = Path(folder) / "input.parquet"
        pq.write_table(table, source, row_group_size=ROWS_IN_PART, compression="none", use_dictionary=False)
        port = int(cluster.scheduler_address.rsplit(":", 1)[1])
        before, began = read.copy(), time.perf_counter()
        report = scorer.run(
            source, MODEL, Path(folder) / "out", client=client, tune=False,
            part_bytes=ROWS_IN_PART * COLUMNS * 4, keep="none",
        )  # fmt: skip
        seconds = time.perf_counter() - began
        arrived = {pair: size for pair, size in (read - before).items() if pair[0] == port}
        driver = sum(size for (own, peer), size in arrived.items() if (peer, own) in read)
    return {
        "parts": report.parts,
        "from_driver_bytes": driver,
        "from_driver_per_part": round(driver / report.parts),
        "from_workers_bytes": sum(arrived.values()) - driver,
        "from_workers_per_part": round((sum(arrived.values()) - driver) / report.parts),
        "model_bytes": MODEL.stat().st_size,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Print a line of JSON for each number of parts."""
    read = count_reads()
    for wanted in map(int, sys.argv[1:] or ["1000"]):
        print(json.dumps(measure(wanted, read)))


if __name__ == "__main__":
    main()
