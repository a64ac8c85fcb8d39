"""The cost of handling bad rows if there are none: user and system time with and without it, alternating.

    python tests/benchmarks/bystanders.py 15

Without it, a run writes no marks of parts in progress, splits no batch, has no error columns and looks for no rows to
quarantine. Each pair runs both kinds in random order; pairs of identical runs show the noise of the machine. Prints
ratios with their 90 % interval as JSON.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import scorer
from scorer.output import attempts
from scorer.scoring import batches, part

MODEL = Path(__file__).parent.parent / "models" / "dense28.onnx"
ROWS = 1_000_000
_T = {14: 1.761, 19: 1.729, 29: 1.699}  # Student's t for 90 %, by degrees of freedom


def unprepared() -> ExitStack:
    """Patch the run so that it does not handle bad rows."""

    def run(self, feeds, rows):
        yield rows, self._call(feeds, rows)

    nothing = attempts.Mark(path=Path("/nowhere"), deaths=0, crashed=False)
    stack = ExitStack()
    for target, name, instead in (
        (batches._BatchRunner, "run", run),
        (part, "_quarantine", lambda *_: ""),
        (batches.Scored, "good", lambda _: None),
        (attempts, "begin", lambda *_: nothing),
        (attempts, "end", lambda *_: None),
    ):
        stack.enter_context(patch.object(target, name, instead))
    return stack


def seconds(source: Path, folder: Path, *, ready: bool) -> float:
    """Return the user and system time of one run."""
    with tempfile.TemporaryDirectory(dir=folder) as output, ExitStack() as stack:
        if not ready:
            stack.enter_context(unprepared())
        before = os.times()
        report = scorer.run(source, MODEL, f"{output}/out", cluster="synchronous", batch_rows=4096,
                            part_bytes="4MiB", tune=False)  # fmt: skip
        after = os.times()
        assert report.counts.scored == ROWS
        return after.user + after.system - before.user - before.system


def interval(ratios: list[float]) -> dict[str, float]:
    """Return the geometric mean of ratios and its 90 % interval."""
    logs = [math.log(ratio) for ratio in ratios]
    n = len(logs)
    t = _T.get(n - 1, 1.7)
    middle, half = statistics.fmean(logs), t * statistics.stdev(logs) / math.sqrt(n)
    return {"ratio": round(math.exp(middle), 4), "low": round(math.exp(middle - half), 4),
            "high": round(math.exp(middle + half), 4), "pairs": n}  # fmt: skip


def main() -> None:
    """Print one line of JSON."""
    pairs = int(sys.argv[1])
    draw = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.parquet"
        rng = np.random.default_rng(1)
        columns = {f"f{i}": rng.standard_normal(ROWS).astype(np.float32) for i in range(28)}
        pq.write_table(pa.table({"id": np.arange(ROWS), **columns}), source, row_group_size=50_000)
        seconds(source, Path(folder), ready=True)
        ratios, same = [], []
        for _ in range(pairs):
            taken = dict.fromkeys((True, False), 0.0)
            for ready in draw.sample([True, False], 2):
                taken[ready] = seconds(source, Path(folder), ready=ready)
            ratios.append(taken[True] / taken[False])
            same.append(seconds(source, Path(folder), ready=True) / seconds(source, Path(folder), ready=True))
    print(json.dumps({"rows": ROWS, "ready against unprepared": interval(ratios), "identical runs": interval(same)}))


if __name__ == "__main__":
    main()
