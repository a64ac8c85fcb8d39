"""Stop drivers past their lease, let another one publish, wake the first: it must say so, and the output stays exact.

    python tests/faults/freeze_drivers_on_a_store.py 20 --seed 1

Each trial starts a driver and stops it (SIGSTOP) while it scores or publishes. A second driver, which says
that it is on another host, waits until the lease is stale, takes it over and finishes. Then the first one goes on.
The lease is stale after 4 s here, instead of 60 s. Prints JSON at the end.

It starts SeaweedFS; if AWS_ENDPOINT_URL is set, it uses that server instead, with the credentials of the environment.
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
import time
import uuid
from collections import Counter
from pathlib import Path

from kill_runs import make_input
from kill_runs_on_a_store import PARTS, Observer, check, names_below
from kill_runs_on_a_store import Tally as Seen
from stop_at_every_request import MODEL, server, store

STALE_S = 4.0
DRIVER = """
import socket, sys
source, model, output, host, stale_s = sys.argv[1:]
socket.gethostname = lambda: host
import scorer
from scorer.output import lease
lease.held.__wrapped__.__defaults__ = (float(stale_s),)
try:
    report = scorer.run(
        source, model, output, feed="x=a,b,c", keep="id", batch_rows=4, part_bytes=10_000, cluster="embedded",
        threads=2,
    )
    print("done already" if report.already_done else "published")
except scorer.ScorerError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def start(source: Path, output: str, host: str) -> subprocess.Popen:
    """Start a driver that says it is on this host."""
    command = [sys.executable, "-c", DRIVER, str(source), str(MODEL), f"s3://{output}", host, str(STALE_S)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(first: subprocess.Popen, output: str, draw: random.Random) -> str:
    """Wait for a moment while the first driver scores or publishes."""
    publishing = draw.random() < 0.6
    files, enough = store(), PARTS if publishing else draw.randint(1, PARTS - 4)
    while first.poll() is None:
        if sum("/parts/" in name for name in names_below(files, f"{output}.scorer")) >= enough:
            break
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.8 if publishing else 0.1))
    return "publishing" if publishing else "scoring"


def trial(number: int, folder: Path, bucket: str, draw: random.Random, done: Counter[str], seen: Seen) -> None:
    """Stop the first driver, let the second finish, and wake the first."""
    source, output = folder / "input", f"{bucket}/trial-{number}-{uuid.uuid4().hex[:6]}"
    expected = make_input(source, number)
    observer = Observer(output, seen)
    first = start(source, output, "a")
    try:
        moment = wait_for(first, output, draw)
        first.send_signal(signal.SIGSTOP)
        second = start(source, output, "b")
        said, problems = second.communicate(timeout=300)
        if second.returncode:
            print(f"trial {number}: the second driver, exit {second.returncode}\n{said}{problems}", file=sys.stderr)
            seen.unfinished += 1
        check(output, expected, seen)
        first.send_signal(signal.SIGCONT)
        said, problems = first.communicate(timeout=300)
        if "the lease on the output was lost" in said and first.returncode == 3:
            done[f"{moment}: said that it lost the lease"] += 1
        elif not first.returncode:
            done[f"{moment}: had published, or found it done"] += 1
        else:
            print(f"trial {number}: the first driver, exit {first.returncode}\n{said}{problems}", file=sys.stderr)
            done[f"{moment}: another error"] += 1
        time.sleep(0.2)
    finally:
        first.kill()
        observer.close()
    again = start(source, output, "a")
    said, problems = again.communicate(timeout=300)
    if (again.returncode, said) != (0, "done already\n"):
        print(f"trial {number}: the same command again, exit {again.returncode}\n{said}{problems}", file=sys.stderr)
        seen.unfinished += 1
    check(output, expected, seen)


def freeze_many(trials: int, seed: int) -> tuple[Counter[str], Seen]:
    """Run this many trials, with random numbers from the seed."""
    done, seen, bucket = Counter(), Seen(), f"b{uuid.uuid4().hex[:12]}"
    store().create_dir(bucket)
    for number in range(trials):
        with tempfile.TemporaryDirectory() as folder:
            trial(number, Path(folder), bucket, random.Random(f"{seed}-{number}"), done, seen)
    return done, seen


def main() -> None:
    """Print the results as JSON; exit with 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trials", type=int)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    os.environ.pop("PYTHONWARNINGS", None)
    with server():
        done, seen = freeze_many(asked.trials, asked.seed)
    print(json.dumps({**done, **vars(seen), "killed": 0}, indent=1))
    sys.exit(not seen.clean or any("another error" in name for name in done))


if __name__ == "__main__":
    main()
