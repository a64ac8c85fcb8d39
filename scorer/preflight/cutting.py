"""Cut the input's row groups into parts: only numbers, no data is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scorer.plan.parts import PlannedFile, run_lengths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.dataset.summary import File


BATCH_ROWS = 4096  # fastest for a dense net, good for a tree ensemble; used if no batch size was timed
PARTS_PER_THREAD = 4  # so the last part delays the end by at most a quarter of a thread's work
MIN_SECONDS = 0.1  # of scoring in a part, so that Dask's 3 ms per part are 3 % at most
DISPATCH_S = 4e-3
"""Seconds that the driver needs per part; with 500 threads, parts must last 500 x 4 ms = 2 s."""
MAX_SECONDS = 10.0  # of scoring in a part
MIN_ROWS = 65_536  # of a part if the speed is unknown
_LAST_SECONDS = 0.05  # of the last parts: reading, scoring and writing
_BYTES_PER_S = 500e6  # that a thread reads, converts and writes
_DEFAULT_ROWS_PER_S = 1e6  # if the speed is unknown
_SLICE_FROM = 1.5  # times the rows of a part: larger row groups are sliced


def part_rows(rows: int, row_bytes: float, part_bytes: int, threads: int, rows_per_s: float | None) -> int:
    """Return the rows of a part: at most what memory allows, and few enough that every thread gets several parts.

    Parts do not become so small that Dask's overhead counts, nor longer than `MAX_SECONDS`.
    """
    by_memory = max(1, int(part_bytes / max(row_bytes, 1e-9)))
    shared = math.ceil(rows / (threads * PARTS_PER_THREAD))
    worth = _worthwhile_rows(rows_per_s, threads)
    longest = max(worth, int(rows_per_s * MAX_SECONDS)) if rows_per_s else by_memory
    return max(1, min(by_memory, max(shared, worth), longest))


def least_rows(target: int, row_bytes: float, rows_per_s: float | None, threads: int) -> int:
    """Return the rows of the smallest, last parts: enough that Dask's overhead stays small; at most `target`."""
    row_s = row_bytes / _BYTES_PER_S + 1 / (rows_per_s or _DEFAULT_ROWS_PER_S)
    return max(1, min(target, int(max(_LAST_SECONDS, threads * DISPATCH_S) / row_s)))


def _worthwhile_rows(rows_per_s: float | None, threads: int) -> int:
    """Return the fewest rows of a part beside which Dask's overhead is small."""
    return MIN_ROWS if rows_per_s is None else max(1, int(rows_per_s * max(MIN_SECONDS, threads * DISPATCH_S)))


@dataclass(frozen=True, slots=True)
class Size:
    """How many rows a part should have: fewer towards the end, so that all threads finish at about the same time."""

    target: int
    """Rows of a part, except near the end."""
    grid: int = 1
    """Rows of a batch: a slice of a row group starts at a multiple of them."""
    threads: int = 0
    """0: parts do not become smaller towards the end."""
    least: int = 1
    """Rows of the last parts."""
    rounds: int = 2
    """Parts of the current size that remain for each thread: 1 if all threads are equally fast."""
    whole: int = 0
    """Rows of a part of whole row groups, if those need less memory; 0: `target`."""

    def at(self, left: int, *, whole: bool = False) -> int:
        """Return the rows of the next part when `left` rows of the input remain."""
        most = max(self.target, self.whole) if whole else self.target
        if not self.threads:
            return most
        return max(self.least, min(most, math.ceil(left / (self.rounds * self.threads))))


def cut_parts(row_groups: Sequence[int], size: Size, limit: int | None = None, after: int = 0) -> list[int]:
    """Return the rows of each part of one file; `after` rows of the input follow the file.

    Parts are runs of row groups, or slices of one large row group that start on the batch grid:

        row groups  |----|----|--|------------------------|
        parts       |---------|--|-------|-------|--------|
    """
    parts: list[int] = []
    held = 0
    left = sum(row_groups) if limit is None else min(limit, sum(row_groups))
    if left == 0:
        return [0]
    for full in row_groups:
        group = min(full, left)
        target = size.at(left + after + held, whole=group == full)
        left -= group
        if held and held + group > target:
            parts.append(held)
            held = 0
        if group > target * _SLICE_FROM and group > size.grid:
            parts += _slices(group, size, left + after)
        else:
            held += group
    return [*parts, held] if held else parts


def plan_files(files: Sequence[File], size: Size, limit: int | None) -> tuple[PlannedFile, ...]:
    """Return every file with its parts; files after the limit are left out."""
    planned = []
    total = sum(file.rows for file in files)
    left = total if limit is None else min(limit, total)
    for file in files:
        rows = min(left, file.rows)
        left -= rows
        parts = cut_parts(file.row_groups, size, rows, left)
        planned.append(
            PlannedFile(
                id=file.id, folder=file.folder, row_groups=run_lengths(file.row_groups), parts=run_lengths(parts),
                hive=tuple(file.hive.items()),
            )
        )  # fmt: skip
        if limit is not None and left <= 0:
            break
    return tuple(planned)


def _slices(rows: int, size: Size, after: int) -> list[int]:
    """Return the rows of nearly equal slices, each a multiple of the batch rows except the last."""
    slices = []
    while rows:
        count = math.ceil(rows / size.at(rows + after))
        step = min(rows, max(size.grid, math.ceil(rows / count / size.grid) * size.grid))
        slices.append(step)
        rows -= step
    return slices
