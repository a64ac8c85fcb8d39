"""What a file is, by its bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import struct
import zipfile
import zlib
from collections import OrderedDict

import numpy as np
import onnx
import pyarrow as pa
import pytest
from pyarrow import csv, feather, ipc, orc, parquet
from support.runs import MODELS

from scorer.storage.formats import recognise

TABLE = pa.table({"id": [1, 2, 3], "name": ["a", "b,c", None]})


def archive(*members):
    """Return a zip archive with these members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name in members:
            file.writestr(name, b"x")
    return out.getvalue()


def written(write):
    """Return what a function writes into a file-like object."""
    out = io.BytesIO()
    write(out)
    return out.getvalue()


def stream(out):
    with ipc.new_stream(out, TABLE.schema) as file:
        file.write_table(TABLE)


def binary_xgboost(objective=b"reg:squarederror", booster=b"gbtree"):
    names = [struct.pack("<Q", len(name)) + name for name in (objective, booster)]
    return struct.pack("<f", 0.5) + bytes(132) + b"".join(names) + bytes(200)


class Harmful:
    def __reduce__(self):
        return (pytest.fail, ("the file was unpickled",))


CSV = written(lambda out: csv.write_csv(TABLE, out))
ZSTD = pa.compress(CSV, "zstd", asbytes=True)
ROWS = TABLE.to_pylist()
FILES = {
    "an Arrow IPC (Feather) file": written(lambda out: feather.write_feather(TABLE, out)),
    "a stream of Arrow IPC": written(stream),
    "an ORC file": written(lambda out: orc.write_table(TABLE, out)),
    "a Parquet file": written(lambda out: parquet.write_table(TABLE, out)),
    "a CSV file": CSV,
    "a CSV file with ';'": b"id;name\n1;a\n2;'b,c'\n",
    "a file of values that tabs separate": b"id\tname\r\n1\ta\r\n",
    "a CSV file, compressed with gzip": gzip.compress(CSV),
    "a CSV file, compressed with bz2": bz2.compress(CSV),
    "a CSV file, compressed with xz": lzma.compress(CSV),
    "a CSV file, compressed with zstd": ZSTD,
    "a JSON file": json.dumps(ROWS).encode(),
    "a file of JSON lines": "\n".join(json.dumps(row) for row in ROWS).encode(),
    "an Avro file": b"Obj\x01\x04\x14avro.codec\x08null",
    "an old Excel workbook": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500),
    "an Excel workbook": archive("[Content_Types].xml", "_rels/.rels", "xl/workbook.xml"),
    "a NumPy array": written(lambda out: np.save(out, np.arange(3))),
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(500),
    "a Keras model": archive("metadata.json", "config.json", "model.weights.h5"),
    "a pickle of collections.OrderedDict": pickle.dumps(OrderedDict(a=1)),
    "a pickle of pathlib.PurePosixPath": pickle.dumps(__import__("pathlib").PurePosixPath("a"), protocol=2),
    "a pickle of decimal.Decimal": pickle.dumps(__import__("decimal").Decimal(1), protocol=4),
    "a pickle": pickle.dumps({"a": [1, 2]}),
    "a pickle of _pytest.outcomes._Fail": pickle.dumps(Harmful()),
    "a pickle, compressed with zlib": zlib.compress(pickle.dumps({"a": [1, 2]})),
    "a PyTorch file": archive("m/data.pkl", "m/version", "m/data/0"),
    "a TorchScript model": archive("m/data.pkl", "m/constants.pkl", "m/code/__torch__.py"),
    "a CatBoost model": b"CBM1" + bytes(500),
    "a LightGBM model": b"tree\nversion=v4\nnum_class=1\n",
    "an XGBoost model": b'{"version": [3, 0, 2], "learner": {}}',
    "an XGBoost model in the binary format that XGBoost 3.1 removed": binary_xgboost(),
    "a TensorFlow Lite model": b"\x1c\0\0\0TFL3" + bytes(500),
    "a model in ONNX Runtime's own format": b"\x1c\0\0\0ORTM" + bytes(500),
    "a file of weights (safetensors)": struct.pack("<Q", 20) + b'{"w": {"dtype": "F"}',
    "a PMML file": b'<?xml version="1.0"?>\n<PMML xmlns="http://www.dmg.org/PMML-4_4">',
    "an HTML page": b"<!DOCTYPE html>\n<html><head>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
    "a zip archive": archive("m.onnx"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_recognised_by_its_bytes_whatever_its_name_is(tmp_path, name):
    for suffix in (".parquet", ".onnx"):
        path = tmp_path / f"file{suffix}"
        path.write_bytes(FILES[name])
        found = recognise(str(path))
        assert found is not None
        assert found.name == name


def test_old_pytorch_and_prefixed_xgboost_files_are_recognised(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2))
    assert recognise(str(path)).name == "a PyTorch file"
    path.write_bytes(b"binf" + binary_xgboost(b"binary:logistic", b"dart"))
    assert recognise(str(path)).kind == "xgboost-binary"


def test_a_database_and_a_tensorflow_folder_are_recognised(tmp_path):
    with sqlite3.connect(tmp_path / "x") as database:
        database.execute("create table t (id int)")
    database.close()
    assert recognise(str(tmp_path / "x")).name == "an SQLite database"
    assert recognise(str(tmp_path)) is None
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01\x12")
    assert recognise(str(tmp_path)).name == "a TensorFlow SavedModel"
    assert recognise(str(tmp_path / "saved_model.pb")).name == "a TensorFlow SavedModel"


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"this is plain text\n", b"one\ncolumn\n", bytes(range(256)), b"\xff" * 3, b"PK\x03", b"\x1f\x8b",
     b"\x80", b"{", b"a,b\n1\n", gzip.compress(b"plain text", mtime=0)[:-8], b"\x80\x04\x95"],
)  # fmt: skip
def test_other_bytes_are_not_guessed_and_raise_nothing(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    found = recognise(str(tmp_path / "x"))
    assert found is None or found.kind in {"pickle", "zip", "json"}


def test_a_missing_file_is_not_recognised(tmp_path):
    assert recognise(str(tmp_path / "gone")) is None


@pytest.mark.parametrize("name", ["dense28", "zipmap", "named3"])
def test_an_onnx_model_is_not_taken_for_something_else(name):
    assert recognise(str(MODELS / f"{name}.onnx")) is None
    assert onnx.load(MODELS / f"{name}.onnx").graph.output


def test_a_cut_file_of_each_format_raises_nothing(tmp_path):
    for content in FILES.values():
        for length in {1, 2, 4, 5, 9, 20, 60, len(content) // 2, len(content) - 1}:
            (tmp_path / "x").write_bytes(content[:length])
            recognise(str(tmp_path / "x"))


def test_a_long_csv_is_recognised_by_its_first_lines(tmp_path):
    (tmp_path / "x").write_bytes(b"a,b\n" + b"1,2\n" * 100_000)
    assert recognise(str(tmp_path / "x")).name == "a CSV file"
    (tmp_path / "x").write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 1_000_000))
    assert recognise(str(tmp_path / "x")).name == "a CSV file, compressed with gzip"
