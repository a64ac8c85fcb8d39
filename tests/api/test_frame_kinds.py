"""polars frames and Arrow tables are scored like pandas frames, and the result has their kind."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from support.runs import MODELS

import scorer
from scorer.errors import BindingError, OptionsError, PreflightError, RunFailed

NAMED, GATHER = MODELS / "named3.onnx", MODELS / "gather.onnx"
ROWS = 300


@pytest.fixture(autouse=True)
def _released():
    """Each test loads its models anew."""
    yield
    scorer.release()


def rows():
    """Numbers to feed, and columns of several Arrow types to keep."""
    rng = np.random.default_rng(3)
    return pa.table({
        "id": pa.array(range(ROWS)),
        **{name: pa.array(rng.integers(-1000, 1000, ROWS).astype(np.float32)) for name in "abc"},
        "text": pa.array([f"t{i % 7}" if i % 5 else None for i in range(ROWS)], pa.large_string()),
        "kind": pa.array([("low", "high")[i % 2] for i in range(ROWS)]).dictionary_encode(),
        "list": pa.array([[i, None] if i % 3 else None for i in range(ROWS)]),
        "day": pa.array([20_000 + i for i in range(ROWS)], pa.int32()).cast(pa.date32()),
    })  # fmt: skip


def arrow(table):
    return table


def polars(table):
    return pytest.importorskip("polars").from_arrow(table)


def as_table(frame):
    return frame if isinstance(frame, pa.Table) else frame.to_arrow()


KINDS = pytest.mark.parametrize("make", [arrow, polars])


@KINDS
def test_scores_are_those_of_a_pandas_frame_and_the_kind_is_kept(make):
    frame = make(rows())
    scored = scorer.score(frame, NAMED)
    expected = scorer.score(rows().to_pandas(), NAMED)
    assert type(scored) is type(frame)
    added = [name for name in expected.columns if name not in rows().column_names]
    assert list(as_table(scored).column_names) == [*rows().column_names, *added]
    for name in added:
        np.testing.assert_array_equal(as_table(scored)[name].to_numpy(), expected[name].to_numpy())


@KINDS
def test_kept_columns_keep_their_types_and_values(make):
    frame = make(rows())
    scored = scorer.score(frame, NAMED, keep=["text", "kind", "list", "day"])
    kept = as_table(frame).select(["text", "kind", "list", "day"])
    assert as_table(scored).select(kept.column_names).equals(kept)
    none = as_table(scorer.score(frame, NAMED, keep="none"))
    assert not set(none.column_names) & set(kept.column_names)
    assert none.num_rows == ROWS


@KINDS
def test_bad_rows_are_returned_with_their_reasons(make):
    table = pa.table({"idx": pa.array([1, 10, 2, None, 3]), "word": list("vwxyz")})
    scored, bad = scorer.score(make(table), GATHER, errors="return", batch_rows=2)
    assert as_table(scored).column("word").to_pylist() == ["v", "x", "z"]
    assert as_table(scored).column("value").to_pylist() == [10.0, 20.0, 30.0]
    assert as_table(bad).column("word").to_pylist() == ["w", "y"]
    assert as_table(bad).column("_stage").to_pylist() == ["infer", "feed"]
    assert all(as_table(bad).column("_error").to_pylist())
    with pytest.raises(RunFailed, match="2 rows could not be scored") as caught:
        scorer.score(make(table), GATHER)
    assert caught.value.where == "row 1"
    scored, bad = scorer.score(make(table.slice(0, 1)), GATHER, errors="return")
    assert as_table(bad).num_rows == 0
    assert list(as_table(bad).column_names) == ["idx", "word", "_error", "_stage"]


@KINDS
def test_a_table_without_rows_gives_one_with_all_columns(make):
    scored = as_table(scorer.score(make(rows().slice(0, 0)), NAMED))
    assert scored.num_rows == 0
    assert set(scored.column_names) > set(rows().column_names)


@KINDS
def test_texts_and_chunks_are_fed(make):
    table = pa.table({"color": ["red", "blue", "red"], "size": [1.0, 2.0, 3.0]})
    views = table.set_column(0, "color", table["color"].cast(pa.string_view()))
    halves = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    expected = scorer.score(table.to_pandas(), MODELS / "strings.onnx", keep="none")
    for one in (table, views, halves):
        scored = as_table(scorer.score(make(one), MODELS / "strings.onnx", keep="none"))
        for name in expected.columns:
            assert scored[name].to_pylist() == expected[name].to_list()


def test_columns_of_python_objects_are_kept_as_they_are():
    pl = pytest.importorskip("polars")
    things = [{1}, {2}]
    frame = pl.DataFrame({"a": [1.0, 2.0], "b": [1.0, 2.0], "c": [1.0, 2.0]}).with_columns(
        pl.Series("thing", things, dtype=pl.Object)
    )
    scored = scorer.score(frame, NAMED)
    assert scored["thing"].to_list() == things


def test_two_columns_of_one_name_are_refused():
    table = pa.table([[1.0], [2.0], [3.0]], names=["a", "b", "b"])
    with pytest.raises(PreflightError, match="columns share one name: 'b'"):
        scorer.score(table, NAMED)


def test_other_frames_are_refused_with_what_to_call():
    with pytest.raises(OptionsError, match="a pandas, polars or Dask DataFrame, or a pyarrow Table") as caught:
        scorer.score(rows().to_batches()[0], NAMED)
    assert caught.value.found == "a pyarrow RecordBatch"
    assert "pyarrow.table" in caught.value.hint or "pyarrow Table" in caught.value.hint
    pl = pytest.importorskip("polars")
    with pytest.raises(OptionsError) as caught:
        scorer.score(pl.from_arrow(rows()).lazy(), NAMED)
    assert caught.value.hint == "call its collect() first"


# Functions


def doubled(frame):
    """Return the three columns, doubled."""
    return frame[["a", "b", "c"]] * 2


@pytest.mark.parametrize("make", [pa.Table.to_pandas, arrow, polars])
def test_any_function_computes_the_columns_that_are_fed(make):
    factor = 2
    frame = make(rows())
    expected = as_pandas(scorer.score(make(rows()), MODELS / "sum3.onnx", feed="x=a,b,c"))
    scored = as_pandas(
        scorer.score(frame, MODELS / "sum3.onnx", feed="x=a,b,c", transform=lambda one: one[["a", "b", "c"]] * factor)
    )
    (name,) = set(scored.columns) - set(rows().column_names)
    assert scored[name].to_list() == (expected[name] * 2).to_list()
    assert scored["a"].to_list() == expected["a"].to_list(), "the input's columns are kept, not the function's"


def as_pandas(frame):
    return frame if isinstance(frame, pd.DataFrame) else as_table(frame).to_pandas()


def test_a_function_may_be_given_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "doubling_three.py").write_text("def f(frame):\n    return frame[['a', 'b', 'c']] * 2\n")
    monkeypatch.chdir(tmp_path)
    frame = rows().to_pandas()
    named = scorer.score(frame, MODELS / "sum3.onnx", feed="x=a,b,c", transform="doubling_three:f")
    given = scorer.score(frame, MODELS / "sum3.onnx", feed="x=a,b,c", transform=doubled)
    pd.testing.assert_frame_equal(named, given)


@pytest.mark.parametrize("make", [pa.Table.to_pandas, arrow])
def test_a_row_for_which_the_function_raises_is_the_only_bad_row(make):
    def fails(frame):
        if (frame["id"] == 7).any():
            raise ValueError("seven")
        return doubled(frame)

    scored, bad = scorer.score(make(rows()), MODELS / "sum3.onnx", feed="x=a,b,c", transform=fails, errors="return")
    bad = as_pandas(bad)
    assert bad["id"].to_list() == [7]
    assert bad["_stage"].to_list() == ["transform"]
    assert "seven" in bad["_error"].iloc[0]
    assert len(as_pandas(scored)) == ROWS - 1


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda frame: frame.iloc[1:], "the same rows"),
        (lambda frame: frame["a"], "the transform's result cannot be used"),
        (lambda frame: frame["z"], "fails for every row"),
    ],
)
def test_an_unusable_function_is_refused_before_a_row_is_scored(function, words):
    with pytest.raises(PreflightError, match=words) as caught:
        scorer.score(rows(), MODELS / "sum3.onnx", transform=function)
    assert isinstance(caught.value.problems[0], BindingError)


def test_a_transform_that_is_no_function_is_refused():
    with pytest.raises(OptionsError, match="not a function"):
        scorer.score(rows(), NAMED, transform=3)
    with pytest.raises(OptionsError, match="cannot be imported"):
        scorer.score(rows(), NAMED, transform="no_such_module:f")


def test_a_frame_without_rows_is_transformed_too():
    frame = rows().to_pandas().iloc[:0]
    scored = scorer.score(frame, MODELS / "sum3.onnx", feed="x=a,b,c", transform=doubled)
    assert len(scored) == 0
    assert set(scored.columns) > set(frame.columns)


@pytest.mark.parametrize("scheduler", ["synchronous", "processes"])
def test_a_local_function_scores_a_dask_frame(scheduler):
    dd = pytest.importorskip("dask.dataframe")
    factor = 2
    frame = rows().select(["id", "a", "b", "c"]).to_pandas()
    lazy = scorer.score(
        dd.from_pandas(frame, npartitions=3), MODELS / "sum3.onnx", feed="x=a,b,c",
        transform=lambda one: one[["a", "b", "c"]] * factor,
    )  # fmt: skip
    expected = scorer.score(frame, MODELS / "sum3.onnx", feed="x=a,b,c", transform=doubled)
    pd.testing.assert_frame_equal(lazy.compute(scheduler=scheduler), expected)
    assert list(lazy.columns) == list(expected.columns)


@pytest.mark.parametrize("make", [pa.Table.to_pandas, arrow, polars])
@pytest.mark.parametrize("function", [None, lambda frame: frame[["p"]]])
def test_fields_of_structs_are_fed_by_path(make, function):
    points = [{"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 4.0, "b": 5.0, "c": 6.0}]
    kind = pa.struct([(name, pa.float64()) for name in "abc"])
    frame = make(pa.table({"id": [1, 2], "p": pa.array(points, kind)}))
    scored = as_pandas(scorer.score(frame, MODELS / "sum3.onnx", feed="x=p.a,p.b,p.c", keep=["id"], transform=function))
    assert scored.iloc[:, 1].to_list() == [6.0, 15.0]
