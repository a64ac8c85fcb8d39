"""Many runs in one process: print by how much its memory and its objects grow.

    python tests/support/many_runs.py BACKEND RUNS INPUT FOLDER [MB]

The input has columns f0 to f27. With MB, exit with 1 if memory grows by more than that a run.
"""

import gc
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

from support.runs import MODELS

import scorer
from scorer.host.process import resident

PACKAGES = ("scorer.", "distributed.scheduler.", "distributed.worker.", "distributed.client.", "distributed.nanny.")


def objects():
    """Count the living objects of scorer's and Dask's classes."""
    gc.collect()
    names = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())
    return Counter({name: n for name, n in names.items() if name.startswith(PACKAGES)})


def main(backend, runs, source, folder, limit=None):
    """Run a third as often to fill caches, then count."""
    options = {"cluster": backend, "feed": "input=" + ",".join(f"f{i}" for i in range(28))}
    options |= {"workers": 1, "threads": 1} if backend == "processes" else {}

    def run():
        scorer.run(source, MODELS / "dense28.onnx", Path(folder) / "out", **options)
        shutil.rmtree(Path(folder) / "out")
        shutil.rmtree(Path(folder) / "out.scorer")

    for _ in range(max(3, runs // 3)):
        run()
    memory, before = resident(), objects()
    for _ in range(runs):
        run()
    growth = (resident() - memory) / runs / 1e6
    more = objects() - before
    print(json.dumps({"mb_per_run": round(growth, 3), "more": dict(more)}))
    return int(limit is not None and (growth > float(limit) or bool(more)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
