"""`scorer optimise`: the fastest candidate that is good enough is written, and nothing otherwise."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pyarrow as pa
import pytest
from support.runs import FLIGHTS, cli, oracle, session_spec, write
from support.small_nets import net, save, whole_numbers, whole_weights

from scorer.api import _candidates, optimisation
from scorer.api.optimisation import Candidate, Limits, Optimisation
from scorer.model.protobuf import inspect_model
from scorer.model.resident import load
from scorer.scoring.compare import Difference

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def short_turns(request, monkeypatch):
    """Short turns: they matter only where speeds are nearly equal."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(_candidates, "_PASS_S", 0.002)


def exact(folder, **options):
    """A net for which 8 bits are exact, and its data."""
    return save(folder, net([whole_weights(32, 12)], **options), whole_numbers(300, 32))


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("opset", [9, 17])
def test_a_net_that_8_bits_hold_exactly_is_written_with_the_same_scores(opset, tmp_path):
    model, data = exact(tmp_path, opset=opset, metadata={"note": "kept", "scorer_optimisation": "old"})
    target = tmp_path / "m8.onnx"
    code, out, err = cli("optimise", model, "--check", data, "-o", target, "--allow", 0, "--at-least", 0)
    assert (code, err) == (0, "")
    assert "static 8-bit" in out
    assert "p_0 to p_11: equal" in out
    values = whole_numbers(500, 32, seed=9)
    assert np.array_equal(oracle(target, {"x": values})["p"], oracle(model, {"x": values})["p"])
    written = onnx.load(target)
    assert any(node.op_type == "QuantizeLinear" for node in written.graph.node)
    assert {entry.domain: entry.version for entry in written.opset_import} == {"": 17}
    assert (inspect_model(target).metadata["note"], written.producer_name) == ("kept", "us")
    record = json.loads(inspect_model(target).metadata["scorer_optimisation"])
    assert (record["model"], record["rows"], record["calibration_rows"]) == (inspect_model(model).digest, 240, 60)
    assert "static 8-bit, from" in cli("inspect", target)[1]


def test_the_same_command_writes_the_same_bytes(tmp_path):
    model, data = save(tmp_path, net([RNG.standard_normal((16, 24)), RNG.standard_normal((24, 1))], last="Sigmoid"),
                       RNG.standard_normal((400, 16)))  # fmt: skip
    flags = ("--check", data, "--allow", 1, "--at-least", 0)
    for name in ("one.onnx", "two.onnx"):
        assert cli("optimise", model, *flags, "-o", tmp_path / name)[0] == 0
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    assert cli("optimise", model, *flags, "-o", tmp_path / "one.onnx", "--overwrite")[0] == 0


def test_an_outlier_among_the_weights_is_refused_and_nothing_is_written(tmp_path):
    weights = RNG.uniform(-1, 1, (32, 4))
    weights[5] = 3000  # beside it, all others of the column round to zero
    values = RNG.standard_normal((300, 32))
    values[:, 5] = 0
    model, data = save(tmp_path, net([weights]), values)
    before = listing(tmp_path)
    code, out, err = cli("optimise", model, "--check", data, "-o", tmp_path / "m8.onnx", "--at-least", 0)
    assert code == 1
    assert "refused: p" in out
    assert "no faster form of the model was found, and nothing was written" in err
    assert listing(tmp_path) == before


def test_a_nan_that_becomes_a_number_is_refused(tmp_path):
    values = whole_numbers(300, 32)
    values[7, 3] = float("nan")
    model, data = save(tmp_path, net([whole_weights(32, 12)]), values)
    flags = ("--check", data, "-o", tmp_path / "m8.onnx", "--at-least", 0, "--allow", 1)
    code, _, err = cli("optimise", model, *flags)
    assert (code, "a change of inf is above 1" in err) == (1, True)
    assert not (tmp_path / "m8.onnx").exists()


def test_what_is_not_fast_enough_is_refused(tmp_path):
    model, data = exact(tmp_path)
    code, out, err = cli("optimise", model, "--check", data, "-o", tmp_path / "m8.onnx", "--at-least", 1000)
    assert code == 1
    assert "static 8-bit" in out
    assert "times the speed is below 1000" in err
    assert not (tmp_path / "m8.onnx").exists()


@pytest.mark.parametrize(
    ("given", "reason"),
    [(("late.onnx", "flights.parquet"), "compiled kernel"), ((), "quantised already")],
    ids=["trees", "quantised"],
)
def test_a_model_that_no_recipe_fits_is_refused_with_the_reason(given, reason, tmp_path):
    if given:
        model, data = (FLIGHTS / name for name in given)
    else:
        first, data = exact(tmp_path)
        model = tmp_path / "m8.onnx"
        assert cli("optimise", first, "--check", data, "-o", model, "--at-least", 0)[0] == 0
    code, out, err = cli("optimise", model, "--check", data, "-o", tmp_path / "out.onnx")
    assert (code, out) == (1, "")
    assert reason in err
    assert not (tmp_path / "out.onnx").exists()


def test_the_faster_of_two_is_found_whatever_the_order(tmp_path):
    engines = {}
    for name, width in (("slow", 512), ("original", 256), ("fast", 32)):
        (tmp_path / name).mkdir()
        weights = [np.ones((64, width)), np.ones((width, width)), np.ones((width, 1))]
        path, _ = save(tmp_path / name, net(weights), np.zeros((1, 64)))
        engines[name] = load(replace(session_spec("dense28"), path=str(path), digest=name))
    fed = [{"x": RNG.standard_normal((64, 64)).astype(np.float32)}]
    for order in (["slow", "fast"], ["fast", "slow"]):
        speeds = _candidates.speeds(engines["original"], {name: engines[name] for name in order}, ["p"], fed, 64)
        assert list(speeds) == order
        assert speeds["slow"].ratio < 0.7
        assert speeds["fast"].ratio > 3
        assert speeds["fast"].rows_per_s > 4 * speeds["slow"].rows_per_s


@pytest.mark.slow
def test_the_fastest_of_several_good_candidates_is_written(tmp_path):
    weights = [RNG.standard_normal((64, 1024)) / 8, RNG.standard_normal((1024, 1024)) / 32, np.ones((1024, 4)) / 32]
    model, data = save(tmp_path, net(weights), RNG.standard_normal((2000, 64)))
    target = tmp_path / "m8.onnx"
    code, out, _ = cli("optimise", model, "--check", data, "-o", target, "--allow", 0.2, "--json")
    found = json.loads(out)
    speeds = {one["recipe"]: one["speed"]["ratio"] for one in found["candidates"]}
    assert set(speeds) == {"static 8-bit", "8-bit weights"}
    assert code == 0
    assert found["written"] == max(speeds, key=speeds.__getitem__)
    operators = {node.op_type for node in onnx.load(target).graph.node}
    assert ("QuantizeLinear" in operators) == (found["written"] == "static 8-bit")


def test_dynamic_ranges_are_tried_only_on_request(tmp_path):
    model, data = exact(tmp_path)
    flags = ("optimise", model, "--check", data, "-o", tmp_path / "m8.onnx", "--at-least", 1000, "--json")
    names = [
        [one["recipe"] for one in json.loads(cli(*flags, *more)[1])["candidates"]] for more in ((), ("--dynamic",))
    ]
    assert names == [["static 8-bit"], ["static 8-bit", "dynamic 8-bit"]]


def test_no_row_chooses_ranges_and_judges():
    calibration, judging = optimisation._split(pa.table({"x": range(103)}))
    one, other = set(calibration["x"].to_pylist()), set(judging["x"].to_pylist())
    assert (len(one), len(other), one & other) == (20, 83, set())


def test_rows_come_from_all_over_the_data(tmp_path, monkeypatch):
    values = np.repeat(np.arange(4000, dtype=np.float32)[:, None], 4, axis=1)
    model, data = save(tmp_path, net([np.ones((4, 1))]), values)
    taken = []
    monkeypatch.setattr(optimisation, "_split", lambda table: taken.append(table) or (table, table))
    cli("optimise", model, "--check", data, "-o", tmp_path / "m8.onnx", "--rows", 128, "--at-least", 1000)
    rows = [row[0] for row in taken[0]["x"].to_pylist()]
    assert len(rows) == 160
    assert rows == sorted(set(rows))
    assert np.diff([0, *rows, 4000]).max() <= 250
    assert rows[-1] >= 3750


def test_a_limit_that_a_figure_exceeds_is_named():
    refused = [
        optimisation._too_different("p", Difference(**given), Limits())
        for given in ({"largest": 0.02, "mean": 0.0}, {"largest": 0.0, "mean": 0.0, "same": 0.99},
                      {"largest": 0.5, "mean": 0.1, "cosine": 0.98}, {"largest": 0.5, "mean": 0.1, "cosine": 0.995})
    ]  # fmt: skip
    assert refused == [
        ["p: a change of 0.02 is above 0.01"], ["p: 0.9900 of the labels stay, fewer than 0.999"],
        ["p: a cosine of 0.9800 is below 0.99"], [],
    ]  # fmt: skip


def test_infinite_changes_are_null_in_json():
    lost = Candidate(recipe="static 8-bit", scores={"p": Difference(largest=float("inf"), same=0.0)})
    found = Optimisation(model="m", output="o", bytes=1, check=("d",), candidates=(lost,)).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False))["candidates"][0]["scores"]["p"]["largest"] is None


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"--check": "gone.parquet"}, 3, "the input does not exist"),
        ({"--feed": "x=gone"}, 3, "gone"),
        ({"--output": "gone/m8.onnx"}, 2, "the folder of the optimised model does not exist"),
        ({"--output": "."}, 2, "the optimised model is one file"),
        ({"--output": "m.onnx"}, 3, "the file exists already"),
        ({"--check": "few.parquet"}, 3, "the data has too few rows"),
        ({"--allow": "2"}, 2, "--allow"),
        ({"model": "data.parquet"}, 3, "the file is not an ONNX model"),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
)
def test_what_cannot_be_optimised_is_refused_before_anything_is_written(change, code, says, tmp_path, monkeypatch):
    exact(tmp_path)
    write(tmp_path / "few.parquet", {"x": pa.array([[0.0] * 32] * 5, pa.list_(pa.float32(), 32))})
    monkeypatch.chdir(tmp_path)
    before = listing(tmp_path)
    given = {"model": "m.onnx", "--check": "data.parquet", "--output": "m8.onnx"} | change
    flags = [part for name, value in given.items() if name != "model" for part in (name, value)]
    got, out, err = cli("optimise", given["model"], *flags)
    assert (got, out) == (code, "")
    assert says in err
    assert "Hint: " in err
    assert listing(tmp_path) == before
