"""A frame, bytes or another object where a path belongs: the error names its type and what to pass instead."""

from __future__ import annotations

from pathlib import Path

import dask.dataframe as dd
import onnx
import onnxruntime as ort
import pandas as pd
import pyarrow as pa
import pytest
from support.runs import MODELS, write

import scorer
from scorer.errors import OptionsError, PreflightError

SUM = MODELS / "sum3.onnx"
FRAME = pd.DataFrame({"year": [1.0], "b": [2.0], "c": [3.0]})
TABLE = pa.Table.from_pandas(FRAME)
MODEL = SUM.read_bytes()


def refused(function, *arguments, **options):
    """Return the one error about an option."""
    with pytest.raises((PreflightError, OptionsError)) as refusal:
        function(*arguments, **options)
    problems = getattr(refusal.value, "problems", (refusal.value,))
    assert [type(problem) for problem in problems] == [OptionsError]
    assert refusal.value.exit_code == 2
    return problems[0]


@pytest.mark.parametrize("function", [scorer.run, scorer.prepare])
@pytest.mark.parametrize(
    ("value", "found", "hint"),
    [
        (FRAME, "a pandas DataFrame", "call scorer.score(frame, model)"),
        (dd.from_pandas(FRAME, npartitions=1), "a dask DataFrame", "call scorer.score(frame, model)"),
        (TABLE, "a pyarrow Table", "call scorer.score(frame, model)"),
        (TABLE.to_batches()[0], "a pyarrow RecordBatch", "write it to Parquet"),
        ([FRAME], "a list with a pandas DataFrame", "call scorer.score(frame, model)"),
        ({"a": 1}, "{'a': 1}", "pass a path"),
        ({"a.parquet"}, "a set", "pass a path"),
        (b"PAR1", "4 bytes", "pass a path"),
        (3, "3", "pass a path"),
        (None, "None", "pass a path"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_input_that_is_no_path_is_refused_by_its_type(function, value, found, hint, tmp_path):
    problem = refused(function, value, SUM, tmp_path / "out")
    assert problem.what == "the value of 'input' is not valid"
    assert problem.expected == "a path or a list of paths: str or pathlib.Path"
    assert problem.found == found
    assert hint in problem.hint
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("function", ["run", "prepare", "score", "inspect_model"])
@pytest.mark.parametrize(
    ("value", "found", "hint"),
    [
        (MODEL, f"{len(MODEL)} bytes", "write_bytes"),
        (bytearray(MODEL), f"{len(MODEL)} bytes", "write_bytes"),
        (memoryview(MODEL), f"{len(MODEL)} bytes", "write_bytes"),
        (onnx.load(SUM), "an onnx ModelProto", "onnx.save"),
        (ort.InferenceSession(SUM), "an onnxruntime InferenceSession", "pass a path"),
        (FRAME, "a pandas DataFrame", "pass a path"),
        (None, "None", "pass a path"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_model_that_is_no_path_is_refused_by_its_type_and_not_printed(function, value, found, hint, tmp_path):
    source = write(tmp_path / "in.parquet", TABLE)
    first = {"run": [source], "prepare": [source], "score": [FRAME], "inspect_model": []}[function]
    problem = refused(getattr(scorer, function), *first, value)
    assert problem.what == "the value of 'model' is not valid"
    several = "" if function == "inspect_model" else ", or a dict of several by name"
    assert problem.expected == f"a path: a str or a pathlib.Path{several}"
    assert problem.found == found
    assert hint in problem.hint


@pytest.mark.parametrize("name", ["output", "work_dir", "ort_library", "scheduler_file"])
def test_bytes_for_another_path_are_refused_and_not_printed(name, tmp_path):
    problem = refused(scorer.prepare, tmp_path / "in.parquet", SUM, **{name: b"secret"})
    assert (problem.where, problem.expected) == (name, "a path: a str or a pathlib.Path")
    assert problem.found == "6 bytes"
    assert f"{name}=" in problem.hint


def test_an_open_file_is_refused_by_its_type(tmp_path):
    source = write(tmp_path / "in.parquet", TABLE)
    with source.open("rb") as file:
        assert refused(scorer.prepare, file, SUM).found == "a BufferedReader"


def test_text_paths_and_lists_of_both_are_taken(tmp_path):
    source = write(tmp_path / "in.parquet", TABLE)
    for value in (source, str(source), [source], (str(source),), (path for path in [source])):
        assert scorer.prepare(value, str(SUM), tmp_path / "out", feed="x=year,b,c").check().rows == 1
    assert scorer.inspect_model(str(SUM)) == scorer.inspect_model(Path(SUM))
