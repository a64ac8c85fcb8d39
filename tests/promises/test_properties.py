"""Properties of whole runs for any row groups, parts, batches, filters and bad rows, with Hypothesis."""

from __future__ import annotations

import operator
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.runs import MODELS, oracle, read

import scorer
from scorer.api.verification import check as verify
from scorer.output.place import Place

END_TO_END = settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
HERE = {"cluster": "synchronous"}
MOST = 300
NEST = pa.list_(pa.struct([("x", pa.int64())]))
FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


@st.composite
def splits(draw, rows):
    """Draw files and row groups for this many rows; either may be empty."""
    inner = sorted(draw(st.lists(st.integers(0, rows), max_size=6)))
    sizes = [b - a for a, b in zip([0, *inner], [*inner, rows], strict=True)]
    files = [[]]
    for size in sizes:
        if draw(st.booleans()):
            files.append([])
        files[-1].append(size)
    return files


@st.composite
def cuts(draw):
    """Draw part and batch sizes."""
    options = {
        "part_bytes": draw(st.sampled_from([None, 4096, 8192, "1MiB"])),
        "batch_rows": draw(st.sampled_from([None, 1, 3, 8, 64, 1000])),
    }
    return {name: value for name, value in options.items() if value is not None}


def write_split(folder, table, files):
    """Write the table as these files and row groups, in order."""
    folder.mkdir()
    start = 0
    for i, groups in enumerate(files):
        with pq.ParquetWriter(folder / f"f{i}.parquet", table.schema) as writer:
            for size in groups:
                writer.write_table(table.slice(start, size), row_group_size=max(size, 1))
                start += size
    assert start == len(table)


def scored(folder, table, files, model, **options):
    """Score the table split like this, verify the output, and return (report, output)."""
    write_split(folder / "in", table, files)
    report = scorer.run(folder / "in", MODELS / f"{model}.onnx", folder / "out", **options, **HERE)
    verdict = verify(Place.of(str(folder / "out"), None), deep=True)
    assert verdict.faults == ()
    counts = report.counts
    assert verdict.counts.to_dict() == counts.to_dict()
    assert counts.rows == len(table) == counts.scored + counts.quarantined + counts.filtered
    output = read(folder / "out")
    assert len(output) == counts.scored
    return report, output


def quarantined(folder):
    """Return the rows in quarantine, in the order of their parts."""
    paths = sorted((folder / "out.scorer" / "quarantine").glob("*"))
    tables = [pq.ParquetFile(path).read() for path in paths]
    return pa.concat_tables(tables) if tables else None


def exact(column):
    """Return values that compare bit for bit."""
    array = column.combine_chunks()
    if pa.types.is_floating(array.type):
        kind = np.int32 if array.type.bit_width == 32 else np.int64
        nulls = array.is_null().to_pylist()
        bits = array.fill_null(0).to_numpy(zero_copy_only=False).view(kind).tolist()
        return [None if null else x for null, x in zip(nulls, bits, strict=True)]
    return array.to_pylist()


def kept_columns(draw, rows):
    """Columns beside the fed ones, with nulls, in types that plain pandas would change."""
    some = st.none() | st.integers(-(2**63), 2**63 - 1)
    words = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
    pool_i, pool_s = draw(st.lists(some, min_size=1, max_size=9)), draw(st.lists(words, min_size=1, max_size=9))
    repeat = np.arange(rows)
    return {
        "id": pa.array(repeat),
        "big": pa.array([pool_i[i % len(pool_i)] for i in repeat], pa.int64()),
        "text": pa.array([pool_s[i % len(pool_s)] for i in repeat], pa.string()),
        "nest": pa.array([[{"x": i}, None] if i % 3 else None for i in range(rows)], NEST),
    }  # fmt: skip


@st.composite
def dense_tables(draw):
    """Draw a table for dense28 with kept columns; the fed values repeat every 29 rows."""
    rows = draw(st.integers(0, MOST))
    pool = np.random.default_rng(draw(st.integers(0, 99))).standard_normal((29, 28)).astype(np.float32)
    fed = {f"f{j}": pa.array(pool[np.arange(rows) % 29, j]) for j in range(28)}
    return pa.table({**kept_columns(draw, rows), **fed})


@END_TO_END
@given(data=st.data(), table=dense_tables(), options=cuts())
def test_every_row_is_scored_once_and_in_order_for_any_row_groups_and_parts(data, table, options):
    files = data.draw(splits(len(table)))
    with tempfile.TemporaryDirectory() as folder:
        report, output = scored(Path(folder), table, files, "dense28", feed="input=f0..f27", **options)
    assert report.counts.scored == len(table)
    for name in table.column_names:
        assert output.schema.field(name).type == table.schema.field(name).type
        assert exact(output[name]) == exact(table[name])
    matrix = np.stack([table[f"f{j}"].to_numpy() for j in range(28)], axis=1)
    expected = oracle(MODELS / "dense28.onnx", {"input": matrix})["score"][:, 0] if len(table) else np.empty(0)
    np.testing.assert_allclose(output["score"].to_numpy(), expected, rtol=1e-5)


@END_TO_END
@given(data=st.data(), values=st.lists(st.tuples(FLOATS, FLOATS, FLOATS), max_size=MOST), cut=cuts(), other=cuts())
def test_any_row_groups_and_parts_give_the_same_bits(data, values, cut, other):
    columns = dict(zip("abc", np.array(values, np.float32).reshape(-1, 3).T, strict=True))
    table = pa.table({"id": np.arange(len(values)), **columns})
    outputs = []
    for options in (cut, other):
        with tempfile.TemporaryDirectory() as folder:
            files = data.draw(splits(len(table)))
            outputs.append(scored(Path(folder), table, files, "named3", **options)[1])
    first, second = outputs
    assert first.schema.equals(second.schema)
    for name in first.column_names:
        assert exact(first[name]) == exact(second[name])


@st.composite
def filters(draw):
    """Draw a filter as text, and the same filter as a function of one row."""
    compare = {
        "==": operator.eq,
        "!=": operator.ne,
        "<": operator.lt,
        "<=": operator.le,
        ">": operator.gt,
        ">=": operator.ge,
    }
    column = draw(st.sampled_from(["n", "x", "s", "flag", "spaced name"]))
    name = f'"{column}"' if " " in column else column
    form = draw(st.sampled_from(["compare", "in", "not in", "null", "not null"]))
    if form == "null":
        return f"{name} is null", lambda row: row[column] is None
    if form == "not null":
        return f"{name} is not null", lambda row: row[column] is not None
    literals = {
        "n": st.integers(-10, 40), "spaced name": st.integers(0, 6), "x": st.sampled_from([-0.5, 0.0, 0.25, 1.0, 2.0]),
        "s": st.sampled_from(["", "a", "b'", "ä", "none"]), "flag": st.booleans(),
    }[column]  # fmt: skip
    if form == "compare":
        op, value = draw(st.sampled_from(sorted(compare) if column != "flag" else ["==", "!="])), draw(literals)
        return f"{name} {op} {said(value)}", lambda row: row[column] is not None and compare[op](row[column], value)
    values = draw(st.lists(literals, min_size=1, max_size=3))
    text = f"{name} {form} ({', '.join(map(said, values))})"
    if form == "in":
        return text, lambda row: row[column] is not None and row[column] in values
    return text, lambda row: row[column] is not None and row[column] not in values


def said(value):
    """Return a value as a literal of --where."""
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value).lower()


@st.composite
def filtered_tables(draw):
    """Draw a table to filter, with sorted, repeated, null and NaN values."""
    rows = draw(st.integers(0, 120))
    s = draw(st.lists(st.sampled_from([None, "", "a", "b'", "ä", "none"]), min_size=1, max_size=7))
    x = draw(st.lists(st.sampled_from([None, float("nan"), -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=7))
    i, hole = range(rows), draw(st.integers(1, 6))
    return pa.table({
        "id": pa.array(i, pa.int64()),
        "n": pa.array([None if k % hole == 0 else k // 3 for k in i], pa.int32()),
        "x": pa.array([x[k % len(x)] for k in i], pa.float64()),
        "s": pa.array([s[k % len(s)] for k in i], pa.string()),
        "flag": pa.array([(None, True, False)[k % 3] for k in i], pa.bool_()),
        "spaced name": pa.array([k % 5 for k in i], pa.uint8()),
        **{name: pa.array([float(k % (j + 2)) for k in i], pa.float32()) for j, name in enumerate("abc")},
    })  # fmt: skip


@settings(END_TO_END, max_examples=20)
@given(data=st.data(), table=filtered_tables(), chosen=st.lists(filters(), min_size=1, max_size=2), options=cuts())
def test_a_filter_keeps_the_matching_rows_and_counts_the_others(data, table, chosen, options):
    where = [text for text, _ in chosen]
    expected = [row for row in table.to_pylist() if all(holds(row) for _, holds in chosen)]
    with tempfile.TemporaryDirectory() as folder:
        files = data.draw(splits(len(table)))
        report, output = scored(Path(folder), table, files, "named3", where=where, **options)
    assert output["id"].to_pylist() == [row["id"] for row in expected]
    assert output["total"].to_pylist() == [row["a"] + row["b"] + row["c"] for row in expected]
    for name in ("n", "s", "flag"):
        assert output[name].to_pylist() == [row[name] for row in expected]
    assert (report.counts.filtered, report.counts.quarantined) == (len(table) - len(expected), 0)


@settings(END_TO_END, max_examples=20)
@given(
    data=st.data(),
    values=st.lists(st.none() | st.integers(-10, 9) | st.sampled_from([10, -11, 2**40]), max_size=200),
    options=cuts(),
    where=st.sampled_from([None, "id >= 20", "keep = true"]),
)
def test_bad_rows_cost_only_themselves_and_keep_all_columns(data, values, options, where):
    rows = range(len(values))
    table = pa.table({
        "id": pa.array(rows, pa.int64()),
        "idx": pa.array(values, pa.int64()),
        "keep": pa.array([i % 4 != 0 for i in rows], pa.bool_()),
        "nest": pa.array([{"x": i} if i % 2 else None for i in rows], pa.struct([("x", pa.int64())])),
    })  # fmt: skip
    holds = {None: lambda _: True, "id >= 20": lambda i: i >= 20, "keep = true": lambda i: i % 4 != 0}[where]
    held = [i for i in rows if holds(i)]
    good = [i for i in held if values[i] is not None and -10 <= values[i] <= 9]
    bad = [i for i in held if i not in set(good)]
    files = data.draw(splits(len(table)))
    places = [(f, row) for f, groups in enumerate(files) for row in range(sum(groups))]
    options |= {"on_null": "error", "max_bad_rows": "100%", "feed": "idx=idx"} | ({"where": where} if where else {})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report, output = scored(folder, table, files, "gather", **options)
        aside = quarantined(folder)
    assert output["id"].to_pylist() == good
    assert output["value"].to_pylist() == [10.0 * (values[i] % 10) for i in good]
    assert (report.counts.quarantined, report.counts.filtered) == (len(bad), len(table) - len(held))
    if not bad:
        assert aside is None
        return
    assert aside["id"].to_pylist() == bad
    assert aside.select(table.column_names).to_pylist() == table.take(pa.array(bad, pa.int64())).to_pylist()
    assert aside.select(table.column_names).schema.types == table.schema.types
    for row in aside.to_pylist():
        f, at = places[row["id"]]
        assert row["_file"].endswith(f"/in/f{f}.parquet")
        assert row["_row"] == at
        stage, word = ("feed", "null in column 'idx'") if row["idx"] is None else ("infer", f"idx={row['idx']}")
        assert row["_stage"] == stage
        assert word in row["_error"]
    assert Counter(aside["_stage"].to_pylist())["feed"] == sum(values[i] is None for i in bad)


@settings(END_TO_END, max_examples=20)
@given(data=st.data(), limit=st.integers(0, 130), rows=st.integers(0, 120), options=cuts())
def test_a_limit_takes_the_first_rows(data, limit, rows, options):
    table = pa.table(
        {"id": pa.array(range(rows), pa.int64()), **{n: pa.array(range(rows), pa.float32()) for n in "abc"}}
    )
    with tempfile.TemporaryDirectory() as folder:
        write_split(Path(folder) / "in", table, data.draw(splits(rows)))
        report = scorer.run(f"{folder}/in", MODELS / "named3.onnx", f"{folder}/out", limit=limit, **options, **HERE)
        verdict = verify(Place.of(f"{folder}/out", None), deep=True)
        output = read(f"{folder}/out")
    assert output["id"].to_pylist() == list(range(min(limit, rows)))
    assert output["total"].to_pylist() == [3.0 * i for i in range(min(limit, rows))]
    assert report.counts.rows == report.counts.scored == min(limit, rows)
    assert verdict.faults == ()
