"""A part is written completely and committed once, and its footer holds its proof."""

from __future__ import annotations

import errno
import os
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import strategies

from scorer.arrow import conform, decode_schema, digest, encode_schema
from scorer.dataset.cursors import InputCache
from scorer.dataset.quarantine import rows_at
from scorer.dataset.reader import Source
from scorer.errors import CommitError, OutputFull
from scorer.events import Counts, Proof
from scorer.output.place import Staging
from scorer.output.quarantine import write_quarantine
from scorer.output.writer import Encoded, read_proof, receipt_of, write_part
from scorer.storage.encoding import Storage
from scorer.storage.files import file_id, map_write_errors

PROOF = Proof(part=3, plan="p", model="m", counts=Counts(rows=3, scored=3), digests={"y": "d"}, quarantine="ü")


@pytest.fixture
def staging(tmp_path):
    place = Staging(root=tmp_path / "work")
    for folder in (place.tmp, place.parts, place.quarantine):
        folder.mkdir(parents=True)
    return place


def table(*values):
    return pa.table({"y": pa.array(values or [1.0, 2.0, None], pa.float32())})


def write(staging, values=None, attempt="a", name="part-00003.parquet", codec="zstd", dictionaries=(), proof=PROOF):
    write_part(
        staging,
        name,
        attempt,
        Encoded.of(
            table() if values is None else values,
            Storage(codec=codec, row_group_rows=1 << 20, dictionaries=dictionaries),
        ),
        proof,
    )
    return staging.parts / name


# Digests

KINDS = {
    "float": (pa.float32(), st.floats(width=32)),
    "double": (pa.float64(), st.floats()),
    "int64": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "uint8": (pa.uint8(), st.integers(0, 255)),
    "bool": (pa.bool_(), st.booleans()),
    "string": (pa.string(), strategies.TEXT),
    "list": (pa.list_(pa.float32()), st.lists(st.none() | st.floats(width=32), max_size=3)),
    "fixed list": (pa.list_(pa.float32(), 2), st.lists(st.floats(width=32), min_size=2, max_size=2)),
    "list of texts": (pa.list_(pa.string()), st.lists(strategies.TEXT, max_size=3)),
}


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_a_digest_does_not_depend_on_chunks_or_slices(name, data):
    kind, values = KINDS[name]
    column, rows = data.draw(strategies.chunked(kind, values))
    assert digest(column) == digest(pa.array(rows, kind))
    start = data.draw(st.integers(0, len(rows)))
    assert digest(column.slice(start)) == digest(pa.array(rows[start:], kind))


@settings(max_examples=60)
@given(rows=st.lists(st.none() | strategies.TEXT, max_size=20), cut=st.integers(0, 20))
def test_a_digest_does_not_depend_on_the_encoding(rows, cut):
    encoded = pa.chunked_array([pa.array(part, pa.string()).dictionary_encode() for part in (rows[:cut], rows[cut:])])
    assert digest(encoded) == digest(pa.array(rows, pa.string()))


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_a_digest_changes_with_any_value_null_or_order(name, data):
    kind, values = KINDS[name]
    one, two = (data.draw(st.lists(st.none() | values, max_size=8)) for _ in range(2))
    arrays = [pa.array(rows, kind) for rows in (one, two)]
    if repr(one) != repr(two):  # repr tells -0.0 from 0.0
        assert digest(arrays[0]) != digest(arrays[1])


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (["ab", "c"], ["a", "bc"]), (["", None], [None, ""]), ([[1], [2, 3]], [[1, 2], [3]]), ([[], None], [None, []]),
        ([0.0], [-0.0]), ([[]], [None]), ([["a", "b"]], [["ab", ""]]), ([], [None]),
    ],
)  # fmt: skip
def test_values_that_look_alike_have_digests_of_their_own(one, two):
    kind = pa.array(one).type if one else pa.null()
    assert digest(pa.array(one, kind)) != digest(pa.array(two, kind))


def test_nan_scores_have_a_digest():
    assert digest(pa.array([float("nan")])) == digest(pa.chunked_array([[float("nan")]]))


# Schema


def test_the_planned_schema_is_what_is_written():
    field = pa.field("y", pa.float32(), nullable=False, metadata={"unit": "m"})
    got = conform(table(1.0, 2.0), pa.schema([field], {"geo": "x"}))
    assert got.schema.equals(pa.schema([field], {"geo": "x"}), check_metadata=True)


def test_nulls_where_the_schema_has_none_are_refused():
    with pytest.raises(CommitError, match="'y' has nulls"):
        conform(table(1.0, None), pa.schema([pa.field("y", pa.float32(), nullable=False)]))


def test_columns_are_put_in_the_planned_order_and_encoding():
    schema = pa.schema([("b", pa.dictionary(pa.int32(), pa.string())), ("a", pa.int64())])
    got = conform(pa.table({"a": [1], "b": ["x"]}), schema)
    assert got.schema.equals(schema)
    assert got.to_pylist() == [{"b": "x", "a": 1}]


@pytest.mark.parametrize(
    "schema",
    [
        pa.schema([]),
        pa.schema([pa.field("ü", pa.list_(pa.float32(), 3), nullable=False, metadata={"k": "v"})], {"a": "b"}),
        pa.schema([("t", pa.timestamp("ns", "Europe/Berlin")), ("d", pa.dictionary(pa.int8(), pa.string()))]),
    ],
)  # fmt: skip
def test_a_schema_comes_back_from_its_text(schema):
    assert decode_schema(encode_schema(schema)).equals(schema, check_metadata=True)


# Parts


def test_a_proof_comes_back_from_the_footer(staging):
    path = write(staging)
    assert read_proof(path) == PROOF
    receipt = receipt_of(staging, path.name)
    assert (receipt.proof, receipt.name, receipt.size) == (PROOF, path.name, path.stat().st_size)
    assert Proof.from_json(PROOF.to_json()) == PROOF


def test_a_part_holds_the_table_and_its_metadata(staging):
    values = table().replace_schema_metadata({"geo": "{}"})
    path = write(staging, values)
    got = pq.ParquetFile(path)
    assert got.read().to_pylist() == values.to_pylist()
    assert got.schema_arrow.metadata[b"geo"] == b"{}"
    assert list(staging.tmp.iterdir()) == []


def test_a_part_without_rows_is_a_file(staging):
    path = write(staging, table().slice(0, 0))
    assert pq.ParquetFile(path).metadata.num_rows == 0
    assert pq.read_schema(path).names == ["y"]


def test_a_foreign_file_among_the_parts_is_refused(staging):
    pq.write_table(table(), staging.parts / "x.parquet")
    assert read_proof(staging.parts / "x.parquet") is None
    with pytest.raises(CommitError, match="did not write this staged part"):
        receipt_of(staging, "x.parquet")


@pytest.mark.parametrize("codec", ["none", "snappy", "zstd", "lz4", "gzip", "brotli"])
def test_the_codec_and_the_dictionaries_are_as_asked(staging, codec):
    values = pa.table({"y": ["a", "b"] * 50, "x": [1, 2] * 50, "n": [0.5, 1.5] * 50})
    group = pq.ParquetFile(write(staging, values, codec=codec, dictionaries=("y", "x"))).metadata.row_group(0)
    columns = [group.column(i) for i in range(3)]
    assert [c.has_dictionary_page for c in columns] == [True, True, False]
    assert {c.compression for c in columns} == {"UNCOMPRESSED" if codec == "none" else codec.upper()}


def test_a_damaged_page_is_noticed(staging):
    path = write(staging, pa.table({"y": np.arange(1000)}), codec="none")
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises((OSError, pa.ArrowException), match=r"(?i)crc|checksum"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


def no_links(code):
    def link(source, target):
        raise OSError(code, os.strerror(code), source, None, target)

    return link


@pytest.mark.parametrize("code", [None, errno.EPERM, errno.ENOTSUP, errno.EMLINK])
def test_the_second_commit_leaves_the_first_in_place(staging, monkeypatch, code):
    if code:
        monkeypatch.setattr(os, "link", no_links(code))
    path = write(staging, table(1.0), attempt="first")
    before = (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
    write(staging, table(2.0), attempt="second")
    assert (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) == before
    assert list(staging.tmp.iterdir()) == []
    assert [p.name for p in staging.parts.iterdir()] == [path.name]


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.EIO, errno.EXDEV, errno.ESTALE])
def test_another_failure_of_link_is_a_commit_error(staging, monkeypatch, code):
    monkeypatch.setattr(os, "link", no_links(code))
    with pytest.raises(CommitError, match="cannot be written"):
        write(staging)
    assert list(staging.parts.iterdir()) == []


def test_a_part_in_a_folder_is_committed_there(staging):
    (staging.parts / "k=1").mkdir()
    assert write(staging, name="k=1/part-00003.parquet").exists()


def test_a_missing_folder_is_a_commit_error(staging):
    with pytest.raises(CommitError, match="No such file"):
        write(staging, name="k=2/part-00003.parquet")


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, OutputFull), (errno.EDQUOT, OutputFull), (errno.EACCES, OutputFull),
                       (errno.EROFS, OutputFull), (errno.EIO, CommitError), (None, CommitError)],
)  # fmt: skip
def test_an_os_error_becomes_a_commit_error(code, kind):
    error = OSError(code, "reason") if code else OSError("odd")
    with pytest.raises(CommitError, match="/out") as caught, map_write_errors("/out"):
        raise error
    assert type(caught.value) is kind
    assert caught.value.__cause__ is error


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False, text=True
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_reported_and_leaves_no_partial_file(small_disk):
    staging = Staging(root=small_disk / "work")
    for folder in (staging.tmp, staging.parts):
        folder.mkdir(parents=True)
    good = write(staging, table(1.0), name="part-00000.parquet")
    noise = np.random.default_rng(0).standard_normal(200_000)
    with pytest.raises(OutputFull, match="No space left"):
        write(staging, pa.table({"y": noise}))
    assert list(staging.tmp.iterdir()) == []
    assert [p.name for p in staging.parts.iterdir()] == [good.name]
    assert write(staging, table(2.0)).exists()


def test_a_write_that_fails_for_another_reason_leaves_no_file(staging):
    with pytest.raises(Exception, match=r"(?i)codec|compression"):
        write(staging, codec="no such codec")
    assert list(staging.tmp.iterdir()) == []


# Quarantine


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.parquet"
    values = pa.table({
        "id": range(500), "text": [f"t{i % 7}" for i in range(500)], "tags": [[i] * (i % 3) for i in range(500)],
        "_error": ["old"] * 500, "color": pa.array(["r", "g"] * 250).dictionary_encode(),
    })  # fmt: skip
    pq.write_table(values, path, row_group_size=120)
    return Source(id=file_id(str(path)), start=100, stop=400)


@pytest.mark.parametrize("rows", [[100], [119, 120, 121], [100, 239, 240, 360, 399], list(range(100, 400))])
def test_bad_rows_keep_all_columns_and_say_why(staging, source, rows):
    why = [("feed" if row % 2 else "infer", f"row {row}") for row in rows]
    bad = [(reason, stage, source.path, row) for row, (stage, reason) in zip(rows, why, strict=True)]
    name = write_quarantine(staging, "k=1/part-00001.parquet", "abc", rows_at(source, rows, InputCache())[0], bad)
    assert name == "k=1__part-00001.abc.parquet"
    got = pq.ParquetFile(staging.quarantine / name).read()
    assert got.column_names == ["id", "text", "tags", "color", "_error", "_stage", "_file", "_row"]
    assert got.to_pylist() == [
        {"id": row, "text": f"t{row % 7}", "tags": [row] * (row % 3), "color": "rg"[row % 2], "_error": reason,
         "_stage": stage, "_file": source.path, "_row": row}
        for row, (stage, reason) in zip(rows, why, strict=True)
    ]  # fmt: skip
    assert list(staging.tmp.iterdir()) == []
