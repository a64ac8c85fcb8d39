"""Copied columns have the same values and bytes, and a checksum on every page; all others are encoded again."""

from __future__ import annotations

import datetime as dt
import decimal
import os
import random
import shutil
import time
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.damage import end_of_pages, flip
from support.runs import MODELS, cli, read
from support.strategies import TEXT

import scorer
from scorer.arrow import conform
from scorer.dataset import cursors, reader
from scorer.errors import ScorerError
from scorer.model.protobuf import inspect_model
from scorer.storage import _pages as pages
from scorer.storage import _thrift as thrift
from scorer.storage import copying
from scorer.storage.copying import CopiedGroups, FileForm, copyable
from scorer.storage.encoding import Storage
from scorer.storage.files import file_id

MODEL = MODELS / "named3.onnx"
PLAIN = Storage(codec="snappy", row_group_rows=1 << 20)
SCORE = pa.field("score", pa.float32())
WRITERS = (
    {},
    {"use_dictionary": False, "compression": "none"},
    {"data_page_version": "2.0", "compression": "zstd", "write_page_index": True},
    {"data_page_size": 64, "max_rows_per_page": 3, "compression": "gzip"},
    {"compression": "brotli", "write_page_checksum": True},
    {"compression": "lz4", "use_byte_stream_split": ["f"], "use_dictionary": ["t"]},
    {"use_dictionary": False, "column_encoding": {"i": "DELTA_BINARY_PACKED", "t": "DELTA_BYTE_ARRAY"}},
    {"write_statistics": False, "version": "1.0"},
)


def columns(rows, seed=0):
    """Return one column of each type, with nulls."""
    rng = random.Random(seed)

    def some(make, kind):
        return pa.array([None if rng.random() < 0.2 else make() for _ in range(rows)], kind)

    words = ["", "a", "Größe", "x" * 40]
    return pa.table(
        {
            "i": some(lambda: rng.randrange(-(2**63), 2**63), pa.int64()),
            "u": some(lambda: rng.randrange(2**32), pa.uint32()),
            "f": some(lambda: rng.choice([rng.random(), float("nan"), -0.0]), pa.float32()),
            "d": some(rng.random, pa.float64()),
            "b": some(lambda: rng.random() < 0.5, pa.bool_()),
            "t": some(lambda: rng.choice(words), pa.string()),
            "raw": some(lambda: rng.randbytes(rng.randrange(9)), pa.binary()),
            "fixed": some(lambda: rng.randbytes(3), pa.binary(3)),
            "money": some(lambda: decimal.Decimal(rng.randrange(10**6)) / 100, pa.decimal128(12, 2)),
            "when": some(lambda: dt.datetime(2020, 1, 1, tzinfo=dt.UTC), pa.timestamp("us", "Europe/Berlin")),
            "day": some(lambda: dt.date(2020, 1, rng.randrange(1, 28)), pa.date32()),
            "cat": some(lambda: rng.choice(words), pa.string()).dictionary_encode(),
            "dots.in.name": some(rng.random, pa.float64()),
            "list": some(lambda: [rng.random()] * rng.randrange(3), pa.list_(pa.float32())),
            "deep": some(lambda: {"x": [{"y": rng.choice(words)}], "z": 1}, DEEP),
            "map": some(lambda: [("k", rng.random())], pa.map_(pa.string(), pa.float64())),
        }
    )


DEEP = pa.struct({"x": pa.list_(pa.struct({"y": pa.string()})), "z": pa.int16()})


def copied(source, target, groups=None):
    """Copy all columns of row groups into a file with a score, and return that file as a table."""
    with pq.ParquetFile(source) as parquet:
        metadata, schema = parquet.metadata, parquet.schema_arrow
        form = FileForm.of(schema.append(SCORE), PLAIN)
        found = copyable(form, parquet, schema.names)
    groups = tuple(range(metadata.num_row_groups)) if groups is None else groups
    rows = sum(metadata.row_group(i).num_rows for i in groups)
    scores = pa.table({"score": np.arange(rows, dtype=np.float32)})
    unlike = [name for name in schema.names if name not in found]
    own = pq.ParquetFile(source).read_row_groups(groups, columns=unlike) if unlike else pa.table({})
    table = pa.table(dict(zip([*unlike, "score"], [*own.columns, *scores.columns], strict=True)))
    taken = CopiedGroups(file_id(str(source)), metadata, groups, found)
    table = conform(table, pa.schema([field for field in form.schema if field.name not in found]))
    copying.write(target, table, form, [taken], {b"scorer": b"x" * 300})
    return found, pq.read_table(target, page_checksum_verification=True)


def checksums(path):
    """Return whether every page of a file has a checksum."""
    metadata = pq.read_metadata(path)
    chunks = [
        metadata.row_group(g).column(c) for g in range(metadata.num_row_groups) for c in range(metadata.num_columns)
    ]
    with pages.Pages.opened(file_id(str(path))) as source:
        found = (source.chunk(copying.start_of(one), one.total_compressed_size, one.compression) for one in chunks)
        return not any(page.added for windows in found for some in windows for page in some)


@pytest.mark.parametrize("options", WRITERS, ids=range(len(WRITERS)))
def test_every_type_comes_out_as_it_went_in_however_it_was_written(options, tmp_path):
    table = columns(700)
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=256, **options)
    found, got = copied(tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert set(found) == set(table.column_names)
    assert got.drop_columns("score").equals(table) or _same(got.drop_columns("score"), table)
    assert got["score"].to_pylist() == list(range(700))
    assert checksums(tmp_path / "out.parquet")
    before, after = pq.read_metadata(tmp_path / "in.parquet"), pq.read_metadata(tmp_path / "out.parquet")
    for g in range(before.num_row_groups):
        for c in range(before.num_columns):
            one, other = before.row_group(g).column(c), after.row_group(g).column(c)
            assert one.encodings == other.encodings
            assert one.compression == other.compression
            assert (one.statistics is None) == (other.statistics is None)
            assert one.statistics is None or one.statistics.null_count == other.statistics.null_count
            assert one.statistics is None or one.statistics.has_min_max == other.statistics.has_min_max
            limits = [(s.min_raw, s.max_raw) for s in (one.statistics, other.statistics) if s and s.has_min_max]
            assert len(set(limits)) <= 1


def _same(one, other):
    """Return whether two tables are equal, with NaN equal to NaN."""
    return all(
        repr(one[name].combine_chunks().to_pylist()) == repr(other[name].combine_chunks().to_pylist())
        for name in other.column_names
    )


@given(
    values=st.lists(st.none() | TEXT, min_size=1, max_size=60),
    group=st.integers(1, 30),
    page=st.integers(1, 10),
    window=st.integers(1, 200),
    codec=st.sampled_from(["none", "snappy", "zstd"]),
)
@settings(max_examples=60)
def test_pages_may_be_larger_than_the_window_and_lie_across_its_edges(
    values, group, page, window, codec, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("pages")
    table = pa.table({"t": pa.array(values, pa.string()), "l": [[v] for v in values]})
    pq.write_table(table, folder / "in.parquet", row_group_size=group, max_rows_per_page=page, compression=codec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "WINDOW", window)
        patch.setattr(pages, "_BUFFERS", type("Fresh", (), {})())
        _, got = copied(folder / "in.parquet", folder / "out.parquet")
    assert got.drop_columns("score").equals(table)


def test_some_row_groups_of_a_file(tmp_path):
    table = columns(700)
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=100)
    _, got = copied(tmp_path / "in.parquet", tmp_path / "out.parquet", (2, 3, 6))
    expected = pa.concat_tables([table.slice(200, 200), table.slice(600, 100)])
    assert _same(got.drop_columns("score"), expected)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (pa.field("v", pa.int32()), pa.field("v", pa.int64())),
        (pa.field("v", pa.int64(), nullable=False), pa.field("v", pa.int64())),
        (pa.field("v", pa.timestamp("ms")), pa.field("v", pa.timestamp("us"))),
        (pa.field("v", pa.timestamp("us")), pa.field("v", pa.timestamp("us", "UTC"))),
        (pa.field("v", pa.list_(pa.int64())), pa.field("v", pa.list_(pa.field("element", pa.int64(), nullable=False)))),
        (pa.field("v", pa.struct({"a.b": pa.int64()})), pa.field("v", pa.struct({"a.b": pa.int64()}))),
        (pa.field("v", pa.decimal128(9, 2)), pa.field("v", pa.decimal128(9, 3))),
        (pa.field("v", pa.binary()), pa.field("v", pa.string())),
    ],
    ids=str,
)
def test_a_column_of_another_meaning_is_not_copied(theirs, ours, tmp_path):
    pq.write_table(pa.schema([theirs]).empty_table(), tmp_path / "in.parquet")
    with pq.ParquetFile(tmp_path / "in.parquet") as parquet:
        assert copyable(FileForm.of(pa.schema([ours]), PLAIN), parquet, ["v"]) == {}


def test_old_times_of_spark_are_not_copied(tmp_path):
    table = pa.table({"v": pa.array([1, 2], pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "in.parquet", use_deprecated_int96_timestamps=True)
    with pq.ParquetFile(tmp_path / "in.parquet", coerce_int96_timestamp_unit="us") as parquet:
        assert copyable(FileForm.of(table.schema, PLAIN), parquet, ["v"]) == {}


def kept_table(rows=40_000, seed=0):
    """Return three floats for the model, and columns to keep."""
    rng = np.random.default_rng(seed)
    fed = {name: rng.random(rows, np.float32) for name in sample_names()}
    words = pa.array([f"row {i} of {i % 97}" for i in range(rows)])
    return pa.table({"id": np.arange(rows), **fed, "words": words, "lists": [[i, i] for i in range(rows)]})


def sample_names():
    return inspect_model(str(MODEL)).feature_names


def run(source, output, **asked):
    return scorer.run(source, MODEL, output, **{"threads": 1, "tune": False} | asked)


@pytest.mark.parametrize("groups", [40_000, 20_000, 17_000])
def test_a_run_copies_what_it_need_not_decode(groups, tmp_path, monkeypatch):
    table = kept_table()
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=groups)
    asked: list[list[str]] = []
    plain = cursors.decoded
    monkeypatch.setattr(
        reader, "decoded", lambda p, g, names, there: asked.append(list(names)) or plain(p, g, names, there)
    )
    plan = scorer.prepare(tmp_path / "in.parquet", MODEL, tmp_path / "out", tune=False, threads=1)
    assert {"id", "words", "lists"} <= set(plan.check().storage.copied)
    assert "copied as stored" in str(plan)
    scorer.execute(plan)
    assert asked
    assert all(set(names) == set(sample_names()) for names in asked)
    got = read(tmp_path / "out")
    assert got.select(table.column_names).equals(table)
    run(tmp_path / "in.parquet", tmp_path / "other", compression="zstd")  # decodes and encodes all
    assert got.equals(read(tmp_path / "other"))
    assert all(checksums(path) for path in (tmp_path / "out").glob("*.parquet"))


def test_bad_rows_make_a_part_that_is_read_again_and_encoded(tmp_path):
    table = kept_table()
    holes = pa.array([None if i % 1_000 == 7 else i / 7 for i in range(table.num_rows)], pa.float32())
    table = table.set_column(1, table.schema.names[1], holes)
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=20_000)
    report = run(tmp_path / "in.parquet", tmp_path / "out", max_bad_rows="1%", on_null=("error",), part_bytes="1MiB")
    assert report.counts.quarantined == 40
    good = holes.is_valid()
    got = read(tmp_path / "out")
    assert got.select(table.column_names).equals(table.filter(good))
    run(tmp_path / "in.parquet", tmp_path / "other", max_bad_rows="1%", on_null=("error",), compression="zstd")
    assert got.equals(read(tmp_path / "other"))


def test_files_that_store_a_column_in_another_way_are_encoded(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    table = kept_table(20_000)
    pq.write_table(table, source / "0.parquet")
    required = pa.schema([f.with_nullable(f.name != "words") for f in table.schema])
    pq.write_table(table.cast(required), source / "1.parquet")
    pq.write_table(table, source / "2.parquet", row_group_size=3_000)
    run(source, tmp_path / "out")
    got = read(tmp_path / "out")
    assert got.select(table.column_names).equals(pa.concat_tables([table] * 3))


def test_damage_to_a_copied_page_is_found_by_verify(tmp_path):
    pq.write_table(kept_table(), tmp_path / "in.parquet", use_dictionary=False, compression="none")
    run(tmp_path / "in.parquet", tmp_path / "out")
    (part, *_) = (tmp_path / "out").glob("*.parquet")
    assert cli("verify", tmp_path / "out", "--deep")[0] == 0
    flip(part, end_of_pages(part, "id") - 3)
    code, words = cli("verify", tmp_path / "out", "--deep")[:2]
    assert code != 0
    assert "cannot be read" in words


@pytest.mark.parametrize("column", ["id", "words", "lists.list.element"])
def test_a_copied_page_with_a_wrong_checksum_fails_its_part(column, tmp_path):
    source = tmp_path / "in.parquet"
    pq.write_table(kept_table(), source, compression="none", write_page_checksum=True, row_group_size=20_000)
    flip(source, end_of_pages(source, column, 1) - 3)
    with pytest.raises(ScorerError, match="nothing was published") as error:
        run(source, tmp_path / "out", part_bytes="4MiB")
    name = column.partition(".")[0]
    assert error.value.found == f"a page is damaged: another checksum for a page of column {name!r} in row group 1"
    assert not (tmp_path / "out").exists()


def test_a_tensor_column_has_the_path_that_its_schema_says(tmp_path):
    kind = pa.fixed_shape_tensor(pa.float32(), [2])
    tensors = pa.ExtensionArray.from_storage(kind, pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)))
    pq.write_table(pa.table({"emb": tensors}), tmp_path / "in.parquet")
    found, got = copied(tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert set(found) == {"emb"}
    assert got["emb"].combine_chunks().equals(tensors)
    paths = [
        pq.read_metadata(tmp_path / name).row_group(0).column(0).path_in_schema
        for name in ("in.parquet", "out.parquet")
    ]
    assert paths == ["emb.list.element"] * 2


def header(*more):
    """Return the header of an uncompressed data page of two values, with other or additional fields."""
    head = thrift.struct([(1, thrift.I32, thrift.number(2)), (2, thrift.I32, thrift.number(0))])
    fields = [(1, thrift.I32, thrift.number(0)), (2, thrift.I32, thrift.number(8)), (3, thrift.I32, thrift.number(8)),
              (5, thrift.STRUCT, head)]  # fmt: skip
    return thrift.struct(sorted({field[0]: field for field in (*fields, *more)}.values()))


LONG_LIST = bytes([0xF0 | thrift.DOUBLE]) + b"\xff" * 8 + b"\x3f"  # of 2 ** 62 fractions


@pytest.mark.parametrize(
    "more",
    [(9, thrift.I32, thrift.number(1)), (-3, thrift.I32, thrift.number(1)), (0, thrift.I32, thrift.number(1)),
     (6, thrift.BINARY, thrift.binary(b"x")), (20, thrift.LIST, thrift.listed(thrift.I32, []))],
    ids=str,
)  # fmt: skip
def test_a_header_with_fields_that_no_page_has_is_not_copied(more):
    plain = header() + b"12345678"
    (page,), end = pages._split_pages(bytearray(plain), len(plain), "UNCOMPRESSED")
    assert (page.values, end) == (2, len(plain))
    odd = header(more) + b"12345678"
    try:
        found, _ = pages._split_pages(bytearray(odd), len(odd), "UNCOMPRESSED")
    except pages.NotCopyable:
        found = []
    assert found == []


def test_a_list_that_says_to_be_longer_than_the_file_is_refused_at_once():
    odd = header((20, thrift.LIST, LONG_LIST)) + b"12345678"
    began = time.monotonic()
    assert pages._split_pages(bytearray(odd), len(odd), "UNCOMPRESSED") == ([], 0)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("codec", ["snappy", "zstd", "gzip", "lz4"])
def test_a_damaged_page_without_a_checksum_is_an_error_before_anything_is_published(codec, tmp_path):
    source = tmp_path / "in.parquet"
    pq.write_table(kept_table(), source, use_dictionary=False, compression=codec)
    content, end = bytearray(source.read_bytes()), end_of_pages(source, "words")
    content[end - 200 : end - 100] = bytes([0xFF]) * 100
    source.write_bytes(content)
    with pytest.raises(ScorerError) as error:
        run(source, tmp_path / "out")
    assert "in.parquet" in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("codec", ["LZ4", "ZSTD"])
def test_a_page_that_ends_early_is_not_copied(codec):
    def page(stored):
        content = pa.compress(stored, codec="lz4_raw" if codec == "LZ4" else codec.lower(), asbytes=True)
        sizes = [(2, thrift.I32, thrift.number(200)), (3, thrift.I32, thrift.number(len(content)))]
        return bytearray(header(*sizes) + content)

    whole, short = page(bytes(range(200))), page(bytes(range(199)))
    assert len(pages._split_pages(whole, len(whole), codec)[0]) == 1
    with pytest.raises(pages.NotCopyable):
        pages._split_pages(short, len(short), codec)


def test_a_column_with_fewer_values_than_rows_is_an_error(tmp_path):
    short = tmp_path / "short.parquet"
    pq.write_table(kept_table(20_000).select(["id"]), short, use_dictionary=False, compression="none")
    form = FileForm.of(pa.schema([pa.field("id", pa.int64()), SCORE]), PLAIN)
    column, leaf = pq.read_metadata(short).row_group(0).column(0), form.leaves[0]
    with pages.Pages.opened(file_id(str(short))) as source, (tmp_path / "out").open("wb", buffering=0) as file:
        copying._copy_column(source, copying._File(file.fileno()), column, leaf, 20_000)
        with pytest.raises(pages.NotCopyable):
            copying._copy_column(source, copying._File(file.fileno()), column, leaf, 20_001)


@pytest.mark.parametrize(
    ("writer", "old"),
    [("parquet-mr version 1.7.0", True), ("parquet-mr", True), ("parquet-cpp version 1.5.1-SNAPSHOT", True),
     ("impala version 1.2", True), ("parquet-mr version 1.13.1 (build 1)", False),
     ("parquet-cpp-arrow version 26.0.1", False), ("DuckDB version v1.0", False)],
)  # fmt: skip
def test_files_of_writers_with_known_faults_are_not_copied(writer, old):
    assert bool(copying._FAULTY_WRITERS.match(writer)) == old


@pytest.mark.parametrize("cut", [1, 40, 4_000])
def test_a_truncated_column_is_an_error_that_names_the_file(cut, tmp_path):
    source = tmp_path / "in.parquet"
    pq.write_table(kept_table(), source, use_dictionary=False, compression="none")
    content = bytearray(source.read_bytes())
    end = end_of_pages(source, "words")
    content[end - cut : end] = bytes([0xFF]) * cut
    begin = end_of_pages(source, "id")
    content[begin : begin + 40] = bytes([0x19]) * 40  # the header of the next column's first page
    source.write_bytes(content)
    with pytest.raises(ScorerError) as error:
        run(source, tmp_path / "out")
    assert "in.parquet" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_replaced_before_its_columns_are_copied_is_noticed(tmp_path, monkeypatch):
    source, other = tmp_path / "in.parquet", tmp_path / "other.parquet"
    pq.write_table(kept_table(), source)
    pq.write_table(kept_table(seed=1), other)
    os.utime(other, ns=(1, 1))
    plain = copying.write

    def late(*given):
        shutil.copy2(other, source)
        plain(*given)

    monkeypatch.setattr(copying, "write", late)
    with pytest.raises(ScorerError, match="changed after it was planned"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("asked", [{"compression": "zstd"}, {"row_group_rows": 30_000}, {"where": "id >= 0"}])
def test_columns_with_other_storage_options_are_not_copied(asked, tmp_path):
    pq.write_table(kept_table(), tmp_path / "in.parquet")
    plan = scorer.prepare(tmp_path / "in.parquet", MODEL, tmp_path / "out", tune=False, **asked)
    assert plan.check().storage.copied == ()
    assert "copied" not in str(plan)


def test_many_tiny_row_groups_are_combined_and_not_copied(tmp_path):
    pq.write_table(kept_table(), tmp_path / "in.parquet", row_group_size=1_000)
    plan = scorer.prepare(tmp_path / "in.parquet", MODEL, tmp_path / "out", tune=False)
    assert plan.check().storage.copied == ()


def test_parts_hold_more_rows_where_wide_columns_are_not_decoded(tmp_path):
    table = kept_table(200_000)
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=50_000)
    asked = {"tune": False, "threads": 1, "part_bytes": "1MiB"}
    copies = scorer.prepare(tmp_path / "in.parquet", MODEL, tmp_path / "out", **asked).check()
    encodes = scorer.prepare(tmp_path / "in.parquet", MODEL, tmp_path / "out", compression="zstd", **asked).check()
    assert copies.n_parts < encodes.n_parts
    assert copies.most_rows * 12 <= 1.5 * 2**20


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20), st.binary(max_size=300))
def test_what_is_written_in_thrift_is_read_again(numbers, text):
    values = [
        (7, thrift.BINARY, thrift.binary(text)),
        (300, thrift.LIST, thrift.listed(thrift.I64, [*map(thrift.number, numbers)])),
    ]
    data = thrift.struct([(1, thrift.I32, thrift.number(-5)), *values])
    found, end = thrift.fields(data, 0)
    assert end == len(data)
    assert thrift.integer(data, found[1][1])[0] == -5
    assert data[found[7][1] : found[7][2]] == thrift.binary(text)
    kind, many, at = thrift.items(data, found[300][1])
    got = []
    for _ in range(many):
        value, at = thrift.integer(data, at)
        got.append(value)
    assert (kind, got) == (thrift.I64, numbers)


@given(st.binary(max_size=200))
def test_bytes_that_are_not_thrift_are_refused_soon(data):
    with suppress(pages.NotCopyable):
        found, end = pages._split_pages(bytearray(data), len(data), "SNAPPY")
        assert end <= len(data)
        assert len(found) <= len(data)
