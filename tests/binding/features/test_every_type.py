"""Every type of tensor, of every rank, from every form of column, with every null policy.

The model gives back what it got, so what comes out is what went in. Run it as a script, with
`PYTHONPATH=tests`, to print the table.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from functools import cache
from itertools import product
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from support.runs import read

import scorer
from scorer.binding.inputs import bind, shapes
from scorer.binding.outputs import FetchRequest
from scorer.errors import PreflightError
from scorer.model.session import Session
from scorer.model.spec import SessionSpec
from scorer.options.fields import BindingOptions
from scorer.options.grammar import FeedText
from scorer.preflight import trial
from scorer.scoring import batches

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = (*FLOATS, *INTEGERS, "bool", "string")
SHAPES = {"[N]": (), "[N,1]": (1,), "[N,k]": (3,), "[N,a,b]": (2, 3), "[N,a,b,c]": (2, 1, 3)}
CUTS = ("one chunk", "chunks", "slices")
FRAMED = ("[N,k]",)
"""Ranks that go through a pandas frame, which takes twice the time."""
ROWS = 9
AT_LEAST = 2400
BAD = object()
"""The oracle's answer for a row that cannot be fed."""

OTHER = {"float16": "FLOAT16", "bfloat16": "BFLOAT16", "float32": "FLOAT", "float64": "DOUBLE"}
ARROW = {
    "float16": pa.float16(), "bfloat16": pa.float32(), "float32": pa.float32(), "float64": pa.float64(),
    "bool": pa.bool_(), "string": pa.string(),
}  # fmt: skip
VALUES = {
    "float16": [0.0, -0.0, 1.5, -2.25, 65504.0, 6e-8, math.inf, -math.inf, math.nan],
    "bfloat16": [0.0, 1.5, -2.25, 3.3895313892515355e38, 2.0**-133, 256.0, math.inf, math.nan],
    "float32": [0.0, 1.5, -2.25, 3.4028234663852886e38, 1e-45, 2.0**24, -math.inf, math.nan],
    "float64": [0.0, 0.1, -2.25, 1.7976931348623157e308, 5e-324, 2.0**53, math.inf, math.nan],
    "bool": [True, False, True, True],
    "string": ["", "a", "None", "naïve \N{GRINNING FACE}", "0"],
} | {kind: [0, 1, np.iinfo(kind).max, np.iinfo(kind).min, 7] for kind in INTEGERS}
CONSTANTS = {"bool": "1", "string": "missing"}
NULLS = ("none", "outside", "inside")


def arrow_type(dtype):
    return ARROW.get(dtype) or pa.type_for_alias(dtype)


def policies(dtype):
    """The null policies that a tensor takes."""
    return ("error", *(("nan",) if dtype in FLOATS else ()), CONSTANTS.get(dtype, "5"))


@cache
def folder():
    return Path(tempfile.mkdtemp())


@cache
def echo(dtype, shape):
    """A model that gives back its only input."""
    path = folder() / f"{dtype}-{'x'.join(map(str, shape))}.onnx"
    kind = getattr(TensorProto, OTHER.get(dtype, dtype.upper()))
    tensors = [make_tensor_value_info(name, kind, ["N", *shape]) for name in "xy"]
    graph = make_graph([make_node("Identity", ["x"], ["y"])], "echo", tensors[:1], tensors[1:])
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=9), path)
    return path


def filled(shape, values):
    """A row: lists as deep as the shape, of the values in turn."""
    if not shape:
        return next(values)
    return [filled(shape[1:], values) for _ in range(shape[0])]


def turning(values, start):
    """The values over and over, from one of them."""
    while True:
        yield values[start % len(values)]
        start += 1


def with_null(row, depth):
    """The row with a null in its first list of that depth, or in its place."""
    return None if depth == 0 else [with_null(row[0], depth - 1), *row[1:]]


def rows_of(dtype, shape, nulls, *, odd):
    """Rows to feed: some with nulls at every requested depth, one of them too short if `odd`."""
    rows = [filled(shape, turning(VALUES[dtype], i)) for i in range(ROWS)]
    if nulls == "outside":
        rows[2] = rows[7] = None
    if nulls == "inside":
        for i in range(1, len(shape) + 1):
            rows[2 * i] = with_null(rows[2 * i], i)
    if odd:
        rows[3] = rows[3][:-1]
        rows[ROWS - 1] = []
    return rows


def stored(rows, kind, cut):
    """A column in one chunk, in several, or in slices of longer arrays."""
    if cut == "one chunk":
        return pa.chunked_array([array(rows, kind)], kind)
    edges = [(0, 4), (4, 4), (4, ROWS)]
    if cut == "chunks":
        return pa.chunked_array([array(rows[a:b], kind) for a, b in edges], kind)
    around = rows[5:7]
    return pa.chunked_array(
        [array([*around, *rows[a:b], *around], kind).slice(len(around), b - a) for a, b in edges], kind
    )


def array(rows, kind):
    """As pa.array, also for types that pa.array does not support."""
    if isinstance(kind, pa.FixedShapeTensorType):
        flat = [None if row is None else physical(row, kind).ravel().tolist() for row in rows]
        return pa.ExtensionArray.from_storage(kind, array(flat, kind.storage_type))
    if pa.types.is_list(kind) and pa.types.is_dictionary(kind.value_type):
        flat = [value for row in rows for value in row or ()]
        offsets = np.cumsum([0, *(len(row or ()) for row in rows)])
        starts = pa.array(offsets, pa.int32(), mask=np.array([*(row is None for row in rows), False]))
        return pa.ListArray.from_arrays(starts, array(flat, kind.value_type))
    if pa.types.is_dictionary(kind) and pa.types.is_nested(kind.value_type):
        places = pa.array([None if row is None else i for i, row in enumerate(rows)], pa.int8())
        return pa.DictionaryArray.from_arrays(places, array(rows, kind.value_type))
    return pa.array(rows, kind)


def physical(row, kind):
    """A row as a tensor column stores it, where its axes are permuted."""
    row = np.array(row, object)
    return row if kind.permutation is None else row.transpose(np.argsort(kind.permutation))


def lists(value, shape, *makers):
    """Lists in lists, the outermost maker first; a maker takes the inner type and its length."""
    for size, maker in zip(reversed(shape), reversed(makers), strict=True):
        value = maker(value, size)
    return value


def loose(inner, size):
    return pa.list_(inner)


def large(inner, size):
    return pa.large_list(inner)


def forms(dtype, shape):
    """Every form of column that could fill a tensor of the shape: name to (type of the one column, its own shape).

    A shape of None means: plain columns, one for each value.
    """
    value, total = arrow_type(dtype), math.prod(shape)
    found = {"plain": (value, None)}
    if dtype != "float16":  # Arrow has no dictionary of half floats
        found["dictionary"] = (pa.dictionary(pa.int8(), value), None)
    if dtype == "string":
        found["large"] = (pa.large_string(), None)
    if not shape:
        return found
    for name, maker in (("list", loose), ("large", large), ("fixed", pa.list_)):
        found[f"{name} lists"] = (lists(value, shape, *[maker] * len(shape)), shape)
    if dtype != "float16" and len(shape) == 1:
        found["list of dictionary"] = (pa.list_(pa.dictionary(pa.int8(), value)), shape)
        found["dictionary of lists"] = (pa.dictionary(pa.int8(), pa.list_(value)), shape)
    if len(shape) > 1:
        found["flat list"] = (pa.list_(value), (total,))
        found["flat fixed list"] = (pa.list_(value, total), (total,))
        found["fixed in list"] = (lists(value, shape, loose, *[pa.list_] * (len(shape) - 1)), shape)
        found["list in fixed"] = (lists(value, shape, *[pa.list_] * (len(shape) - 1), loose), shape)
    if dtype not in {"bool", "string"}:
        found["tensor"] = (pa.fixed_shape_tensor(value, shape), shape)
        order = tuple(range(len(shape)))[::-1]
        if len(shape) > 1:
            kept = [shape[order.index(axis)] for axis in range(len(shape))]
            found["permuted tensor"] = (pa.fixed_shape_tensor(value, kept, permutation=order), shape)
    return found


def variable(kind):
    """Whether its outermost lists may be of any length."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def table_of(dtype, shape, form, nulls, cut):
    """The columns to feed."""
    kind, own = forms(dtype, shape)[form]
    if own is None:
        rows = [list(flat(row)) for row in rows_of(dtype, shape, "none", odd=False)]
        for i in {"none": [], "outside": [2, 7], "inside": [4]}[nulls]:
            rows[i] = [None] * len(rows[i]) if nulls == "outside" else [None, *rows[i][1:]]
        columns = {f"c{i}": stored([row[i] for row in rows], kind, cut) for i in range(len(rows[0]))}
    else:
        inner = "none" if nulls == "inside" and form in TENSORS else nulls
        columns = {"c0": stored(rows_of(dtype, own, inner, odd=variable(kind)), kind, cut)}
        if nulls == "inside" and form in TENSORS:
            columns["c0"] = punched(columns["c0"])
    return pa.table(columns)


TENSORS = {"tensor", "permuted tensor"}


def punched(column):
    """A tensor column with a null in place of the first value of some rows."""
    chunks = []
    for chunk in column.chunks:
        rows = chunk.storage.to_pylist()
        rows[1:2] = [[None, *row[1:]] for row in rows[1:2]]
        chunks.append(pa.ExtensionArray.from_storage(chunk.type, array(rows, chunk.type.storage_type)))
    return pa.chunked_array(chunks, column.type)


def python_rows(table):
    """The rows as Python values, each a list of what its columns hold."""
    columns = []
    for column in table.columns:
        if isinstance(column.type, pa.FixedShapeTensorType):
            kind, rows = column.type, [row for chunk in column.chunks for row in chunk.storage.to_pylist()]
            axes = kind.permutation or range(len(kind.shape))
            columns.append([
                None if row is None else np.array(row, object).reshape(kind.shape).transpose(axes).tolist()
                for row in rows
            ])  # fmt: skip
        else:
            columns.append(column.to_pylist())
    return [list(row) for row in zip(*columns, strict=True)]


def flat(row):
    """The values of nested lists, in order."""
    if isinstance(row, list):
        for one in row:
            yield from flat(one)
    else:
        yield row


def oracle(row, shape, dtype, policy, *, own):
    """The tensor's values for a row of columns, or BAD: a loop over Python values."""
    total = math.prod(shape)
    if own is not None and not fits(row[0], own):
        return BAD
    values = list(flat(row))
    if policy == "error" and None in values:
        return BAD
    fill = {"error": None, "nan": math.nan, "missing": "missing", "1": True, "5": 5.0 if dtype in FLOATS else 5}[policy]
    values = [fill if value is None else value for value in values]
    assert len(values) == total
    return values


def fits(row, shape):
    """Whether lists are there and as long as the shape says, at every depth; values may be null."""
    if not shape:
        return True
    return row is not None and len(row) == shape[0] and all(fits(one, shape[1:]) for one in row)


def same(got, wanted):
    if isinstance(wanted, float):
        both_nan = math.isnan(wanted) and math.isnan(got)
        return both_nan or (got == wanted and math.copysign(1, got) == math.copysign(1, wanted))
    return got == wanted and isinstance(got, type(wanted))


@cache
def combinations():
    """(dtype, rank, form, nulls, policy, cut) of everything that is tried; the cuts take turns."""
    return tuple(_combinations())


def _combinations():
    turn = 0
    for dtype, (rank, shape) in product(DTYPES, SHAPES.items()):
        for form, policy, nulls in product(forms(dtype, shape), policies(dtype), NULLS):
            if nulls == "none" and policy != "error":
                continue  # nothing to be policed
            if nulls != "none" and dtype in INTEGERS[:3] + INTEGERS[5:] and (nulls == "outside") != (policy == "error"):
                continue  # integers differ in their limits; two of them show every policy
            turn += 1
            cut = CUTS[0] if form == "dictionary of lists" else CUTS[turn % len(CUTS)]  # Arrow joins no two of those
            yield dtype, rank, form, nulls, policy, cut


def through_a_frame(table, model, policy):
    """What `scorer.score` makes of the table: its output columns, and the reasons of bad rows."""
    frame = pd.DataFrame({name: pd.Series(pd.arrays.ArrowExtensionArray(table[name])) for name in table.column_names})
    feed = f"x={','.join(table.column_names)}"
    scored, bad = scorer.score(frame, model, feed=feed, on_null=policy, keep="none", batch_rows=4, errors="return")
    return [scored[name].array.__arrow_array__().to_pylist() for name in scored], bad["_error"].to_dict()


def through_a_binding(table, model, policy):
    """The same without pandas, as a part of a run is scored."""
    spec, session = loaded(model)
    binding, problems = bind(
        BindingOptions(feed=(FeedText.of("x", table.column_names),), on_null=(policy,)), spec, table.schema
    )
    assert problems == []
    binding = shapes(binding, table)
    binding, problems = trial.outputs(session, binding, (FetchRequest("y"),), table, spec, "")
    assert problems == []
    scored = batches.score(table, batches.grid(ROWS, 4), binding, session)
    good = pa.array([row not in scored.bad for row in range(ROWS)])
    reasons = {row: reason for row, (_, reason) in sorted(scored.bad.items())}
    return [column.filter(good).to_pylist() for column in scored.columns], reasons


@cache
def loaded(model):
    """A model as the plan sees it, and its session."""
    spec = scorer.inspect_model(model)
    return spec, Session(SessionSpec(path=spec.path, digest=spec.digest, files=spec.files, device="cpu"))


def check(dtype, rank, form, nulls, policy, cut):
    """One combination, row by row against the oracle."""
    shape = SHAPES[rank]
    table = table_of(dtype, shape, form, nulls, cut)
    own = forms(dtype, shape)[form][1]
    wanted = [oracle(row, shape, dtype, policy, own=own) for row in python_rows(table)]
    through = through_a_frame if rank in FRAMED else through_a_binding
    columns, reasons = through(table, echo(dtype, shape), policy)
    place = (dtype, rank, form, nulls, policy, cut)
    assert list(reasons) == [i for i, row in enumerate(wanted) if row is BAD], (place, reasons)
    assert all("'c" in reason and "'x'" in reason for reason in reasons.values()), place
    good = [row for row in wanted if row is not BAD]
    got = [list(flat(list(row))) for row in zip(*columns, strict=True)]
    assert [len(row) for row in got] == [len(row) for row in good], place
    for a, b in zip(got, good, strict=True):
        assert all(map(same, a, b)), (place, a, b)


@pytest.fixture(scope="module", autouse=True)
def _released():
    yield
    scorer.release()


@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_form_of_column_fills_the_tensor_or_the_row_is_reported(dtype, rank):
    tried = [one for one in combinations() if one[:2] == (dtype, rank)]
    for one in tried:
        check(*one)
    assert len(tried) >= 6


def test_thousands_of_combinations_are_tried_and_each_once():
    tried = combinations()
    assert len(tried) == len(set(tried))
    assert len(tried) >= AT_LEAST
    assert {dtype for dtype, *_ in tried} == set(DTYPES)


def one_column(column):
    return pd.DataFrame({"x": pd.Series(pd.arrays.ArrowExtensionArray(column))})


def test_values_too_large_for_a_small_float_are_reported_at_any_rank():
    rows = [[[1.0, 2.0, 3.0]] * 2, [[1.0, 2.0, 1e39]] * 2]
    for dtype in ("float16", "bfloat16", "float32"):
        _, bad = scorer.score(
            one_column(pa.array(rows, pa.list_(pa.list_(pa.float64())))),
            echo(dtype, (2, 3)),
            feed="x=x",
            errors="return",
        )
        assert list(bad["_error"]) == [f"1e+39 in column 'x' cannot be stored exactly as {dtype} (tensor 'x')"]


def test_a_small_float_that_is_no_numpy_type_rounds_as_its_own_package_does():
    values = [0.1, 1 / 3, 1e-40, 3.1415927, -2.7182818]
    scored = scorer.score(pd.DataFrame({"x": np.array(values, np.float32)}), echo("bfloat16", ()), fetch="y")
    assert scored["y"].tolist() == np.array(values, np.float32).astype(ml_dtypes.bfloat16).astype(float).tolist()


@pytest.mark.parametrize("dtype", [*INTEGERS, "bool"])
def test_no_integer_tensor_takes_nan_for_nulls(dtype):
    frame = pd.DataFrame({"x": [True, False]}).astype(bool if dtype == "bool" else "int64")
    with pytest.raises(PreflightError, match=rf"null policy does not fit 'x'[^$]*whole number that {dtype} holds"):
        scorer.score(frame, echo(dtype, ()), feed="x=x", on_null="nan")


@pytest.mark.parametrize(
    ("dtype", "shape", "kind", "says"),
    [
        ("float32", (3,), pa.list_(pa.string()), "lists of numbers for float32"),
        ("string", (3,), pa.list_(pa.float32()), "lists of text for string"),
        ("bool", (3,), pa.list_(pa.int8()), "lists of truth values for bool"),
        ("float32", (2, 3), pa.list_(pa.list_(pa.list_(pa.float32()))), "2 deep"),
        ("float32", (6,), pa.fixed_shape_tensor(pa.float32(), (2, 3)), "1 deep"),
        ("float32", (2, 3), pa.fixed_shape_tensor(pa.float32(), (3, 2)), "2 values in a row"),
        ("float32", (2, 3), pa.fixed_shape_tensor(pa.float32(), (2, 3), permutation=(1, 0)), "2 values in a row"),
        ("float32", (2, 3), pa.list_(pa.float32(), 5), "6 values in a row"),
        ("float32", (2, 3), pa.list_(pa.fixed_shape_tensor(pa.float32(), (3,))), "lists of numbers|2 deep"),
        ("float32", (), pa.list_(pa.float32()), "0 deep"),
        ("string", (), pa.list_(pa.string()), "0 deep"),
    ],
)  # fmt: skip
def test_a_column_of_another_form_or_type_is_refused_before_the_start(dtype, shape, kind, says):
    with pytest.raises(PreflightError, match=says):
        scorer.score(one_column(pa.nulls(1, kind)), echo(dtype, shape), feed="x=x")


def test_columns_fill_a_tensor_of_any_rank_in_their_own_order():
    frame = pd.DataFrame({f"c{i}": np.arange(3) + 10 * i for i in range(6)})
    scored = scorer.score(frame, echo("int64", (2, 3)), feed="x=c0..c5")
    assert [row.tolist() for row in scored["y"]] == frame.to_numpy().tolist()


def test_lists_of_python_objects_are_lists():
    """As `pandas.read_parquet` gives them."""
    frame = pd.DataFrame({"x": [None, np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])]})
    scored, bad = scorer.score(frame, echo("float32", (3,)), errors="return", keep="none")
    assert scored.to_numpy().tolist() == [[1, 2, 3], [4, 5, 6]]
    assert list(bad.index) == [0]


def test_bad_rows_are_left_out_of_list_outputs_too():
    rows = [[[1.0, 2.0, 3.0]] * 2, None, [[4.0, 5.0, 6.0]] * 2]
    frame = pd.DataFrame({"x": rows})
    scored, bad = scorer.score(frame, echo("float32", (2, 3)), errors="return", keep="none")
    assert [row.tolist() for row in scored["y"]] == [[1, 2, 3] * 2, [4, 5, 6] * 2]
    assert (list(scored.index), list(bad.index)) == ([0, 2], [1])


@pytest.mark.parametrize("form", ["tensor", "permuted tensor"])
def test_a_tensor_column_comes_through_files_as_it_is(form, tmp_path):
    kind, shape = forms("float32", (2, 3))[form]
    rows = [filled(shape, turning([float(v) for v in range(20)], i)) for i in range(ROWS)]
    pq.write_table(pa.table({"image": stored(rows, kind, "one chunk")}), tmp_path / "in.parquet")
    scorer.run(tmp_path / "in.parquet", echo("float32", shape), tmp_path / "out", cluster="synchronous")
    output = read(tmp_path / "out")
    assert output["image"].type == kind
    assert output["y"].to_pylist() == [list(flat(row)) for row in rows]


def main():
    """The table of what is tried, as markdown."""
    counts, tried = Counter(), combinations()
    for dtype, rank, *_ in tried:
        counts[dtype, rank] += 1
    for one in tried:
        check(*one)
    print(f"{len(tried)} combinations\n\n| tensor | {' | '.join(SHAPES)} |\n|---|{'---|' * len(SHAPES)}")
    for dtype in DTYPES:
        print(f"| {dtype} | {' | '.join(str(counts[dtype, rank]) for rank in SHAPES)} |")


if __name__ == "__main__":
    main()
