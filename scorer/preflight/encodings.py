"""How the output's columns are stored: an encoding where the first rows show that it pays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from scorer.storage.encoding import ENOUGH_ROWS, GAIN_THRESHOLD, LARGEST_GROUP, LEAST_GROUP, Storage, column_sizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.dataset.summary import Dataset
    from scorer.options.request import OutputOptions

DELTA, SPLIT = "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"


def choose(dataset: Dataset, asked: OutputOptions, kept: pa.Table, scores: pa.Table) -> Storage:
    """Codec and row groups as the source's unless asked; encodings by first rows of what is kept and what is scored."""
    codec = dataset.codec if asked.compression == "source" else asked.compression
    dictionaries = _dictionaries(dataset.dictionaries, kept)
    usual = max(LEAST_GROUP, min(dataset.row_group_rows, LARGEST_GROUP))
    return Storage(
        codec=codec,
        row_group_rows=asked.row_group_rows or usual,
        dictionaries=dictionaries,
        encodings=(*_encodings(kept, codec, dictionaries), *_encodings(scores, codec, ())),
    )


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
    if not tried or sample.num_rows < ENOUGH_ROWS:
        return ()
    rows = sample.select(list(tried))
    plain, other = (
        column_sizes(rows, Storage(codec=codec, row_group_rows=rows.num_rows, encodings=encodings))
        for encodings in ((), tuple(tried.items()))
    )
    return tuple((name, tried[name]) for name in tried if other[name] < GAIN_THRESHOLD * plain[name])


def _encoding_for(kind: pa.DataType, codec: str) -> str:
    """What might pay for values of this type; the bytes of fractions only pay if they are compressed then."""
    whole = pa.types.is_integer(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind)
    if whole and not (pa.types.is_timestamp(kind) and kind.unit == "s"):
        return DELTA
    split = pa.types.is_float32(kind) or pa.types.is_float64(kind)
    return SPLIT if split and codec != "none" else ""
