"""Every bad request is refused with a hint and the right exit code, and nothing is written."""

from __future__ import annotations

import base64
import datetime as dt
import json
import os
import re
import shlex
import shutil
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor, make_tensor_value_info
from pyarrow.parquet import encryption
from support.damage import end_of_pages, flip
from support.runs import MODELS, ROOT, cli, command, plain, write

from scorer.cli.text import printable
from scorer.output.lock import Lock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GOLDEN = ROOT / "tests" / "golden" / "refusals"
FACTS = ("what", "where", "expected", "found", "hint")
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
HAS_CUDA = "CUDAExecutionProvider" in ort.get_available_providers()


@dataclass(frozen=True)
class Case:
    """One bad request, typed in a folder that holds in.parquet (id, f0..f27) and m.onnx (28 floats)."""

    name: str
    typed: str
    codes: str
    """The code of each problem, in the order of the text."""
    arrange: Callable[[Path], object] = lambda _: None
    exit_code: int = 3
    slow: bool = False
    """Run only once, because it waits for a timeout."""
    foreign: bool = False
    """`found` is a library's message, which changes with its version."""


def floats(count=28, rows=10, **more):
    """Return the columns id and f0..f27, and others."""
    numbers = {f"f{i}": np.arange(i, i + rows, dtype=np.float32) for i in range(count)}
    return {"id": np.arange(rows)} | numbers | more


def table(name="in.parquet", columns=None):
    """Arrange: a Parquet file."""
    return lambda at: write(at / name, floats() if columns is None else columns)


def text(name, content="this is plain text\n"):
    """Arrange: a file of text or bytes."""

    def put(at):
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return put


def without(name, start, stop):
    """Arrange: a file without the bytes between two fractions of its length."""

    def put(at):
        whole = (at / name).read_bytes()
        (at / name).write_bytes(whole[: int(len(whole) * start)] + whole[int(len(whole) * stop) :])

    return put


def delta_table(at):
    """Arrange: a Delta table with other columns."""
    write_deltalake(at / "t", pa.table({"id": [1]}))


def constrained_table(at):
    """Arrange: a Delta table with a constraint."""
    delta_table(at)
    DeltaTable(at / "t").alter.add_constraint({"positive": "id >= 0"})


def unsigned(at):
    """Arrange: in.parquet with columns that tables do not have."""
    more = {"u": np.arange(10, dtype=np.uint64), "clock": pa.array(range(10), pa.time64("us"))}
    write(at / "in.parquet", floats(**more))


def folder(name):
    """Arrange: an empty folder."""
    return lambda at: (at / name).mkdir(parents=True)


def damaged(at):
    """Arrange: in.parquet with a page that does not match its checksum."""
    pq.write_table(pa.table(floats()), at / "in.parquet", write_page_checksum=True)
    flip(at / "in.parquet", end_of_pages(at / "in.parquet", "f3") - 3)


class PlainKeys(encryption.KmsClient):
    """Keys that are stored as they are."""

    def __init__(self, _):
        super().__init__()

    def wrap_key(self, key, _):
        return base64.b64encode(key)

    def unwrap_key(self, wrapped, _):
        return base64.b64decode(wrapped)


def encrypted(*columns):
    """Arrange: a file in data/ with encrypted columns and a plain footer."""

    def put(at):
        configuration = encryption.EncryptionConfiguration(
            "footer", column_keys={"column": list(columns)}, plaintext_footer=True
        )
        keys = encryption.CryptoFactory(PlainKeys).file_encryption_properties(
            encryption.KmsConnectionConfig(), configuration
        )
        data = pa.table(floats())
        with pq.ParquetWriter(at / "data" / "9.parquet", data.schema, encryption_properties=keys) as writer:
            writer.write_table(data)

    return put


def link(name, target):
    """Arrange: a symbolic link."""
    return lambda at: (at / name).symlink_to(target)


def known(name):
    """Arrange: one of the small models of the tests as m.onnx."""
    return lambda at: shutil.copy(MODELS / name, at / "m.onnx")


def built(*shapes, kind=FLOAT, op="Identity", opset=21, names="xz", properties=None):
    """Arrange: m.onnx with one operator on inputs of these shapes."""

    def put(at):
        names_ = list(names[: len(shapes)])
        inputs = [make_tensor_value_info(n, kind, shape) for n, shape in zip(names_, shapes, strict=True)]
        graph = make_graph([make_node(op, names_, ["y"])], "graph", inputs, [make_tensor_value_info("y", kind, None)])
        proto = make_model(graph, ir_version=10, opset_imports=[make_opsetid("", opset)])
        onnx.helper.set_model_props(proto, properties or {})
        (at / "m.onnx").write_bytes(proto.SerializeToString())

    return put


def constant(at):
    """Arrange: a model without inputs."""
    value = make_tensor("value", FLOAT, [2], [1.0, 2.0])
    out = make_tensor_value_info("y", FLOAT, [2])
    graph = make_graph([make_node("Constant", [], ["y"], value=value)], "graph", [], [out])
    proto = make_model(graph, ir_version=10, opset_imports=[make_opsetid("", 21)])
    (at / "m.onnx").write_bytes(proto.SerializeToString())


def external(location):
    """Arrange: m.onnx with its weights in another file, which does not exist."""

    def put(at):
        proto = onnx.load(MODELS / "external.onnx", load_external_data=False)
        for entry in (entry for tensor in proto.graph.initializer for entry in tensor.external_data):
            entry.value = location if entry.key == "location" else entry.value
        (at / "m.onnx").write_bytes(proto.SerializeToString())

    return put


def engine(at):
    """Arrange: m.onnx as TensorRT compiled it, with its engine in another file."""
    x, y = (make_tensor_value_info(name, FLOAT, ["N", 28]) for name in ("input", "y"))
    own = {"embed_mode": 0, "ep_cache_context": "m.engine"}
    node = make_node("EPContext", ["input"], ["y"], domain="com.microsoft", **own)
    opsets = [make_opsetid("", 21), make_opsetid("com.microsoft", 1)]
    proto = make_model(make_graph([node], "graph", [x], [y]), ir_version=10, opset_imports=opsets)
    (at / "m.onnx").write_bytes(proto.SerializeToString())


def ran(typed):
    """Arrange: an earlier run that succeeded."""

    def run(_):
        code, _, stderr = cli(*shlex.split(typed), "--cluster", "synchronous", "--quiet")
        assert code == 0, stderr

    return run


def unfinished(at):
    """Arrange: a run that failed at a bad row and kept its staged parts."""
    known("gather.onnx")(at)
    write(at / "in.parquet", {"idx": [0, 1, 999]})
    code, _, stderr = cli(*shlex.split(RUN), "--cluster", "synchronous", "--quiet")
    assert code == 1, stderr
    assert list(at.glob("in.scored.parquet.scorer/work-*"))


def locked(at):
    """Arrange: a lock held by this process."""
    (at / "out.scorer").mkdir()
    Lock(at / "out.scorer" / "lock")._write()


def lose_a_part(at):
    """Arrange: the published output without its part."""
    (at / "in.scored.parquet" / "part-00000.parquet").unlink()


def without_proof(name):
    """Arrange: the published output without a file of its proof."""
    return lambda at: (at / "in.scored.parquet.scorer" / name).unlink()


def damaged_proof(name, content):
    """Arrange: a published output with another content in a file of its proof."""
    return every(ran(RUN), text(f"in.scored.parquet.scorer/{name}", content))


def every(*steps):
    """Arrange: all of these."""
    return lambda at: [step(at) for step in steps]


RUN = "run in.parquet --model m.onnx"
AGAIN = RUN + " --batch-rows 4 --overwrite"
DATA = "run data --model m.onnx"
ADDED = table("in.scored.parquet/mine.parquet")
FIRST, SECOND = table("data/1.parquet"), table("data/2.parquet", floats(27))
LISTS = pa.array([[1.0, 2.0, 3.0]] * 10, pa.list_(pa.float32(), 3))
MOMENTS = pa.array([dt.datetime(2026, 1, 31, tzinfo=dt.UTC)] * 10)
WORDS = ["ok"] * 10
EMPTY_TABLE = json.dumps({
    "format-version": 2, "table-uuid": "9c12d441-03fe-4693-9a96-a0705ddf69c1", "location": "/lake/orders",
    "last-sequence-number": 0, "last-updated-ms": 0, "last-column-id": 1, "current-schema-id": 0,
    "schemas": [{"schema-id": 0, "type": "struct",
                 "fields": [{"id": 1, "name": "f", "type": "int", "required": True}]}],
    "default-spec-id": 0, "partition-specs": [{"spec-id": 0, "fields": []}], "last-partition-id": 999,
    "default-sort-order-id": 0, "sort-orders": [{"order-id": 0, "fields": []}],
})  # fmt: skip
LONG = 300 * "x"
CSV = "f0,f1\n1,2\n"
PICKLE = b"\x80\x02csklearn.linear_model._logistic\nLogisticRegression\n)\x81."
FEW = {"a": [1.0, 2.0], "b": [3.0, 4.0]}
LETTERS = FEW | {"c": [5.0, 6.0]}

INPUT = [
    Case("input-missing", "run gone.parquet --model m.onnx", "input-not-found"),
    Case("input-folder-missing", "run no/such/gone.parquet --model m.onnx", "input-not-found"),
    Case("input-empty-name", "run '' --model m.onnx", "options", exit_code=2),
    Case("input-dangling-link", "run a.parquet --model m.onnx", "input-not-found", link("a.parquet", "nowhere")),
    Case("input-is-text", RUN, "unreadable-file", text("in.parquet"), foreign=True),
    Case("input-is-csv", "run in.csv --model m.onnx", "unreadable-file", text("in.csv", CSV)),
    Case("input-is-csv-by-its-bytes", RUN, "unreadable-file", text("in.parquet", "f0;f1\n1;2\n")),
    Case("input-is-a-model", "run in.txt --model m.onnx", "unreadable-file", text("in.txt", "tree\nversion=v4\n")),
    Case(
        "input-folder-of-csv", DATA, "input-not-found", every(*(text(f"data/{n}.csv", "a,b\n1,2\n") for n in range(5)))
    ),
    Case("input-name-too-long", f"run {LONG} --model m.onnx --output out", "input-not-found"),
    Case("input-name-too-long-for-output", f"run {LONG} --model m.onnx", "input-not-found plan"),
    Case("input-truncated", RUN, "unreadable-file", without("in.parquet", 0.5, 1), foreign=True),
    Case("input-pages-missing", RUN, "unreadable-file", without("in.parquet", 0.01, 0.3), foreign=True),
    Case("input-page-damaged", RUN, "unreadable-file", damaged),
    Case("input-columns-encrypted", DATA, "unreadable-file", every(FIRST, encrypted("id", "f3"))),
    Case("input-empty-file", RUN, "unreadable-file", text("in.parquet", ""), foreign=True),
    Case(
        "input-many-unreadable",
        DATA,
        "unreadable-file",
        every(text("data/1.parquet"), text("data/2.parquet")),
        foreign=True,
    ),
    Case("input-empty-folder", DATA, "input-not-found", folder("data")),
    Case("input-no-parquet", DATA, "input-not-found", every(text("data/a.csv"), text("data/_b.parquet"))),
    Case("input-second-empty", "run in.parquet data --model m.onnx --output out", "input-not-found", folder("data")),
    Case("input-no-match", "run 'data/*.parquet' --model m.onnx --output out", "input-not-found"),
    Case("input-url", "run xyz://host/data.parquet --model m.onnx --output out", "input"),
    Case("store-without-credentials", "run s3://bucket/data.parquet --model m.onnx --output out", "input"),
    Case(
        "input-url-with-password", "run s3://AKIA:wJal/K7@bucket/a --model m.onnx --output out", "options", exit_code=2
    ),
    Case("model-url-signed", "run in.parquet --model 'https://h/m.onnx?X-Amz-Signature=ab12'", "options", exit_code=2),
    Case("store-option-secret", f"{RUN} --store-option secret_access_key=wJal/K7", "options", exit_code=2),
    Case("store-option-unknown", f"{RUN} --store-option regionn=eu-west-1", "options", exit_code=2),
    Case("store-option-empty", f"{RUN} --store-option region", "options", exit_code=2),
    Case("store-option-not-a-switch", f"{RUN} --store-option allow_http=maybe", "options", exit_code=2),
    Case("store-option-of-a-folder", f"{RUN} --store-option s3://lake/orders:region=a", "options", exit_code=2),
    Case("forward-env-secret", f"{RUN} --cluster slurm --forward-env AWS_SESSION_TOKEN", "options", exit_code=2),
    Case("forward-env-without-queue", f"{RUN} --forward-env AWS_PROFILE", "options", exit_code=2),
    Case("input-twice", "run in.parquet ./in.parquet --model m.onnx --output out", "input"),
    Case("input-folder-twice", DATA, "input", every(table("data/a/1.parquet"), link("data/b", "a"))),
    Case("input-link-to-nowhere", DATA, "input", every(FIRST, link("data/b", "gone"))),
    Case("input-delta-below", DATA, "input", every(folder("data/inner/_delta_log"), FIRST)),
    Case("input-version-of-files", DATA + " --input-version 3", "input", FIRST),
    Case("input-version-no-time", DATA + " --input-version yesterday", "options", FIRST, exit_code=2),
    Case("input-delta", DATA, "input", every(folder("data/_delta_log"), FIRST), foreign=True),
    Case("input-iceberg", DATA, "input-not-found", every(text("data/metadata/v1.metadata.json", EMPTY_TABLE), FIRST)),
    Case("input-iceberg-catalog", "run iceberg://lake/orders --model m.onnx --output out", "input"),
    Case(
        "input-metadata-file",
        "run v1.metadata.json --model m.onnx",
        "options input-not-found",
        text("v1.metadata.json", EMPTY_TABLE),
    ),
    Case("input-hudi", DATA, "input", every(folder("data/.hoodie"), FIRST)),
    Case("input-unfinished-job", DATA, "input", every(folder("data/_temporary/0"), FIRST)),
    Case("input-other-keys", DATA, "input", every(table("data/day=1/a.parquet"), table("data/hour=2/a.parquet"))),
    Case("input-two-types", DATA, "input", every(FIRST, table("data/2.parquet", floats() | {"f3": WORDS}))),
    Case("input-column-missing-later", DATA, "input", every(FIRST, SECOND)),
    Case(
        "input-same-name-twice",
        RUN + " --feed x=a,b",
        "input",
        every(known("reduce_all.onnx"), table(columns=pa.table([[1.0], [2.0], [3.0]], names=["a", "b", "b"]))),
    ),
    Case("input-several-without-output", "run in.parquet b.parquet --model m.onnx", "options", table("b.parquet"), 2),
    Case("input-pattern-without-output", "run '*.parquet' --model m.onnx", "options", exit_code=2),
]

MODEL = [
    Case("model-missing", "run in.parquet --model gone.onnx", "model-not-found"),
    Case("model-name-too-long", f"run in.parquet --model {LONG}", "model-not-found"),
    Case("model-is-folder", "run in.parquet --model models", "model-not-found", folder("models")),
    Case("model-url", "run in.parquet --model xyz://host/m.onnx", "model-not-found"),
    Case("model-garbage", RUN, "model-load", text("m.onnx", bytes(range(256))), foreign=True),
    Case("model-truncated", RUN, "model-load", without("m.onnx", 0.5, 1), foreign=True),
    Case("model-empty", RUN, "model-load", text("m.onnx", "")),
    Case("model-is-the-data", "run in.parquet --model in.parquet", "model-load"),
    Case("model-is-a-pickle", RUN, "model-load", text("m.onnx", PICKLE)),
    Case("model-is-a-booster", RUN, "model-load", text("m.onnx", "tree\nversion=v4\n")),
    Case("model-is-a-saved-model", "run in.parquet --model m", "model-load", text("m/saved_model.pb", b"\x08\x01")),
    Case("model-data-missing", RUN, "model-not-found", external("gone.bin")),
    Case(
        "model-data-short",
        RUN,
        "model-load",
        every(external("w.bin"), text("w.bin", "short"), table(columns=floats(3))),
        foreign=True,
    ),
    Case("model-data-outside", RUN, "model", every(external("../x.bin"))),
    Case("model-data-absolute", RUN, "model", every(external("/etc/hostname"))),
    Case("model-engine-in-another-file", RUN, "model", engine),
    Case("model-unknown-operator", RUN, "model-load", built(["N", 28], op="Frobnicate"), foreign=True),
    Case("model-opset-of-the-future", RUN, "model-load", built(["N", 28], opset=99), foreign=True),
    Case("model-rank-three", RUN, "shape-mismatch", built(["N", 3, 4])),
    Case(
        "model-complex",
        RUN,
        "model-load unsupported-tensor",
        built(["N", 28], kind=onnx.TensorProto.COMPLEX64),
        foreign=True,
    ),
    Case("model-without-inputs", RUN, "unsupported-tensor", constant),
    Case(
        "model-two-fixed-batches",
        RUN,
        "unsupported-tensor",
        every(built([3, 1], [1, 1], op="MatMul", names="ab"), table(columns=FEW)),
    ),
    Case("model-feature-names-of-another-width", RUN, "shape-mismatch", built(["N", 3], properties={"features": "id"})),
    Case(
        "model-mixes-rows",
        RUN + " --by-position",
        "shape-mismatch",
        every(known("reduce_all.onnx"), table(columns=FEW)),
    ),
    Case("model-and-session", "run in.parquet --model gone.onnx --device gpu", "model-not-found options"),
]

BINDING = [
    Case("columns-not-the-features", RUN, "missing-columns", every(known("named3.onnx"), table(columns=FEW))),
    Case("columns-too-few", RUN, "shape-mismatch", table(columns=floats(27))),
    Case("columns-too-many", RUN, "shape-mismatch", table(columns=floats(29))),
    Case("columns-missing-of-several", RUN, "missing-columns", every(known("percolumn.onnx"), table(columns=FEW))),
    Case(
        "position-not-in-the-order-of-numbers",
        RUN,
        "binding",
        table(columns={n: [0.5] for n in sorted(floats()) if n != "id"}),
    ),
    Case("position-without-an-order", RUN, "binding", every(known("sum3.onnx"), table(columns=LETTERS))),
    Case("position-strict", RUN + " --by-position --strict", "plan", every(known("sum3.onnx"), table(columns=LETTERS))),
    Case("glob-strict", RUN + " --feed 'x=*' --strict", "plan", every(known("sum3.onnx"), table(columns=LETTERS))),
    Case("feed-unknown-column", RUN + " --feed input=f0..f26,f72", "missing-columns"),
    Case("feed-unknown-range", RUN + " --feed input=f1..f28", "missing-columns"),
    Case("feed-backward-range", RUN + " --feed input=f27..f0", "missing-columns"),
    Case("feed-unknown-pattern", RUN + " --feed 'input=g*'", "missing-columns"),
    Case("feed-unknown-tensor", RUN + " --feed inputs=f0..f27", "options", exit_code=2),
    Case("feed-without-tensor", RUN + " --feed f0..f27", "options", exit_code=2),
    Case("feed-without-columns", RUN + " --feed input=", "options", exit_code=2),
    Case("feed-too-few", RUN + " --feed input=f0..f9", "shape-mismatch"),
    Case("fetch-unknown-tensor", RUN + " --fetch scores", "options", exit_code=2),
    Case("fetch-element-unclosed", RUN + " --fetch 'score[0'", "options", exit_code=2),
    Case("fetch-element-outside", RUN + " --fetch 'score[1]'", "shape-mismatch"),
    Case("fetch-element-without-names", RUN + """ --fetch "score['late']" """, "options", exit_code=2),
    Case("fetch-topk-too-many", RUN + " --fetch 'score|topk(2)'", "shape-mismatch"),
    Case("batch-axis-unknown-tensor", RUN + " --batch-axis scores=1", "options", exit_code=2),
    Case("batch-axis-no-number", RUN + " --batch-axis score=last", "options", exit_code=2),
    Case("batch-axis-outside", RUN + " --batch-axis input=2", "shape-mismatch"),
    Case("batch-axis-without-rows", RUN + " --batch-axis score=1", "shape-mismatch"),
    Case("labels-no-such-file", RUN + " --labels names.txt", "options", exit_code=2),
    Case("labels-twice-the-same", RUN + " --labels cat,dog,cat", "options", exit_code=2),
    Case("labels-too-many", RUN + " --labels cat,dog", "options", exit_code=2),
    Case("labels-unknown-output", RUN + " --labels scores=cat,dog", "options", exit_code=2),
    Case(
        "labels-against-the-model",
        RUN + " --feed x=f0..f3 --labels a,b,c",
        "options",
        known("zipmap.onnx"),
        exit_code=2,
    ),
    Case("keep-unknown-column", RUN + " --keep id,f99", "missing-columns"),
    Case("keep-none-and-more", RUN + " --keep none,id", "missing-columns"),
    Case("strings-into-floats", RUN + " --feed input=f0..f26,s", "type-mismatch", table(columns=floats(s=WORDS))),
    Case(
        "one-converter-for-all-or-the-last",
        RUN + " --feed 'input=id,k|vocab(1, 2)'",
        "options",
        table(columns=floats(k=np.arange(10))),
        exit_code=2,
    ),
    Case("moment-into-floats", RUN + " --feed input=f0..f26,t", "type-mismatch", table(columns=floats(t=MOMENTS))),
    Case(
        "struct-into-floats",
        RUN + " --feed x=s",
        "type-mismatch",
        every(built(["N", 1]), table(columns={"s": pa.array([{"a": 1.0}])})),
    ),
    Case("list-of-wrong-width", RUN + " --feed input=e", "shape-mismatch", table(columns={"e": LISTS})),
    Case(
        "list-of-strings",
        RUN + " --feed x=e",
        "type-mismatch",
        every(built(["N", 2]), table(columns={"e": [["a", "b"]]})),
    ),
    Case(
        "numbers-into-text",
        RUN,
        "type-mismatch",
        every(known("strings.onnx"), table(columns={"color": [1, 2], "size": [1.0, 2.0]})),
    ),
    Case("numbers-into-truth", RUN, "type-mismatch", every(known("bool_in.onnx"), table(columns={"flag": [0, 1]}))),
    Case("on-null-unknown-tensor", RUN + " --on-null inputs=0", "options", exit_code=2),
    Case("on-null-rounded", RUN + " --on-null 16777217", "options", exit_code=2),
    Case("on-null-twice", RUN + " --on-null 0 --on-null nan", "options", exit_code=2),
    Case(
        "on-null-twice-for-a-tensor", RUN + " --on-null input=0 --on-null nan --on-null input=1", "options", exit_code=2
    ),
    Case("const-with-a-name", RUN + " --feed 'input=const(value=1)'", "options binding"),
    Case("on-null-no-policy", RUN + " --on-null skip", "options", exit_code=2),
    Case(
        "on-null-nan-for-int",
        RUN + " --on-null nan",
        "options",
        every(known("gather.onnx"), table(columns={"idx": [0, 1]})),
        2,
    ),
    Case(
        "nulls-beyond-the-budget",
        RUN,
        "binding",
        every(known("gather.onnx"), table(columns={"idx": [0, None, 1, None]})),
    ),
    Case("output-names-clash", RUN, "binding", table(columns=floats(score=np.arange(10)))),
    Case("output-names-clash-with-a-key", DATA, "binding", table("data/score=1/in.parquet")),
    Case("key-with-other-values", DATA, "input", table("data/id=3/in.parquet")),
    Case("output-names-clash-with-row-id", RUN + " --row-id", "binding", table(columns=floats(_row=np.arange(10)))),
    Case(
        "model-refuses-the-rows",
        RUN,
        "binding",
        every(
            built(["N", 2], ["M"], op="Add", names="ab"),
            table(columns={"a": pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float32(), 2)), "b": [1.0, 2.0, 3.0]}),
        ),
        foreign=True,
    ),
]

WHERE = [
    Case("base-not-above-the-input", RUN + " --base other", "input", arrange=text("other/readme.txt")),
    Case("where-not-understood", RUN + " --where 'id larger than 3'", "options", exit_code=2),
    Case("where-empty", RUN + " --where ''", "options", exit_code=2),
    Case("where-unquoted-text", RUN + " --where 'id = three'", "options", exit_code=2),
    Case("where-empty-list", RUN + " --where 'id in ()'", "options", exit_code=2),
    Case("where-and", RUN + " --where 'id > 3 and id < 5'", "options", exit_code=2),
    Case("where-unknown-column", RUN + " --where 'idx > 3'", "missing-columns"),
    Case("where-text-for-number", RUN + " --where \"id = '3'\"", "type-mismatch"),
    Case("where-fraction-for-int", RUN + " --where 'id < 2.5'", "type-mismatch"),
    Case("where-number-too-large", RUN + " --where 'id < 1e19'", "type-mismatch", foreign=True),
    Case("where-number-for-text", RUN + " --where 's = 3'", "type-mismatch", table(columns=floats(s=WORDS))),
    Case("where-no-date", RUN + " --where \"t > 'yesterday'\"", "type-mismatch", table(columns=floats(t=MOMENTS))),
    Case("where-on-a-list", RUN + " --where 'e = 1'", "type-mismatch", table(columns=floats(e=LISTS))),
]

PLACE = [
    Case("output-of-others", RUN + " --output out", "output-exists", text("out/notes.txt")),
    Case("output-of-others-parquet", RUN + " --output out", "output-exists", table("out/a.parquet")),
    Case("output-of-others-overwritten", RUN + " --output out --overwrite", "output-exists", text("out/notes.txt")),
    Case("output-of-others-parquet-overwritten", RUN + " --output out --overwrite", "output-exists", table("out/a.pq")),
    Case("output-of-others-empty-folder", RUN + " --output out --overwrite", "output-exists", folder("out/sub")),
    Case("output-with-added-files", RUN + " --batch-rows 4", "output-exists", every(ran(RUN), ADDED)),
    Case("output-with-added-files-same-request", RUN, "output-exists", every(ran(RUN), ADDED, lose_a_part)),
    Case("output-with-added-files-overwritten", AGAIN, "output-exists", every(ran(RUN), ADDED)),
    Case("output-without-proof", RUN, "output-exists", every(ran(RUN), without_proof("plan.json"))),
    Case("output-without-proof-overwritten", AGAIN, "output-exists", every(ran(RUN), without_proof("ledger.parquet"))),
    Case("output-with-proof-elsewhere", AGAIN, "output-exists", ran(RUN + " --work-dir work")),
    Case("output-of-another-request", RUN + " --batch-rows 4", "output-exists", ran(RUN)),
    Case("output-of-another-model", RUN, "output-exists", every(ran(RUN), built(["N", 28]))),
    Case("output-of-other-data", RUN, "output-exists", every(ran(RUN), table(columns=floats(rows=11)))),
    Case("output-lost-a-part", RUN, "commit", every(ran(RUN), lose_a_part), 5),
    Case("unfinished-other-run", RUN + " --batch-rows 4", "different-plan", unfinished),
    Case("output-is-file", RUN + " --output out", "output-exists", text("out")),
    Case("output-below-file", RUN + " --output notes/out", "plan", text("notes"), 3),
    Case("output-inside-input", DATA + " --output data/out", "output-inside-input", FIRST),
    Case("output-is-input", "run in.parquet --model m.onnx --output in.parquet", "output-inside-input"),
    Case("output-is-input-folder", DATA + " --output data/", "output-inside-input", FIRST),
    Case("output-around-input", "run data/1.parquet --model m.onnx --output data", "output-inside-input", FIRST),
    Case("output-is-the-model", RUN + " --output m.onnx", "output-exists"),
    Case("output-locked", RUN + " --output out", "output-locked", locked),
    Case("output-name-too-long", RUN + " --output " + LONG, "plan", exit_code=3),
    Case("work-dir-is-file", RUN + " --work-dir notes", "output-exists", text("notes")),
    Case(
        "work-dir-of-others",
        RUN + " --work-dir mine",
        "output-exists",
        every(text("mine/old/a"), text("mine/plan.json")),
    ),
    Case(
        "work-dir-of-another-output",
        RUN + " --work-dir work",
        "output-exists",
        ran(RUN + " --output a --work-dir work"),
    ),
    Case(
        "work-dir-of-another-unfinished-output",
        RUN + " --output b --work-dir in.scored.parquet.scorer",
        "output-exists",
        unfinished,
    ),
    Case("work-dir-inside-input", DATA + " --work-dir data/work", "output-inside-input", FIRST),
    Case("work-dir-is-output", RUN + " --output out --work-dir out", "plan"),
    Case("work-dir-inside-output", RUN + " --output out --work-dir out/work", "plan"),
]

OPTIONS = [
    Case("nothing-given", "run", "options options", exit_code=2),
    Case("model-not-given", "run in.parquet", "options", exit_code=2),
    Case("model-as-input", "run in.parquet m.onnx", "options", exit_code=2),
    Case("transform-with-a-dot", RUN + " --transform features.make", "options", exit_code=2),
    Case("unknown-flag", RUN + " --batchrows 4", "options", exit_code=2),
    Case("unknown-short-flag", RUN + " -x", "options", exit_code=2),
    Case("on-and-off", RUN + " --tune --prefix --no-tls --no-tune", "options", exit_code=2),
    Case("flag-without-value", RUN + " --batch-rows", "options", exit_code=2),
    Case("flag-twice", RUN + " --model gone.onnx", "options", exit_code=2),
    Case("flag-twice-by-its-short-form", "run in.parquet -m m.onnx --model gone.onnx", "options", exit_code=2),
    Case("flag-twice-among-letters", "run in.parquet -vm m.onnx -o a -ob", "options", exit_code=2),
    Case("short-flag-before-command", "-m m.onnx run in.parquet", "options", exit_code=2),
    Case("short-flag-without-value", "run in.parquet -m", "options", exit_code=2),
    Case("flags-twice", RUN + " --output=a --limit 3 --output b --limit 3 --output c", "options options", exit_code=2),
    Case("flag-twice-of-bench", "bench in.parquet --model m.onnx --turns 2 --turns 3", "options", exit_code=2),
    Case("flag-twice-of-verify", "verify out --work-dir a --work-dir b", "options", exit_code=2),
    Case("flag-twice-with-a-job-file", "run --config a.toml --config b.toml", "options", exit_code=2),
    Case("success-file-on-disk", RUN + " --output out --success-file", "options", exit_code=2),
    Case("sole-writer-on-disk", RUN + " --output out --sole-writer", "options", exit_code=2),
    Case("mode-without-table", RUN + " --mode append", "options", exit_code=2),
    Case("partition-by-without-table", RUN + " --partition-by day", "options", exit_code=2),
    Case("overwrite-of-table", RUN + " --format delta --overwrite", "options", exit_code=2),
    Case("success-file-in-table", RUN + " --format delta --success-file", "options", exit_code=2),
    Case("table-exists", RUN + " --format delta -o t", "output-exists", delta_table),
    Case("table-with-other-columns", RUN + " --format delta -o t --mode append", "plan", delta_table),
    Case(
        "table-without-partitions", RUN + " --format delta -o t --partition-by day", "output-exists plan", delta_table
    ),
    Case("table-beside-files", RUN + " --format delta -o t", "output-exists", text("t/notes.txt")),
    Case("table-with-constraint", RUN + " --format delta -o t --mode append --keep id", "plan", constrained_table),
    Case("table-replaced-by-column", RUN + " --format delta -o t --mode 'replace id = 3'", "plan"),
    Case("table-replaced-by-range", RUN + " --format delta -o t --mode 'replace day > 3'", "options", exit_code=2),
    Case("types-not-in-table", RUN + " --format delta -o t", "plan", unsigned),
    Case("flag-with-value", RUN + " --overwrite=yes", "options", exit_code=2),
    Case("unknown-command", "rnu in.parquet --model m.onnx", "options", exit_code=2),
    Case("forgotten-command", "in.parquet --model m.onnx", "options", exit_code=2),
    Case("flag-before-command", "--model m.onnx run in.parquet", "options", exit_code=2),
    Case("inspect-nothing", "inspect", "options", exit_code=2),
    Case("verify-too-much", "verify out more", "options", exit_code=2),
    Case("size-beyond-all", RUN + " --part-bytes " + 400 * "9", "options", exit_code=2),
    *(
        Case(f"bad-{flag}-{number}", f"{RUN} --{flag} {shlex.quote(value)}", "options", exit_code=2)
        for flag, values in {
            "limit": ["-1", "1.5"],
            "part-bytes": ["1KB", "huge"],
            "batch-rows": ["0", "many", "", "100000000000000000000"],
            "max-bad-rows": ["200%", "-1", "few", "nan%"],
            "max-nan-rows": ["101%"],
            "gate": ["mean(p", "psi(p, out) <= 0.2"],
            "gate-warn": ["meen(p) < 1"],
            "on-lossy": ["ignore"],
            "compression": ["lzma"],
            "format": ["orc"],
            "mode": ["merge", "append all", "replace"],
            "on-changed": ["keep"],
            "on-gone": ["rescore"],
            "file-rows": ["0"],
            "file-bytes": ["1KB"],
            "device": ["gpu", "cuda:x", ""],
            "cluster": ["spark", "threads"],
            "walltime": ["90", "00:00:00"],
            "adapt": ["3", "5:2", "0:0"],
            "memory": ["much"],
            "scheduler": [""],
            "workers": ["0"],
            "threads": ["-2"],
            "output": [""],
        }.items()
        for number, value in enumerate(values, 1)
    ),
    Case("many-bad-values", RUN + " --batch-rows 0 --cluster spark --max-bad-rows 200%", "options " * 3, exit_code=2),
    Case("limit-and-new-only", RUN + " --limit 5 --new-only", "options", exit_code=2),
    Case("on-changed-without-new-only", RUN + " --on-changed rescore --on-gone remove", "options " * 2, exit_code=2),
    Case("mode-and-new-only", RUN + " --format delta -o t --new-only --mode overwrite", "options", exit_code=2),
    Case("changed-and-new-only", RUN + " --new-only", "input-changed", every(ran(RUN + " --new-only"), table())),
    Case("file-rows-and-file-bytes", RUN + " --file-rows 5 --file-bytes 1MiB", "options", exit_code=2),
    Case("workers-without-processes", RUN + " --workers 2", "options", exit_code=2),
    Case("workers-with-scheduler", RUN + " --workers 2 --scheduler tcp://127.0.0.1:1", "options", exit_code=2),
    Case("scheduler-and-cluster", RUN + " --scheduler h:1 --cluster processes", "options", exit_code=2),
    Case("device-not-there", RUN + " --device cuda", "provider-unavailable"),
    Case("device-not-there-numbered", RUN + " --device tensorrt:1", "provider-unavailable"),
]

JOB = [
    Case("job-missing", "run --config gone.toml", "options", exit_code=2),
    Case("job-is-folder", "run --config .", "options", exit_code=2),
    *(
        Case(
            f"job-{name}",
            "run --config job.toml",
            codes,
            text("job.toml", content),
            exit_code,
            foreign=name == "syntax",
        )
        for name, codes, exit_code, content in [
            ("syntax", "options", 2, 'input = "in.parquet"\nmodel m.onnx\n'),
            ("not-text", "options", 2, b'input = "\xff\xfe"\n'),
            ("unknown-key", "options", 2, 'input = "in.parquet"\nmodel = "m.onnx"\nbatch-rows = 4\n'),
            ("unknown-table", "options", 2, 'input = "in.parquet"\nmodel = "m.onnx"\n[cluster.local]\nsize = 4\n'),
            ("text-for-number", "options", 2, 'input = "in.parquet"\nmodel = "m.onnx"\nbatch_rows = "many"\n'),
            ("text-for-truth", "options", 2, 'input = "in.parquet"\nmodel = "m.onnx"\nstrict = "yes"\n'),
            ("number-for-paths", "options", 2, 'input = 3\nmodel = "m.onnx"\n'),
            ("infinite-number", "options", 2, 'input = "in.parquet"\nmodel = "m.onnx"\nbatch_rows = inf\n'),
            ("feed-of-nothing", "options", 2, 'input = "in.parquet"\nmodel = "m.onnx"\nfeed = [[]]\n'),
            ("feed-tables", "options", 2, 'input = "in.parquet"\nmodel = "m.onnx"\n[[feed]]\ninput = "f0..f27"\n'),
            ("unknown-section", "options", 2, 'input = "in.parquet"\nmodel = "m.onnx"\n[scoring]\nbatch_rows = 4\n'),
            ("null-byte-output", "options", 2, 'input = "in.parquet"\nmodel = "m.onnx"\noutput = "o\\u0000"\n'),
            ("null-byte", "options", 2, 'input = "in.parquet"\nmodel = "m\\u0000.onnx"\n'),
            ("missing-files", "model-not-found input-not-found", 3, 'input = "a.parquet"\nmodel = "a.onnx"\n'),
        ]
    ),
]

OTHER = [
    Case("status-manifest-damaged", "status in.scored.parquet", "input", damaged_proof("manifest.json", "{")),
    Case("status-manifest-of-nothing", "status in.scored.parquet", "input", damaged_proof("manifest.json", "{}")),
    Case("status-plan-damaged", "status in.scored.parquet", "input", damaged_proof("plan.json", "{")),
    Case("output-manifest-damaged", RUN, "output-exists", damaged_proof("manifest.json", "{")),
    Case(
        "verify-manifest-damaged",
        "verify in.scored.parquet",
        "commit",
        damaged_proof("manifest.json", "{"),
        5,
        foreign=True,
    ),
    Case("verify-plan-damaged", "verify in.scored.parquet", "commit", damaged_proof("plan.json", "{"), 5),
    Case("verify-nothing", "verify out", "commit", exit_code=5),
    Case("verify-plain-folder", "verify out", "commit", text("out/notes.txt"), 5),
    Case("status-nothing", "status out", "input"),
    Case("status-nearly", "status scored", "input", text("scores.scorer/plan.json")),
    Case("status-proof", "status scores.scorer", "input", text("scores.scorer/plan.json")),
    Case("verify-nearly", "verify score", "commit", text("scores.scorer/plan.json"), 5),
    Case("status-plain-folder", "status out", "input", text("out/notes.txt")),
    Case("status-name-too-long", f"status {LONG}", "input"),
    Case("inspect-missing", "inspect gone.onnx", "model-not-found"),
    Case("inspect-garbage", "inspect m.onnx", "model-load", text("m.onnx"), foreign=True),
    Case("inspect-too-many-stages", "inspect m.onnx --stages 9", "model"),
    Case("inspect-one-stage", "inspect m.onnx --stages 1", "options", exit_code=2),
    Case("inspect-missing-input", "inspect m.onnx --input gone.parquet", "input-not-found"),
    Case("plan-missing", "plan gone.parquet --model gone.onnx", "model-not-found input-not-found"),
    Case(
        "everything-at-once",
        "run gone --model gone.onnx --where 'id larger' --output gone/out --device cuda:x",
        "model-not-found input-not-found options options output-inside-input",
    ),
    Case(
        "all-of-the-binding-at-once",
        RUN + " --feed inputs=f0 --fetch scores --keep f99 --on-null z=0 --where 'x > 3'",
        "missing-columns options options options missing-columns",
    ),
    Case("scheduler-malformed", RUN + " --scheduler nonsense", "cluster", exit_code=4, foreign=True),
    Case("scheduler-unknown-protocol", RUN + " --scheduler http://127.0.0.1:1", "cluster", exit_code=4, foreign=True),
    Case("scheduler-silent", RUN + " --scheduler tcp://127.0.0.1:1", "cluster", exit_code=4, foreign=True),
]


def joined(**columns):
    """Put a table for --join beside the input."""
    return lambda at: write(at / "t.parquet", columns)


TO_JOIN = RUN + " --join 't=t.parquet on id'"
JOIN = [
    Case("join-without-keys", RUN + " --join t=t.parquet", "options", exit_code=2),
    Case("join-name-with-a-dot", RUN + " --join 'a.t=t.parquet on id'", "options", exit_code=2),
    Case("join-twice-the-same-name", TO_JOIN + " --join 't=u.parquet on id'", "options", exit_code=2),
    Case("join-missing-table", TO_JOIN, "input-not-found", exit_code=3),
    Case("join-name-of-a-column", RUN + " --join 'id=t.parquet on id'", "options", joined(id=[1]), exit_code=2),
    Case(
        "join-unknown-keys",
        RUN + " --join 't=t.parquet on idd = od'",
        "missing-columns missing-columns",
        joined(id=[1]),
    ),
    Case("join-types-of-keys", TO_JOIN, "type-mismatch", joined(id=["1"])),
    Case("join-keys-twice", TO_JOIN + " --keep t.v", "input", joined(id=[7, 3, 7, 3], v=[1, 2, 3, 4])),
    Case("join-unknown-column", TO_JOIN + " --feed input=f0..f26,t.w", "missing-columns", joined(id=[1], v=[1.0])),
    Case(
        "join-field-of-a-struct-in-where",
        TO_JOIN + " --where 't.s.a > 1'",
        "type-mismatch",
        joined(id=[1], s=pa.array([{"a": 1}])),
    ),
    Case(
        "join-too-large",
        TO_JOIN + " --keep t.v --cluster slurm --memory 4096",
        "input",
        joined(id=np.arange(1000), v=np.arange(1000)),
    ),
]

CASES = [*JOIN, *INPUT, *MODEL, *BINDING, *WHERE, *PLACE, *OPTIONS, *JOB, *OTHER]
IN_A_PROCESS = {
    "input-missing", "input-truncated", "model-unknown-operator", "unknown-flag", "unknown-command",
    "everything-at-once", "verify-nothing", "model-refuses-the-rows", "input-columns-encrypted",
}  # fmt: skip


@pytest.fixture
def at(tmp_path, monkeypatch):
    """The folder of a request that succeeds, as the current folder."""
    write(tmp_path / "in.parquet", floats())
    shutil.copy(MODELS / "dense28.onnx", tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("scorer.cluster.connect.ANSWER_S", 1)
    return tmp_path


def snapshot(top):
    """Return every path below a folder with size, time and inode; a temporary file changes its folder's time."""
    paths = [top, *sorted(top.rglob("*"))]
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns, path.lstat().st_ino) for path in paths}


def steady(stderr, at, *, foreign=False):
    """Return the text without what changes from run to run and from version to version."""
    stderr = plain(stderr, at, at.parent)
    stderr = stderr.replace(f"process {os.getpid()} on {socket.gethostname()}", "process PID on HOST")
    return re.sub(r"(?m)^(  found:    ).+$", r"\1(a library's own words)", stderr, count=1) if foreign else stderr


def check_form(stderr, problems):
    """Assert that every problem has its facts and a hint, and that the text has no traceback."""
    assert "Traceback" not in stderr
    assert "_src/" not in stderr, "the path of a library's source file does not help a user"
    assert stderr.startswith("Error: ")
    for start in ("  where:    ", "  expected: ", "  found:    ", "Hint: "):
        assert sum(line.startswith(start) for line in stderr.splitlines()) == problems, start
    if problems > 1:
        assert stderr.startswith(f"Error: {problems} problems were found; nothing was written.\n\n1. ")
        assert all(f"\n\n{n}. " in stderr for n in range(1, problems + 1))


def check_data(stdout, stderr, codes):
    """Assert that the JSON has the same problems, each with all five facts."""
    document = json.loads(stdout)
    error = document.get("error", document)
    problems = error.get("problems", [error])
    assert [problem["code"] for problem in problems] == codes
    for problem in problems:
        assert all(problem[fact].strip() for fact in FACTS), problem
        assert printable(problem["what"]) in stderr


def check(case, at, typed):
    """Check exit code, form and facts, and that nothing was written; return the text."""
    before = snapshot(at)
    codes = case.codes.split()
    code, stdout, stderr = cli(typed[0], "--json", *typed[1:])
    assert code == case.exit_code, stderr
    check_data(stdout, stderr, codes)
    if not case.slow:
        code, stdout, stderr = cli(*typed)
        assert (code, stdout) == (case.exit_code, "")
    check_form(stderr, len(codes))
    assert snapshot(at) == before
    return stderr


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_request_is_refused_and_nothing_is_written(case, at, golden):
    if HAS_CUDA and case.name.startswith("device-not-there"):
        pytest.skip("the device is there")
    case.arrange(at)
    golden(f"refusals/{case.name}.txt", steady(check(case, at, shlex.split(case.typed)), at, foreign=case.foreign))


@pytest.mark.parametrize("case", [c for c in CASES if c.name in IN_A_PROCESS], ids=lambda case: case.name)
def test_refusal_shows_no_traceback_in_a_process_of_its_own(case, at):
    case.arrange(at)
    before = snapshot(at)
    done = command(*shlex.split(case.typed), cwd=at)
    assert (done.returncode, done.stdout) == (case.exit_code, "")
    assert "Traceback" not in done.stderr
    assert steady(done.stderr, at, foreign=case.foreign) == (GOLDEN / f"{case.name}.txt").read_text("utf-8")
    assert snapshot(at) == before


def test_the_request_without_a_mistake_succeeds(at):
    code, stdout, _ = cli(*shlex.split(RUN), "--cluster", "synchronous", "--quiet")
    assert code == 0
    assert stdout.startswith("10 rows in = 10 scored")


def test_every_golden_text_has_its_case():
    assert {path.stem for path in GOLDEN.iterdir()} == {case.name for case in CASES}


@pytest.mark.parametrize("escape", ["\x1b[31m", "\x1b]0;title\x07"])
def test_newlines_and_terminal_escapes_in_a_name_are_escaped(at, escape):
    there = "[" in escape  # with a bracket the name is a pattern, so the file must exist
    name = f"evil\nHint: delete everything{escape}\r.parquet"
    if there:
        text(name)(at)
    case = Case("", "", "unreadable-file" if there else "input-not-found")
    stderr = check(case, at, ["run", name, "--model", "m.onnx"])
    assert not set("\x1b\x07\r") & set(stderr)
    assert name.encode("unicode_escape").decode() in stderr


def test_a_terminal_escape_in_a_column_name_is_escaped(at):
    write(at / "in.parquet", {"a\x1b[31m\nb": [1.0]})
    stderr = check(Case("", "", "shape-mismatch"), at, shlex.split(RUN))
    assert "\x1b" not in stderr


def test_a_name_that_is_not_unicode_is_refused_like_any_other(at):
    done = command("run", os.fsdecode(b"caf\xe9.parquet"), "--model", "m.onnx", "--json", cwd=at)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    check_data(done.stdout, done.stderr, ["input-not-found"])


def test_a_pipe_as_input_is_refused_at_once(at):
    os.mkfifo(at / "pipe")
    done = command("run", "pipe", "--model", "m.onnx", cwd=at, timeout=10)
    assert done.returncode == 3, done.stderr
    check_form(done.stderr, 1)


def test_after_a_refused_scheduler_the_next_request_succeeds(at):
    assert cli(*shlex.split(RUN), "--scheduler", "nonsense")[0] == 4
    code, _, stderr = cli(*shlex.split(RUN), "--batch-rows", "4", "--cluster", "synchronous", "--quiet")
    assert code == 0, stderr
