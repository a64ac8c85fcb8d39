"""Bad rows of every kind go to quarantine, and all other rows are scored."""

from __future__ import annotations

import io
import json

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor, make_tensor_value_info
from support.runs import MODELS, cli, read, write

import scorer
from scorer.api.verification import check as verify

ROWS, SIDE = 10_000, 4
KINDS = ("runtime", "picture", "null", "length")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that adds the mean of a picture, an entry of a table of ten, the sum of a list of four, and a number."""
    nodes = [
        make_node("ReduceMean", ["picture"], ["p"], axes=[1, 2, 3], keepdims=0),
        make_node("Gather", ["table", "place"], ["g"]),
        make_node("ReduceSum", ["list", "one"], ["s"], keepdims=0),
        make_node("Add", ["p", "g"], ["pg"]),
        make_node("Add", ["s", "x"], ["sx"]),
        make_node("Add", ["pg", "sx"], ["y"]),
    ]
    inputs = [("picture", TensorProto.FLOAT, ["N", 3, SIDE, SIDE]), ("place", TensorProto.INT64, ["N"]),
              ("list", TensorProto.FLOAT, ["N", 4]), ("x", TensorProto.FLOAT, ["N"])]  # fmt: skip
    constants = [
        make_tensor("table", TensorProto.FLOAT, [10], np.arange(10, dtype=np.float32) * 100),
        make_tensor("one", TensorProto.INT64, [1], [1]),
    ]
    graph = make_graph(
        nodes, "four", [make_tensor_value_info(*one) for one in inputs],
        [make_tensor_value_info("y", TensorProto.FLOAT, ["N"])], constants,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model") / "four.onnx"
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 13)], ir_version=8), path)
    return path


def pictures():
    """Return ten small PNG files and their pixels."""
    image = pytest.importorskip("PIL.Image", reason="pillow is missing: pip install -e '.[test]'")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (10, SIDE, SIDE, 3), dtype=np.uint8)
    encoded = []
    for one in pixels:
        sink = io.BytesIO()
        image.fromarray(one).save(sink, "PNG")
        encoded.append(sink.getvalue())
    return encoded, pixels.astype(np.float32).transpose(0, 3, 1, 2) / 255


def made(bad_rows):
    """Return a table with this many bad rows of four kinds, the kind of each bad row, and the expected tensors."""
    encoded, pixels = pictures()
    rng = np.random.default_rng(bad_rows)
    bad = np.sort(rng.choice(ROWS, bad_rows, replace=False))
    kind = {int(row): KINDS[i % 4] for i, row in enumerate(bad)}
    which, place = rng.integers(0, 10, ROWS), rng.integers(0, 10, ROWS)
    lists, x = rng.integers(0, 9, (ROWS, 4)).astype(np.float32), rng.integers(0, 9, ROWS).astype(np.float32)
    table = pa.table({
        "id": np.arange(ROWS),
        "png": [encoded[w] if kind.get(row) != "picture" else b"\x89PNG no" for row, w in enumerate(which)],
        "place": [int(p) if kind.get(row) != "runtime" else 10 + row for row, p in enumerate(place)],
        "list": [v.tolist() if kind.get(row) != "length" else [1.0] * 3 for row, v in enumerate(lists)],
        "x": pa.array([float(v) if kind.get(row) != "null" else None for row, v in enumerate(x)], pa.float32()),
    })  # fmt: skip
    return table, kind, {"picture": pixels[which], "place": place, "list": lists, "x": x}


def asked(source, model, output, *more):
    return ("run", source, "--model", model, "--output", output, "--feed", "picture=png|image(size=4, scale=1/255)",
            "--feed", "place=place", "--feed", "list=list", "--feed", "x=x", "--on-null", "x=error", "--keep", "id",
            "--max-bad-rows", "100%", "--no-tune", "--batch-rows", 64, "--part-bytes", "64KiB", "--threads", 2,
            "--json", *more)  # fmt: skip


@pytest.mark.parametrize(("bad_rows", "most_calls"), [(0, 0), (1, 13), (50, 13), (9000, 1.5)])
def test_the_right_rows_are_quarantined_and_all_others_scored(bad_rows, most_calls, model, tmp_path, capsys):
    table, kind, feeds = made(bad_rows)
    source = write(tmp_path / "in.parquet", table, row_group_size=2500)
    code, text, stderr = cli(*asked(source, model, tmp_path / "out"))
    assert code == 0, stderr
    report = json.loads(text)
    good = np.array([row for row in range(ROWS) if row not in kind])
    bare = ort.InferenceSession(model).run(None, {name: values[good] for name, values in feeds.items()})[0]
    out = read(tmp_path / "out")
    assert out["id"].to_pylist() == good.tolist()
    np.testing.assert_allclose(out["y"].to_numpy(), bare, rtol=1e-6)
    quarantine = tmp_path / "out.scorer" / "quarantine"
    bad = pq.read_table(quarantine).sort_by("id") if bad_rows else table.slice(0, 0)
    assert bad["id"].to_pylist() == sorted(kind)
    assert bad.select(table.column_names).equals(table.take(pa.array(sorted(kind), pa.int64())))
    if bad_rows:
        stages = {row: "infer" if why == "runtime" else "feed" for row, why in kind.items()}
        assert bad["_stage"].to_pylist() == [stages[row] for row in sorted(kind)]
        assert bad["_row"].to_pylist() == sorted(kind)
        assert set(bad["_file"].to_pylist()) == {str(source)}
        words = {"picture": "picture", "null": "null", "runtime": "out of data bounds", "length": "list"}
        for row, why in zip(sorted(kind), bad["_error"].to_pylist(), strict=True):
            assert words[kind[row]] in why, (kind[row], why)
    batches = ROWS // 2500 * -(-2500 // 64)  # batches do not cross row groups
    extra = (report["calls"] - batches) / max(1, bad_rows)
    with capsys.disabled():
        print(f"\n{bad_rows} bad rows: {report['calls']} model calls, {extra:.2f} more for each bad row", end=" ")
    assert extra <= most_calls
    assert verify(scorer.output.place.Place.of(str(tmp_path / "out"), None), deep=True).whole


def test_a_bad_row_goes_to_quarantine_with_both_columns_of_one_name(tmp_path):
    columns = [[1, None, 3], [1, 2, 3], ["a", "b", "c"]]
    table = pa.Table.from_arrays(list(map(pa.array, columns)), names=["idx", "x", "x"])
    for name in ("one", "two"):
        write(tmp_path / "in" / f"{name}.parquet", table, row_group_size=1)
    options = {"feed": "idx=idx", "keep": "idx", "max_bad_rows": 2, "cluster": "synchronous"}
    scorer.run(tmp_path / "in", MODELS / "gather.onnx", tmp_path / "out", **options)
    (path,) = (tmp_path / "out.scorer" / "quarantine").iterdir()
    bad = pq.ParquetFile(path).read()
    assert bad.column_names == ["idx", "x", "x", "_error", "_stage", "_file", "_row"]
    assert [bad.column(i).to_pylist() for i in range(3)] == [[None] * 2, [2] * 2, ["b"] * 2]
    assert read(tmp_path / "out")["value"].to_pylist() == [10.0, 30.0] * 2
    assert "null in column" in (tmp_path / "out.scorer" / "report.html").read_text("utf-8")
    assert scorer.verify(tmp_path / "out", deep=True).faults == ()


def test_quarantined_rows_that_are_scored_again_keep_their_original_file_and_row(tmp_path):
    idx = np.arange(200) % 10
    idx[::20] = np.arange(10) + 10  # ten bad rows; a larger table of fifteen entries accepts half of them
    source = write(tmp_path / "in.parquet", {"id": np.arange(200), "idx": idx}, row_group_size=50)
    first = ("--feed", "idx=idx", "--max-bad-rows", 10, "--quiet", "--part-bytes", "4KiB")
    assert cli("run", source, "--model", MODELS / "gather.onnx", "--output", tmp_path / "one", *first)[0] == 0
    quarantine = tmp_path / "one.scorer" / "quarantine"
    larger = onnx.load(MODELS / "gather.onnx")
    larger.graph.initializer[0].CopyFrom(
        make_tensor(larger.graph.initializer[0].name, TensorProto.FLOAT, [15], np.arange(15, dtype=np.float32) * 10)
    )
    onnx.save(larger, tmp_path / "larger.onnx")
    code, _, stderr = cli("run", quarantine, "--model", tmp_path / "larger.onnx", "--output", tmp_path / "two", *first)
    assert code == 0, stderr
    two = read(tmp_path / "two")
    assert two.column_names == ["id", "idx", "_file", "_row", "value"]
    assert two["_row"].to_pylist() == two["id"].to_pylist() == list(range(0, 100, 20))
    assert set(two["_file"].to_pylist()) == {str(source)}
    assert two["value"].to_pylist() == [10.0 * i for i in range(10, 15)]
    left = pq.read_table(tmp_path / "two.scorer" / "quarantine").sort_by("id")
    assert left.column_names == ["id", "idx", "_error", "_stage", "_file", "_row"]
    assert left["_row"].to_pylist() == left["id"].to_pylist() == list(range(100, 200, 20))
    assert set(left["_file"].to_pylist()) == {str(source)}
    assert all(f"idx={i}" in why for i, why in zip(range(15, 20), left["_error"].to_pylist(), strict=True))


@pytest.mark.parametrize("keep", ["none", "id", "_error,id"])
def test_row_ids_of_a_quarantine_are_those_of_the_original_input(keep, tmp_path):
    source = write(tmp_path / "in.parquet", {"id": [5, 6], "idx": [99, 1]})
    flags = ("--feed", "idx=idx", "--max-bad-rows", 10, "--quiet")
    assert cli("run", source, "--model", MODELS / "gather.onnx", "--output", tmp_path / "one", *flags)[0] == 0
    bad = pq.read_table(tmp_path / "one.scorer" / "quarantine")
    at = bad.column_names.index("idx")
    mended = write(tmp_path / "mended.parquet", bad.set_column(at, "idx", pa.array([3])))
    code, _, stderr = cli("run", mended, "--model", MODELS / "gather.onnx", "--output", tmp_path / "two", "--feed",
                          "idx=idx", "--row-id", "--keep", keep, "--quiet")  # fmt: skip
    assert code == 0, stderr
    row = read(tmp_path / "two").to_pylist()[0]
    assert (row["_file"], row["_row"], row["value"]) == (str(source), 0, 30.0)
    assert ("_error" in row, "id" in row) == ("_error" in keep, "id" in keep)


COLORS = {"red": "warm", "green": "cool", "blue": "cool", "\u00e9": "unknown"}
PLACE = 2_345
"""The row with a text in Latin-1."""


def latin(kind, rows=3_000):
    """Return a column of colors, of this type, with one text that is not UTF-8."""
    words = [list(COLORS)[row % 4].encode() for row in range(rows)]
    words[PLACE] = b"gr\xe9n"
    encoded = pa.array(words, pa.large_binary() if kind == pa.large_string() else pa.binary())
    texts = pa.Array.from_buffers(kind if kind == pa.large_string() else pa.string(), rows, encoded.buffers())
    return texts.dictionary_encode() if pa.types.is_dictionary(kind) else texts.cast(kind)


TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


def tokenizer(folder):
    """Write a tokenizer of the three colors, and return its path."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is missing: pip install -e '.[test]'")
    words = {"[UNK]": 0, "red": 1, "green": 2, "blue": 3}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.mark.parametrize("kind", TEXTS, ids=str)
@pytest.mark.parametrize("way", ["", "vocab(red, green, blue, \u00e9)", "vocab(red, green, unknown=9)", "text(FILE)"])
def test_a_text_that_is_not_utf8_costs_only_its_row(way, kind, tmp_path):
    columns = {"id": np.arange(3_000), "color": latin(kind), "size": np.arange(3_000, dtype=np.float32)}
    source = write(tmp_path / "in.parquet", columns, row_group_size=1_000)
    model, tensor = (MODELS / "gather.onnx", "idx") if way else (MODELS / "strings.onnx", "color")
    if way.startswith("text"):
        way, model, tensor = way.replace("FILE", str(tokenizer(tmp_path))), tmp_path / "sum.onnx", "ids"
        graph = make_graph(
            [make_node("ReduceSum", ["ids", "one"], ["value"], keepdims=0)], "sum",
            [make_tensor_value_info("ids", TensorProto.INT64, ["N", "L"])],
            [make_tensor_value_info("value", TensorProto.INT64, ["N"])],
            [make_tensor("one", TensorProto.INT64, [1], [1])],
        )  # fmt: skip
        onnx.save(make_model(graph, opset_imports=[make_opsetid("", 13)], ir_version=8), model)
    feed = ("--feed", f"{tensor}=color|{way}") if way else ()
    code, _, stderr = cli("run", source, "--model", model, "--output", tmp_path / "out", *feed, "--keep", "id",
                          "--max-bad-rows", 1, "--no-tune", "--quiet")  # fmt: skip
    assert code == 0, stderr
    (bad,) = (tmp_path / "out.scorer" / "quarantine").iterdir()
    row = pq.read_table(bad)
    assert row.drop_columns("color").to_pylist() == [
        {"id": PLACE, "size": float(PLACE), "_error": f"text that is not UTF-8 in column 'color' (tensor {tensor!r})",
         "_stage": "feed", "_file": str(source), "_row": PLACE}
    ]  # fmt: skip
    assert row["color"].cast(pa.string()).cast(pa.binary()).to_pylist() == [b"gr\xe9n"]
    good, words = [row for row in range(3_000) if row != PLACE], list(COLORS)
    out = read(tmp_path / "out")
    assert out["id"].to_pylist() == good
    scores = {"": words, "vocab(r": [0.0, 10.0, 20.0, 30.0], "text(": [1, 2, 3, 0]}
    if not way:
        assert out["label"].to_pylist() == [COLORS[words[row % 4]] for row in good]
    elif "unknown" in way:
        assert out["value"].to_pylist() == [[0.0, 10.0, 90.0, 90.0][row % 4] for row in good]
    else:
        wanted = scores["text(" if way.startswith("text") else "vocab(r"]
        assert out["value"].to_pylist() == [wanted[row % 4] for row in good]
    page = (tmp_path / "out.scorer" / "report.html").read_text("utf-8")
    assert "text that is not UTF-8 in column" in page
    assert verify(scorer.output.place.Place.of(str(tmp_path / "out"), None), deep=True).whole


def test_a_list_with_a_text_that_is_not_utf8_costs_only_its_row(tmp_path):
    lists = pa.FixedSizeListArray.from_arrays(latin(pa.string()), 2)
    model = make_graph(
        [make_node("Identity", ["words"], ["same"])], "same",
        [make_tensor_value_info("words", TensorProto.STRING, ["N", 2])],
        [make_tensor_value_info("same", TensorProto.STRING, ["N", 2])],
    )  # fmt: skip
    onnx.save(make_model(model, opset_imports=[make_opsetid("", 13)], ir_version=8), tmp_path / "same.onnx")
    source = write(tmp_path / "in.parquet", {"id": np.arange(1_500), "words": lists})
    code, _, stderr = cli("run", source, "--model", tmp_path / "same.onnx", "--output", tmp_path / "out", "--keep",
                          "id", "--max-bad-rows", 1, "--quiet")  # fmt: skip
    assert code == 0, stderr
    bad = pq.read_table(tmp_path / "out.scorer" / "quarantine")
    assert (bad["id"].to_pylist(), bad["_row"].to_pylist()) == ([PLACE // 2], [PLACE // 2])
    assert bad["_error"].to_pylist() == ["text that is not UTF-8 in column 'words' (tensor 'words')"]
    words = list(COLORS)
    out = read(tmp_path / "out").drop_columns("id")
    assert list(zip(*(column.to_pylist() for column in out.columns), strict=True)) == [
        (words[2 * row % 4], words[(2 * row + 1) % 4]) for row in range(1_500) if row != PLACE // 2
    ]


@pytest.mark.parametrize("kind", TEXTS, ids=str)
@pytest.mark.parametrize("where", ["color > 'green'", "color <= 'green'", "color in ('red', 'blue')", "color != 'red'"])
def test_where_compares_texts_that_are_not_utf8_as_bytes(where, kind, tmp_path):
    rows = 2_400  # the last row group's statistics are not UTF-8: its largest text begins with an é in Latin-1
    column = latin(kind, rows).cast(pa.string())
    words = column.view(pa.binary()).to_pylist()
    words[PLACE] = b"\xe9"
    encoded = pa.array(words, pa.binary())
    column = pa.Array.from_buffers(pa.string(), rows, encoded.buffers())
    stored = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
    source = write(
        tmp_path / "in.parquet", {"id": np.arange(rows), "idx": np.arange(rows) % 10, "color": stored},
        row_group_size=800,
    )  # fmt: skip
    code, _, stderr = cli("run", source, "--model", MODELS / "gather.onnx", "--output", tmp_path / "out", "--feed",
                          "idx=idx", "--keep", "id", "--where", where, "--quiet")  # fmt: skip
    assert code == 0, stderr
    holds = {
        "color > 'green'": lambda word: word > b"green",
        "color <= 'green'": lambda word: word <= b"green",
        "color in ('red', 'blue')": lambda word: word in {b"red", b"blue"},
        "color != 'red'": lambda word: word != b"red",
    }[where]  # fmt: skip
    assert read(tmp_path / "out")["id"].to_pylist() == [row for row, word in enumerate(words) if holds(word)]


@pytest.mark.parametrize("days", [4_000_000, -4_000_000])
@pytest.mark.parametrize("kind", [pa.date32(), pa.date64(), pa.timestamp("ms"), pa.timestamp("us", "UTC")], ids=str)
@pytest.mark.parametrize("where", ["t > '1999-01-01'", "t <= '1999-01-01'", "t in ('1970-01-06')", "t != '1970-01-06'"])
def test_where_compares_dates_outside_the_years_1_to_9999(where, kind, days, tmp_path):
    moments = pa.array([0, days, 5, 20_000], pa.int32()).cast(pa.date32())
    if pa.types.is_timestamp(kind):
        moments = moments.cast(pa.timestamp(kind.unit))
    source = write(tmp_path / "in.parquet", {"idx": np.arange(4), "t": moments.cast(kind)})
    code, _, stderr = cli("run", source, "--model", MODELS / "gather.onnx", "--output", tmp_path / "out", "--feed",
                          "idx=idx", "--keep", "idx", "--where", where, "--quiet")  # fmt: skip
    assert code == 0, stderr
    later = {0: False, 1: days > 0, 2: False, 3: True}
    holds = {">": later, "<=": {row: not after for row, after in later.items()},
             "in": {row: row == 2 for row in range(4)}, "!=": {row: row != 2 for row in range(4)}}  # fmt: skip
    assert read(tmp_path / "out")["idx"].to_pylist() == [row for row in range(4) if holds[where.split()[1]][row]]


def test_a_damaged_column_that_is_not_needed_is_null_in_quarantine(tmp_path):
    idx = np.arange(3_000) % 10
    idx[[7, 1_500, 2_007]] = 99
    schema = pa.schema([
        ("id", pa.int64()), ("idx", pa.int64()), pa.field("other", pa.float64(), nullable=False),
        ("tags", pa.list_(pa.string())),
    ])  # fmt: skip
    table = pa.table(
        [np.arange(3_000), idx, np.random.default_rng(0).random(3_000), [[f"t{i}"] for i in range(3_000)]],
        schema=schema,
    )
    source = write(tmp_path / "in.parquet", table, row_group_size=1_000, compression="zstd", use_dictionary=False)
    column = pq.read_metadata(source).row_group(1).column(2)
    assert column.path_in_schema == "other"
    stored = bytearray(source.read_bytes())
    middle = slice(column.data_page_offset + 40, column.data_page_offset + column.total_compressed_size - 40)
    stored[middle] = bytes(byte ^ 0x55 for byte in stored[middle])
    source.write_bytes(stored)
    code, _, stderr = cli("run", source, "--model", MODELS / "gather.onnx", "--output", tmp_path / "out", "--feed",
                          "idx=idx", "--keep", "id", "--max-bad-rows", 3, "--quiet")  # fmt: skip
    assert code == 0, stderr
    assert read(tmp_path / "out")["id"].to_pylist() == [row for row in range(3_000) if row not in {7, 1_500, 2_007}]
    bad = pq.read_table(tmp_path / "out.scorer" / "quarantine").sort_by("id")
    expected = table.take(pa.array([7, 1_500, 2_007])).to_pylist()
    expected[1]["other"] = None
    assert bad.select(schema.names).to_pylist() == expected
    notes = [why.partition("; ")[2] for why in bad["_error"].to_pylist()]
    assert notes == ["", "null here, because they cannot be read: 'other'", ""]
    assert verify(scorer.output.place.Place.of(str(tmp_path / "out"), None), deep=True).whole


def test_an_unchanged_command_does_not_try_bad_rows_again_and_a_larger_budget_only_publishes(tmp_path):
    idx = np.arange(400) % 10
    idx[::100] = 99
    source = write(tmp_path / "in.parquet", {"id": np.arange(400), "idx": idx}, row_group_size=100)
    flags = ("run", source, "--model", MODELS / "gather.onnx", "--output", tmp_path / "out", "--feed", "idx=idx",
             "--part-bytes", "4KiB", "--json")  # fmt: skip
    for _ in range(2):
        code, text, _ = cli(*flags)
        assert code == 1
        assert "--max-bad-rows 4 to publish" in json.loads(text)["error"]["hint"]
        assert not (tmp_path / "out").exists()
    code, text, _ = cli(*flags, "--max-bad-rows", "1%")
    report = json.loads(text)
    assert (code, report["calls"], report["counts"]["quarantined"]) == (0, 0, 4)
    assert pq.read_table(tmp_path / "out.scorer" / "quarantine").num_rows == 4
