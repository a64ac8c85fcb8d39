"""One element of an output, and names for classes: whole runs against the bare runtime."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array
from support.runs import MODELS, cli, oracle, read, write

import scorer

X = np.random.default_rng(5).normal(size=(300, 4)).astype(np.float32)
NAMES = ("early", "on time", "late")


def saved(path, nodes, width, gives, weights):
    graph = make_graph(
        nodes, "g", [make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])],
        [make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape]) for name, shape in gives.items()],
        [from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    path.write_bytes(make_model(graph, opset_imports=[make_opsetid("", 13)], ir_version=8).SerializeToString())
    return path


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "in.parquet", {f"x{i}": X[:, i] for i in range(4)})


@pytest.fixture
def model(tmp_path):
    """Scores of three classes without names, and a matrix a row."""
    rng = np.random.default_rng(6)
    nodes = [
        make_node("MatMul", ["x", "w"], ["logits"]),
        make_node("MatMul", ["x", "v"], ["wide"]),
        make_node("Reshape", ["wide", "shape"], ["matrix"]),
    ]
    weights = {
        "w": rng.normal(size=(4, 3)).astype(np.float32), "v": rng.normal(size=(4, 6)).astype(np.float32),
        "shape": np.array([-1, 2, 3]),
    }  # fmt: skip
    return saved(tmp_path / "m.onnx", nodes, 4, {"logits": [3], "matrix": [2, 3]}, weights)


def run(source, model, out, *fetches, labels=(), **options):
    fetch = {"fetch": list(fetches)} if fetches else {}
    scorer.run(source, model, out, keep="none", feed="x=x0..x3", labels=labels, progress=False, **fetch, **options)
    return read(out)


def softmax(values):
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_one_element_is_a_column_of_single_values(backend, source, model, tmp_path):
    out = run(
        source, model, tmp_path / "out", "logits[1]=p", "logits[-1]", "matrix[1,2]=corner", "matrix[0]=row",
        "logits|softmax[2]=late", **backend,
    )  # fmt: skip
    bare = oracle(model, {"x": X}, 300)
    assert out.schema.field("p").type == out.schema.field("corner").type == pa.float32()
    assert out.column_names == ["p", "logits_2", "corner", "row_0", "row_1", "row_2", "late"]
    assert np.array_equal(out["p"], bare["logits"][:, 1])
    assert np.array_equal(out["logits_2"], bare["logits"][:, 2])
    assert np.array_equal(out["corner"], bare["matrix"][:, 1, 2])
    assert np.array_equal(np.array([out[f"row_{i}"] for i in range(3)]).T, bare["matrix"][:, 0])
    np.testing.assert_allclose(out["late"], softmax(bare["logits"])[:, 2], rtol=1e-6)


def test_a_class_of_a_map_is_one_column(backend, source, tmp_path):
    model = MODELS / "zipmap.onnx"
    out = run(source, model, tmp_path / "out", "probabilities['virginica']=p", "probabilities[0]", **backend)
    bare = oracle(model, {"x": X})["probabilities"]
    assert out.schema.types == [pa.float32()] * 2
    assert out["p"].to_pylist() == [row["virginica"] for row in bare]
    assert out["probabilities_setosa"].to_pylist() == [row["setosa"] for row in bare]


def test_labels_name_columns_classes_and_elements(backend, source, model, tmp_path):
    fetches = (
        "logits",
        "logits|label=class",
        "logits|topk(2)=best",
        "logits|softmax['late']=p",
        "logits|softmax[0]=first",
    )
    out = run(source, model, tmp_path / "out", *fetches, labels=list(NAMES), **backend)
    logits = oracle(model, {"x": X}, 300)["logits"]
    order = np.argsort(-logits, axis=1)
    assert np.array_equal(np.array([out[f"logits_{name}"] for name in NAMES]).T, logits)
    assert out["class"].to_pylist() == out["best_1"].to_pylist() == [NAMES[i] for i in order[:, 0]]
    assert out["best_2"].to_pylist() == [NAMES[i] for i in order[:, 1]]
    np.testing.assert_allclose(out["p"], softmax(logits)[:, 2], rtol=1e-6)
    np.testing.assert_allclose(out["first"], softmax(logits)[:, 0], rtol=1e-6)
    assert cli("verify", tmp_path / "out", "--deep", "--rescore", "40")[0] == 0


def test_topk_gives_numbers_where_classes_have_no_names(source, model, tmp_path):
    plan = scorer.prepare(source, model, tmp_path / "out", fetch="logits|topk(2)=best", keep="none", feed="x=x0..x3")
    assert "int64, double" in str(plan)
    scorer.execute(plan, progress=False)
    out = read(tmp_path / "out")
    assert out.schema.types == [pa.int64(), pa.float64()] * 2
    assert out["best_1"].to_pylist() == oracle(model, {"x": X}, 300)["logits"].argmax(axis=1).tolist()


def test_whole_numbers_of_a_model_are_no_names(source, tmp_path):
    out = run(source, MODELS / "zipmap_int.onnx", tmp_path / "out", "label|label=name", "probabilities", labels="a,b,c")
    bare = oracle(MODELS / "zipmap_int.onnx", {"x": X})
    assert out["name"].to_pylist() == ["abc"[number] for number in bare["label"]]
    assert out["probabilities_b"].to_pylist() == [row[1] for row in bare["probabilities"]]


def test_no_rows_give_an_element_of_its_type(model, tmp_path):
    empty = write(tmp_path / "none.parquet", {f"x{i}": pa.array([], pa.float32()) for i in range(4)})
    out = run(empty, model, tmp_path / "out", "logits[1]=p", "logits|topk(1)=best", labels="a,b,c")
    assert out.schema.types == [pa.float32(), pa.string(), pa.float64()]


def test_a_file_of_labels_belongs_to_the_request(source, model, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\n")
    plan = scorer.prepare(source, model, tmp_path / "out", labels=names, feed="x=x0..x3")
    same = scorer.prepare(source, model, tmp_path / "out", labels=names, feed="x=x0..x3")
    names.write_text("a\nb\nd\n")
    other = scorer.prepare(source, model, tmp_path / "out", labels=names, feed="x=x0..x3")
    assert plan.check().request_hash == same.check().request_hash != other.check().request_hash


def test_a_job_file_finds_labels_beside_itself(source, model, tmp_path, monkeypatch):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "names.txt").write_text("a\nb\nc\n")
    (tmp_path / "job" / "job.toml").write_text(
        f'input = "{source}"\nmodel = "{model}"\noutput = "{tmp_path / "out"}"\nfeed = ["x=x0..x3"]\n'
        'keep = "none"\nfetch = ["logits"]\nlabels = "names.txt"\n'
    )
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("run", "--config", tmp_path / "job" / "job.toml")
    assert code == 0, err
    assert read(tmp_path / "out").column_names == ["logits_a", "logits_b", "logits_c"]


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--fetch", "logits[3]"], 3, "an element from 0 to 2: there are 3 values in a row"),
        (["--fetch", "logits[-4]"], 3, "an element from 0 to 2"),
        (["--fetch", "matrix[1,2,0]"], 3, "a row has the shape [2, 3]"),
        (["--fetch", "logits[0][0]"], 3, "there is one value in a row"),
        (["--fetch", "logits['late']"], 2, "--labels 'logits=a,b,c'"),
        (["--fetch", "logits['lat']", "--labels", "early,on,late"], 2, "did you mean 'late'?"),
        (["--fetch", "logits|topk(4)"], 3, "--fetch 'logits|topk(3)'"),
        (["--fetch", "logits|topk(2)[0]"], 2, "topk must be the last step"),
        (["--fetch", "logits", "--labels", "a,b"], 2, "--labels has 2 names for the 3 values of output 'logits'"),
        (["--fetch", "logits|topk(1)", "--labels", "a,b"], 2, "2 names for the 3 values"),
        (["--fetch", "logits|label", "--labels", "a,b"], 2, "2 names for the 3 values"),
        (["--fetch", "matrix", "--labels", "a,b"], 2, "no output has as many values in a row"),
        (["--fetch", "logits", "--labels", "matrix=a,b,c"], 2, "'matrix', which is not fetched"),
        (["--fetch", "logits", "--labels", "logits=a,b,c", "--labels", "d,e,f"], 2, "is for no other output"),
        (["--labels", "a,b,c", "--fetch", "logits", "--fetch", "logits[0]"], 3, "share a name: 'logits_a'"),
    ],
)
def test_a_wrong_element_or_label_is_refused_before_the_run(source, model, tmp_path, flags, code, says):
    got, _, err = cli("run", source, "--model", model, "--output", tmp_path / "out", "--feed", "x=x0..x3", *flags)
    assert (got, (tmp_path / "out").exists()) == (code, False), err
    assert says in " ".join(err.split())


def test_a_frame_gets_elements_and_labels(model):
    frame = pd.DataFrame(X, columns=[f"x{i}" for i in range(4)])
    fetch = ["logits['b']", "logits|topk(1)=t"]
    scored = scorer.score(frame, model, feed="x=x0..x3", fetch=fetch, labels=["a", "b", "c"], keep="none")
    logits = oracle(model, {"x": X}, 300)["logits"]
    assert np.array_equal(scored["logits_b"], logits[:, 1])
    assert scored["t_1"].tolist() == ["abc"[i] for i in logits.argmax(axis=1)]


def test_inspect_takes_labels(source, model):
    flags = ["--input", source, "--feed", "x=x0..x3", "--fetch", "logits", "--labels", "a,b,c", "--json"]
    code, out, err = cli("inspect", model, *flags)
    assert code == 0, err
    assert json.loads(out)["fetch"][0]["columns"] == ["logits_a", "logits_b", "logits_c"]
