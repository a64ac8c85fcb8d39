"""How the output's columns are stored: codec, row groups, and an encoding where the first rows show that it pays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

GAIN_THRESHOLD = 0.8  # of the size without; below that gain, the time is worth more
ENOUGH_ROWS = 4096  # to tell an encoding's gain from chance
LEAST_GROUP, LARGEST_GROUP = 1 << 14, 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """All that a Parquet writer is told."""

    codec: str
    row_group_rows: int
    dictionaries: tuple[str, ...] = ()
    """Leaf paths that get a dictionary; pyarrow would try one on every column, at six times the cost."""
    encodings: tuple[tuple[str, str], ...] = ()
    """Leaf paths of whole numbers stored as differences, and of fractions stored byte by byte."""
    copied: tuple[str, ...] = ()
    """Kept columns that a part takes from whole row groups as they are stored."""
    stretch_rows: int = 0
    """Rows of them that are read at once where that cannot be."""

    def options(self) -> dict[str, Any]:
        """As `pyarrow.parquet.ParquetWriter` takes them."""
        named = {"column_encoding": dict(self.encodings)} if self.encodings else {}
        dictionaries = list(self.dictionaries) or False
        return {"compression": self.codec, "use_dictionary": dictionaries, "write_page_checksum": True, **named}


QUARANTINE = Storage(codec="zstd", row_group_rows=LARGEST_GROUP)


def encoded_bytes(table: pa.Table, storage: Storage) -> int:
    """What the table takes as a file."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, **storage.options()) as writer:
        writer.write_table(table)
    return int(sink.tell())


def encoded_column_bytes(rows: pa.Table, storage: Storage) -> dict[str, float]:
    """What a row of each flat column takes, encoded; nothing where there are too few rows to tell."""
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
