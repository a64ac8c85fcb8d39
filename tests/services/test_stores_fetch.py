"""Reading from a distant store: the bytes of local files, few requests, and the rates of the delaying proxy."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs import MODELS
from support.stored import stored_bytes

import scorer
from scorer.storage import stores
from services.conftest import enter_or_skip
from services.delaying import CONNECTION_RATE, ROUND_TRIP_S, delaying

pytestmark = pytest.mark.service

DENSE = str(MODELS / "dense28.onnx")


@pytest.fixture
def link(s3, monkeypatch):
    """A slow link to the server, which scorer uses from here on."""
    with enter_or_skip(delaying(s3.port)) as link:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{link.port}")
        stores._forget_after_fork()
        yield link
    stores._forget_after_fork()


def rows(n, seed=0, bad=()):
    rng = np.random.default_rng(seed)
    floats = {f"f{j}": rng.standard_normal(n, np.float32) for j in range(28)}
    fed = pa.array(np.arange(n) % 7, pa.int32(), mask=np.isin(np.arange(n), bad))
    return pa.table(floats | {"id": np.arange(n), "fed": fed, "text": [f"t{i % 999}" for i in range(n)]})


def both(s3, tmp_path, table, group_rows, **options):
    """Score a local file and the same file on the store; return the outputs' folders."""
    local = tmp_path / "in.parquet"
    pq.write_table(table, local, row_group_size=group_rows)
    url = f"{s3.bucket()}/in.parquet"
    with s3.files().open_output_stream(url.removeprefix("s3://")) as file:
        file.write(local.read_bytes())
    for place, out in ((local, "local"), (url, "remote")):
        report = scorer.run(str(place), model=DENSE, output=tmp_path / out, batch_rows=1000, **options)
        assert report.counts.rows == table.num_rows
    return report


@pytest.mark.parametrize(("group_rows", "options"), [
    (40_000, {}),
    (40_000, {"cluster": "processes", "workers": 2, "threads": 1}),
    (40_000, {"cluster": "synchronous"}),
    (200_000, {"part_bytes": "4MiB", "ahead": 5}),
    (40_000, {"keep": "none", "where": "id >= 90000"}),
])  # fmt: skip
def test_a_distant_input_gives_the_bytes_of_a_local_file(s3, link, tmp_path, group_rows, options):
    both(s3, tmp_path, rows(120_000), group_rows, **{"by_position": False, "feed": "input=f0..f27"} | options)
    assert stored_bytes(tmp_path / "remote") == stored_bytes(tmp_path / "local")


def test_kept_columns_of_parts_with_bad_rows_are_read_from_what_was_fetched(s3, link, tmp_path):
    before = link.counts
    report = both(
        s3, tmp_path, rows(120_000, bad=[5, 60_000]), 40_000, max_bad_rows=10,
        feed="input=f0..f26,fed", on_null="error",
    )  # fmt: skip
    assert report.counts.quarantined == 2
    assert stored_bytes(tmp_path / "remote") == stored_bytes(tmp_path / "local")
    assert link.since(before)["head"] <= 1


def test_a_run_says_what_came_over_the_network_and_names_it_as_the_bottleneck(s3, link, tmp_path):
    report = both(s3, tmp_path, rows(400_000), 100_000, keep="none", feed="input=f0..f27")
    assert report.on_store
    metadata = pq.read_metadata(tmp_path / "in.parquet")
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    stored = sum(group.column(i).total_compressed_size for group in groups for i in range(28))
    assert report.input_bytes == pytest.approx(stored, rel=0.01)
    assert report.bottleneck.shares["network"] > 0.3
    assert "MB read, " in str(report)


def test_the_proxy_delays_each_request_and_limits_each_connection(s3, link):
    location = f"{s3.bucket()}/bytes"
    with s3.files().open_output_stream(location.removeprefix("s3://")) as file:
        file.write(bytes(5_000_000))
    store = stores.of(location)
    store.read_range(stores.identity(location), 0, 10)  # the connection is made
    before, began = link.counts, time.perf_counter()
    file = store.identity(location)
    took = time.perf_counter() - began
    assert ROUND_TRIP_S <= took < ROUND_TRIP_S + 0.2
    began = time.perf_counter()
    assert len(store.read_range(file, 0, 5_000_000)) == 5_000_000
    took = time.perf_counter() - began
    assert 0.95 * 5e6 / CONNECTION_RATE <= took < 5e6 / CONNECTION_RATE + 0.5
    counts = link.since(before)
    assert (counts["get"], counts["head"], counts["put"]) == (1, 1, 0)
    assert 5_000_000 < counts["down_bytes"] < 5_010_000
