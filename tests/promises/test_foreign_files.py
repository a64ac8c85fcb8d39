"""Files of other Parquet writers, in every codec and encoding, are scored, and other readers read the same rows.

Writers: pyarrow, DuckDB, Polars, fastparquet. Readers: the same four. Each reader reads the input and the output; kept
columns must have the same types and values in both, and the scores must be those of the bare runtime.

    PYTHONPATH=.:tests python tests/promises/test_foreign_files.py     prints a table of writers and readers
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from decimal import Decimal
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.plain_scoring import same
from support.runs import MODELS, oracle, write

import scorer

MODEL = MODELS / "sum3.onnx"
ROWS, GROUP = 300, 120
CODECS = ["none", "snappy", "gzip", "brotli", "lz4", "zstd"]
ENCODINGS = {
    "PLAIN": {},
    "DELTA_BINARY_PACKED": {"i32": "DELTA_BINARY_PACKED", "i64": "DELTA_BINARY_PACKED", "ts": "DELTA_BINARY_PACKED"},
    "DELTA_LENGTH_BYTE_ARRAY": {"text": "DELTA_LENGTH_BYTE_ARRAY", "raw": "DELTA_LENGTH_BYTE_ARRAY"},
    "DELTA_BYTE_ARRAY": {"text": "DELTA_BYTE_ARRAY", "raw": "DELTA_BYTE_ARRAY"},
    "BYTE_STREAM_SPLIT": {"a": "BYTE_STREAM_SPLIT", "f64": "BYTE_STREAM_SPLIT", "i32": "BYTE_STREAM_SPLIT"},
    "RLE": {"flag": "RLE"},
}
LAYOUTS = {
    "checksums": {"write_page_checksum": True},
    "a page index": {"write_page_index": True},
    "bloom filters": {"bloom_filter_options": {"i64": {"ndv": ROWS, "fpp": 0.05}, "text": {"ndv": ROWS, "fpp": 0.05}}},
    "no statistics": {"write_statistics": False},
    "no Arrow schema": {"store_schema": False},
    "small pages": {"data_page_size": 200, "write_batch_size": 20},
    "small dictionaries": {"dictionary_pagesize_limit": 100},
    "sizes by content": {"use_content_defined_chunking": True},
}
MODES = {"copied": {}, "filtered": {"where": "i64 >= 40"}, "encoded": {"compression": "zstd", "row_group_rows": 50}}
COMPARED: Counter[tuple[str, str, str]] = Counter()
"""Number of outputs, of values and of different columns, by writer and reader."""


def plain_table() -> pa.Table:
    """Return columns that every writer knows, with nulls, NaN and -0.0."""
    rng = np.random.default_rng(5)
    numbers = {name: rng.standard_normal(ROWS).astype(np.float32) for name in "abc"}
    numbers["a"][:4] = [np.nan, -0.0, np.inf, 1e-42]
    some = [i % 7 == 3 for i in range(ROWS)]
    return pa.table({
        **{name: pa.array(values, from_pandas=False) for name, values in numbers.items()},
        "i64": pa.array(range(ROWS), pa.int64()),
        "i32": pa.array([i % 9 - 4 for i in range(ROWS)], pa.int32()),
        "f64": pa.array(rng.standard_normal(ROWS), mask=np.array(some)),
        "flag": pa.array([i % 3 == 0 for i in range(ROWS)]),
        "text": pa.array([None if some[i] else f"wört {i % 20}" for i in range(ROWS)], pa.string()),
        "raw": pa.array([bytes([i % 256]) * (i % 4) for i in range(ROWS)], pa.binary()),
        "ts": pa.array([10**15 + i for i in range(ROWS)], pa.timestamp("us")),
    })  # fmt: skip


def rich_table() -> pa.Table:
    """Return more types than fastparquet knows."""
    rows = range(ROWS)
    pair = pa.struct([("x", pa.int32()), ("y", pa.list_(pa.string()))])
    return pa.table({
        **dict(zip(plain_table().column_names, plain_table().columns, strict=True)),
        "i8": pa.array([None if i % 5 == 0 else i % 100 - 50 for i in rows], pa.int8()),
        "u64": pa.array([2**64 - 1 - i for i in rows], pa.uint64()),
        "day": pa.array([i * 30 - 3000 for i in rows], pa.date32()),
        "clock": pa.array([i * 10**6 for i in rows], pa.time64("us")),
        "utc": pa.array([None if i % 4 == 0 else i * 10**9 for i in rows], pa.timestamp("us", "UTC")),
        "money": pa.array([Decimal(i) / 4 - 9 for i in rows], pa.decimal128(12, 2)),
        "list": pa.array([None if i % 8 == 0 else [i, None][: i % 3] for i in rows], pa.list_(pa.int64())),
        "row": pa.array([{"x": i, "y": [str(i)]} for i in rows], pair),
    })  # fmt: skip


def by_pyarrow(path: Path, **options) -> None:
    """Write a file with pyarrow."""
    write(path, rich_table(), row_group_size=GROUP, **options)


def by_duckdb(path: Path, codec: str, version: str) -> None:
    """Write a file with DuckDB."""
    import duckdb

    name = {"none": "uncompressed", "lz4": "lz4_raw"}.get(codec, codec)
    with duckdb.connect() as connection:
        connection.register("rows_", rich_table())
        options = f"FORMAT parquet, COMPRESSION '{name}', PARQUET_VERSION {version}, ROW_GROUP_SIZE 2048"
        connection.execute(f"COPY rows_ TO '{path}' ({options})")


def by_polars(path: Path, codec: str, **options) -> None:
    """Write a file with Polars."""
    import polars as pl

    name = "uncompressed" if codec == "none" else codec
    pl.from_arrow(rich_table()).write_parquet(path, compression=name, row_group_size=GROUP, **options)


def by_fastparquet(path: Path, codec: str, *, nulls: bool) -> None:
    """Write a file with fastparquet."""
    import fastparquet

    frame = plain_table().to_pandas()
    frame["text"] = frame["text"].astype(object) if nulls else frame["text"].fillna("").astype(object)
    codec = {"none": "UNCOMPRESSED", "lz4": "LZ4_RAW"}.get(codec, codec.upper())
    fastparquet.write(
        str(path), frame, compression=codec, row_group_offsets=[0, GROUP], has_nulls=nulls,
        object_encoding={"text": "utf8", "raw": "bytes"},
    )  # fmt: skip


def writers():
    """Return what writes each file, by its name: the writer, and how it writes."""
    found = {f"pyarrow, {c}, pages {v}": partial(by_pyarrow, compression=c, data_page_version=v)
             for c in CODECS for v in ("1.0", "2.0")}  # fmt: skip
    for version in ("1.0", "2.0"):
        found[f"pyarrow, RLE_DICTIONARY, pages {version}"] = partial(by_pyarrow, data_page_version=version)
        for name, columns in ENCODINGS.items():
            found[f"pyarrow, {name}, pages {version}"] = partial(
                by_pyarrow, use_dictionary=False, column_encoding=columns or None, data_page_version=version
            )
        for name, options in LAYOUTS.items():
            found[f"pyarrow, {name}, pages {version}"] = partial(by_pyarrow, data_page_version=version, **options)
    for codec in CODECS:
        for version in ("V1", "V2"):
            found[f"duckdb, {codec}, {version}"] = partial(by_duckdb, codec=codec, version=version)
        found[f"polars, {codec}"] = partial(by_polars, codec=codec)
        found[f"fastparquet, {codec}"] = partial(by_fastparquet, codec=codec, nulls=True)
    found["polars, small pages"] = partial(by_polars, codec="zstd", data_page_size=200)
    found["polars, no statistics"] = partial(by_polars, codec="snappy", statistics=False)
    found["fastparquet, no nulls"] = partial(by_fastparquet, codec="snappy", nulls=False)
    return found


def read_by(reader: str, path: Path) -> pa.Table | pd.DataFrame:
    """Return all rows of one file as a reader gives them."""
    if reader == "pyarrow":
        return pq.ParquetFile(path).read()
    if reader == "polars":
        import polars as pl

        return pl.read_parquet(path, hive_partitioning=False).to_arrow()
    if reader == "duckdb":
        import duckdb

        with duckdb.connect() as connection:
            return connection.sql(f"SELECT * FROM read_parquet('{path}')").to_arrow_table()
    import fastparquet

    frame = fastparquet.ParquetFile(str(path)).to_pandas()
    text = frame["text"].astype(object)  # str or object, as pandas's metadata says, which outputs do not have
    return frame.assign(text=text.where(text.notna(), None))


READERS = ("pyarrow", "duckdb", "polars", "fastparquet")


def different(given: pa.Table | pd.DataFrame, got: pa.Table | pd.DataFrame, rows: slice) -> list[str]:
    """Return the columns of the input that differ in the output, in type or in one bit."""
    if isinstance(given, pd.DataFrame):
        given = given.iloc[rows].reset_index(drop=True)
        return [name for name in given if given[name].dtype != got[name].dtype or not given[name].equals(got[name])]
    given = given.slice(rows.start)
    return [
        name
        for name in given.column_names
        if given.schema.field(name).type != got.schema.field(name).type or not same(given[name], got[name])
    ]


def check(name: str, make, mode: str, folder: Path) -> list[str]:
    """Write a file, score it, read input and output with every reader, and return what differs."""
    source, out = folder / "in.parquet", folder / f"out {mode}"
    if not source.exists():
        make(source)
    report = scorer.run(source, MODEL, out, feed="x=a,b,c", cluster="synchronous", tune=False, **MODES[mode])
    first = 40 if mode == "filtered" else 0
    assert (report.counts.rows, report.counts.scored) == (ROWS, ROWS - first)
    (path,) = out.iterdir()
    expected = oracle(MODEL, {"x": np.stack([plain_table()[n].to_numpy() for n in "abc"], axis=1)})["total"][first:]
    faults = []
    for reader in READERS:
        if reader == "fastparquet" and not name.startswith(reader):
            continue  # it does not know some of the types that the others write
        given, got = read_by(reader, source), read_by(reader, path)
        found = different(given, got, slice(first, None))
        scores = np.asarray(got["total"]).astype(np.float32)
        found += [] if np.array_equal(scores.view("i4"), expected.view("i4")) else ["total"]
        who = name.split(",", maxsplit=1)[0]
        COMPARED[who, reader, "outputs"] += 1
        COMPARED[who, reader, "values"] += len(got) * got.shape[1]
        COMPARED[who, reader, "different"] += len(found)
        faults += [f"{name}, {mode}, read by {reader}: {column}" for column in found]
    return faults


@pytest.fixture(autouse=True)
def _tools(request):
    for module in ("duckdb", "polars", "fastparquet"):
        pytest.importorskip(module, reason=f"{module} is not installed; it comes with the extra 'test'")


IN_SHORT = {"pyarrow, BYTE_STREAM_SPLIT, pages 2.0", "duckdb, zstd, V2", "polars, small pages", "fastparquet, no nulls"}


@pytest.mark.parametrize(
    "name", [name if name in IN_SHORT else pytest.param(name, marks=pytest.mark.slow) for name in writers()]
)
def test_a_file_of_any_writer_is_scored_and_read_by_any_reader(name, tmp_path):
    faults = [fault for mode in MODES for fault in check(name, writers()[name], mode, tmp_path)]
    assert faults == []


def main() -> None:
    """Score a file of every writer and print the table."""
    faults = []
    for name, make in writers().items():
        with tempfile.TemporaryDirectory() as folder:
            for mode in MODES:
                faults += check(name, make, mode, Path(folder))
    print(*faults, sep="\n")
    print(f"{'writer':13}" + "".join(f"{reader:>34}" for reader in READERS))
    for writer in dict.fromkeys(writer for writer, _, _ in COMPARED):
        cells = []
        for reader in READERS:
            outputs, values, odd = (COMPARED[writer, reader, what] for what in ("outputs", "values", "different"))
            cells.append(f"{outputs} outputs, {values:,} values, {odd} diff" if outputs else "-")
        print(f"{writer:13}" + "".join(f"{cell:>34}" for cell in cells))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
