"""Damage the stored pages of a Parquet file."""

from __future__ import annotations

import pyarrow.parquet as pq


def end_of_pages(path, column, group=0):
    """Return the end of a column's last page in the file."""
    metadata = pq.read_metadata(path)
    names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    chunk = metadata.row_group(group).column(names.index(column))
    dictionary = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    return min(dictionary, chunk.data_page_offset) + chunk.total_compressed_size


def flip(path, at):
    """Change one bit of the file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
