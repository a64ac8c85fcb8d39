"""Overlapping runs in four threads of one process, one failing and one interrupted: print what they leave behind.

    python tests/support/overlapping_runs.py BACKEND INPUT FOLDER

The input has columns f0 to f27. The last of the four threads is the main thread.
"""

import json
import signal
import sys
import threading
import time
from pathlib import Path

from support.process_state import changes, state
from support.runs import MODELS

import scorer
from scorer.events import PartFinished

DENSE = MODELS / "dense28.onnx"


def interrupt(times):
    """Return an observer that interrupts the run at its first part, once or twice."""

    def observe(event):
        nonlocal times
        if isinstance(event, PartFinished) and times:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
                time.sleep(0.4)
            times = 0

    return observe


def main(backend, source, folder):
    """Run, overlap, print the changes and how the runs ended as JSON."""
    options = {"cluster": backend, "part_bytes": 4096, "feed": "input=" + ",".join(f"f{i}" for i in range(28))}
    options |= {"workers": 1, "threads": 1} if backend == "processes" else {}
    ended = {}

    def run(name, **more):
        try:
            scorer.run(source, DENSE, Path(folder) / name, **options | more)
            ended[name] = "done"
        except BaseException as error:  # noqa: BLE001 - how each ended is compared
            ended[name] = type(error).__name__

    def several(thread):
        time.sleep(0.05 * thread)
        for turn in range(1 if backend == "processes" else 3):
            run(f"out-{thread}-{turn}")
        if thread == 1:
            run("failing", max_nan_rows=0, feed="input=" + ",".join(["nan"] + [f"f{i}" for i in range(1, 28)]))

    run("warm")
    run("failing-warm", feed="no=such")
    before = state()
    threads = [threading.Thread(target=several, args=(i,)) for i in range(3)]
    for one in threads:
        one.start()
    run("interrupted", observers=[interrupt(1)])
    run("interrupted-twice", observers=[interrupt(2)])
    for one in threads:
        one.join()
    print(json.dumps({"ended": ended, "changes": changes(before)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
