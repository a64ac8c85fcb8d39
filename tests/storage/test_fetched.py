"""Column chunks that are read ahead from a store."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.buckets import ROOT, bucket

from scorer.dataset.ahead import fetch
from scorer.dataset.cursors import InputCache, opened_at_first_rows
from scorer.dataset.reader import Source, read
from scorer.errors import InputChanged, ModelNotResident
from scorer.storage import fetched
from scorer.storage.fetched import Fetched, Window, pieces, window_bytes
from scorer.storage.files import Changed
from scorer.storage.footers import chunk_ranges, open_parquet

MIB = 1 << 20
PLACE = f"{ROOT}/a/part.parquet"


def table(rows=200_000, columns=6, seed=0):
    rng = np.random.default_rng(seed)
    floats = {f"f{j}": rng.standard_normal(rows, np.float32) for j in range(columns)}
    return pa.table(floats | {"name": pa.array([f"n{i % 1000}" for i in range(rows)]), "list": [[1, 2]] * rows})


def written(rows, **options):
    sink = io.BytesIO()
    pq.write_table(rows, sink, **options)
    return sink.getvalue()


@pytest.fixture
def store():
    with bucket() as held:
        yield held


@pytest.fixture
def stored(store):
    """A file of three row groups on a store: its identity, metadata and bytes."""
    data = written(table(), row_group_size=80_000)
    return store.put(PLACE, data), pq.read_metadata(io.BytesIO(data)), data


@given(st.lists(st.tuples(st.integers(0, 300 * MIB), st.integers(1, 20 * MIB)), min_size=1, max_size=30))
def test_pieces_hold_all_that_is_wanted_no_long_hole_and_are_of_equal_size(chunks):
    wanted = [(start, start + size) for start, size in chunks]
    size = max(stop for _, stop in wanted)
    found = pieces(wanted, size)
    assert all(a[1] <= b[0] for a, b in pairwise(found))
    assert found[-1][1] <= size
    most = (2 if sum(stop - start for start, stop in found) <= 64 * MIB else 4) * MIB
    assert all(0 < stop - start <= most for start, stop in found)
    covered = np.zeros(size // 1024 + 2, bool)
    for start, stop in found:
        covered[start // 1024 : -(-stop // 1024)] = True
    needed = np.zeros_like(covered)
    for start, stop in wanted:
        assert covered[start // 1024 : -(-stop // 1024)].all()
        needed[max(0, start // 1024 - 257) : -(-stop // 1024) + 257] = True
    assert not (covered & ~needed).any()


def test_pieces_of_one_run_are_equal_and_a_hole_of_more_than_256_kib_is_not_read():
    assert pieces([(0, 5 * MIB - 100)], 9 * MIB) == [(0, 1747627), (1747627, 3495254), (3495254, 5 * MIB)]
    near, far = 256 << 10, (256 << 10) + 1
    assert pieces([(100, 200), (200 + near, 300 + near)], 9 * MIB) == [(100, 400 + near)]
    assert pieces([(100, 200), (200 + far, 300 + far)], 9 * MIB) == [(100, 300), (200 + far, 400 + far)]
    assert pieces([], 10) == []


def test_what_was_fetched_is_decoded_without_a_further_request_and_without_a_copy(store, stored):
    file, metadata, data = stored
    before = store.requests.copy()
    fetched = Fetched(file, metadata, [1], chunk_ranges(metadata, [1], ["f1", "name", "list"]))
    assert fetched.wait(10)
    assert store.requests["GET"] - before["GET"] == len(
        pieces(chunk_ranges(metadata, [1], ["f1", "name", "list"]), file.size)
    )
    asked = store.requests.copy()
    with open_parquet(file, metadata, 3, fetched) as parquet:
        found = parquet.read_row_group(1, columns=["f1", "name", "list"])
    assert found.equals(pq.ParquetFile(io.BytesIO(data)).read_row_group(1, columns=["f1", "name", "list"]))
    assert store.requests == asked
    (start, stop), *_ = chunk_ranges(metadata, [1], ["f1"])
    one, two = (np.frombuffer(fetched.read_at(start, stop), np.uint8) for _ in range(2))
    assert np.shares_memory(one, two)
    assert bytes(one) == data[start:stop]


def test_bytes_of_several_pieces_and_bytes_that_were_not_requested_are_right(store):
    data = np.random.default_rng(0).bytes(7 * MIB)
    file = store.put(f"{ROOT}/bytes", data)
    fetched = Fetched(file, None, [], [(MIB, 6 * MIB)])
    for start, stop in (
        (MIB, 6 * MIB),
        (3 * MIB - 9, 3 * MIB + 9),
        (0, 10),
        (6 * MIB - 5, 7 * MIB),
        (MIB - 1, MIB + 1),
    ):
        assert bytes(fetched.read_at(start, stop)) == data[start:stop]


def test_a_window_reads_a_large_row_group_once_and_holds_a_few_blocks_of_each_column(store):
    rows = table(1_500_000, 8)
    data = written(rows, row_group_size=2_000_000, compression="none", use_dictionary=False)
    file, metadata = store.put(PLACE, data), pq.read_metadata(io.BytesIO(data))
    before, most = store.requests["GET"], 0
    window = Window(file, metadata, chunk_ranges(metadata, [0]))
    with open_parquet(file, metadata, 10, window) as parquet:
        batches = []
        for batch in parquet.iter_batches(batch_size=65_536):
            batches.append(batch)
            most = max(most, sum(len(held) for held in window._held) * window._block)
    assert pa.Table.from_batches(batches).equals(rows)
    assert store.requests["GET"] - before <= len(data) // window._block + metadata.num_columns
    assert most <= window_bytes(metadata.num_columns) <= 50 * MIB < len(data)


def test_a_damaged_page_is_named_as_in_a_local_file(store, stored):
    _, metadata, data = stored
    (start, stop), *_ = chunk_ranges(metadata, [0], ["f2"])
    data = bytearray(data)
    data[start + 40 : stop - 40] = bytes(stop - start - 80)
    damaged = store.put(PLACE, bytes(data))
    with pytest.raises(Exception, match="f2"):
        part(damaged, 0, 80_000)
    with pytest.raises(Exception, match="f2"):
        part(damaged, 0, 1000)


def part(file, start, stop, cache=None):
    source, cache = Source(id=file, start=start, stop=stop), cache or InputCache()
    schema = table(1).schema
    held = fetch([source], schema, (), cache, lambda: None)
    return read(source, schema, (), (1000,), cache, None, held.get(file.path)).table


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 80_000), (80_000, 200_000), (0, 200_000), (5, 79_000), (70_000, 170_000)]
)
def test_parts_of_whole_row_groups_and_of_slices_are_read_as_from_a_local_file(stored, start, stop):
    file, _, data = stored
    expected = pq.read_table(io.BytesIO(data)).slice(start, stop - start)
    assert part(file, start, stop).equals(expected.cast(table(1).schema))


def test_a_part_of_16_mb_needs_at_most_8_requests_and_asks_nothing_about_the_file(store):
    data = written(table(500_000, 8), row_group_size=500_000, compression="none", use_dictionary=False)
    file, cache = store.put(PLACE, data), InputCache()
    cache.file(file).parquet.close()
    before = store.requests.copy()
    part(file, 0, 500_000, cache)
    requests = store.requests - before
    assert requests["GET"] <= len(data) / (2 * MIB) + 1
    assert set(requests) == {"GET"}


def test_a_file_that_was_replaced_is_an_error_whether_read_at_once_or_in_slices(store, stored):
    file, metadata, _ = stored
    store.put(PLACE, written(table(seed=1), row_group_size=80_000))
    with pytest.raises(Changed):
        Fetched(file, metadata, [0], chunk_ranges(metadata, [0])).wait(10)
    cache = InputCache()
    cache._footers.clear()
    for stop in (80_000, 1000):
        with pytest.raises(InputChanged, match="changed after it was planned"):
            part(file, 0, stop, cache)
    store.remove([PLACE])
    with pytest.raises(InputChanged):
        part(file, 0, 1000)


def test_waiting_for_a_store_ends_with_the_run(store, stored, monkeypatch):
    file, _, _ = stored
    cache = InputCache()
    cache.file(file).parquet.close()
    monkeypatch.setattr("scorer.dataset.ahead._PROCEED_S", 0.01)
    slow = store.read_range

    def read_range(*given):
        import time

        time.sleep(0.3)
        return slow(*given)

    monkeypatch.setattr(store, "read_range", read_range)

    def ended():
        raise ModelNotResident("a worker does not know this run")

    with pytest.raises(ModelNotResident):
        fetch([Source(id=file, start=0, stop=200_000)], table(1).schema, (), cache, ended)


def test_many_small_files_of_a_part_are_opened_side_by_side_and_once(store):
    data = [written(table(10, seed=i)) for i in range(40)]
    files = [store.put(f"{ROOT}/many/{i:02}.parquet", one) for i, one in enumerate(data)]
    sources, cache, schema = [Source(id=file, start=0, stop=10) for file in files], InputCache(), table(1).schema
    held = fetch(sources, schema, (), cache, lambda: None)
    before = store.requests.copy()
    for source, one in zip(sources, data, strict=True):
        assert read(source, schema, (), (10,), cache, None, held[source.path]).table.equals(
            pq.read_table(io.BytesIO(one))
        )
    assert store.requests == before


@pytest.mark.parametrize("rows", [1, 79_999, 80_000, 80_001, 200_000, 900_000])
def test_the_first_rows_of_each_column_are_requested_at_once(store, stored, rows):
    file, _, data = stored
    before = store.requests.copy()
    with opened_at_first_rows(file, ["f0", "f3"], rows) as parquet:
        batch = next(parquet.iter_batches(batch_size=rows, columns=["f0", "f3"]))
    assert pa.table(batch).equals(pq.read_table(io.BytesIO(data), columns=["f0", "f3"]).slice(0, rows).combine_chunks())
    groups = -(-min(rows, 200_000) // 80_000)
    assert store.requests - before == {"GET": 1 + 2 * groups}


def test_dictionaries_that_are_larger_than_a_block_are_requested_of_all_columns_at_once(store, monkeypatch):
    data = written(table(200_000, 8), row_group_size=200_000, compression="none")
    file, metadata = store.put(PLACE, data), pq.read_metadata(io.BytesIO(data))
    columns, asked = [f"f{j}" for j in range(8)], []
    request = fetched._request
    monkeypatch.setattr(fetched, "_request", lambda *given: asked.append(given[1]) or request(*given))
    with opened_at_first_rows(file, columns, 1000, footer=metadata) as parquet:
        assert len(asked) == 8
        batch = next(parquet.iter_batches(batch_size=1000, columns=columns))
    assert pa.table(batch).equals(pq.read_table(io.BytesIO(data), columns=columns).slice(0, 1000))
    blocks, more = divmod(len(asked), 8)
    assert (blocks > 1, more) == (True, 0)
    assert all(asked[at : at + 8] == sorted(asked[at : at + 8]) for at in range(0, len(asked), 8))
