"""Cut the input's row groups into parts, and join small files to one part: only numbers, no data is read."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from scorer.plan.parts import PlannedFile, run_lengths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import pyarrow as pa

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
_FEWEST_FILES = 100  # joined to one part: to open them takes a tenth of a second
_MOST_FILES = 500  # so that a part stays small when it is sent to a worker


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


def joined_files(files: int, threads: int) -> int:
    """Return how many files a part may join: enough to be worth its overhead, and few enough for every thread."""
    shared = math.ceil(files / (threads * PARTS_PER_THREAD))
    return max(_FEWEST_FILES, min(_MOST_FILES, shared))


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
    joined: int = 0
    """Rows of a part of several whole files, at most; 0: a part is never more than one file."""
    files: int | None = None
    """Files of a part, at most; None: any number."""
    strict: bool = False
    """Whether no part may have more rows, unless it is one batch; otherwise up to half as many more are not cut off."""

    def at_most(self, rows: int) -> Size:
        """Return sizes with which no part has more rows, but for those that are not cut off."""
        if rows >= max(self.target, self.whole, self.joined):
            return self
        target, whole, joined = min(self.target, rows), min(self.whole, rows), min(self.joined, rows)
        return replace(self, target=target, whole=whole, joined=joined, least=min(self.least, target))

    def at(self, left: int, *, whole: bool = False) -> int:
        """Return the rows of the next part when `left` rows of the input remain."""
        most = max(self.target, self.whole) if whole else self.target
        if not self.threads:
            return most
        return max(self.least, min(most, math.ceil(left / (self.rounds * self.threads))))

    def joins(self, files: int, rows: int, left: int) -> bool:
        """Return whether one part may have so many files and rows, with `left` rows of the input from its first on."""
        few = self.files is None or files <= self.files
        return bool(self.joined) and few and rows <= min(self.joined, self.at(left, whole=True))


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
        if group > target * (1 if size.strict else _SLICE_FROM) and group > size.grid:
            parts += _slices(group, size, left + after)
        else:
            held += group
    return [*parts, held] if held else parts


def plan_files(
    files: Sequence[File], size: Size, limit: int | None, unlike: Mapping[str, pa.Schema] | None = None,
    deleted: Callable[[File], np.ndarray] | None = None,
) -> tuple[PlannedFile, ...]:  # fmt: skip
    """Return every file with its parts; files after the limit are left out. See `together` for `unlike`.

    `deleted` returns the numbers of the file's deleted rows, which the limit counts, too.
    """
    planned = []
    listed = 0
    left = _rows_ahead(files, limit)
    for run in together(files, size, limit, unlike):
        for i, file in enumerate(run):
            rows = min(left, file.rows)
            left -= rows
            parts = cut_parts(file.row_groups, size, rows, left) if len(run) == 1 else [rows]
            gone = int(np.searchsorted(deleted(file), rows)) if deleted is not None and file.deleted else 0
            planned.append(
                PlannedFile(
                    id=file.id, folder=file.folder, row_groups=run_lengths(file.row_groups), parts=run_lengths(parts),
                    hive=tuple(file.hive.items()), joined=i > 0, deleted=(listed, gone) if gone else None,
                )
            )  # fmt: skip
            listed += gone
    return tuple(planned)


def together(
    files: Sequence[File], size: Size, limit: int | None, unlike: Mapping[str, pa.Schema] | None = None
) -> Iterator[list[File]]:
    """Yield the files of the input, those of one part together; files after the limit are left out.

    A part joins consecutive files of one folder with the same schema, each as a whole. `unlike` has the schemas of
    the files, by path, that differ from the first one's.
    """
    unlike = unlike or {}
    left = _rows_ahead(files, limit)
    run: list[File] = []
    held = 0
    for file in files:
        rows = min(left, file.rows)
        fits = rows == file.rows and size.joins(len(run) + 1, held + rows, held + left)
        if run and not (fits and file.folder == run[0].folder and unlike.get(file.path) == unlike.get(run[0].path)):
            yield run
            run, held = [], 0
        run.append(file)
        held += rows
        left -= rows
        if limit is not None and left <= 0:
            break
    yield run


def _rows_ahead(files: Sequence[File], limit: int | None) -> int:
    total = sum(file.rows for file in files)
    return total if limit is None else min(limit, total)


def _slices(rows: int, size: Size, after: int) -> list[int]:
    """Return the rows of nearly equal slices, each a multiple of the batch rows except the last."""
    slices = []
    while rows:
        target = size.at(rows + after)
        count = math.ceil(rows / target)
        step = min(rows, max(size.grid, math.ceil(rows / count / size.grid) * size.grid))
        if size.strict and step > target:
            step = min(rows, max(size.grid, target // size.grid * size.grid))
        slices.append(step)
        rows -= step
    return slices
