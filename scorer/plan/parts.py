"""A part, and a planned file: what is read where, as run lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scorer.dataset.reader import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One unit of work: one Dask partition, one output file."""

    index: int
    name: str
    """Path inside the output."""
    source: Source

    def __dask_tokenize__(self) -> tuple[int, str]:
        """What tells it from its run's other parts; else Dask looks at every field of every part: half of its time."""
        return self.index, self.name

    def __reduce__(self) -> tuple[Callable[..., Part], tuple[Any, ...]]:
        """Flat, for it is packed and unpacked four times on its way: a dataclass goes through its fields each time."""
        own = self.source
        return _part, (self.index, self.name, own.path, own.size, own.mtime_ns, own.start, own.stop, own.hive)

    @property
    def rows(self) -> int:
        """Rows before any filter."""
        return self.source.stop - self.source.start

    @property
    def place(self) -> str:
        """Where it is in the input, for errors."""
        return f"part {self.index}: {self.source.path}, rows {self.source.start} to {self.source.stop}"


def _part(index: int, name: str, *source: Any) -> Part:  # noqa: ANN401 - as `__reduce__` has them
    path, size, mtime_ns, start, stop, hive = source
    own = Source(path=path, size=size, mtime_ns=mtime_ns, start=start, stop=stop, hive=hive)
    return Part(index=index, name=name, source=own)


Runs = tuple[tuple[int, int], ...]
"""Run lengths: (value, times)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFile:
    """An input file and how it is cut; a million parts stay small as run lengths."""

    path: str
    folder: str
    size: int
    mtime_ns: int
    row_groups: Runs
    parts: Runs
    hive: tuple[tuple[str, str | None], ...] = ()


def run_lengths(values: Iterable[int]) -> Runs:
    """Consecutive equal values as (value, times)."""
    runs: list[list[int]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return tuple((value, times) for value, times in runs)
