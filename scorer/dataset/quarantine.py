"""The rows of the input that go to quarantine, with all their columns, and the columns that quarantine adds."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from scorer.arrow import join_tables, plain_rows, plain_schema
from scorer.dataset.reader import check_unchanged, gone, naming_changes
from scorer.storage.files import Changed, retry
from scorer.storage.footers import unreadable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.dataset.cursors import InputCache
    from scorer.dataset.reader import Source
    from scorer.tables.columns import AnyParquet

_MANY_COLUMNS = 100  # assumed when all columns of a file are read

WHY = pa.schema([("_error", pa.string()), ("_stage", pa.string())])
PLACE = pa.schema([("_file", pa.string()), ("_row", pa.int64())])
ERRORS = pa.schema([*WHY, *PLACE])
"""All columns that quarantine adds to a row."""


def from_quarantine(schema: pa.Schema) -> bool:
    """Return whether the input is a quarantine folder: it has all columns that quarantine adds."""
    return all(
        schema.get_field_index(field.name) >= 0 and schema.field(field.name).type == field.type for field in ERRORS
    )


def rows_at(source: Source, rows: Sequence[int], cache: InputCache) -> tuple[pa.Table, dict[int, tuple[str, ...]]]:
    """Return single rows of a file, in ascending order, with all columns; Hive keys are added as text.

    Columns that cannot be read in a row group are null in its rows. Their names are returned for each of these rows.
    """
    try:
        with naming_changes([source]):
            found, unread = retry(lambda: _rows_at(source, np.asarray(rows), cache), lambda: cache.forget(source.path))
    except FileNotFoundError:
        raise gone(source, cache) from None
    except (OSError, pa.ArrowException) as error:
        check_unchanged(source, cache)
        raise unreadable(source.path, error) from error
    check_unchanged(source, cache)
    return found, unread


def _rows_at(source: Source, wanted: np.ndarray, cache: InputCache) -> tuple[pa.Table, dict[int, tuple[str, ...]]]:
    pieces: list[pa.Table] = []
    unread: dict[int, tuple[str, ...]] = {}
    file = cache.file(source.id, _MANY_COLUMNS)
    with file.parquet as parquet:
        for group, (first, end) in enumerate(pairwise(file.starts)):
            here = wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, end)] - first
            if not len(here):
                continue
            try:
                pieces.append(_rows_of_group(parquet, group, here))
            except (Changed, FileNotFoundError):
                raise
            except (OSError, pa.ArrowException) as error:
                piece, names = _readable_columns(parquet, group, here, error)
                pieces.append(piece)
                unread |= dict.fromkeys((here + first).tolist(), names)
    found = join_tables(pieces)  # columns with nulls for unread values are nullable
    for name, value in source.hive:  # a row includes the keys of its path
        if name not in found.column_names:
            found = found.append_column(name, pa.repeat(pa.scalar(value, pa.string()), found.num_rows))
    return found, unread


def _rows_of_group(
    parquet: AnyParquet, group: int, wanted: np.ndarray, columns: Sequence[str] | None = None
) -> pa.Table:
    """Return single rows of a row group."""
    pieces, at = [], 0
    for batch in parquet.iter_batches(row_groups=[group], columns=columns, use_threads=False):
        inside = wanted[(wanted >= at) & (wanted < at + batch.num_rows)] - at
        pieces.append(pa.Table.from_batches([plain_rows(batch)]).take(pa.array(inside)))
        at += batch.num_rows
    return pa.concat_tables(pieces)


def _readable_columns(
    parquet: AnyParquet, group: int, wanted: np.ndarray, error: Exception
) -> tuple[pa.Table, tuple[str, ...]]:
    """Return single rows of a row group with nulls for the columns that cannot be read, and the names of these.

    Raises `error` if no column can be read.
    """
    schema = plain_schema(parquet.schema_arrow)
    columns, unread = [], []
    for i, name in enumerate(schema.names):
        try:
            rows = retry(partial(_rows_of_group, parquet, group, wanted, [name]))
            same = rows.schema.get_all_field_indices(name)  # several columns may have this name
            columns.append(rows.column(same[schema.names[:i].count(name)]))
        except (OSError, pa.ArrowException):
            columns.append(pa.chunked_array([pa.nulls(len(wanted), schema.field(i).type)]))
            unread.append(name)
    if len(unread) == len(columns):
        raise error
    fields = [field.with_nullable(nullable=True) for field in schema]
    return pa.Table.from_arrays(columns, schema=pa.schema(fields, schema.metadata)), tuple(unread)
