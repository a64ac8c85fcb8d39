"""The content of a part's file: its scores, and kept columns that are encoded or copied.

slices of a row group      kept columns were read with the fed ones, and are encoded
whole row groups           kept columns are copied from the input as they are stored
... with bad rows, or
not copyable               kept columns are read while the file is written, some rows at a time, and are encoded
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from scorer.arrow import conform
from scorer.dataset import reader
from scorer.output.writer import Encoded
from scorer.storage import copying
from scorer.storage.copying import NotCopyable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scorer.dataset.cursors import InputCache
    from scorer.output.writer import Content
    from scorer.plan.parts import Part
    from scorer.scoring.job import Job


@dataclass(frozen=True, slots=True)
class Copied:
    """The scores, and columns of row groups that are copied as they are stored."""

    part: Part
    inputs: InputCache
    table: pa.Table
    """All columns that are not copied."""
    form: copying.FileForm
    copied: copying.CopiedGroups
    """The row groups and their copied columns."""
    otherwise: Encoded
    """The content to write if the copied columns are not stored as their footer says."""

    @property
    def rows(self) -> int:
        """The number of scores."""
        return int(self.table.num_rows)

    def write(self, path: str | Path, notes: dict[bytes, bytes]) -> None:
        """Write the file. Raises `InputChanged` if the input changed since its rows were read."""
        try:
            copying.write(path, self.table, self.form, self.copied, notes)
        except NotCopyable:
            self.otherwise.write(path, notes)
        finally:
            reader.check_unchanged(self.part.source, self.inputs)


def of_part(
    job: Job, part: Part, read: pa.Table, scores: pa.Table, good: pa.ChunkedArray | None, groups: tuple[int, ...]
) -> Content:
    """Return the content of the part's file: the scores of good rows and the kept columns, read or copied.

    `read` are the kept columns that were read. `good` marks the good rows; None means all. `groups` are the part's
    whole row groups, if it has such.
    """
    schema, storage = job.output_schema, job.spec.frozen.storage
    kept = read if good is None or not read.num_columns else read.filter(good)
    if not groups:
        return Encoded.of(conform(_beside(kept, scores), schema), storage)
    otherwise = Encoded(schema, storage, scores.num_rows, lambda: _stretches(job, part, scores, good))
    form = job.form if good is None else None
    copied = None if form is None else _copied_groups(job, form, part, groups)
    if form is None or copied is None:
        return otherwise
    own = pa.schema([field for field in schema if field.name not in copied.columns], metadata=schema.metadata)
    return Copied(part, job.inputs, conform(_beside(kept, scores), own), form, copied, otherwise)


def _copied_groups(
    job: Job, form: copying.FileForm, part: Part, groups: tuple[int, ...]
) -> copying.CopiedGroups | None:
    """Return the row groups if every kept column that was not read can be copied from them, else None."""
    names = job.spec.frozen.storage.copied
    with job.inputs.file(part.source.path).parquet as parquet:
        metadata = parquet.metadata
        columns = copying.copyable(form, parquet, names)
    rows = [metadata.row_group(group).num_rows for group in groups]
    fits = max(rows) <= copying.MOST_ROWS and copying.worth_copying(sum(rows), len(rows))
    return (
        copying.CopiedGroups(part.source.path, metadata, groups, columns)
        if fits and len(columns) == len(names)
        else None
    )


def _stretches(job: Job, part: Part, scores: pa.Table, good: pa.ChunkedArray | None) -> Iterator[pa.Table]:
    """Yield the part a few rows at a time, and read the kept columns of each."""
    source, step = part.source, max(1, job.spec.frozen.storage.stretch_rows)
    schema = pa.schema([field for field in job.read_schema if field.name in job.output_schema.names])
    done = 0
    for low in range(source.start, source.stop, step):
        high = min(low + step, source.stop)
        kept = reader.read(replace(source, start=low, stop=high), schema, (), step, job.inputs).table
        if good is not None:
            kept = kept.filter(good.slice(low - source.start, high - low))
        yield conform(_beside(kept, scores.slice(done, kept.num_rows)), job.output_schema)
        done += kept.num_rows


def _beside(kept: pa.Table, scores: pa.Table) -> pa.Table:
    return pa.table(
        dict(zip([*kept.column_names, *scores.column_names], [*kept.columns, *scores.columns], strict=True))
    )
