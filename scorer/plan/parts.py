"""Parts and planned files: which rows are read from where, as run lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scorer.dataset.reader import Source
from scorer.storage.files import FileId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One unit of work: one Dask partition, one output file."""

    index: int
    name: str
    """Path inside the output."""
    source: Source

    def __dask_tokenize__(self) -> tuple[int, str]:
        """Return what identifies the part in its run. Otherwise Dask spends half of its time on hashing every field."""
        return self.index, self.name

    def __reduce__(self) -> tuple[Callable[..., Part], tuple[Any, ...]]:
        """Pickle the part flat: it is pickled four times on its way; a dataclass would visit all fields each time."""
        own, file = self.source, self.source.id
        identity = (file.path, file.size, file.version, file.inode)
        return _part, (self.index, self.name, identity, own.start, own.stop, own.hive)

    @property
    def rows(self) -> int:
        """The number of rows, before any filter."""
        return self.source.stop - self.source.start

    @property
    def place(self) -> str:
        """The part's file and rows in the input, for errors."""
        return f"part {self.index}: {self.source.path}, rows {self.source.start} to {self.source.stop}"


def _part(index: int, name: str, *source: Any) -> Part:  # noqa: ANN401 - the fields in the order of `__reduce__`
    identity, start, stop, hive = source
    own = Source(id=FileId(*identity), start=start, stop=stop, hive=hive)
    return Part(index=index, name=name, source=own)


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

    @property
    def path(self) -> str:
        """Return the path of the file."""
        return self.id.path

    def as_row(self) -> list[Any]:
        """Return the fields as plan.json stores them."""
        return [self.id.path, self.folder, self.id.size, self.id.version, self.row_groups, self.parts, self.hive]

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> PlannedFile:
        """Return the file from such a row, as lists of JSON."""
        path, folder, size, version, *pairs = row
        row_groups, parts, hive = (tuple((a, b) for a, b in one) for one in pairs)
        return cls(id=FileId(path, size, version), folder=folder, row_groups=row_groups, parts=parts, hive=hive)


def run_lengths(values: Iterable[int]) -> Runs:
    """Return consecutive equal values as (value, times)."""
    runs: list[list[int]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return tuple((value, times) for value, times in runs)
