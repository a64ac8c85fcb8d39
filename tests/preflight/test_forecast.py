"""The forecast of disk space against the output of the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array
from support.runs import write

import scorer
from scorer.options.request import build
from scorer.preflight import forecast, freeze

WIDE = 1800


def net(path, classes, layers):
    """Scores of some classes, through so many layers that a row takes milliseconds."""
    rng = np.random.default_rng(0)
    weights = {
        "first": rng.normal(size=(8, WIDE)), "layer": rng.normal(size=(WIDE, WIDE)) / WIDE**0.5,
        "last": rng.normal(size=(WIDE, classes)),
    }  # fmt: skip
    nodes = [make_node("MatMul", ["x", "first"], ["h0"])]
    for i in range(layers):
        nodes += [make_node("MatMul", [f"h{i}", "layer"], [f"g{i}"]), make_node("Tanh", [f"g{i}"], [f"h{i + 1}"])]
    nodes.append(make_node("MatMul", [f"h{layers}", "last"], ["logits"]))
    graph = make_graph(
        nodes, "g", [make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
        [from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )  # fmt: skip
    path.write_bytes(make_model(graph, opset_imports=[make_opsetid("", 13)], ir_version=8).SerializeToString())
    return path


@pytest.mark.parametrize(
    ("fetch", "classes"),
    [
        ("logits|topk(5)=best", 214), ("logits|topk(2)=best", 3), ("logits|label(cat, dog, eel)=class", 3),
        ("logits|softmax=p", 214), ("logits", 10), ("logits|argmax=at", 3),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("rows", "layers"), [(160, 60), (3000, 0)])
@pytest.mark.slow
def test_the_forecast_of_disk_space_is_near_the_output(fetch, classes, rows, layers, tmp_path):
    x = np.random.default_rng(1).normal(size=(rows, 8)).astype(np.float32)
    source = write(tmp_path / "in.parquet", {f"x{i}": x[:, i] for i in range(8)})
    model = net(tmp_path / "m.onnx", classes, layers)
    plan = scorer.prepare(source, model, tmp_path / "out", fetch=fetch, feed="x=x0..x7", keep="none")
    scorer.execute(plan, progress=False)
    written = sum(Path(file).stat().st_size for file in (tmp_path / "out").rglob("*.parquet"))
    assert 0.8 < sum(plan.forecast.output_bytes) / 2 / written < 1.25


@pytest.mark.parametrize(("memory", "ahead"), [("4GiB", None), ("1400MB", 7), ("1GB", 2), ("500MB", None)])
def test_fewer_parts_are_read_ahead_if_the_memory_of_a_job_has_no_room(memory, ahead):
    options = build({
        "input": "s3://lake/in", "model": "m.onnx", "output": "s3://lake/out", "cluster": "slurm", "threads": 4,
        "memory": memory,
    })  # fmt: skip

    def footprint(parts):
        """Return one of 600 MB, and 80 MB for each part that is on its way."""
        n = 8 if parts is None else parts
        workers = forecast.Workers(parts=4, separate=True, waiting=4 + n)
        base = 600_000_000 - forecast._RUN_BYTES
        return forecast.Footprint(
            workers=workers, base=base, rows=0.0, held=0.0, scores=0.0, encoded=0.0, batch=0.0, remote=80e6 * n
        )

    chosen, needs, notes = freeze._fitting(options, footprint)
    assert chosen == ahead
    assert needs == footprint(ahead)
    assert [note.partition(" leaves")[0] for note in notes] == ([] if ahead is None else ["--memory"])
    if ahead is not None:
        assert forecast.most(needs) <= options.cluster.memory < forecast.most(footprint(ahead + 1))


def test_the_memory_of_models_that_are_loaded_in_turn_is_that_of_all_with_the_highest_peak():
    alone = [
        forecast.Loading(process=100, model=40, peak=90),  # while the first loads, nothing else is there
        forecast.Loading(process=150, model=30, weights=20, peak=50),
        forecast.Loading(process=155, model=5, peak=60),
    ]
    found = forecast.Loading.in_turn(alone, joined=7)
    assert found == forecast.Loading(process=155, model=75, weights=20, peak=150, joined=7)
    assert forecast.Loading.in_turn(alone[:1], joined=0) == alone[0]
