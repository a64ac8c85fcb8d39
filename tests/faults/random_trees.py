"""Compare compiled trees with ONNX Runtime for random ensembles, bit by bit, on every instruction set of this machine.

    python tests/faults/random_trees.py SEEDS [--first N] [--sanitize]

Each seed is one ensemble with rows in three blocks. `--sanitize` compiles the kernel with the address and
undefined-behaviour sanitizers first; it needs gcc, and LD_PRELOAD of its libasan.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import tempfile
from pathlib import Path

from support.random_trees import compare

from scorer.model import _compile, _kernel

BLOCKS = ([1], [2, 63, 64, 65, 127, 128], [300, 511, 512, 513, 600])


def main():
    """Print the counts; exit with 1 if anything differs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("seeds", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--sanitize", action="store_true")
    given = parser.parse_args()
    if given.sanitize:
        target = Path(tempfile.mkdtemp(), "_trees.so")
        flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
        _compile.compile_library(["gcc"], target, _compile.SOURCE, *flags)
        library = ctypes.CDLL(str(target))
        _kernel._library = lambda: library
    comparisons, different, kept = 0, [], collections.Counter()
    for seed in range(given.first, given.first + given.seeds):
        done, wrong, why = compare(seed, BLOCKS)
        comparisons += done
        different += wrong
        kept[why] += bool(why)
    levels = ", ".join(_kernel.available())
    print(f"{given.seeds:,} ensembles, {comparisons:,} comparisons ({levels}), {len(different)} different")
    for why, times in (+kept).most_common():
        print(f"  {times:,} left to the runtime: {why}")
    for seed, level, rows in different[:20]:
        print(f"  different: seed {seed}, {level}, {rows} rows")
    raise SystemExit(bool(different))


if __name__ == "__main__":
    main()
