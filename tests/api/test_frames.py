"""Frames get the same scores as files, and keep their columns, types, index and partitions."""

from __future__ import annotations

import gc
import warnings
import weakref

import dask
import dask.dataframe as dd
import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array
from support.runs import MODELS, oracle, read

import scorer
from scorer.errors import PreflightError, RunFailed, ShapeMismatch
from scorer.model.resident import SESSIONS

NAMED, SUM = MODELS / "named3.onnx", MODELS / "sum3.onnx"
ROWS = 1000
BACKINGS = ("numpy", "arrow", "nullable", "mixed")


def plain(rows=ROWS):
    """Numbers to feed, and columns of every common pandas kind to keep."""
    rng = np.random.default_rng(3)
    floats = {name: rng.integers(-1000, 1000, rows).astype(np.float32) for name in "abc"}
    return pd.DataFrame({
        "id": np.arange(rows),
        **floats,
        "text": pd.array([f"t{i % 7}" if i % 5 else None for i in range(rows)], dtype="str"),
        "kind": pd.Categorical([("low", "high")[i % 2] for i in range(rows)], ["low", "high"], ordered=True),
        "when": pd.date_range("2026-01-01", periods=rows, freq="min", tz="Europe/Berlin"),
        "flag": np.arange(rows) % 2 == 0,
    })  # fmt: skip


def backed(frame, backing):
    """The same values in another kind of column."""
    if backing == "arrow":
        types = pa.Schema.from_pandas(frame, preserve_index=False)
        return frame.astype({name: pd.ArrowDtype(types.field(name).type) for name in frame.columns})
    if backing == "nullable":
        return frame.astype({"id": "Int64", "a": "Float32", "b": "Float32", "c": "Float32", "flag": "boolean"})
    if backing == "mixed":
        return frame.astype({"a": "Float32", "b": pd.ArrowDtype(pa.float32())})
    return frame


@pytest.fixture(params=BACKINGS)
def frame(request):
    """One frame per kind of column."""
    return backed(plain(), request.param)


@pytest.fixture(autouse=True)
def _released():
    """Each test loads its models anew."""
    yield
    scorer.release()


def totals(frame):
    """Return the exact output of sum3."""
    return frame[["a", "b", "c"]].astype("float64").sum(axis=1).to_list()


def through_files(frame, model, folder, **options):
    """The output of `scorer.run` on the same rows as a Parquet file."""
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), folder / "in.parquet")
    scorer.run(folder / "in.parquet", model, folder / "out", cluster="synchronous", **options)
    return read(folder / "out")


class Watched:
    """Makes Dask partitions and counts how many were made."""

    def __init__(self, frame, parts):
        self.made = 0
        step = -(-len(frame) // parts)
        self.pieces = [frame.iloc[at : at + step] for at in range(0, len(frame), step)]

    def lazy(self):
        """Return a Dask frame of the pieces, each created when it is computed."""
        return dd.from_map(self.make, range(len(self.pieces)), meta=self.pieces[0].iloc[:0])

    def make(self, i):
        """One partition."""
        self.made += 1
        return self.pieces[i]


def test_pandas_gives_what_a_run_gives(frame, tmp_path):
    scored = scorer.score(frame, NAMED)
    output = through_files(frame, NAMED, tmp_path)
    assert list(scored.columns) == output.column_names
    assert scored["total"].to_list() == output["total"].to_pylist() == totals(frame)
    pd.testing.assert_frame_equal(scored[list(frame.columns)], frame)


def test_dask_gives_what_a_run_gives(frame, tmp_path):
    lazy = scorer.score(dd.from_pandas(frame, npartitions=4), NAMED)
    scored = lazy.compute(scheduler="synchronous")
    output = through_files(frame, NAMED, tmp_path)
    assert list(scored.columns) == output.column_names
    assert scored["total"].to_list() == output["total"].to_pylist()
    with dask.config.set({"dataframe.convert-string": False}):
        unchanged = dd.from_pandas(frame, npartitions=4).compute(scheduler="synchronous")
    pd.testing.assert_frame_equal(scored[list(frame.columns)], unchanged, check_dtype=False)


@pytest.mark.parametrize("kind", ["pandas", "dask"])
def test_scores_are_numpy_or_arrow_as_the_frame_is(kind):
    for backing, expected in (("numpy", np.dtype("float32")), ("arrow", pd.ArrowDtype(pa.float32()))):
        frame = backed(plain(), backing)
        given = frame if kind == "pandas" else dd.from_pandas(frame, npartitions=3)
        scored = scorer.score(given, NAMED)
        assert scored.dtypes["total"] == expected
        if kind == "dask":
            assert scored.compute(scheduler="synchronous").dtypes["total"] == expected


def test_meta_is_what_computing_gives(frame):
    for model in ("named3", "zipmap", "two_outputs", "wide_output"):
        wide = frame.assign(d=frame["a"])
        options = {} if model == "named3" else {"feed": "x=a,b,c,d"}
        lazy = scorer.score(dd.from_pandas(wide, npartitions=2), MODELS / f"{model}.onnx", **options)
        first = lazy.partitions[0].compute(scheduler="synchronous")
        pd.testing.assert_series_equal(lazy._meta.dtypes, first.dtypes)


def test_a_dask_frame_is_scored_only_when_it_is_computed():
    watched = Watched(plain(), 4)
    lazy = scorer.score(watched.lazy(), NAMED)
    assert watched.made == 0
    part = lazy.partitions[2].compute(scheduler="synchronous")
    assert watched.made == 1
    assert part["total"].to_list() == totals(watched.pieces[2])


def test_dask_divisions_and_partitions_survive():
    lazy = dd.from_pandas(plain().set_index("id"), npartitions=7, sort=True)
    scored = scorer.score(lazy, NAMED)
    assert scored.known_divisions
    assert scored.divisions == lazy.divisions
    assert scored.npartitions == lazy.npartitions
    assert scored.loc[500:510].compute(scheduler="synchronous").index.to_list() == list(range(500, 511))


INDEXES = {
    "string": pd.Index([f"row {i}" for i in range(ROWS)], name="key"),
    "datetime": pd.date_range("2026-01-01", periods=ROWS, freq="h", name="when"),
    "multi": pd.MultiIndex.from_product([range(10), list("abcdefghij"), [True, False] * 5], names=["i", None, "f"]),
    "twice": pd.Index([1, 1] * (ROWS // 2)),
    "backwards": pd.RangeIndex(ROWS, 0, -1),
    "category": pd.CategoricalIndex(["x", "y"] * (ROWS // 2)),
    "named like a score": pd.RangeIndex(ROWS, name="total"),
}


@pytest.mark.parametrize("index", INDEXES)
def test_the_index_survives(index, frame):
    frame.index = INDEXES[index]
    scored = scorer.score(frame, NAMED)
    pd.testing.assert_index_equal(scored.index, frame.index, exact=True)
    assert scored["total"].to_list() == totals(frame)


@pytest.mark.parametrize("index", ["string", "datetime", "backwards"])
def test_the_index_survives_in_dask(index, frame):
    frame.index = INDEXES[index]
    lazy = dd.from_pandas(frame, npartitions=3, sort=False)
    scored = scorer.score(lazy, NAMED).compute(scheduler="synchronous")
    assert scored.index.equals(lazy.compute(scheduler="synchronous").index)
    assert scored["total"].to_list() == totals(frame)


def test_the_frame_that_was_given_is_left_as_it_was(frame):
    before = frame.copy(deep=True)
    scored = scorer.score(frame, NAMED)
    scored["a"] = 0
    scored.loc[scored.index[0], "id"] = -1
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize("backing", BACKINGS)
@pytest.mark.parametrize("kind", ["pandas", "dask"])
def test_a_frame_without_rows_gives_one_with_all_columns(kind, backing):
    full = backed(plain(), backing)
    empty = full.iloc[:0]
    given = empty if kind == "pandas" else dd.from_pandas(empty, npartitions=1)
    scored = scorer.score(given, NAMED)
    scored = scored if kind == "pandas" else scored.compute(scheduler="synchronous")
    expected = scorer.score(full, NAMED).iloc[:0]
    assert len(scored) == 0
    assert list(scored.columns) == list(expected.columns)
    assert scored.dtypes["total"] == expected.dtypes["total"]
    if kind == "pandas":
        pd.testing.assert_series_equal(scored.dtypes, expected.dtypes)


@pytest.mark.parametrize("model", ["zipmap", "zipmap_int", "two_outputs", "wide_output"])
def test_a_frame_without_rows_has_the_columns_of_every_kind_of_output(model):
    full = plain(10).assign(d=np.float32(1))
    feed = {"feed": "x=a,b,c,d", "keep": "none"}
    expected = scorer.score(full, MODELS / f"{model}.onnx", **feed).iloc[:0]
    scored = scorer.score(full.iloc[:0], MODELS / f"{model}.onnx", **feed)
    pd.testing.assert_frame_equal(scored, expected)


def test_partitions_without_rows_are_scored(frame):
    lazy = dd.concat([dd.from_pandas(piece, npartitions=1) for piece in (frame[:0], frame[:9], frame[:0], frame[9:])])
    scored = scorer.score(lazy, NAMED).compute(scheduler="synchronous")
    assert scored["id"].to_list() == list(range(ROWS))
    assert scored["total"].to_list() == totals(frame)


def test_columns_may_have_names_that_are_no_text():
    frame = pd.DataFrame(np.arange(30, dtype=np.float32).reshape(10, 3))
    frame[("x", 1)] = "kept"
    for given in (frame, frame.iloc[:, :3]):
        scored = scorer.score(given, SUM, feed="x=0,1,2")
        assert list(scored.columns) == [*given.columns, "total"]
        assert scored["total"].to_list() == given[[0, 1, 2]].sum(axis=1).to_list()
        pd.testing.assert_frame_equal(scored[list(given.columns)], given)
    assert list(scorer.score(frame, SUM, feed="x=0,1,2", keep=["1"]).columns) == [1, "total"]


def test_column_labels_with_the_same_text_are_refused():
    frame = pd.DataFrame({1: [1.0], "1": [2.0], "c": [3.0]}).astype("float32")
    with pytest.raises(PreflightError, match="share"):
        scorer.score(frame, SUM, feed="x=1,1,c")


def test_two_columns_of_one_name_are_refused():
    frame = pd.DataFrame([[1.0, 2.0, 3.0, 4.0]], columns=["a", "b", "c", "a"]).astype("float32")
    with pytest.raises(PreflightError, match="share"):
        scorer.score(frame, NAMED)


def test_column_levels_are_refused_plainly():
    frame = pd.DataFrame({("l", "a"): [1.0], ("l", "b"): [2.0], ("m", "c"): [3.0]}).astype("float32")
    with pytest.raises(PreflightError, match="several levels"):
        scorer.score(frame, SUM)


@pytest.mark.parametrize("keep", ["all", "none", "text,id", ["a"]])
def test_keep_works_as_in_a_run(keep, frame, tmp_path):
    scored = scorer.score(frame, NAMED, keep=keep, prefix="p_")
    assert list(scored.columns) == through_files(frame, NAMED, tmp_path, keep=keep, prefix="p_").column_names
    assert scored["p_total"].to_list() == totals(frame)


def test_a_score_that_shares_a_name_is_refused():
    with pytest.raises(PreflightError, match="share a name") as caught:
        scorer.score(plain().assign(total=0), NAMED)
    assert "--prefix" in caught.value.problems[0].hint


def test_all_problems_are_reported_at_once():
    with pytest.raises(PreflightError) as caught:
        scorer.score(plain(), NAMED, feed="x=a,nope,c", fetch="nothing", keep="gone")
    text = str(caught.value)
    assert all(word in text for word in ("nope", "nothing", "gone"))


def bad_frame(backing):
    """Indices into a table of ten, three of them outside it; two nulls where they can be."""
    idx = pd.Series([*range(10), 10, 3, -11, 4, 99], dtype="int64", name="idx")
    frame = pd.DataFrame({"idx": idx, "word": [f"w{i}" for i in range(15)]}, index=pd.Index(range(100, 115), name="k"))
    if backing == "numpy":
        return frame.set_axis(range(100, 115)).assign(idx=idx.to_numpy())
    kind = pd.ArrowDtype(pa.int64()) if backing == "arrow" else "Int64"
    frame["idx"] = pd.array(idx, dtype=kind)
    frame.loc[[101, 114], "idx"] = None
    return frame


@pytest.mark.parametrize("backing", ["numpy", "arrow", "nullable"])
def test_bad_rows_are_returned_with_their_reasons(backing):
    frame = bad_frame(backing)
    scored, bad = scorer.score(frame, MODELS / "gather.onnx", errors="return", batch_rows=4)
    wrong = {110: "infer", 112: "infer", 114: "infer"} | ({} if backing == "numpy" else {101: "feed", 114: "feed"})
    assert dict(zip(bad.index, bad["_stage"], strict=True)) == wrong
    assert scored.index.to_list() == [i for i in frame.index if i not in wrong]
    assert scored.index.name == frame.index.name
    assert scored["value"].to_list() == [10.0 * i for i in scored["idx"]]
    assert list(bad.columns) == ["idx", "word", "_error", "_stage"]
    pd.testing.assert_frame_equal(bad[["idx", "word"]], frame.loc[bad.index])
    pd.testing.assert_frame_equal(scored[["idx", "word"]], frame.loc[scored.index])
    for index, reason in bad["_error"].items():
        assert ("null" if wrong[index] == "feed" else "idx") in reason
    whole = scorer.score(frame.loc[[103, 104]], MODELS / "gather.onnx")
    pd.testing.assert_series_equal(scored.dtypes, whole.dtypes)


def test_bad_rows_raise_an_error_that_names_one():
    frame = bad_frame("numpy")
    with pytest.raises(RunFailed, match="3 rows could not be scored") as caught:
        scorer.score(frame, MODELS / "gather.onnx")
    assert "110" in caught.value.where
    assert 'errors="return"' in caught.value.hint
    lazy = scorer.score(dd.from_pandas(frame, npartitions=15), MODELS / "gather.onnx")
    assert lazy.partitions[3].compute(scheduler="synchronous")["value"].to_list() == [30.0]
    with pytest.raises(RunFailed, match="1 row could not be scored") as caught:
        lazy.partitions[12].compute(scheduler="synchronous")
    assert "112" in caught.value.where


def test_nothing_bad_gives_an_empty_second_frame():
    scored, bad = scorer.score(plain(), NAMED, errors="return")
    assert len(scored) == ROWS
    assert len(bad) == 0
    assert list(bad.columns) == [*plain().columns, "_error", "_stage"]


def test_only_bad_rows_give_an_empty_first_frame():
    frame = pd.DataFrame({"idx": [10, 11, 12], "w": ["a", "b", "c"]})
    scored, bad = scorer.score(frame, MODELS / "gather.onnx", errors="return")
    assert list(scored.columns) == ["idx", "w", "value"]
    assert len(scored) == 0
    assert scored.dtypes["value"] == np.float32
    assert bad["w"].to_list() == ["a", "b", "c"]


def test_rows_with_the_same_index_label_are_distinguished():
    frame = pd.DataFrame({"idx": [1, 10, 2], "w": ["a", "b", "c"]}, index=["same"] * 3)
    scored, bad = scorer.score(frame, MODELS / "gather.onnx", errors="return")
    assert scored["w"].to_list() == ["a", "c"]
    assert scored["value"].to_list() == [10.0, 20.0]
    assert bad["w"].to_list() == ["b"]


def test_an_unknown_value_of_errors_is_refused():
    with pytest.raises(scorer.ScorerError, match="errors"):
        scorer.score(plain(), NAMED, errors="ignore")


def test_errors_can_be_returned_only_for_pandas():
    lazy = dd.from_pandas(bad_frame("numpy"), npartitions=2)
    with pytest.raises(scorer.ScorerError, match=r"errors|Dask"):
        scorer.score(lazy, MODELS / "gather.onnx", errors="return")


@pytest.mark.parametrize(
    "what", [[1, 2], {"a": [1.0]}, None, np.zeros((2, 3), np.float32), "in.parquet", pd.Series([1.0])], ids=type
)
def test_anything_but_a_frame_is_refused(what):
    with pytest.raises((scorer.ScorerError, TypeError), match=r"frame|DataFrame"):
        scorer.score(what, NAMED)


@pytest.mark.parametrize("backing", ["numpy", "arrow"])
@pytest.mark.parametrize("kind", ["pandas", "dask"])
def test_class_labels_become_columns_and_texts(kind, backing, tmp_path):
    frame = backed(plain(), backing).assign(d=lambda f: f["a"])
    given = frame if kind == "pandas" else dd.from_pandas(frame, npartitions=3)
    scored = scorer.score(given, MODELS / "zipmap.onnx", feed="x=a,b,c,d", batch_rows=64)
    scored = scored if kind == "pandas" else scored.compute(scheduler="synchronous")
    output = through_files(frame, MODELS / "zipmap.onnx", tmp_path, feed="x=a,b,c,d", batch_rows=64)
    assert list(scored.columns) == output.column_names
    assert set(scored["label"]) <= {"setosa", "versicolor", "virginica"}
    for name in ("label", "probabilities_setosa", "probabilities_versicolor", "probabilities_virginica"):
        assert scored[name].to_list() == output[name].to_pylist()


@pytest.mark.parametrize("backing", ["numpy", "arrow"])
def test_texts_in_and_texts_out(backing):
    frame = pd.DataFrame({"color": ["red", "blue", "pink"], "size": np.array([1, 2, 3], np.float32)})
    frame = (
        frame.convert_dtypes(dtype_backend="pyarrow").astype({"size": "float[pyarrow]"})
        if backing == "arrow"
        else frame
    )
    scored = scorer.score(frame, MODELS / "strings.onnx")
    assert scored["label"].to_list() == ["warm", "cool", "unknown"]
    assert scored["size_out"].to_list() == [2.0, 4.0, 6.0]
    if backing == "numpy":
        assert scored.dtypes["label"] == frame.dtypes["color"] == pd.StringDtype(na_value=np.nan)
    categories = frame.assign(color=frame["color"].astype("category"))
    assert scorer.score(categories, MODELS / "strings.onnx")["label"].to_list() == ["warm", "cool", "unknown"]


@pytest.mark.parametrize("dtype", ["str", object, "string", "string[pyarrow]", pd.ArrowDtype(pa.large_string())])
def test_a_missing_text_is_a_bad_row_and_never_the_word_none(dtype):
    frame = pd.DataFrame(
        {"color": pd.array(["red", None, "blue"], dtype=dtype), "size": np.array([1, 2, 3], np.float32)}
    )
    scored, bad = scorer.score(frame, MODELS / "strings.onnx", errors="return")
    assert scored["label"].to_list() == ["warm", "cool"]
    assert bad["_error"].to_list() == ["null in column 'color' (tensor 'color')"]


def test_a_vector_becomes_one_column_of_vectors():
    frame = plain(5)[["a", "b", "c"]].assign(d=np.float32(1))
    expected = oracle(MODELS / "wide_output.onnx", {"x": frame.to_numpy()})["embedding"]
    for given in (frame, frame.astype("float[pyarrow]")):
        scored = scorer.score(given, MODELS / "wide_output.onnx", by_position=True)
        assert np.stack(scored["embedding"].to_list()).astype(np.float32).tobytes() == expected.tobytes()


def free_width_model(path):
    """Adds up rows of any width."""
    floats = onnx.TensorProto.FLOAT
    graph = make_graph(
        [make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)],
        "free",
        [make_tensor_value_info("x", floats, ["N", "K"])],
        [make_tensor_value_info("y", floats, ["N"])],
        initializer=[from_array(np.array([1]), "axes")],
    )
    onnx.save_model(make_model(graph, ir_version=10, opset_imports=[make_opsetid("", 21)]), path)
    return path


@pytest.mark.parametrize("kind", ["pandas", "dask"])
@pytest.mark.parametrize("width", ["known", "free"])
def test_one_column_of_lists_can_be_fed(kind, width, tmp_path):
    lists = pd.array([[float(i), 1.0, 2.0] for i in range(20)], dtype=pd.ArrowDtype(pa.list_(pa.float32())))
    frame = pd.DataFrame({"v": lists, "id": range(20)})
    model = SUM if width == "known" else free_width_model(tmp_path / "free.onnx")
    feed = {"feed": "x=v", "keep": "id"}
    if (kind, width) == ("dask", "free"):  # a lazy frame has no row to measure
        with pytest.raises(ShapeMismatch, match="without computing"):
            scorer.score(dd.from_pandas(frame, npartitions=3), model, **feed)
        return
    if kind == "dask":
        scored = scorer.score(dd.from_pandas(frame, npartitions=3), model, **feed).compute(scheduler="synchronous")
    else:
        scored = scorer.score(frame, model, **feed)
    assert scored.iloc[:, -1].to_list() == [i + 3.0 for i in range(20)]


@pytest.mark.parametrize(("kind", "model"), [("int32", "int64_in"), ("bool", "bool_in"), ("float64", "float64")])
def test_other_number_types_are_converted_to_the_tensor_s(kind, model):
    if model == "bool_in":
        frame = pd.DataFrame({"flag": [True, False, True]})
        assert scorer.score(frame, MODELS / "bool_in.onnx")["negated"].to_list() == [False, True, False]
        return
    frame = pd.DataFrame({"p": [1, 2, 3], "q": [10, 20, 30]}).astype(kind)
    for given in (frame, frame.convert_dtypes(dtype_backend="numpy_nullable"), frame.astype(f"{kind}[pyarrow]")):
        scored = scorer.score(given, MODELS / f"{model}.onnx", feed="x=p,q")
        assert scored["y"].to_list() == [11, 22, 33]


@pytest.mark.parametrize("backing", ["numpy", "arrow", "nullable"])
def test_missing_floats_become_nan_and_large_ints_are_not_rounded(backing):
    frame = backed(plain(4), backing)
    frame.loc[1, "b"] = None
    scored = scorer.score(frame, NAMED)
    assert np.isnan(scored["total"].to_numpy(np.float32)).tolist() == [False, True, False, False]
    holes = frame.assign(b=pd.array([1, None, 3, 4], dtype="int64[pyarrow]" if backing == "arrow" else "Int64"))
    assert np.isnan(scorer.score(holes, NAMED)["total"].to_numpy(np.float32)).tolist() == [False, True, False, False]
    ints = pd.DataFrame({"a": [2**24 + 1, 5], "b": [0, 0], "c": [0, 0]})
    scored, bad = scorer.score(ints, NAMED, errors="return")
    assert scored["total"].to_list() == [5.0]
    assert "16777217" in bad["_error"].iloc[0]
    assert scorer.score(ints, NAMED, on_lossy="warn")["total"].to_list() == [2.0**24, 5.0]


def test_batches_count_from_the_first_row_of_each_partition():
    frame = pd.DataFrame({"p": np.arange(10, dtype=np.float32), "q": np.float32(0)})
    scored = scorer.score(dd.from_pandas(frame, npartitions=2), MODELS / "softmax0.onnx", feed="x=p,q", batch_rows=2)
    got = scored.compute(scheduler="synchronous")[["y_0", "y_1"]].to_numpy()
    expected = [oracle(MODELS / "softmax0.onnx", {"x": frame[at : at + 5].to_numpy()}, 2)["y"] for at in (0, 5)]
    assert got.tobytes() == np.concatenate(expected).tobytes()


def big_model(path, width=512):
    """Weights of a megabyte, so that a model in a graph would show."""
    floats = onnx.TensorProto.FLOAT
    weights = np.random.default_rng(1).standard_normal((width, width)).astype(np.float32)
    graph = make_graph(
        [make_node("MatMul", ["x", "w"], ["h"]), make_node("ReduceSum", ["h", "axes"], ["y"], keepdims=0)],
        "big",
        [make_tensor_value_info("x", floats, ["N", width])],
        [make_tensor_value_info("y", floats, ["N"])],
        initializer=[from_array(weights, "w"), from_array(np.array([1]), "axes")],
    )
    onnx.save_model(make_model(graph, ir_version=10, opset_imports=[make_opsetid("", 21)]), path)
    return path


def test_the_model_is_not_in_the_graph(tmp_path):
    import cloudpickle

    model = big_model(tmp_path / "big.onnx")
    assert model.stat().st_size > 1_000_000
    frame = pd.DataFrame(np.ones((20, 512), np.float32), columns=[f"f{i}" for i in range(512)])
    scored = scorer.score(Watched(frame, 4).lazy(), model, keep="none")
    for lazy in (scored, scored.optimize()):
        graph = dict(lazy.__dask_graph__())
        own = {key: task for key, task in graph.items() if "make" not in str(key)}
        assert len(cloudpickle.dumps(own)) < 100_000


def test_a_model_that_changed_after_the_graph_was_built_is_refused(tmp_path):
    model = tmp_path / "m.onnx"
    model.write_bytes(SUM.read_bytes())
    lazy = scorer.score(dd.from_pandas(plain(), npartitions=2), model, feed="x=a,b,c")
    model.write_bytes((MODELS / "external.onnx").read_bytes())
    scorer.release()
    with pytest.raises(scorer.ScorerError, match="not the one that was planned"):
        lazy.compute(scheduler="synchronous")


def test_a_model_is_loaded_once_and_released_on_request():
    scorer.release()
    made = SESSIONS.made
    for _ in range(3):
        scorer.score(plain(), NAMED)
    lazy = scorer.score(dd.from_pandas(plain(), npartitions=5), NAMED)
    lazy.compute(scheduler="threads")
    assert SESSIONS.made == made + 1
    (future,) = SESSIONS._sessions.values()
    session = weakref.ref(future.result())
    del future, lazy
    scorer.release()
    gc.collect()
    assert session() is None
    scorer.score(plain(), NAMED)
    assert SESSIONS.made == made + 2


@pytest.mark.slow
def test_processes_score_a_frame_too():
    frame = plain()
    lazy = scorer.score(dd.from_pandas(frame, npartitions=4), NAMED, keep=["id"])
    with (
        scorer.connect(cluster="processes", workers=2, threads=1) if hasattr(scorer, "connect") else cluster() as client
    ):
        scored = client.compute(lazy).result()
    assert scored["id"].to_list() == list(range(ROWS))
    assert scored["total"].to_list() == totals(frame)


def cluster():
    """Two worker processes on this machine."""
    from distributed import Client

    return Client(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", worker_dashboard_address="127.0.0.1:0"
    )


def test_nothing_warns(frame):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scorer.score(frame, NAMED)
        scorer.score(dd.from_pandas(frame, npartitions=2), NAMED).compute(scheduler="synchronous")
        scorer.score(frame.iloc[:0], NAMED)
        more = pd.DataFrame(0, index=frame.index, columns=[f"more{i}" for i in range(200)])
        wide = pd.concat([frame, more], axis=1)  # pandas warns of fragments beyond a hundred
        scorer.score(wide, NAMED)
        scorer.score(frame.astype({"a": "float32"}), MODELS / "lying.onnx", feed="x=a,b")
