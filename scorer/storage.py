"""How the output's columns are stored: codec, row groups, and an encoding where the first rows show that it pays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.dataset import Dataset
    from scorer.options import OutputOptions

PAYS = 0.8  # of the size without; below that gain, the time is worth more
_ENOUGH_ROWS = 4096  # to tell an encoding's gain from chance
_LEAST_GROUP, _LARGEST_GROUP = 1 << 14, 1 << 20
DELTA, SPLIT = "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"


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


QUARANTINE = Storage(codec="zstd", row_group_rows=_LARGEST_GROUP)


def choose(dataset: Dataset, asked: OutputOptions, kept: pa.Table, scores: pa.Table) -> Storage:
    """Codec and row groups as the source's unless asked; encodings by first rows of what is kept and what is scored."""
    codec = dataset.codec if asked.compression == "source" else asked.compression
    dictionaries = _dictionaries(dataset.dictionaries, kept)
    usual = max(_LEAST_GROUP, min(dataset.row_group_rows, _LARGEST_GROUP))
    return Storage(
        codec=codec,
        row_group_rows=asked.row_group_rows or usual,
        dictionaries=dictionaries,
        encodings=(*_encodings(kept, codec, dictionaries), *_encodings(scores, codec, ())),
    )


def encoded_bytes(table: pa.Table, storage: Storage) -> int:
    """What the table takes as a file."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, **storage.options()) as writer:
        writer.write_table(table)
    return int(sink.tell())


def column_bytes(rows: pa.Table, storage: Storage) -> dict[str, float]:
    """What a row of each flat column takes, encoded; nothing where there are too few rows to tell."""
    if rows.num_rows < _ENOUGH_ROWS:
        return {}
    few = rows.slice(0, 1 << 16)
    sizes = _column_sizes(few, storage)
    flat = [field.name for field in few.schema if not pa.types.is_nested(field.type)]
    return {name: sizes[name] / few.num_rows for name in flat if name in sizes}


def _dictionaries(fixed: Sequence[str], kept: pa.Table) -> tuple[str, ...]:
    """Leaf paths of kept columns worth a dictionary: it paid in the source, or the sample's texts repeat."""
    names = set(kept.column_names)
    chosen = {path for path in fixed if path in names or path.split(".")[0] in names}
    for name in kept.column_names:
        column = kept[name]
        text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        repeats = text and len(column) and len(column.unique()) < len(column) / 2
        if repeats or pa.types.is_dictionary(column.type):
            chosen.add(name)
    return tuple(sorted(chosen))


def _encodings(sample: pa.Table, codec: str, dictionaries: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The encoding of each flat column that it makes clearly smaller."""
    tried = {name: _encoding_for(sample.schema.field(name).type, codec) for name in sample.column_names}
    tried = {name: one for name, one in tried.items() if one and name not in dictionaries and "." not in name}
    if not tried or sample.num_rows < _ENOUGH_ROWS:
        return ()
    rows = sample.select(list(tried))
    plain, other = (
        _column_sizes(rows, Storage(codec=codec, row_group_rows=rows.num_rows, encodings=encodings))
        for encodings in ((), tuple(tried.items()))
    )
    return tuple((name, tried[name]) for name in tried if other[name] < PAYS * plain[name])


def _encoding_for(kind: pa.DataType, codec: str) -> str:
    """What might pay for values of this type; the bytes of fractions only pay if they are compressed then."""
    whole = pa.types.is_integer(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind)
    if whole and not (pa.types.is_timestamp(kind) and kind.unit == "s"):
        return DELTA
    split = pa.types.is_float32(kind) or pa.types.is_float64(kind)
    return SPLIT if split and codec != "none" else ""


def _column_sizes(rows: pa.Table, storage: Storage) -> dict[str, int]:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, rows.schema, **storage.options()) as writer:
        writer.write_table(rows)
    group = pq.read_metadata(pa.BufferReader(sink.getvalue())).row_group(0)
    columns = (group.column(i) for i in range(group.num_columns))
    return {column.path_in_schema: column.total_compressed_size for column in columns}
