"""The columns of a table in its files: every type at every depth, by name and by id, against plain values."""

from __future__ import annotations

import decimal
from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorer.errors import InputError
from scorer.tables.columns import TableColumns, open_as_table, stored_names
from scorer.tables.deleted import first_live
from scorer.tables.snapshot import FIELD_ID, identity_of, key_texts, stored_as


def opened(path, stored, columns):
    pq.write_table(stored, path / "x.parquet", row_group_size=2)
    return open_as_table(pq.ParquetFile(path / "x.parquet"), pa.schema(columns), "x.parquet")


def named(name, kind, *stored, field_id=None, nullable=True):
    metadata = stored_as(stored) if stored else {}
    metadata |= {FIELD_ID: str(field_id).encode()} if field_id is not None else {}
    return pa.field(name, kind, nullable, metadata or None)


def test_a_file_that_is_as_its_table_is_read_as_it_is(tmp_path):
    stored = pa.table({"a": [1], "b": ["x"]})
    assert isinstance(opened(tmp_path, stored, stored.schema), pq.ParquetFile)
    large = [pa.field("a", pa.int64()), pa.field("b", pa.large_string())]
    assert isinstance(opened(tmp_path, stored, large), pq.ParquetFile)
    for other in ([large[1], large[0]], [large[0]], [*large, pa.field("c", pa.int8())]):
        assert isinstance(opened(tmp_path, stored, other), TableColumns)


def test_columns_are_renamed_reordered_added_and_left_out(tmp_path):
    stored = pa.table({"c1": [1, None, 3], "gone": [7, 8, 9], "c2": ["x", "y", None]})
    table = opened(
        tmp_path, stored, [named("text", pa.string(), "c2"), named("new", pa.float64()), named("id", pa.int64(), "c1")]
    )
    assert table.schema_arrow.names == ["text", "new", "id"]
    wanted = [{"text": t, "new": None, "id": i} for t, i in zip(["x", "y", None], [1, None, 3], strict=True)]
    assert table.read_row_groups([0, 1]).to_pylist() == wanted
    assert [row for batch in table.iter_batches(1) for row in batch.to_pylist()] == wanted
    assert [b.to_pylist() for b in table.iter_batches(2, [0, 1], ["new"])] == [[{"new": None}] * 2, [{"new": None}]]
    assert table.read_row_groups([1], ["new"]).num_rows == 1
    assert stored_names(table, ["id", "new"]) == ["c1"]


def test_statistics_are_those_of_the_columns_that_are_read_as_they_are_stored(tmp_path):
    stored = pa.table({"s": [{"x": 1}], "c1": pa.array([1], pa.int32()), "b": [2.0], "c": ["x"]})
    columns = [named("c", pa.string()), named("id", pa.int32(), "c1"), named("c1", pa.float64(), "b")]
    table = opened(tmp_path, stored, [*columns, named("s", stored.schema.field("s").type), named("new", pa.int8())])
    assert table.flat_leaves() == {"c": 3, "id": 1, "c1": 2}
    wider = opened(tmp_path, stored, [named("c1", pa.int64()), named("b", pa.float64())])
    assert wider.flat_leaves() == {"b": 2}


def test_ids_come_before_names_and_a_file_without_ids_is_read_by_names(tmp_path):
    ids = pa.schema([named("x", pa.int64(), field_id=2), named("y", pa.int64(), field_id=1)])
    columns = [named("x", pa.int64(), "a", field_id=1), named("b", pa.int64(), "b", "old", field_id=3)]
    stored = pa.table([[1], [2]], schema=ids)
    assert opened(tmp_path, stored, columns).read_row_groups([0]).to_pylist() == [{"x": 2, "b": None}]
    stored = pa.table({"a": [5], "old": [6]})
    assert opened(tmp_path, stored, columns).read_row_groups([0]).to_pylist() == [{"x": 5, "b": 6}]


def test_fields_in_structs_lists_and_maps_are_renamed_and_widened(tmp_path):
    inner = pa.struct([("q", pa.int16()), ("old", pa.string())])
    stored = pa.table(
        [
            [{"q": 1, "old": "a"}, None, {"q": None, "old": None}],
            [[{"q": 1, "old": None}, None], None, []],
            [[("k", {"q": 2, "old": "z"})], None, []],
            [[[1], None, [2, 3]], [], None],
        ],
        schema=pa.schema([
            ("s", inner), ("l", pa.list_(inner)), ("m", pa.map_(pa.string(), inner)),
            ("ll", pa.list_(pa.list_(pa.int32()))),
        ]),
    )  # fmt: skip
    wide = pa.struct([named("new", pa.int8()), named("Q", pa.int64(), "q")])
    columns = [
        named("S", wide, "s"), named("L", pa.list_(wide), "l"), named("M", pa.map_(pa.string(), wide), "m"),
        named("ll", pa.list_(pa.list_(pa.int64()))),
    ]  # fmt: skip
    table = opened(tmp_path, stored, columns)
    wanted = [
        {
            "S": {"new": None, "Q": 1}, "L": [{"new": None, "Q": 1}, None], "M": [("k", {"new": None, "Q": 2})],
            "ll": [[1], None, [2, 3]],
        },
        {"S": None, "L": None, "M": None, "ll": []},
        {"S": {"new": None, "Q": None}, "L": [], "M": [], "ll": None},
    ]  # fmt: skip
    assert table.read_row_groups([0, 1]).to_pylist() == wanted
    for size in (1, 2, 3):
        batches = list(table.iter_batches(size))
        assert [row for batch in batches for row in batch.to_pylist()] == wanted
        for batch in batches:
            batch.validate(full=True)
    assert stored_names(table, ["S.Q"]) == ["s"]
    assert table.read_row_groups([0], ["S.Q"]).schema.names == ["S"]


WIDENED = [
    (pa.int8(), pa.int16(), 7), (pa.int32(), pa.int64(), -(2**31)), (pa.float32(), pa.float64(), 0.5),
    (pa.int32(), pa.float64(), 2**31 - 1), (pa.decimal128(5, 2), pa.decimal128(9, 4), decimal.Decimal("123.45")),
    (pa.date32(), pa.timestamp("us"), date(2026, 1, 2)), (pa.timestamp("ms"), pa.timestamp("us", "UTC"), 10**12),
]  # fmt: skip
REFUSED = [
    (pa.int64(), pa.int32(), 1), (pa.float64(), pa.float32(), 1.0), (pa.string(), pa.int64(), "1"),
    (pa.int64(), pa.float64(), 1), (pa.decimal128(9, 4), pa.decimal128(5, 2), decimal.Decimal(1)),
    (pa.decimal128(9, 2), pa.decimal128(9, 4), decimal.Decimal(1)), (pa.int32(), pa.string(), 1),
    (pa.list_(pa.int64()), pa.int64(), [1]),
    (pa.struct([("x", pa.string())]), pa.struct([("x", pa.int64())]), {"x": "1"}),
]  # fmt: skip


@pytest.mark.parametrize(("stored", "kind", "value"), WIDENED, ids=str)
def test_a_stored_type_is_widened_if_every_value_stays_the_same(tmp_path, stored, kind, value):
    table = opened(tmp_path, pa.table({"a": pa.array([value, None], stored)}), [pa.field("a", kind)])
    got = table.read_row_groups([0])["a"]
    assert got.type == kind
    assert got.cast(stored).to_pylist() == pa.array([value, None], stored).to_pylist()


@pytest.mark.parametrize(("stored", "kind", "value"), REFUSED, ids=str)
def test_another_type_is_refused_with_both(tmp_path, stored, kind, value):
    with pytest.raises(InputError, match=r"column 'a.*has another type in a file than in the table"):
        opened(tmp_path, pa.table({"a": pa.array([value], stored)}), [pa.field("a", kind)])


def test_a_missing_column_that_may_not_be_null_is_refused(tmp_path):
    for columns in (
        [pa.field("b", pa.int64(), nullable=False)],
        [pa.field("s", pa.struct([pa.field("b", pa.int64(), nullable=False)]))],
    ):
        with pytest.raises(InputError, match="no column 'b', which may not be null"):
            opened(tmp_path, pa.table({"a": [1], "s": [{"x": 1}]}), columns)


@given(st.sets(st.integers(0, 60)), st.integers(0, 60))
def test_the_first_live_rows_end_where_a_loop_says(deleted, rows):
    stored = live = 0
    while live < rows:
        live += stored not in deleted
        stored += 1
    assert first_live(np.array(sorted(deleted), np.int64), rows) == stored


def test_partition_values_become_texts_and_the_same_values_again():
    kinds = {
        pa.int32(): [1, None, -5], pa.float64(): [0.1, 1e300, float("inf")], pa.bool_(): [True, False, None],
        pa.date32(): [date(1, 1, 1), date(9999, 12, 31)], pa.string(): ["", "a/b", "ü", None],
        pa.timestamp("us", "UTC"): [datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)], pa.binary(): [b"abc"],
        pa.decimal128(20, 3): [decimal.Decimal("-1.500")],
    }  # fmt: skip
    for kind, values in kinds.items():
        array = pa.array(values, kind)
        assert pa.array(key_texts(array, "table", "key"), pa.string()).cast(kind).equals(array)
    with pytest.raises(InputError, match="cannot be written as text"):
        key_texts(pa.array([b"\xff"]), "table", "key")


def test_deleted_rows_are_identified_by_their_numbers():
    assert identity_of(np.empty(0, np.int64)) == ""
    assert identity_of(np.array([1, 2])) == identity_of(np.array([1, 2], np.int64)) != identity_of(np.array([1, 3]))
