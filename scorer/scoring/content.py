"""The content of a part's file: its scores, and kept columns that are encoded or copied.

slices of a row group      kept columns were read with the fed ones, and are encoded
whole row groups           kept columns are copied from the input as they are stored
... with bad rows, or
not copyable               kept columns are read while the file is written, some rows at a time, and are encoded
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import pyarrow as pa

from scorer.arrow import conform
from scorer.dataset import reader
from scorer.errors import ScorerError
from scorer.host.process import name_of_process
from scorer.output.writer import Encoded
from scorer.scoring.job import worker_unfit
from scorer.storage import copying
from scorer.storage.copying import NotCopyable
from scorer.tables.columns import TableColumns

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from scorer.dataset.cursors import InputCache
    from scorer.dataset.joins.spec import Join
    from scorer.dataset.reader import Source
    from scorer.output.writer import Content
    from scorer.plan.parts import Part
    from scorer.scoring.job import Job
    from scorer.storage.fetched import Fetched


@dataclass(frozen=True, slots=True)
class Copied:
    """The scores, and columns of row groups that are copied as they are stored."""

    part: Part
    inputs: InputCache
    table: pa.Table
    """All columns that are not copied."""
    form: copying.FileForm
    copied: Sequence[copying.CopiedGroups]
    """The row groups of each file and their copied columns."""
    otherwise: Encoded
    """The content to write if the copied columns are not stored as their footer says."""

    @property
    def rows(self) -> int:
        """The number of scores."""
        return int(self.table.num_rows)

    def write(self, path: str | Path, notes: dict[bytes, bytes]) -> None:
        """Write the file. Raises `InputChanged` if the input changed since its rows were read."""
        try:
            with reader.naming_changes(self.part.sources):
                copying.write(path, self.table, self.form, self.copied, notes)
        except NotCopyable:
            self.otherwise.write(path, notes)
        finally:
            for source in self.part.sources:
                reader.check_unchanged(source, self.inputs)


def of_part(
    job: Job, part: Part, read: pa.Table, scores: pa.Table, good: pa.ChunkedArray | None,
    groups: Sequence[tuple[int, ...]], fetched: Mapping[str, Fetched],
) -> Content:  # fmt: skip
    """Return the content of the part's file: the scores of good rows and the kept columns, read or copied.

    `read` are the kept columns that were read. `good` marks the good rows; None means all. `groups` are the whole
    row groups of each file, if the part has such. `fetched` is what was read from stores, by path.
    """
    schema, storage = job.output_schema, job.spec.frozen.storage
    kept = read if good is None or not read.num_columns else read.filter(good)
    if not groups:
        return Encoded.of(conform(_beside(kept, scores), schema), storage)
    otherwise = Encoded(schema, storage, scores.num_rows, lambda: _stretches(job, part, scores, good, fetched))
    form = job.form if good is None else None
    copied = None if form is None else _copied_groups(job, form, part, groups, fetched)
    if form is None or copied is None:
        return otherwise
    names = job.spec.frozen.storage.copied
    own = pa.schema([field for field in schema if field.name not in names], metadata=schema.metadata)
    return Copied(part, job.inputs, conform(_beside(kept, scores), own), form, copied, otherwise)


def _copied_groups(
    job: Job, form: copying.FileForm, part: Part, groups: Sequence[tuple[int, ...]], fetched: Mapping[str, Fetched]
) -> list[copying.CopiedGroups] | None:
    """Return the row groups if every kept column that was not read can be copied from them, else None."""
    names = job.spec.frozen.storage.copied
    if not copying.worth_copying(part.rows, sum(map(len, groups))):
        return None
    copied = []
    for source, own in zip(part.sources, groups, strict=True):
        held = fetched.get(source.path)
        with job.inputs.file(source.id, fetched=held).parquet as parquet:
            if isinstance(parquet, TableColumns):
                return None
            metadata = parquet.metadata
            columns = copying.copyable(form, parquet, names)
        fits = max((metadata.row_group(group).num_rows for group in own), default=0) <= copying.MOST_ROWS
        if not fits or len(columns) < len(names):
            return None
        copied.append(copying.CopiedGroups(source.id, metadata, own, columns, held))
    return copied


def _stretches(
    job: Job, part: Part, scores: pa.Table, good: pa.ChunkedArray | None, fetched: Mapping[str, Fetched]
) -> Iterator[pa.Table]:
    """Yield the part a few rows at a time, and read the kept columns of each."""
    step = max(1, job.spec.frozen.storage.stretch_rows)
    frozen = job.spec.frozen
    joins = frozen.joins if set(frozen.kept) - set(job.read_schema.names) else ()
    names = {*job.output_schema.names, *(name for join in joins for name in join.left)}
    schema = pa.schema([field for field in job.read_schema if field.name in names])
    read = done = 0
    for low in range(0, part.rows, step):
        some = _some_rows(part, low, low + step)
        few = reader.read_all(some, schema, (), (step,), job.inputs, fetched=fetched).table
        kept = with_joined(job, few, joins)[0]
        if good is not None:
            read, kept = read + kept.num_rows, kept.filter(good.slice(read, kept.num_rows))
        yield conform(_beside(kept, scores.slice(done, kept.num_rows)), job.output_schema)
        done += kept.num_rows


def with_joined(job: Job, rows: pa.Table, joins: Sequence[Join]) -> tuple[pa.Table, np.ndarray | None, dict[int, str]]:
    """Return the rows with the columns of joined tables, which rows lack a key in one of them, and why some are bad."""
    if not joins:
        return rows, None, {}
    from scorer.dataset.joins import lookup  # noqa: PLC0415 - only for joined tables

    try:
        return lookup.add_columns(rows, joins, shared=name_of_process() != job.spec.driver)
    except ScorerError as error:
        if not job.spec.remote:
            raise
        raise worker_unfit(job, str(error)) from error


def _some_rows(part: Part, low: int, high: int) -> list[Source]:
    """Return rows low..high of a part."""
    ends = list(accumulate(source.stop - source.start for source in part.sources))
    found = []
    for source, end in zip(part.sources, ends, strict=True):
        first = source.stop - end  # added to a row of the part, it is the row in the file
        start, stop = max(source.start, low + first), min(source.stop, high + first)
        found += [replace(source, start=start, stop=stop)] if start < stop else []
    return found


def _beside(kept: pa.Table, scores: pa.Table) -> pa.Table:
    return pa.table(
        dict(zip([*kept.column_names, *scores.column_names], [*kept.columns, *scores.columns], strict=True))
    )
