"""Parts hold every row once, in order, within the limits of their size."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from support import strategies

from scorer.dataset.summary import File
from scorer.plan.parts import PlannedFile, run_lengths
from scorer.preflight.cutting import (
    DISPATCH_S,
    Size,
    cut_parts,
    joined_files,
    least_rows,
    part_rows,
    plan_files,
    together,
)
from scorer.storage.files import FileId

TARGETS = st.integers(1, 6_000)


GRIDS = st.sampled_from([1, 2, 7, 64, 256, 4096]) | st.integers(1, 500)


LIMITS = st.none() | st.integers(0, 20_000)


def verify(groups, parts, target, grid, limit):
    """Check everything that is promised of the parts of one file, on numbers alone."""
    rows = sum(groups) if limit is None else min(limit, sum(groups))
    assert sum(parts) == rows
    assert all(isinstance(part, int) for part in parts)
    if rows == 0:
        assert parts == [0]
        return
    assert min(parts) > 0
    bounds = list(accumulate(groups, initial=0))
    for start, stop in pairwise(accumulate(parts, initial=0)):
        first = bounds[bisect_right(bounds, start) - 1]
        if first < start:  # a slice
            assert (start - first) % grid == 0
            assert stop <= bounds[bisect_right(bounds, start)]
        assert stop - start <= max(1.5 * target, target + grid)


@settings(max_examples=1_000)
@given(groups=strategies.row_groups(), target=TARGETS, grid=GRIDS, limit=LIMITS)
def test_parts_cover_every_row_once_and_in_order(groups, target, grid, limit):
    verify(groups, cut_parts(groups, Size(target, grid), limit), target, grid, limit)


@settings(max_examples=500)
@given(group=st.integers(1, 50_000), target=TARGETS, grid=GRIDS)
def test_a_large_row_group_is_cut_into_nearly_equal_slices(group, target, grid):
    parts = cut_parts([group], Size(target, grid))
    assert max(parts[:-1], default=0) - min(parts[:-1], default=0) <= grid
    assert parts[-1] <= parts[0]
    if grid == 1:
        assert len(parts) <= max(1, -(-group // target))


def test_a_single_row_group_makes_work_for_all_threads():
    rows = part_rows(1_000_000, 100, 64 * 2**20, threads=16, rows_per_s=1e6)
    assert len(cut_parts([1_000_000], Size(rows, 4096))) >= 9


@settings(max_examples=1_000)
@given(groups=strategies.row_groups(100), target=TARGETS, grid=GRIDS)
def test_small_row_groups_share_a_part_up_to_the_target(groups, target, grid):
    parts = cut_parts(groups, Size(target, grid))
    for one, following in pairwise(parts):
        assert one + following > min(target, max(groups)) or following <= max(groups)
    if sum(groups) <= target:
        assert parts == [sum(groups)]


@settings(max_examples=500)
@given(values=st.lists(st.integers(0, 3), max_size=50))
def test_run_lengths_expand_to_what_they_came_from(values):
    runs = run_lengths(values)
    assert [v for v, times in runs for _ in range(times)] == values
    assert all(a[0] != b[0] for a, b in pairwise(runs))


@settings(max_examples=1_000)
@given(
    rows=st.integers(0, 10**10), row_bytes=st.floats(0, 1e6), part_bytes=st.integers(4096, 10**10),
    threads=st.integers(1, 512), speed=st.none() | st.floats(1, 1e9),
)  # fmt: skip
def test_a_part_is_never_larger_than_memory_allows_nor_empty(rows, row_bytes, part_bytes, threads, speed):
    got = part_rows(rows, row_bytes, part_bytes, threads, speed)
    assert isinstance(got, int)
    assert got >= 1
    assert got == 1 or got * row_bytes <= part_bytes
    if speed is not None:
        assert got <= max(1, speed * 10)


def test_with_many_threads_parts_last_until_the_driver_can_send_the_next():
    many, speed = 512, 1000.0
    rows = part_rows(10**9, 8, 2**30, many, speed)
    assert rows / speed >= many * DISPATCH_S
    assert least_rows(rows, 8, speed, many) / speed >= 0.9 * many * DISPATCH_S
    assert least_rows(rows, 8, speed, 2) / speed < 0.1


def test_parts_are_worth_their_overhead_when_memory_allows():
    assert part_rows(10_000, 100, 64 * 2**20, 8, None) >= 10_000
    assert part_rows(10**7, 8, 2**30, 8, rows_per_s=1e6) >= 100_000
    assert part_rows(10**7, 8, 2**30, 8, rows_per_s=1e6) <= 10**7 / (8 * 4) + 1


@settings(max_examples=400)
@given(groups=strategies.row_groups(), target=TARGETS, grid=GRIDS, limit=LIMITS, threads=st.integers(1, 64))
def test_parts_that_shrink_towards_the_end_cover_every_row_too(groups, target, grid, limit, threads):
    least = max(1, target // 4)
    parts = cut_parts(groups, Size(target, grid, threads, least), limit)
    verify(groups, parts, target, grid, limit)


def test_the_last_parts_are_a_quarter_of_the_others():
    parts = cut_parts([10_000], Size(1_000, 10, 2, 250))
    assert parts[0] > 900
    assert parts[-3:] == [250, 250, 250] or max(parts[-3:]) <= 300
    assert parts == sorted(parts, reverse=True)


def file(rows, folder="", name="a", groups=None):
    path = "/data/" + (f"{folder}/" if folder else "") + name
    return File(id=FileId(path, rows * 8, 5), folder=folder, top="/in", row_groups=tuple(groups or [rows]))


@settings(max_examples=500)
@given(
    files=st.lists(strategies.row_groups(500), min_size=1, max_size=5), target=st.integers(1, 600), grid=GRIDS,
    limit=st.none() | st.integers(0, 3_000),
)  # fmt: skip
def test_a_limit_takes_the_first_rows_of_the_input(files, target, grid, limit):
    inputs = [file(0, name=str(i), groups=groups) for i, groups in enumerate(files)]
    planned = plan_files(inputs, Size(target, grid), limit)
    total = sum(map(sum, files))
    got = [sum(v * n for v, n in f.parts) for f in planned]
    assert sum(got) == (total if limit is None else min(limit, total))
    assert [f.path for f in planned] == [f.path for f in inputs[: len(planned)]]
    assert got[:-1] == [f.rows for f in inputs[: len(planned) - 1]]
    if limit is None:
        assert len(planned) == len(inputs)


@settings(max_examples=400)
@given(
    files=st.lists(strategies.row_groups(500), min_size=1, max_size=12), folders=st.data(), target=st.integers(1, 600),
    grid=GRIDS, joined=st.integers(1, 600), threads=st.integers(0, 3), most=st.none() | st.integers(1, 5),
    limit=st.none() | st.integers(0, 3_000),
)  # fmt: skip
def test_whole_small_files_of_one_folder_share_a_part_within_its_limits(
    files, folders, target, grid, joined, threads, most, limit
):
    names = [folders.draw(st.sampled_from(["", "k=1", "k=2"])) for _ in files]
    inputs = [file(0, folder, str(i), groups) for i, (folder, groups) in enumerate(zip(names, files, strict=True))]
    size = Size(target, grid, threads, 1, joined=joined, files=most)
    planned = plan_files(inputs, size, limit)
    apart = plan_files(inputs, Size(target, grid, threads, 1), limit)
    assert [f.path for f in planned] == [f.path for f in apart]
    assert [sum(v * n for v, n in f.parts) for f in planned] == [sum(v * n for v, n in f.parts) for f in apart]
    assert not planned[0].joined
    runs = []
    for i, one in enumerate(planned):
        runs[-1:] = [[*runs[-1], one]] if one.joined else [*runs[-1:], [one]]
        if one.joined:
            continue
        following = planned[i + 1 : i + 2]
        assert (one == apart[i]) or (following and following[0].joined)
    for run in (run for run in runs if len(run) > 1):
        assert len({f.folder for f in run}) == 1
        assert len(run) <= (most or len(run))
        rows = [sum(v * n for v, n in f.row_groups) for f in run]
        assert [f.parts for f in run] == [((n, 1),) for n in rows]
        assert sum(rows) <= min(target, joined)


@settings(max_examples=1_000)
@given(groups=strategies.row_groups(), target=TARGETS, grid=GRIDS, limit=LIMITS, whole=TARGETS)
def test_a_strict_size_is_exceeded_by_one_batch_at_most(groups, target, grid, limit, whole):
    parts = cut_parts(groups, Size(target, grid, whole=whole, strict=True), limit)
    verify(groups, parts, max(target, whole), grid, limit)
    assert max(parts) <= max(target, whole, grid)


def test_files_of_ordinary_size_are_cut_as_if_none_were_joined():
    inputs = [file(0, name=str(i), groups=[250_000] * 4) for i in range(5)]
    size = Size(300_000, 4096, 2, 10_000, 1)
    joining = Size(300_000, 4096, 2, 10_000, 1, joined=300_000, files=100)
    assert plan_files(inputs, joining, None) == plan_files(inputs, size, None)


def test_a_part_joins_so_many_files_that_every_thread_gets_some_and_none_gets_too_many():
    assert joined_files(46, 2) == 100
    assert joined_files(1_000, 2) == 125
    assert joined_files(10**6, 2) == 500
    runs = list(together([file(1, name=str(i)) for i in range(1_000)], Size(10**6, joined=10**6, files=125), None))
    assert [len(run) for run in runs] == [125] * 8


def planned(parts, folder="", name="a", hive=()):
    return PlannedFile(id=FileId(f"/in/{folder}/{name}", 9, 2**62), folder=folder, row_groups=((7, 2),),
                       parts=run_lengths(parts), hive=hive)  # fmt: skip
