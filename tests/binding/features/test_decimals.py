"""Decimals of every width as floats and integers, against Python's Decimal."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.echo import echo, fed

import scorer
from scorer.binding.features.pack import pack
from scorer.binding.spec import Feed

WHOLE = {"bfloat16": 2**8, "float16": 2**11, "float32": 2**24, "float64": 2**53}
TYPES = {"bfloat16": ml_dtypes.bfloat16} | {name: np.dtype(name) for name in ("float16", "float32", "float64")}
KINDS = [
    pa.decimal32(7, 2), pa.decimal64(15, 3), pa.decimal128(10, 2), pa.decimal128(15, 0), pa.decimal128(38, 12),
    pa.decimal256(60, 20), pa.decimal128(9, -3), pa.decimal128(20, 0),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _released():
    yield
    scorer.release()


def packed(column, dtype, **options):
    feed = Feed(tensor="x", kind="numeric", dtype=dtype, columns=("d",), shape=(1,), **{
        "on_null": "error", "on_lossy": "error", **options})  # fmt: skip
    found = pack([feed], pa.table({"d": column}))["x"]
    return found.batch(slice(0, len(column)))[:, 0], found


def is_lossy(value, dtype):
    """Whether the type changes the value by more than the rounding of its fraction."""
    if dtype not in WHOLE:
        info = np.iinfo(dtype)
        return value != int(value) or not info.min <= value <= info.max
    if abs(value) <= WHOLE[dtype]:
        return False
    with np.errstate(over="ignore"):
        cast = float(np.float64(float(value)).astype(TYPES[dtype]))
    return not np.isfinite(cast) or Fraction(cast) != Fraction(value)


@st.composite
def decimals(draw):
    kind = draw(st.sampled_from(KINDS))
    digits = st.integers(1, min(kind.precision, 38)).flatmap(lambda n: st.integers(-(10**n) + 1, 10**n - 1))
    plain = st.integers(-300, 300).map(lambda n: n * 10 ** max(kind.scale, 0))
    within = [one for one in (digits, plain) if one is digits or 300 * 10 ** max(kind.scale, 0) < 10**kind.precision]
    rows = draw(st.lists(st.none() | st.one_of(within), min_size=1, max_size=12))
    values = [None if n is None else Decimal(n).scaleb(-kind.scale) for n in rows]
    cut = draw(st.integers(0, len(values)))
    column = pa.chunked_array([pa.array(values[:cut], kind), pa.array([None, *values[cut:]], kind).slice(1)])
    return column.dictionary_encode() if draw(st.booleans()) and kind.bit_width == 128 else column, values


@settings(max_examples=150)
@given(data=decimals(), dtype=st.sampled_from([*WHOLE, "int64", "int32", "uint8", "uint64"]))
def test_a_decimal_becomes_the_nearest_number_or_a_bad_row(data, dtype):
    column, values = data
    fed_values, found = packed(column, dtype)
    bad = {row for row, value in enumerate(values) if value is None or is_lossy(value, dtype)}
    assert set(found.bad) == bad
    for row, value in enumerate(values):
        if row not in bad:
            expected = np.float64(float(value)).astype(TYPES[dtype]) if dtype in WHOLE else int(value)
            assert fed_values[row] == expected, value


@settings(max_examples=80)
@given(data=decimals(), dtype=st.sampled_from(["float32", "float16", "int32", "uint8"]))
def test_on_lossy_warn_counts_each_changed_decimal_once(data, dtype):
    column, values = data
    fed_values, found = packed(column, dtype, on_null="7", on_lossy="warn")
    assert found.bad == {}
    assert found.lossy == sum(value is not None and is_lossy(value, dtype) for value in values)
    for row, value in enumerate(values):
        if value is None:
            assert fed_values[row] == 7
        elif dtype in WHOLE:
            with np.errstate(over="ignore"):
                assert fed_values[row] == np.float64(float(value)).astype(dtype)
        else:
            info = np.iinfo(dtype)
            assert fed_values[row] == min(max(int(value), info.min), info.max)


def test_the_reason_names_the_decimal_as_it_is_stored(tmp_path):
    model = echo(tmp_path / "m.onnx", X=("int64", 1))
    table = {"price": pa.array([Decimal("19.99"), Decimal("20.00"), None], pa.decimal128(10, 2))}
    rows, bad = fed(table, model, "X=price")
    assert rows == {1: [20]}
    assert bad == {
        0: "19.99 in column 'price' cannot be stored exactly as int64 (tensor 'X')",
        2: "null in column 'price' (tensor 'X')",
    }


def test_decimals_and_booleans_stand_beside_numbers_and_dates(tmp_path):
    model = echo(tmp_path / "m.onnx", X=("float32", 4))
    table = {
        "price": pa.array([Decimal("19.99"), None, Decimal("0.10")], pa.decimal64(9, 2)),
        "paid": [True, None, False],
        "n": [1, 2, 3],
        "t": pa.array([0, 3600, None], pa.time32("s")),
    }
    rows, bad = fed(table, model, "X=price,paid,n,t|epoch(h)", on_null="-1")
    assert bad == {}
    assert rows == {
        0: [np.float32(19.99), 1, 1, 0], 1: [-1, -1, 2, 1], 2: [np.float32(0.1), 0, 3, -1],
    }  # fmt: skip
    rows, bad = fed(table, model, "X=price,paid,n,t|epoch(h)", on_null="error")
    assert (list(rows), bad[1]) == ([0], "null in column 'price' (tensor 'X')")


def test_lists_of_decimals_are_rows_of_the_tensor(tmp_path):
    model = echo(tmp_path / "m.onnx", X=("float32", 2))
    values = [[Decimal("1.50"), Decimal("2.25")], [Decimal("16777217.00"), Decimal(0)], [None, Decimal(1)]]
    table = {"v": pa.array(values, pa.list_(pa.decimal128(12, 2), 2))}
    rows, bad = fed(table, model, "X=v", on_null="-1")
    assert rows == {0: [1.5, 2.25], 2: [-1, 1]}
    assert bad == {1: "16777217.00 in column 'v' cannot be stored exactly as float32 (tensor 'X')"}


@pytest.mark.parametrize("values", [[], [None], [[Decimal(1)]]])
def test_lists_of_decimals_may_have_no_row_of_the_right_length(values, tmp_path):
    model = echo(tmp_path / "m.onnx", X=("float32", 2))
    rows, bad = fed({"v": pa.array(values, pa.list_(pa.decimal128(12, 2)))}, model, "X=v")
    assert (rows, len(bad)) == ({}, len(values))


def test_a_decimal_cannot_be_a_text_or_a_boolean(tmp_path):
    table = {"d": pa.array([Decimal(1)], pa.decimal128(3, 0))}
    for dtype, words in (("string", "text for string"), ("bool", "truth values for bool")):
        model = echo(tmp_path / f"{dtype}.onnx", X=(dtype, 1))
        with pytest.raises(scorer.ScorerError, match=words):
            fed(table, model, "X=d")
