"""A model that returns its inputs, so that a test sees the tensors that were fed."""

from __future__ import annotations

import onnx
import pandas as pd
import pyarrow as pa
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

import scorer

_NAMES = {"float16": "FLOAT16", "float32": "FLOAT", "float64": "DOUBLE"}


def echo(path, **inputs):
    """Write a model with these inputs, name to (type, width); its outputs have the same names with _out."""
    kinds = {name: getattr(TensorProto, _NAMES.get(kind, kind.upper())) for name, (kind, _) in inputs.items()}
    given = [make_tensor_value_info(name, kinds[name], ["N", width]) for name, (_, width) in inputs.items()]
    gives = [make_tensor_value_info(f"{name}_out", kinds[name], ["N", width]) for name, (_, width) in inputs.items()]
    nodes = [make_node("Identity", [name], [f"{name}_out"]) for name in inputs]
    graph = make_graph(nodes, "echo", given, gives)
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8), path)
    return path


def frame_of(table):
    """Return a frame with the table's Arrow columns, unchanged."""
    return pd.DataFrame({n: pd.Series(pd.arrays.ArrowExtensionArray(table[n])) for n in table.column_names})


def fed(table, model, feed, **options):
    """Return the rows that were fed, by their number, and the reasons of the others."""
    scored, bad = scorer.score(frame_of(pa.table(table)), model, feed=feed, keep="none", errors="return", **options)
    rows = scored.astype(object).to_numpy().tolist()
    return dict(zip(scored.index, rows, strict=True)), bad["_error"].to_dict()
