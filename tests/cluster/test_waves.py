"""Dask tasks and messages of a part, and its receipt."""

from __future__ import annotations

import json
import subprocess
import sys

import dask
import pytest
from dask.tokenize import tokenize
from support.runs import MODELS, ROOT

import scorer
from scorer.cluster.tasks import read_meta
from scorer.cluster.waves import collection
from scorer.dataset.reader import Source
from scorer.events import PartFinished
from scorer.plan.parts import Part
from scorer.scoring.job import Job, Spec
from scorer.storage.files import FileId

DENSE = MODELS / "dense28.onnx"


def test_read_score_and_write_are_one_task_per_part(fewer28, tmp_path):
    plan = scorer.prepare(fewer28, DENSE, tmp_path / "out", part_bytes="384KiB")
    spec = Spec.of(plan.frozen, scorer.output.place.Place.of(plan.output, plan.work_dir).staging(plan.frozen.plan_hash))
    parts = list(plan.frozen.parts())
    with dask.config.set({"dataframe.convert-string": False}):
        graph = dict(collection(parts, spec.key, read_meta()).optimize().__dask_graph__())
    assert len(graph) == len(parts)


@pytest.mark.parametrize("times", [0, 2], ids=["lost events", "duplicate events"])
def test_every_part_counts_once_if_its_receipt_event_is_lost_or_doubled(fewer28, tmp_path, monkeypatch, times):
    plain = Job.report_receipt
    monkeypatch.setattr(Job, "report_receipt", lambda *args: [plain(*args) for _ in range(times)])
    seen = []
    report = scorer.run(fewer28, DENSE, tmp_path / "out", part_bytes="96KiB", tune=False, observers=[seen.append])
    finished = [event.receipt.proof.part for event in seen if isinstance(event, PartFinished)]
    assert sorted(finished) == list(range(report.parts))
    assert report.counts.scored == 60_000


def test_a_part_survives_pickling():
    from distributed.protocol.pickle import dumps, loads

    source = Source(id=FileId("/in/x.parquet", 1, 2), start=3, stop=4, hive=(("day", "1"), ("none", None)))
    parts = [Part(index=i, name=f"{i}.parquet", sources=(source,) * (i + 1)) for i in range(2)]
    assert loads(dumps(parts)) == parts
    assert len({tokenize(part) for part in parts}) == 2


def test_a_pickled_part_is_small(tmp_path):
    from distributed.protocol.pickle import dumps

    source = Source(id=FileId("/data/some/folder/input.parquet", 1, 2**60), start=10**9, stop=10**9 + 5)
    assert len(dumps(Part(index=10**6, name="part-1000000.parquet", sources=(source,)))) < 500


@pytest.mark.slow
def test_a_thousand_parts_send_less_than_a_kilobyte_each():
    script = ROOT / "tests" / "benchmarks" / "bytes_to_scheduler.py"
    done = subprocess.run([sys.executable, script, "200"], capture_output=True, text=True, timeout=100, check=True)
    assert json.loads(done.stdout)["from_driver_per_part"] < 1000
