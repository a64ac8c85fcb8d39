"""The index of joined tables, against pyarrow's own lookup and pandas' merge."""

from __future__ import annotations

import datetime as dt
import decimal
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from support.runs import write

from scorer.arrow import encode_schema
from scorer.dataset.joins import lookup
from scorer.dataset.joins.index import as_key, build, duplicates, key_type
from scorer.dataset.joins.spec import Join
from scorer.errors import InputChanged, InputError

RANDOM = np.random.default_rng(11)
WHOLE = RANDOM.permutation(5000)[:2000] - 1000
TEXTS = ["", "a", "ä" * 3, "12345678", "123456789", "x" * 9000, "x" * 9000 + "y", *(f"key {n}" for n in WHOLE)]
MOMENTS = [dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(minutes=int(n)) for n in WHOLE]
VALUES = {
    "int8": pa.array(range(-128, 128), pa.int8()),
    "int64": pa.array([*WHOLE.tolist(), 2**63 - 1, -(2**63)]),
    "uint64": pa.array([*range(100), 2**64 - 1], pa.uint64()),
    "bool": pa.array([True, False]),
    "string": pa.array(TEXTS),
    "large_string": pa.array(TEXTS, pa.large_string()),
    "binary": pa.array([text.encode() for text in TEXTS]),
    "fixed binary": pa.array([int(n).to_bytes(16, "big", signed=True) for n in WHOLE], pa.binary(16)),
    "date": pa.array([moment.date() for moment in MOMENTS[:1]] + [dt.date(1, 1, 1), dt.date(9999, 1, 1)]),
    "timestamp": pa.array(MOMENTS, pa.timestamp("us", "UTC")),
    "decimal": pa.array([decimal.Decimal(int(n)) / 100 for n in WHOLE], pa.decimal128(20, 2)),
    "decimal256": pa.array([decimal.Decimal(int(n)) / 100 for n in WHOLE], pa.decimal256(40, 2)),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("encoded", [False, True], ids=["plain", "dictionary"])
def test_each_key_is_found_where_pyarrow_finds_it(name, encoded):
    values = VALUES[name]
    kind = key_type(values.type, values.type)
    half = values.slice(1, len(values) - len(values) // 3 - 1)
    asked = pa.concat_arrays([values.slice(0, 3), pa.nulls(2, values.type), values, values.slice(5, 40)]).slice(1)
    column = pa.chunked_array([asked.slice(0, 7), asked.slice(7)])
    table = pa.chunked_array([half])
    index, order = build([as_key(table.dictionary_encode() if encoded else table, kind)])
    found = index.find([as_key(column.dictionary_encode() if encoded else column, kind)])
    places = [None if at < 0 else int(order[at]) for at in found]
    assert places == pc.index_in(asked.cast(kind), half.cast(kind), skip_nulls=True).to_pylist()
    assert not len(duplicates(index))


def test_several_keys_are_found_where_pandas_finds_them():
    def column():
        return {"day": RANDOM.integers(0, 30, 3000), "shop": RANDOM.choice(TEXTS, 3000)}

    left, right = pd.DataFrame(column()), pd.DataFrame(column()).drop_duplicates().reset_index(names="at")
    kinds = {"day": pa.int64(), "shop": pa.large_string()}

    def keys(frame):
        return [as_key(pa.chunked_array([pa.array(frame[name])]), kind) for name, kind in kinds.items()]

    index, order = build(keys(right))
    found = index.find(keys(left))
    merged = left.merge(right.assign(at=np.arange(len(right))), how="left", on=list(kinds))["at"]
    assert np.where(found < 0, -1, order[found]).tolist() == merged.fillna(-1).astype(int).tolist()
    assert (found < 0).any()


def test_rows_with_one_key_are_found():
    values = pa.array(["b", "a", "c", "a", "b", "a"])
    index, order = build([values.cast(pa.large_string())])
    assert sorted(order[duplicates(index)].tolist()) == [3, 4, 5]
    index, order = build([pa.array([7, 8, 7])])
    assert order[duplicates(index)].tolist() == [2]


@pytest.mark.parametrize("values", [[], [5]])
def test_an_index_of_no_row_or_one_is_complete(values):
    index, _ = build([pa.array(values, pa.int64())])
    assert index.find([pa.array([4, 5, None, 6])]).tolist() == [-1, 0 if values else -1, -1, -1]


@pytest.mark.parametrize(
    ("left", "right", "kind"),
    [
        (pa.int32(), pa.int64(), pa.int64()), (pa.uint32(), pa.int8(), pa.int64()),
        (pa.uint64(), pa.uint8(), pa.uint64()), (pa.uint64(), pa.int64(), None),
        (pa.string(), pa.large_string(), pa.large_string()), (pa.string_view(), pa.string(), pa.large_string()),
        (pa.dictionary(pa.int8(), pa.string()), pa.string(), pa.large_string()),
        (pa.binary(16), pa.binary(), pa.large_binary()), (pa.string(), pa.binary(), None),
        (pa.int64(), pa.float64(), None), (pa.float64(), pa.float64(), None), (pa.int64(), pa.string(), None),
        (pa.timestamp("us"), pa.timestamp("ms"), None), (pa.timestamp("us"), pa.timestamp("us", "UTC"), None),
        (pa.date32(), pa.date32(), pa.date32()), (pa.list_(pa.int8()), pa.list_(pa.int8()), None),
    ],
)  # fmt: skip
def test_only_types_that_convert_exactly_are_compared(left, right, kind):
    assert key_type(left, right) == kind


def join_of(path, **more):
    """Return a join of the table in this file, by its whole number `id`, that adds the text `name`."""
    schema = pa.schema([("0", pa.int64()), ("name", pa.string())])
    digest = lookup.digest_of(lookup.open_table(str(path)))
    values = {"name": "t", "digest": digest, "left": ("id",), "right": ("id",), "missing": "null", **more}
    return Join(location=str(path), schema=encode_schema(schema), **values)


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A table of three rows, one without a key, and a temporary folder of its own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return write(tmp_path / "t.parquet", {"id": pa.array([3, None, 1], pa.int32()), "name": ["c", "?", None]})


def shared_files(folder):
    return sorted(path.name.partition(".")[2] for path in Path(folder).glob("scorer-*/joins/*"))


@pytest.mark.parametrize("shared", [False, True])
def test_rows_get_the_columns_of_their_keys_and_a_shared_file_is_removed_after_use(table, shared):
    join = join_of(table)
    rows = pa.table({"id": pa.array([1, 2, None, 3], pa.int64())})
    found, unmatched, bad = lookup.add_columns(rows, [join], shared=shared)
    assert found.to_pydict() == {"id": [1, 2, None, 3], "t.name": [None, None, None, "c"]}
    assert (unmatched.tolist(), bad) == ([False, True, True, False], {})
    assert shared_files(table.parent) == (["arrow", "arrow.lock"] if shared else [])
    lookup.forget([lookup.id_of(join)])
    assert shared_files(table.parent) == []
    assert lookup.add_columns(rows, [join_of(table, missing="error")])[2] == {
        1: "t has no row with id = 2", 2: "t has no row with id = None"
    }  # fmt: skip


@pytest.mark.slow
def test_a_second_process_maps_the_file_of_the_first_and_does_not_read_the_table(table):
    join = join_of(table)
    rows = pa.table({"id": pa.array([3], pa.int64())})
    lookup.add_columns(rows, [join], shared=True)
    table.unlink()
    code = (
        "import sys, pickle; from scorer.dataset.joins import lookup; import pyarrow as pa\n"
        "join = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "print(lookup.add_columns(pa.table({'id': [3]}), [join], shared=True)[0]['t.name'].to_pylist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, pickle.dumps(join).hex()], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "['c']", done.stderr
    assert shared_files(table.parent) == ["arrow", "arrow.lock"]  # that process ended without its last words
    lookup.forget([lookup.id_of(join)])
    assert shared_files(table.parent) == []


def test_what_a_killed_process_left_is_removed_when_another_table_is_loaded(table):
    folder = table.parent / f"scorer-{os.getuid()}" / "joins"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o700)
    for name in ("old.arrow", "old.arrow.lock", "half.arrow.lock", "half.arrow.part"):
        (folder / name).write_bytes(b"")
    join = join_of(table)
    lookup.add_columns(pa.table({"id": pa.array([3], pa.int64())}), [join], shared=True)
    assert [path.name.partition(".")[0] for path in folder.iterdir()] == [lookup.id_of(join)] * 2
    lookup.forget([lookup.id_of(join)])


def test_a_table_that_changed_is_not_loaded_and_neither_is_one_with_two_rows_of_a_key(table):
    join = join_of(table)
    write(table, {"id": pa.array([3, 1, 4, 1, 3], pa.int32()), "name": list("abcde")})
    rows = pa.table({"id": pa.array([3], pa.int64())})
    with pytest.raises(InputChanged, match="the table of --join t changed after it was planned"):
        lookup.add_columns(rows, [join])
    with pytest.raises(InputError) as caught:
        lookup.add_columns(rows, [join_of(table)])
    assert caught.value.found == "2 rows whose key an earlier row has; the first is id = 1"
