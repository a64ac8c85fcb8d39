"""A model is read from its protobuf alone; a broken one is refused, never partly read."""

from __future__ import annotations

import hashlib
import json
import random
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.helper import (
    make_graph,
    make_model,
    make_node,
    make_opsetid,
    make_tensor_value_info,
    set_model_props,
)
from onnx.numpy_helper import from_array
from support.external_weights import PLACES, external_weight, scaling
from support.runs import MODELS, ROOT, oracle

from scorer.errors import ModelError, ModelLoadError, ModelNotFound, ScorerError
from scorer.model.copies import digest_of
from scorer.model.protobuf import inspect_model
from scorer.model.session import Session
from scorer.model.spec import SessionSpec, TensorSpec

ALL = sorted(path.stem for path in MODELS.glob("*.onnx"))
SIGNATURES = {
    "bool_in": ("flag: bool [N]", "negated: bool [N]"),
    "dense28": ("input: float32 [N, 28]", "score: float32 [N, 1]"),
    "external": ("x: float32 [N, 3]", "y: float32 [N, 1]"),
    "fixed3": ("x: float32 [3, 2]", "y: float32 [3, 2]"),
    "float16": ("x: float16 [N, 2]", "y: float16 [N, 2]"),
    "float64": ("x: float64 [N, 2]", "y: float64 [N]"),
    "gather": ("idx: int64 [N]", "value: float32 [N]"),
    "int64_in": ("x: int64 [N, 2]", "y: int64 [N]"),
    "lying": ("x: float32 [N, 2]", "label: int64 [1]"),
    "named3": ("x: float32 [batch, 3]", "total: float32 [batch]"),
    "percolumn": ("a: float32 [N, 1]; b: int64 [N, 1]; petal_length: float64 [N]", "out: float32 [N, 1]"),
    "reduce_all": ("x: float32 [N, 2]", "mean: float32 [1]"),
    "softmax0": ("x: float32 [N, 2]", "y: float32 [N, 2]"),
    "strings": ("color: string [N, 1]; size: float32 [N, 1]", "label: string [N]; size_out: float32 [N, 1]"),
    "sum3": ("x: float32 [batch, 3]", "total: float32 [batch]"),
    "two_outputs": ("x: float32 [N, 4]", "mean: float32 [N]; logits: float32 [N, 3]"),
    "wide_output": ("x: float32 [N, 4]", "embedding: float32 [N, 20]"),
    "zipmap": ("x: float32 [N, 4]", "label: string [N]; probabilities: sequence"),
    "zipmap_int": ("x: float32 [N, 4]", "label: int64 [N]; probabilities: sequence"),
}


def signature(tensors):
    return "; ".join(f"{tensor.name}: {tensor}" for tensor in tensors)


def look(name):
    return inspect_model(MODELS / f"{name}.onnx")


@pytest.mark.parametrize("name", ALL)
def test_inputs_and_outputs_are_read_as_declared(name):
    spec = look(name)
    assert (signature(spec.inputs), signature(spec.outputs)) == SIGNATURES[name]
    assert spec.bytes == sum((MODELS / f).stat().st_size for f in (f"{name}.onnx", *spec.files))
    assert spec.producer == "scorer-tests"
    assert json.loads(json.dumps(spec.to_dict()))["digest"] == spec.digest == digest_of(spec.path, spec.files)


@pytest.mark.parametrize("name", ALL)
def test_every_model_that_can_be_inspected_loads(name):
    spec = look(name)
    session = Session(SessionSpec(path=spec.path, digest=spec.digest, files=spec.files, device="cpu"))
    assert session.spec.key == (spec.digest, "cpu", 0, 1, "", True)


def test_operators_and_opsets_are_counted():
    spec = look("dense28")
    assert spec.operators == {"Gemm": 3, "Relu": 2, "Sigmoid": 1}
    assert spec.opsets == {"ai.onnx": 21}
    assert look("zipmap").opsets == {"ai.onnx": 21, "ai.onnx.ml": 3}


def test_class_labels_are_found_and_those_of_maps_by_output():
    names = ("setosa", "versicolor", "virginica")
    assert (look("zipmap").class_labels, look("zipmap").zipmaps) == (names, {"probabilities": names})
    assert (look("zipmap_int").class_labels, look("zipmap_int").zipmaps) == (
        ("0", "1", "2"),
        {"probabilities": ("0", "1", "2")},
    )
    assert look("lying").class_labels == ("0", "1")
    assert look("sum3").class_labels == ()


def test_a_tensor_prints_its_type_and_shape():
    assert str(TensorSpec(name="x", type="float32", shape=(None, "k", 3))) == "float32 [?, k, 3]"
    assert str(TensorSpec(name="x", type="sequence", shape=None)) == "sequence"


def identity(path, name="x", kind=TensorProto.FLOAT, shape=("N", 2), constants=(), props=None, nodes=None):
    """A model of one input and one output, saved."""
    x, y = make_tensor_value_info(name, kind, shape), make_tensor_value_info("y", kind, shape)
    graph = make_graph(nodes or [make_node("Identity", [name], ["y"])], "g", [x], [y], list(constants))
    model = make_model(graph, opset_imports=[make_opsetid("", 21)], ir_version=10)
    set_model_props(model, props or {})
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("props", "names"),
    [
        ({"feature_names": '["a", "b c"]'}, ("a", "b c")), ({"feature_names": "a, b,c "}, ("a", "b", "c")),
        ({"features": '["a"]'}, ("a",)), ({"columns": "a"}, ("a",)), ({"input_features": '["ü"]'}, ("ü",)),
        ({"feature_names": "[1, 2]"}, ()), ({"feature_names": ""}, ()), ({"feature_names": "[]"}, ()),
        ({"feature_names": '{"a": 1}'}, ()), ({"feature_names": '"a"'}, ()), ({"feature_names": "7"}, ()),
        ({"feature_names": "a,,b"}, ()), ({"feature_names": "[]", "columns": "a"}, ("a",)), ({"other": "a"}, ()),
        ({}, ()),
    ],
)  # fmt: skip
def test_feature_names_are_read_from_the_metadata(tmp_path, props, names):
    spec = inspect_model(identity(tmp_path / "m.onnx", props=props))
    assert spec.feature_names == names
    assert spec.metadata == props


def test_weights_that_are_listed_as_inputs_are_no_inputs(tmp_path):
    path = identity(tmp_path / "m.onnx", constants=[from_array(np.zeros(2, np.float32), "w")])
    model = onnx.load(path)
    model.graph.input.append(make_tensor_value_info("w", TensorProto.FLOAT, [2]))
    onnx.save(model, path)
    assert [t.name for t in inspect_model(path).inputs] == ["x"]


def test_an_input_without_a_shape_has_no_known_rank(tmp_path):
    assert inspect_model(identity(tmp_path / "m.onnx", shape=None)).inputs[0].shape is None


def test_operators_that_couple_rows_are_named(tmp_path):
    nodes = [make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]), make_node("Identity", ["x"], ["y"])]
    (reason,) = inspect_model(identity(tmp_path / "m.onnx", nodes=nodes)).coupled
    assert reason.startswith("DynamicQuantizeLinear")
    assert look("dense28").coupled == ()


# Digests and external data


@pytest.fixture
def external(tmp_path):
    for name in ("external.onnx", "external.bin"):
        shutil.copy(MODELS / name, tmp_path / name)
    return tmp_path / "external.onnx"


def test_the_digest_depends_on_contents_and_not_on_paths(external, tmp_path):
    elsewhere = shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-copy")
    assert (
        inspect_model(external).digest == inspect_model(elsewhere / "external.onnx").digest == look("external").digest
    )
    assert len({look(name).digest for name in ALL}) == len(ALL)


def test_the_digest_changes_with_the_external_data(external, tmp_path):
    before = inspect_model(external)
    assert before.files == ("external.bin",)
    data = bytearray((tmp_path / "external.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "external.bin").write_bytes(data)
    after = inspect_model(external)
    assert after.digest != before.digest
    assert digest_of(str(external), before.files) == after.digest


def test_the_digest_changes_with_the_model_itself(tmp_path):
    one, two = (identity(tmp_path / f"{doc}.onnx", props={"doc": doc}) for doc in "ab")
    assert inspect_model(one).digest != inspect_model(two).digest


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_part_of_the_model_wherever_the_model_names_it(tmp_path, place):
    path = scaling(tmp_path, place)
    before = inspect_model(path)
    assert oracle(path, {"x": np.ones((2, 2), np.float32)})["y"].tolist() == [[3, 3], [3, 3]]
    assert before.files == ("w.bin",)
    (tmp_path / "w.bin").write_bytes(np.full(2, 4, np.float32).tobytes())
    after = inspect_model(path)
    assert oracle(path, {"x": np.ones((2, 2), np.float32)})["y"].tolist() == [[4, 4], [4, 4]]
    assert after.digest == digest_of(str(path), before.files) != before.digest


def test_external_data_of_training_is_part_of_the_model(tmp_path):
    path = identity(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.training_info.add().initialization.initializer.append(external_weight(tmp_path))
    path.write_bytes(model.SerializeToString())
    assert inspect_model(path).files == ("w.bin",)


@pytest.mark.parametrize(
    "path", sorted([*MODELS.glob("*.onnx"), *(ROOT / "examples").glob("*/*.onnx")]), ids=lambda path: path.stem
)
def test_the_digest_is_the_sha256_of_the_digests_of_the_files(path):
    files = [path, MODELS / "external.bin"] if path.stem == "external" else [path]
    digests = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
    assert inspect_model(path).digest == hashlib.sha256(digests).hexdigest()


@pytest.mark.parametrize(
    ("attributes", "named"),
    [
        ({"embed_mode": 0, "ep_cache_context": "m.engine"}, "m.engine"),
        ({"embed_mode": 1, "ep_cache_context": b"\xff\0", "onnx_model_filename": "plain.onnx"}, "plain.onnx"),
        ({"embed_mode": 1, "ep_cache_context": b"\xff\0"}, ""),
        ({"ep_cache_context": "the engine itself"}, ""),
    ],
)
def test_a_compiled_engine_in_another_file_is_refused(tmp_path, attributes, named):
    node = make_node("EPContext", ["x"], ["y"], domain="com.microsoft", **attributes)
    path = identity(tmp_path / "m.onnx", nodes=[node])
    if not named:
        assert inspect_model(path).files == ()
        return
    with pytest.raises(ModelError, match=rf"compiled engine is in another file[\s\S]*'{named}'"):
        inspect_model(path)


def test_external_data_that_is_not_there_is_named(external, tmp_path):
    (tmp_path / "external.bin").unlink()
    with pytest.raises(ModelNotFound, match=r"external\.bin"):
        inspect_model(external)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "sub/../../secret.bin"])
def test_external_data_outside_the_folder_is_refused(tmp_path, location):
    (tmp_path / "secret.bin").write_bytes(bytes(8))
    folder = tmp_path / "model"
    folder.mkdir()
    weight = from_array(np.zeros(2, np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    path = folder / "m.onnx"
    graph = make_graph(
        [make_node("Identity", ["x"], ["y"])], "g", [make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [make_tensor_value_info("y", TensorProto.FLOAT, ["N"])], [weight],
    )  # fmt: skip
    path.write_bytes(make_model(graph, opset_imports=[make_opsetid("", 21)], ir_version=10).SerializeToString())
    with pytest.raises(ModelError, match="outside its folder"):
        inspect_model(path)


# Broken models


@pytest.mark.parametrize("content", [b"", b"\x00", b"not a model", b"\x08\x0a", b"PAR1" * 100, b"\xff" * 1000])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match="not an ONNX model"):
        inspect_model(path)


def test_a_model_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ModelNotFound, match="nothing"):
        inspect_model(tmp_path / "m.onnx")
    with pytest.raises(ModelNotFound, match="a folder"):
        inspect_model(tmp_path)


def outcome(path):
    """Return None, or the error if it is a ScorerError; other exceptions are raised."""
    try:
        spec = inspect_model(path)
    except ScorerError as error:
        return str(error)
    json.dumps(spec.to_dict()).encode()
    return None


@pytest.mark.parametrize("name", ["dense28", "zipmap", "strings", "percolumn", "named3", "external"])
def test_a_truncated_model_is_refused_by_one_of_our_errors(tmp_path, name):
    data = (MODELS / f"{name}.onnx").read_bytes()
    shutil.copy(MODELS / "external.bin", tmp_path)
    path = tmp_path / "m.onnx"
    chance = random.Random(name)
    for length in chance.sample(range(len(data)), min(100, len(data))):
        path.write_bytes(data[:length])
        outcome(path)


@pytest.mark.parametrize("name", ["zipmap", "strings", "percolumn", "named3", "external"])
def test_a_model_with_flipped_bytes_is_read_or_refused_by_one_of_our_errors(tmp_path, name):
    data = (MODELS / f"{name}.onnx").read_bytes()
    shutil.copy(MODELS / "external.bin", tmp_path)
    path = tmp_path / "m.onnx"
    chance = random.Random(name)
    for _ in range(200):
        broken = bytearray(data)
        for _ in range(chance.choice([1, 1, 1, 3])):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        path.write_bytes(bytes(broken))
        outcome(path)


def test_an_unknown_tensor_type_is_refused_by_one_of_our_errors(tmp_path):
    path = identity(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = 99
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ScorerError, match=r"99|type"):
        inspect_model(path)
