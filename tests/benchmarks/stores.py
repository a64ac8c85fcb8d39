"""Measure how near reading from a distant store comes to its limit, and whole runs beside Daft and plain Dask.

    PYTHONPATH=tests python tests/benchmarks/stores.py parts [ROUNDS]
    PYTHONPATH=tests python tests/benchmarks/stores.py runs [ROUNDS] [daft=PYTHON] [dask=PYTHON] [local=yes]

An S3 server on this machine behind a proxy with 30 ms round trip, 25 MB/s a connection and 60 MB/s in all; needs root
and what .ci/services installs. "limit" is the same bytes by 16 connections, with nothing done with them. Rounds are
interleaved. With `local=yes`, runs write to a local folder. `daft` is a Python with daft, onnxruntime and pyarrow,
`dask` one with dask, s3fs and onnxruntime.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from services import delaying, stores

from scorer.dataset import ahead, reader
from scorer.dataset.cursors import InputCache
from scorer.scoring.job import Slots
from scorer.storage import stores as clients
from scorer.storage.fetched import pieces
from scorer.storage.footers import chunk_ranges

MODEL = Path(__file__).parent.parent / "models" / "dense28.onnx"
THREADS = ((1, 1), (1, 2), (2, 2), (2, 4))
"""Parts that are decoded at once, and parts that are read beside them."""


@dataclass(frozen=True)
class Input:
    """A folder on the store, and what is read of it."""

    name: str
    files: int
    rows: int
    columns: int
    group_rows: int
    part_rows: int
    every: int = 1

    @property
    def schema(self):
        """An id, and every so many of the floats."""
        floats = [(f"f{j}", pa.float32()) for j in range(0, self.columns, self.every)]
        return pa.schema([("id", pa.int64()), *floats])


INPUTS = (
    Input("all 29 columns, row groups of 21 MB", 3, 480_000, 28, 120_000, 120_000),
    Input("29 of 141 columns, row groups of 34 MB", 2, 240_000, 140, 60_000, 60_000, 5),
    Input("one row group of 116 MB, in slices", 1, 960_000, 28, 960_000, 65_536),
)


def write(bucket, files):
    """Write random floats, which do not compress, with an id beside them; return the URL of each input's folder."""
    rng = np.random.default_rng(0)
    for i, one in enumerate(INPUTS):
        for n in range(one.files):
            columns = {"id": np.arange(n * one.rows, (n + 1) * one.rows)}
            columns |= {f"f{j}": rng.standard_normal(one.rows, dtype=np.float32) for j in range(one.columns)}
            with files.open_output_stream(f"{bucket.removeprefix('s3://')}/{i}/{n}.parquet") as sink:
                pq.write_table(pa.table(columns), sink, row_group_size=one.group_rows)
    return [f"{bucket}/{i}" for i in range(len(INPUTS))]


def limit(url, one):
    """Return the seconds that the same bytes take with nothing done with them."""
    cache, wanted = InputCache(), []
    for file in clients.of(url).objects(url):
        metadata = cache.file(file).parquet.metadata
        chunks = chunk_ranges(metadata, range(metadata.num_row_groups), one.schema.names)
        wanted += [(file, at, min(at + (8 << 20), stop)) for start, stop in pieces(chunks, file.size)
                   for at in range(start, stop, 8 << 20)]  # fmt: skip
    began = time.perf_counter()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda piece: clients.of(url).read_range(*piece), wanted))
    return time.perf_counter() - began


def parts(url, one, turns, more):
    """Return the seconds in which all parts are read and decoded as a worker does."""
    cache, slots = InputCache(), Slots(turns)
    sources = []
    for file in clients.of(url).objects(url):
        rows = cache.file(file).starts[-1]
        sources += [reader.Source(id=file, start=at, stop=min(at + one.part_rows, rows))
                    for at in range(0, rows, one.part_rows)]  # fmt: skip

    def part(source):
        held = ahead.fetch([source], one.schema, (), cache, lambda: None)
        slots.acquire(lambda: None)
        try:
            return reader.read_all([source], one.schema, (), (4096,), cache, None, held).table.num_rows
        finally:
            slots.release()

    began = time.perf_counter()
    with ThreadPoolExecutor(turns + more) as pool:
        assert sum(pool.map(part, sources)) == one.files * one.rows
    return time.perf_counter() - began


def measure_parts(link, urls, rounds):
    """Print the share of the limit for each input and each number of threads."""
    for url, one in zip(urls, INPUTS, strict=True):
        n_parts = one.files * -(-one.rows // one.part_rows)
        limits, seconds, counts = [], {threads: [] for threads in THREADS}, {}
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(rounds):
            limits.append(limit(url, one))
            for threads in THREADS:
                was = link.counts
                seconds[threads].append(parts(url, one, *threads))
                counts[threads] = link.since(was)
        grew = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(f"\n{one.name}; limit {median(limits):.2f} s; peak memory +{grew / 1024:.0f} MB\n")
        print(
            "| decoded + read ahead | seconds | share of the limit | GET a part | HEAD | MB |\n"
            "|---|---|---|---|---|---|"
        )
        for (turns, more), each in seconds.items():
            count = counts[turns, more]
            share = median(a / b for a, b in zip(limits, each, strict=True))
            print(f"| {turns} + {more} | {median(each):.2f} | {share:.2f} | {count['get'] / n_parts:.1f} | "
                  f"{count['head']} | {count['down_bytes'] / 1e6:.0f} |", flush=True)  # fmt: skip


DAFT = """
import os, sys
os.environ |= {"DAFT_PROGRESS_BAR": "0", "DAFT_ANALYTICS_ENABLED": "0", "DO_NOT_TRACK": "true"}
import daft, numpy as np, onnxruntime as ort
from daft.io import IOConfig, S3Config
source, model, out = sys.argv[1:]
env = os.environ
config = IOConfig(s3=S3Config(endpoint_url=env["AWS_ENDPOINT_URL"], key_id=env["AWS_ACCESS_KEY_ID"], use_ssl=False,
                              access_key=env["AWS_SECRET_ACCESS_KEY"], region_name=env["AWS_REGION"]))
names = [f"f{j}" for j in range(28)]
@daft.cls(use_process=False)
class Scorer:
    def __init__(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(model, options)
    @daft.method.batch(return_dtype=daft.DataType.float32())
    def score(self, *columns: daft.Series):
        x = np.stack([one.to_arrow().to_numpy() for one in columns], 1)
        run = self.session.run
        return np.concatenate([run(None, {"input": x[i : i + 4096]})[0][:, 0] for i in range(0, len(x), 4096)])
daft.set_runner_native()
rows = daft.read_parquet(source + "/*.parquet", io_config=config).select("id", *names)
scores = Scorer().score(*(daft.col(name) for name in names)).alias("score")
rows.select("id", scores).write_parquet(out, io_config=config)
os._exit(0)
"""
DASK = """
import os, sys
import dask.dataframe as dd, numpy as np, onnxruntime as ort, pandas as pd
source, model, out = sys.argv[1:]
env = os.environ
names = [f"f{j}" for j in range(28)]
held = {}
def session():
    if "run" not in held:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        held["run"] = ort.InferenceSession(model, options).run
    return held["run"]
storage = {"key": env["AWS_ACCESS_KEY_ID"], "secret": env["AWS_SECRET_ACCESS_KEY"],
           "client_kwargs": {"endpoint_url": env["AWS_ENDPOINT_URL"], "region_name": env["AWS_REGION"]}}
def score(part):
    x = part[names].to_numpy(np.float32)
    run = session()
    found = [run(None, {"input": x[i : i + 4096]})[0][:, 0] for i in range(0, len(x), 4096)]
    return pd.DataFrame({"id": part["id"], "score": np.concatenate(found) if found else np.empty(0, np.float32)})
rows = dd.read_parquet(source, columns=["id", *names], storage_options=storage, split_row_groups=True)
meta = pd.DataFrame({"id": np.empty(0, np.int64), "score": np.empty(0, np.float32)})
rows.map_partitions(score, meta=meta).to_parquet(
    out, storage_options=storage if out.startswith("s3://") else None, write_index=False)
"""


def scorer(source, out):
    """Return scorer's command."""
    return [sys.executable, "-m", "scorer", "run", source, "--model", MODEL, "--keep", "id", "--output", out, "--quiet"]


def measure_runs(link, urls, rounds, pythons):
    """Print the seconds of whole runs, and of the limit."""
    url, one = urls[0], INPUTS[0]
    limits, seconds = [], {}
    with tempfile.TemporaryDirectory() as folder:
        commands = {"scorer": scorer}
        for name, text in (("daft", DAFT), ("dask", DASK)):
            if name in pythons:
                script = Path(folder, f"{name}_run.py")
                script.write_text(text)
                commands[name] = lambda source, out, name=name, script=script: [
                    pythons[name], script, source, MODEL, out]  # fmt: skip
        for n in range(rounds):
            limits.append(limit(url, one))
            for name, command in commands.items():
                out = f"{folder}/{name}{n}" if "local" in pythons else f"{url.rpartition('/')[0]}/{name}{n}"
                was, began = link.counts, time.perf_counter()
                ended = subprocess.run([*map(str, command(url, out))], capture_output=True, text=True, check=False,
                                       env=os.environ | {"DASK_DATAFRAME__CONVERT_STRING": "false"})  # fmt: skip
                if ended.returncode:
                    print(name, ended.stderr[-2000:])
                    continue
                count = link.since(was)
                seconds.setdefault(name, []).append((time.perf_counter() - began, count))
    print(f"\n{one.name}; {one.files * one.rows:,} rows, a small net; limit {median(limits):.2f} s\n")
    print("| | seconds | GET | HEAD | PUT + POST | MB down | MB up |\n|---|---|---|---|---|---|---|")
    for name, each in seconds.items():
        count = each[-1][1]
        all_s = json.dumps([round(s, 1) for s, _ in each])
        print(f"| {name} | {median(s for s, _ in each):.2f} {all_s} | {count['get']} | "
              f"{count['head']} | {count['put'] + count['post']} | {count['down_bytes'] / 1e6:.0f} | "
              f"{count['up_bytes'] / 1e6:.0f} |")  # fmt: skip


def main():
    """Start the server and the proxy, and measure."""
    what, *rest = sys.argv[1:]
    rounds = next((int(text) for text in rest if text.isdigit()), 3)
    pythons = dict(text.split("=", 1) for text in rest if "=" in text)
    with stores.seaweed() as server:
        os.environ |= server.environment
        urls = write(server.bucket(), server.files())
        with delaying.delaying(server.port) as link:
            os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{link.port}"
            clients.configure({})
            if what == "parts":
                measure_parts(link, urls, rounds)
            else:
                measure_runs(link, urls, rounds, pythons)


if __name__ == "__main__":
    main()
