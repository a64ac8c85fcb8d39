"""Devices by name and number, and one process for each device."""

from __future__ import annotations

import os
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs import MODELS, session_spec, write

import scorer
from scorer.cluster import connect
from scorer.cluster.readiness import plan_for
from scorer.errors import OptionsError, PreflightError, ProviderUnavailable
from scorer.host import devices
from scorer.host.devices import Device
from scorer.model.session import Session
from scorer.options.request import build, build_cluster
from scorer.preflight import cutting, tuning


def floats(folder, rows):
    """28 float columns."""
    return write(folder / "in.parquet", {f"f{i}": pa.array([float(i)] * rows, pa.float32()) for i in range(28)})


@pytest.mark.parametrize(
    ("text", "name", "ids"),
    [
        ("cpu", "cpu", ()), ("CUDA:1", "cuda", (1,)), ("cuda:0,2", "cuda", (0, 2)), ("auto", "auto", ()),
        ("tensorrt:12", "tensorrt", (12,)), ("coreml", "coreml", ()),
    ],
)  # fmt: skip
def test_a_device_is_a_name_and_numbers(text, name, ids):
    assert devices.parse(text) == Device(name=name, ids=ids)


@pytest.mark.parametrize(
    "text",
    ["gpu", "", "cuda:", "cuda:x", "cuda:-1", "cuda:1:2", "cuda:1.5", "cuda:²", ":1", "cuda 1", "cuda:0,0", "cuda:0,00",
     "cuda:0,", "cpu:0", "auto:1"],
)  # fmt: skip
def test_a_device_that_does_not_exist_is_refused(text):
    with pytest.raises(OptionsError, match="no device"):
        devices.parse(text)


@pytest.mark.parametrize(
    ("text", "near"), [("cud", "cuda"), ("tensort", "tensorrt"), ("cpuu", "cpu"), ("atuo", "auto"), ("gpu", "cuda")]
)
def test_a_device_that_is_nearly_right_gets_a_suggestion(text, near):
    with pytest.raises(OptionsError, match=f"did you mean '{near}'"):
        devices.parse(text)


def test_only_devices_that_the_environment_makes_visible_exist(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5f, 7")
    assert devices.visible(Device(name="cuda")) == ("3", "GPU-5f", "7")
    assert devices.device_environments(Device(name="cuda")) == [
        {"CUDA_VISIBLE_DEVICES": name} for name in ("3", "GPU-5f", "7")
    ]
    assert devices.device_environments(Device(name="tensorrt", ids=(2, 0))) == [
        {"CUDA_VISIBLE_DEVICES": name} for name in ("7", "3")
    ]
    devices.refuse_missing(Device(name="cuda", ids=(0, 2)))
    with pytest.raises(ProviderUnavailable, match="no cuda device '3'") as caught:
        devices.refuse_missing(Device(name="cuda", ids=(1, 3)))
    assert caught.value.found == "3 devices: 0 to 2"
    assert not devices.device_environments(Device(name="cpu"))


def test_nodes_that_run_on_the_cpu_are_reported():
    placed = {"cuda": {"MatMul": 12, "Add": 3}, "cpu": {"Shape": 2, "NonZero": 1}}
    assert devices.counts(placed) == {"cuda": 15, "cpu": 3}
    (note,) = devices.notes_on_cpu_nodes(placed)
    assert note == "3 of 18 nodes of the model stay on the cpu: Shape (2), NonZero (1)"
    assert not devices.notes_on_cpu_nodes({"cuda": {"MatMul": 1}})
    assert not devices.notes_on_cpu_nodes({})


def test_several_devices_get_a_process_each(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    options = build({"input": "x", "model": "m", "device": "cuda:1,3"}).cluster
    assert (options.cluster, options.workers) == ("processes", 2)
    options = build({"input": "x", "model": "m", "device": "cuda", "cluster": "processes"}).cluster
    assert options.workers == 4
    options = build({"input": "x", "model": "m", "device": "cuda:1"}).cluster
    assert (options.cluster, options.workers) == (None, None)


@pytest.mark.parametrize("kind", ["embedded", "slurm"])
def test_several_devices_in_one_process_are_refused(kind):
    with pytest.raises(PreflightError, match="several devices need one process each"):
        build({"input": "x", "model": "m", "device": "cuda:0,1", "cluster": kind})


@pytest.mark.slow
def test_each_process_sees_one_device_and_its_replacement_the_same(tmp_path):
    each = [{"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "6"}]
    options = build_cluster({"cluster": "processes", "workers": 3, "threads": 1})
    with connect.connect(options, tmp_path, environments=each) as workers:

        def seen():
            return sorted(workers.client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"]).values())

        assert seen() in (["4", "4", "6"], ["4", "6", "6"])
        first = seen()
        workers.client.restart_workers(list(workers.client.nthreads())[:1])
        workers.client.wait_for_workers(3, timeout=30)
        assert seen() == first


@pytest.mark.parametrize(("own_scheduler", "remote", "number"), [(True, True, 0), (True, False, 1), (False, True, 1)])
def test_worker_processes_of_scorer_use_their_only_gpu_as_number_0(tmp_path, own_scheduler, remote, number):
    plan = scorer.prepare(floats(tmp_path, 10), MODELS / "dense28.onnx", tmp_path / "out")
    options = replace(plan.options, session=replace(plan.options.session, device="cuda:1,3"))
    workers = connect.Workers(client=None, description="", own_scheduler=own_scheduler, remote=remote)
    frozen = plan_for(workers, plan.check(), replace(plan, options=options))
    assert frozen.scorers[0].session.gpu == number
    assert frozen.plan_hash == plan.check().plan_hash


def test_the_number_of_the_device_does_not_change_the_plan(tmp_path):
    path = floats(tmp_path, 10)
    plan = scorer.prepare(path, MODELS / "dense28.onnx", tmp_path / "out", device="cpu")
    assert plan.frozen is not None
    assert plan.frozen.request["device"] == "cpu"
    assert "gpu" not in plan.frozen.to_dict()["session"]


@pytest.mark.parametrize("rows", [5, 300, 5000])
def test_batches_grow_while_the_speed_grows(rows, tmp_path):
    path = floats(tmp_path, rows)
    plan = scorer.prepare(path, MODELS / "dense28.onnx", tmp_path / "out")
    session, binding, table = Session(session_spec("dense28")), plan.frozen.scorers[0].binding, pq.read_table(path)
    found = tuning.grow_batches(session, binding, table, 1e-5)
    assert found.batch_rows <= max(rows, cutting.BATCH_ROWS)
    assert found.rows_per_s > 0
    assert found.trials or rows < tuning.CONVERTED_BATCH_ROWS
    if rows == 5000:  # with few rows, a call is mostly overhead; other tests may disturb a single measurement
        again = (tuning.grow_batches(session, binding, table, 1e-5) for _ in range(3))
        assert any(one.batch_rows > tuning.CONVERTED_BATCH_ROWS for one in (found, *again))
