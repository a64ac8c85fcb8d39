"""Delta tables on a real store: the same rows as on a disk, with workers, and files that were removed."""

from __future__ import annotations

import uuid

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from support.delta_tables import delete_rows, live, mapped_table
from support.runs import MODELS

import scorer
from scorer.errors import InputChanged, PreflightError
from scorer.tables import clients

pytestmark = pytest.mark.service


def rows(first, stop, **more):
    ids = np.arange(first, stop)
    columns = {name: (ids % k).astype(np.float32) for name, k in zip("abc", (7, 5, 3), strict=True)}
    return pa.table({"id": ids, **columns, **more})


@pytest.fixture(scope="module")
def bucket(_seaweed):
    return _seaweed.bucket()


@pytest.fixture
def push(s3, bucket):
    """A function that copies a table to the store and returns its URL."""

    def copied(path):
        url = f"{bucket}/{uuid.uuid4().hex[:8]}"
        local = pyarrow.fs.LocalFileSystem()
        target = url.removeprefix("s3://")
        pyarrow.fs.copy_files(str(path), target, source_filesystem=local, destination_filesystem=s3.files())
        return url

    return copied


def run(table, out, **options):
    given = {"feed": {"x": ["a", "b", "c"]}, "cluster": "synchronous", "tune": False, "batch_rows": 64, **options}
    return scorer.run(table, MODELS / "sum3.onnx", out, **given)


def scored(folder):
    return pa.concat_tables(pq.ParquetFile(file).read() for file in folder.rglob("*.parquet")).sort_by("id")


@pytest.mark.parametrize("cluster", ["synchronous", "processes"])
def test_the_live_rows_of_a_table_on_a_store_are_scored(push, tmp_path, cluster):
    path = tmp_path / "table"
    for i in range(3):
        write_deltalake(
            path, rows(1000 * i, 1000 * i + 1000, day=["x y/%"] * 1000), mode="append", partition_by=["day"]
        )
    delete_rows(path, {0: range(0, 1000, 2), 1: [5]})
    url = push(path)
    report = run(url, tmp_path / "out", cluster=cluster, workers=2 if cluster == "processes" else None)
    assert report.counts.deleted == 501
    assert scored(tmp_path / "out")["id"].to_pylist() == sorted(live(path)["id"].to_pylist())
    assert scorer.verify(tmp_path / "out", deep=True, rescore=50).whole


def test_input_and_output_on_a_store_keep_the_numbers_of_deleted_rows(push, tmp_path):
    path = tmp_path / "table"
    write_deltalake(path, rows(0, 1000))
    delete_rows(path, {0: [1, 2, 999]})
    url = push(path)
    report = run(url, f"{url}-out")
    assert (report.counts.scored, report.counts.deleted) == (997, 3)
    verdict = scorer.verify(f"{url}-out", deep=True, rescore=100)
    assert verdict.whole, verdict.faults
    assert run(url, f"{url}-out").already_done


def test_mapped_columns_are_read_by_ranges(push, tmp_path):
    names = {name: f"col-{name}" for name in ("id", "a", "b", "c", "day")}
    mapped_table(
        tmp_path / "table", [rows(0, 500, day=["x"] * 500), rows(500, 600, day=["y"] * 100)], names, "name", ["day"]
    )
    run(push(tmp_path / "table"), tmp_path / "out")
    assert scored(tmp_path / "out")["id"].to_pylist() == list(range(600))


def test_a_table_written_on_the_store_is_read_at_a_version_until_it_is_vacuumed(s3, bucket, tmp_path):
    url = f"{bucket}/{uuid.uuid4().hex[:8]}"
    options = clients.for_delta(url)
    write_deltalake(url, rows(0, 100), storage_options=options)
    write_deltalake(url, rows(100, 150), mode="append", storage_options=options)
    write_deltalake(url, rows(0, 10), mode="overwrite", storage_options=options)
    assert run(url, tmp_path / "one", input_version=1).counts.scored == 150
    assert run(url, tmp_path / "now").counts.scored == 10
    table = DeltaTable(url, storage_options=options)
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    with pytest.raises(PreflightError, match="version 1 was vacuumed") as raised:
        run(url, tmp_path / "two", input_version=1)
    assert isinstance(raised.value.problems[0], InputChanged)


def test_the_clients_of_libraries_get_their_region_and_keys_and_ask_nobody(s3, bucket):
    options = clients.for_delta(f"{bucket}/table")
    assert options["AWS_EC2_METADATA_DISABLED"] == "true"
    assert options["AWS_REGION"]
    assert options["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1")
