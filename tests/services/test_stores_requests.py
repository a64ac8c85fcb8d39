"""How many requests a run sends to a store, and how many of them follow one after the other."""

from __future__ import annotations

import json
import re
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs import MODELS, command

import scorer
from scorer.storage import stores
from services.conftest import enter_or_skip
from services.delaying import delaying

pytestmark = pytest.mark.service

VERBS = ("get", "head", "put", "post", "delete")
DENSE = str(MODELS / "dense28.onnx")


@pytest.fixture
def link(s3, monkeypatch):
    """A distant server, without a limit of the rate."""
    with enter_or_skip(delaying(s3.port, 0.05, 0, 0)) as link:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{link.port}")
        stores._forget_after_fork()
        yield link
    stores._forget_after_fork()


@pytest.fixture
def lake(s3):
    """A bucket with one file of four row groups."""
    bucket = s3.bucket()
    rng = np.random.default_rng(0)
    columns = {"id": np.arange(40_000)} | {f"f{j}": rng.standard_normal(40_000, np.float32) for j in range(28)}
    with s3.files().open_output_stream(f"{bucket.removeprefix('s3://')}/in/rows.parquet") as file:
        pq.write_table(pa.table(columns), file, row_group_size=10_000)
    return bucket


def asked(link, before):
    """Return how many requests were sent since, and how many followed one after the other."""
    counts = link.since(before)
    return sum(counts[verb] for verb in VERBS), counts["chain"]


def run(lake, output, **options):
    options = {"keep": "id", "file_rows": 10_000, "tune": False, "cluster": "embedded", "threads": 2} | options
    return scorer.run(f"{lake}/in", DENSE, output, **options)


LIMITS = {"plan": (50, 10), "run": (145, 48), "again": (36, 20), "overwrite": (172, 66)}
"""Requests, and how many of them may follow one after the other; a fifth to a quarter above what was counted."""


def test_few_requests_of_a_run_follow_one_after_the_other(lake, link, report_line):
    output, found = f"{lake}/{uuid.uuid4().hex}", {}
    before = link.counts
    plan = scorer.prepare(f"{lake}/in", DENSE, output, keep="id", file_rows=10_000, tune=False, threads=2)
    assert plan.problems == ()
    found["plan"] = asked(link, before)
    for name, more in (("run", {}), ("again", {}), ("overwrite", {"overwrite": True, "prefix": "p_"})):
        before = link.counts
        assert run(lake, output, **more).counts.scored == 40_000
        found[name] = asked(link, before)
    report_line(f"requests, and those that followed one after the other: {found}")
    for name, (requests, chain) in LIMITS.items():
        assert found[name][0] <= requests, (name, found)
        assert found[name][1] <= chain, (name, found)


def test_the_time_forecast_knows_the_speed_of_the_store(s3, monkeypatch):
    bucket, rng = s3.bucket(), np.random.default_rng(0)
    columns = {"id": np.arange(480_000)} | {f"f{j}": rng.standard_normal(480_000, np.float32) for j in range(28)}
    with s3.files().open_output_stream(f"{bucket.removeprefix('s3://')}/in/rows.parquet") as file:
        pq.write_table(pa.table(columns), file, row_group_size=120_000)
    with enter_or_skip(delaying(s3.port)) as link:  # 60 MB/s
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{link.port}")
        stores._forget_after_fork()
        plan = scorer.prepare(f"{bucket}/in", DENSE, f"{bucket}/out", keep="id", tune=False, threads=2)
    stores._forget_after_fork()
    found = re.fullmatch(r"([\d.]+) MB from the store at ([\d.]+) MB/s, as the first rows", plan.forecast.network)
    assert found, plan.forecast
    stored, speed = map(float, found.groups())
    assert 55 < stored < 90
    assert speed < 90  # the link lets a burst through; a busy machine is slower
    assert plan.forecast.seconds == (pytest.approx(0.7 * stored / speed, 0.1), pytest.approx(2 * stored / speed, 0.1))
    assert "MB from the store at" in str(plan)


@pytest.mark.minutes
def test_one_large_row_group_of_a_store_is_scored_in_the_memory_that_was_forecast(s3, tmp_path):
    """A row group of 116 MB, in a process of its own, whose peak the kernel counts."""
    url = f"{s3.bucket()}/in.parquet"
    rng = np.random.default_rng(0)
    columns = {"id": np.arange(960_000)} | {f"f{j}": rng.standard_normal(960_000, np.float32) for j in range(28)}
    with s3.files().open_output_stream(url.removeprefix("s3://")) as file:
        pq.write_table(pa.table(columns), file, row_group_size=960_000)
    asked = (url, "--model", DENSE, "--keep", "id", "--cluster", "embedded", "--threads", "2", "--no-tune", "--json")
    plan = command("plan", *asked, "--output", tmp_path / "out")
    assert plan.returncode == 0, plan.stderr
    forecast = json.loads(plan.stdout)["forecast"]
    assert "from and to stores" in forecast["memory"]
    run = command("run", *asked, "--output", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report["input_bytes"] >= 115_000_000
    assert report["parts"] > 2
    assert report["peak_memory_bytes"] <= forecast["memory_bytes"][1]
