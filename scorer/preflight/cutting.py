"""How the input is cut into parts: numbers only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scorer.plan.parts import PlannedFile, run_lengths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.dataset.summary import File


BATCH_ROWS = 4096  # a dense net's best, a tree ensemble's good; used where nothing was probed
PARTS_PER_THREAD = 4  # the last part may be late by a quarter of a thread's work
MIN_SECONDS = 0.1  # of scoring in a part: 3 ms of Dask are then 3 %
HANDED_S = 4e-3  # between two parts that the driver hands out: with 500 threads, a part must last two seconds
MAX_SECONDS = 10.0
MIN_ROWS = 65_536  # of a part when the speed is unknown
_LAST_SECONDS = 0.05  # of the last parts, everything counted
_BYTES_PER_S = 500e6  # that a thread reads, packs and writes
_USUAL_SPEED = 1e6  # rows/s, when nobody knows
_SLICE = 1.5  # a row group is sliced when it is this much larger than a part


def part_rows(rows: int, row_bytes: float, part_bytes: int, threads: int, rows_per_s: float | None) -> int:
    """Rows of a part: memory first, then enough parts for all threads, then worthwhile ones."""
    by_memory = max(1, int(part_bytes / max(row_bytes, 1e-9)))
    shared = math.ceil(rows / (threads * PARTS_PER_THREAD))
    worth = _worth(rows_per_s, threads)
    longest = max(worth, int(rows_per_s * MAX_SECONDS)) if rows_per_s else by_memory
    return max(1, min(by_memory, max(shared, worth), longest))


def least_rows(target: int, row_bytes: float, rows_per_s: float | None, threads: int) -> int:
    """Rows of the last parts, when the others have so many: Dask must still be small beside them."""
    row_s = row_bytes / _BYTES_PER_S + 1 / (rows_per_s or _USUAL_SPEED)
    return max(1, min(target, int(max(_LAST_SECONDS, threads * HANDED_S) / row_s)))


def _worth(rows_per_s: float | None, threads: int) -> int:
    return MIN_ROWS if rows_per_s is None else max(1, int(rows_per_s * max(MIN_SECONDS, threads * HANDED_S)))


@dataclass(frozen=True, slots=True)
class Size:
    """How many rows a part should have: fewer towards the end, so that no thread is left alone with a large one."""

    target: int
    grid: int = 1
    threads: int = 0
    """0: as many to the end."""
    least: int = 1
    rounds: int = 2
    """Parts that each thread still gets, of the size they have now: one where all threads are alike."""
    whole: int = 0
    """Rows of a part of whole row groups, where those take less memory; 0: as many as of any."""

    def at(self, left: int, *, whole: bool = False) -> int:
        """Rows of the next part when so many rows of the input are left."""
        most = max(self.target, self.whole) if whole else self.target
        if not self.threads:
            return most
        return max(self.least, min(most, math.ceil(left / (self.rounds * self.threads))))


def cut_parts(row_groups: Sequence[int], size: Size, limit: int | None = None, after: int = 0) -> list[int]:
    """Rows of each part of one file, after which so many rows of the input follow.

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
        if group > target * _SLICE and group > size.grid:
            parts += _slices(group, size, left + after)
        else:
            held += group
    return [*parts, held] if held else parts


def plan_files(files: Sequence[File], size: Size, limit: int | None) -> tuple[PlannedFile, ...]:
    """Every file with its cuts; files beyond the limit are left out."""
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
    """Nearly equal slices on the batch grid."""
    slices = []
    while rows:
        many = math.ceil(rows / size.at(rows + after))
        step = min(rows, max(size.grid, math.ceil(rows / many / size.grid) * size.grid))
        slices.append(step)
        rows -= step
    return slices
