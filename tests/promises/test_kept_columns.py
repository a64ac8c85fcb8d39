"""Kept columns are unchanged in the output: every Parquet type, every name, every layout of files."""

from __future__ import annotations

import datetime as dt
import decimal
import struct
import uuid

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from support.runs import MODELS, cli, read, report_of, write

import scorer
from scorer.errors import PreflightError
from scorer.storage import _thrift as thrift
from scorer.storage.footers import open_parquet

MODEL = MODELS / "named3.onnx"
GROUPS = ((300, 0, 900, 7), (), (0, 650, 1))
"""Rows of each row group of each input file; the second file has none."""
ROWS = sum(map(sum, GROUPS))
FEW = {"batch_rows": 64, "part_bytes": 8192}
"""Options that cut row groups into several parts."""
HERE = {"cluster": "synchronous"}
VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


def cycle(values, kind, rows=ROWS):
    """Return an array that repeats the values, and a null, up to this many rows."""
    base = [*values, None, values[0]]
    return pa.array([base[i % len(base)] for i in range(rows)], kind)


def whole_numbers():
    """Yield integers of every width and sign: smallest, largest and above 2^53."""
    for bits in (8, 16, 32, 64):
        top = 2 ** (bits - 1)
        yield f"int{bits}", cycle([-top, top - 1, 0, min(top - 1, 2**53 + 1)], pa.type_for_alias(f"int{bits}"))
        yield f"uint{bits}", cycle([2 * top - 1, 0, min(top, 2**53 + 1)], pa.type_for_alias(f"uint{bits}"))


def fractions():
    """Yield floats with NaN, infinities and -0.0, and decimals."""
    odd = [float("nan"), float("inf"), float("-inf"), -0.0, 0.0, 1.5]
    yield "float16", cycle([np.float16(x) for x in odd], pa.float16())
    yield "float32", cycle([*odd, 1e-45], pa.float32())
    yield "float64", cycle([*odd, 5e-324], pa.float64())
    for bits, digits in ((32, 9), (64, 18), (128, 38), (256, 76)):
        kind = getattr(pa, f"decimal{bits}")(digits, 3)
        yield f"decimal{bits}", cycle([decimal.Decimal("9" * (digits - 3)), decimal.Decimal("-0.001")], kind)


def moments():
    """Yield dates, times, timestamps with and without time zones, and durations, in every unit."""
    yield "date32", cycle([dt.date(1, 1, 1), dt.date(9999, 12, 31)], pa.date32())
    yield "date64", cycle([dt.date(1969, 12, 31)], pa.date64())
    for unit in ("s", "ms"):
        yield f"time32-{unit}", cycle([0, 86_399], pa.time32(unit))
    for unit in ("us", "ns"):
        yield f"time64-{unit}", cycle([0, 86_399_000_001], pa.time64(unit))
    for unit in ("s", "ms", "us", "ns"):
        yield f"timestamp-{unit}", cycle([-1, 0, 2**40 + 1], pa.timestamp(unit))
        yield f"timestamp-{unit}-zone", cycle([-1, 2**40 + 1], pa.timestamp(unit, "Europe/Berlin"))
        yield f"duration-{unit}", cycle([-1, 2**53 + 1], pa.duration(unit))
    yield "timestamp-offset", cycle([1], pa.timestamp("us", "+05:30"))


def texts():
    """Yield text, bytes, booleans and nulls in every Arrow type."""
    words = ["", "a", "\0", "naïve 🙂", "a text beyond twelve bytes", "None", "nan"]
    for name in ("string", "large_string", "string_view"):
        yield name, cycle(words, getattr(pa, name)())
    for name in ("binary", "large_binary", "binary_view"):
        yield name, cycle([word.encode() for word in words] + [b"\xff\xfe"], getattr(pa, name)())
    yield "fixed_size_binary", cycle([b"\0\0\0", b"abc"], pa.binary(3))
    yield "bool", cycle([True, False, False], pa.bool_())
    yield "null", pa.nulls(ROWS)


def dictionaries():
    """Yield dictionaries with several value and index types."""
    words = cycle(["red", "green", ""], pa.string())
    for index in ("int8", "int16", "int32", "int64", "uint8"):
        kind = pa.dictionary(pa.type_for_alias(index), pa.string())
        yield f"dictionary-{index}", words.cast(kind)
    yield (
        "dictionary-ordered",
        pa.DictionaryArray.from_arrays(pa.array(np.arange(ROWS) % 3, pa.int8()), ["low", "mid", "high"], ordered=True),
    )
    yield "dictionary-large", words.cast(pa.large_string()).dictionary_encode()
    yield "dictionary-binary", words.cast(pa.binary()).dictionary_encode()
    yield "dictionary-int64", cycle([2**53 + 1, -1], pa.int64()).dictionary_encode()
    yield "dictionary-empty", pa.nulls(ROWS, pa.dictionary(pa.int32(), pa.string()))


def nests():
    """Yield nested structs, lists and maps."""
    point = pa.struct([("x", pa.int64()), ("deep", pa.struct([("text", pa.string()), ("l", pa.list_(pa.int8()))]))])
    points = [{"x": 2**53 + 1, "deep": {"text": "a", "l": [1, None]}}, {"x": None, "deep": None}, {"x": 1}]
    yield "struct", cycle(points, point)
    yield (
        "struct-not-null",
        pa.array([{"x": i} for i in range(ROWS)], pa.struct([pa.field("x", pa.int64(), nullable=False)])),
    )
    yield "list", cycle([[1, None], [], [2**53 + 1]], pa.list_(pa.int64()))
    yield "large_list", cycle([["a", None], []], pa.large_list(pa.string()))
    yield "list_view", cycle([[1], []], pa.list_view(pa.int32()))
    yield "fixed_size_list", pa.array([[i, None] for i in range(ROWS)], pa.list_(pa.int16(), 2))
    yield "fixed_size_list-nulls", cycle([[1.0, float("nan")]], pa.list_(pa.float32(), 2))
    yield "list-not-null", cycle([[1], []], pa.list_(pa.field("item", pa.int64(), nullable=False)))
    yield "list-of-structs", cycle([points, [], [None]], pa.list_(point))
    yield "list-of-lists", cycle([[[1], [], None], []], pa.list_(pa.list_(pa.int64())))
    yield "list-of-dictionaries", cycle([["a", "b"], []], pa.list_(pa.dictionary(pa.int32(), pa.string())))
    yield "map", cycle([[("a", 1), ("b", None)], []], pa.map_(pa.string(), pa.int64()))
    yield "map-of-structs", cycle([[("a", points[0])]], pa.map_(pa.string(), point))


def extensions():
    """Yield extension types."""
    yield "uuid", cycle([uuid.UUID(int=1).bytes, uuid.UUID(int=2**127).bytes], pa.uuid())
    yield "json", cycle(["{}", '{"a": [1]}'], pa.json_())
    yield "bool8", cycle([1, 0], pa.int8()).cast(pa.bool8())
    yield (
        "tensor",
        pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.float32(), [2, 2]),
            pa.array([[i, 0, 0, 1] for i in range(ROWS)], pa.list_(pa.float32(), 4)),
        ),
    )


KINDS = {
    name: array
    for family in (whole_numbers, fractions, moments, texts, dictionaries, nests, extensions)
    for name, array in family()
}


def fed(rows=ROWS):
    """Return the three columns that the model adds."""
    rng = np.random.default_rng(11)
    return {name: pa.array(rng.integers(-1000, 1000, rows).astype(np.float32)) for name in "abc"}


def scores(table):
    """Return the exact scores: small whole numbers."""
    return [sum(row) for row in zip(*(table[name].to_pylist() for name in "abc"), strict=True)]


def split(folder, table, groups=GROUPS, **options):
    """Write the table as several files of several row groups; return the folder."""
    folder.mkdir()
    start = 0
    for i, sizes in enumerate(groups):
        with pq.ParquetWriter(folder / f"data-{i}.parquet", table.schema, **options) as writer:
            for size in sizes:
                writer.write_table(table.slice(start, size), row_group_size=max(size, 1))
                start += size
    assert start == len(table)
    return folder


def stored(folder):
    """Return all rows of the input, in order."""
    tables = []
    for path in sorted(folder.rglob("*.parquet")):
        with open_parquet(str(path)) as parquet:
            tables += [parquet.read_row_group(g) for g in range(parquet.num_row_groups)]
            tables.append(parquet.schema_arrow.empty_table())
    return pa.concat_tables(tables)


def values(column):
    """Return values to compare: NaN equals NaN, -0.0 differs from 0.0, and times keep their last digit."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return values(pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type))
    if pa.types.is_temporal(kind):
        return [x.value for chunk in column.chunks for x in chunk]
    return [bits(x) for x in column.to_pylist()]


def bits(value):
    """Return a value that compares bit for bit."""
    if isinstance(value, float):
        return struct.pack("<d", value)
    if isinstance(value, list):
        return [bits(x) for x in value]
    if isinstance(value, dict):
        return {name: bits(x) for name, x in value.items()}
    return value


def same(got, expected, names=None):
    """Assert that the columns have equal fields, metadata included, and equal values in the same order."""
    for name in names or expected.column_names:
        before, after = expected.schema.field(name), got.schema.field(name)
        assert after.equals(before, check_metadata=True), (before, before.metadata, after, after.metadata)
        assert values(got[name]) == values(expected[name]), name


def chosen(table, mask):
    """Return the rows where the mask is true; views are cast, because Arrow cannot filter them."""
    plain = pa.schema([field.with_type(VIEWS.get(field.type, field.type)) for field in table.schema])
    return table.cast(plain).filter(mask).cast(table.schema)


def rewritten(output):
    """Return the output, and assert that all its files have the same schema."""
    schemas = [pq.read_schema(path).remove_metadata() for path in sorted(output.rglob("*.parquet"))]
    assert all(schema.equals(schemas[0], check_metadata=True) for schema in schemas)
    return read(output)


@pytest.mark.parametrize("name", KINDS)
def test_a_kept_column_of_every_type_is_unchanged(name, tmp_path):
    folder = split(tmp_path / "input", pa.table({name: KINDS[name], **fed()}))
    report = scorer.run(folder, MODEL, tmp_path / "out", **FEW, **HERE)
    assert report.counts.scored == ROWS
    assert report.parts > len(GROUPS)
    got, expected = rewritten(tmp_path / "out"), stored(folder)
    same(got, expected)
    assert got["total"].to_pylist() == scores(expected)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.slow
def test_a_filter_and_bad_rows_do_not_change_kept_columns_of_any_type(name, tmp_path):
    table = pa.table({name: KINDS[name], **fed()})
    odd = pa.array(np.arange(ROWS) % 5 == 0)
    table = table.set_column(1, "a", pa.array(table["a"].to_numpy(), mask=odd.to_numpy(zero_copy_only=False)))
    folder = split(tmp_path / "input", table)
    report = scorer.run(
        folder, MODEL, tmp_path / "out", where="b >= 0", on_null="error", max_bad_rows=ROWS, **FEW, **HERE
    )
    expected = stored(folder)
    held = pc.greater_equal(expected["b"], 0)
    good = chosen(expected, pc.and_(held, expected["a"].is_valid()))
    bad = chosen(expected, pc.and_(held, expected["a"].is_null()))
    assert (report.counts.scored, report.counts.quarantined) == (len(good), len(bad))
    got = rewritten(tmp_path / "out")
    same(got, good)
    assert got["total"].to_pylist() == scores(good)
    paths = sorted((tmp_path / "out.scorer" / "quarantine").iterdir())
    aside = pa.concat_tables([pq.ParquetFile(path).read() for path in paths])
    assert aside.column_names == [*expected.column_names, "_error", "_stage", "_file", "_row"]
    for column in expected.column_names:
        kind = expected.schema.field(column).type
        assert aside.schema.field(column).type in {kind, VIEWS.get(kind)}
        assert values(aside[column]) == values(bad[column])


def test_all_types_together_over_every_back_end(backend, tmp_path):
    folder = split(tmp_path / "input", pa.table({**KINDS, **fed()}))
    scorer.run(folder, MODEL, tmp_path / "out", batch_rows=64, part_bytes="1MiB", **backend)
    got, expected = rewritten(tmp_path / "out"), stored(folder)
    same(got, expected)
    assert got["total"].to_pylist() == scores(expected)
    assert got.column_names == [*KINDS, *"abc", "total"]


def test_nullability_field_metadata_and_table_metadata_survive(backend, tmp_path):
    fields = [
        pa.field("id", pa.int64(), nullable=False, metadata={"PARQUET:field_id": "7", "unit": "none", "naïve": "é"}),
        pa.field("s", pa.struct([pa.field("x", pa.int8(), nullable=False, metadata={"in": "side"})]), nullable=False),
        *(pa.field(name, pa.float32(), nullable=False, metadata={"of": name}) for name in "abc"),
    ]
    schema = pa.schema(fields, metadata={"geo": '{"version": "1.0.0"}', b"raw": b"\xff\x00"})
    columns = {"id": pa.array(range(ROWS)), "s": pa.array([{"x": 1}] * ROWS, fields[1].type), **fed()}
    folder = split(tmp_path / "input", pa.Table.from_pydict(columns, schema=schema))
    scorer.run(folder, MODEL, tmp_path / "out", **backend)
    got, expected = rewritten(tmp_path / "out"), stored(folder)
    same(got, expected)
    for path in (tmp_path / "out").iterdir():
        schema = pq.read_schema(path)
        assert schema.field("id").nullable is False
        assert schema.field("s").type.field("x").nullable is False
        assert schema.metadata[b"geo"] == b'{"version": "1.0.0"}'
        assert schema.metadata[b"raw"] == b"\xff\x00"


def test_int96_timestamps_come_out_as_microseconds(tmp_path):
    far = [dt.datetime.fromisoformat(text) for text in ("0001-01-01", "9999-12-31T23:59:59.999999", "2026-01-31T01:02")]
    table = pa.table({"t": cycle(far, pa.timestamp("us")), **fed()})
    folder = split(tmp_path / "input", table, use_deprecated_int96_timestamps=True)
    assert pq.ParquetFile(folder / "data-0.parquet").metadata.schema.column(0).physical_type == "INT96"
    scorer.run(folder, MODEL, tmp_path / "out", **FEW, **HERE)
    got = rewritten(tmp_path / "out")
    assert got.schema.field("t").type == pa.timestamp("us")
    assert got["t"].to_pylist() == table["t"].to_pylist()


@pytest.mark.parametrize("flags", [{}, {"keep": "none", "feed": "x=a,b,c", "where": "t is not null"}])
def test_the_plan_says_that_int96_times_lose_their_nanoseconds(tmp_path, flags):
    table = pa.table({"t": cycle([1_600_000_000_123_456_789], pa.timestamp("ns")), **fed()})
    path = write(tmp_path / "in.parquet", table, use_deprecated_int96_timestamps=True)
    said = "times of type INT96 are read in microseconds, and nanoseconds are cut off: 't'"
    assert said in scorer.prepare(path, MODEL, tmp_path / "out", **flags).notes
    unused = scorer.prepare(path, MODEL, tmp_path / "out", keep="a,b,c").notes
    assert not [note for note in unused if "INT96" in note]
    plain = scorer.prepare(write(tmp_path / "plain.parquet", table), MODEL, tmp_path / "out").notes
    assert not [note for note in plain if "INT96" in note]


def annotate(path, types):
    """Change the schema in a file's footer: add these Thrift fields to the elements of these names."""
    data = path.read_bytes()
    at = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer, _ = thrift.fields(data, at)
    _, count, place = thrift.items(data, footer[2][1])
    elements = []
    for _ in range(count):
        found, end = thrift.fields(data, place)
        own = {number: (kind, data[low:high]) for number, (kind, low, high) in found.items()}
        own |= types.get(data[found[4][1] + 1 : found[4][2]].decode(), {})
        elements.append(thrift.struct((number, *value) for number, value in sorted(own.items())))
        place = end
    fields = {number: (kind, data[low:high]) for number, (kind, low, high) in footer.items()}
    fields[2] = (thrift.LIST, thrift.listed(thrift.STRUCT, elements))
    written = thrift.struct((number, *value) for number, value in sorted(fields.items()))
    path.write_bytes(data[:at] + written + len(written).to_bytes(4, "little") + b"PAR1")
    return path


def logical_type(number):
    """Return the field of a schema element that names its logical type."""
    return {10: (thrift.STRUCT, thrift.struct([(number, thrift.STRUCT, thrift.struct([]))]))}


PARQUET_ONLY = {
    "Variant": (pa.struct([pa.field(n, pa.binary(), nullable=False) for n in ("metadata", "value")]), logical_type(16)),
    "Geometry": (pa.binary(), logical_type(17)),
    "Geography": (pa.binary(), logical_type(18)),
    "Enum": (pa.binary(), logical_type(4)),
    "BSON": (pa.binary(), logical_type(13)),
    "Interval": (pa.binary(12), {6: (thrift.I32, thrift.number(21))}),
}


@pytest.mark.parametrize("name", PARQUET_ONLY)
def test_the_plan_says_that_a_type_unknown_to_arrow_is_lost_and_its_bytes_are_kept(tmp_path, name):
    kind, change = PARQUET_ONLY[name]
    value = {"metadata": b"m", "value": b"v"} if name == "Variant" else b"123456789012"
    table = pa.table({"odd (name)": cycle([value], kind), **fed()})
    path = annotate(write(tmp_path / "in.parquet", table, store_schema=False), {"odd (name)": change})
    (note,) = [n for n in scorer.prepare(path, MODEL, tmp_path / "out").notes if "lose" in n]
    assert note.endswith(f"their bytes stay the same: 'odd (name)' ({name})")
    assert not [n for n in scorer.prepare(path, MODEL, tmp_path / "out", keep="a").notes if "lose" in n]
    scorer.run(path, MODEL, tmp_path / "out", **HERE)
    assert read(tmp_path / "out")["odd (name)"].to_pylist() == table["odd (name)"].to_pylist()


@pytest.mark.parametrize("store_schema", [True, False])
@pytest.mark.parametrize("rows", [100, 40_000])
def test_metadata_that_a_writer_adds_to_the_file_is_kept(tmp_path, store_schema, rows):
    table = pa.table(fed(rows)).replace_schema_metadata({"of": "the schema", "pandas": "{}"})
    with pq.ParquetWriter(tmp_path / "in.parquet", table.schema, store_schema=store_schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"projjson_1": '{"name": "WGS 84"}'})
    scorer.run(tmp_path / "in.parquet", MODEL, tmp_path / "out", **HERE)
    scorer.run(tmp_path / "out", MODEL, tmp_path / "again", prefix="again_", **HERE)
    for output in ("out", "again"):
        for path in (tmp_path / output).iterdir():
            found = pq.read_metadata(path).metadata
            assert found[b"projjson_1"] == b'{"name": "WGS 84"}'
            own = {b"scorer", b"_scorer_model", b"_scorer_lineage"}
            assert set(found) == {b"projjson_1", b"ARROW:schema"} | own | ({b"of"} if store_schema else set())
    assert cli("verify", tmp_path / "again", "--deep")[0] == 0


def test_a_pandas_index_column_is_kept_as_a_column(tmp_path):
    frame = pd.DataFrame({name: column.to_numpy() for name, column in fed(100).items()})
    frame.index = [f"row {i}" for i in range(100)]
    (tmp_path / "input").mkdir()
    frame.to_parquet(tmp_path / "input" / "data.parquet")
    scorer.run(tmp_path / "input", MODEL, tmp_path / "out", **HERE)
    got = rewritten(tmp_path / "out")
    assert got.column_names == ["a", "b", "c", "__index_level_0__", "total"]
    assert got["__index_level_0__"].to_pylist() == list(frame.index)
    back = pd.read_parquet(tmp_path / "out")
    assert len(back) == 100
    assert back["total"].to_numpy().tolist() == frame.sum(axis=1).tolist()


def test_files_may_hold_their_columns_in_another_order(tmp_path):
    table = pa.table({"text": cycle(["x", "y"], pa.string(), 20), **fed(20)})
    write(tmp_path / "input" / "1.parquet", table.slice(0, 9))
    write(tmp_path / "input" / "2.parquet", table.slice(9).select(["c", "b", "text", "a"]))
    scorer.run(tmp_path / "input", MODEL, tmp_path / "out", **HERE)
    same(rewritten(tmp_path / "out"), table)


def test_a_dictionary_in_one_file_and_plain_values_in_another_are_values(tmp_path):
    words = cycle(["red", "green"], pa.string(), 20)
    plain = pa.table({"w": words, **fed(20)})
    encoded = plain.set_column(0, "w", words.dictionary_encode())
    write(tmp_path / "input" / "1.parquet", encoded.slice(0, 9))
    write(tmp_path / "input" / "2.parquet", plain.slice(9))
    scorer.run(tmp_path / "input", MODEL, tmp_path / "out", **HERE)
    same(rewritten(tmp_path / "out"), plain)


@pytest.mark.parametrize("flags", [{}, {"compression": "zstd"}, {"where": "a > 0"}, FEW])
def test_categories_with_few_and_with_many_values_come_out_as_categories(tmp_path, flags):
    """pandas numbers up to 128 categories with int8, and more with int16."""
    kinds = [pa.dictionary(index, pa.string(), ordered) for index, ordered in ((pa.int8(), True), (pa.int16(), False))]
    words = [[f"w{i % count}" if i % 7 else None for i in range(20_000)] for count in (3, 1000)]
    for i in (0, 1, 2):
        column = pa.array(words[i % 2], pa.string()).cast(kinds[i % 2])
        write(tmp_path / "input" / f"{i}.parquet", pa.table({"w": column, **fed(20_000)}))
    scorer.run(tmp_path / "input", MODEL, tmp_path / "out", **flags, **HERE)
    got, expected = rewritten(tmp_path / "out"), pads.dataset(tmp_path / "input", schema=pa.schema(
        [("w", pa.string()), *((name, pa.float32()) for name in "abc")])).to_table()  # fmt: skip
    assert got.schema.field("w").type == kinds[1]
    expected = expected.filter(pc.field("a") > 0) if "where" in flags else expected
    assert got["w"].to_pylist() == expected["w"].to_pylist()


def full(kind):
    """Return a field of a nested type that may not be null."""
    return pa.field("element", kind, nullable=False)


LAYOUTS = {
    "texts": (["ab", ""], pa.string(), pa.large_string(), pa.large_string()),
    "categories": (["ab", ""], pa.dictionary(pa.int8(), pa.string()), pa.large_string(), pa.large_string()),
    "views": (["ab", ""], pa.string_view(), pa.string(), pa.string()),
    "bytes": ([b"ab", b""], pa.large_binary(), pa.binary(), pa.large_binary()),
    "lists": ([[1.5], []], pa.list_(pa.float32()), pa.large_list(pa.float32()), pa.large_list(pa.float32())),
    "full lists": ([[1.5], []], pa.list_(full(pa.int8())), pa.list_(pa.int8()), pa.list_(pa.int8())),
    "full vectors": ([[1, 2]], pa.list_(full(pa.int8()), 2), pa.list_(pa.int8(), 2), pa.list_(pa.int8(), 2)),
    "lists of texts": (
        [["ab"], []],
        pa.list_(pa.large_string()),
        pa.list_(full(pa.string())),
        pa.list_(pa.large_string()),
    ),
    "structs": (
        [{"element": 1}],
        pa.struct([full(pa.int8())]),
        pa.struct([("element", pa.int8())]),
        pa.struct([("element", pa.int8())]),
    ),
    "maps": (
        [[("k", "v")], []],
        pa.map_(pa.string(), pa.large_string()),
        pa.map_(pa.string(), pa.string()),
        pa.map_(pa.string(), pa.large_string()),
    ),
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_column_of_two_layouts_gets_a_type_that_holds_both(name, turned, tmp_path):
    some, *kinds, wanted = LAYOUTS[name]
    kinds = kinds[::-1] if turned else kinds
    tables = [pa.table({"w": cycle(some, kind, ROWS), **fed()}) for kind in kinds]
    for i, table in enumerate(tables):
        write(tmp_path / "input" / f"{i}.parquet", table, row_group_size=300)
    for i, options in enumerate(({}, FEW, {"where": "a > 0"})):
        scorer.run(tmp_path / "input", MODEL, tmp_path / f"out{i}", **options, **HERE)
        got = rewritten(tmp_path / f"out{i}")
        kept = [row for table in tables for row in table.to_pylist() if row["a"] > 0 or "where" not in options]
        assert got.schema.field("w").type == wanted
        assert got.select(["w", "a", "b", "c"]).to_pylist() == kept
        assert got["total"].to_pylist() == [row["a"] + row["b"] + row["c"] for row in kept]
        assert cli("verify", tmp_path / f"out{i}", "--deep")[0] == 0


def test_a_list_column_that_may_hold_nulls_in_some_files_only_can_be_fed(tmp_path):
    rows = [[float(i), 1.0, 2.0] for i in range(20)]
    for i, inner in enumerate((full(pa.float32()), pa.float32())):
        write(tmp_path / "input" / f"{i}.parquet", pa.table({"v": pa.array(rows, pa.list_(inner, 3))}))
    scorer.run(tmp_path / "input", MODELS / "sum3.onnx", tmp_path / "out", feed="x=v", **HERE)
    got = read(tmp_path / "out")
    assert got["v"].to_pylist() == rows * 2
    assert [x for name in set(got.column_names) - {"v"} for x in got[name].to_pylist()] == [
        sum(row) for row in rows
    ] * 2


def test_dictionaries_that_differ_from_row_group_to_row_group_keep_their_values(tmp_path):
    words = pa.array([f"w{i // 10}" for i in range(ROWS)]).dictionary_encode()
    folder = split(tmp_path / "input", pa.table({"w": words, **fed()}))
    for i, options in enumerate(({}, FEW, {"part_bytes": "64KiB"})):
        scorer.run(folder, MODEL, tmp_path / f"out{i}", **options, **HERE)
        got = rewritten(tmp_path / f"out{i}")
        assert got.schema.field("w").type == pa.dictionary(pa.int32(), pa.string())
        assert got["w"].to_pylist() == words.to_pylist()


NAMES = [
    "two words", " ", "a.b", "a.b.c", "ünï🙂", "new\nline", "sl/ash", "back\\slash", "100%", "it's", 'say "x"', "`x`",
    "x,y", "x=y", "f0..f2", "*", "[a]", "{a}", "A", "_error", "_stage", "_row", "_file", "score", "None", "null", "0",
    "index", "scorer", "attrs", "\t", "é", "e\u0301", "very " + "long " * 100,
]  # fmt: skip


@pytest.mark.parametrize("name", [*NAMES, ""])
def test_a_column_may_have_any_name(name, tmp_path):
    table = pa.table({name: cycle([1, 2], pa.int64(), 50), **fed(50)})
    write(tmp_path / "in.parquet", table, row_group_size=20)
    scorer.run(tmp_path / "in.parquet", MODEL, tmp_path / "out", **HERE)
    same(rewritten(tmp_path / "out"), table)


def test_all_names_together_over_every_back_end(backend, tmp_path):
    table = pa.table({
        "a": fed()["a"], "b": fed()["b"],
        **{name: cycle([i, -i], pa.int64()) for i, name in enumerate(NAMES)},
        "c": fed()["c"],
        "s": cycle([{"b": 1, "a.b": "x"}], pa.struct([("b", pa.int64()), ("a.b", pa.string())])),
    })  # fmt: skip
    folder = split(tmp_path / "input", table)
    scorer.run(folder, MODEL, tmp_path / "out", batch_rows=64, part_bytes="64KiB", **backend)
    got = rewritten(tmp_path / "out")
    same(got, table)
    assert got["total"].to_pylist() == scores(table)


@pytest.mark.parametrize("keep", ["all", ["s.b"], ["s"], ["s", "s.b"], ["s.b", "s.b.c"]])
def test_a_dotted_name_is_not_a_path_into_a_struct(keep, tmp_path):
    table = pa.table({
        "s": cycle([{"b": 1, "x": 2}, {"b": None, "x": 3}], pa.struct([("b", pa.int64()), ("x", pa.int64())])),
        "s.b": cycle(["not", "nested"], pa.string()),
        "s.b.c": cycle([True, False], pa.bool_()),
        **fed(),
    })  # fmt: skip
    folder = split(tmp_path / "input", table)
    scorer.run(folder, MODEL, tmp_path / "out", keep=keep, **FEW, **HERE)
    got = rewritten(tmp_path / "out")
    kept = table.column_names if keep == "all" else [name for name in table.column_names if name in keep]
    assert got.column_names == [*kept, "total"]
    same(got, table, kept)


def test_a_dotted_column_can_be_fed_and_filtered_beside_a_struct(tmp_path):
    table = pa.table({
        "s": cycle([{"a": 1.5, "b": 2.5}], pa.struct([("a", pa.float32()), ("b", pa.float32())])),
        "s.a": fed()["a"], "s.b": fed()["b"], "c": fed()["c"],
    })  # fmt: skip
    folder = split(tmp_path / "input", table)
    scorer.run(
        folder, MODELS / "sum3.onnx", tmp_path / "out", feed="x=s.a,s.b,c", keep=["s"], where="s.a < 0", **FEW, **HERE
    )
    held = table.filter(pc.less(table["s.a"], 0))
    got = rewritten(tmp_path / "out")
    same(got, held, ["s"])
    totals = [sum(row) for row in zip(*(held[name].to_pylist() for name in ("s.a", "s.b", "c")), strict=True)]
    assert got["total"].to_pylist() == totals


def test_a_string_view_can_be_fed_and_filtered(backend, tmp_path):
    colors = pa.array(["red", "a text beyond twelve bytes", "blue", None] * 5, pa.string_view())
    table = pa.table({"color": colors, "size": pa.array(range(20), pa.float32())})
    write(tmp_path / "in.parquet", table, row_group_size=7)
    scorer.run(tmp_path / "in.parquet", MODELS / "strings.onnx", tmp_path / "out", where="color is not null", **backend)
    got = rewritten(tmp_path / "out")
    assert got.schema.field("color").type == pa.string_view()
    assert got["color"].to_pylist() == [color for color in colors.to_pylist() if color is not None]
    assert got["label"].to_pylist() == ["warm", "unknown", "cool"] * 5


def test_kept_columns_with_the_name_of_an_output_column_are_refused_with_a_hint(tmp_path):
    write(tmp_path / "in.parquet", {"_row": [1], "total": [2], **fed(1)})
    plan = scorer.prepare(tmp_path / "in.parquet", MODEL, tmp_path / "out", row_id=True)
    assert len(plan.problems) == 1
    assert "'_row', 'total'" in plan.problems[0].what or "_row" in plan.problems[0].what
    assert "total" in plan.problems[0].what
    assert "--prefix" in plan.problems[0].hint
    scorer.run(tmp_path / "in.parquet", MODEL, tmp_path / "out", prefix="new_", **HERE)
    assert read(tmp_path / "out").column_names == ["_row", "total", "a", "b", "c", "new_total"]


@pytest.mark.parametrize(
    "options",
    [{}, {"feed": "x=x,b,c"}, {"where": "x > 0"}, {"feed": "x=a,b,c", "keep": "x"}, {"feed": "x=[abc]", "keep": "*"}],
)
def test_two_columns_of_one_name_are_refused(options, tmp_path):
    columns = [*fed(5).values(), pa.array(range(5)), pa.array(range(5))]
    write(tmp_path / "in.parquet", pa.Table.from_arrays(columns, names=["a", "b", "c", "x", "x"]))
    with pytest.raises(PreflightError, match="share one name") as caught:
        scorer.run(tmp_path / "in.parquet", MODELS / "sum3.onnx", tmp_path / "out", **options, **HERE)
    assert any("--keep" in problem.hint for problem in caught.value.problems)
    assert not (tmp_path / "out").exists()


def test_a_column_called_like_a_glob_is_not_one_of_two_columns_of_one_name(tmp_path):
    columns = [*fed(5).values(), *[pa.array(range(5))] * 3]
    write(tmp_path / "in.parquet", pa.Table.from_arrays(columns, names=["a", "b", "c", "*", "x", "x"]))
    scorer.run(tmp_path / "in.parquet", MODEL, tmp_path / "out", keep=["*"], **HERE)
    assert read(tmp_path / "out").column_names == ["*", "total"]


@pytest.mark.parametrize("name", ["x", "", "total", "none"])
@pytest.mark.parametrize("feed", [[], "x=a,b,c"])
def test_two_columns_of_one_name_are_allowed_if_neither_is_used(feed, name, tmp_path):
    columns = [*fed(5).values(), pa.array(range(5)), pa.array(range(5))]
    table = pa.Table.from_arrays(columns, names=["a", "b", "c", name, name])
    write(tmp_path / "in.parquet", table)
    scorer.run(tmp_path / "in.parquet", MODEL, tmp_path / "none", keep="none", feed=feed, **HERE)
    assert read(tmp_path / "none").column_names == ["total"]
    scorer.run(tmp_path / "in.parquet", MODEL, tmp_path / "out", keep="b", feed=feed, where="b is not null", **HERE)
    assert read(tmp_path / "out").column_names == ["b", "total"]
    assert read(tmp_path / "out")["total"].to_pylist() == scores(table)


@pytest.mark.slow
@pytest.mark.timeout(15)
def test_two_thousand_columns_are_kept(tmp_path):
    rows = 400
    wide = {f"column {i}": pa.array(np.arange(rows) * i) for i in range(2000)}
    table = pa.table({**wide, **fed(rows)})
    write(tmp_path / "in.parquet", table, row_group_size=250)
    scorer.run(tmp_path / "in.parquet", MODEL, tmp_path / "out", batch_rows=64, part_bytes="2MiB", **HERE)
    got = rewritten(tmp_path / "out")
    assert got.drop_columns(["total"]).equals(table)
    assert got["total"].to_pylist() == scores(table)


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ("none", []),
        ("id", ["id"]),
        (["text", "id"], ["id", "text"]),
        ("i*", ["id"]),
        (["a"], ["a"]),
        ("'te,xt'", None),
    ],
)
def test_keep_chooses_columns_in_the_order_of_the_input(keep, kept, tmp_path):
    table = pa.table({"id": pa.array(range(ROWS)), "text": cycle(["x"], pa.string()), "te,xt": pa.nulls(ROWS), **fed()})
    kept = ["te,xt"] if kept is None else kept
    folder = split(tmp_path / "input", table)
    scorer.run(folder, MODEL, tmp_path / "out", keep=keep, **FEW, **HERE)
    got = rewritten(tmp_path / "out")
    assert got.column_names == [*kept, "total"]
    same(got.select(kept), stored(folder).select(kept))
    assert got["total"].to_pylist() == scores(table)


def test_row_id_says_where_each_row_came_from(backend, tmp_path):
    folder = split(tmp_path / "input", pa.table({"id": pa.array(range(ROWS)), **fed()}))
    scorer.run(folder, MODEL, tmp_path / "out", row_id=True, where="b < 0", keep="id,b", **FEW, **backend)
    got = rewritten(tmp_path / "out").to_pylist()
    files = {str(path): pq.ParquetFile(path).read().to_pylist() for path in folder.iterdir()}
    assert got
    for row in got:
        source = files[row["_file"]][row["_row"]]
        assert (row["id"], row["b"]) == (source["id"], source["b"])
        assert row["total"] == sum(source[name] for name in "abc")


WHERES = [
    "id >= 700", "id = 1207", "id in (0, 299, 300, 1199, 1200, 1857)", "id not in (5)", "id != 5", "id > 99999",
    "text = 'x'", "text is null", "text is not null", "text in ('y', 'no')", "flag = true", "f < 0.5", "f is not null",
    "day >= '2026-01-10'", "moment < '2026-01-02T00:00:00'", '"two words" = 3', "kind = 'red'", "dec > 1.5",
]  # fmt: skip


@pytest.mark.parametrize("where", WHERES)
def test_where_keeps_what_arrow_keeps_in_order(where, tmp_path):
    day, midnight = dt.date(2026, 1, 1), dt.datetime.fromisoformat("2026-01-01")
    table = pa.table({
        "id": pa.array(range(ROWS)),
        "text": cycle(["x", "y"], pa.string()),
        "flag": cycle([True, False], pa.bool_()),
        "f": cycle([0.25, 0.75, float("nan")], pa.float64()),
        "day": pa.array([day + dt.timedelta(i // 100) for i in range(ROWS)]),
        "moment": pa.array([midnight + dt.timedelta(minutes=i) for i in range(ROWS)], pa.timestamp("us")),
        "two words": cycle([3, 4], pa.int8()),
        "kind": cycle(["red", "green"], pa.string()).dictionary_encode(),
        "dec": cycle([decimal.Decimal("1.50"), decimal.Decimal("1.51")], pa.decimal128(9, 2)),
        **fed(),
    })  # fmt: skip
    column = {
        "id >= 700": pc.field("id") >= 700,
        "id = 1207": pc.field("id") == 1207,
        "id in (0, 299, 300, 1199, 1200, 1857)": pc.field("id").isin([0, 299, 300, 1199, 1200, 1857]),
        "id not in (5)": pc.field("id") != 5,
        "id != 5": pc.field("id") != 5,
        "id > 99999": pc.field("id") > 99999,
        "text = 'x'": pc.field("text") == "x",
        "text is null": pc.field("text").is_null(),
        "text is not null": pc.field("text").is_valid(),
        "text in ('y', 'no')": pc.field("text") == "y",
        "flag = true": pc.field("flag") == True,  # noqa: E712 - an Arrow expression
        "f < 0.5": pc.field("f") < 0.5,
        "f is not null": pc.field("f").is_valid(),
        "day >= '2026-01-10'": pc.field("day") >= dt.date(2026, 1, 10),
        "moment < '2026-01-02T00:00:00'": pc.field("moment") < midnight + dt.timedelta(1),
        '"two words" = 3': pc.field("two words") == 3,
        "kind = 'red'": pc.field("kind") == "red",
        "dec > 1.5": pc.field("dec") > decimal.Decimal("1.5"),
    }[where]
    folder = split(tmp_path / "input", table)
    report = scorer.run(folder, MODEL, tmp_path / "out", where=where, **FEW, **HERE)
    held = table.filter(column)
    got = rewritten(tmp_path / "out")
    same(got, held)
    assert (report.counts.scored, report.counts.filtered) == (len(held), ROWS - len(held))


@pytest.mark.parametrize("literal", [0, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_where_compares_whole_numbers_of_every_size_exactly(literal, tmp_path):
    x = pa.array([0, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, None], pa.uint64())
    write(tmp_path / "in.parquet", {"x": x, **fed(7)}, row_group_size=2)
    for op, holds in (("=", literal.__eq__), (">=", literal.__le__), ("<", literal.__gt__)):
        scorer.run(tmp_path / "in.parquet", MODEL, tmp_path / "out", where=f"x {op} {literal}", overwrite=True, **HERE)
        assert read(tmp_path / "out")["x"].to_pylist() == [n for n in x.to_pylist() if n is not None and holds(n)]


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("time32-ms", "x >= '00:00:01'"), ("time64-us", "x >= '00:00:01'"), ("time64-us", "x = 'noon'"),
        ("duration-s", "x > '1'"), ("binary", "x = 'a'"), ("struct", "x = 1"), ("list", "x = 1"), ("null", "x = 1"),
        ("uuid", "x = 'a'"), ("float16", "x > 1"), ("string_view", "x = 'a'"), ("dictionary-binary", "x = 'a'"),
    ],
)  # fmt: skip
def test_a_filter_is_applied_or_refused_before_the_start(name, where, tmp_path):
    write(tmp_path / "in.parquet", {"x": KINDS[name], **fed()})
    plan = scorer.prepare(tmp_path / "in.parquet", MODEL, tmp_path / "out", where=where, **HERE)
    if not plan.problems:
        assert scorer.execute(plan).counts.balanced


@pytest.mark.parametrize("where", ["x = 0", "x in (0.0)", "x in (0, 5)", "x >= 0 ", "x not in (1.5)", "x != 1.5"])
def test_a_filter_treats_zero_and_negative_zero_as_equal(where, tmp_path):
    x = pa.array([0.0, -0.0, 1.5, None])
    write(tmp_path / "in.parquet", {"x": x, **fed(4)})
    scorer.run(tmp_path / "in.parquet", MODEL, tmp_path / "out", where=[where, "x < 1"], **HERE)
    assert len(read(tmp_path / "out")) == 2


@pytest.mark.parametrize("limit", [0, 1, 299, 300, 777, 1206, 1207, 1208, ROWS, ROWS + 1])
def test_limit_takes_the_first_rows_wherever_they_end(limit, tmp_path):
    table = pa.table({"id": pa.array(range(ROWS)), **fed()})
    folder = split(tmp_path / "input", table)
    report = scorer.run(folder, MODEL, tmp_path / "out", limit=limit, **FEW, **HERE)
    got = rewritten(tmp_path / "out")
    assert got["id"].to_pylist() == list(range(min(limit, ROWS)))
    assert got["total"].to_pylist() == scores(table.slice(0, limit))
    assert report.counts.rows == report.counts.scored == len(got)


def test_limit_counts_before_where(tmp_path):
    folder = split(tmp_path / "input", pa.table({"id": pa.array(range(ROWS)), **fed()}))
    report = scorer.run(folder, MODEL, tmp_path / "out", limit=1000, where="id >= 900", **FEW, **HERE)
    assert rewritten(tmp_path / "out")["id"].to_pylist() == list(range(900, 1000))
    assert (report.counts.rows, report.counts.filtered) == (1000, 900)


def hive(folder, table, keys):
    """Write key=value folders as pyarrow and Spark do, without the keys in the files; return the folder."""
    pads.write_dataset(
        table, folder, format="parquet",
        partitioning=pads.partitioning(pa.schema([table.schema.field(key) for key in keys]), flavor="hive"),
    )  # fmt: skip
    return folder


def test_hive_folders_are_mirrored_and_read_back_as_the_input_plus_scores(backend, tmp_path):
    table = pa.table({
        "id": pa.array(range(ROWS)), **fed(),
        "year": pa.array(2020 + np.arange(ROWS) % 3),
        "city": pa.array(["Köln", "a b", "x/y%"]).take(pa.array(np.arange(ROWS) // 7 % 3)),
    })  # fmt: skip
    folder = hive(tmp_path / "input", table, ["year", "city"])
    scorer.run(folder, MODEL, tmp_path / "out", **FEW, **backend)
    inside = {str(path.relative_to(folder).parent) for path in folder.rglob("*.parquet")}
    assert {str(path.relative_to(tmp_path / "out").parent) for path in (tmp_path / "out").rglob("*.parquet")} == inside
    assert read(tmp_path / "out").column_names == ["id", "a", "b", "c", "total"]
    before = pads.dataset(folder, partitioning="hive").to_table().sort_by("id")
    after = pads.dataset(tmp_path / "out", partitioning="hive").to_table().sort_by("id")
    assert after.drop_columns(["total"]).equals(before)
    assert after["total"].to_pylist() == scores(before)


def test_hive_keys_can_be_fed_and_filtered(tmp_path):
    table = pa.table({"id": pa.array(range(60)), **fed(60), "k": pa.array([1, 2, None] * 20)})
    folder = hive(tmp_path / "input", table, ["k"])
    feed = {"feed": "x=k,a,b", "where": "k is not null", "on_null": "error"}
    report = scorer.run(folder, MODELS / "sum3.onnx", tmp_path / "out", **feed, **HERE)
    assert (report.counts.scored, report.counts.filtered) == (40, 0)
    got = pads.dataset(tmp_path / "out", partitioning="hive").to_table().sort_by("id").to_pylist()
    assert [row["id"] for row in got] == [i for i in range(60) if i % 3 < 2]
    assert all(row["total"] == row["k"] + row["a"] + row["b"] for row in got)


def test_a_hive_key_that_is_in_the_files_too_is_left_out_of_them(tmp_path):
    for k in (1, 2):
        write(tmp_path / "input" / f"k={k}" / "x.parquet", {"k": [k, k], **fed(2)})
    scorer.run(tmp_path / "input", MODEL, tmp_path / "out", **HERE)
    for k in (1, 2):
        (path,) = (tmp_path / "out" / f"k={k}").iterdir()
        assert pq.ParquetFile(path).schema_arrow.names == ["a", "b", "c", "total"]
    assert pads.dataset(tmp_path / "out", partitioning="hive").to_table()["k"].to_pylist() == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("folder", "values"),
    [
        ("k=1", pa.array([1, 1], pa.int8())), ("k=2026-01-31", [dt.date(2026, 1, 31)] * 2), ("k=a%20b", ["a b"] * 2),
        ("k=a%20b", pa.array(["a b"] * 2).dictionary_encode()),
        ("k=__HIVE_DEFAULT_PARTITION__", pa.nulls(2, pa.string())),
        ("k=true", [True, True]),
    ],
)  # fmt: skip
def test_a_column_that_holds_the_value_of_its_folder_is_no_loss(folder, values, tmp_path):
    write(tmp_path / "input" / folder / "x.parquet", {"k": values, **fed(2)})
    plan = scorer.prepare(tmp_path / "input", MODEL, tmp_path / "out")
    assert plan.problems == ()
    assert any("the folder names hold them: 'k'" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("folder", "values", "found"),
    [
        ("k=1", [1, 2], "1 to 2"), ("k=1", [5, 5], "5"), ("k=1", [1, None], "1 null in 2 rows"),
        ("k=1", ["1", "one"], "'1' to 'one'"), ("k=1", [[1], [1]], "lists or structs"), ("k=one", [1, 1], "1"),
        ("k=0.5", [0.5, float("nan")], "0.5 to 0.5, and perhaps NaN, which statistics leave out"),
        ("k=1", pa.array([2**62, 1], pa.timestamp("us")), "statistics that Python cannot read"),
        ("k=__HIVE_DEFAULT_PARTITION__", ["a", None], "1 null in 2 rows"),
    ],
)  # fmt: skip
def test_a_column_that_may_hold_other_values_than_its_folder_is_refused_or_left_out(folder, values, found, tmp_path):
    write(tmp_path / "input" / folder / "x.parquet", {"k": values, **fed(2)})
    (problem,) = scorer.prepare(tmp_path / "input", MODEL, tmp_path / "out").problems
    assert problem.found == found
    assert problem.where.endswith(f"{folder}/x.parquet")
    assert scorer.prepare(tmp_path / "input", MODEL, tmp_path / "out", keep="a").problems == ()


def test_a_column_that_differs_from_its_folder_cannot_be_fed_or_filtered_on(tmp_path):
    write(tmp_path / "input" / "k=1" / "x.parquet", {"k": [1, 2], **fed(2)})
    for use in ({"where": "k = 1"}, {"feed": "x=k,a,b"}):
        (problem,) = scorer.prepare(tmp_path / "input", MODEL, tmp_path / "out", keep="a", **use).problems
        assert "'k' is in the files and in the folder names" in problem.what


def test_a_column_without_statistics_is_not_trusted_to_hold_the_value_of_its_folder(tmp_path):
    for k in (1, 2):
        write(tmp_path / "input" / f"k={k}" / "x.parquet", {"k": [k, k], **fed(2)}, write_statistics=k == 1)
    (problem,) = scorer.prepare(tmp_path / "input", MODEL, tmp_path / "out").problems
    assert problem.found == "no statistics that show its values"
    assert "k=2" in problem.where


@pytest.mark.parametrize("reader", ["pandas", "pyarrow"])
def test_an_output_with_the_name_of_a_key_is_refused_and_readable_under_another_name(reader, tmp_path):
    read_folder = {
        "pandas": pd.read_parquet,
        "pyarrow": lambda path: pads.dataset(path, partitioning="hive").to_table().to_pandas(),
    }[reader]
    for k in (0, 1):
        write(tmp_path / "input" / f"total={k}" / "x.parquet", fed(2))
    code, _, text = cli("run", tmp_path / "input", "--model", MODEL, "--output", tmp_path / "out")
    assert (code, (tmp_path / "out").exists()) == (3, False)
    assert "'total'" in text
    scorer.run(tmp_path / "input", MODEL, tmp_path / "out", prefix="score_", **HERE)
    frame = read_folder(tmp_path / "out")
    assert frame["total"].astype(int).tolist() == [0, 0, 1, 1]
    assert frame["score_total"].tolist() == frame[["a", "b", "c"]].sum(axis=1).tolist()


def test_plain_folders_are_mirrored_too(tmp_path):
    for i, folder in enumerate(["b", "a/10", "a/9", "a"]):
        write(tmp_path / "input" / folder / "x.parquet", {"id": [i], **fed(1)})
    scorer.run(tmp_path / "input", MODEL, tmp_path / "out", **HERE)
    parts = {
        path.name: str(path.relative_to(tmp_path / "out").parent) for path in (tmp_path / "out").rglob("*.parquet")
    }
    assert sorted(parts.values()) == ["a", "a/10", "a/9", "b"]
    assert [parts[name] for name in sorted(parts) if "/" in parts[name]] == ["a/9", "a/10"]


def test_several_inputs_are_scored_in_the_given_order(backend, tmp_path):
    table = pa.table({"id": pa.array(range(40)), **fed(40)})
    for i, name in enumerate(["z", "b", "m/2", "m/10"]):
        write(tmp_path / f"{name}.parquet", table.slice(10 * i, 10))
    inputs = [tmp_path / "z.parquet", str(tmp_path / "b.parquet"), tmp_path / "m"]
    scorer.run(inputs, MODEL, tmp_path / "out", **backend)
    got = rewritten(tmp_path / "out")
    assert got["id"].to_pylist() == list(range(40))
    same(got, table)


@pytest.mark.parametrize("asked", ["source", "none", "snappy", "zstd", "lz4", "gzip", "brotli"])
@pytest.mark.parametrize("source", ["none", "zstd", "lz4"])
def test_the_output_has_the_requested_codec(asked, source, tmp_path):
    table = pa.table({"text": cycle(["x", "y"], pa.string(), 500), **fed(500)})
    write(tmp_path / "in.parquet", table, compression=source)
    code, out, error = cli(
        "run", tmp_path / "in.parquet", "--model", MODEL, "--output", tmp_path / "out", "--cluster", "synchronous",
        "--compression", asked, "--quiet",
    )  # fmt: skip
    assert code == 0, (out, error)
    (path,) = (tmp_path / "out").iterdir()
    metadata = pq.ParquetFile(path).metadata
    names = {metadata.row_group(0).column(i).compression for i in range(metadata.num_columns)}
    wanted = source if asked == "source" else asked
    assert names == {{"none": "UNCOMPRESSED"}.get(wanted, wanted.upper())}
    same(read(tmp_path / "out"), table)


def test_an_input_without_rows_gives_an_output_without_rows(backend, tmp_path):
    schema = pa.schema([(name, array.type) for name, array in KINDS.items()] + [(name, pa.float32()) for name in "abc"])
    folder = split(tmp_path / "input", schema.empty_table(), groups=((), (0, 0)))
    report = scorer.run(folder, MODEL, tmp_path / "out", **backend)
    assert report.counts.rows == 0
    same(rewritten(tmp_path / "out"), stored(folder))
    assert report_of(tmp_path / "out")["counts"]["rows"] == 0
