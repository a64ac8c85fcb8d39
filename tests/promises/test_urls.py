"""Models, inputs and the files that flags name may be on a web server, or behind a protocol of fsspec."""

from __future__ import annotations

import io
import tempfile
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto as T
from onnx import helper
from PIL import Image
from support.runs import cli, read
from support.web import web_server
from tokenizers import Tokenizer
from tokenizers import models as token_models

import scorer
from scorer.errors import InputChanged, PreflightError, RunFailed

DENSE = Path(__file__).parents[1] / "models" / "dense28.onnx"


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A web server, and an empty model cache."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with web_server() as server:
        yield server


def scored(*arguments):
    """Run the command line; return its exit code and all that it shows."""
    code, out, error = cli(*arguments)
    return code, out + error


def rows(n, seed):
    rng = np.random.default_rng(seed)
    return pa.table({"id": pa.array(range(n))} | {f"f{i}": rng.random(n, np.float32) for i in range(28)})


def parquet(table):
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=300)
    return file.getvalue()


def echo(kind, shape):
    """Return a model that gives back its input as floats."""
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=T.FLOAT)], "g",
        [helper.make_tensor_value_info("x", kind, shape)], [helper.make_tensor_value_info("y", T.FLOAT, shape)],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made.SerializeToString()


def picture(level):
    file = io.BytesIO()
    Image.new("L", (2, 2), level).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def pictures(web, tmp_path):
    """The arguments of a run over pictures whose paths are beside a remote input, and the URL of the input's folder."""
    model = web.put("m.onnx", echo(T.FLOAT, ["N", 1, 2, 2]))

    def arguments(*paths):
        source = web.put("data/in.parquet", parquet(pa.table({"id": range(len(paths)), "path": paths})))
        feed = ("--feed", "x=path|image(scale=1)", "--fetch", "y", "--output", tmp_path / "out", "--max-bad-rows", "9")
        return "run", source, "--model", model, *feed

    return arguments, f"{web.root}/data"


def test_a_run_over_urls_gives_what_local_files_give(web, tmp_path):
    tables = [rows(1000, 1), rows(500, 2)]
    urls = [web.put(f"data set/{i}.parquet", parquet(table)) for i, table in enumerate(tables)]
    paths = [tmp_path / f"{i}.parquet" for i in range(2)]
    for path, table in zip(paths, tables, strict=True):
        pq.write_table(table, path, row_group_size=300)
    model = web.put("m.onnx", DENSE.read_bytes())
    scorer.run(urls, model, tmp_path / "remote", keep="id")
    scorer.run(paths, DENSE, tmp_path / "local", keep="id")
    assert read(tmp_path / "remote").equals(read(tmp_path / "local"))
    assert scorer.run(urls, model, tmp_path / "remote", keep="id").already_done
    assert web.count("GET", "m.onnx") == 1


def test_an_input_that_changed_after_the_plan_is_refused(web, tmp_path):
    url = web.put("in.parquet", parquet(rows(1000, 1)))
    plan = scorer.prepare(url, DENSE, tmp_path / "out")
    web.put("in.parquet", parquet(rows(1000, 2)))
    with pytest.raises((InputChanged, RunFailed), match="changed"):
        scorer.execute(plan)
    assert not (tmp_path / "out").exists()
    with pytest.raises(PreflightError, match="1 input file changed"):
        scorer.run(url, DENSE, tmp_path / "out")


@pytest.mark.parametrize("what", ["data", "data/", "data/*.parquet"])
def test_a_folder_and_a_pattern_on_a_web_server_are_refused_with_the_reason(web, tmp_path, what):
    web.put("data/in.parquet", parquet(rows(10, 1)))
    code, shown = scored("run", f"{web.root}/{what}", "--model", DENSE, "--output", tmp_path / "out")
    assert code == 3
    assert "a web server has no list of its files" in shown
    assert "name each file" in shown


def test_input_and_model_may_be_behind_any_protocol_of_fsspec(tmp_path):
    memory, root = fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}"
    tables = [rows(700, 1), rows(300, 2)]
    for i, table in enumerate(tables):
        memory.pipe_file(f"{root}/in/{i}.parquet", parquet(table))
    memory.pipe_file(f"{root}/m.onnx", DENSE.read_bytes())
    scorer.run(f"memory:/{root}/in", f"memory:/{root}/m.onnx", tmp_path / "out", keep="id")
    local = tmp_path / "in.parquet"
    pq.write_table(pa.concat_tables(tables), local)
    scorer.run(local, DENSE, tmp_path / "local", keep="id")
    assert read(tmp_path / "out").equals(read(tmp_path / "local"))


def test_a_tokenizer_a_vocabulary_and_class_names_may_be_urls(web, tmp_path):
    made = Tokenizer(token_models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    tokenizer = web.put("tokens/tokenizer.json", made.to_str().encode())
    words, labels = web.put("words.txt", b"red\ngreen\n"), web.put("x=1/labels.txt", b"cat\ndog\n")
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": ["a", "b", "c"], "color": ["green", "red", "green"]}), source)
    model = tmp_path / "m.onnx"
    model.write_bytes(echo(T.INT64, ["N", "T"]))
    common = ("run", source, "--model", model, "--fetch", "y", "--keep", "none", "--output")
    code, shown = scored(*common, tmp_path / "1", "--feed", f"x=text|text({tokenizer}, give=ids)")
    assert code == 0, shown
    assert read(tmp_path / "1")["y"].to_pylist() == [[1], [2], [0]]
    model.write_bytes(echo(T.INT64, ["N", 1]))
    assert scored(*common, tmp_path / "2", "--feed", f"x=color|vocab({words})")[0] == 0
    assert read(tmp_path / "2")["y"].to_pylist() == [1, 0, 1]
    two = tmp_path / "two.onnx"
    two.write_bytes(echo(T.INT64, ["N", 2]))
    pq.write_table(pa.table({"p": [1, 2], "q": [3, 4]}), source)
    feed = ("--feed", "x=p,q", "--labels", f"y={labels}", "--keep", "none")
    assert scored("run", source, "--model", two, "--output", tmp_path / "3", *feed)[0] == 0
    assert [name for name in read(tmp_path / "3").column_names if "dog" in name]
    web.put("words.txt", b"green\nred\n")
    assert f"the contents of {str(words)!r}" in scored(*common, tmp_path / "2", "--feed", f"x=color|vocab({words})")[1]


def test_a_file_that_a_flag_names_and_that_no_url_gives_is_refused(web, tmp_path):
    source, model = tmp_path / "in.parquet", tmp_path / "m.onnx"
    pq.write_table(pa.table({"color": ["green"]}), source)
    model.write_bytes(echo(T.INT64, ["N", 1]))
    for feed in (f"x=color|vocab({web.root}/gone.txt)", f"x=color|text({web.root}/gone.json)"):
        code, shown = scored("run", source, "--model", model, "--output", tmp_path / "out", "--feed", feed)
        assert (code, "gone." in shown, "Hint: " in shown) == (2, True, True)


def test_pictures_beside_a_remote_input_are_fetched(web, pictures, tmp_path):
    arguments, folder = pictures
    levels = [int(level) for level in np.random.default_rng(1).integers(0, 255, 200)]
    for i, level in enumerate(levels):
        web.put(f"data/pictures/{i} x.png", picture(level))
    paths = [f"pictures/{i} x.png" for i in range(199)] + [f"{folder}/pictures/199%20x.png"]
    code, shown = scored(*arguments(*paths), "--batch-rows", "7")
    assert code == 0, shown
    scores = read(tmp_path / "out")["y"].to_pylist()
    assert [np.ravel(one).tolist() for one in scores] == [[level] * 4 for level in levels]


def test_pictures_of_a_part_are_fetched_32_at_once_and_each_only_once(web, pictures, tmp_path):
    arguments, _ = pictures
    for i in range(200):
        web.put(f"data/{i}.png", picture(i))
    _, source, _, model, *_ = arguments(*(f"{i}.png" for i in range(200)))
    feed = "x=path|image(scale=1)"
    plan = scorer.prepare(source, model, tmp_path / "out", feed=feed, batch_rows=5, cluster="synchronous")
    web.asked.clear()
    web.wait_s, web.most_at_once = 0.02, 0
    scorer.execute(plan)
    assert web.count("GET", ".png") == 200
    assert 16 < web.most_at_once <= 32


def test_a_picture_that_a_store_does_not_have_or_that_is_elsewhere_is_a_bad_row(web, pictures, tmp_path):
    arguments, _ = pictures
    web.put("data/a.png", picture(7))
    web.put("above.png", picture(8))
    code, shown = scored(
        *arguments("a.png", "gone.png", "../above.png", "/above.png", "http://127.0.0.1:1/x.png", "", "a.png")
    )
    assert code == 0, shown
    assert read(tmp_path / "out")["id"].to_pylist() == [0, 6]
    quarantine = [pq.read_table(path) for path in (tmp_path / "out.scorer" / "quarantine").glob("*.parquet")]
    reasons = "\n".join(str(row) for table in quarantine for row in table.to_pylist())
    for reason in ("no file 'gone.png'", "'../above.png', which is outside", "which is on another store"):
        assert reason in reasons


def test_a_store_that_does_not_answer_makes_no_bad_rows(web, pictures, tmp_path):
    arguments, folder = pictures
    web.put("data/a.png", picture(7))
    web.status["data/a.png"] = 403
    code, shown = scored(*arguments("a.png", "a.png"))
    assert code != 0
    assert "a picture cannot be read" in shown
    assert f"{folder}/a.png" in shown
    assert not (tmp_path / "out").exists()


def test_python_accepts_urls_of_models(web):
    url = web.put("m.onnx", DENSE.read_bytes())
    assert scorer.inspect_model(url).path == url
    frame = rows(5, 1).to_pandas()
    assert scorer.score(frame, url).equals(scorer.score(frame, DENSE))
    with pytest.raises(PreflightError, match="the model does not exist"):
        scorer.run("in.parquet", f"{web.root}/gone.onnx", "out")
