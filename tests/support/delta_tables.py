"""Delta tables for tests: rows deleted by vectors, columns mapped by name and id, as writers make them by hand.

deltalake writes plain tables. What it does not write, deletion vectors and mapped columns, is added to the log here.
"""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from scorer.arrow import plain_schema

_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_B85 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
_TO_Z85 = str.maketrans(_B85, _Z85)
_MAGIC = 1681511377
_TYPES = {
    pa.int32(): "integer", pa.int64(): "long", pa.float32(): "float", pa.float64(): "double", pa.string(): "string",
}  # fmt: skip
FEATURES = {"minReaderVersion": 3, "minWriterVersion": 7}


def live(path, version=None):
    """Return the rows of a table as its own reader has them."""
    rows = pa.table(DeltaTable(path, version=version).scan())
    return rows.cast(plain_schema(rows.schema))


def commit(path, actions):
    """Add a version with these actions to a table, and return its number."""
    log = Path(path, "_delta_log")
    log.mkdir(parents=True, exist_ok=True)
    number = len([*log.glob("*.json")])
    info = {"commitInfo": {"timestamp": 1_700_000_000_000 + number * 3_600_000, "operation": "TEST"}}
    lines = (json.dumps(action) for action in [info, *actions])
    (log / f"{number:020d}.json").write_text("".join(f"{line}\n" for line in lines))
    return number


def adds(path):
    """Return the add action of each live file, by its path in the log, in the order of the log."""
    found: dict[str, dict] = {}
    for file in sorted(Path(path, "_delta_log").glob("*.json")):
        for action in map(json.loads, file.read_text().splitlines()):
            if "add" in action:
                found[action["add"]["path"]] = action["add"]
            if "remove" in action and action["remove"]["path"] not in {
                later["add"]["path"] for later in map(json.loads, file.read_text().splitlines()) if "add" in later
            }:
                found.pop(action["remove"]["path"], None)
    return found


def delete_rows(path, rows):
    """Delete rows of the table's files by vectors: `rows` are the numbers by the file's path or its place."""
    files = adds(path)
    protocol = {"protocol": {**FEATURES, "readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}}
    actions = [] if any("deletionVector" in add for add in files.values()) else [protocol]
    for which, numbers in rows.items():
        add = files[which] if isinstance(which, str) else [*files.values()][which]
        removed = {name: add[name] for name in ("path", "deletionVector", "size", "partitionValues") if name in add}
        actions.append(
            {"remove": {**removed, "deletionTimestamp": 0, "dataChange": True, "extendedFileMetadata": True}}
        )
        actions.append({"add": {**add, "deletionVector": vector(numbers), "dataChange": True}})
    return commit(path, actions)


def vector(numbers):
    """Return the deletion vector of these rows, whose bitmap is in the log itself."""
    data = struct.pack("<I", _MAGIC) + _bitmap(np.unique(numbers))
    padded = data + bytes(-len(data) % 4)
    text = base64.b85encode(padded).decode().translate(_TO_Z85)
    return {
        "storageType": "i",
        "pathOrInlineDv": text,
        "sizeInBytes": len(data),
        "cardinality": len(np.unique(numbers)),
    }


def _bitmap(numbers):
    """Return rows below 2^32 as one roaring bitmap with arrays and bitmaps of 2^16 rows."""
    high = np.unique(numbers >> 16)
    head = struct.pack("<QI", 1, 0) + struct.pack("<II", 12346, len(high))
    sizes, containers = b"", []
    for key in high:
        low = (numbers[numbers >> 16 == key] & 0xFFFF).astype("<u2")
        sizes += struct.pack("<HH", key, len(low) - 1)
        if len(low) <= 4096:
            containers.append(low.tobytes())
        else:
            bits = np.zeros(1 << 16, np.uint8)
            bits[low] = 1
            containers.append(np.packbits(bits, bitorder="little").tobytes())
    at = 8 + 8 * len(high)
    offsets = b""
    for container in containers:
        offsets += struct.pack("<I", at)
        at += len(container)
    return head + sizes + offsets + b"".join(containers)


def mapped_table(path, tables, names, mode, partition_by=()):
    """Write a table whose files have other column names, and ids: `names` are the stored ones, and `mode` name or id.

    Each of the `tables` becomes one file.
    """
    schema = tables[0].schema
    columns = []
    for i, field in enumerate(schema, 1):
        metadata = {"delta.columnMapping.id": i, "delta.columnMapping.physicalName": names[field.name]}
        columns.append({"name": field.name, "type": _TYPES[field.type], "nullable": True, "metadata": metadata})
    configuration = {"delta.columnMapping.mode": mode, "delta.columnMapping.maxColumnId": str(len(columns))}
    actions = [
        {"protocol": {**FEATURES, "readerFeatures": ["columnMapping"], "writerFeatures": ["columnMapping"]}},
        {"metaData": {
            "id": "mapped", "format": {"provider": "parquet", "options": {}}, "configuration": configuration,
            "schemaString": json.dumps({"type": "struct", "fields": columns}), "partitionColumns": list(partition_by),
        }},
    ]  # fmt: skip
    for i, table in enumerate(tables):
        values = {names[key]: table[key][0].as_py() for key in partition_by}
        rows = table.drop_columns(list(partition_by))
        fields = [
            pa.field(
                names[name], rows.schema.field(name).type,
                metadata={"PARQUET:field_id": str(schema.names.index(name) + 1)},
            )
            for name in rows.column_names
        ]  # fmt: skip
        file = Path(path, f"{i:05d}.parquet")
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_arrays(rows.columns, schema=pa.schema(fields)), file)
        texts = {key: None if value is None else str(value) for key, value in values.items()}
        add = {"path": file.name, "size": file.stat().st_size, "partitionValues": texts, "modificationTime": 0}
        actions.append({"add": {**add, "dataChange": True}})
    commit(path, actions)
