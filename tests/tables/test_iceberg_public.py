"""Iceberg tables that Spark, DuckDB, BigQuery and others wrote, and what Spark read from them.

SCORER_ICEBERG_TABLES names checkouts of github.com/duckdb/duckdb-iceberg and of its older form, duckdb_iceberg, with a
colon between them. Without it, these tests are skipped.
"""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.iceberg_tables import live, plain

from scorer.errors import ScorerError
from scorer.tables import iceberg_metadata
from scorer.tables.iceberg import snapshot
from scorer.tables.snapshot import At

TOPS = [Path(text) for text in os.environ.get("SCORER_ICEBERG_TABLES", "").split(os.pathsep) if text]
FOUND = {
    path.parents[1].relative_to(top / "data").as_posix(): top
    for top in TOPS
    for path in top.rglob("data/**/metadata/*.metadata.json")
}
"""The folder of each table below data/, and the checkout."""
pytestmark = pytest.mark.skipif(not FOUND, reason="SCORER_ICEBERG_TABLES does not name a checkout")

MANY = 20_000
METADATA_ALONE = {"generated_bounds"}
REFUSED = {
    "equality_delete_cross_partition/warehouse/ns/t": "deleted by the values of a key",
    "equality_delete_extra_column/warehouse/ns/t": "does not tell which state",
    "equality_deletes/warehouse/mydb/mytable": "deleted by the values of a key",
    "equality_deletes/warehouse/mydb/mytable_partitioned": "deleted by the values of a key",
    "legacy_bare_deletion_vector/warehouse/default/legacy_bare_deletion_vector": "deletion vectors",
    "custom_write_paths": "is empty",
    "timestamptz_ns": "is empty",
    "big_query_error": "cannot be read",
    "iceberg_v1_deprecated/default/legacy_v1": "cannot be read",
    "partition_binary": "whose value in the table's partitions is not read",
    "hive_partitioned_table": "whose value in the table's partitions is not read",
    "partition_time/default.db/partition_time": "whose value in the table's partitions is not read",
    # the files are not where the metadata says
    "map_stats/default.db/map_stats": "does not exist",
}
"""What scorer says of the tables that it does not read."""
TIMES = [dt.datetime(2023, 5, 15, 14, 30, 45), dt.datetime(2023, 8, 22, 9, 15, 20)]  # noqa: DTZ001 - as in the table
PARTITIONS = {
    "partition_fixed_length_binary/default.db/partition_fixed_length_binary": [b"fixed value", b"hello world"],
    "partition_timestamp/default.db/partition_timestamp": TIMES,
    "partition_timestamptz/default.db/partition_timestamptz": [time.replace(tzinfo=dt.UTC) for time in TIMES],
}
"""Tables that pyiceberg does not read, because a required column is only in the partitions, and its values."""


@pytest.mark.parametrize("name", sorted(FOUND))
def test_a_public_table_is_read_as_pyiceberg_reads_it_or_refused_by_name(name, monkeypatch):
    from pyiceberg.table import StaticTable

    known = name.removeprefix("persistent/")
    if known in METADATA_ALONE:
        pytest.skip("only its metadata is there")
    here = FOUND[name]
    folder = str(here / "data" / name)
    monkeypatch.chdir(os.path.dirname(folder) if "lineitem" in name else here)  # the metadata has paths from here
    if known in REFUSED:
        with pytest.raises(ScorerError, match=REFUSED[known]):
            live(snapshot(folder, At()))
        return
    rows = live(snapshot(folder, At()))
    if known in PARTITIONS:
        assert sorted(rows["partition_col"].to_pylist()) == PARTITIONS[known]
        return
    table = StaticTable.from_metadata(iceberg_metadata.newest(folder))
    assert as_texts(rows) == as_texts(plain(table.scan().to_arrow()))
    for one in table.snapshots():
        rows = live(snapshot(folder, At(snapshot=str(one.snapshot_id))))
        assert as_texts(rows) == as_texts(plain(table.scan(snapshot_id=one.snapshot_id).to_arrow()))


@pytest.mark.parametrize("name", sorted(name for name in FOUND if name.endswith("pyspark_iceberg_table")))
def test_the_rows_are_those_that_spark_read(name, monkeypatch):
    here = FOUND[name]
    monkeypatch.chdir(here)
    folder = here / "data" / name
    by_spark = pa.concat_tables(map(pq.read_table, folder.parent.glob("expected_results/last/data/*.parquet")))
    assert as_texts(live(snapshot(str(folder), At()))) == as_texts(plain(by_spark))


def as_texts(rows):
    """Return the rows in an order of their own; many rows stay a table."""
    if rows.num_rows > MANY:
        return rows.sort_by([(name, "ascending") for name in rows.column_names])
    return sorted(map(repr, rows.to_pylist()))
