"""The filter agrees with a plain Python comparison on every row, and statistics never hide a match."""

from __future__ import annotations

import datetime as dt
import io
import math
import operator
from decimal import Decimal
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import strategies

from scorer.dataset.conditions import Condition, check, excludes, mask, parse
from scorer.errors import MissingColumns, OptionsError, TypeMismatch

OPS = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, "<>": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def quoted(text):
    return "'" + str(text).replace("'", "''") + "'"


def holds(op, value, literals):
    """Return whether one Python value meets the condition."""
    if op == "is null":
        return value is None
    if op == "is not null":
        return value is not None
    if value is None:
        return False
    if op == "in":
        return any(value == x for x in literals)
    if op == "not in":
        return all(value != x for x in literals)
    return OPS[op](value, literals[0])


def condition_text(column, op, literals, show):
    if op.startswith("is"):
        return f"{column} {op}"
    if op in {"in", "not in"}:
        return f"{column} {op} ({', '.join(map(show, literals))})"
    return f"{column} {op} {show(literals[0])}"


# Parsing


@pytest.mark.parametrize(
    ("text", "column", "op", "literals"),
    [
        ("a > 10", "a", ">", (10,)),
        ("a>10", "a", ">", (10,)),
        ("  a  <=  -1.5e3 ", "a", "<=", (-1500.0,)),
        ("a = 3", "a", "==", (3,)),
        ("a <> 3", "a", "!=", (3,)),
        ("a == 'x'", "a", "==", ("x",)),
        ("a == '3'", "a", "==", ("3",)),
        ('a = "it\'s"', "a", "==", ("it's",)),
        ("a = 'it''s'", "a", "==", ("it's",)),
        ("a = ''", "a", "==", ("",)),
        ("a = 'b > c'", "a", "==", ("b > c",)),
        ("a = ' x '", "a", "==", (" x ",)),
        ("a = true", "a", "==", (True,)),
        ("a = FALSE", "a", "==", (False,)),
        ("'a b' < 1", "a b", "<", (1,)),
        ('"a\'b" < 1', "a'b", "<", (1,)),
        ("'a''b' < 1", "a'b", "<", (1,)),
        ("'a>b' > 1", "a>b", ">", (1,)),
        ("s.x = 1", "s.x", "==", (1,)),
        ("größe = 1", "größe", "==", (1,)),
        ("a in (1, 2,3)", "a", "in", (1, 2, 3)),
        ("a IN ('x')", "a", "in", ("x",)),
        ("a in ('x, y', 'z)', '''')", "a", "in", ("x, y", "z)", "'")),
        ("a not  in (1)", "a", "not in", (1,)),
        ("a Is Null", "a", "null", ()),
        ("a is not null", "a", "not null", ()),
        ("'is null' is null", "is null", "null", ()),
        ("a = 'is null'", "a", "==", ("is null",)),
        ("inside = 1", "inside", "==", (1,)),
    ],
)
def test_a_condition_is_parsed(text, column, op, literals):
    got = parse(text)
    assert got == Condition(column=column, op=op, literals=literals, text=text)
    assert [type(x) for x in got.literals] == [type(x) for x in literals]


@pytest.mark.parametrize(
    "text",
    [
        "", "a", "a >", "> 3", "a = b", "a = null", "a ~ 3", "a = 3 and b = 4", "a = 'x", "a = x'", "a = 'x' 'y'",
        "a in ()", "a in 1", "a in (1", "a in (1 2)", "a in (,)", "a in ('x' 'y')", "a in (b)", "a is 3", "is null",
        "a is nul", "a !> 3", "a between 1 and 2", "a = 1 = 2", "a b > 3",
    ],
)  # fmt: skip
def test_a_condition_that_cannot_be_parsed_is_refused_with_an_example(text):
    with pytest.raises(OptionsError) as caught:
        parse(text)
    assert "--where" in caught.value.where
    assert "for example" in caught.value.hint


@settings(max_examples=300)
@given(name=strategies.TEXT, values=st.lists(strategies.TEXT, min_size=1, max_size=4))
def test_any_name_and_any_texts_survive_quoting(name, values):
    got = parse(f"{quoted(name)} in ({', '.join(map(quoted, values))})")
    assert (got.column, got.literals) == (name, tuple(values))
    assert parse(f"{quoted(name)} = {quoted(values[0])}").literals == (values[0],)


# Checking against a schema


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a > 'x'", pa.int64()), ("a > 1", pa.string()), ("a = true", pa.int64()), ("a = 1", pa.bool_()),
        ("a = 'x'", pa.timestamp("us")), ("a = 5", pa.date32()), ("a = '2020-13-01'", pa.date32()),
        ("a = 300", pa.int8()), ("a = -1", pa.uint32()), ("a = 'x'", pa.decimal128(5, 2)), ("a = 'x'", pa.binary()),
        ("a = 1", pa.list_(pa.int64())), ("a = 1", pa.struct([("x", pa.int64())])), ("a in (1, 'x')", pa.int64()),
        ("a = 'x'", pa.dictionary(pa.int8(), pa.int64())), ("a = '1'", pa.duration("s")), ("a = inf", pa.int64()),
    ],
)  # fmt: skip
def test_a_literal_of_another_type_is_refused_before_a_row_is_read(text, kind):
    (problem,) = check([parse(text)], pa.schema([("a", kind)]))
    assert isinstance(problem, TypeMismatch)
    assert str(kind) in problem.expected


def test_every_wrong_condition_is_reported():
    problems = check([parse("b = 1"), parse("a = 1"), parse("a = 'x'")], pa.schema([("a", pa.int64())]))
    assert [type(p) for p in problems] == [MissingColumns, TypeMismatch]


@pytest.mark.parametrize("text", ["a is null", "a is not null"])
@pytest.mark.parametrize("kind", [pa.binary(), pa.list_(pa.int8()), pa.duration("s"), pa.float16(), pa.null()])
def test_any_type_can_be_tested_for_null(text, kind):
    assert check([parse(text)], pa.schema([("a", kind)])) == []
    got = mask([parse(text)], pa.table({"a": pa.array([None, None], kind)}))
    assert got.to_pylist() == [text == "a is null"] * 2


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a > 1", pa.float16()), ("a = '12:00:00'", pa.time64("us")), ("a in ('x')", pa.string_view()),
        ("a = 'x'", pa.string_view()), ("a < 'x'", pa.large_string()), ("a in ('2020-01-01')", pa.date64()),
        ("a > 1.5", pa.decimal256(50, 2)), ("a > '2020-01-01'", pa.timestamp("ns")), ("a > true", pa.bool_()),
    ],
)  # fmt: skip
def test_what_the_check_lets_through_can_be_masked(text, kind):
    """A condition is refused at the start or can be applied; it never fails in the middle of a run."""
    condition, table = parse(text), pa.table({"a": pa.array([None], kind)})
    if not check([condition], table.schema):
        assert mask([condition], table).to_pylist() == [False]


# Masking


UTC = dt.UTC
MOMENTS = st.datetimes(dt.datetime(1960, 1, 1), dt.datetime(2040, 1, 1))  # noqa: DTZ001 - naive on purpose
KINDS = {
    "int8": (pa.int8(), st.integers(-128, 127), str),
    "int64": (pa.int64(), st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3), str),
    "uint64": (pa.uint64(), st.integers(0, 2**63 - 1) | st.integers(0, 3), str),
    "float": (pa.float32(), (st.floats(width=32) | st.sampled_from([1.0, 2.5, math.nan])).map(lambda x: x + 0.0), repr),
    "double": (pa.float64(), (st.floats() | st.integers(-2, 2).map(float)).map(lambda x: x + 0.0), repr),
    "bool": (pa.bool_(), st.booleans(), str),
    "string": (pa.string(), strategies.TEXT | st.sampled_from(["a", "b", "ab", "A"]), quoted),
    "large_string": (pa.large_string(), st.sampled_from(["a", "b", "ä", "𝄞", "\uffff"]), quoted),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["a", "b", "ab", ""]), quoted),
    "dictionary of int": (pa.dictionary(pa.int8(), pa.int64()), st.integers(-3, 3), str),
    "date": (pa.date32(), st.dates(dt.date(1960, 1, 1), dt.date(2040, 1, 1)), quoted),
    "date64": (pa.date64(), st.dates(dt.date(1969, 12, 30), dt.date(1970, 1, 2)), quoted),
    "timestamp": (pa.timestamp("us"), MOMENTS, quoted),
    "timestamp ns": (pa.timestamp("ns"), MOMENTS, quoted),
    "timestamp s": (pa.timestamp("s"), MOMENTS.map(lambda m: m.replace(microsecond=0)), quoted),
    "zoned": (pa.timestamp("us", "Europe/Berlin"), MOMENTS.map(lambda m: m.replace(tzinfo=UTC)),
              lambda m: quoted(m.astimezone(ZoneInfo("America/New_York")).isoformat())),
    "zoned, literal in UTC": (pa.timestamp("ms", "Asia/Tokyo"),
                              MOMENTS.map(lambda m: m.replace(tzinfo=UTC, microsecond=0)),
                              lambda m: quoted(m.replace(tzinfo=None).isoformat())),
    "decimal": (pa.decimal128(10, 2), st.decimals(-1000, 1000, places=2), str),
    "decimal, quoted": (pa.decimal128(38, 2), st.decimals(Decimal(-(10**30)), Decimal(10**30), places=2), quoted),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=60)
@given(data=st.data())
def test_the_mask_is_what_python_says_of_each_value(name, data):
    kind, values, show = KINDS[name]
    column, rows = data.draw(strategies.chunked(kind, values, max_rows=20))
    near = values | st.sampled_from([v for v in rows if v is not None] or [data.draw(values)])
    op = data.draw(st.sampled_from([*OPS, "in", "not in", "is null", "is not null"]))
    literals = data.draw(st.lists(near, min_size=1, max_size=3))
    if op in {"in", "not in"}:
        literals = [x for x in literals if x == x] or [data.draw(values.filter(lambda x: x == x))]  # noqa: PLR0124 - NaN
    condition = parse(condition_text("a", op, literals, show))
    table = pa.table({"a": column})
    assert check([condition], table.schema) == []
    assert mask([condition], table).to_pylist() == [holds(op, v, literals) for v in rows]


@settings(max_examples=100)
@given(
    a=st.lists(st.none() | st.integers(-3, 3), min_size=1, max_size=20),
    bounds=st.lists(st.tuples(st.sampled_from(list(OPS)), st.integers(-3, 3)), min_size=1, max_size=4),
)
def test_all_conditions_must_hold(a, bounds):
    got = mask([parse(f"a {op} {x}") for op, x in bounds], pa.table({"a": pa.array(a, pa.int64())}))
    assert got.to_pylist() == [all(holds(op, v, [x]) for op, x in bounds) for v in a]


def test_an_unsigned_column_is_compared_up_to_its_end():
    condition, table = parse(f"a > {2**64 - 2}"), pa.table({"a": pa.array([2**64 - 1, 2**64 - 2], pa.uint64())})
    assert check([condition], table.schema) == []
    assert mask([condition], table).to_pylist() == [True, False]


@pytest.mark.parametrize(("text", "expected"), [("a in (0.0)", [True, True]), ("a not in (0)", [False, False]),
                                                ("a = 0", [True, True])])  # fmt: skip
def test_zero_equals_minus_zero(text, expected):
    assert mask([parse(text)], pa.table({"a": [0.0, -0.0]})).to_pylist() == expected


@pytest.mark.parametrize("text", ["a = nan", "a in (nan)", "a < nan"])
def test_nothing_equals_nan(text):
    assert mask([parse(text)], pa.table({"a": [math.nan, 1.0]})).to_pylist() == [False, False]


def test_a_time_of_day_is_not_cut_from_a_literal_for_dates():
    """Noon is after midnight: cutting the time off would lose that day's rows without a warning."""
    condition, table = parse("a < '2020-01-01T12:00'"), pa.table({"a": [dt.date(2020, 1, 1)]})
    if not check([condition], table.schema):
        assert mask([condition], table).to_pylist() == [True]


def test_a_fraction_of_a_second_is_not_cut_from_a_literal():
    condition = parse("a < '1970-01-01T00:00:00.5'")
    table = pa.table({"a": pa.array([0, 1], pa.timestamp("s"))})
    if not check([condition], table.schema):
        assert mask([condition], table).to_pylist() == [True, False]


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_a_literal_keeps_its_nanoseconds(zone):
    table = pa.table({"a": pa.array([-1, 0, 1, 2], pa.timestamp("ns", zone))})
    for text, expected in [
        ("a = '1970-01-01T00:00:00.000000001'", [False, False, True, False]),
        ("a >= '1970-01-01T00:00:00.000000001'", [False, False, True, True]),
        ("a = '1969-12-31T23:59:59.999999999'", [True, False, False, False]),
        ("a = '1970-01-01T00:00:00.000000000'", [False, True, False, False]),
    ]:
        assert check([parse(text)], table.schema) == []
        assert mask([parse(text)], table).to_pylist() == expected


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a = '1970-01-01T00:00:00.000000001'", pa.timestamp("us")),
        ("a = '1970-01-01T00:00:00.000000001'", pa.date32()),
        ("a = '1970-01-01T00:00:00.0000000001'", pa.timestamp("ns")),
    ],
)  # fmt: skip
def test_digits_of_a_second_that_the_column_cannot_hold_are_refused(text, kind):
    (problem,) = check([parse(text)], pa.schema([("a", kind)]))
    assert "1970-01-01T00:00:00.000000" in problem.found


def test_a_decimal_literal_keeps_all_its_digits_with_and_without_quotes():
    exact = Decimal("5429857452719158014125611.33085")
    table = pa.table({"a": pa.array([exact, exact + Decimal("0.00001")], pa.decimal128(30, 5))})
    for literal in (f"{exact}", f"'{exact}'"):
        assert mask([parse(f"a = {literal}")], table).to_pylist() == [True, False]
    assert parse("a = 0.1").literals == (0.1,)


def test_a_whole_number_written_with_a_point_keeps_all_its_digits():
    table = pa.table({"a": [2**53, 2**53 + 1]})
    assert mask([parse("a = 9007199254740993.0")], table).to_pylist() == [False, True]


# Row groups ruled out


def columns_of(rng, rows):
    """Return one random column of each type for which statistics may rule row groups out."""
    narrow = int(rng.integers(1, 6))
    ints = rng.integers(-narrow, narrow + 1, rows)
    texts = np.array(["", "a", "ab", "b", "ä", "𝄞", "\uffff"])
    days = [dt.date(2020, 1, 1) + dt.timedelta(int(i)) for i in ints]
    moments = [dt.datetime(2020, 1, 1) + dt.timedelta(hours=int(i)) for i in ints]  # noqa: DTZ001 - naive on purpose
    top = rng.integers(2**63 - 3, 2**63 + 3, rows, dtype=np.uint64)
    yield "int64", pa.int64(), ints.tolist(), str
    yield "int8", pa.int8(), ints.tolist(), str
    yield "uint64", pa.uint64(), top.tolist(), str
    yield "uint32", pa.uint32(), (ints + 2**31).tolist(), str
    yield "float64", pa.float64(), rng.choice([math.nan, 0.0, -0.0, 1.5, -math.inf], rows).tolist(), repr
    yield "string", pa.string(), rng.choice(texts, rows).tolist(), quoted
    yield "dictionary", pa.dictionary(pa.int8(), pa.string()), rng.choice(texts, rows).tolist(), quoted
    yield "bool", pa.bool_(), (ints > 0).tolist(), str
    yield "date32", pa.date32(), days, quoted
    yield "ms", pa.timestamp("ms"), moments, quoted
    yield "ns", pa.timestamp("ns"), moments, quoted
    yield "zoned", pa.timestamp("us", "Europe/Berlin"), [m.replace(tzinfo=UTC) for m in moments], quoted
    yield "decimal", pa.decimal128(6, 2), [Decimal(int(i)) / 4 for i in ints], str


@pytest.mark.parametrize("seed", range(30))
def test_statistics_never_rule_out_a_row_that_matches(seed):
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, 60))
    columns = {}
    for name, kind, values, show in columns_of(rng, rows):
        share = rng.choice([0, 0.2, 1])
        held = [None if rng.random() < share else v for v in values]
        columns[name] = (kind, held, show, values)
    table = pa.table({name: pa.array(held, kind) for name, (kind, held, _, _) in columns.items()})
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=int(rng.integers(1, 20)))
    parquet = pq.ParquetFile(file)
    for leaf, (name, (_, held, show, values)) in enumerate(columns.items()):
        for op in [*OPS, "in", "not in", "is null", "is not null"]:
            literals = [values[i] for i in rng.integers(0, rows, 2)]
            literals = [min(x, 2**63 - 1) for x in literals] if name == "uint64" else literals
            condition = parse(condition_text(name, op, literals, show))
            at = 0
            for g in range(parquet.num_row_groups):
                group = parquet.metadata.row_group(g)
                here = held[at : at + group.num_rows]
                at += group.num_rows
                if excludes(condition, group, parquet.schema_arrow.field(name).type, leaf):
                    assert not any(holds(op, v, literals) for v in here), (name, op, literals, here)


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ([1, 2, 3], "a > 3"), ([1, 2, 3], "a >= 4"), ([1, 2, 3], "a < 1"), ([1, 2, 3], "a <= 0"), ([1, 2, 3], "a = 9"),
        ([1, 2, None], "a in (0, 9)"), ([5, 5, 5], "a != 5"), ([1, 2, 3], "a is null"), ([None, None], "a is not null"),
        (["b", "c"], "a < 'b'"), (["b", "c"], "a = 'd'"), ([dt.date(2020, 1, 1)], "a > '2020-01-01'"),
        ([dt.datetime(2020, 1, 1, tzinfo=UTC)], "a < '2020-01-01'"),
    ],
)  # fmt: skip
def test_a_row_group_that_cannot_match_is_ruled_out(column, text):
    file = io.BytesIO()
    table = pa.table({"a": pa.array(column, pa.int64()) if column[0] is None else column})
    pq.write_table(table, file)
    metadata = pq.ParquetFile(file).metadata
    assert excludes(parse(text), metadata.row_group(0), table.schema.field("a").type, 0)


def test_without_statistics_nothing_is_ruled_out():
    file = io.BytesIO()
    pq.write_table(pa.table({"a": [1, 2, 3]}), file, write_statistics=False)
    group = pq.ParquetFile(file).metadata.row_group(0)
    assert not any(excludes(parse(f"a {op}"), group, pa.int64(), 0) for op in ("> 9", "= 9", "is null", "in (9)"))
