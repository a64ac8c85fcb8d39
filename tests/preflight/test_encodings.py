"""The output is stored like the input, with other encodings only if they make the first rows clearly smaller."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs import FLIGHTS, MODELS, write

import scorer
import scorer.options.fields
from scorer.preflight.encodings import DELTA, SPLIT, choose
from scorer.storage.encoding import Storage, encoded_bytes

ROWS = 60_000
RNG = np.random.default_rng(0)
FLOATS = {name: RNG.standard_normal(ROWS).astype(np.float32) for name in "abc"}


def stored(tmp_path, columns, asked=None, **options):
    """The storage that a plan chooses for these kept columns."""
    source = write(tmp_path / "in.parquet", {**FLOATS, **columns}, **options)
    keep = ",".join(columns) or "none"
    plan = scorer.prepare(source, MODELS / "named3.onnx", tmp_path / "out", keep=keep, **(asked or {}))
    return plan.check().storage


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.arange(ROWS) * 7, DELTA),
        (RNG.integers(0, 2**62, ROWS), None),
        (np.cumsum(RNG.standard_normal(ROWS)).round(2), None),
        ((1e6 + np.arange(ROWS) / 1000).astype(np.float64), SPLIT),
    ],
    ids=["a row number", "random whole numbers", "a walk in cents", "a slow clock"],
)
def test_an_encoding_is_used_where_it_makes_a_column_clearly_smaller(values, expected, tmp_path):
    chosen = dict(stored(tmp_path, {"v": values}, use_dictionary=False).encodings)
    assert chosen.get("v") == expected
    plain = Storage(codec="snappy", row_group_rows=ROWS)
    table = pa.table({"v": values})
    for encoding in (DELTA, SPLIT):
        if (encoding == DELTA) == (values.dtype.kind == "i"):
            other = Storage(codec="snappy", row_group_rows=ROWS, encodings=(("v", encoding),))
            smaller = encoded_bytes(table, other) < 0.8 * encoded_bytes(table, plain)
            assert smaller == (expected == encoding)


def test_a_dictionary_that_paid_is_kept_and_no_other_encoding_is_tried(tmp_path):
    found = stored(tmp_path, {"v": np.arange(ROWS) % 5})
    assert found.dictionaries == ("v",)
    assert found.encodings == ()


def test_few_rows_choose_no_encoding(tmp_path):
    source = write(tmp_path / "in.parquet", {**{k: v[:1000] for k, v in FLOATS.items()}, "v": np.arange(1000)})
    plan = scorer.prepare(source, MODELS / "named3.onnx", tmp_path / "out")
    assert plan.check().storage.encodings == ()


@pytest.mark.parametrize(("given", "expected"), [(20_000, 20_000), (1_000, 16_384)])
def test_row_groups_are_as_the_sources_but_not_tiny(given, expected, tmp_path):
    assert stored(tmp_path, {"v": np.arange(ROWS)}, row_group_size=given).row_group_rows == expected


def test_row_groups_as_requested(tmp_path):
    source = write(tmp_path / "in.parquet", FLOATS)
    scorer.run(source, MODELS / "named3.onnx", tmp_path / "out", row_group_rows=5_000, threads=1)
    sizes = [pq.read_metadata(path).row_group(0).num_rows for path in (tmp_path / "out").glob("*.parquet")]
    assert set(sizes) == {5_000}


def test_real_flights_are_smaller_than_with_default_settings(tmp_path):
    table = pq.read_table(FLIGHTS / "flights.parquet")
    chosen = choose(
        scorer.dataset.summary.summarise([str(FLIGHTS / "flights.parquet")]),
        scorer.options.fields.OutputOptions(),
        table,
        table.select([]),
    )
    defaults = pa.BufferOutputStream()
    pq.write_table(table, defaults)
    assert encoded_bytes(table, chosen) < 0.95 * defaults.tell()
