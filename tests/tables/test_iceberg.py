"""Snapshots of Iceberg tables: their files, columns and deleted rows are those that pyiceberg's own scan reads."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.iceberg_tables import (
    Warehouse,
    data_files,
    delete_positions,
    delete_values,
    live,
    live_rows,
    local,
    metadata_path,
)

from scorer.errors import InputChanged, InputError, InputNotFound, UnreadableFile
from scorer.tables import _iceberg_files, iceberg_metadata
from scorer.tables.iceberg import snapshot
from scorer.tables.snapshot import At

IDS = pa.schema([pa.field("id", pa.int64())])


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory):
    found = Warehouse(tmp_path_factory.mktemp("lake"))
    yield found
    found.close()


def ids(*numbers):
    return pa.table({"id": pa.array(numbers, pa.int64())})


def read(snapshot):
    return live(snapshot).sort_by("id")


def now(table, version=None):
    return snapshot(metadata_path(table), At(snapshot=version))


def test_types_nulls_and_nested_columns_come_as_pyiceberg_reads_them(warehouse):
    struct = pa.struct([("x", pa.int32()), ("y", pa.list_(pa.string()))])
    columns = {
        "id": pa.array([0, 1, 2], pa.int64()),
        "flag": pa.array([True, None, False]),
        "small": pa.array([1, None, -1], pa.int32()),
        "real": pa.array([1.5, float("nan"), None], pa.float32()),
        "double": pa.array([-0.0, float("inf"), None]),
        "price": pa.array([decimal.Decimal("1.25"), None, decimal.Decimal("-0.01")], pa.decimal128(9, 2)),
        "day": pa.array([dt.date(2026, 1, 1), None, dt.date(1969, 12, 31)]),
        "clock": pa.array([dt.time(1, 2, 3, 4), None, dt.time(0)], pa.time64("us")),
        "moment": pa.array([0, None, -1], pa.timestamp("us")),
        "zoned": pa.array([0, None, -1], pa.timestamp("us", "UTC")),
        "text": ["ä", None, ""],
        "raw": pa.array([b"\xff", None, b""]),
        "fixed": pa.array([b"1234", None, b"abcd"], pa.binary(4)),
        "list": [[1, None], None, []],
        "map": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int64())),
        "struct": pa.array([{"x": 1, "y": ["a", None]}, None, {"x": None, "y": None}], struct),
    }
    rows = pa.table(columns)
    table = warehouse.create(rows.schema, rows)
    found = now(table)
    assert found.kind, found.table_id == ("iceberg", str(table.metadata.table_uuid))
    assert found.version == str(table.current_snapshot().snapshot_id)
    assert repr(read(found).to_pylist()) == repr(live_rows(table).to_pylist())  # NaN does not equal itself
    assert read(found).schema == live_rows(table).schema


def test_a_uuid_is_read(warehouse):
    from pyiceberg.schema import Schema
    from pyiceberg.types import LongType, NestedField, UUIDType

    schema = Schema(NestedField(1, "id", LongType(), required=False), NestedField(2, "key", UUIDType(), required=False))
    table = warehouse.create(schema, pa.table({"id": [1], "key": pa.array([b"0123456789abcdef"], pa.uuid())}))
    assert read(now(table)) == live_rows(table)


def test_position_deletes_hide_rows_of_older_files_only(warehouse):
    table = warehouse.create(IDS, ids(*range(10)))
    first = data_files(table)[0]
    delete_positions(table, {first: [0, 9, 4]})
    delete_positions(table, {first: [4, 5]}, bounds=False)
    table.append(ids(*range(10, 20)))
    found = now(table)
    assert found.deleted[local(first.file_path)].tolist() == [0, 4, 5, 9]
    assert read(found) == live_rows(table)
    assert [file.deletes != "" for file in found.files].count(True) == 1
    assert read(found)["id"].to_pylist() == [1, 2, 3, 6, 7, 8, *range(10, 20)]


def test_one_delete_file_names_several_files(warehouse):
    table = warehouse.create(IDS, ids(*range(10)))
    table.append(ids(*range(10, 20)))
    one, two = data_files(table)
    delete_positions(table, {one: [1], two: [2, 3]}, bounds=False)
    delete_positions(table, {one: range(10)})
    assert read(now(table)) == live_rows(table)
    assert read(now(table))["id"].to_pylist() == [10, 11, *range(14, 20)]


def test_a_delete_file_concerns_only_its_own_partition(warehouse):
    from pyiceberg.partitioning import PartitionField, PartitionSpec
    from pyiceberg.schema import Schema
    from pyiceberg.transforms import IdentityTransform
    from pyiceberg.types import LongType, NestedField, StringType

    schema = Schema(
        NestedField(1, "id", LongType(), required=False), NestedField(2, "day", StringType(), required=False)
    )
    spec = PartitionSpec(PartitionField(2, 1000, IdentityTransform(), "day"))
    table = warehouse.create(schema, pa.table({"id": [1, 2, 3, 4], "day": ["a", "a", "b", "b"]}), spec=spec)
    one, two = data_files(table)
    delete_positions(table, {one: [0], two: [1]}, bounds=False)  # limited to the partition of the first
    found = now(table)
    assert found.partition_columns == ("day",)
    assert [file.keys for file in found.files] == [(("day", "a"),), (("day", "b"),)]
    assert {path: rows.tolist() for path, rows in found.deleted.items()} == {local(one.file_path): [0]}
    assert read(found)["id"].to_pylist() == [2, 3, 4]


def test_columns_are_found_by_their_ids(warehouse):
    schema = pa.schema([("id", pa.int64()), ("a", pa.int32()), ("b", pa.float32()), ("gone", pa.string())])
    schema = schema.append(pa.field("deep", pa.struct([("x", pa.int32()), ("y", pa.string())])))
    rows = {"id": [1], "a": pa.array([7], pa.int32()), "b": pa.array([0.1], pa.float32()), "gone": ["old"]}
    table = warehouse.create(schema, pa.table(rows | {"deep": [{"x": 1, "y": "y"}]}, schema=schema))
    with table.update_schema() as change:
        change.rename_column("a", "renamed").rename_column(("deep", "x"), "z").delete_column("gone")
    with table.update_schema() as change:
        change.update_column("renamed", field_type=_long()).update_column("b", field_type=_double())
        change.update_column(("deep", "z"), field_type=_long()).add_column(("deep", "new"), _double())
        change.add_column("gone", _long())  # another column of an old name
        change.add_column("a", _long())  # the old name of a renamed one
        change.move_first("gone")
    table.append(pa.table({"id": [2], "renamed": [2**40], "gone": [5], "a": [6]}, schema=pa.schema(
        [("id", pa.int64()), ("renamed", pa.int64()), ("gone", pa.int64()), ("a", pa.int64())])))  # fmt: skip
    found = read(now(table))
    assert found == live_rows(table)
    old = found.to_pylist()[0]
    assert old == {
        "gone": None, "id": 1, "renamed": 7, "b": float(np.float32(0.1)),
        "deep": {"z": 1, "y": "y", "new": None}, "a": None,
    }  # fmt: skip


def _long():
    from pyiceberg.types import LongType

    return LongType()


def _double():
    from pyiceberg.types import DoubleType

    return DoubleType()


def test_decimals_get_more_digits_and_dates_become_times(warehouse):
    from pyiceberg.types import DecimalType

    day, price = dt.date(1969, 12, 31), decimal.Decimal("-1.25")
    table = warehouse.create(IDS.append(pa.field("price", pa.decimal128(9, 2))).append(pa.field("day", pa.date32())))
    table.append(pa.table({"id": [1, 2], "price": pa.array([price, None], pa.decimal128(9, 2)), "day": [None, day]}))
    with table.update_schema() as change:
        change.update_column("price", field_type=DecimalType(20, 2))
    assert read(now(table)) == live_rows(table)
    path = metadata_path(table)
    with open(path, encoding="utf-8") as file:
        metadata = json.load(file)
    metadata["schemas"][-1]["fields"][2]["type"] = "timestamp"  # of format 3, which pyiceberg does not write
    with open(path, "w", encoding="utf-8") as file:
        json.dump(metadata, file)
    assert read(snapshot(path, At())).to_pylist() == [
        {"id": 1, "price": price, "day": None},
        {"id": 2, "price": None, "day": dt.datetime(1969, 12, 31)},  # noqa: DTZ001 - Iceberg's timestamp has no zone
    ]


def test_a_snapshot_a_tag_and_a_branch_are_read_as_they_were(warehouse):
    table = warehouse.create(IDS, ids(1))
    first = table.current_snapshot().snapshot_id
    table.manage_snapshots().create_tag(first, "monday").create_branch(first, "trial").commit()
    with table.update_schema() as change:
        change.add_column("new", _long())
    table.append(pa.table({"id": [2], "new": [3]}))
    assert read(now(table, str(first))) == live_rows(table, snapshot_id=first)
    assert now(table, "monday").version == str(first)
    assert now(table, "monday").schema.names == ["id"]
    assert now(table, "trial").schema.names == ["id", "new"]  # a branch goes on with the table's columns
    assert now(table).version == str(table.current_snapshot().snapshot_id)


def test_the_version_holds_the_schema_too(warehouse):
    table = warehouse.create(IDS, ids(1))
    before = now(table)
    with table.update_schema() as change:
        change.add_column("new", _long())
    after = now(table)
    assert (before.version, before.schema.names) == (str(table.current_snapshot().snapshot_id), ["id"])
    assert (after.version, after.schema.names) == (f"{before.version}:1", ["id", "new"])
    table.append(pa.table({"id": [2], "new": [3]}))
    for pinned in (before, after):
        again = now(table, pinned.version)
        assert (again.version, again.schema, again.files) == (pinned.version, pinned.schema, pinned.files)


def test_partitions_may_change(warehouse):
    schema = pa.schema([("id", pa.int64()), ("day", pa.date32()), ("region", pa.string())])

    def rows(*numbers):
        days = [dt.date(2026, 1, 1 + n % 2) for n in numbers]
        return pa.table(
            {"id": numbers, "day": days, "region": [None if n % 3 else "x=/ä" for n in numbers]}, schema=schema
        )

    table = warehouse.create(schema, rows(*range(6)))
    with table.update_spec() as change:
        change.add_identity("day")
    table.append(rows(*range(6, 12)))
    assert (now(table).partition_columns, read(now(table))) == ((), live_rows(table))
    table.overwrite(rows(*range(6, 12)))
    assert now(table).partition_columns == ("day",)
    with table.update_spec() as change:
        change.add_identity("region")
    table.append(rows(*range(12, 18)))
    found = now(table)
    assert (found.partition_columns, read(found)) == (("day",), live_rows(table))
    assert {file.must_have for file in found.files} == {(), ("region",)}
    table.overwrite(rows(*range(18)))
    found = now(table)
    assert (found.partition_columns, read(found)) == (("day", "region"), live_rows(table))
    assert ("region", "x=/ä") in {key for file in found.files for key in file.keys}


def test_a_column_that_is_only_in_partitions_is_read_while_all_files_have_that_partition(warehouse, tmp_path):
    schema = pa.schema([("id", pa.int64()), ("day", pa.string())])
    table = warehouse.create(schema)
    with table.update_spec() as change:
        change.add_identity("day")
    table.append(pa.table({"id": [1, 2], "day": ["a", "b"]}))
    for file in data_files(table):  # as files of a table that was converted from Hive
        path = local(file.file_path)
        pq.write_table(pq.ParquetFile(path).read(columns=["id"]), path)
    found = now(table)
    assert read(found).to_pylist() == [{"id": 1, "day": "a"}, {"id": 2, "day": "b"}]
    with table.update_spec() as change:
        change.remove_field("day")
    table.append(pa.table({"id": [3], "day": ["c"]}))
    with pytest.raises(InputError, match="no column 'day', whose value in the table's partitions"):
        read(now(table))


def test_files_without_ids_are_read_by_the_name_mapping(warehouse, tmp_path):
    table = warehouse.create(pa.schema([("id", pa.int64()), ("city", pa.string())]))
    path = tmp_path / "plain.parquet"
    pq.write_table(pa.table({"id": [1, 2], "city": ["a", None]}), path)
    table.add_files([str(path)])
    with table.update_schema() as change:
        change.rename_column("city", "town")
    assert read(now(table)) == live_rows(table)
    assert read(now(table)).to_pylist() == [{"id": 1, "town": "a"}, {"id": 2, "town": None}]
    with table.transaction() as change:
        change.remove_properties("schema.name-mapping.default")
    with pytest.raises(InputError, match="no field ids"):
        read(now(table))


def test_equality_deletes_are_refused_while_they_concern_a_file(warehouse):
    table = warehouse.create(IDS, ids(1, 2, 3))
    delete_values(table, ids(2), [1], data_files(table)[0])
    with pytest.raises(InputError, match="deleted by the values of a key") as refused:
        now(table)
    assert refused.value.found == "1 equality delete file"
    table.overwrite(ids(1, 3))  # newer than the delete file, which is still there
    assert read(now(table))["id"].to_pylist() == [1, 3]


@pytest.mark.parametrize("kind", ["ORC", "AVRO"])
def test_delete_files_of_other_formats_are_refused(warehouse, kind):
    table = warehouse.create(IDS, ids(1, 2, 3))
    delete_positions(table, {data_files(table)[0]: [0]}, format_name=kind)
    with pytest.raises(InputError, match="of a format that scorer does not read") as refused:
        now(table)
    assert refused.value.found == f"1 file in {kind}"


def test_deletion_vectors_are_refused(warehouse):
    table = warehouse.create(IDS, ids(1, 2, 3))
    delete_positions(table, {data_files(table)[0]: [0]}, format_name="PUFFIN")
    with pytest.raises(InputError, match="deletion vectors"):
        now(table)


def test_a_file_that_a_table_has_twice_is_refused(warehouse):
    table = warehouse.create(IDS, ids(1, 2, 3))
    with table.transaction() as change, change.update_snapshot().fast_append() as added:
        added.append_data_file(data_files(table)[0])
    with pytest.raises(InputError, match="one data file twice") as refused:
        now(table)
    assert refused.value.found.startswith("2 times ")


def test_deleted_rows_that_a_file_does_not_have_are_refused(warehouse):
    table = warehouse.create(IDS, ids(1, 2, 3))
    delete_positions(table, {data_files(table)[0]: [3]})
    with pytest.raises(InputError, match="does not have") as refused:
        now(table)
    assert (refused.value.expected, refused.value.found) == ("rows 0 to 2", "rows 3 to 3")


def test_a_column_with_a_default_has_it_in_older_files(warehouse):
    struct = pa.struct([("x", pa.int64())])
    table = warehouse.create(IDS.append(pa.field("deep", struct)))
    table.append(pa.table({"id": [1, 2], "deep": pa.array([{"x": 1}, None], struct)}))
    path = metadata_path(table)
    with open(path, encoding="utf-8") as file:
        metadata = json.load(file)
    fields = metadata["schemas"][0]["fields"]
    added = {"type": "int", "required": False, "initial-default": 7}
    fields.append(added | {"id": 10, "name": "new"})
    fields.append(added | {"id": 11, "name": "day", "type": "date", "initial-default": "2026-01-02", "required": True})
    fields.append(added | {"id": 13, "name": "raw", "type": "binary", "initial-default": "ff00"})
    fields[1]["type"]["fields"].append(added | {"id": 12, "name": "y"})
    with open(path, "w", encoding="utf-8") as file:
        json.dump(metadata, file)
    assert read(snapshot(path, At())).to_pylist() == [
        {"id": 1, "deep": {"x": 1, "y": 7}, "new": 7, "day": dt.date(2026, 1, 2), "raw": b"\xff\x00"},
        {"id": 2, "deep": None, "new": 7, "day": dt.date(2026, 1, 2), "raw": b"\xff\x00"},
    ]


def test_an_empty_table_and_a_snapshot_that_it_does_not_have(warehouse):
    table = warehouse.create(IDS)
    with pytest.raises(InputNotFound, match="is empty"):
        now(table)
    table.append(ids(1))
    for version in ("12345", "monday", f"{table.current_snapshot().snapshot_id}:9"):
        with pytest.raises(InputNotFound, match="this snapshot") as missing:
            now(table, version)
        assert str(table.current_snapshot().snapshot_id) in missing.value.found
        assert "'main'" in missing.value.found


def test_a_table_is_found_by_its_catalog(warehouse, monkeypatch):
    warehouse.configure(monkeypatch)
    table = warehouse.create(IDS, ids(1, 2), name="orders")
    assert read(snapshot("iceberg://lake/ns.orders", At())) == live_rows(table)
    for url, error, words in (
        ("iceberg://lake/ns.gone", InputNotFound, "has no such table"),
        ("iceberg://lake/gone.gone", InputNotFound, "has no such table"),
        ("iceberg://lake/orders", InputError, "names no Iceberg table"),
        ("iceberg://lake", InputError, "names no Iceberg table"),
        ("iceberg://sea/ns.orders", InputError, "cannot be used"),
    ):
        with pytest.raises(error, match=words):
            snapshot(url, At())


NAMES = {
    "the largest number": (["00001-a", "00010-b", "00009-c"], None, "00010-b"),
    "Hadoop's names": (["v9", "v10"], None, "v10"),
    "a hint": (["v1", "v2", "v9"], "1", "v2"),
    "a hint that is behind": (["v1", "v2"], "1", "v2"),
    "a hint with a name": (["00001-a", "00001-b"], "00001-b", "00001-b"),
    "a hint with a file name": (["00001-a", "00001-b"], "00001-a.metadata.json", "00001-a"),
    "a wrong hint": (["v1", "v2"], "7", "v2"),
    "one file": (["final"], None, "final"),
    "compressed": (["v1", "v2.gz"], None, "v2.gz"),
    "two with one number": (["00001-a", "00002-b", "00002-c"], None, ""),
    "one without a number": (["00001-a", "final"], None, ""),
}


@pytest.mark.parametrize("case", NAMES)
def test_the_newest_metadata_file_of_a_folder(tmp_path, case):
    names, hint, newest = NAMES[case]
    (tmp_path / "metadata").mkdir()
    for name in names:
        (tmp_path / "metadata" / f"{name}.metadata.json").touch()
        (tmp_path / "metadata" / f".{name}.metadata.json.crc").touch()
    if hint:
        (tmp_path / "metadata" / "version-hint.text").write_text(hint + "\n")
    if newest:
        assert iceberg_metadata.newest(str(tmp_path)) == str(tmp_path / "metadata" / f"{newest}.metadata.json")
        return
    with pytest.raises(InputError, match="does not tell") as refused:
        iceberg_metadata.newest(str(tmp_path))
    assert f"'{names[-1]}.metadata.json'" in refused.value.found


def test_a_table_is_found_by_its_folder(warehouse):
    table = warehouse.create(IDS, ids(1, 2))
    table.append(ids(3))
    assert read(snapshot(os.path.dirname(os.path.dirname(metadata_path(table))), At())) == live_rows(table)


PLACES = {
    "/lake/a b/%20=ü.parquet": "/lake/a b/%20=ü.parquet",
    "file:/lake/x.parquet": "/lake/x.parquet",
    "file:///lake/x.parquet": "/lake/x.parquet",
    "s3a://lake/x.parquet": "s3://lake/x.parquet",
    "s3n://lake/x.parquet": "s3://lake/x.parquet",
    "gs://lake/x.parquet": "gs://lake/x.parquet",
    "abfss://c@a.dfs.core.windows.net/x": "abfss://c@a.dfs.core.windows.net/x",
    "wasbs://c@a.blob.core.windows.net/x": "abfss://c@a.dfs.core.windows.net/x",
    "hdfs://name/lake/x.parquet": "hdfs://name/lake/x.parquet",
}


@pytest.mark.parametrize("text", PLACES)
def test_where_a_file_is_that_the_metadata_names(text):
    from scorer.tables._iceberg_files import location

    assert location(text) == PLACES[text]


def test_nothing_is_written_through_the_files_of_an_input(tmp_path):
    from scorer.tables._iceberg_files import StoreFiles

    for write in (StoreFiles().new_output, StoreFiles().delete):
        with pytest.raises(PermissionError, match="only read"):
            write(str(tmp_path / "x"))
    (tmp_path / "there").touch()
    assert [StoreFiles().new_input(str(tmp_path / name)).exists() for name in ("there", "gone")] == [True, False]


@pytest.mark.parametrize("place", ["manifest list", "manifest"])
def test_no_cut_and_no_byte_too_many_of_a_manifest_reaches_the_decoder(warehouse, place):
    data = Path(DAMAGES[place](warehouse.create(IDS, ids(1, 2)))).read_bytes()
    assert _iceberg_files._is_whole(data)
    assert not any(
        _iceberg_files._is_whole(data[:size]) for size in range(len(data)) if size != data.find(data[-16:]) + 16
    )
    assert not _iceberg_files._is_whole(data + b"x")
    assert not _iceberg_files._is_whole(bytes(reversed(data)))


DAMAGES = {
    "metadata": metadata_path,
    "manifest list": lambda table: local(table.current_snapshot().manifest_list),
    "manifest": lambda table: local(table.current_snapshot().manifests(table.io)[0].manifest_path),
}


@pytest.mark.parametrize("place", DAMAGES)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "other bytes", "a folder"])
def test_damaged_metadata_ends_in_an_error(warehouse, place, damage):
    table = warehouse.create(IDS, ids(1, 2))
    path, damaged = metadata_path(table), DAMAGES[place](table)
    with open(damaged, "rb") as file:
        data = file.read()
    os.remove(damaged)
    if damage == "a folder":
        os.mkdir(damaged)
    elif damage != "missing":
        with open(damaged, "wb") as file:
            file.write({"empty": b"", "cut": data[: len(data) // 2], "other bytes": bytes(reversed(data))}[damage])
    expected = InputChanged if damage == "missing" else UnreadableFile
    with pytest.raises(expected) as refused:
        snapshot(path, At())
    assert refused.value.where
    assert refused.value.found
