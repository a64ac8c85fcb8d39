"""Folders with models, as Hugging Face and MLflow write them, and MLflow's stores of such folders."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper


def mlflow(folder, flavours, columns=None):
    """Write the file MLmodel as MLflow does."""
    folder.mkdir(parents=True, exist_ok=True)
    described = {"flavors": flavours, "mlflow_version": "3.17.2"}
    if columns is not None:
        listed = [{"type": "double", "name": name, "required": True} for name in columns]
        described["signature"] = {"inputs": json.dumps(listed), "outputs": None, "params": None}
    (folder / "MLmodel").write_text(yaml.safe_dump(described))
    return folder


def encoder(outputs, hidden=4):
    """Return a small model of texts with these outputs: ids and mask in."""
    table = np.random.default_rng(0).normal(size=(100, hidden)).astype(np.float32)
    weights = [onnx.numpy_helper.from_array(table, "table")]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])]
    shapes = {"last_hidden_state": ["N", "T", hidden], "logits": ["N", hidden]}
    if "logits" in outputs:
        nodes.append(helper.make_node("ReduceSum", ["last_hidden_state", "axis"], ["logits"], keepdims=0))
        weights.append(onnx.numpy_helper.from_array(np.array([1]), "axis"))
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "T"]) for name in ("input_ids", "attention_mask")
    ]
    nodes.append(helper.make_node("Identity", ["attention_mask"], ["unused"]))
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in outputs]
    graph = helper.make_graph(nodes, "texts", inputs, given, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def hugging_face(folder, model, **files):
    """Write a Hugging Face folder with an ONNX model."""
    (folder / "onnx").mkdir(parents=True)
    onnx.save(model, folder / "onnx" / "model.onnx")
    (folder / "tokenizer.json").write_text("{}")
    for name, content in ({"config": {"max_position_embeddings": 512}} | files).items():
        path = folder / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def tracking_files(top, name, versions, alias):
    """Write a folder of tracking files as MLflow 3 does: versions of a registered model, by their folders.

    Returns the URI of the store. `alias` names the last version as champion.
    """
    model = top / "models" / name
    for number, folder in enumerate(versions, 1):
        about = {"name": name, "version": number, "current_stage": "Production" if number == 1 else "None",
                 "storage_location": folder.as_uri(), "source": f"models:/m-{number:032x}"}  # fmt: skip
        (model / f"version-{number}").mkdir(parents=True, exist_ok=True)
        (model / f"version-{number}" / "meta.yaml").write_text(yaml.safe_dump(about))
        logged = {"model_id": f"m-{number:032x}", "artifact_location": str(folder), "name": "model",
                  "source_run_id": f"{number:032x}"}  # fmt: skip
        run = {"run_id": f"{number:032x}", "artifact_uri": str(folder.parent)}
        for place, described in ((f"0/models/m-{number:032x}", logged), (f"0/{number:032x}", run)):
            (top / place).mkdir(parents=True, exist_ok=True)
            (top / place / "meta.yaml").write_text(yaml.safe_dump(described))
    (model / "aliases").mkdir(exist_ok=True)
    (model / "aliases" / alias).write_text(str(len(versions)))
    return str(top)


def tracking_database(path, name, versions, alias):
    """Write the same as a database of SQLite."""
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("create table model_versions (name, version, current_stage, source, storage_location)")
        connection.execute("create table registered_model_aliases (name, alias, version)")
        connection.execute("create table runs (run_uuid, artifact_uri)")
        connection.execute("create table logged_models (model_id, artifact_location, name, source_run_id)")
        for number, folder in enumerate(versions, 1):
            stage, run, logged = "Production" if number == 1 else "None", f"{number:032x}", f"m-{number:032x}"
            row = (name, number, stage, f"models:/{logged}", None if number == 1 else folder.as_uri())
            connection.execute("insert into model_versions values (?, ?, ?, ?, ?)", row)
            connection.execute("insert into runs values (?, ?)", (run, str(folder.parent)))
            connection.execute("insert into logged_models values (?, ?, ?, ?)", (logged, str(folder), "model", run))
        connection.execute("insert into registered_model_aliases values (?, ?, ?)", (name, alias, len(versions)))
    return f"sqlite:///{path}"
