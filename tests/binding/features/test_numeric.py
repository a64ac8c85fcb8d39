"""Columns become exactly the tensors that a loop over Python values creates, or the row is reported."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import strategies

from scorer.binding.features.numeric import cast_keeps
from scorer.binding.features.pack import pack
from scorer.binding.features.unpack import arrow_name, unpack
from scorer.binding.spec import Feed, Fetch

FLOATS = ("float16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
SOURCES = (*FLOATS, *INTEGERS, "bool")
TARGETS = (*FLOATS, *INTEGERS)
EDGES = [sign * (2**power + more) for power in (7, 8, 11, 15, 16, 24, 31, 32, 53, 63) for more in (-1, 0, 1, 3)
         for sign in (1, -1)]  # fmt: skip
FRACTIONS = [
    0.5,
    -1.5,
    0.1,
    math.nan,
    math.inf,
    -math.inf,
    -0.0,
    65504.0,
    65520.0,
    3.4028235e38,
    3.5e38,
    -1e300,
    1e-300,
]


def feed(dtype="float32", kind="numeric", columns=("a",), rank=1, width=None, on_null="error", on_lossy="error"):
    return Feed(
        tensor="x", kind=kind, dtype=dtype, columns=tuple(columns),
        shape=(width or len(columns),) if rank > 1 else (), on_null=on_null, on_lossy=on_lossy,
    )  # fmt: skip


def packed_of(feed, table):
    return pack([feed], table)[feed.tensor]


def table(**columns):
    return pa.table(
        {name: c if isinstance(c, (pa.Array, pa.ChunkedArray)) else pa.array(c) for name, c in columns.items()}
    )


def arrow(name):
    return {"float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64(), "bool": pa.bool_()}.get(
        name
    ) or pa.type_for_alias(name)


def values_for(source):
    """Every interesting value that the source type holds, and a null between them."""
    if source == "bool":
        return [True, None, False]
    if source in INTEGERS:
        info = np.iinfo(source)
        return [0, 1, None, *sorted({v for v in [*EDGES, info.min, info.max] if info.min <= v <= info.max})]
    with np.errstate(over="ignore"):
        held = [float(np.dtype(source).type(v)) for v in [0.0, 1.0, *map(float, EDGES), *FRACTIONS]]
    return [held[0], None, *held[1:]]


def is_exact(value, target):
    """Whether the value is itself after the cast, decided on Python numbers."""
    if target.startswith("float"):
        with np.errstate(over="ignore"):
            cast = float(np.dtype(target).type(value))
        if isinstance(value, float):
            return math.isfinite(cast) or not math.isfinite(value)
        return math.isfinite(cast) and int(cast) == int(value)
    info = np.iinfo(target)
    whole = not isinstance(value, float) or (math.isfinite(value) and value.is_integer())
    return whole and info.min <= int(value) <= info.max


def same(got, wanted):
    return (got != got and wanted != wanted) or (got == wanted and math.copysign(1, got) == math.copysign(1, wanted))  # noqa: PLR0124 - NaN


def check(packed, rows, target, on_null, on_lossy):
    """The packed column against a loop over its values."""
    got = packed.batch(slice(0, len(rows)))
    assert got.dtype == np.dtype(target)
    bad, changed = set(), 0
    for i, value in enumerate(rows):
        if value is None:
            if on_null == "error":
                bad.add(i)
            else:
                assert same(float(got[i]), float(on_null)), (i, got[i])
        elif is_exact(value, target):
            assert same(got[i].item(), np.dtype(target).type(value).item()), (i, value, got[i])
        elif on_lossy == "error":
            bad.add(i)
        else:
            changed += 1
    assert set(packed.bad) == bad, sorted((i, rows[i]) for i in set(packed.bad) ^ bad)
    assert packed.lossy == changed
    assert all("'a'" in reason and "'x'" in reason for reason in packed.bad.values())


def policies(target):
    return ("error", "nan", "7") if target in FLOATS else ("error", "7")


@pytest.mark.parametrize("on_lossy", ["error", "warn"])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("target", TARGETS)
def test_every_value_is_exact_or_reported_with_column_and_tensor(source, target, on_lossy):
    rows = [value for value in values_for(source) if value is not None]
    check(
        packed_of(feed(target, on_lossy=on_lossy), table(a=pa.array(rows, arrow(source)))),
        rows,
        target,
        "error",
        on_lossy,
    )


@pytest.mark.parametrize("source", [s for s in SOURCES if s != "bool"])
@pytest.mark.parametrize(("target", "on_null"), [(t, policy) for t in TARGETS for policy in policies(t)])
@pytest.mark.parametrize("on_lossy", ["error", "warn"])
def test_nulls_among_the_values_change_nothing_but_themselves(source, target, on_null, on_lossy):
    rows = values_for(source)
    packed = packed_of(feed(target, on_null=on_null, on_lossy=on_lossy), table(a=pa.array(rows, arrow(source))))
    check(packed, rows, target, on_null, on_lossy)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("target", ["float32", "int64"])
def test_a_dictionary_column_feeds_its_values(source, target):
    if source == "float16":
        pytest.skip("Arrow has no dictionary of half floats")
    rows = [0, 1, None, 1, 0]
    rows = [None if v is None else {"b": bool, "f": float}.get(source[0], int)(v) for v in rows]
    column = pa.array(rows, arrow(source)).dictionary_encode()
    check(packed_of(feed(target, on_null="7"), table(a=column)), rows, target, "7", "error")


@pytest.mark.parametrize(
    ("source", "target", "constant"),
    [
        (pa.int64(), "float32", "0.5"), (pa.int8(), "int64", "300"), (pa.uint8(), "int64", "-1"),
        (pa.int32(), "float64", "1e12"), (pa.bool_(), "float32", "0.5"), (pa.bool_(), "float32", "-1"),
    ],
)  # fmt: skip
def test_a_null_constant_need_only_fit_the_tensor(source, target, constant):
    """The user names a value for the model; the column's own type is an accident of storage."""
    packed = packed_of(
        feed(target, on_null=constant), table(a=pa.array([True if source == pa.bool_() else 1, None], source))
    )
    assert not packed.bad
    assert packed.batch(slice(0, 2)).tolist() == [1, np.dtype(target).type(float(constant)).item()]


@pytest.mark.parametrize(
    ("target", "constant"),
    [
        ("int64", 2**53 + 1), ("int64", 2**63 - 1), ("int64", -(2**63)), ("uint64", 2**64 - 1), ("uint64", 2**63 + 1),
        ("float64", 2**53), ("float32", 2**24),
    ],
)  # fmt: skip
def test_a_null_constant_is_exact(target, constant):
    packed = packed_of(feed(target, on_null=str(constant)), table(a=pa.array([1, None], pa.int64())))
    assert packed.batch(slice(0, 2))[1].item() == constant


def in_range(value, target, nan):
    """Return the rule of --on-lossy warn for an integer tensor, on Python numbers."""
    info = np.iinfo(target)
    if value != value:  # noqa: PLR0124 - NaN
        return nan
    return int(max(info.min, min(info.max, value))) if math.isinf(value) else max(info.min, min(info.max, int(value)))


@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize(("on_null", "nan"), [("error", 0), ("7", 7)])
@pytest.mark.parametrize("source", [s for s in SOURCES if s != "bool"])
@pytest.mark.parametrize("target", INTEGERS)
def test_a_value_out_of_range_becomes_the_nearest_that_the_integer_holds_in_any_batch(
    source, target, on_null, nan, batch
):
    values = [value for value in values_for(source) if value is not None] * 3
    wanted = [in_range(value, target, nan) for value in values]
    columns = table(a=pa.array(values, arrow(source)), b=pa.array(values[::-1], arrow(source)))
    columns = pa.concat_tables([columns.slice(0, 50), columns.slice(50)])  # batches that straddle chunks
    packed = packed_of(feed(target, columns="ab", rank=2, on_null=on_null, on_lossy="warn"), columns)
    cuts = [*range(0, len(values), batch), len(values)]
    got = [row for start, stop in pairwise(cuts) for row in packed.batch(slice(start, stop)).tolist()]
    assert got == [list(row) for row in zip(wanted, wanted[::-1], strict=True)]
    assert packed.batch(np.arange(len(values))).tolist() == got
    assert packed.lossy == 2 * sum(not is_exact(value, target) for value in values)


@pytest.mark.parametrize("target", INTEGERS)
def test_lists_follow_the_same_rule_in_every_chunk(target):
    """The first chunk needs no cast before the batch, the second does."""
    values = [[0.0, 1.0], [math.nan, math.inf], [-math.inf, 1e30], [-1.5, 3.0]]
    column = pa.chunked_array([pa.array(values[:1]), pa.array(values[1:])])
    packed = packed_of(feed(target, kind="nested", rank=2, width=2, on_lossy="warn"), pa.table({"a": column}))
    wanted = [[in_range(value, target, 0) for value in row] for row in values]
    assert packed.batch(slice(0, 4)).tolist() == wanted
    assert [row for i in range(4) for row in packed.batch(slice(i, i + 1)).tolist()] == wanted


def test_an_integer_that_the_float_rounds_is_reported_beside_a_null():
    packed = packed_of(feed("float32", on_null="nan"), table(a=pa.array([2**24, 2**24 + 1, None], pa.int64())))
    assert list(packed.bad) == [1]
    assert "16777217" in packed.bad[1]


@pytest.mark.parametrize(("target", "limit"), [("float16", 2**11), ("float32", 2**24), ("float64", 2**53)])
def test_the_first_integer_that_a_float_rounds_is_found(target, limit):
    rows = [limit, limit + 1, -limit, -limit - 1, limit + 2]
    assert set(packed_of(feed(target), table(a=pa.array(rows, pa.int64()))).bad) == {1, 3}


@pytest.mark.parametrize("target", INTEGERS)
def test_the_limits_of_an_integer_type_are_exact_from_doubles(target):
    info = np.iinfo(target)
    rows = [float(v) for v in (info.min, info.max) if int(float(v)) == v]
    assert not packed_of(feed(target), table(a=pa.array(rows, pa.float64()))).bad


def test_nothing_is_lost_where_the_types_already_fit():
    for source in SOURCES[:-1]:
        rows = [v for v in values_for(source) if v is not None]
        packed = packed_of(feed(source), table(a=pa.array(rows, arrow(source))))
        assert (packed.bad, packed.lossy) == ({}, 0)


def test_flags_feed_truth_values():
    packed = packed_of(feed("bool"), table(a=[True, None, False]))
    assert packed.batch(slice(0, 3)).dtype == np.bool_
    assert (list(packed.bad), packed.batch(slice(0, 1)).tolist(), packed.batch(slice(2, 3)).tolist()) == (
        [1],
        [True],
        [False],
    )


def test_a_fixed_rank_gives_columns_where_the_model_wants_a_matrix():
    flat, matrix = (packed_of(feed(rank=rank), table(a=[1.0, 2.0])) for rank in (1, 2))
    assert flat.batch(slice(0, 2)).shape == (2,)
    assert matrix.batch(slice(0, 2)).shape == (2, 1)


def test_batches_are_c_ordered_and_in_the_feeds_order():
    columns = {name: np.arange(3) + 10 * i for i, name in enumerate("abc")}
    got = packed_of(feed(columns="cab", rank=2), table(**columns)).batch(slice(1, 3))
    assert got.flags.c_contiguous
    assert got.tolist() == [[21, 1, 11], [22, 2, 12]]


def test_a_bad_row_says_which_of_several_columns():
    packed = packed_of(feed(columns="ab", rank=2), table(a=[1.0, 2.0], b=[2**24 + 1, None]))
    assert "16777217" in packed.bad[0]
    assert "'b'" in packed.bad[0]
    assert packed.bad[1] == "null in column 'b' (tensor 'x')"


@settings(max_examples=150)
@given(
    a=strategies.chunked(pa.float32(), st.floats(width=32)),
    b=strategies.chunked(pa.int32(), st.integers(-100, 100)),
    data=st.data(),
)
def test_batches_that_straddle_chunks_equal_one_stack(a, b, data):
    rows = min(len(a[1]), len(b[1]))
    if not rows:
        return
    both = pa.table({"a": a[0].slice(0, rows), "b": b[0].slice(0, rows)})
    packed = packed_of(feed(columns="ab", rank=2, on_null="nan"), both)
    assert not packed.bad
    plain = [[math.nan if v is None else v for v in values[:rows]] for values in (a[1], b[1])]
    expected = np.array(plain, np.float32).T
    cuts = data.draw(strategies.edges(rows))
    got = np.concatenate([packed.batch(slice(start, stop)) for start, stop in pairwise(cuts)])
    assert np.array_equal(got, expected, equal_nan=True)


LISTS = {
    "fixed": lambda value: pa.list_(value, 3),
    "variable": pa.list_,
    "large": pa.large_list,
}


@pytest.mark.parametrize("form", LISTS)
@pytest.mark.parametrize("on_null", ["error", "nan", "7"])
@settings(max_examples=60)
@given(data=st.data())
def test_a_list_column_is_the_matrix_of_its_good_rows(form, on_null, data):
    lengths = st.just(3) if form == "fixed" else st.sampled_from([3, 3, 3, 0, 2, 4])
    item = st.none() | st.floats(-100, 100, width=32)
    lists = lengths.flatmap(lambda n: st.lists(item, min_size=n, max_size=n))
    column, rows = data.draw(strategies.chunked(LISTS[form](pa.float32()), lists, max_rows=15))
    if not rows:
        return
    packed = packed_of(feed(kind="nested", rank=2, width=3, on_null=on_null), pa.table({"a": column}))
    whole = [r is not None and len(r) == 3 and (on_null != "error" or None not in r) for r in rows]
    assert set(packed.bad) == {i for i, good in enumerate(whole) if not good}
    got = packed.batch(slice(0, len(rows)))
    assert (got.shape, got.dtype) == ((len(rows), 3), np.float32)
    for i, row in enumerate(rows):
        if whole[i]:
            wanted = np.array([float(on_null) if v is None else v for v in row], np.float32)
            assert np.array_equal(got[i], wanted, equal_nan=True)


@pytest.mark.parametrize("form", LISTS)
def test_values_in_lists_are_checked_like_columns(form):
    rows = [[1, 2, 3], [2**24 + 1, 0, 0], [4, 5, 2**24 + 1], None, [7, 8, 9]]
    packed = packed_of(feed(kind="nested", rank=2, width=3), table(a=pa.array(rows, LISTS[form](pa.int64()))))
    assert set(packed.bad) == {1, 2, 3}
    assert "16777217" in packed.bad[1]
    assert packed.bad[3] == "null in column 'a' (tensor 'x')"
    assert packed.batch(slice(4, 5)).tolist() == [[7, 8, 9]]


def test_a_list_of_the_wrong_length_says_both_lengths():
    packed = packed_of(feed(kind="nested", rank=2, width=3), table(a=[[1.0, 2.0], [1.0, 2.0, 3.0]]))
    assert packed.bad == {0: "a list of 2 in column 'a' instead of 3 (tensor 'x')"}


@pytest.mark.parametrize(("kind", "column"), [("nested", pa.list_(pa.float32())), ("nested", pa.list_(pa.float32(), 1)),
                                              ("numeric", pa.float32()), ("strings", pa.string())])  # fmt: skip
@pytest.mark.parametrize("chunks", [0, 1])
def test_a_column_without_rows_is_packed(kind, column, chunks):
    dtype = "string" if kind == "strings" else "float32"
    empty = pa.chunked_array([pa.array([], column)] * chunks, column)
    packed = packed_of(feed(dtype, kind=kind, rank=2, width=1), pa.table({"a": empty}))
    assert (packed.bad, packed.lossy) == ({}, 0)


FORMS = {
    "plain": pa.string(), "large": pa.large_string(), "view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int8(), pa.string()),
    "large dictionary": pa.dictionary(pa.int32(), pa.large_string()),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("on_null", ["error", "", "missing"])
@settings(max_examples=30)
@given(rows=st.lists(st.none() | strategies.TEXT, max_size=12), cut=st.integers(0, 12))
def test_texts_are_python_strings_and_never_none(form, on_null, rows, cut):
    if not rows:
        return
    chunks = [pa.array(part, FORMS[form]) for part in (rows[:cut], rows[cut:])]
    packed = packed_of(
        feed("string", kind="strings", on_null=on_null), pa.table({"a": pa.chunked_array(chunks, FORMS[form])})
    )
    got = packed.batch(slice(0, len(rows)))
    assert got.dtype == object
    assert all(type(text) is str for text in got)
    assert set(packed.bad) == ({i for i, v in enumerate(rows) if v is None} if on_null == "error" else set())
    filler = "" if on_null == "error" else on_null
    assert got.tolist() == [filler if v is None else v for v in rows]


def test_several_text_columns_make_a_matrix():
    packed = packed_of(feed("string", kind="strings", columns="ab", rank=2), table(a=["x", "y"], b=["1", None]))
    assert packed.batch(slice(0, 1)).tolist() == [["x", "1"]]
    assert packed.bad == {1: "null in column 'b' (tensor 'x')"}


def fetch(kind="flat", columns=("y",), type="float", width=1, labels=()):  # noqa: A002 - the field's name
    return Fetch(tensor="y", kind=kind, columns=tuple(columns), type=type, width=width, labels=tuple(labels))


@pytest.mark.parametrize("dtype", [*TARGETS, "bool"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_outputs_come_back_as_they_were_and_half_floats_widened(dtype, shape):
    values = np.array([0, 1, 1], dtype).reshape(3, *shape)
    name = arrow_name(values.dtype)
    (column,) = unpack(fetch(type=name), [values[:2], values[2:]])
    assert column.type == arrow("float32" if dtype == "float16" else dtype)
    assert column.to_pylist() == [0, 1, 1]


def test_a_wide_output_is_a_list_of_fixed_size_without_nulls():
    values = np.arange(40, dtype=np.float32).reshape(2, 20)
    (column,) = unpack(fetch("list", width=20), [values])
    assert column.type == pa.list_(pa.field("item", pa.float32(), nullable=False), 20)
    assert column.to_pylist() == values.tolist()


def test_nan_scores_stay_nan_and_are_no_nulls():
    (column,) = unpack(fetch(), [np.array([np.nan, 1], np.float32)])
    assert column.null_count == 0
    assert math.isnan(column[0].as_py())


@pytest.mark.parametrize("kind", ["flat", "list"])
def test_outputs_without_batches_are_empty_columns(kind):
    columns = unpack(fetch(kind, ("p", "q") if kind == "flat" else ("p",), width=2), [])
    assert [len(c) for c in columns] == ([0, 0] if kind == "flat" else [0])


@pytest.mark.parametrize("labels", [("a", "b"), ("0", "-1")])
def test_maps_become_columns_by_label(labels):
    keys = labels if labels[0] == "a" else tuple(int(label) for label in labels)
    batches = [[{keys[0]: 1.0, keys[1]: 2.0}], [{keys[1]: 4.0, keys[0]: 3.0}]]
    columns = unpack(fetch("zipmap", ("p", "q"), width=2, labels=labels), batches)
    assert [c.to_pylist() for c in columns] == [[1, 3], [2, 4]]


@pytest.mark.parametrize("shapes", [(3, 3), (2, 3)])
def test_an_output_that_changes_its_width_is_refused(shapes):
    from scorer.errors import ShapeMismatch

    batches = [np.zeros((2, width), np.float32) for width in shapes]
    with pytest.raises(ShapeMismatch, match="changed its width"):
        unpack(fetch(columns=("p", "q"), width=2), batches)


@settings(max_examples=80)
@given(
    width=st.integers(1, 5),
    unused=st.sets(st.integers(0, 4)),
    chunks=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    kind=st.sampled_from(["float32", "float64", "int16"]),
    batch=st.integers(1, 30),
    reuse=st.booleans(),
)
def test_columns_that_are_not_read_are_zero_beside_the_others(width, unused, chunks, kind, batch, reuse):
    unused = sorted(at for at in unused if at < width)
    rows, rng = sum(chunks), np.random.default_rng(0)
    names = [f"c{at}" for at in range(width)]
    values = rng.integers(-99, 99, (rows, width)).astype(kind)
    ends = np.cumsum([0, *chunks])
    pieces = [pa.table({n: values[a:b, i] for i, n in enumerate(names) if i not in unused}) for a, b in pairwise(ends)]
    read = pa.concat_tables(pieces) if len(unused) < width else pa.table({"other": np.zeros(rows)})
    packed = packed_of(replace(feed(columns=names, rank=2, on_null="nan"), unused=tuple(unused)), read)
    packed.reuse_buffer = reuse
    wanted = values.astype(np.float32)
    wanted[:, unused] = 0
    for start in range(0, rows, batch):
        stop = min(start + batch, rows)
        found = packed.batch(slice(start, stop))
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        assert found.tolist() == wanted[start:stop].tolist()
    order = rng.permutation(rows)[:7]
    assert packed.batch(order).tolist() == wanted[order].tolist()


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("source", SOURCES)
def test_a_cast_that_is_said_to_keep_all_values_reports_none(source, target):
    kind, every = arrow(source), [value for value in values_for(source) if value is not None]
    assert not (cast_keeps(kind, np.dtype(target), None) and losses(every, kind, target))
    known = [value for value in every if not math.isnan(value)]  # NaN is in no footer
    for most in sorted({abs(value) for value in known}):
        few = [value for value in known if abs(value) <= most]
        kept = cast_keeps(kind, np.dtype(target), (min(few), max(few)))
        assert not (kept and losses([*few, math.nan] if source in FLOATS else few, kind, target))


def losses(values, kind, target):
    """Return the rows that would be bad, and the number of values that the cast would change."""
    strict, lenient = (
        packed_of(feed(target, on_lossy=how), table(a=pa.array(values, kind))) for how in ("error", "warn")
    )
    return [*strict.bad, *range(lenient.lossy)]
