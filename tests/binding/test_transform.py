"""The user's function computes columns from columns: in worker processes, with the same rows; only bad rows fail."""

from __future__ import annotations

import functools
import importlib
import json
import sys

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs import BACKENDS, MODELS, cli, command

import scorer
from scorer.errors import PreflightError

SOURCE = """
import pandas as pd


def features(frame):
    minutes = frame["at"].dt.hour * 60 + frame["at"].dt.minute
    length = frame["word"].str.len().astype("float32")
    return pd.DataFrame({"a": minutes.astype("float32"), "b": frame["x"] * 2, "c": length})


def changes_texts(frame):
    return features(frame.assign(word=frame["word"].str.upper()))


def fails_on_seven(frame):
    if (frame["id"] % 50 == 7).any():
        raise ValueError("seven is not allowed")
    return features(frame)


def drops(frame):
    return features(frame).iloc[1:]


def turns(frame):
    return features(frame).iloc[::-1]


def gives_no_frame(frame):
    return 5


def always_fails(frame):
    raise KeyError("no")


def where_it_runs(frame):
    import os

    return pd.DataFrame({"a": [float(os.getpid())] * len(frame), "b": 0.0, "c": 0.0})


def of_an_order(frame):
    days = (pd.Timestamp("2026-01-01") - pd.to_datetime(frame["signup date"])).dt.days
    channel = pd.Categorical(frame["channel"], ["web", "app", "shop"]).codes
    price = pd.to_numeric(frame["price"], errors="coerce").astype("Float32")
    return pd.DataFrame({"a": price, "b": channel.astype("float32"), "c": days.astype("float32")})


number = 3
"""
ROWS = 400


@pytest.fixture
def place(tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)
    rng = np.random.default_rng(5)
    table = pa.table({
        "id": np.arange(ROWS),
        "at": pa.array(rng.integers(0, 10**9, ROWS), pa.timestamp("s")),
        "x": rng.standard_normal(ROWS).astype(np.float32),
        "word": [("ab" * (i % 9)) or None for i in range(ROWS)],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=90)
    return tmp_path


def arguments(function, fed="x=a,b,c"):
    return ("run", "in.parquet", "--model", MODELS / "sum3.onnx", "--feed", fed, "--transform", f"mine:{function}",
            "--output", "out", "--quiet")  # fmt: skip


def run(place, function, *flags):
    done = command(*arguments(function), *flags, cwd=place)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def here(place, monkeypatch):
    """The place as the current folder, from which modules are imported."""
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    yield place
    sys.modules.pop("mine", None)


def expected(table):
    at = np.array(table["at"].to_pylist())
    a = np.array([t.hour * 60 + t.minute for t in at], np.float32)
    b = table["x"].to_numpy() * 2
    c = np.array([np.nan if w is None else len(w) for w in table["word"].to_pylist()], np.float32)
    session = ort.InferenceSession(MODELS / "sum3.onnx")
    return session.run(None, {"x": np.stack([a, b, c], axis=1).astype(np.float32)})[0]


@pytest.mark.parametrize("flags", [(), ("--cluster", "embedded"), ("--cluster", "synchronous")])
def test_what_the_function_gives_is_fed_and_the_input_is_kept(place, flags):
    code, _, text = run(place, "features", *flags)
    assert (code, text) == (0, "")
    source, got = pq.read_table(place / "in.parquet"), pq.read_table(place / "out")
    assert got.select(source.column_names).equals(source)
    score = got.drop_columns(source.column_names).column(0).to_numpy()
    assert np.array_equal(score, expected(source).reshape(-1), equal_nan=True)


@pytest.mark.parametrize(
    ("function", "kind"),
    [("changes_texts", pa.string()), ("features", pa.dictionary(pa.int32(), pa.string()))],
    ids=["the function cannot decode it", "pandas cannot hold it"],
)
def test_a_text_that_is_not_utf8_is_the_only_bad_row(place, function, kind):
    source = pq.read_table(place / "in.parquet")
    words = source["word"].cast(pa.binary()).to_pylist()
    words[123] = b"gr\xe9n"
    encoded = pa.array(words, pa.binary())
    texts = pa.Array.from_buffers(pa.string(), ROWS, encoded.buffers(), encoded.null_count)
    texts = texts.dictionary_encode() if pa.types.is_dictionary(kind) else texts
    pq.write_table(source.set_column(source.column_names.index("word"), "word", texts), place / "in.parquet")
    code, _, text = run(place, function, "--max-bad-rows", "1", "--keep", "id", "--cluster", "embedded")
    assert code == 0, text
    quarantine = pq.read_table(place / "out.scorer" / "quarantine")
    assert quarantine.select(["id", "_stage", "_row"]).to_pylist() == [{"id": 123, "_stage": "transform", "_row": 123}]
    assert "UTF" in quarantine["_error"][0].as_py()
    good = source.filter(pa.array([row != 123 for row in range(ROWS)]))
    got = pq.read_table(place / "out")
    assert got["id"].to_pylist() == good["id"].to_pylist()
    assert np.array_equal(got.column(1).to_numpy(), expected(good).reshape(-1), equal_nan=True)


@pytest.mark.slow
def test_it_runs_in_worker_processes_by_default(place):
    assert run(place, "features", "--json")[0] == 0
    report = json.loads((place / "out.scorer" / "report.json").read_text())
    assert report["worker_peak_bytes"]
    assert "cluster" not in report["asked"]


def test_a_row_for_which_it_raises_is_the_only_bad_row(place):
    code, _, _ = run(place, "fails_on_seven", "--max-bad-rows", "8", "--cluster", "embedded")
    assert code == 0
    bad = [row for row in range(ROWS) if row % 50 == 7]
    quarantine = pq.read_table(place / "out.scorer" / "quarantine")
    assert sorted(quarantine["id"].to_pylist()) == bad
    assert set(quarantine["_stage"].to_pylist()) == {"transform"}
    assert "seven is not allowed" in quarantine["_error"][0].as_py()
    source, got = pq.read_table(place / "in.parquet"), pq.read_table(place / "out")
    assert got["id"].to_pylist() == [row for row in range(ROWS) if row not in bad]
    good = source.filter(pa.array([row not in bad for row in range(ROWS)]))
    score = got.drop_columns(source.column_names).column(0).to_numpy()
    assert np.array_equal(score, expected(good).reshape(-1), equal_nan=True)


@pytest.mark.parametrize(
    ("function", "code", "words"),
    [
        ("nothing", 2, ["cannot be imported", "AttributeError", "package.module:function"]),
        ("number", 2, ["is not a function", "int"]),
        ("drops", 3, ["result cannot be used", "255 rows for 256"]),
        ("turns", 3, ["result cannot be used", "another order"]),
        ("gives_no_frame", 3, ["result cannot be used", "int"]),
        ("always_fails", 3, ["fails for every row", "KeyError"]),
    ],
)
def test_an_unusable_function_is_refused_before_the_start(here, function, code, words):
    found, _, text = cli(*arguments(function))
    assert "Traceback" not in text
    assert all(word in text for word in words), text
    assert found == code
    assert not (here / "out").exists()
    assert not (here / "out.scorer").exists()


def test_a_column_that_it_does_not_give_is_refused_with_what_it_gives(here):
    code, _, text = cli(*arguments("features", fed="x=a,b,zz"))
    assert code == 3
    assert "'zz'" in text
    assert "'a', 'b', 'c'" in text


@pytest.mark.slow
def test_an_unfinished_run_is_not_finished_with_another_function(place):
    assert run(place, "fails_on_seven")[0] == 1
    (place / "mine.py").write_text(SOURCE.replace("* 2", "* 3"))
    code, _, text = run(place, "fails_on_seven", "--max-bad-rows", "8")
    assert code == 3
    assert "another request" in text


@pytest.mark.slow
def test_a_number_as_text_a_category_and_a_date_feed_one_tensor(place):
    days = pa.array([20_000 + i % 400 for i in range(ROWS)], pa.int32()).cast(pa.date32())
    prices = ["n/a" if i == 7 else str(i / 4) for i in range(ROWS)]
    channels = [["web", "app", "shop", None][i % 4] for i in range(ROWS)]
    pq.write_table(pa.table({"price": prices, "channel": channels, "signup date": days}), place / "in.parquet")
    code, _, text = run(place, "of_an_order", "--fetch", "total=score")
    assert (code, text) == (0, "")
    price = np.array([np.nan if i == 7 else i / 4 for i in range(ROWS)], np.float32)
    channel = np.array([[0, 1, 2, -1][i % 4] for i in range(ROWS)], np.float32)
    since = np.array([20_454 - 20_000 - i % 400 for i in range(ROWS)], np.float32)
    session = ort.InferenceSession(MODELS / "sum3.onnx")
    wanted = session.run(None, {"x": np.stack([price, channel, since], axis=1)})[0]
    assert np.array_equal(pq.read_table(place / "out")["score"].to_numpy(), wanted.reshape(-1), equal_nan=True)


# In Python


@pytest.mark.parametrize("cluster", BACKENDS)
def test_a_function_of_a_module_is_taken_as_its_name(here, cluster):
    function = importlib.import_module("mine").features
    given = scorer.prepare("in.parquet", MODELS / "sum3.onnx", "out", transform=function, feed="x=a,b,c")
    named = scorer.prepare("in.parquet", MODELS / "sum3.onnx", "out", transform="mine:features", feed="x=a,b,c")
    assert given.options.binding.transform == "mine:features"
    assert given.frozen.request_hash == named.frozen.request_hash
    scorer.run("in.parquet", MODELS / "sum3.onnx", "out", transform=function, feed="x=a,b,c", cluster=cluster)
    source, got = pq.read_table("in.parquet"), pq.read_table("out")
    score = got.drop_columns(source.column_names).column(0).to_numpy()
    assert np.array_equal(score, expected(source).reshape(-1), equal_nan=True)


class Callable:
    def __call__(self, frame):
        return frame

    def method(self, frame):
        return frame


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: lambda frame: frame, "a lambda"),
        (Callable, "an object of type Callable, not a function of a module"),
        (lambda: Callable().method, "an object of type method, not a function of a module"),
        (lambda: functools.partial(print, 1), "an object of type partial, not a function of a module"),
    ],
)
def test_a_function_that_another_process_cannot_import_is_refused(here, make, found):
    with pytest.raises(PreflightError, match="the value of 'transform' is not valid") as caught:
        scorer.run("in.parquet", MODELS / "sum3.onnx", "out", transform=make())
    (problem,) = caught.value.problems
    assert problem.expected == "a function of a module, or its name as package.module:function"
    assert problem.found == found
    assert problem.hint == 'put the function into a module, such as features.py, and pass transform="features:NAME"'
    assert not (here / "out").exists()


def test_a_local_function_and_one_of_the_session_are_refused_by_their_names(here, monkeypatch):
    def local(frame):
        return frame

    with pytest.raises(PreflightError) as caught:
        scorer.run("in.parquet", MODELS / "sum3.onnx", "out", transform=local)
    where = "test_a_local_function_and_one_of_the_session_are_refused_by_their_names"
    assert caught.value.problems[0].found == f"the function 'local' inside {where!r}"
    main = sys.modules["__main__"]
    exec("def of_the_session(frame):\n    return frame\n", main.__dict__)
    monkeypatch.setattr(main.of_the_session, "__module__", "__main__")
    with pytest.raises(PreflightError) as caught:
        scorer.run("in.parquet", MODELS / "sum3.onnx", "out", transform=main.of_the_session)
    assert caught.value.problems[0].found == "the function 'of_the_session' of '__main__'"
