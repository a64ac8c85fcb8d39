"""Score every Delta table below a folder, and compare the rows with those of the table's own reader.

    python tests/faults/public_tables.py FOLDER

Meant for tables that others wrote, such as the test tables of delta-rs and delta-kernel-rs. Each is scored by a model
that returns its input, with all columns kept. Prints a line for each table: equal, refused or different; and JSON at
the end. Exits with 1 if a table differs, or if scorer ends in a traceback.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from onnx import TensorProto, helper

import scorer
from scorer.errors import ScorerError

_SCORE = "__score_"
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def models(folder):
    """Write two models that return their input, and return their paths: of numbers and of texts."""
    found = []
    for name, kind in (("numbers", TensorProto.DOUBLE), ("texts", TensorProto.STRING)):
        given, made = (helper.make_tensor_value_info(one, kind, ["N", 1]) for one in "xy")
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [given], [made])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, folder / f"{name}.onnx")
        found.append(folder / f"{name}.onnx")
    return found


def request(schema, numbers, texts):
    """Return a model and a feed that takes a column of the table; None if it has no such column."""
    for field in schema:
        kind = field.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return numbers, {"feed": {"x": [field.name]}}
        if pa.types.is_decimal(kind) or pa.types.is_boolean(kind):
            return numbers, {"feed": {"x": [field.name]}}
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return numbers, {"feed": {"x": f"{field.name}|epoch(ms)"}}
        if pa.types.is_string(kind):
            return texts, {"feed": {"x": [field.name]}, "on_null": "x=none"}
    return None


def rows_of(out, schema, names):
    """Return the rows of an output with the keys of its folders, as text, sorted."""
    rows = []
    for file in sorted(out.rglob("*.parquet")):
        part = pq.ParquetFile(file).read()
        for pair in file.parent.relative_to(out).parts:
            key, _, value = pair.partition("=")
            kind = schema.field(key).type
            one = pa.scalar(None, kind) if value == _HIVE_NULL else pa.scalar(unquote(value)).cast(kind)
            part = part.append_column(key, pa.repeat(one, part.num_rows))
        rows += map(repr, part.select(names).to_pylist())
    return sorted(rows)


def compare(table, folder, numbers, texts):
    """Return the outcome for a table, and what there is to say about it."""
    try:
        wanted = pa.table(DeltaTable(table).scan())
        schema = pa.schema(DeltaTable(table).schema().to_arrow())
    except Exception as error:  # noqa: BLE001 - whatever the library raises
        wanted, schema = None, None
        words = " ".join(str(error).split())[:90]
    chosen = (numbers, {}) if schema is None else request(schema, numbers, texts)
    if chosen is None:
        return "no column to feed", ", ".join(str(field.type) for field in schema)
    model, options = chosen
    out = Path(tempfile.mkdtemp(dir=folder)) / "out"
    try:
        options |= {"on_lossy": "warn", "cluster": "synchronous", "tune": False, "prefix": _SCORE}
        report = scorer.run(table, model, out, **options)
    except ScorerError as error:
        found = f"{error.what}: {error.found}" if hasattr(error, "found") else str(error)
        there = "its reader fails, too" if wanted is None else f"its reader has {wanted.num_rows} rows"
        return "refused", f"{' '.join(found.split())[:140]} ({there})"
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return "traceback", repr(error)[:200]
    if wanted is None:
        return "only scorer reads it", words
    same = rows_of(out, schema, wanted.column_names) == sorted(map(repr, wanted.to_pylist()))
    whole = scorer.verify(out, deep=True, rescore=20).whole
    counted = (report.counts.scored, report.counts.balanced) == (wanted.num_rows, True)
    words = f"{wanted.num_rows} rows, {report.counts.deleted} deleted"
    return ("equal" if same and whole and counted else "different"), words


def main():
    """Compare all tables below the folder in the arguments."""
    top = Path(sys.argv[1])
    outcomes = Counter()
    with tempfile.TemporaryDirectory() as folder:
        numbers, texts = models(Path(folder))
        for table in sorted({log.parent for log in top.rglob("_delta_log")}):
            outcome, words = compare(table, folder, numbers, texts)
            outcomes[outcome] += 1
            print(f"{outcome:20} {table.relative_to(top)}: {words}", flush=True)
    print(json.dumps(outcomes))
    return int(bool(outcomes["different"] + outcomes["traceback"]))


if __name__ == "__main__":
    sys.exit(main())
