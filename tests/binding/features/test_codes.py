"""Vocabularies, epochs and constants against Python's own dicts, dates and fractions."""

from __future__ import annotations

import datetime as dt
from fractions import Fraction
from itertools import product
from zoneinfo import ZoneInfo

import ml_dtypes
import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from support.runs import cli, read, write

import scorer
from scorer.errors import PreflightError, ScorerError

NAMES = {"float16": "FLOAT16", "bfloat16": "BFLOAT16", "float32": "FLOAT", "float64": "DOUBLE"}
FLOATS = {"float32": np.float32, "float64": np.float64}


@pytest.fixture(autouse=True)
def _released():
    yield
    scorer.release()


@pytest.fixture
def echo(tmp_path):
    """A maker of models that give back their inputs: name to (type, shape) of each."""

    def make(**inputs):
        kinds = {name: getattr(TensorProto, NAMES.get(kind, kind.upper())) for name, (kind, _) in inputs.items()}
        given = [make_tensor_value_info(name, kinds[name], shape) for name, (_, shape) in inputs.items()]
        gives = [make_tensor_value_info(f"{name}_out", kinds[name], shape) for name, (_, shape) in inputs.items()]
        nodes = [make_node("Identity", [name], [f"{name}_out"]) for name in inputs]
        model = make_model(make_graph(nodes, "echo", given, gives), opset_imports=[make_opsetid("", 17)], ir_version=9)
        onnx.save(model, tmp_path / "echo.onnx")
        return tmp_path / "echo.onnx"

    return make


def frame_of(**columns):
    table = pa.table(columns)
    return pd.DataFrame({name: pd.Series(pd.arrays.ArrowExtensionArray(table[name])) for name in columns})


def fed(frame, model, feed, **options):
    """(index to output row, index to reason)."""
    scored, bad = scorer.score(frame, model, feed=feed, keep="none", errors="return", **options)
    rows = scored.astype(object).to_numpy().tolist()
    return dict(zip(scored.index, rows, strict=True)), bad["_error"].to_dict()


def refused(frame, model, feed, **options):
    """The text of the refusal."""
    with pytest.raises(ScorerError) as error:
        scorer.score(frame, model, feed=feed, **options)
    return str(error.value)


WORDS = ["red", "green", "a, b", "it's", "x=y", "7", ""]
SPELT = "red, green, 'a, b', 'it''s', 'x=y', 7"
TEXT_KINDS = {
    "string": pa.string(), "large": pa.large_string(), "dictionary": pa.dictionary(pa.int8(), pa.string()),
    "large dictionary": pa.dictionary(pa.int32(), pa.large_string()),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_words_become_their_indices_and_unknown_ones_bad_rows(echo, kind, dtype):
    rows = ["green", "x=y", None, "it's", "blue", "a, b", "7", "", "red"]
    column = pa.chunked_array([pa.array(rows[:3], TEXT_KINDS[kind]), pa.array(rows[3:], TEXT_KINDS[kind])])
    good, bad = fed(frame_of(c=column), echo(x=(dtype, ["N"])), f"x=c|vocab({SPELT})", on_null="error")
    places = {word: i for i, word in enumerate(WORDS[:-1])}
    assert good == {i: [places[word]] for i, word in enumerate(rows) if word in places}
    assert bad == {
        2: "null in column 'c' (tensor 'x')",
        4: "'blue' in column 'c' is not in the vocabulary of 'x'",
        7: "'' in column 'c' is not in the vocabulary of 'x'",
    }


@pytest.mark.parametrize(("dtype", "unknown"), [("int64", -1), ("int8", 99), ("float32", -1), ("uint8", 0)])
def test_unknown_words_have_the_code_that_was_given(echo, dtype, unknown):
    frame = frame_of(c=["b", "z", None, "a"])
    good, bad = fed(frame, echo(x=(dtype, ["N", 1])), f"x=c|vocab(a, b, unknown={unknown})", on_null="5")
    assert (good, bad) == ({0: [1], 1: [unknown], 2: [5], 3: [0]}, {})


def test_nulls_are_nan_where_the_tensor_can_hold_it(echo):
    good, bad = fed(frame_of(c=["b", None]), echo(x=("float32", ["N"])), "x=c|vocab(a, b)")
    assert (good[0], np.isnan(good[1][0]), bad) == ([1], True, {})


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16(), pa.int64(), pa.dictionary(pa.int8(), pa.int64())])
def test_whole_numbers_are_words_too(echo, kind):
    frame = frame_of(c=pa.array([30, None, 10, 4], kind))
    good, bad = fed(frame, echo(x=("int64", ["N"])), "x=c|vocab(10, 20, 30)")
    assert good == {0: [2], 2: [0]}
    assert bad == {1: "null in column 'c' (tensor 'x')", 3: "'4' in column 'c' is not in the vocabulary of 'x'"}


def test_truth_values_are_words_too(echo):
    good, _ = fed(frame_of(c=[True, False]), echo(x=("int64", ["N"])), "x=c|vocab(true, false)")
    assert good == {0: [0], 1: [1]}


def test_several_columns_share_a_vocabulary_and_a_row_has_one_reason(echo):
    frame = frame_of(a=["x", "y", "q"], b=["y", "z", "q"])
    good, bad = fed(frame, echo(x=("int64", ["N", 2])), "x=a,b|vocab(x, y)")
    assert good == {0: [0, 1]}
    assert bad == {
        i: f"'{w}' in column '{c}' is not in the vocabulary of 'x'" for i, w, c in ((1, "z", "b"), (2, "q", "a"))
    }


def test_the_column_of_the_tensor_s_name_is_meant(echo):
    assert fed(frame_of(X=["b"], y=["a"]), echo(x=("int64", ["N"])), "x=vocab(a, b)")[0] == {0: [1]}


LINES = ["[PAD]", "the", "\N{LINE SEPARATOR}", "a, b", "\x85", "\x0b", "naïve", "it's", ""]


@pytest.mark.parametrize("end", ["\n", ""])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_file_has_a_word_on_each_line(echo, tmp_path, newline, end, mark):
    """Lines end where an editor ends them, nowhere else; what editors put first is no part of a word."""
    lines = LINES if end else LINES[:-1]
    (tmp_path / "v.txt").write_bytes(mark + (newline.join(lines) + end.replace("\n", newline)).encode())
    good, bad = fed(frame_of(c=lines), echo(x=("int64", ["N"])), f"x=c|vocab('{tmp_path / 'v.txt'}')")
    assert (good, bad) == ({i: [i] for i in range(len(lines))}, {})


def test_a_vocabulary_of_a_size_as_models_have_it(echo, tmp_path):
    words = [f"w{i}" for i in range(30_000)]
    (tmp_path / "v.txt").write_text("\n".join(words))
    good, _ = fed(frame_of(c=words[::-1]), echo(x=("int64", ["N"])), f"x=c|vocab('{tmp_path / 'v.txt'}')")
    assert [row for (row,) in good.values()] == list(range(30_000))[::-1]


def test_a_word_twice_is_refused_however_long_the_list(echo, tmp_path):
    model, frame = echo(x=("int64", ["N"])), frame_of(c=["a"])
    assert "found:    'a' twice" in refused(frame, model, "x=c|vocab(a, b, a)")
    (tmp_path / "v.txt").write_text("\n".join([*(f"w{i}" for i in range(20_000)), "w7"]))
    assert "found:    'w7' twice" in refused(frame, model, f"x=c|vocab('{tmp_path / 'v.txt'}')")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("vocab()", "no words"),
        ("vocab", "no words"),
        ("vocab(unknown=1)", "no words"),
        ("vocab(a, b, unknown=x)", "unknown= is not a whole number"),
        ("vocab(a, b, unknown=1.5)", "unknown= is not a whole number"),
        ("vocab(a, b, unknown=99999999999999999999)", "unknown= is not a whole number"),
        ("vocab(a, b, nonsense=1)", "found:    'nonsense'"),
        ("vocab(words.txt, unknown=-1)", "the vocabulary file does not exist"),
        ("vocabulary(a)", "there is no converter 'vocabulary'"),
    ],
)
def test_an_invalid_vocabulary_is_refused(echo, call, says):
    assert says in refused(frame_of(c=["a"]), echo(x=("int64", ["N"])), f"x=c|{call}")


def test_a_vocabulary_that_is_no_text_is_refused(echo, tmp_path):
    (tmp_path / "v.bin").write_bytes(b"\xff\xfe\x00a")
    says = refused(frame_of(c=["a"]), echo(x=("int64", ["N"])), f"x=c|vocab('{tmp_path / 'v.bin'}')")
    assert "the vocabulary cannot be read" in says


@pytest.mark.parametrize(
    ("kind", "column", "call", "says"),
    [
        ("int64", [1.5], "vocab(a)", "text or whole numbers"),
        ("int64", [dt.date(2026, 1, 1)], "vocab(a)", "text or whole numbers"),
        ("string", ["a"], "vocab(a)", "a tensor of numbers"),
        ("bool", ["a"], "vocab(a)", "a tensor of numbers"),
        ("int64", ["a"], "epoch(s)", "dates, times or durations"),
        ("int64", [1], "epoch(s)", "dates, times or durations"),
        ("string", [dt.date(2026, 1, 1)], "epoch(s)", "a tensor of numbers"),
        ("int64", [dt.date(2026, 1, 1)], "epoch", "one of d, h, m, s, ms, us, ns"),
        ("int64", [dt.date(2026, 1, 1)], "epoch(w)", "found:    w"),
        ("int64", [dt.date(2026, 1, 1)], "epoch(s, ms)", "found:    s, ms"),
        ("int64", [dt.date(2026, 1, 1)], "epoch(unit=s)", "epoch needs a unit"),
    ],
)
def test_what_a_converter_cannot_read_or_fill_is_refused(echo, kind, column, call, says):
    assert says in refused(frame_of(c=pa.array(column)), echo(x=(kind, ["N"])), f"x=c|{call}")


def test_codes_that_the_tensor_does_not_hold_are_bad_rows(echo):
    words = [f"w{i}" for i in range(200)]
    good, bad = fed(frame_of(c=["w127", "w128"]), echo(x=("int8", ["N"])), f"x=c|vocab({', '.join(words)})")
    assert good == {0: [127]}
    assert bad == {1: "128 in column 'c' cannot be stored exactly as int8 (tensor 'x')"}


PER = {"d": 86_400 * 10**9, "h": 3_600 * 10**9, "m": 60 * 10**9, "s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
ZONES = [None, "UTC", "Europe/Berlin", "America/St_Johns", "+05:45"]
LOCAL = [
    None if when is None else dt.datetime.fromisoformat(when)
    for when in ("1970-01-01", "1969-12-31T23:59:59", None, "1901-03-04T05:06:07", "2026-10-25T02:30:00",
                 "2000-02-29T12:00:01", "2225-01-01")
]  # fmt: skip
MORE_NS = {"s": 0, "ms": 123 * 10**6, "us": 123_457 * 10**3, "ns": 123_457_891}
"""A fraction of a second that each unit of a column can hold."""


def moments(unit, zone):
    """A column of times, and how many nanoseconds each is from 1970 by Python's own clock."""
    tz = None
    if zone:
        tz = dt.timezone(dt.timedelta(hours=5, minutes=45)) if zone.startswith("+") else ZoneInfo(zone)
    start, ns = dt.datetime(1970, 1, 1, tzinfo=dt.UTC), []
    for when in LOCAL:
        span = when and when.replace(tzinfo=tz or dt.UTC) - start
        ns.append(None if when is None else (span.days * 86_400 + span.seconds) * 10**9 + MORE_NS[unit])
    counts = [None if value is None else value // PER[unit] for value in ns]
    return pa.array(counts, pa.int64()).cast(pa.timestamp(unit, zone)), ns


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("stored", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("dtype", ["int64", "int32", "float64", "float32", "float16"])
def test_every_unit_of_every_timestamp_is_exact_or_reported(echo, stored, zone, dtype):
    column, ns = moments(stored, zone)
    model = echo(x=(dtype, ["N"]))
    for unit, per in PER.items():
        good, bad = fed(frame_of(c=column), model, f"x=c|epoch({unit})", on_null="error")
        for i, value in enumerate(ns):
            lost = value is None or epoch_lost(Fraction(value, per), dtype)
            assert (i in bad) == lost, (unit, i, value, good.get(i))
            if not lost:
                assert_epoch(good[i][0], Fraction(value, per), dtype)
        assert bad[2] == "null in column 'c' (tensor 'x')"


EXACT = {"float16": 2**11, "float32": 2**24, "float64": 2**53}


def epoch_lost(exact, dtype):
    """Whether the tensor's type loses more of the moment than a fraction that floats round anyway."""
    if dtype.startswith("int"):
        info = np.iinfo(dtype)
        return not (-(2**63) <= exact < 2**63 and info.min <= exact // 1 <= info.max)
    if not -(2**63) <= exact < 2**63:
        return True
    with np.errstate(over="ignore"):
        cast = np.dtype(dtype).type(float(exact))
    return bool(abs(exact // 1) > EXACT[dtype] and (not np.isfinite(cast) or Fraction(float(cast)) != exact))


def assert_epoch(got, exact, dtype):
    if dtype.startswith("int"):
        assert got == exact // 1
    else:
        near = np.dtype(dtype).type(float(exact))
        assert abs(Fraction(float(got)) - exact) <= Fraction(float(np.spacing(np.abs(near))))


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64(), pa.dictionary(pa.int8(), pa.date32()),
                                  pa.dictionary(pa.int8(), pa.timestamp("s"))])  # fmt: skip
@pytest.mark.parametrize("unit", PER)
def test_dates_count_from_1970_in_every_unit(echo, kind, unit):
    days = [dt.date(1969, 12, 31), dt.date(1970, 1, 2), None, dt.date(2026, 7, 1), dt.date(1900, 1, 1)]
    if pa.types.is_dictionary(kind):
        days = [None if day is None else dt.datetime.combine(day, dt.time()) for day in days]
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    plain = pa.array(days, pa.timestamp("s")).cast(value) if pa.types.is_dictionary(kind) else pa.array(days, kind)
    column = plain.dictionary_encode() if pa.types.is_dictionary(kind) else plain
    good, bad = fed(frame_of(c=column), echo(x=("int64", ["N"])), f"x=c|epoch({unit})")
    since = [None if day is None else (day.toordinal() - 719_163) * PER["d"] // PER[unit] for day in days]
    assert good == {i: [count] for i, count in enumerate(since) if count is not None}
    assert list(bad) == [2]


def test_a_date64_that_is_no_midnight_is_floored(echo):
    column = pa.array([86_400_000 + 5, -1], pa.int64()).cast(pa.date64())
    model = echo(x=("int64", ["N"]))
    assert fed(frame_of(c=column), model, "x=c|epoch(d)")[0] == {0: [1], 1: [-1]}
    assert fed(frame_of(c=column), model, "x=c|epoch(ms)")[0] == {0: [86_400_005], 1: [-1]}


@pytest.mark.parametrize(
    ("kind", "count"), [(pa.timestamp("s"), 2**62), (pa.timestamp("us"), -(2**62)), (pa.date32(), 2**30)]
)
def test_a_time_beyond_an_int64_is_reported_and_never_wraps(echo, kind, count):
    whole = pa.array([count, 0], pa.int32() if kind == pa.date32() else pa.int64()).cast(kind)
    for dtype in ("int64", "float64"):
        good, bad = fed(frame_of(c=whole), echo(x=(dtype, ["N"])), "x=c|epoch(ns)")
        assert good == {1: [0]}
        assert list(bad) == [0]
        assert f"in column 'c' cannot be stored exactly as {dtype} (tensor 'x')" in bad[0]


def test_seconds_of_today_are_not_exact_as_float32(echo):
    """They would be off by up to a minute."""
    column = pa.array([1_767_225_601, 86_400, None], pa.timestamp("s"))
    frame = frame_of(c=column)
    good, bad = fed(frame, echo(x=("float32", ["N"])), "x=c|epoch(s)")
    assert bad == {0: "1767225601 in column 'c' cannot be stored exactly as float32 (tensor 'x')"}
    assert (good[1], np.isnan(good[2][0])) == ([86_400], True)


def test_fractions_of_a_day_are_exact_as_float32_and_those_of_a_second_are_not(echo):
    when = dt.datetime.fromisoformat("2026-01-01T12:00:00.5")
    frame, model = frame_of(c=pa.array([when], pa.timestamp("us"))), echo(x=("float32", ["N"]))
    assert fed(frame, model, "x=c|epoch(d)")[0] == {0: [20_454.5]}
    bad = fed(frame, model, "x=c|epoch(s)")[1]
    assert bad == {0: "2026-01-01 12:00:00.500000 in column 'c' cannot be stored exactly as float32 (tensor 'x')"}
    good, bad = fed(frame, model, "x=c|epoch(s)", on_lossy="warn")
    assert (good, bad) == ({0: [float(np.float32(1767268800.5))]}, {})


def test_dates_fill_a_matrix_column_by_column(echo):
    frame = frame_of(a=pa.array([0, 1], pa.date32()), b=pa.array([60, 120], pa.timestamp("s")))
    good, _ = fed(frame, echo(x=("int64", ["N", 2])), "x=a,b|epoch(m)")
    assert good == {0: [0, 1], 1: [1440, 2]}


def test_dates_in_several_chunks_and_none_at_all(echo):
    chunks = [pa.array([1, None], pa.date32()), pa.array([], pa.date32()), pa.array([7, 2, 3], pa.date32()).slice(1)]
    model = echo(x=("float64", ["N"]))
    good, bad = fed(frame_of(c=pa.chunked_array(chunks)), model, "x=c|epoch(d)", on_null="-1")
    assert (good, bad) == ({0: [1], 1: [-1], 2: [2], 3: [3]}, {})
    assert fed(frame_of(c=pa.array([], pa.date32())), model, "x=c|epoch(d)") == ({}, {})


def test_converters_through_files(echo, tmp_path):
    days = pa.array([dt.date(2026, 1, 1), dt.date(1969, 12, 31)])
    model = echo(x=("int64", ["N"]), c=("int32", ["N"]), k=("float32", []))
    data = write(tmp_path / "in.parquet", pa.table({"day": days, "color": pa.array(["b", "a"]).dictionary_encode()}))
    code, _, err = cli(
        "run", data, "--model", model, "--output", tmp_path / "out", "--keep", "none", "--fetch", "x_out",
        "--fetch", "c_out", "--feed", "x=day|epoch(d)", "--feed", "c=color|vocab(a, b)", "--feed", "k=const(2.5)",
    )  # fmt: skip
    assert (code, err) == (0, err)
    assert read(tmp_path / "out").to_pydict() == {"x_out": [20_454, -1], "c_out": [1, 0]}
    assert pq.read_schema(next((tmp_path / "out").iterdir())).field("c_out").type == pa.int32()


VALUES = {
    "float16": ("1.5", 1.5), "float32": ("-0.1", float(np.float32(-0.1))), "float64": ("0.1", 0.1),
    "bfloat16": ("0.1", float(ml_dtypes.bfloat16(0.1))), "int8": ("-128", -128), "uint64": (str(2**64 - 1), 2**64 - 1),
    "int64": (str(-(2**63)), -(2**63)), "bool": ("true", True), "string": ("'a, b'", "a, b"),
}  # fmt: skip


@pytest.mark.parametrize("dtype", VALUES)
@pytest.mark.parametrize("shape", [["N"], ["N", 1], ["N", 3], ["N", 2, 2]])
def test_a_constant_is_in_every_row(echo, dtype, shape):
    text, value = VALUES[dtype]
    frame = frame_of(a=pa.array([1.0, 2.0, 3.0], pa.float32()))
    model = echo(x=("float32", ["N"]), k=(dtype, shape))
    good, bad = fed(frame, model, ["x=a", f"k=const({text})"], fetch="k_out")
    width = int(np.prod(shape[1:]))
    got = [np.ravel(row[0] if len(shape) > 2 else row).tolist() for row in good.values()]
    assert (got, bad) == ([[value] * width] * 3, {})


@pytest.mark.parametrize("shape", [["N", 3], ["N", 3, 1]])
def test_a_constant_row_is_in_every_row(echo, shape):
    frame = frame_of(a=pa.array([1.0, 2.0], pa.float32()))
    good, _ = fed(frame, echo(x=("float32", ["N"]), k=("int64", shape)), ["x=a", "k=const(3, -1, 2)"], fetch="k_out")
    assert [np.ravel(row).tolist() if len(shape) == 2 else list(row[0]) for row in good.values()] == [[3, -1, 2]] * 2


@pytest.mark.parametrize("dtype", VALUES)
@pytest.mark.parametrize("shape", [[], [1], [2]])
@pytest.mark.parametrize("batch_rows", [2, 3])
def test_a_constant_that_rows_share_is_fed_once_to_each_batch(tmp_path, dtype, shape, batch_rows):
    """Whether the model sees it as [], [1] or [2], however many rows are in the batch."""
    kind = getattr(TensorProto, NAMES.get(dtype, dtype.upper()))
    nodes = [
        make_node("Shape", ["k"], ["dims"]), make_node("ReduceProd", ["dims"], ["size"], keepdims=0),
        make_node("Shape", ["dims"], ["rank"]), make_node("Squeeze", ["rank"], ["axes"]),
        make_node("Mul", ["size", "ten"], ["tens"]), make_node("Add", ["tens", "axes"], ["both"]),
        make_node("Cast", ["both"], ["number"], to=1), make_node("Add", ["x", "number"], ["y"]),
    ]  # fmt: skip
    given = [make_tensor_value_info("x", 1, ["N"]), make_tensor_value_info("k", kind, shape)]
    ten = onnx.numpy_helper.from_array(np.array(10), "ten")
    graph = make_graph(nodes, "shared", given, [make_tensor_value_info("y", 1, ["N"])], [ten])
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    frame = frame_of(x=pa.array(np.arange(5, dtype=np.float32)))
    good, bad = fed(frame, tmp_path / "m.onnx", f"k=const({VALUES[dtype][0]})", batch_rows=batch_rows)
    size = shape[0] if shape else 1
    assert (good, bad) == ({i: [i + 10 * size + len(shape)] for i in range(5)}, {})


@pytest.mark.parametrize(
    ("dtype", "shape", "call", "says"),
    [
        ("int8", ["N"], "const(128)", "expected: int8\n  found:    128"),
        ("uint8", ["N"], "const(-1)", "expected: uint8\n  found:    -1"),
        ("int64", [], f"const({2**63})", f"expected: int64\n  found:    {2**63}"),
        ("int64", ["N"], "const(1.5)", "expected: int64\n  found:    1.5"),
        ("float16", [], "const(70000)", "expected: float16\n  found:    70000"),
        ("float32", [], "const(1e39)", "expected: float32\n  found:    1e39"),
        ("float32", [], "const(16777217)", "expected: float32\n  found:    16777217"),
        ("bfloat16", ["N"], "const(257)", "expected: bfloat16\n  found:    257"),
        ("bfloat16", ["N"], "const(3.4e38)", "expected: bfloat16\n  found:    3.4e38"),
        ("float64", [], f"const({2**53 + 1})", f"found:    {2**53 + 1}"),
        ("float32", [], "const(a)", "expected: float32\n  found:    a"),
        ("bool", ["N"], "const(yes)", "expected: bool\n  found:    yes"),
        ("float32", ["N"], "const()", "expected: one value\n  found:    0"),
        ("float32", ["N"], "const(1, 2)", "expected: one value\n  found:    2"),
        ("float32", ["N", 3], "const(1, 2)", "expected: one value, or 3\n  found:    2"),
        ("float32", ["N"], "const(value=1)", "const(...) takes values without names"),
    ],
)
def test_a_constant_that_the_tensor_does_not_hold_is_refused(echo, dtype, shape, call, says):
    frame = frame_of(a=pa.array([1.0], pa.float32()))
    assert says in refused(frame, echo(x=("float32", ["N"]), k=(dtype, shape)), ["x=a", f"k={call}"])


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e-3", "0.1", "16777216", "-0.0", "1e10"])
def test_floats_may_be_written_as_python_does(echo, text):
    frame = frame_of(a=pa.array([1.0], pa.float32()))
    model = echo(x=("float32", ["N"]), k=("float32", ["N"]))
    good, _ = fed(frame, model, ["x=a", f"k=const({text})"], fetch="k_out")
    np.testing.assert_equal(good[0][0], float(np.float32(float(text))))


def test_a_scalar_without_a_constant_says_so(echo):
    says = refused(frame_of(x=pa.array([1.0], pa.float32())), echo(x=("float32", ["N"]), k=("float32", [])), "x=x")
    assert "'k' is one value for all rows" in says
    assert "--feed 'k=const(VALUE)'" in says


@pytest.mark.parametrize(("name", "text"), [*product(["x", "k"], ["const(1)", "vocab(1)"])])
def test_a_model_of_an_unknown_input_names_it(echo, name, text):
    model = echo(y=("float32", ["N"]))
    with pytest.raises(PreflightError, match=f"input that the model does not have: '{name}="):
        scorer.score(frame_of(a=[1.0]), model, feed=f"{name}={text}")


@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize("kind", [pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns"), *map(
    pa.duration, ("s", "ms", "us", "ns"))], ids=str)  # fmt: skip
def test_times_of_day_and_durations_are_counted_in_the_unit(kind, dictionary, echo):
    seconds = [0, 5_400, 86_399, None]
    per = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
    counts = [None if second is None else second * per for second in seconds]
    column = pa.array(counts, pa.int32() if pa.types.is_time32(kind) else pa.int64()).cast(kind)
    column = column.dictionary_encode() if dictionary else column
    good, bad = fed(frame_of(c=column), echo(x=("float64", ["N"])), "x=c|epoch(m)")
    assert ([good[row][0] for row in range(3)], np.isnan(good[3][0]), bad) == ([0, 90, 86_399 / 60], True, {})
    good, bad = fed(frame_of(c=column), echo(x=("int64", ["N"])), "x=c|epoch(h)")
    assert (good, list(bad)) == ({0: [0], 1: [1], 2: [23]}, [3])
