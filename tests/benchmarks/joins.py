"""Measure joined tables: CPU seconds of lookups by one and by two keys, and memory of processes that share a table.

    python tests/benchmarks/joins.py [--rows 1000000] [--processes 4]

pyarrow's `index_in` builds its hash table in each call; pandas' merge, too.
"""

from __future__ import annotations

import argparse
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scorer.arrow import encode_schema
from scorer.dataset.joins import lookup
from scorer.dataset.joins.index import as_key, build, key_type
from scorer.dataset.joins.spec import Join

PART = 65_536


def cpu(call):
    """Return the CPU seconds of a call, the least of three, and its result."""
    spent = []
    for _ in range(3):
        started = time.process_time()
        result = call()
        spent.append(time.process_time() - started)
    return min(spent), result


def lookups(rows):
    """Print the seconds of lookups of `rows` keys, half of them missing, in a table of as many rows."""
    rng = np.random.default_rng(0)
    table, asked = rng.permutation(2 * rows)[:rows], rng.integers(0, 2 * rows, rows)
    texts = [pa.array([f"customer-{key:09d}" for key in keys]) for keys in (table, asked)]
    print(f"{'keys':22}{'build s':>9}{'1 part s':>10}{'all s':>8}{'M rows/s':>10}{'index_in s':>12}{'merge s':>9}")
    for name, columns in {
        "int64": [(pa.array(table), pa.array(asked))],
        "texts of 18 letters": [tuple(texts)],
        "dictionary": [(texts[0], texts[1].dictionary_encode())],
        "int64 and text": [(pa.array(table), pa.array(asked)), tuple(texts)],
    }.items():
        kinds = [key_type(own.type, other.type) for own, other in columns]
        keys = [as_key(pa.chunked_array([own]), kind) for (own, _), kind in zip(columns, kinds, strict=True)]
        built, (index, order) = cpu(lambda keys=keys: build(keys))

        def find(count, columns=columns, kinds=kinds, index=index):
            chosen = (pa.chunked_array([other.slice(0, count)]) for _, other in columns)
            return index.find([as_key(column, kind) for column, kind in zip(chosen, kinds, strict=True)])

        part, _ = cpu(lambda: find(PART))
        every, found = cpu(lambda: find(rows))
        left = pd.DataFrame({str(i): other.to_pandas() for i, (_, other) in enumerate(columns)})
        right = pd.DataFrame({str(i): own.to_pandas() for i, (own, _) in enumerate(columns)}).assign(at=range(rows))
        merging, merged = cpu(lambda left=left, right=right: left.merge(right, how="left"))
        one, other = columns[0]
        plain = float("nan")  # it takes one key
        if len(columns) == 1:
            values = other.cast(one.type) if pa.types.is_dictionary(other.type) else other
            plain, _ = cpu(lambda values=values, one=one: pc.index_in(values, one))
        different = int((np.where(found < 0, -1, order[found]) != merged["at"].fillna(-1).to_numpy()).sum())
        print(
            f"{name:22}{built:9.3f}{part:10.4f}{every:8.3f}{rows / every / 1e6:10.1f}{plain:12.3f}{merging:9.3f}"
            f"   {different} different"
        )


def resident(join, processes, *, shared):
    """Return the memory of so many processes with a table, in MB: pages that several have are divided among them."""
    command = [sys.executable, __file__, "--child", pickle.dumps((join, shared)).hex()]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    spent = [float(one.stdout.readline()) for one in started]
    pages = [Path(f"/proc/{one.pid}/smaps_rollup").read_text().split("Pss:")[1].split()[0] for one in started]
    for one in started:
        one.communicate("end\n")
    return sum(map(int, pages)) / 1024, sum(spent)


def child(text):
    """Load a table and look keys up in it; wait until the memory was measured."""
    join, shared = pickle.loads(bytes.fromhex(text))
    started = time.process_time()
    table = lookup.table(join, shared=shared)
    spent = time.process_time() - started
    rows = pa.table({"id": np.random.default_rng(1).integers(0, 2 * len(table.index.codes), 2_000_000)})
    lookup.add_columns(rows, [join], shared=shared)
    pa.default_memory_pool().release_unused()
    print(spent, flush=True)
    sys.stdin.readline()
    lookup.forget([lookup.id_of(join)])


def main():
    """Print the speed of lookups, and the memory of processes with one table each and with a shared one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--child")
    given = parser.parse_args()
    if given.child:
        child(given.child)
        return
    lookups(given.rows)
    with tempfile.TemporaryDirectory() as folder:
        path, rng, rows = f"{folder}/t.parquet", np.random.default_rng(0), 4 * given.rows
        pq.write_table(pa.table({"id": rng.permutation(rows), **{f"v{i}": rng.random(rows) for i in range(6)}}), path)
        schema = pa.schema([("0", pa.int64()), *((f"v{i}", pa.float64()) for i in range(6))])
        digest = lookup.digest_of(lookup.open_table(path))
        join = Join(
            name="t", location=path, digest=digest, left=("id",), right=("id",), missing="null",
            schema=encode_schema(schema),
        )  # fmt: skip
        for shared in (False, True):
            memory, spent = resident(join, given.processes, shared=shared)
            kind = "one shared table" if shared else "a table in each process"
            print(
                f"{rows:,} rows of 7 columns, {given.processes} processes, {kind}: {memory:,.0f} MB, {spent:.1f} s CPU"
            )


if __name__ == "__main__":
    main()
