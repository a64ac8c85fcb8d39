"""Columns that the trees of a model never look at are not read, and the scores keep every bit."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper
from support.buckets import ROOT, bucket
from support.damage import end_of_pages, flip
from support.runs import cli, oracle, read, report_of, write
from support.trained_trees import COLUMNS, data

import scorer
from scorer.errors import Interrupted
from scorer.events import PartFinished
from scorer.model.protobuf import inspect_model
from scorer.plan.frozen import FrozenPlan
from scorer.preflight import checks

NAMES = [f"f{i}" for i in range(COLUMNS)]
FEED = ("--feed", "x=f0..f11")
MANY = 20_000  # rows from which on trees are compiled
HOSTILE = (np.nan, np.inf, -np.inf, 3e38, 0.0)


def lightgbm():
    import lightgbm
    import onnxmltools
    from onnxmltools.convert.common.data_types import FloatTensorType

    x, y, *_ = data()
    model = lightgbm.LGBMClassifier(n_estimators=6, num_leaves=6, verbose=-1, n_jobs=1).fit(x, y)
    return onnxmltools.convert_lightgbm(
        model, initial_types=[("x", FloatTensorType([None, COLUMNS]))], zipmap=False, target_opset=15
    )


def xgboost():
    import onnxmltools
    import xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    x, y, *_ = data()
    model = xgboost.XGBClassifier(n_estimators=6, max_depth=2, n_jobs=1).fit(x, y)
    return onnxmltools.convert_xgboost(model, initial_types=[("x", FloatTensorType([None, COLUMNS]))], target_opset=15)


def pipeline():
    """Train imputer, scaler and forest."""
    import skl2onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y, *_ = data()
    forest = RandomForestClassifier(3, max_depth=2, random_state=0, n_jobs=1)
    return skl2onnx.convert_sklearn(
        make_pipeline(SimpleImputer(), StandardScaler(), forest).fit(x, y), options={"zipmap": False},
        initial_types=[("x", FloatTensorType([None, COLUMNS]))], target_opset={"": 18, "ai.onnx.ml": 3},
    )  # fmt: skip


def table_of_inputs():
    """Train on a data frame: the model has an input of one column for each of its columns."""
    import pandas as pd
    import skl2onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y, *_ = data()
    frame = pd.DataFrame(np.nan_to_num(x), columns=NAMES)
    columns = ColumnTransformer([("scaled", StandardScaler(), NAMES[:4]), ("plain", "passthrough", NAMES[6:9])])
    forest = RandomForestClassifier(3, max_depth=2, random_state=0, n_jobs=1)
    return skl2onnx.convert_sklearn(
        make_pipeline(columns, forest).fit(frame, y), options={"zipmap": False},
        initial_types=[(name, FloatTensorType([None, 1])) for name in NAMES],
        target_opset={"": 18, "ai.onnx.ml": 3},
    )  # fmt: skip


TRAINED = {"lightgbm": lightgbm, "xgboost": xgboost, "pipeline": pipeline, "inputs": table_of_inputs}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    at = tmp_path_factory.mktemp("models")
    for name, make in TRAINED.items():
        onnx.save(make(), at / f"{name}.onnx")
    return at


def unused_of(model):
    """Return the numbers of the columns that the model never looks at."""
    found = inspect_model(model).unused
    return [i for i, name in enumerate(NAMES) if i in found.get("x", ()) or found.get(name) == (0,)]


def hostile(unused, rows=3000, kind=np.float32, bad=HOSTILE):
    """Return a table of features whose unused columns are full of values that are no numbers, and of nulls."""
    rng = np.random.default_rng(5)
    x = np.nan_to_num(data(seed=5, rows=rows)[0]).astype(kind)
    columns = {}
    for i, name in enumerate(NAMES):
        if i in unused:
            x[:, i] = np.where(rng.random(rows) < 0.5, rng.choice(np.array(bad, kind), rows), x[:, i])
        columns[name] = pa.array(x[:, i], mask=(rng.random(rows) < 0.2) if i in unused else None)
        x[:, i] = np.where(columns[name].is_null(), np.nan, x[:, i])
    return pa.table(columns), x.astype(np.float32)


def expected_scores(model, x):
    """Return the last output of ONNX Runtime alone, which gets the values of every column."""
    inputs = [one.name for one in onnx.load(model).graph.input]
    feeds = {"x": x} if inputs == ["x"] else {name: x[:, [NAMES.index(name)]] for name in inputs}
    return list(oracle(model, feeds).values())[-1]


def scores(out):
    found = read(out).select(["probabilities_0", "probabilities_1"])
    return np.stack([column.to_numpy() for column in found.columns], axis=1)


def feed_of(name):
    return () if name == "inputs" else FEED


@pytest.mark.parametrize("trees", ["auto", "runtime"])
@pytest.mark.parametrize("name", TRAINED)
def test_scores_have_the_bits_of_the_runtime_that_reads_every_column(name, trees, models, tmp_path):
    model = models / f"{name}.onnx"
    unused = unused_of(model)
    assert 2 <= len(unused) < COLUMNS - 1
    table, x = hostile(unused, MANY + 5)
    path = write(tmp_path / "in.parquet", table, row_group_size=7000, write_page_checksum=True)
    expected = expected_scores(model, x)
    for i in unused:
        flip(path, end_of_pages(path, NAMES[i]) - 1)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, columns=[NAMES[unused[0]]], page_checksum_verification=True)
    common = ("--model", model, "--keep", "none", "--trees", trees, "--output", tmp_path / "out")
    code, _, error = cli("run", path, *feed_of(name), *common, "--part-bytes", "200KiB", "--batch-rows", "1000")
    assert code == 0, error
    assert scores(tmp_path / "out").tobytes() == expected.tobytes()
    words = f"{len(unused)} of 12 fed columns are never looked at by the model, and are not read"
    assert report_of(tmp_path / "out")["unused"] == words
    code, shown, error = cli("verify", tmp_path / "out", "--rescore", "100")
    assert code == 0, error
    assert "all have the same bits" in shown


@pytest.mark.parametrize("keep", ["all", "f0,f5", "none"])
def test_kept_columns_stay_as_they_are(keep, models, tmp_path):
    model = models / "lightgbm.onnx"
    unused = unused_of(model)
    table, x = hostile(unused)
    path = write(tmp_path / "in.parquet", table)
    assert cli("run", path, "--model", model, *FEED, "--keep", keep, "--output", tmp_path / "out")[0] == 0
    found = read(tmp_path / "out")
    assert scores(tmp_path / "out").tobytes() == expected_scores(model, x).tobytes()
    for name in {"all": NAMES, "f0,f5": ["f0", "f5"], "none": []}[keep]:
        assert found[name].is_null().to_pylist() == table[name].is_null().to_pylist()
        assert np.array_equal(found[name].to_numpy(), table[name].to_numpy(), equal_nan=True)


def planned(path, model, *flags):
    """Return the JSON of a plan."""
    code, shown, error = cli("plan", path, "--model", model, "--output", path.parent / "none", *flags, "--json")
    assert code == 0, error
    return json.loads(shown)


def test_plan_and_inspect_say_how_many_columns_are_not_read(models, tmp_path):
    model = models / "lightgbm.onnx"
    unused = unused_of(model)
    n = len(unused)
    path = write(tmp_path / "in.parquet", hostile(unused)[0])
    words = f"{n} of 12 fed columns are never looked at by the model, and are not read"
    found = planned(path, model, *FEED, "--keep", "none")
    assert found["unused"] == words
    assert found["feed"][0]["unused"] == unused
    assert len(found["feed"][0]["columns"]) == COLUMNS
    text = cli("plan", path, "--model", model, *FEED, "--keep", "none")[1]
    assert words in " ".join(text.split())
    assert words in " ".join(cli("inspect", model, "--input", path, *FEED)[1].split())
    kept = f"{NAMES[unused[0]]},{NAMES[unused[1]]}"
    some = planned(path, model, *FEED, "--keep", kept)["unused"]
    assert (
        some == f"{n} of 12 fed columns are never looked at by the model: {n - 2} not read, 2 only kept or filtered on"
    )
    every = planned(path, model, *FEED, "--keep", "all")["unused"]
    assert every == ""


def test_a_model_that_looks_at_every_column_needs_no_word_and_its_plan_is_as_before(tmp_path):
    path = write(tmp_path / "in.parquet", {f"f{i}": np.zeros(5, np.float32) for i in range(2)})
    onnx.save(stump(0, 1), tmp_path / "m.onnx")
    assert planned(path, tmp_path / "m.onnx", "--feed", "x=f0,f1")["unused"] == ""
    plan = scorer.prepare(path, tmp_path / "m.onnx", tmp_path / "out", feed="x=f0,f1")
    assert "unused" not in json.dumps(plan.check().to_dict())


def stump(*columns, width=2, kind=TensorProto.FLOAT, before=(), take="x"):
    """Return a model with one tree of one comparison for each of these columns; `before` are the nodes before it."""
    n = len(columns)
    node = helper.make_node(
        "TreeEnsembleRegressor", [take], ["y"], domain="ai.onnx.ml", n_targets=1,
        nodes_treeids=np.repeat(range(n), 3).tolist(), nodes_nodeids=[0, 1, 2] * n,
        nodes_featureids=[one for column in columns for one in (column, 0, 0)],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"] * n, nodes_values=[0.5, 0.0, 0.0] * n,
        nodes_truenodeids=[1, 0, 0] * n, nodes_falsenodeids=[2, 0, 0] * n,
        target_treeids=np.repeat(range(n), 2).tolist(), target_nodeids=[1, 2] * n, target_ids=[0] * (2 * n),
        target_weights=[float(i) for i in range(2 * n)],
    )  # fmt: skip
    graph = helper.make_graph(
        [*before, node], "stumps", [helper.make_tensor_value_info("x", kind, [None, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


ORDINARY = [0.25, float("nan"), None]
LARGE = [0.25, 1e300, None]
READ = {
    "a type that the tensor holds": (pa.float32(), ORDINARY, (), [1]),
    "a shorter float": (pa.float16(), ORDINARY, (), [1]),
    "a boolean": (pa.bool_(), [True, False, None], (), [1]),
    "a short integer": (pa.int16(), [-1, 2, None], (), [1]),
    "doubles in the range of the tensor": (pa.float64(), ORDINARY, (), [1]),
    "integers that the tensor holds": (pa.int64(), [0, 2**24, None], (), [1]),
    "unsigned integers that the tensor holds": (pa.uint64(), [0, 2**24, None], (), [1]),
    "only nulls": (pa.float64(), [None] * 3, (), [1]),
    "a constant for nulls": (pa.float32(), ORDINARY, ("--on-null", "x=7"), [1]),
    "a filter on another column": (pa.float32(), ORDINARY, ("--where", "a < 9"), [1]),
    "a filter on the column": (pa.float32(), ORDINARY, ("--where", "b is null"), [1]),
    "nulls are bad rows": (pa.float32(), ORDINARY, ("--on-null", "error"), []),
    "a double overflows": (pa.float64(), LARGE, (), []),
    "a double overflows, which is counted": (pa.float64(), LARGE, ("--on-lossy", "warn"), []),
    "infinity hides what overflows": (pa.float64(), [float("inf"), 1e300, 1.0], (), []),
    "doubles that are all NaN": (pa.float64(), [float("nan")] * 3, (), []),
    "an integer that the tensor rounds": (pa.int64(), [0, 2**24 + 1, 0], (), []),
    "decimals": (pa.decimal128(5, 2), [1, 2, None], (), []),
}


@pytest.mark.parametrize("why", READ)
def test_a_column_is_read_if_its_values_could_make_a_bad_row(why, tmp_path, monkeypatch):
    kind, values, flags, unused = READ[why]
    values = np.array(values[:2], np.float16).tolist() + values[2:] if kind == pa.float16() else values
    onnx.save(stump(0), tmp_path / "m.onnx")
    column = pa.array(values, pa.float32()).cast(kind) if kind == pa.float16() else pa.array(values, kind)
    path = write(tmp_path / "in.parquet", pa.table({"a": np.array([0.0, 1.0, 0.5], np.float32), "b": column}))
    flags = ("--feed", "x=a,b", *flags, "--max-bad-rows", "100%")
    assert planned(path, tmp_path / "m.onnx", *flags)["feed"][0]["unused"] == unused
    found = []
    for out in (tmp_path / "now", tmp_path / "reading every column"):
        assert cli("run", path, "--model", tmp_path / "m.onnx", *flags, "--keep", "none", "--output", out)[0] == 0
        found.append((report_of(out)["counts"], read(out)))
        monkeypatch.setattr(checks, "without_unused", lambda binding, *_: binding)
    assert found[0] == found[1]


def test_without_statistics_doubles_are_read(tmp_path):
    onnx.save(stump(0), tmp_path / "m.onnx")
    columns = {"a": np.zeros(3, np.float32), "b": np.ones(3)}
    for statistics, unused in ((True, [1]), (False, [])):
        path = write(tmp_path / "in.parquet", columns, write_statistics=statistics)
        assert planned(path, tmp_path / "m.onnx", "--feed", "x=a,b")["feed"][0]["unused"] == unused


def test_one_file_with_a_value_that_overflows_is_enough(tmp_path):
    onnx.save(stump(0), tmp_path / "m.onnx")
    for i in range(7):
        values = np.array([1.0, 1e300 if i == 6 else 2.0])
        write(tmp_path / "in" / f"{i}.parquet", {"a": np.zeros(2, np.float32), "b": values}, row_group_size=1)
    plan = planned(tmp_path / "in", tmp_path / "m.onnx", "--feed", "x=a,b", "--max-bad-rows", "1")
    assert plan["feed"][0]["unused"] == []
    os.remove(tmp_path / "in" / "6.parquet")
    assert planned(tmp_path / "in", tmp_path / "m.onnx", "--feed", "x=a,b")["feed"][0]["unused"] == [1]


def test_integer_tensors_are_read(tmp_path):
    cast = helper.make_node("Cast", ["x"], ["z"], to=TensorProto.FLOAT)
    onnx.save(stump(0, kind=TensorProto.INT64, before=[cast], take="z"), tmp_path / "m.onnx")
    assert inspect_model(tmp_path / "m.onnx").unused == {"x": (1,)}
    path = write(tmp_path / "in.parquet", {"a": [0, 1], "b": [None, 1]})
    plan = planned(path, tmp_path / "m.onnx", "--feed", "x=a,b", "--max-bad-rows", "100%")
    assert plan["feed"][0]["unused"] == []


def test_columns_through_a_converter_are_read_and_numbers_beside_them_are_not(tmp_path):
    onnx.save(stump(1, width=3), tmp_path / "m.onnx")
    columns = {"a": ["x", "y", "z"], "b": np.array([0.0, 1.0, 0.5], np.float32), "c": [np.nan, 1.0, 2.0]}
    path = write(tmp_path / "in.parquet", columns)
    feed = ("--feed", "x=a|vocab(x, y),b,c")
    plan = planned(path, tmp_path / "m.onnx", *feed, "--max-bad-rows", "1")
    assert plan["feed"][0]["unused"] == [2]
    out = ("--keep", "none", "--output", tmp_path / "out")
    assert cli("run", path, "--model", tmp_path / "m.onnx", *feed, "--max-bad-rows", "1", *out)[0] == 0
    assert read(tmp_path / "out")["y"].to_pylist() == [0.0, 1.0]
    assert report_of(tmp_path / "out")["counts"]["quarantined"] == 1


def test_a_column_that_another_input_looks_at_is_read_once(tmp_path):
    model = stump(0)
    model.graph.node.append(helper.make_node("Add", ["y", "z"], ["sum"]))
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [None, 1]))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, [None, 1]))
    onnx.save(model, tmp_path / "m.onnx")
    path = write(tmp_path / "in.parquet", {"a": np.array([0, 1], np.float32), "b": np.array([5, 6], np.float32)})
    out = ("--keep", "none", "--output", tmp_path / "out")
    assert cli("run", path, "--model", tmp_path / "m.onnx", "--feed", "x=a,b", "--feed", "z=b", *out)[0] == 0
    assert read(tmp_path / "out")["sum"].to_pylist() == [5.0, 7.0]
    assert report_of(tmp_path / "out")["unused"] == ""


def test_a_model_that_looks_at_nothing_still_gives_a_score_for_each_row(tmp_path):
    model = stump(0)
    for attribute in model.graph.node[0].attribute:
        keep = {"nodes_modes": ["LEAF"], "target_weights": [3.0]}.get(attribute.name)
        if attribute.name != "n_targets":
            attribute.CopyFrom(
                helper.make_attribute(attribute.name, keep or [0 if "values" not in attribute.name else 0.0])
            )
    onnx.save(model, tmp_path / "m.onnx")
    assert inspect_model(tmp_path / "m.onnx").unused == {"x": (0, 1)}
    path = write(tmp_path / "in.parquet", {"a": np.zeros(4, np.float32), "b": np.zeros(4, np.float32)})
    assert cli("run", path, "--model", tmp_path / "m.onnx", "--feed", "x=a,b", "--keep", "none", "--output",
               tmp_path / "out")[0] == 0  # fmt: skip
    assert read(tmp_path / "out")["y"].to_pylist() == [3.0] * 4


def test_a_transform_gives_every_column(tmp_path, monkeypatch):
    (tmp_path / "doubling.py").write_text("def twice(frame):\n    return frame * 2\n")
    monkeypatch.chdir(tmp_path)
    onnx.save(stump(0), tmp_path / "m.onnx")
    path = write(tmp_path / "in.parquet", {"a": np.array([0, 0.4], np.float32), "b": np.zeros(2, np.float32)})
    found = planned(path, tmp_path / "m.onnx", "--feed", "x=a,b", "--transform", "doubling:twice")
    assert found["unused"] == ""
    assert found["feed"][0]["unused"] == []


def test_a_missing_column_is_an_error_that_says_how_to_replace_it(models, tmp_path):
    model = models / "inputs.onnx"
    name = NAMES[unused_of(model)[-1]]
    path = write(tmp_path / "in.parquet", hostile([])[0].drop_columns([name]))
    code, _, error = cli("plan", path, "--model", model)
    assert code != 0
    hint = f"--feed '{name}=const(0)'"
    assert f"Hint: {hint}, because the model never looks at it; or name its column" in error
    assert cli("plan", path, "--model", model, "--feed", f"{name}=const(0)")[0] == 0
    named = stump(0, width=3)
    helper.set_model_props(named, {"feature_names": '["f0", "gone", "f2"]'})
    onnx.save(named, tmp_path / "named.onnx")
    error = cli("plan", path, "--model", tmp_path / "named.onnx")[2]
    assert "Hint: the model never looks at them; feed any column instead: --feed 'x=f0,f0,f2'" in error
    assert cli("plan", path, "--model", tmp_path / "named.onnx", "--feed", "x=f0,f0,f2")[0] == 0


def test_a_column_that_one_file_does_not_have_stays_an_error(tmp_path):
    onnx.save(stump(0), tmp_path / "m.onnx")
    a, b = {"a": np.zeros(2, np.float32)}, {"b": np.zeros(2, np.float32)}
    write(tmp_path / "in" / "0.parquet", a | b)
    write(tmp_path / "in" / "1.parquet", a)
    error = cli("plan", tmp_path / "in", "--model", tmp_path / "m.onnx", "--feed", "x=a,b", "--keep", "none")[2]
    assert "columns are not the same in every file: 'b'" in error


def contents(out):
    return {path.name: path.read_bytes() for path in out.rglob("*.parquet")}


@pytest.mark.parametrize(
    "planned_before", [False, True], ids=["planned now", "planned before columns were left unread"]
)
def test_a_resumed_run_reads_what_was_planned(planned_before, models, tmp_path, monkeypatch):
    model = models / "lightgbm.onnx"
    unused = unused_of(model)
    path = write(tmp_path / "in.parquet", hostile(unused)[0], row_group_size=500)
    given = {"feed": FEED[1], "part_bytes": "8KiB", "batch_rows": 100, "keep": "none", "threads": 1, "tune": False}
    stopped = []

    def stop(event):
        if isinstance(event, PartFinished) and not stopped:
            stopped.append(event)
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        if planned_before:
            patch.setattr(checks, "without_unused", lambda binding, *_: binding)
        with pytest.raises(Interrupted):
            scorer.run(path, model, tmp_path / "out", cluster="embedded", observers=[stop], **given)
    [file] = (tmp_path / "out.scorer").rglob("plan.json")
    before = FrozenPlan.from_dict(json.loads(file.read_text()))
    assert before.feeds[0].unused == (() if planned_before else tuple(unused))
    report = scorer.run(path, model, tmp_path / "out", cluster="embedded", **given)
    assert report.parts_resumed
    assert report.plan == before.plan_hash
    assert (report.unused == "") == planned_before
    scorer.run(path, model, tmp_path / "whole", cluster="embedded", **given)
    assert read(tmp_path / "out").equals(read(tmp_path / "whole"))


def test_the_request_is_the_same_whether_columns_are_read_or_not(models, tmp_path, monkeypatch):
    model = models / "lightgbm.onnx"
    path = write(tmp_path / "in.parquet", hostile(unused_of(model))[0])
    now = scorer.prepare(path, model, tmp_path / "out", feed=FEED[1]).check()
    monkeypatch.setattr(checks, "without_unused", lambda binding, *_: binding)
    before = scorer.prepare(path, model, tmp_path / "out", feed=FEED[1]).check()
    assert now.request_hash == before.request_hash
    assert now.plan_hash != before.plan_hash


def test_forecast_and_parts_follow_what_is_read(models, tmp_path, monkeypatch):
    model = models / "lightgbm.onnx"
    path = write(tmp_path / "in.parquet", hostile(unused_of(model), 60_000)[0])
    given = {"feed": FEED[1], "keep": "none", "part_bytes": "500KiB", "tune": False}
    now = scorer.prepare(path, model, tmp_path / "out", **given)
    monkeypatch.setattr(checks, "without_unused", lambda binding, *_: binding)
    before = scorer.prepare(path, model, tmp_path / "out", **given)
    assert now.check().n_parts < before.check().n_parts
    assert now.forecast is not None


def test_columns_of_objects_on_a_store_are_not_read_either(models, tmp_path):
    model = models / "lightgbm.onnx"
    unused = unused_of(model)
    table, x = hostile(unused, kind=np.float64, bad=(np.nan, 3e38, 0.0))
    with bucket() as store:
        for i, rows in enumerate((table.slice(0, 2000), table.slice(2000))):
            path = write(tmp_path / f"{i}.parquet", rows, write_page_checksum=True)
            for at in unused:
                flip(path, end_of_pages(path, NAMES[at]) - 1)
            store.put(f"{ROOT}/in/{i}.parquet", path.read_bytes())
        report = scorer.run(f"{ROOT}/in", model, tmp_path / "out", feed=FEED[1], keep="none", tune=False)
    assert report.unused == f"{len(unused)} of 12 fed columns are never looked at by the model, and are not read"
    assert scores(tmp_path / "out").tobytes() == expected_scores(model, x).tobytes()
