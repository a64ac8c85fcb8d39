"""Fields of structs by path: in schemas, in Parquet files and in row filters, against plain Python."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorer.dataset import fields, reader
from scorer.dataset.conditions import check, parse
from scorer.dataset.cursors import InputCache
from scorer.dataset.reader import Source
from scorer.dataset.summary import problems_of, summarise
from scorer.errors import MissingColumns
from scorer.storage.files import file_id

GEO = pa.struct([
    ("lat", pa.float64()), ("lng", pa.float32()), ("x.y", pa.int64()), ("it's", pa.int8()),
    ("deep", pa.struct([("a", pa.struct([("b", pa.string())])), ("c", pa.dictionary(pa.int8(), pa.string()))])),
])  # fmt: skip
ROWS = [
    {"lat": 48.5, "lng": 9.0, "x.y": 1, "it's": 2, "deep": {"a": {"b": "p"}, "c": "k"}},
    None,
    {"lat": None, "lng": 1.5, "x.y": None, "it's": 4, "deep": None},
    {"lat": 47.0, "lng": 8.0, "x.y": 5, "it's": 6, "deep": {"a": None, "c": "l"}},
]  # fmt: skip
SCHEMA = pa.schema([("id", pa.int64()), ("geo", GEO), ("geo.lng", pa.int8()), ("my.geo", GEO)])


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("geo.lat", ("geo", "lat")), ("a.b.c", ("a", "b", "c")), ("geo.'x.y'", ("geo", "x.y")),
        ("'my.geo'.lat", ("my.geo", "lat")), ("geo.'it''s'", ("geo", "it's")), ("geo.a b", ("geo", "a b")),
        ("geo", ()), (".lat", ()), ("geo.", ()), ("geo..lat", ()), ("geo.'x", ()), ("", ()), ("f0..f3", ()),
    ],
)  # fmt: skip
def test_a_path_is_names_between_dots(name, path):
    assert fields.path_of(name) == path


@pytest.mark.parametrize(
    ("name", "kind", "plainest"),
    [
        ("geo.lat", pa.float64(), "geo.lat"),
        ("geo.'lat'", pa.float64(), "geo.lat"),
        ("geo.lng", pa.int8(), "geo.lng"),
        ("geo.'lng'", pa.float32(), "geo.'lng'"),
        ("geo.'x.y'", pa.int64(), "geo.'x.y'"),
        ("'my.geo'.'it''s'", pa.int8(), "'my.geo'.'it''s'"),
        ("geo.deep.a.b", pa.string(), "geo.deep.a.b"),
        ("id", pa.int64(), "id"),
    ],
)
def test_a_column_of_the_name_comes_before_a_field_of_the_path(name, kind, plainest):
    found = fields.find(SCHEMA, name)
    assert (found.name, found.type) == (plainest, kind)
    again = fields.find(SCHEMA, found.name)
    assert (again.name, again.type) == (plainest, kind)


@pytest.mark.parametrize("name", ["geo.x.y", "geo.no", "no.lat", "id.a", "my.geo.lat", "geo.lat.a"])
def test_what_is_neither_is_not_found(name):
    assert fields.find(SCHEMA, name) is None


def value(row, path):
    for step in path:
        row = None if row is None else row[step]
    return row


@pytest.fixture
def source(tmp_path):
    """A file of three row groups, with a struct and columns whose names look like paths."""
    rows = ROWS * 3
    table = pa.table([range(12), rows, range(12), rows], schema=SCHEMA)
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=4, store_schema=True)
    return tmp_path / "in.parquet"


NAMES = ["geo.lat", "geo.'lng'", "geo.lng", "geo.'x.y'", "'my.geo'.'it''s'", "geo.deep.a.b", "geo.deep.c", "geo", "id"]


@settings(max_examples=40)
@given(
    names=st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
    span=st.tuples(st.integers(0, 12), st.integers(0, 12)).map(sorted),
)
def test_fields_are_read_as_python_finds_them(names, span, tmp_path_factory):
    rows = ROWS * 3
    path = tmp_path_factory.mktemp("in") / "in.parquet"
    pq.write_table(pa.table([range(12), rows, range(12), rows], schema=SCHEMA), path, row_group_size=4)
    schema = pa.schema(fields.schema_of(SCHEMA, names))
    assert set(schema.names) == set(names)
    source = Source(id=file_id(str(path)), start=span[0], stop=span[1])
    table = reader.read(source, schema, (), (5,), InputCache()).table
    for name in names:
        whole = {"geo": rows, "id": list(range(12)), "geo.lng": list(range(12))}.get(name)
        if whole is None:
            steps = fields.path_of(name)
            whole = [value(row, steps[1:]) for row in rows]
        assert table[name].to_pylist() == whole[span[0] : span[1]], name


def test_only_the_leaf_of_a_field_is_read(source, monkeypatch):
    asked = []
    read = pq.ParquetFile.read_row_groups
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_groups",
        lambda self, groups, columns=None, **more: asked.append(columns) or read(self, groups, columns, **more),
    )  # fmt: skip
    schema = pa.schema(fields.schema_of(SCHEMA, ["geo.lat", "geo.deep.a.b"]))
    whole = Source(id=file_id(str(source)), start=0, stop=12)
    assert reader.read(whole, schema, (), (5,), InputCache()).table.num_rows == 12
    assert {name for names in asked for name in names} == {"geo.lat", "geo.deep.a.b"}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("geo.lat > 48", lambda row: (value(row, ["lat"]) or 0) > 48),
        ("geo.lat is null", lambda row: value(row, ["lat"]) is None),
        ("geo.'x.y' in (1, 7)", lambda row: value(row, ["x.y"]) in {1, 7}),
        ("geo.deep.a.b = 'p'", lambda row: value(row, ["deep", "a", "b"]) == "p"),
        ("geo.deep.c != 'k'", lambda row: value(row, ["deep", "c"]) not in {None, "k"}),
        ("'my.geo'.'it''s'>=4", lambda row: (value(row, ["it's"]) or 0) >= 4),
        ('"geo.lat" is not null', lambda row: value(row, ["lat"]) is not None),
    ],
)
def test_a_field_filters_rows_as_a_plain_loop_does(text, holds, source):
    condition = parse(text)
    assert check([condition], SCHEMA) == []
    schema = pa.schema(fields.schema_of(SCHEMA, ["id", condition.column]))
    whole = Source(id=file_id(str(source)), start=0, stop=12)
    found = reader.read(whole, schema, (condition,), (5,), InputCache())
    assert found.table["id"].to_pylist() == [i for i, row in enumerate(ROWS * 3) if holds(row)]


def test_statistics_of_a_field_rule_out_row_groups_but_never_by_nulls(tmp_path):
    kind = pa.struct([("n", pa.int64())])
    rows = [{"n": 1}, {"n": 2}, None, None, {"n": 7}, {"n": 8}]
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"s": pa.array(rows, kind)}), path, row_group_size=2)
    parquet = pq.ParquetFile(path)

    def excluded(text):
        return [reader._excluded(parquet, group, [parse(text)], ["s.n"]) for group in range(3)]

    assert excluded("s.n > 5") == [True, False, False]
    assert excluded("s.n = 1") == [False, False, True]
    assert excluded("s.n is null") == [False, False, False]
    assert excluded("s.n is not null") == [False, False, False]


def test_a_typing_error_in_a_path_suggests_the_field():
    (problem,) = check([parse("geo.latt > 1")], SCHEMA)
    assert isinstance(problem, MissingColumns)
    assert problem.hint == "did you mean 'geo.lat'?"


def test_files_may_differ_in_fields_that_are_not_used(tmp_path):
    pq.write_table(pa.table({"s": pa.array([{"n": 1, "m": 2}])}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"s": pa.array([{"k": "p", "n": 3}])}), tmp_path / "b.parquet")
    dataset = summarise([str(tmp_path)])
    assert problems_of(dataset, ["s.n"]) == []
    assert len(problems_of(dataset, ["s.m"])) == 1
    assert len(problems_of(dataset, ["s"])) == 1
    table = reader.first_rows(dataset, pa.schema(fields.schema_of(dataset.columns, ["s.n"])), 10)
    assert table.to_pydict() == {"s.n": [1, 3]}
