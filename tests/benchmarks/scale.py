"""Simulate large runs: the cost of 100,000 and 1,000,000 parts, and the idle time of 512 threads and 1,000 workers.

    python tests/benchmarks/scale.py drive 1000 10000 100000    no-op parts through driver, Dask and scheduler
    python tests/benchmarks/scale.py plan 1000000               a plan of real files
    python tests/benchmarks/scale.py busy 64 512 512x2 512x1x60  threads, seconds that a part sleeps, parts of a thread
    python tests/benchmarks/scale.py schedule                   schedules relative to the ideal; arithmetic only

Each prints one line of JSON. `drive` scores nothing: what it measures is the overhead of scorer and Dask.
"""

from __future__ import annotations

import heapq
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

MODEL = Path(__file__).parent.parent / "models" / "sum3.onnx"
PER_PROCESS = 64  # threads of a simulated worker
IO_S = []  # CPU seconds that a part's file took


def read(part, key, wave=0):
    frame = pd.DataFrame()
    frame.attrs["scorer"] = part
    return frame


def score(frame, key):
    return frame


def commit(frame, key):
    from scorer.events import Counts, Proof, Receipt
    from scorer.scoring.job import JOBS

    part = frame.attrs["scorer"]
    counts = Counts(rows=part.rows, scored=part.rows)
    proof = Proof(part=part.index, plan="p" * 64, model="m" * 64, counts=counts, digests={"y": "d" * 32})
    receipt = Receipt(proof=proof, name=part.name, size=10)
    if JOBS.job(key).staging.parts.exists():
        began = time.thread_time()
        (JOBS.job(key).staging.parts / part.name).write_bytes(b"0123456789")
        IO_S.append(time.thread_time() - began)
    JOBS.job(key).report_receipt(part.index, receipt)
    return receipt


def commit_after_a_while(frame, key):
    time.sleep(float(os.environ["PART_S"]))  # workers inherit the variable
    return commit(frame, key)


def placeholder_feeds(parts, output):
    """Return a plan of this many parts, whose input is never read."""
    from scorer.binding.spec import Binding
    from scorer.model.spec import SessionSpec
    from scorer.options.request import build
    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.parts import PlannedFile
    from scorer.plan.prepared import Plan
    from scorer.plan.scorers import Scorer
    from scorer.storage.encoding import Storage
    from scorer.storage.files import FileId

    runs = ((10, parts),)
    file = PlannedFile(id=FileId("/nowhere.parquet", 1, 1), folder="", row_groups=runs, parts=runs)
    scorer = Scorer(
        binding=Binding(feeds=(), fetches=()), batch_rows=10,
        session=SessionSpec(path=str(MODEL), digest="d", files=(), device="cpu"),
    )  # fmt: skip
    frozen = FrozenPlan(
        request={}, files=(file,), conditions=(), scorers=(scorer,),
        read_schema=schema(), output_schema=schema(), storage=Storage(codec="none", row_group_rows=1),
    )  # fmt: skip
    options = build({"input": "/nowhere.parquet", "model": str(MODEL), "output": str(output)})
    return Plan(options=options, output=str(output), work_dir=f"{output}.scorer", frozen=frozen)


def schema():
    from scorer.arrow import encode_schema

    return encode_schema(pa.schema([]))


def simulated(last=commit):
    """Replace the three functions of a task with ones that do nothing."""
    from scorer.cluster import tasks

    tasks.read_part, tasks.score_part, tasks.commit_part = read, score, last


def drive(parts):
    """Measure a run without scoring; call it in its own process, because it reports the peak memory."""
    import scorer
    from scorer.model.resident import SESSIONS

    simulated()
    SESSIONS._load = lambda _, future, __: future.set_result(None)
    with tempfile.TemporaryDirectory() as folder:
        plan = placeholder_feeds(parts, Path(folder) / "out")
        began, used = time.perf_counter(), time.process_time()
        report = scorer.execute(plan)
        wall, cpu = time.perf_counter() - began, time.process_time() - used
    assert report.counts.scored == 10 * parts
    files = sum(IO_S)
    each = {
        "wall_ms_a_part": round(1000 * wall / parts, 3),
        "cpu_ms_a_part": round(1000 * (cpu - files) / parts, 3),
        "commit_io_ms_a_part": round(1000 * files / parts, 3),
    }
    return {"parts": parts, **each, "peak_mb": peak()}


def peak():
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def plan(parts):
    """Measure `prepare` on real files of 5,000 row groups each."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in"
        source.mkdir()
        groups = min(5_000, parts)
        table = pa.table({name: np.ones(250, np.float32) for name in "abc"})
        with pq.ParquetWriter(source / "0.parquet", table.schema) as writer:
            for _ in range(groups):
                writer.write_table(table)
        for i in range(1, parts // groups):
            shutil.copy(source / "0.parquet", source / f"{i}.parquet")
        code = (
            "import json, resource, sys, time, scorer\n"
            "began = time.perf_counter()\n"
            f"asked = {str(source)!r}, {str(MODEL)!r}, {str(source) + '.out'!r}\n"
            "plan = scorer.prepare(*asked, feed='x=a,b,c', part_bytes=4096, tune=False)\n"
            "seconds = time.perf_counter() - began\n"
            "text = json.dumps(plan.check().to_dict())\n"
            "again = time.perf_counter(); n = sum(1 for _ in plan.frozen.parts())\n"
            "listing = time.perf_counter() - again; peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
            "print(json.dumps({'parts': n, 'seconds': round(seconds, 1), 'listing_s': round(listing, 1),"
            " 'peak_mb': peak, 'plan_bytes': len(text)}))\n"
        )
        run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        return json.loads(run.stdout)


def busy(asked):
    """Measure how busy threads are with parts that sleep, on worker processes of 64 threads."""
    from distributed import Client, LocalCluster

    from scorer.cluster import waves
    from scorer.cluster.connect import _CONFIG, Workers
    from scorer.model.resident import SESSIONS
    from scorer.output.place import Staging
    from scorer.scoring.job import Spec

    threads, part_s, rounds = (int(one) for one in (*asked.split("x"), *("1", "20")[asked.count("x") :]))
    os.environ["PART_S"] = str(part_s)
    simulated(commit_after_a_while)
    SESSIONS._load = lambda _, future, __: future.set_result(None)
    import dask

    with tempfile.TemporaryDirectory() as folder, dask.config.set(_CONFIG):
        made = placeholder_feeds(threads * rounds, Path(folder) / "out").frozen
        workers = max(1, threads // PER_PROCESS)
        with (
            LocalCluster(
                n_workers=workers,
                threads_per_worker=threads // workers,
                dashboard_address="127.0.0.1:0",
                worker_dashboard_address="127.0.0.1:0",
                memory_limit=None,
            ) as cluster,
            Client(cluster) as client,
        ):
            client.wait_for_workers(workers)
            client.run(simulated_worker, str(Path(__file__).parent))
            spec = Spec.of(made, Staging(root=Path(folder)))
            began = time.perf_counter()
            done = sum(1 for _ in waves.drive(Workers(client=client, description=""), spec, made.parts()))
            wall = time.perf_counter() - began
    assert done == threads * rounds
    share = round(done * part_s / (threads * wall), 3)
    return {"threads": threads, "part_s": part_s, "parts": done, "wall_s": round(wall, 2), "busy": share}


def simulated_worker(folder):
    """Let a worker import this module, and load no model."""
    sys.path.insert(0, folder)
    from scorer.model.resident import SESSIONS

    SESSIONS._load = lambda _, future, __: future.set_result(None)


def schedule():
    """Simulate a scheduler that gives the next part to a free worker; return lengths relative to the ideal."""
    from scorer.preflight.cutting import Size, cut_parts

    rng = np.random.default_rng(0)
    rows = []
    for workers in (64, 1_000):
        for name, speeds in (("even", np.ones(workers)), ("uneven", rng.uniform(0.5, 1.5, workers))):
            for cost, spread in (("even", 0.0), ("uneven", 0.5)):
                total = workers * 300  # a part of 10 s at the most, an hour and a half at the least: 5 min a worker
                for shrink in (0, workers):
                    parts = cut_parts([total * 100], Size(1_000, 1, shrink, 10))
                    work = np.array(parts) / 100 * rng.uniform(1 - spread, 1 + spread, len(parts))
                    free = [(0.0, i) for i in range(workers)]
                    for seconds in work:
                        at, i = heapq.heappop(free)
                        heapq.heappush(free, (at + seconds / speeds[i], i))
                    ideal = work.sum() / speeds.sum()
                    length = max(at for at, _ in free)
                    rows.append({"workers": workers, "speeds": name, "parts": cost, "shrinking": bool(shrink),
                                 "n_parts": len(parts), "over_ideal": round(length / ideal, 4)})  # fmt: skip
    return rows


def main():
    what, *numbers = sys.argv[1:]
    if what == "schedule":
        for row in schedule():
            print(json.dumps(row))
        return
    if len(numbers) > 1:
        for number in numbers:
            subprocess.run([sys.executable, __file__, what, number], check=True, env=os.environ)
        return
    print(
        json.dumps({"drive": drive, "plan": plan}[what](int(numbers[0])) if what != "busy" else busy(numbers[0])),
        flush=True,
    )


if __name__ == "__main__":
    sys.modules.setdefault("scale", sys.modules["__main__"])
    for function in (read, score, commit, commit_after_a_while, simulated_worker):
        function.__module__ = "scale"
    main()
