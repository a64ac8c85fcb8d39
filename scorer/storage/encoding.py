"""How the output's columns are stored: codec, row groups and encodings, and how large a table becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

GAIN_THRESHOLD = 0.8  # an encoding must bring a column below 80 % of its size; less does not repay the time
ENOUGH_ROWS = 4096  # with fewer rows, a measured gain may be chance
LEAST_GROUP, LARGEST_GROUP = 1 << 14, 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """The settings of the Parquet writer."""

    codec: str
    row_group_rows: int
    dictionaries: tuple[str, ...] = ()
    """Leaf paths that get a dictionary. By default pyarrow tries one on every column, at six times the cost."""
    encodings: tuple[tuple[str, str], ...] = ()
    """Leaf paths with their encoding: delta for integers, byte stream split for floats."""
    copied: tuple[str, ...] = ()
    """Kept columns that are copied from whole row groups without decoding."""
    stretch_rows: int = 0
    """Rows of the `copied` columns that are decoded at once if they cannot be copied."""

    def options(self) -> dict[str, Any]:
        """Return the settings as keyword arguments of `pyarrow.parquet.ParquetWriter`."""
        named = {"column_encoding": dict(self.encodings)} if self.encodings else {}
        dictionaries = list(self.dictionaries) or False
        return {"compression": self.codec, "use_dictionary": dictionaries, "write_page_checksum": True, **named}


QUARANTINE = Storage(codec="zstd", row_group_rows=LARGEST_GROUP)


def encoded_bytes(table: pa.Table, storage: Storage) -> int:
    """Return the size of the table as a Parquet file."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, **storage.options()) as writer:
        writer.write_table(table)
    return int(sink.tell())


def encoded_growth(table: pa.Table, storage: Storage) -> tuple[float, float]:
    """Return the bytes that each further row adds to a Parquet file of such rows, and those of the file besides.

    The footer, the headers of the pages and the statistics are as large for a few rows as for many.
    """
    rows, half = table.num_rows, table.num_rows // 2
    whole = encoded_bytes(table, storage)
    row = (whole - encoded_bytes(table.slice(0, half), storage)) / max(rows - half, 1)
    return max(row, 0.0), max(whole - rows * row, 0.0)


def encoded_column_bytes(rows: pa.Table, storage: Storage) -> dict[str, float]:
    """Return the encoded bytes of a row by flat column; empty if there are too few rows to tell."""
    if rows.num_rows < ENOUGH_ROWS:
        return {}
    few = rows.slice(0, 1 << 16)
    sizes = column_sizes(few, storage)
    flat = [field.name for field in few.schema if not pa.types.is_nested(field.type)]
    return {name: sizes[name] / few.num_rows for name in flat if name in sizes}


def column_sizes(rows: pa.Table, storage: Storage) -> dict[str, int]:
    """Return the size of each column as a Parquet writer stores it, by name."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, rows.schema, **storage.options()) as writer:
        writer.write_table(rows)
    group = pq.read_metadata(pa.BufferReader(sink.getvalue())).row_group(0)
    columns = (group.column(i) for i in range(group.num_columns))
    return {column.path_in_schema: column.total_compressed_size for column in columns}
