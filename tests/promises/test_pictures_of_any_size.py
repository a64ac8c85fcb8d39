"""Pictures that keep their proportions: one row at a time, and lists of any length."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pytest
from onnx import TensorProto as T
from onnx import helper
from PIL import Image
from support.runs import cli, read, report_of, write

import scorer

FEED = "x=picture|image(size=4xany, scale=1, filter=nearest)"
WIDTHS = (5, 9, 3, 9, 12, 1, 7)


def columns_of(path, rows="N", shape=(-1, 1, 1)):
    """Write a model that returns the sum of each column of pixels: [width, rows, 1] by default."""
    axes = onnx.numpy_helper.from_array(np.array([1, 2]), "axes")
    to = onnx.numpy_helper.from_array(np.array(shape), "to")
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["sums"], keepdims=0),
             helper.make_node("Reshape", ["sums", "to"], ["y"])]  # fmt: skip
    given = helper.make_tensor_value_info("x", T.FLOAT, [rows, 1, 4, "width"])
    gives = helper.make_tensor_value_info("y", T.FLOAT, [None] * len(shape))
    graph = helper.make_graph(nodes, "g", [given], [gives], [axes, to])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def pictures():
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (4, width), dtype=np.uint8) for width in WIDTHS]


def encoded(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def source(pictures, tmp_path):
    table = pa.table({"id": range(len(pictures)), "picture": pa.array(map(encoded, pictures), pa.binary())})
    return write(tmp_path / "in.parquet", table, row_group_size=3)


def sums(pictures):
    return [picture.astype(np.float32).sum(axis=0).tolist() for picture in pictures]


@pytest.mark.parametrize(("rows", "shape"), [("N", (-1, 1, 1)), (1, (-1, 1)), ("N", (1, -1)), (1, (1, -1, 1))])
@pytest.mark.slow
def test_each_row_gets_a_list_of_its_own_length(rows, shape, pictures, source, tmp_path, backend):
    path = columns_of(tmp_path / "m.onnx", rows, shape)
    scorer.run(source, path, tmp_path / "out", feed=FEED, keep="id", **backend)
    out = read(tmp_path / "out")
    assert out.schema.field("y").type == pa.list_(pa.field("item", pa.float32(), nullable=False))
    assert out["y"].to_pylist() == sums(pictures)
    code, text, _ = cli("verify", tmp_path / "out", "--deep", "--rescore", len(pictures))
    assert code == 0, text
    assert "all have the same bits" in text


def test_a_broken_picture_is_a_bad_row_and_the_others_are_scored(pictures, tmp_path):
    files = [encoded(picture) for picture in pictures]
    files[2] = files[2][:40]
    source = write(tmp_path / "in.parquet", pa.table({"picture": pa.array([*files, None], pa.binary())}))
    path = columns_of(tmp_path / "m.onnx")
    code, _, error = cli("run", source, "--model", path, "--output", tmp_path / "out", "--feed", FEED,
                         "--max-bad-rows", 2, "--keep", "none", "--quiet")  # fmt: skip
    assert (code, error) == (0, "")
    assert read(tmp_path / "out")["y"].to_pylist() == [row for i, row in enumerate(sums(pictures)) if i != 2]
    assert report_of(tmp_path / "out")["counts"]["quarantined"] == 2


@pytest.mark.parametrize("files", [[], [np.full((4, 6), 9, np.uint8)] * 3])
def test_no_picture_and_pictures_of_one_width_have_the_type_of_any_width(files, tmp_path):
    source = write(tmp_path / "in.parquet", pa.table({"picture": pa.array(map(encoded, files), pa.binary())}))
    scorer.run(source, columns_of(tmp_path / "m.onnx"), tmp_path / "out", feed=FEED, keep="none")
    out = read(tmp_path / "out")
    assert out.schema.field("y").type == pa.list_(pa.field("item", pa.float32(), nullable=False))
    assert out["y"].to_pylist() == sums(files)


def test_a_frame_gets_a_list_of_its_own_length_for_each_picture(pictures, tmp_path):
    frame = pd.DataFrame({"picture": list(map(encoded, pictures))})
    scored = scorer.score(frame, columns_of(tmp_path / "m.onnx"), feed=FEED)
    assert [list(row) for row in scored["y"]] == sums(pictures)


def test_a_model_of_another_fixed_batch_is_refused(source, tmp_path):
    path = columns_of(tmp_path / "m.onnx", rows=3)
    code, _, text = cli("run", source, "--model", path, "--output", tmp_path / "out", "--feed", FEED)
    assert code == 3
    assert "scored one at a time" in text
    assert "found:    3 rows" in text
    assert not (tmp_path / "out").exists()


def test_an_output_whose_last_axis_follows_the_width_is_refused(source, tmp_path):
    path = columns_of(tmp_path / "m.onnx", shape=(1, 1, -1))
    code, _, text = cli("run", source, "--model", path, "--output", tmp_path / "out", "--feed", FEED)
    assert code == 3
    assert "output 'y' changes its shape with the size of the pictures" in text
    assert "expected: [N, steps, ...]" in text


def test_an_output_that_may_have_its_row_on_two_axes_is_refused_with_the_flag(pictures, source, tmp_path):
    path = columns_of(tmp_path / "m.onnx", shape=(-1, 1, 1, 1))
    found = onnx.load(path)
    found.graph.node.append(helper.make_node("Concat", ["y", "y"], ["z"], axis=2))
    found.graph.output[0].name = "z"
    onnx.save(found, path)
    flags = ("--model", path, "--output", tmp_path / "out", "--feed", FEED, "--quiet")
    code, _, text = cli("run", source, *flags)
    assert code == 3
    assert "axis 0 of output 'z' does not hold the rows" in text
    assert "shape [1, 1, 2, 1] and [12, 1, 2, 1]" in text
    assert "Hint: --batch-axis 'z=1' if its rows are on that axis" in text
    assert cli("run", source, *flags, "--batch-axis", "z=3", "--fetch", "z[0, 0, 0]=first")[0] == 3  # no place for it
    assert cli("run", source, *flags, "--batch-axis", "z=1")[0] == 0
    doubled = [[[value, value] for value in row] for row in sums(pictures)]
    assert read(tmp_path / "out")["z"].to_pylist() == doubled
