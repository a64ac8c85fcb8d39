"""Write the small ONNX models that the tests use, beside this script.

Run it as ``python tests/models/make_models.py``.  The weights come from fixed
seeds, so the files come out the same each time.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto
from onnx.helper import (
    make_graph,
    make_model,
    make_node,
    make_opsetid,
    make_tensor_value_info,
    make_value_info,
    set_model_props,
)
from onnx.helper import make_map_type_proto as map_type
from onnx.helper import make_sequence_type_proto as sequence_type
from onnx.helper import make_tensor_type_proto as tensor_type
from onnx.numpy_helper import from_array

Shape: TypeAlias = Sequence[int | str]

HERE = Path(__file__).resolve().parent
IR_VERSION = 10
OPSET = 21
ML_OPSET = 3
ML = "ai.onnx.ml"
SEED = 7


def value(name: str, kind: int, shape: Shape) -> ValueInfoProto:
    """Declare a tensor that goes in or comes out."""
    return make_tensor_value_info(name, kind, shape)


def floats(name: str, *shape: int | str) -> ValueInfoProto:
    """Declare a float32 tensor."""
    return value(name, TensorProto.FLOAT, shape)


def weights(*shape: int, seed: int = SEED) -> npt.NDArray[np.float32]:
    """Draw weights about the size that keeps a layer's output near one."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal(shape) / np.sqrt(shape[0])
    return np.asarray(drawn, dtype=np.float32)


def int64s(*values: int) -> npt.NDArray[np.int64]:
    """Make the small constants that axes and shapes are given as."""
    return np.array(values, dtype=np.int64)


def build(
    nodes: Iterable[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    constants: Mapping[str, npt.NDArray[np.generic]] | None = None,
) -> ModelProto:
    """Put a model together; the ML domain is imported only where it is used."""
    nodes = list(nodes)
    opsets = [make_opsetid("", OPSET)]
    if any(node.domain == ML for node in nodes):
        opsets.append(make_opsetid(ML, ML_OPSET))
    tensors = [from_array(array, name) for name, array in (constants or {}).items()]
    graph = make_graph(nodes, "graph", inputs, outputs, initializer=tensors)
    return make_model(
        graph,
        ir_version=IR_VERSION,
        opset_imports=opsets,
        producer_name="scorer-tests",
    )


def dense28() -> ModelProto:
    """Three dense layers, 28 -> 64 -> 32 -> 1."""
    return build(
        [
            make_node("Gemm", ["input", "w1", "b1"], ["z1"]),
            make_node("Relu", ["z1"], ["h1"]),
            make_node("Gemm", ["h1", "w2", "b2"], ["z2"]),
            make_node("Relu", ["z2"], ["h2"]),
            make_node("Gemm", ["h2", "w3", "b3"], ["z3"]),
            make_node("Sigmoid", ["z3"], ["score"]),
        ],
        [floats("input", "N", 28)],
        [floats("score", "N", 1)],
        {
            "w1": weights(28, 64, seed=1),
            "b1": weights(64, seed=2),
            "w2": weights(64, 32, seed=3),
            "b2": weights(32, seed=4),
            "w3": weights(32, 1, seed=5),
            "b3": weights(1, seed=6),
        },
    )


def sum3() -> ModelProto:
    """Add up the three features of each row."""
    return build(
        [make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=0)],
        [floats("x", "batch", 3)],
        [floats("total", "batch")],
        {"axes": int64s(1)},
    )


def named3() -> ModelProto:
    """Do as sum3 does, and name the features in the metadata."""
    model = sum3()
    set_model_props(model, {"feature_names": json.dumps(["a", "b", "c"])})
    return model


def percolumn() -> ModelProto:
    """Add three inputs, each a column of its own type and shape."""
    return build(
        [
            make_node("Cast", ["b"], ["b_float"], to=TensorProto.FLOAT),
            make_node("Cast", ["petal_length"], ["petal"], to=TensorProto.FLOAT),
            make_node("Reshape", ["petal", "column"], ["petal_column"]),
            make_node("Add", ["a", "b_float"], ["ab"]),
            make_node("Add", ["ab", "petal_column"], ["out"]),
        ],
        [
            floats("a", "N", 1),
            value("b", TensorProto.INT64, ["N", 1]),
            value("petal_length", TensorProto.DOUBLE, ["N"]),
        ],
        [floats("out", "N", 1)],
        {"column": int64s(-1, 1)},
    )


def two_outputs() -> ModelProto:
    """Return one number and one vector of three for each row."""
    return build(
        [
            make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
            make_node("Gemm", ["x", "w", "b"], ["logits"]),
        ],
        [floats("x", "N", 4)],
        [floats("mean", "N"), floats("logits", "N", 3)],
        {"axes": int64s(1), "w": weights(4, 3), "b": weights(3)},
    )


def wide_output() -> ModelProto:
    """Return a vector of twenty for each row."""
    return build(
        [make_node("MatMul", ["x", "w"], ["embedding"])],
        [floats("x", "N", 4)],
        [floats("embedding", "N", 20)],
        {"w": weights(4, 20)},
    )


def fixed3() -> ModelProto:
    """Take batches of exactly three rows: y = 2 x + 1."""
    return build(
        [
            make_node("Mul", ["x", "two"], ["doubled"]),
            make_node("Add", ["doubled", "one"], ["y"]),
        ],
        [floats("x", 3, 2)],
        [floats("y", 3, 2)],
        {
            "two": np.array(2, dtype=np.float32),
            "one": np.array(1, dtype=np.float32),
        },
    )


def lying() -> ModelProto:
    """Declare one label and return one a row, as onnxmltools' models do."""
    return build(
        [
            make_node(
                "LinearClassifier",
                ["x"],
                ["label", "scores"],
                domain=ML,
                classlabels_ints=[0, 1],
                coefficients=[1.0, -1.0, -1.0, 1.0],
                intercepts=[0.0, 0.0],
            )
        ],
        [floats("x", "N", 2)],
        [value("label", TensorProto.INT64, [1])],
    )


def strings() -> ModelProto:
    """Map colours to labels, a string to a string, and double the size."""
    return build(
        [
            make_node(
                "LabelEncoder",
                ["color"],
                ["label_column"],
                domain=ML,
                keys_strings=["red", "green", "blue"],
                values_strings=["warm", "cool", "cool"],
                default_string="unknown",
            ),
            make_node("Reshape", ["label_column", "flat"], ["label"]),
            make_node("Add", ["size", "size"], ["size_out"]),
        ],
        [value("color", TensorProto.STRING, ["N", 1]), floats("size", "N", 1)],
        [value("label", TensorProto.STRING, ["N"]), floats("size_out", "N", 1)],
        {"flat": int64s(-1)},
    )


def classifier(key_type: int, labels: Sequence[Any]) -> ModelProto:
    """Classify four features into three classes, with a ZipMap at the end."""
    suffix = "strings" if key_type == TensorProto.STRING else "int64s"
    label_attribute = f"classlabels_{suffix.replace('int64s', 'ints')}"
    class_labels: dict[str, Any] = {label_attribute: labels}
    map_keys: dict[str, Any] = {f"classlabels_{suffix}": labels}
    probabilities = sequence_type(map_type(key_type, tensor_type(TensorProto.FLOAT, [])))
    return build(
        [
            make_node(
                "LinearClassifier",
                ["x"],
                ["label", "scores"],
                domain=ML,
                coefficients=weights(3, 4).ravel().tolist(),
                intercepts=[0.0, 0.1, -0.1],
                multi_class=1,
                post_transform="SOFTMAX",
                **class_labels,
            ),
            make_node(
                "ZipMap",
                ["scores"],
                ["probabilities"],
                domain=ML,
                **map_keys,
            ),
        ],
        [floats("x", "N", 4)],
        [
            value("label", key_type, ["N"]),
            make_value_info("probabilities", probabilities),
        ],
    )


def zipmap() -> ModelProto:
    """Return a string label and a map from class name to probability."""
    names = ["setosa", "versicolor", "virginica"]
    return classifier(TensorProto.STRING, names)


def zipmap_int() -> ModelProto:
    """Return an integer label and a map from class number to probability."""
    return classifier(TensorProto.INT64, [0, 1, 2])


def row_sum(kind: int) -> ModelProto:
    """Add up two features of one type."""
    return build(
        [make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)],
        [value("x", kind, ["N", 2])],
        [value("y", kind, ["N"])],
        {"axes": int64s(1)},
    )


def float64() -> ModelProto:
    """Add up two doubles."""
    return row_sum(TensorProto.DOUBLE)


def int64_in() -> ModelProto:
    """Add up two integers."""
    return row_sum(TensorProto.INT64)


def bool_in() -> ModelProto:
    """Negate a flag."""
    return build(
        [make_node("Not", ["flag"], ["negated"])],
        [value("flag", TensorProto.BOOL, ["N"])],
        [value("negated", TensorProto.BOOL, ["N"])],
    )


def float16() -> ModelProto:
    """Double two half-precision numbers."""
    return build(
        [make_node("Add", ["x", "x"], ["y"])],
        [value("x", TensorProto.FLOAT16, ["N", 2])],
        [value("y", TensorProto.FLOAT16, ["N", 2])],
    )


def gather() -> ModelProto:
    """Look up a table of ten: an index outside it fails the whole batch."""
    return build(
        [make_node("Gather", ["table", "idx"], ["value"], axis=0)],
        [value("idx", TensorProto.INT64, ["N"])],
        [floats("value", "N")],
        {"table": np.arange(10, dtype=np.float32) * 10},
    )


def reduce_all() -> ModelProto:
    """Return one mean for the whole batch, so not one row a row."""
    return build(
        [
            make_node("ReduceMean", ["x", "axes"], ["scalar"], keepdims=0),
            make_node("Reshape", ["scalar", "one"], ["mean"]),
        ],
        [floats("x", "N", 2)],
        [floats("mean", 1)],
        {"axes": int64s(0, 1), "one": int64s(1)},
    )


def softmax0() -> ModelProto:
    """Normalise over the batch, so that rows influence each other."""
    return build(
        [make_node("Softmax", ["x"], ["y"], axis=0)],
        [floats("x", "N", 2)],
        [floats("y", "N", 2)],
    )


def external() -> ModelProto:
    """Keep the weights in a file of their own."""
    return build(
        [make_node("Gemm", ["x", "w", "b"], ["y"])],
        [floats("x", "N", 3)],
        [floats("y", "N", 1)],
        {"w": weights(3, 1), "b": weights(1)},
    )


def save(name: str, model: ModelProto) -> None:
    """Write one model; only the one named external has a second file."""
    path = HERE / f"{name}.onnx"
    if name == "external":
        location = f"{name}.bin"
        (HERE / location).unlink(missing_ok=True)  # onnx would append to it
        onnx.save_model(
            model,
            path,
            save_as_external_data=True,
            location=location,
            size_threshold=0,
        )
    else:
        onnx.save_model(model, path)
    onnx.checker.check_model(path)
    print(f"{path.stat().st_size:6d}  {path.name}")


MODELS: dict[str, Callable[[], ModelProto]] = {
    "dense28": dense28,
    "sum3": sum3,
    "named3": named3,
    "percolumn": percolumn,
    "two_outputs": two_outputs,
    "wide_output": wide_output,
    "fixed3": fixed3,
    "lying": lying,
    "strings": strings,
    "zipmap": zipmap,
    "zipmap_int": zipmap_int,
    "float64": float64,
    "int64_in": int64_in,
    "bool_in": bool_in,
    "float16": float16,
    "gather": gather,
    "reduce_all": reduce_all,
    "softmax0": softmax0,
    "external": external,
}


if __name__ == "__main__":
    for model_name, make in MODELS.items():
        save(model_name, make())
