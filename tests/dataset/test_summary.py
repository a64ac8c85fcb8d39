"""The summary of the input: files, order, columns, and the facts from their footers."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs import write

from scorer.arrow import common_type
from scorer.dataset.summary import File, problems_of, summarise
from scorer.errors import InputError, UnreadableFile
from scorer.preflight.findings import shared_name
from scorer.storage.files import FileId

ONE = {"a": [1]}


def fill(top, *paths):
    for path in paths:
        write(top / path, ONE)


def test_unreadable_files_are_counted_and_the_first_is_reported(tmp_path):
    fill(tmp_path, "a.parquet")
    for name in ("b", "c", "d"):
        (tmp_path / f"{name}.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(UnreadableFile, match="2 more") as caught:
        summarise([str(tmp_path)])
    assert caught.value.where.endswith("b.parquet")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 100])
def test_a_broken_file_is_unreadable(tmp_path, content):
    path = tmp_path / "x.parquet"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=r"x\.parquet"):
        summarise([str(path)])


def hive_of(folder):
    return File(id=FileId("", 0, 0), folder=folder, top="", row_groups=()).hive


@pytest.mark.parametrize(
    ("folder", "keys"),
    [
        ("", {}), ("plain", {}), ("y=2020/m=1", {"y": "2020", "m": "1"}), ("x/y=1/z", {"y": "1"}),
        ("k=__HIVE_DEFAULT_PARTITION__", {"k": None}), ("k=a%20b%2Fc", {"k": "a b/c"}), ("k=a=b", {"k": "a=b"}),
        ("k=", {"k": ""}), ("k=%C3%A4", {"k": "ä"}),
    ],
)  # fmt: skip
def test_keys_are_read_from_the_path(folder, keys):
    assert hive_of(folder) == keys


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "20"], pa.int64()), (["1", "__HIVE_DEFAULT_PARTITION__"], pa.int64()), (["-5", "0"], pa.int64()),
        (["1", "x"], pa.string()), (["01", "02"], pa.string()), (["1.5"], pa.string()), ([""], pa.string()),
        (["__HIVE_DEFAULT_PARTITION__"], pa.string()), (["9" * 19], pa.string()), (["2020-01-01"], pa.string()),
    ],
)  # fmt: skip
def test_keys_are_whole_numbers_only_if_all_are(tmp_path, values, kind):
    fill(tmp_path, *(f"k={value}/a.parquet" for value in values))
    dataset = summarise([str(tmp_path)])
    assert dataset.hive == pa.schema([("k", kind)])
    assert dataset.columns.names == ["a", "k"]
    assert {file.folder for file in dataset.files} == {f"k={value}" for value in values}


def test_a_key_that_is_a_column_too_is_the_column(tmp_path):
    fill(tmp_path, "a=5/x.parquet")
    dataset = summarise([str(tmp_path)])
    assert dataset.columns == pa.schema([("a", pa.int64())])
    assert dataset.hive.names == ["a"]


@pytest.mark.parametrize("other", ["x.parquet", "j=1/x.parquet", "k=1/j=2/x.parquet", "j=2/k=1/x.parquet"])
def test_folders_with_different_keys_are_refused(tmp_path, other):
    fill(tmp_path, "k=1/x.parquet", other)
    with pytest.raises(InputError, match="different keys"):
        summarise([str(tmp_path)])


def looked(tmp_path, *tables, **options):
    for i, table in enumerate(tables):
        write(tmp_path / f"{i}.parquet", table, **options)
    return summarise([str(tmp_path)])


def test_the_order_of_columns_is_free(tmp_path):
    dataset = looked(tmp_path, {"a": [1], "b": ["x"]}, {"b": ["y"], "a": [2]})
    assert dataset.schema.names == ["a", "b"]
    assert problems_of(dataset, ["a", "b"]) == []


DICTIONARY = pa.dictionary(pa.int32(), pa.string())


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [
        ([DICTIONARY, pa.string()], pa.string()), ([pa.string(), DICTIONARY], pa.string()),
        ([DICTIONARY, DICTIONARY], DICTIONARY), ([DICTIONARY, pa.dictionary(pa.int8(), pa.string())], DICTIONARY),
        ([pa.dictionary(pa.int8(), pa.string()), pa.string(), DICTIONARY], pa.string()),
        ([DICTIONARY, pa.string(), DICTIONARY], pa.string()),
    ],
)  # fmt: skip
def test_a_dictionary_counts_as_its_values(tmp_path, kinds, wanted):
    dataset = looked(tmp_path, *(pa.table({"a": pa.array(["x", "y"], kind)}) for kind in kinds))
    stored = {pq.read_schema(file.path).field("a").type for file in dataset.files}
    assert dataset.schema.field("a").type == (wanted if len(stored) > 1 else stored.pop())
    assert problems_of(dataset, ["a"]) == []


def test_columns_whose_values_differ_in_kind_have_no_common_type():
    few = [pa.string(), pa.binary(), pa.int8(), pa.int16(), pa.list_(pa.int8()), pa.list_(pa.int8(), 2),
           pa.list_(pa.int8(), 3), pa.list_(pa.int16()), pa.struct([("a", pa.int8())]), pa.struct([("b", pa.int8())]),
           pa.struct([("a", pa.int8()), ("b", pa.int8())]), pa.map_(pa.string(), pa.int8()), pa.null(),
           pa.map_(pa.string(), pa.int16()), pa.binary(2), pa.timestamp("us"), pa.timestamp("us", "UTC")]  # fmt: skip
    for one, other in itertools.permutations(few, 2):
        assert common_type(one, other) is None, (one, other)


def test_a_column_of_two_types_is_a_problem_only_if_it_is_used(tmp_path):
    dataset = looked(tmp_path, {"a": [1], "b": [1]}, {"a": [1.5], "b": [1]}, {"b": [1]})
    assert problems_of(dataset, ["b"]) == []
    problems = problems_of(dataset, ["a"])
    assert all("int64" in p.expected for p in problems)
    assert ["double" in p.found for p in problems] == [True, False]
    assert [p.where for p in problems] == [file.path for file in dataset.files[1:]]


def test_a_column_may_be_null_if_any_file_says_so(tmp_path):
    def one(nullable):
        fields = [pa.field("a", pa.int64(), nullable=nullable), pa.field("b", pa.int64(), nullable=False)]
        return pa.table({"a": [1], "b": [1]}, pa.schema(fields))

    dataset = looked(tmp_path, one(nullable=False), one(nullable=True))
    assert [field.nullable for field in dataset.schema] == [True, False]


def test_metadata_survives_except_what_pandas_wrote(tmp_path):
    field = pa.field("a", pa.int64(), metadata={"unit": "m"})
    dataset = looked(tmp_path, pa.table({"a": [1]}, pa.schema([field], {"geo": "{}", "pandas": "{}"})))
    assert dataset.schema.metadata == {b"geo": b"{}"}
    assert dataset.schema.field("a").metadata[b"unit"] == b"m"


def test_columns_that_share_a_name_are_a_problem_only_if_requested(tmp_path):
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], ["a", "a", "b"])
    dataset = looked(tmp_path, table)
    assert shared_name(dataset, []) == []
    (problem,) = shared_name(dataset, sorted(dataset.duplicates))
    assert "'a'" in problem.what


def test_rows_and_row_groups_are_counted(tmp_path):
    dataset = looked(tmp_path, {"a": range(10)}, {"a": []}, {"a": range(7)}, row_group_size=4)
    assert [file.row_groups for file in dataset.files] == [(4, 4, 2), (0,), (4, 3)]
    assert dataset.rows == 17


def test_nulls_are_counted_where_statistics_are(tmp_path):
    columns = {"a": [1, None, None], "b": [1, 2, 3], "s": ["x", None, "y"]}
    dataset = looked(tmp_path, columns, columns, row_group_size=2)
    assert dataset.nulls == {"a": 4, "b": 0, "s": 2}
    write(tmp_path / "2.parquet", {"a": [None, 1], "b": [1, 1], "s": ["", ""]}, write_statistics=["b"])
    assert summarise([str(tmp_path)]).nulls == {"b": 0}


def test_only_dictionaries_that_save_space_are_listed(tmp_path):
    rng = np.random.default_rng(0)
    rows = 20_000
    columns = {
        "few": rng.integers(0, 5, rows), "id": np.arange(rows), "noise": rng.standard_normal(rows),
        "text": rng.choice(["a", "b"], rows), "flags": rng.integers(0, 3, rows).astype(np.float32),
    }  # fmt: skip
    assert looked(tmp_path, columns).dictionaries == ("few", "flags")
    assert looked(tmp_path, columns, use_dictionary=False).dictionaries == ()


@pytest.mark.parametrize("codec", ["none", "snappy", "zstd", "lz4", "gzip", "brotli"])
def test_the_sources_codec_is_found(tmp_path, codec):
    assert looked(tmp_path, {"a": range(100)}, compression=codec).codec == codec


def texts(rows):
    return pa.array([("word" * 25) + str(i % 10) for i in range(rows)])


SIZED = {
    "int64": lambda n: pa.array(range(n)),
    "constant int64": lambda n: pa.array([7] * n),
    "float32": lambda n: pa.array(np.random.default_rng(0).standard_normal(n).astype(np.float32)),
    "int8": lambda n: pa.array([i % 100 for i in range(n)], pa.int8()),
    "distinct texts": lambda n: pa.array([f"a text of some length, and number {i}" for i in range(n)]),
    "repeated texts": texts,
    "half nulls": lambda n: pa.array([None if i % 2 else 1.5 for i in range(n)]),
    "lists": lambda n: pa.array([[1.0, 2.0, 3.0]] * n, pa.list_(pa.float32())),
    "decimals": lambda n: pa.array([1] * n, pa.decimal128(20, 2)),
}


@pytest.mark.parametrize("name", SIZED)
def test_a_rows_decoded_size_is_not_underestimated(tmp_path, name):
    """The size of parts depends on it: an estimate that is far too low breaks the memory limit."""
    rows = 20_000
    table = pa.table({"a": SIZED[name](rows)})
    dataset = looked(tmp_path, table, row_group_size=5_000)
    real = table.nbytes / rows
    assert set(dataset.column_bytes) == {"a"}
    assert real / 2 <= dataset.column_bytes["a"] <= max(8 * real, 16)


def test_sizes_of_nested_and_dotted_columns_go_to_their_column(tmp_path):
    table = pa.table({"s": [{"x": 1, "y": 2.0}] * 100, "p.q": range(100)})
    sizes = looked(tmp_path, table).column_bytes
    assert set(sizes) == {"s", "p.q"}
    assert sizes["s"] == pytest.approx(16)
    assert sizes["p.q"] == pytest.approx(8)


def test_an_empty_dataset_is_ordinary(tmp_path):
    dataset = looked(tmp_path, pa.table({"a": pa.array([], pa.int64())}))
    assert (dataset.rows, dataset.schema.names, dataset.column_bytes) == (0, ["a"], {"a": 8.0})
