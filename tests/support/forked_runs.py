"""A run in a forked process, after a run of the parent or during one in another thread of it: print how it ended.

    python tests/support/forked_runs.py BACKEND after|during fork|multiprocessing INPUT FOLDER

The input has columns f0 to f27.
"""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import distributed  # noqa: F401 - its settings belong to those that are compared
from support.process_state import state
from support.runs import MODELS

import scorer
from scorer.events import PartFinished

WAIT_S = 60


def forked(function):
    """Call the function in a process of `os.fork`; return its exit code, or None if it did not end."""
    pid = os.fork()
    if not pid:
        function()
        os._exit(0)
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def multiprocessed(function):
    """Call the function in a process of multiprocessing, forked; return its exit code, or None if it did not end."""
    child = multiprocessing.get_context("fork").Process(target=function)
    child.start()
    child.join(WAIT_S)
    code = child.exitcode
    child.kill()
    return code


def main(backend, when, how, source, folder):
    """Run in the parent, fork, run in the child, run in the parent again; print what each did as JSON."""
    feed = "input=" + ",".join(f"f{i}" for i in range(28))
    options = {"cluster": backend, "feed": feed, "threads": 2 if backend == "embedded" else 1}
    options |= {"workers": 1} if backend == "processes" else {}
    scored, config = {}, state()["dask"]

    def run(name, **more):
        scored[name] = scorer.run(source, MODELS / "dense28.onnx", Path(folder) / name, **options, **more).counts.scored

    def child():
        run("child")
        same = state()["dask"] == config
        (Path(folder) / "child.json").write_text(json.dumps({"scored": scored["child"], "same_config": same}))

    fork = forked if how == "fork" else multiprocessed
    if when == "after":
        run("parent")
        code = fork(child)
    else:
        scoring, ended = threading.Event(), threading.Event()

        def observe(event):
            if isinstance(event, PartFinished):
                scoring.set()
                ended.wait(WAIT_S)

        thread = threading.Thread(target=run, args=("parent",), kwargs={"observers": [observe]})
        thread.start()
        scoring.wait(WAIT_S)
        code = fork(child)
        ended.set()
        thread.join()
    run("again")
    print(json.dumps({"exit": code, "scored": scored}))


if __name__ == "__main__":
    main(*sys.argv[1:])
