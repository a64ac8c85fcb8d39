"""Any range of any file gives exactly its rows, whatever was read before."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.damage import end_of_pages, flip

import scorer.dataset.cursors
from scorer.dataset import conditions as conditions_
from scorer.dataset.cursors import Cursor, InputCache
from scorer.dataset.reader import Source, read
from scorer.errors import InputChanged, UnreadableFile
from scorer.storage.files import file_id

GROUPS = (10, 0, 1, 300, 0, 25, 64)
ROWS = sum(GROUPS)
BIG = 400_000


def source_of(path, start=0, stop=ROWS, hive=()):
    return Source(id=file_id(str(path)), start=start, stop=stop, hive=hive)


def write_groups(path, table, groups):
    """Write a file with exactly these row groups."""
    with pq.ParquetWriter(path, table.schema) as writer:
        at = 0
        for rows in groups:
            writer.write_table(table.slice(at, rows), row_group_size=max(rows, 1))
            at += rows
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    rng = np.random.default_rng(3)
    table = pa.table({
        "id": np.arange(ROWS),
        "x": pa.array(rng.standard_normal(ROWS), mask=rng.random(ROWS) < 0.1),
        "color": pa.array(rng.choice(["red", "green", "blue"], ROWS)).dictionary_encode(),
        "tags": pa.array([[i, i + 1] if i % 7 else None for i in range(ROWS)]),
        "unused": np.zeros(ROWS),
    })  # fmt: skip
    path = write_groups(tmp_path_factory.mktemp("reader") / "data.parquet", table, GROUPS)
    metadata = pq.ParquetFile(path).metadata
    assert tuple(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)) == GROUPS
    return path


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """One row group of several decode batches."""
    path = tmp_path_factory.mktemp("reader") / "big.parquet"
    pq.write_table(pa.table({"id": np.arange(BIG)}), path, row_group_size=BIG)
    return path


def test_a_file_whose_state_is_unknown_is_unreadable_and_not_changed(tmp_path):
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": [1]}), path)
    source = source_of(path, 0, 1)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(UnreadableFile, match="symbolic links"):
        read(source, pa.schema([("id", pa.int64())]), (), (1,), InputCache())


def test_a_file_whose_folder_became_a_file_has_changed(tmp_path):
    path = tmp_path / "day" / "in.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"id": [1]}), path)
    source = source_of(path, 0, 1)
    path.unlink()
    path.parent.rmdir()
    path.parent.touch()
    with pytest.raises(InputChanged):
        read(source, pa.schema([("id", pa.int64())]), (), (1,), InputCache())


def grid_edges(positions, groups, batch_rows):
    """Return the batch edges by a plain loop: a new batch where the row group or its grid cell changes."""
    starts = np.cumsum([0, *groups])
    cells = []
    for position in positions:
        group = max(g for g, first in enumerate(starts[:-1]) if first <= position and groups[g])
        cells.append((group, (position - int(starts[group])) // batch_rows))
    inner = [i for i in range(1, len(cells)) if cells[i] != cells[i - 1]]
    return sorted({0, *inner, len(cells)})


CONDITIONS = {
    "": lambda table: pa.array([True] * len(table)),
    "id < 40": lambda table: pc.less(table["id"], 40),
    "id >= 311": lambda table: pc.greater_equal(table["id"], 311),
    "x > 0": lambda table: pc.fill_null(pc.greater(table["x"], 0), fill_value=False),
    "color = 'red'": lambda table: pc.equal(table["color"].cast(pa.string()), "red"),
    "tags is null": lambda table: pc.is_null(table["tags"]),
    "id < 0": lambda table: pc.less(table["id"], 0),
}


@settings(max_examples=250)
@given(
    bounds=st.tuples(st.integers(0, ROWS), st.integers(0, ROWS)).map(sorted),
    batch_rows=st.lists(st.sampled_from([1, 3, 7, 16, 64, 1000]), min_size=1, max_size=3),
    conditions=st.lists(st.sampled_from([c for c in CONDITIONS if c]), max_size=2),
)
def test_any_range_gives_exactly_its_rows_positions_and_edges(file, bounds, batch_rows, conditions):
    start, stop = bounds
    schema = pq.read_schema(file)
    schema = pa.schema([schema.field(name) for name in ("x", "id", "tags", "color")])
    whole = pq.read_table(file).slice(start, stop - start)
    keep = np.ones(len(whole), bool)
    for text in conditions:
        keep &= np.asarray(CONDITIONS[text](whole))
    expected = whole.filter(pa.array(keep)).select(schema.names)
    rows = read(
        source_of(file, start, stop), schema, [conditions_.parse(c) for c in conditions], batch_rows, InputCache()
    )
    assert rows.table.schema.equals(schema)
    assert rows.table.to_pylist() == expected.to_pylist()
    assert rows.places.numbers().tolist() == expected["id"].to_pylist()
    assert rows.filtered == stop - start - len(expected)
    positions = rows.places.numbers().tolist()
    assert [edges.tolist() for edges in rows.edges] == [grid_edges(positions, GROUPS, each) for each in batch_rows]


def test_slices_that_start_on_the_grid_cut_the_same_batches_as_the_whole(file):
    """A row's batch never depends on where parts begin."""
    schema = pa.schema([pq.read_schema(file).field("id")])

    def batches(start, stop):
        rows = read(source_of(file, start, stop), schema, [conditions_.parse("x > 0")], (16,), InputCache())
        ids = rows.table["id"].to_pylist()
        return [ids[a:b] for a, b in pairwise(rows.edges[0])]

    schema = pa.schema([pq.read_schema(file).field(name) for name in ("id", "x")])
    whole = batches(0, ROWS)
    parts = [(0, 11), (11, 11 + 160), (11 + 160, 11 + 256), (11 + 256, ROWS)]
    assert [batch for start, stop in parts for batch in batches(start, stop)] == whole


def test_a_part_without_rows_has_the_planned_columns(file):
    schema = pq.read_schema(file)
    rows = read(source_of(file, 5, 5), schema, [], (16,), InputCache())
    assert rows.table.schema.names == schema.names
    assert rows.table.schema.types == schema.types
    assert (rows.table.num_rows, rows.edges[0].tolist(), rows.filtered, len(rows.places)) == (0, [0], 0, 0)


def test_keys_of_the_path_are_columns(file):
    schema = pa.schema([pa.field("year", pa.int64()), pa.field("id", pa.int64()), pa.field("who", pa.string())])
    source = source_of(file, 8, 14, hive=(("year", "2020"), ("who", None)))
    table = read(source, schema, [conditions_.parse("year = 2020")], (4,), InputCache()).table
    assert table.to_pylist() == [{"year": 2020, "id": i, "who": None} for i in range(8, 14)]
    assert read(source, schema, [conditions_.parse("who = 'x'")], (4,), InputCache()).filtered == 6


@pytest.mark.parametrize("bounds", [(0, ROWS), (20, 30)])
def test_a_part_may_need_nothing_but_keys_of_the_path(file, bounds):
    schema = pa.schema([pa.field("year", pa.int64())])
    table = read(source_of(file, *bounds, hive=(("year", "2020"),)), schema, [], (16,), InputCache()).table
    assert table["year"].to_pylist() == [2020] * (bounds[1] - bounds[0])


def test_a_dictionary_column_is_read_as_planned_values_and_back(file):
    for kind in (pa.string(), pa.dictionary(pa.int32(), pa.string())):
        rows = read(source_of(file), pa.schema([pa.field("color", kind)]), [], (64,), InputCache())
        assert rows.table["color"].type == kind
        assert rows.table["color"].to_pylist() == pq.read_table(file)["color"].to_pylist()


def test_bytes_read_grow_with_the_rows(file):
    schema = pa.schema([pq.read_schema(file).field("id")])
    few, all_ = (read(source_of(file, 0, stop), schema, [], (64,), InputCache()).bytes_read for stop in (5, ROWS))
    assert 0 < few < all_


def test_a_flat_column_is_not_ruled_out_by_a_struct_child_of_the_same_path(tmp_path):
    """`s.x` is a column of its own, and the path of a child of `s`."""
    path = tmp_path / "dots.parquet"
    pq.write_table(pa.table({"s.x": [1, 2, 3], "s": [{"x": 100}, {"x": 200}, {"x": 300}]}), path)
    schema = pa.schema([pa.field("s.x", pa.int64())])
    rows = read(source_of(path, 0, 3), schema, [conditions_.parse("'s.x' < 10")], (16,), InputCache())
    assert rows.table["s.x"].to_pylist() == [1, 2, 3]


def ids(table):
    return table["id"].to_numpy()


@pytest.mark.parametrize("seed", range(40))
def test_a_cursor_gives_the_right_rows_in_any_order_and_again(big, seed):
    chance = random.Random(seed)
    step = chance.choice([20_000, 65_536, 50_000, 130_000])
    slices = [(start, min(start + step, BIG)) for start in range(0, BIG, step)]
    slices += chance.choices(slices, k=seed % 4)
    chance.shuffle(slices)
    cursor = Cursor(InputCache(), file_id(str(big)), 0, ["id"])
    for start, stop in slices:
        assert np.array_equal(ids(cursor.take(start, stop)), np.arange(start, stop)), (start, stop, slices)


def test_a_repeated_slice_after_an_untaken_one_finds_its_rows(big):
    """Earlier rows have not been taken yet, so the slice does not start its own pass."""
    cursor = Cursor(InputCache(), file_id(str(big)), 0, ["id"])
    for _ in range(2):
        assert np.array_equal(ids(cursor.take(65_536, 131_072)), np.arange(65_536, 131_072))


def test_a_slice_read_twice_takes_nothing_from_its_neighbour(big):
    """Half a decoded batch, taken twice, must not count as the whole batch."""
    cursor = Cursor(InputCache(), file_id(str(big)), 0, ["id"])
    cursor.take(65_536, 98_304)
    cursor.take(65_536, 98_304)
    assert np.array_equal(ids(cursor.take(98_304, 131_072)), np.arange(98_304, 131_072))


@pytest.mark.parametrize("seed", range(4))
def test_slices_read_by_many_threads_are_right_each_time(big, seed):
    chance = random.Random(seed)
    step = 28_672
    slices = [(start, min(start + step, BIG)) for start in range(0, BIG, step)] * 2
    slices.sort(key=lambda s: s[0] + chance.uniform(0, 4 * step))
    schema, opened = pa.schema([pa.field("id", pa.int64())]), InputCache()

    def one(bounds):
        rows = read(source_of(big, *bounds), schema, [], (4096,), opened)
        return np.array_equal(ids(rows.table), np.arange(*bounds)) and np.array_equal(
            rows.places.numbers(), np.arange(*bounds)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, slices))


def test_many_cursors_at_once_stay_right(tmp_path):
    paths = [tmp_path / f"{i}.parquet" for i in range(7)]
    for i, path in enumerate(paths):
        pq.write_table(pa.table({"id": np.arange(1000) + i * 1000}), path)
    schema, opened = pa.schema([pa.field("id", pa.int64())]), InputCache()
    for start in range(0, 1000, 250):
        for i, path in enumerate(paths):
            rows = read(source_of(path, start, start + 250), schema, [], (50,), opened)
            assert ids(rows.table).tolist() == list(range(i * 1000 + start, i * 1000 + start + 250))


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.parquet"
    pq.write_table(pa.table({"id": np.arange(100)}), path)
    return path


ID = pa.schema([pa.field("id", pa.int64())])


def planned_then(path, columns, **changes):
    """Write other contents, and return a source with the size and time of the new file."""
    pq.write_table(pa.table(columns), path)
    return source_of(path, 0, 100, **changes)


def test_another_size_is_a_changed_input(own):
    source = source_of(own, 0, 100)
    pq.write_table(pa.table({"id": np.arange(101)}), own)
    os.utime(own, ns=(source.id.version, source.id.version))
    with pytest.raises(InputChanged, match="changed after it was planned"):
        read(source, ID, [], (16,), InputCache())


def test_another_time_is_a_changed_input(own):
    source = source_of(own, 0, 100)
    os.utime(own, ns=(source.id.version, source.id.version + 1))
    with pytest.raises(InputChanged, match=str(own)):
        read(source, ID, [], (16,), InputCache())


def test_a_file_that_is_gone_is_a_changed_input(own):
    source = source_of(own, 0, 100)
    own.unlink()
    with pytest.raises(InputChanged, match="nothing"):
        read(source, ID, [], (16,), InputCache())


def test_fewer_rows_than_planned_are_a_changed_input(own):
    source = planned_then(own, {"id": np.arange(99)})
    with pytest.raises(InputChanged, match="99 rows"):
        read(source, ID, [], (16,), InputCache())


def test_a_column_of_another_type_is_a_changed_input(own):
    source = planned_then(own, {"id": np.arange(100.0)})
    with pytest.raises(InputChanged, match="double instead of int64"):
        read(source, ID, [], (16,), InputCache())


def test_a_column_that_is_gone_is_a_changed_input(own):
    source = planned_then(own, {"other": np.arange(100)})
    with pytest.raises(InputChanged, match="id"):
        read(source, ID, [], (16,), InputCache())


@pytest.mark.parametrize("bounds", [(0, 100), (10, 20)])
def test_damaged_pages_are_an_unreadable_file(own, bounds):
    data = bytearray(own.read_bytes())
    data[4:200] = b"\xff" * 196
    own.write_bytes(bytes(data))
    with pytest.raises(UnreadableFile, match="cannot be read as Parquet"):
        read(source_of(own, *bounds), ID, [], (16,), InputCache())


@pytest.mark.parametrize("bounds", [(0, 400), (100, 350)], ids=["whole row groups", "slices"])
@pytest.mark.parametrize("at_once", [True, False], ids=["decoded at once", "decoded by batches"])
@pytest.mark.parametrize(
    "options",
    [
        {"compression": "none", "use_dictionary": False},
        {"compression": "zstd", "data_page_version": "2.0"},
        {"compression": "snappy"},
    ],
    ids=str,
)
def test_a_page_with_a_wrong_checksum_is_an_error_with_its_column_and_row_group(
    options, at_once, bounds, tmp_path, monkeypatch
):
    path = tmp_path / "data.parquet"
    table = pa.table({"id": np.arange(400), "x": np.arange(400) / 7, "y": np.arange(400) / 7})
    if not at_once:
        monkeypatch.setattr(scorer.dataset.cursors, "_WHOLE_BYTES", 0)
    pq.write_table(table, path, row_group_size=200, write_page_checksum=True, **options)
    assert read(source_of(path, *bounds), table.schema, (), (7,), InputCache()).table.equals(
        table.slice(bounds[0], bounds[1] - bounds[0])
    )
    flip(path, end_of_pages(path, "x", 1) - 3)
    cache = InputCache()
    for _ in range(2):
        with pytest.raises(UnreadableFile) as error:
            read(source_of(path, *bounds), table.schema, (), (7,), cache)
        assert error.value.what == "a page is damaged"
        assert error.value.where == str(path)
        assert error.value.found == "another checksum for a page of column 'x' in row group 1"
    sound = read(source_of(path, *bounds), table.schema.remove(1), (), (7,), InputCache()).table
    assert sound.num_rows == bounds[1] - bounds[0]


def test_a_page_that_cannot_be_decoded_is_an_error_with_its_column_and_row_group(tmp_path):
    path = tmp_path / "data.parquet"
    table = pa.table({"id": np.arange(400), "text": [f"text {i}" for i in range(400)]})
    pq.write_table(table, path, row_group_size=200, compression="none", use_dictionary=False)
    content, end = bytearray(path.read_bytes()), end_of_pages(path, "text", 1)
    content[end - 40 : end] = bytes([0xFF]) * 40
    path.write_bytes(content)
    with pytest.raises(UnreadableFile) as error:
        read(source_of(path, 0, 400), table.schema, (), (7,), InputCache())
    assert error.value.what == "a file cannot be read as Parquet"
    assert error.value.found.startswith("column 'text' in row group 1: ")


def test_a_footer_is_parsed_once_for_all_parts_of_a_process(tmp_path, monkeypatch):
    path, parsed = write_groups(tmp_path / "a.parquet", pa.table({"id": range(4000)}), [10] * 400), []
    plain = scorer.dataset.cursors.open_parquet
    monkeypatch.setattr(
        scorer.dataset.cursors,
        "open_parquet",
        lambda path, md=None, n=1: (parsed.append(md is None), plain(path, md, n))[1],
    )
    opened = InputCache()
    with ThreadPoolExecutor(8) as pool:
        parts = range(0, 4000, 10)
        tables = pool.map(lambda start: read(source_of(path, start, start + 10), ID, [], (50,), opened).table, parts)
        assert np.array_equal(np.concatenate([ids(table) for table in tables]), np.arange(4000))
    assert sum(parsed) == 1
    assert len(parsed) == 400


def test_footers_of_many_files_are_not_kept(tmp_path):
    opened = InputCache()
    paths = [write_groups(tmp_path / f"{i}.parquet", pa.table({"id": range(3)}), [3]) for i in range(300)]
    for path in paths + paths[:5]:
        assert opened.file(file_id(str(path))).starts == (0, 3)
    assert len(opened._footers) <= 128
