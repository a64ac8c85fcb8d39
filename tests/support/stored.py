"""Inputs of many kinds of columns and row groups, and the bytes of outputs, to compare stores with disks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from support.runs import write

ROWS = 9_000


def rows(seed, n=ROWS):
    """Return rows with columns that are fed or copied, with nulls, with lists and with a dictionary."""
    rng = np.random.default_rng(seed)
    floats = {f"f{i}": rng.standard_normal(n, np.float32) for i in range(28)}
    others = {
        "id": np.arange(n),
        "name": pa.array([None if i % 13 == 0 else f"n{i % 97}" for i in range(n)]).dictionary_encode(),
        "tags": [[f"t{i % 5}"] * (i % 3) for i in range(n)],
        "at": pa.array(rng.integers(0, 2**40, n), pa.timestamp("us")),
    }
    return pa.table(floats | others)


def hive(top):
    """Write files with row groups of several sizes into key=value folders; return the top folder."""
    for day in range(3):
        for i in (1, 2, 10):
            table = rows(10 * day + i)
            write(top / f"day={day}" / f"part-{i}.parquet", table, row_group_size=(ROWS, 4000, 700)[day])
    return top


def stored_bytes(output):
    """Return the bytes of every file of an output, without its footer, which names the request."""
    found = {}
    for path in sorted(Path(output).rglob("*.parquet")):
        data = path.read_bytes()
        found[str(path.relative_to(output))] = data[: -8 - int.from_bytes(data[-8:-4], "little")]
    return found
