"""Real flights whose columns need different converters, by flags only, against pandas and ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper
from support.runs import FLIGHTS, cli, oracle, read, write

import scorer

CARRIERS = ["UA", "B6", "EV", "DL", "AA"]
ROWS = 30_000


@pytest.fixture(scope="session")
def flights():
    """The first flights, with a day of departure."""
    table = pq.read_table(FLIGHTS / "flights.parquet").slice(0, ROWS)
    return table.append_column("day_of", table["time_hour"].cast(pa.timestamp("s")).cast(pa.date32()))


@pytest.fixture(scope="session")
def five_wide(tmp_path_factory):
    """A model of five numbers: two sums of them, weighted so that each number changes both."""
    weights = np.array([[0.5, -3], [0.25, 1], [-0.125, 2], [2, 0.5], [1, -1]], np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["X", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model") / "five.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def scores_by_hand(model, columns):
    """What pandas and ONNX Runtime alone make of these columns."""
    frame = pd.DataFrame({i: pd.Series(column).astype("float32") for i, column in enumerate(columns)})
    return oracle(model, {"X": frame.to_numpy(np.float32)})["y"]


def same(output, expected):
    table = read(output)
    np.testing.assert_array_equal(np.column_stack([table["y_0"], table["y_1"]]), expected)


def test_numbers_dates_and_categories_fill_one_tensor(flights, five_wide, backend, tmp_path):
    source = write(tmp_path / "in" / "flights.parquet", flights, row_group_size=7_000)
    known = flights.filter(pc.is_in(flights["carrier"], pa.array(CARRIERS))).to_pandas()
    days = (pd.to_datetime(known["day_of"]) - pd.Timestamp("1970-01-01")).dt.days
    hours = known["time_hour"].astype("int64") // (3600 * 10**6)
    codes = pd.Categorical(known["carrier"], CARRIERS).codes
    expected = scores_by_hand(five_wide, [known["distance"], days, codes, hours, known["air_time"]])
    words = ", ".join(CARRIERS)
    report = scorer.run(
        source,
        model=five_wide,
        output=tmp_path / "out",
        feed=f"X=distance,day_of|epoch(d),carrier|vocab({words}),time_hour|epoch(h),air_time",
        where=[f"carrier in ({', '.join(map(repr, CARRIERS))})"],
        progress=False,
        **backend,
    )
    assert (report.counts.scored, report.counts.quarantined) == (len(known), 0)
    same(tmp_path / "out", expected)
    code, out, error = cli("verify", tmp_path / "out", "--rescore", "50")
    assert (code, error) == (0, ""), out


def test_a_category_that_the_vocabulary_lacks_is_a_bad_row_beside_good_ones(flights, five_wide, tmp_path):
    source = write(tmp_path / "flights.parquet", flights)
    words = ", ".join(CARRIERS)
    feed = f"X=distance,day_of|epoch(d),carrier|vocab({words}),hour,minute"
    code, _, error = cli(
        "run", source, "--model", five_wide, "--output", tmp_path / "out", "--feed", feed, "--max-bad-rows", "100%"
    )
    assert code == 0, error
    bad = pq.read_table(tmp_path / "out.scorer" / "quarantine").to_pandas()
    whole = flights.to_pandas()
    assert bad["_row"].tolist() == np.flatnonzero(~whole["carrier"].isin(CARRIERS)).tolist()
    assert bad["_error"][0] == f"{bad['carrier'][0]!r} in column 'carrier' is not in the vocabulary of 'X'"


def test_the_plan_shows_each_columns_converter(flights, five_wide, tmp_path):
    source = write(tmp_path / "flights.parquet", flights)
    feed = "X=distance,(day_of,time_hour)|epoch(d),carrier|vocab(UA, AA, unknown=-1),hour"
    code, out, error = cli("plan", source, "--model", five_wide, "--output", tmp_path / "out", "--feed", feed)
    assert (code, error) == (0, "")
    shown = "distance, (day_of, time_hour)|epoch(unit=d), carrier|vocab(unknown=-1), hour"
    assert shown in " ".join(out.split())
