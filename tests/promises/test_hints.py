"""Hints name what exists: columns of the right type, real numbers, and lines that can be pasted."""

from __future__ import annotations

import shlex
import subprocess
import sys

import numpy as np
import onnx
import pyarrow as pa
import pytest
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from support.runs import MODELS, cli, write

import scorer
from scorer.display.tables import table
from scorer.display.words import cut

KINDS = onnx.TensorProto
COLUMNS = {
    "id": [1, 2], "word": ["a", "b"], "a": [1.0, 2.0], "flag": [True, False], "price": [1.0, 2.0],
    "count": pa.array([1, 2], pa.int32()), "b": [1.0, 2.0],
}  # fmt: skip


@pytest.fixture
def at(tmp_path, monkeypatch):
    write(tmp_path / "in.parquet", COLUMNS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def model(*names, kind=KINDS.FLOAT, shape=("N", 2)):
    """Write m.onnx with an input for each name; every output is an input as it is."""
    inputs = [make_tensor_value_info(name, kind, shape) for name in names]
    outputs = [make_tensor_value_info(f"y_{name}", kind, None) for name in names]
    nodes = [make_node("Identity", [name], [f"y_{name}"]) for name in names]
    proto = make_model(make_graph(nodes, "g", inputs, outputs), ir_version=10, opset_imports=[make_opsetid("", 21)])
    onnx.save(proto, "m.onnx")


def problems(*flags):
    """Return the problems of a plan."""
    options = dict(zip(flags[::2], flags[1::2], strict=True))
    return scorer.prepare("in.parquet", "m.onnx", "out", **options).problems


@pytest.mark.parametrize(
    ("kind", "width", "found", "hint"),
    [
        (KINDS.STRING, 1, "1 text column ('word')", "--feed 'x=word'"),
        (KINDS.STRING, 3, "1 text column ('word')", "--feed 'x=COLUMN,...' with 3 columns"),
        (KINDS.INT32, 2, "2 integer columns ('id', 'count')", "--feed 'x=id,count'"),
        (KINDS.UINT8, 2, "2 integer columns ('id', 'count')", "--feed 'x=id,count'"),
        (KINDS.BOOL, 1, "1 boolean column ('flag')", "--feed 'x=flag'"),
        (KINDS.FLOAT, 4, "3 float columns ('a', 'price', 'b')", "--feed 'x=COLUMN,...' with 4 columns"),
    ],
)
def test_the_hint_names_columns_of_the_tensors_type(at, kind, width, found, hint):
    model("x", kind=kind, shape=("N", width))
    (problem,) = problems()
    assert problem.found.startswith(found)
    assert problem.hint.startswith(hint)


def test_texts_for_a_number_tensor_are_categories_or_need_a_transform(at):
    model("x", shape=("N", 1))
    (problem,) = problems("feed", "x=word")
    assert problem.hint.startswith(
        "--feed 'x=word|vocab(a, b, c)' for categories, --transform for texts that are numbers"
    )


def test_a_wide_tensor_is_fed_by_a_list_or_a_range_or_a_transform(at):
    model("x", shape=("N", 2048))
    (problem,) = problems()
    assert problem.hint.startswith("--feed 'x=COLUMN' with one list column, or with 2048 columns as a range")
    assert problem.hint.endswith("--transform")


@pytest.mark.parametrize(
    ("kind", "values", "hint"),
    [(KINDS.STRING, ["a", None], "--on-null 'x=unknown'"), (KINDS.INT64, [1, None], "--on-null 'x=0'")],
)
def test_the_constant_for_nulls_has_the_type_of_the_tensor_and_works(at, kind, values, hint):
    model("x", kind=kind, shape=("N",))
    write(at / "in.parquet", {"x": values})
    (problem,) = problems()
    assert problem.hint.startswith(f"{hint} (or another constant), ")
    assert not problems("on_null", shlex.split(hint)[1])


def test_inspect_shows_what_feeds_the_other_inputs_if_one_has_no_column(at):
    model("a", "day", "price", shape=("N", 1))
    code, text, said = cli("inspect", "m.onnx", "--input", "in.parquet")
    assert code == 3
    assert "no column has the name of input 'day'" in said
    rows = [line.split() for line in text.partition("chosen")[2].splitlines()]
    assert ["a", "float32", "[N,", "1]", "a", "by", "name"] in rows
    assert ["day", "float32", "[N,", "1]", "no", "match"] in rows
    lines = [line.strip() for line in text.partition("to paste")[2].splitlines() if "--feed" in line]
    assert lines == ["--feed 'a=a'", "--feed 'price=price'", "--feed 'day=COLUMN'"]
    flags = shlex.split(" ".join(lines).replace("COLUMN", "count"))
    assert cli("plan", "in.parquet", "--model", "m.onnx", *flags)[0] == 0


def test_a_colon_in_place_of_the_equals_sign_is_one_problem_with_the_line_to_paste(at):
    model("x")
    (problem,) = problems("feed", "x:a,price")
    assert problem.hint == "--feed 'x=a,price', with = in place of the colon"


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("mean=(0.5,0.4,0.3)", "write mean=0.5 0.4 0.3"), ("std=[0.5, 0.4]", "write std=0.5 0.4"),
        ("size=2x2, mean=0.5,0.4", "write mean=0.5 0.4"),
    ],
)  # fmt: skip
def test_a_setting_with_several_values_is_not_blamed_on_brackets_that_are_closed(at, setting, hint):
    model("x", shape=("N", 3, 2, 2))
    (problem,) = problems("feed", f"x=word|image({setting})")
    assert problem.hint == hint


def test_one_tokenizer_that_is_missing_is_one_problem_for_all_token_tensors(at):
    pytest.importorskip("tokenizers")
    model("input_ids", "attention_mask", "token_type_ids", kind=KINDS.INT64, shape=("N", "T"))
    (problem,) = problems("feed", "input_ids=word|text(gone.json)")
    assert "gone.json" in str(problem)


def test_the_summary_of_bad_rows_shows_numbers_and_no_placeholders(tmp_path):
    source = write(tmp_path / "in.parquet", {"idx": [*range(10), 51, 52, 53]})
    code, _, said = cli("run", source, "--model", MODELS / "gather.onnx", "--output", tmp_path / "out")
    assert code == 1
    assert "3 x Gather" in said
    assert " (or other numbers)" in said
    assert "idx=51 must be within the inclusive range [-10,9]" in said
    assert "N must be within" not in said


@pytest.mark.parametrize("limit", [10, 20, 50, 200])
def test_a_long_text_is_cut_between_words(limit):
    text = "the quick brown fox jumps over the lazy dog " * 9
    short = cut(text, limit)
    assert len(short) <= limit + 3
    assert short.endswith("...")
    assert text.startswith(short[:-3] + " ")
    assert cut("x" * 300, limit) == "x" * limit + "..."
    assert cut("short", limit) == "short"


def test_each_line_to_paste_of_inspect_is_a_command_line(at):
    model("x", shape=("N", 200))
    write(at / "wide.parquet", {f"f{i}": np.zeros(2, np.float32) for i in range(200)})
    text = cli("inspect", "m.onnx")[1]
    lines = [line.strip() for line in text.partition("to paste")[2].splitlines() if "--" in line]
    flags = [word for line in lines for word in shlex.split(line, comments=True)]
    assert flags[:2] == ["--feed", "x=f0..f199"]
    code, _, said = cli("plan", "wide.parquet", "-m", "m.onnx", *flags)
    assert code == 0, said


def test_a_long_formula_for_the_size_of_a_dimension_is_cut(at):
    formula = "floor(height/2 - 1/2)*floor(width/2 - 1/2) + floor(height/4 - 1/2)*floor(width/4 - 1/2)"
    model("x", shape=("N", formula))
    text = cli("inspect", "m.onnx")[1]
    assert "[N, floor(height/2 - 1/2)*floor(width/2 -...]" in text
    assert formula in cli("inspect", "m.onnx", "--json")[1]


def test_a_table_outside_a_window_is_120_letters_wide_and_breaks_no_word():
    long = "x" * 130
    lines = table(("a", "b"), [("one " * 40, "two " * 40), (long, "")])
    assert max(map(len, table(("a", "b"), [("one " * 40, "two " * 40)]))) <= 120
    assert any(long in line for line in lines)


def test_doctor_names_the_extras_that_are_missing():
    hide = (
        "import importlib.metadata as m; old = m.distribution\n"
        "def hidden(name):\n"
        "    if name in {'tokenizers', 'pillow', 'obstore'}: raise m.PackageNotFoundError(name)\n"
        "    return old(name)\n"
        "m.distribution = hidden\n"
        "from scorer.cli.main import main; main(['doctor'])\n"
    )
    shown = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, check=False).stdout
    assert "text(...) needs tokenizers: pip install 'dask-scorer[text]'" in " ".join(shown.split())
    assert "image(...) needs Pillow: pip install 'dask-scorer[image]'" in " ".join(shown.split())
    assert "s3://, gs://, az:// and https:// need obstore: pip install 'dask-scorer[store]'" in " ".join(shown.split())
    assert "nothing is missing" not in shown


def test_the_repr_of_a_report_is_one_line(tmp_path):
    source = write(tmp_path / "in.parquet", {f"f{i}": [0.5, 1.5] for i in range(28)})
    report = scorer.run(source, MODELS / "dense28.onnx", tmp_path / "out", cluster="synchronous")
    assert repr(report) == f"<Report of {tmp_path / 'out'}: 2 rows in = 2 scored + 0 quarantined + 0 filtered>"
    assert "stages" in str(report) or "output" in str(report)
