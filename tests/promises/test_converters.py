"""Whole runs through converters: a row's score does not depend on the other rows of its batch."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto as T
from onnx import helper
from PIL import Image
from support.runs import cli, read, write
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3} | {letter: i + 4 for i, letter in enumerate("abcdefgh")}
LONG = "a b c d e f g h"


def model(path, nodes, inputs, outputs, weights=()):
    graph = helper.make_graph(
        [helper.make_node(kind, given, gives, **more) for kind, given, gives, more in nodes], "g",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(*one) for one in outputs],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in weights],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def echo(tmp_path):
    """A model that returns its token ids as floats."""
    nodes = [("Cast", ["input_ids"], ["out"], {"to": T.FLOAT})]
    return model(tmp_path / "echo.onnx", nodes, [("input_ids", T.INT64, ["N", "T"])], [("out", T.FLOAT, ["N", "T"])])


@pytest.fixture
def short(tmp_path):
    """A model with eight positions, as an encoder has 512."""
    nodes = [
        ("Shape", ["input_ids"], ["s"], {}), ("Gather", ["s", "one"], ["t"], {}),
        ("Range", ["zero", "t", "step"], ["r"], {}), ("Gather", ["table", "r"], ["p"], {}),
        ("Cast", ["input_ids"], ["f"], {"to": T.FLOAT}), ("Add", ["f", "p"], ["out"], {}),
    ]  # fmt: skip
    known = [("one", np.int64(1)), ("zero", np.int64(0)), ("step", np.int64(1)), ("table", np.zeros(8, np.float32))]
    shape = ["N", "T"]
    return model(tmp_path / "short.onnx", nodes, [("input_ids", T.INT64, shape)], [("out", T.FLOAT, shape)], known)


def tokenizer(path, *, side="right"):
    made = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_padding(direction=side, pad_id=0, pad_token="[PAD]")
    made.save(str(path))
    return path


def ids(text):
    return [2, *(WORDS[word] for word in text.split()), 3]


def run(tmp_path, source, model, *flags):
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    shutil.rmtree(tmp_path / "out.scorer", ignore_errors=True)
    sources = source if isinstance(source, list) else [source]
    return cli("run", *sources, "--model", model, "--output", tmp_path / "out", "--quiet", *flags)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("batch_rows", [1, 3, 64])
def test_a_text_gives_the_same_tokens_whatever_else_is_in_its_batch(side, batch_rows, echo, tmp_path):
    texts = ["a b c d", "a", "b c", LONG, "", None, "h g", "c"]
    source = write(tmp_path / "in.parquet", {"text": texts}, row_group_size=3)
    tokenizer(tmp_path / "tok.json", side=side)
    flags = ["--feed", f"input_ids=text|text({tmp_path}/tok.json)", "--max-bad-rows", 1, "--batch-rows", batch_rows]
    code, _, error = run(tmp_path, source, echo, *flags)
    assert (code, error) == (0, "")
    out = read(tmp_path / "out")
    assert out["out"].to_pylist() == [ids(text) for text in out["text"].to_pylist()]
    assert out["text"].to_pylist() == [text for text in texts if text is not None]


def test_a_text_too_long_for_the_model_costs_only_itself(short, tmp_path):
    texts = ["a b"] * 40 + [LONG] + ["c"] * 40
    source = write(tmp_path / "in.parquet", {"text": texts})
    tokenizer(tmp_path / "tok.json")
    code, _, error = run(
        tmp_path, source, short, "--feed", f"input_ids=text|text({tmp_path}/tok.json)", "--max-bad-rows", 1
    )
    assert (code, error) == (0, error)
    out = read(tmp_path / "out")
    assert [text for text in texts if text != LONG] == out["text"].to_pylist()
    assert out["out"].to_pylist() == [ids(text) for text in out["text"].to_pylist()]


@pytest.mark.parametrize("texts", [["a b"] * 300 + ["a b c"] * 100, ["a b"], []])
def test_texts_may_be_longer_than_all_sampled_ones(texts, echo, tmp_path):
    source = write(tmp_path / "in.parquet", pa.table({"text": pa.array(texts, pa.string())}))
    tokenizer(tmp_path / "tok.json")
    code, _, _ = run(tmp_path, source, echo, "--feed", f"input_ids=text|text({tmp_path}/tok.json)")
    assert code == 0
    out = read(tmp_path / "out")
    assert out.schema.field("out").type == pa.list_(pa.field("item", pa.float32(), nullable=False))
    assert out["out"].to_pylist() == [ids(text) for text in texts]


def test_the_give_argument_applies_only_to_its_tensor(tmp_path):
    nodes = [("Cast", [name], [f"{name}_out"], {"to": T.FLOAT}) for name in ("input_ids", "attention_mask")]
    names = ("input_ids", "attention_mask")
    both = model(tmp_path / "m.onnx", nodes, [(n, T.INT64, ["N", "T"]) for n in names],
                 [(f"{n}_out", T.FLOAT, ["N", "T"]) for n in names])  # fmt: skip
    source = write(tmp_path / "in.parquet", {"text": ["a", "b c"]})
    tokenizer(tmp_path / "tok.json")
    assert run(tmp_path, source, both, "--feed", f"input_ids=text|text({tmp_path}/tok.json, give=ids)")[0] == 0
    assert read(tmp_path / "out")["attention_mask_out"].to_pylist() == [[1] * 3, [1] * 4]


def test_outputs_that_follow_the_lengths_of_two_text_columns_are_refused(tmp_path):
    nodes = [("Cast", [name], [f"{name}_out"], {"to": T.FLOAT}) for name in "qp"]
    both = model(tmp_path / "m.onnx", nodes, [("q", T.INT64, ["N", "T"]), ("p", T.INT64, ["N", "U"])],
                 [("q_out", T.FLOAT, ["N", "T"]), ("p_out", T.FLOAT, ["N", "U"])])  # fmt: skip
    source = write(tmp_path / "in.parquet", {"q": ["a", "b c", "a b c"], "p": ["a b c", "a b", "a"]})
    tokenizer(tmp_path / "tok.json")
    flags = [flag for name in "qp" for flag in ("--feed", f"{name}={name}|text({tmp_path}/tok.json)")]
    code, _, error = run(tmp_path, source, both, *flags)
    assert code == 3
    assert "changes its shape with the length of the texts" in error


@pytest.mark.parametrize("axes", [["N", "T", "T"], ["N", 3, "T"]])
def test_an_output_that_grows_on_another_axis_is_refused(axes, tmp_path):
    give = [("Unsqueeze", ["f", "one"], ["u"], {}), ("Expand", ["u", "shape"], ["out"], {})]
    shape = [
        ("Shape", ["input_ids"], ["s"], {}),
        ("Gather", ["s", "zero"], ["n"], {}),
        ("Gather", ["s", "one"], ["t"], {}),
    ]
    middle = [("Concat", ["n", "t" if axes[1] == "T" else "three", "t"], ["shape"], {"axis": 0})]
    grown = model(tmp_path / "m.onnx", [("Cast", ["input_ids"], ["f"], {"to": T.FLOAT}), *shape, *middle, *give],
                  [("input_ids", T.INT64, ["N", "T"])], [("out", T.FLOAT, axes)],
                  [("one", np.array([1])), ("zero", np.array([0])), ("three", np.array([3]))])  # fmt: skip
    source = write(tmp_path / "in.parquet", {"text": ["a", "b c", "a b c"]})
    tokenizer(tmp_path / "tok.json")
    code, _, error = run(tmp_path, source, grown, "--feed", f"input_ids=text|text({tmp_path}/tok.json)")
    assert code == 3
    assert "changes its shape with the length of the texts" in error


def test_null_texts_become_the_text_of_on_null(echo, tmp_path):
    source = write(tmp_path / "in.parquet", {"text": ["a", None]})
    tokenizer(tmp_path / "tok.json")
    feed = ["--feed", f"input_ids=text|text({tmp_path}/tok.json)"]
    assert run(tmp_path, source, echo, *feed, "--on-null", "input_ids=b c")[0] == 0
    assert read(tmp_path / "out")["out"].to_pylist() == [ids("a"), ids("b c")]
    assert run(tmp_path, source, echo, *feed, "--on-null", "nan")[0] == 3


def test_relative_picture_paths_in_several_folders_are_refused(tmp_path):
    light = model(tmp_path / "m.onnx", [("ReduceMean", ["x"], ["out"], {"axes": [1, 2, 3]})],
                  [("x", T.FLOAT, ["N", 3, 2, 2])], [("out", T.FLOAT, ["N", 1, 1, 1])])  # fmt: skip
    sources = []
    for name, grey in (("one", 10), ("two", 250)):
        (tmp_path / name / "img").mkdir(parents=True)
        Image.new("RGB", (2, 2), (grey,) * 3).save(tmp_path / name / "img" / "1.png")
        sources.append(write(tmp_path / name / "in.parquet", {"path": ["img/1.png"]}))
    feed = ["--feed", "x=path|image(scale=1)"]
    assert run(tmp_path, sources[1], light, *feed)[0] == 0
    assert read(tmp_path / "out")["out"].to_pylist() == [250]
    code, _, error = run(tmp_path, sources, light, *feed)
    assert code == 3
    assert "could be relative to several folders" in error


@pytest.mark.parametrize("change", ["tokenizer", "home", "quote"])
def test_a_changed_tokenizer_file_is_another_request(change, echo, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    source = write(tmp_path / "in.parquet", {"text": ["a", "b c"]})
    file = tokenizer(tmp_path / "tok.json")
    name = "it's" if change == "quote" else "input_ids"
    if change == "quote":
        nodes = [("Cast", [name], ["out"], {"to": T.FLOAT})]
        echo = model(tmp_path / "m.onnx", nodes, [(name, T.INT64, ["N", "T"])], [("out", T.FLOAT, ["N", "T"])])
    feed = f"{name}=text|text({'~/tok.json' if change == 'home' else file})"
    flags = ["run", source, "--model", echo, "--output", tmp_path / "out", "--feed", feed]
    assert cli(*flags)[0] == 0
    assert "Done already" in cli(*flags)[1]
    tokenizer(file, side="left")
    code, _, error = cli(*flags)
    assert code == 3
    assert f"the contents of {str(file)!r}" in error, error


def test_a_vocabulary_in_a_job_file_may_be_words_or_a_file_beside_the_job_file(tmp_path):
    folder = tmp_path / "my, job's"
    folder.mkdir()
    (folder / "red").write_text("not a vocabulary")
    (folder / "w.txt").write_text("red\ngreen\n")
    nodes = [("Identity", ["x"], ["out"], {}), ("Identity", ["y"], ["other"], {})]
    model(
        folder / "m.onnx",
        nodes,
        [("x", T.INT64, ["N"]), ("y", T.INT64, ["N"])],
        [("out", T.INT64, ["N"]), ("other", T.INT64, ["N"])],
    )
    write(folder / "in.parquet", {"color": ["red", "green", "blue"]})
    feeds = '["x=color|vocab(red, green, unknown=-1)", "y=color|vocab(w.txt, unknown=7)"]'
    (folder / "job.toml").write_text(f'input = "in.parquet"\nmodel = "m.onnx"\noutput = "out"\nfeed = {feeds}\n')
    code, _, error = cli("run", "--config", folder / "job.toml", "--quiet")
    assert (code, error) == (0, "")
    out = pq.read_table(folder / "out")
    assert (out["out"].to_pylist(), out["other"].to_pylist()) == ([0, 1, -1], [0, 1, 7])


def test_a_constant_without_a_row_axis_is_shared_by_a_fixed_batch(tmp_path):
    nodes = [("Mul", ["x", "c"], ["out"], {})]
    fixed = model(tmp_path / "m.onnx", nodes, [("x", T.FLOAT, [4, 3]), ("c", T.FLOAT, [1])], [("out", T.FLOAT, [4, 3])])
    source = write(tmp_path / "in.parquet", {name: np.arange(6, dtype=np.float32) for name in "abc"})
    assert run(tmp_path, source, fixed, "--feed", "x=a,b,c", "--feed", "c=const(10)")[0] == 0
    assert read(tmp_path / "out")["out_1"].to_pylist() == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--feed", "x=a|Vocab(p, q)"], ["there is no converter 'Vocab'", "did you mean 'vocab'"]),
        (["--feed", "x=a|vocab(p, q"], ["cannot be understood", "every bracket and quote closed"]),
        (["--feed", "x=a|vocab(p, q)|epoch(s)"], ["cannot be understood"]),
        (["--feed", "x=a", "--feed", "x=a|vocab(p, q)"], ["'x' is fed twice"]),
        (["--feed", "x=a|const(1)"], ["const(...) takes no column"]),
        (["--feed", "x=const(1)", "--keep", "none"], ["no column is fed"]),
        (["--feed", "x=a|vocab(nothing.txt, unknown=-1)"], ["the vocabulary file does not exist", "nothing.txt"]),
        (["--feed", "x=a|text(nothing.json)"], ["nothing.json"]),
        (
            ["--feed", "x=a|vocab(p, q)", "--fetch", "out=p|round(1)"],
            ["steps must come before the column name", "'out|step=COLUMN'"],
        ),
    ],
)
def test_a_feed_that_makes_no_sense_is_one_clear_error(flags, words, tmp_path):
    one = model(
        tmp_path / "m.onnx", [("Identity", ["x"], ["out"], {})], [("x", T.INT64, ["N"])], [("out", T.INT64, ["N"])]
    )
    source = write(tmp_path / "in.parquet", {"a": ["p", "q"]})
    code, _, error = run(tmp_path, source, one, *flags)
    assert code in {2, 3}
    assert all(word in error for word in words), error
    assert "it is not clear" not in error
    assert not (tmp_path / "out").exists()


def test_an_output_without_values_is_refused(tmp_path):
    nodes = [("Slice", ["x", "zero", "zero", "one"], ["out"], {})]
    empty = model(tmp_path / "m.onnx", nodes, [("x", T.FLOAT, ["N", 3])], [("out", T.FLOAT, ["N", 0])],
                  [("zero", np.array([0])), ("one", np.array([1]))])  # fmt: skip
    source = write(tmp_path / "in.parquet", {name: np.zeros(3, np.float32) for name in "abc"})
    code, _, error = run(tmp_path, source, empty, "--feed", "x=a,b,c")
    assert code == 3
    assert "has no values in a row" in error
