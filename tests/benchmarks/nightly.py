"""The seconds of a nightly run with --new-only, beside scoring the whole input again.

    python tests/benchmarks/nightly.py [FILES] [ROWS] [TURNS]

FILES files with ROWS rows of the flights example are scored once. Then in each turn one more file appears: it is added
with --new-only, a second command finds nothing new, and all files are scored to another output. The three commands
alternate, each a process of its own.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

FLIGHTS = Path(__file__).parent.parent.parent / "examples" / "flights"


def seconds(source: Path, output: Path, *flags: str) -> float:
    """Return how long one command takes."""
    model = str(FLIGHTS / "late.onnx")
    command = [sys.executable, "-m", "scorer", "run", str(source), "--model", model, "--output", str(output), "--quiet"]
    started = time.perf_counter()
    subprocess.run([*command, *flags], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Print the median seconds of each command."""
    files, rows, turns = (int(text) for text in (*sys.argv[1:], "1000", "1000", "5")[:3])
    flights = pq.read_table(FLIGHTS / "flights.parquet")
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        (top / "in").mkdir()

        def add(number: int) -> None:
            start = number * rows % (flights.num_rows - rows)
            pq.write_table(flights.slice(start, rows), top / "in" / f"night-{number:05d}.parquet")

        for number in range(files):
            add(number)
        print(
            f"{files:,} files, {files * rows:,} rows, first run: {seconds(top / 'in', top / 'out', '--new-only'):.2f} s"
        )
        found: dict[str, list[float]] = {"one new file": [], "nothing new": [], "all again": []}
        for turn in range(turns):
            add(files + turn)
            found["one new file"].append(seconds(top / "in", top / "out", "--new-only"))
            found["nothing new"].append(seconds(top / "in", top / "out", "--new-only"))
            found["all again"].append(seconds(top / "in", top / "all"))
            for folder in ("all", "all.scorer"):
                shutil.rmtree(top / folder)
        for words, times in found.items():
            print(f"{words:14} {statistics.median(times):6.2f} s  ({min(times):.2f} to {max(times):.2f})")


if __name__ == "__main__":
    main()
