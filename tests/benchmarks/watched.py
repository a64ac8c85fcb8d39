"""The cost of the progress lines: user and system time of whole commands with them and with --quiet.

    python tests/benchmarks/watched.py 15

The commands run on a pseudo-terminal. Every pair is quiet, watched, watched, quiet, so that drift cancels; pairs of
identical runs show the noise of the machine. Prints ratios with their 90 % interval as JSON.
"""

from __future__ import annotations

import json
import math
import os
import pty
import statistics
import struct
import sys
import tempfile
import termios
from fcntl import ioctl
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MODEL = Path(__file__).parent.parent / "models" / "dense28.onnx"
ROWS = 1_000_000
PARTS = ("--part-bytes", "512KiB", "--batch-rows", "256")  # many small parts, so that there are many events
_T = {14: 1.761, 19: 1.729, 29: 1.699}  # Student's t for 90 %, by degrees of freedom


def seconds(source: Path, folder: Path, *, quiet: bool) -> float:
    """Return the user and system time of one command and its children."""
    with tempfile.TemporaryDirectory(dir=folder) as output:
        child, terminal = pty.fork()
        if child == 0:
            words = [sys.executable, "-m", "scorer", "run", str(source), "--model", str(MODEL), "--output"]
            os.environ["TERM"] = "xterm-256color"
            os.execv(sys.executable, [*words, f"{output}/out", *PARTS, *(["--quiet"] if quiet else [])])
        ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        while True:
            try:
                if not os.read(terminal, 1 << 16):
                    break
            except OSError:  # the other side is closed
                break
        _, status, used = os.wait4(child, 0)
        os.close(terminal)
        if status:
            sys.exit(f"a run failed: {status}")
        return used.ru_utime + used.ru_stime


def interval(ratios: list[float]) -> dict[str, float]:
    """Return the geometric mean of ratios and its 90 % interval."""
    logs = [math.log(ratio) for ratio in ratios]
    mean, off = statistics.mean(logs), 0.0
    if len(logs) > 1:
        off = _T.get(len(logs) - 1, 1.8) * statistics.stdev(logs) / math.sqrt(len(logs))
    return {name: round(math.exp(mean + way * off), 4) for name, way in (("ratio", 0), ("low", -1), ("high", 1))}


def main() -> None:
    """Measure the pairs, and print one line of JSON."""
    pairs = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(1)
        source = Path(folder) / "input.parquet"
        columns = {f"f{i}": rng.standard_normal(ROWS).astype(np.float32) for i in range(28)}
        pq.write_table(pa.table(columns), source, row_group_size=ROWS // 16)
        watched, same = [], []
        for n in range(pairs + 1):
            first, second, third, fourth = (seconds(source, Path(folder), quiet=q) for q in (True, False, False, True))
            if n == 0:
                continue  # warms the caches
            watched.append((second + third) / (first + fourth))
            same.append(third / second if n % 2 else fourth / first)
            print(f"pair {n}: {first:.2f} {second:.2f} {third:.2f} {fourth:.2f} s", file=sys.stderr, flush=True)
    print(json.dumps({"pairs": pairs, "watched": interval(watched), "identical": interval(same)}))


if __name__ == "__main__":
    main()
