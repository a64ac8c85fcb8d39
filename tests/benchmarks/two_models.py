"""CPU seconds of one run with two models against two runs with one model each, and against a model of both graphs.

    PYTHONPATH=tests python tests/benchmarks/two_models.py FOLDER [ROWS [TURNS]]

A table of 72 columns, of which two models are fed the same 28: two nets 256 wide, then two ensembles of 200 trees on
the compiled kernel, once with all columns kept and once with none. Each turn runs all commands in a new order; prints
the medians of their user and system time, the ratio of one run to two, and whether all scores have the same bits.
Needs the test packages and those of tests/models.txt.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import jobs
import numpy as np
import onnx
import pyarrow.parquet as pq
from onnx import compose

from scorer.arrow import digest


def joined(first, second, path):
    """Write one graph of both models with one input; the names of everything else begin with a_ and b_."""
    both, other = (compose.add_prefix(onnx.load(one), at) for at, one in (("a_", first), ("b_", second)))
    for part in ("node", "initializer", "output"):
        getattr(both.graph, part).extend(getattr(other.graph, part))
    both.graph.input[0].name = "x"
    for node in both.graph.node:
        node.input[:] = ["x" if name in {"a_x", "b_x"} else name for name in node.input]
    onnx.checker.check_model(both)
    onnx.save(both, path)


def models(folder):
    """Write two nets and two ensembles, and a graph of each two; return their paths by kind."""
    made = {kind: [folder / f"{kind}_{name}.onnx" for name in ("a", "b", "joined")] for kind in ("nets", "trees")}
    for kind, paths in made.items():
        if not paths[-1].exists():
            for path, size in zip(paths, (256, 250) if kind == "nets" else (200, 199), strict=False):
                (jobs.wide if kind == "nets" else jobs.trees)(path, size)
            joined(*paths)
    return made


def seconds(words, output):
    """Run a command that writes this output; return the user and system time of it and its children."""
    for folder in (output, Path(f"{output}.scorer")):
        shutil.rmtree(folder, ignore_errors=True)
    child = subprocess.Popen([*map(str, words), "--output", str(output), "--quiet"], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"a run failed: {status}")
    return used.ru_utime + used.ru_stime


def scores(output):
    """Return the digest of each column that a model added, without the name of the model."""
    table = pq.read_table(output)
    return [digest(table[name]) for name in table.column_names if name.startswith(("p_", "q_"))]


def measure(source, paths, keep, folder, turns):
    """Print one line of the table."""
    a, b, both = paths
    start = [sys.executable, "-m", "scorer", "run", source, "--feed", "x=f0..f27", "--keep", keep, "--no-tune"]
    ways = {
        "one": ["--model", f"a={a}", "--model", f"b={b}", "--prefix", "p_"],
        "first": ["--model", a, "--prefix", "p_"],
        "second": ["--model", b, "--prefix", "q_"],
        "joined": ["--model", both, "--prefix", "p_"],
    }
    spent = {way: [] for way in ways}
    for turn in range(turns + 1):
        for way in np.random.default_rng(turn).permutation(list(ways)):
            took = seconds([*start, *ways[way]], folder / f"out-{way}")
            if turn:  # the first warms the caches
                spent[way].append(took)
    middle = {way: statistics.median(values) for way, values in spent.items()}
    found = {way: scores(folder / f"out-{way}") for way in ways}
    equal = found["one"] == found["joined"] == [*found["first"], *found["second"]]
    two = middle["first"] + middle["second"]
    print(
        f"{paths[0].stem[:-2]:6} keep {keep:5}" + "".join(f" {way} {took:6.2f} s" for way, took in middle.items())
        + f"   one/two {middle['one'] / two:.3f}   joined/two {middle['joined'] / two:.3f}"
        + f"   bits {'equal' if equal else 'DIFFERENT'}",
        flush=True,
    )  # fmt: skip


def main():
    """Write what is missing, and measure."""
    folder = Path(sys.argv[1])
    rows, turns = (int(one) for one in [*sys.argv[2:], *("500000", "5")[len(sys.argv) - 2 :]])
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / f"rows-{rows}"
    if not source.exists():
        jobs.kept(source, rows, files=4)
    for paths in models(folder).values():
        for keep in ("none", "all"):
            measure(source, paths, keep, folder, turns)


if __name__ == "__main__":
    main()
