"""An Iceberg table in a bucket is read through scorer's own client: by its catalog, its folder or its metadata file."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.iceberg_tables import Warehouse, delete_positions, live_rows
from support.runs import MODELS

import scorer
from scorer.errors import InputChanged, PreflightError
from scorer.storage import stores

pytestmark = pytest.mark.service
MODEL = MODELS / "sum3.onnx"


def rows(first, stop):
    ids = np.arange(first, stop)
    day = [f"d{i // 500} %=ü" for i in ids]
    return pa.table(
        {"id": ids, "day": day, **{name: (ids % (i + 7)).astype(np.float32) for i, name in enumerate("abc")}}
    )


@pytest.fixture
def table(s3, tmp_path, monkeypatch):
    """A table of which one file has deleted rows, and one column a new name."""
    user = s3.environment
    keys = {"access-key-id": user["AWS_ACCESS_KEY_ID"], "secret-access-key": user["AWS_SECRET_ACCESS_KEY"]}
    settings = {f"s3.{key}": value for key, value in (keys | {"endpoint": s3.endpoint, "region": "us-east-1"}).items()}
    lake = Warehouse(tmp_path / "lake", f"{s3.bucket()}/wh", **settings)
    lake.configure(monkeypatch)  # without the keys, which only pyiceberg's own client needs
    made = lake.create(rows(0, 1).schema)
    with made.update_spec() as change:
        change.add_identity("day")
    made.append(rows(0, 1000))
    made.append(rows(1000, 1500))
    for task in list(made.scan().plan_files())[:2]:
        delete_positions(made, {task.file: [0, 7, 499]}, bounds=False)
    with made.update_schema() as change:
        change.rename_column("a", "first")
    yield made
    lake.close()


def run(location, output, **options):
    given = {"feed": {"x": ["first", "b", "c"]}, "cluster": "synchronous", "tune": False} | options
    return scorer.run(location, MODEL, output, **given)


def test_a_table_in_a_bucket_is_scored_exactly(s3, table):
    wanted = live_rows(table)
    assert wanted.num_rows == 1494
    sums = sum(wanted[name].to_numpy() for name in ("first", "b", "c"))
    for location in (f"iceberg://lake/{'.'.join(table.name())}", table.location(), table.metadata_location):
        output = f"{s3.bucket()}/out"
        report = run(location, output)
        assert (report.counts.scored, report.counts.deleted) == (1494, 6)
        got = pq.read_table(output.removeprefix("s3://"), filesystem=s3.files(), partitioning=None).sort_by("id")
        assert got["id"].to_pylist() == wanted["id"].to_pylist()
        np.testing.assert_array_equal(got["total"].to_numpy(), sums)
        verdict = scorer.verify(output, deep=True, rescore=100)
        assert verdict.whole, verdict.faults


def test_what_a_store_refuses_and_what_is_gone_is_said(s3, table, tmp_path, monkeypatch):
    list_file = table.current_snapshot().manifest_list
    stores.path_of(list_file).unlink()
    with pytest.raises(PreflightError, match="a file of the Iceberg table does not exist") as gone:
        run(table.location(), tmp_path / "out")
    assert isinstance(gone.value.problems[0], InputChanged)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    stores.configure(())
    stores._stores.clear()
    for location in (table.location(), table.metadata_location):
        with pytest.raises(PreflightError) as refused:
            run(location, tmp_path / "out")
        assert "SignatureDoesNotMatch" in str(refused.value) or "no right" in str(refused.value)
