"""Parts and planned files: which rows are read from where, as run lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scorer.dataset.reader import Source
from scorer.storage.files import FileId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from scorer.tables.deleted import Slice


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One unit of work: one Dask partition, one output file."""

    index: int
    name: str
    """Path inside the output."""
    sources: tuple[Source, ...]
    """The rows to read, in this order: rows of one file, or several whole files."""

    def __dask_tokenize__(self) -> tuple[int, str]:
        """Return what identifies the part in its run. Otherwise Dask spends half of its time on hashing every field."""
        return self.index, self.name

    def __reduce__(self) -> tuple[Callable[..., Part], tuple[Any, ...]]:
        """Pickle the part flat: it is pickled four times on its way; a dataclass would visit all fields each time."""
        return _part, (self.index, self.name, *map(_flat, self.sources))

    @property
    def rows(self) -> int:
        """The number of rows, before any filter; rows that a table has deleted are counted."""
        return sum(source.stop - source.start for source in self.sources)

    @property
    def place(self) -> str:
        """The part's file and rows in the input, or its files, for errors."""
        first, last = self.sources[0], self.sources[-1]
        if len(self.sources) > 1:
            return f"part {self.index}: {len(self.sources):,} files, {first.path} to {last.path}"
        return f"part {self.index}: {first.path}, rows {first.start} to {first.stop}"


def _flat(source: Source) -> tuple[Any, ...]:
    file = source.id
    return source.start, source.stop, source.hive, source.deleted, file.path, file.size, file.version, file.inode


def _part(index: int, name: str, *flat: tuple[Any, ...]) -> Part:
    sources = (
        Source(id=FileId(*identity), start=start, stop=stop, hive=hive, deleted=deleted)
        for start, stop, hive, deleted, *identity in flat
    )
    return Part(index=index, name=name, sources=tuple(sources))


Runs = tuple[tuple[int, int], ...]
"""Run lengths: (value, times)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFile:
    """An input file, its row groups and its parts; as run lengths, even a million parts stay small."""

    id: FileId
    folder: str
    row_groups: Runs
    parts: Runs
    hive: tuple[tuple[str, str | None], ...] = ()
    joined: bool = False
    """Whether its rows belong to the part of the file before it; both files are in it as a whole."""
    deleted: Slice | None = None
    """Where the numbers of its deleted rows are, up to its last planned row; None if there are none."""

    @property
    def path(self) -> str:
        """Return the path of the file."""
        return self.id.path

    def as_row(self) -> list[Any]:
        """Return the fields as plan.json stores them."""
        file = self.id
        more = [self.joined, *self.deleted] if self.deleted else [True] if self.joined else []
        # nothing more in most plans, so that they keep their hash
        return [file.path, self.folder, file.size, file.version, self.row_groups, self.parts, self.hive, *more]

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> PlannedFile:
        """Return the file from such a row, as lists of JSON."""
        path, folder, size, version, *pairs = row[:7]
        joined, *deleted = row[7:] or [False]
        row_groups, parts, hive = (tuple((a, b) for a, b in one) for one in pairs)
        return cls(
            id=FileId(path, size, version), folder=folder, row_groups=row_groups, parts=parts, hive=hive,
            joined=joined, deleted=tuple(deleted) or None,
        )  # fmt: skip


def run_lengths(values: Iterable[int]) -> Runs:
    """Return consecutive equal values as (value, times)."""
    runs: list[list[int]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return tuple((value, times) for value, times in runs)
