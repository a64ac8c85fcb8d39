"""Run onto an object store through a proxy that spoils one request in five: each run must be exact at the first try.

    python tests/faults/spoil_runs_on_a_store.py 20 --seed 1

Faults are 503, 500, connections that are reset before or after the server has carried out the request, and answers that
are cut short. Half of the runs replace an older output. Prints JSON at the end.

It starts SeaweedFS; if AWS_ENDPOINT_URL is set, it uses that server instead, with the credentials of the environment.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path

from stop_at_every_request import MODEL, faults_of, prepare, server, store


def command(source: Path, output: str, *more: str) -> list[str]:
    """Return a command with a few small parts and one bad row."""
    sizes = ["--file-rows", "2", "--batch-rows", "2", "--no-tune", "--max-bad-rows", "1", "--threads", "2", "--quiet"]
    run = [sys.executable, "-m", "scorer", "run", str(source), "--model", str(MODEL), "--feed", "x=a,b,c"]
    return [*run, "--output", output, *sizes, *more]


def spoiled(bucket: str, folder: Path, started: object, rate: float, seed: int, tally: Counter[str]) -> str:
    """Run once through the proxy; return what is wrong, '' if nothing is."""
    from services.spoiling import spoiling

    output = f"s3://{bucket}/{uuid.uuid4().hex[:8]}/out"
    more = ()
    if seed % 2:
        subprocess.run(command(folder / "old.parquet", output), check=True, timeout=120, capture_output=True)
        more = ("--overwrite",)
    with spoiling(started, rate=rate, seed=seed) as proxy:
        environment = os.environ | proxy.environment
        done = subprocess.run(
            command(folder / "in.parquet", output, *more), env=environment, capture_output=True, text=True, timeout=600,
            check=False,
        )  # fmt: skip
        tally["requests"] += proxy.requests.total()
        tally["faults"] += proxy.faults.total()
        for (_, fault), many in proxy.faults.items():
            tally[fault] += many
    tally["runs"] += 1
    return f"exit {done.returncode}: {done.stderr}" if done.returncode else faults_of(output, success_file=False)


def spoil_many(started: object, runs: int, seed: int, rate: float) -> tuple[Counter[str], list[str]]:
    """Run this many times; return counts, and the faults of the runs that were not exact."""
    tally, wrong, bucket = Counter(), [], f"b{uuid.uuid4().hex[:12]}"
    store().create_dir(bucket)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for number in range(runs):
            began = time.monotonic()
            fault = spoiled(bucket, Path(folder), started, rate, seed + number, tally)
            wrong += [f"seed {seed + number}: {fault}"] if fault else []
            print(f"seed {seed + number}: {fault or 'exact'}, {time.monotonic() - began:.0f} s", file=sys.stderr)
    return tally, wrong


def main() -> None:
    """Print the results as JSON; exit with 1 if a run was not exact."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.2)
    asked = parser.parse_args()
    with server() as started:
        tally, wrong = spoil_many(started, asked.runs, asked.seed, asked.rate)
    print(json.dumps({**tally, "wrong": wrong}, indent=1))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
