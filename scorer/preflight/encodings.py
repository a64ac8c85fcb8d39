"""Choose how the output's columns are stored: an encoding only if it makes the first rows clearly smaller."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from scorer.storage.encoding import ENOUGH_ROWS, GAIN_THRESHOLD, LARGEST_GROUP, LEAST_GROUP, Storage, column_sizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.dataset.summary import Dataset
    from scorer.options.fields import OutputOptions

DELTA, SPLIT = "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"


def choose(dataset: Dataset, options: OutputOptions, kept: pa.Table, scores: pa.Table) -> Storage:
    """Choose codec and row groups (by default the input's), and encodings by the first rows of both tables."""
    codec = dataset.codec if options.compression == "source" else options.compression
    dictionaries = _dictionaries(dataset.dictionaries, kept)
    default_rows = max(LEAST_GROUP, min(dataset.row_group_rows, LARGEST_GROUP))
    return Storage(
        codec=codec,
        row_group_rows=options.row_group_rows or default_rows,
        dictionaries=dictionaries,
        encodings=(*_encodings(kept, codec, dictionaries), *_encodings(scores, codec, ())),
    )


def _dictionaries(fixed: Sequence[str], kept: pa.Table) -> tuple[str, ...]:
    """Return the leaf paths of kept columns worth a dictionary: it saved space in the input, or texts repeat."""
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
    """Return (column, encoding) of each flat column that its encoding makes clearly smaller."""
    candidates = {name: _encoding_for(sample.schema.field(name).type, codec) for name in sample.column_names}
    candidates = {name: one for name, one in candidates.items() if one and name not in dictionaries and "." not in name}
    if not candidates or sample.num_rows < ENOUGH_ROWS:
        return ()
    rows = sample.select(list(candidates))
    plain, encoded = (
        column_sizes(rows, Storage(codec=codec, row_group_rows=rows.num_rows, encodings=encodings))
        for encodings in ((), tuple(candidates.items()))
    )
    return tuple((name, candidates[name]) for name in candidates if encoded[name] < GAIN_THRESHOLD * plain[name])


def _encoding_for(kind: pa.DataType, codec: str) -> str:
    """Return the encoding to try for a type, or ''; splitting the bytes of floats helps only if a codec follows."""
    whole = pa.types.is_integer(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind)
    if whole and not (pa.types.is_timestamp(kind) and kind.unit == "s"):
        return DELTA
    split = pa.types.is_float32(kind) or pa.types.is_float64(kind)
    return SPLIT if split and codec != "none" else ""
