"""`scorer replay` shows one row from the input to its scores, as a plain loop over the same files computes it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs import MODELS, ROOT, cli, oracle, read, write

import scorer
from scorer.api.rescoring import replay
from scorer.output.place import Place

FILES, ROWS = 3, 300


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run over three files, with bad rows, filtered rows and a copied column."""
    top = tmp_path_factory.mktemp("replay")
    values = np.random.default_rng(5).standard_normal((FILES * ROWS, 3)).astype(np.float32)
    for i in range(FILES):
        part = values[i * ROWS : (i + 1) * ROWS]
        columns = {name: pa.array(part[:, j], mask=np.arange(ROWS) % 50 == 7) for j, name in enumerate("abc")}
        table = {"id": pa.array(np.arange(ROWS) + i * ROWS), **columns}
        write(top / "input" / f"part-{i}.parquet", table, row_group_size=100)
    report = scorer.run(
        top / "input", MODELS / "sum3.onnx", top / "out", feed="x=a,b,c", where="id not in (3, 4, 305)",
        on_null="error", max_bad_rows=100, batch_rows=64, cluster="synchronous", keep="id",
    )  # fmt: skip
    assert (report.counts.quarantined, report.counts.filtered) == (18, 3)
    return top


def replayed(out, *flags, code=0):
    """Return what `replay --json` prints."""
    got, text, err = cli("replay", out, *flags, "--json")
    assert got == code, err
    return json.loads(text)


@pytest.mark.parametrize("seed", range(3))
def test_a_row_is_shown_from_its_file_to_its_scores(made, seed):
    output = read(made / "out")
    row = int(np.random.default_rng(seed).integers(len(output)))
    found = replayed(made / "out", "--row", row)
    name = output.column_names[1]
    number = output["id"][row].as_py()
    assert (found["row"], found["faults"]) == (row, [])
    assert found["file"] == str(made / "input" / f"part-{number // ROWS}.parquet")
    assert found["row_of_file"] == number % ROWS
    source = pq.read_table(found["file"]).slice(found["row_of_file"], 1)
    assert source["id"][0].as_py() == number
    fed = np.array([[source[column][0].as_py() for column in "abc"]], np.float32)
    assert found["values"] == {column: source[column][0].as_py() for column in "abc"}
    assert found["fed"] == {"x": {"type": "float32", "shape": [1, 3], "values": fed.tolist()}}
    (expected,) = oracle(MODELS / "sum3.onnx", {"x": fed}).items()
    assert found["returned"] == {expected[0]: {
        "type": "float32", "shape": list(expected[1].shape), "values": expected[1].tolist()
    }}  # fmt: skip
    stored = output[name][row].as_py()
    assert found["scores"] == {name: {"stored": stored, "again": stored, "equal": True}}
    assert found["here"] == found["planned"]


def test_the_first_row_that_meets_the_conditions_is_shown(made):
    found = replayed(made / "out", "--where", "id > 410", "--where", "id != 411")
    ids = read(made / "out")["id"].to_pylist()
    assert found["row_of_file"] == 412 % ROWS
    assert ids[found["row"]] == 412


def test_the_text_has_the_way_of_the_row(made):
    code, text, _ = cli("replay", made / "out", "--row", 0)
    assert code == 0
    assert f"row 0 of {made / 'input' / 'part-0.parquet'}" in " ".join(text.split())
    assert "float32 [1, 3]" in text
    assert "same bits" in text


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        ((), 2, "replay needs one row"),
        (("--row", 1, "--where", "id == 1"), 2, "replay needs one row"),
        (("--row", 100_000), 2, "the output has no such row"),
        (("--where", "id == 3"), 2, "the output has no such row"),
        (("--where", "gone == 3"), 3, "--where names a column that the output does not have"),
        (("--where", "id ~ 3"), 2, "the condition cannot be parsed"),
    ],
    ids=str,
)
def test_a_row_that_is_not_there_is_refused(made, flags, code, says):
    got, out, err = cli("replay", made / "out", *flags)
    assert (got, out) == (code, "")
    assert says in err


@pytest.fixture
def copied(made, tmp_path):
    """A copy of the output to damage."""
    for name in ("out", "out.scorer"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path / "out"


def test_a_stored_score_that_was_changed_is_a_fault(copied):
    path = min(copied.rglob("*.parquet"))
    table = pq.read_table(path)
    name = table.column_names[1]
    pq.write_table(table.set_column(1, table.schema.field(1), pa.array([5.0] * len(table), pa.float32())), path)
    found = replayed(copied, "--row", 0, code=5)
    assert found["scores"][name]["stored"] == 5.0
    assert found["scores"][name]["equal"] is False
    assert found["faults"][0].startswith(f"column {name!r} now differs by ")


def test_a_file_with_other_rows_than_its_ledger_is_refused(copied):
    path = min(copied.rglob("*.parquet"))
    pq.write_table(pq.read_table(path).slice(1), path)
    code, _, err = cli("replay", copied, "--row", 0)
    assert (code, "does not have the rows of its ledger" in err) == (5, True)


@pytest.mark.parametrize("name", ["plan.json", "ledger.parquet", "manifest.json"])
def test_an_output_without_its_proof_is_refused(copied, name):
    (copied.with_name("out.scorer") / name).unlink()
    code, out, err = cli("replay", copied, "--row", 0)
    assert (code, out) == (5, "")
    assert "there is no finished output with its proof" in err
    assert f"without {name!r}" in err


def test_a_changed_input_is_refused(made, tmp_path):
    source = tmp_path / "in.parquet"
    shutil.copy(made / "input" / "part-0.parquet", source)
    scorer.run(source, MODELS / "sum3.onnx", tmp_path / "own", feed="x=a,b,c", max_bad_rows=100, cluster="synchronous")
    assert cli("replay", tmp_path / "own", "--row", 5)[0] == 0
    pq.write_table(pq.read_table(source).slice(1), source)
    code, out, err = cli("replay", tmp_path / "own", "--row", 5)
    assert (code, out) == (3, "")
    assert "in.parquet" in err


def test_rows_of_each_generation_are_shown_with_their_own_file(tmp_path):
    for i in range(2):
        rows = {"id": np.arange(4) + 4 * i, "x": np.arange(12, dtype=np.float32).reshape(4, 3) + i}
        columns = {"id": rows["id"], **{name: rows["x"][:, j] for j, name in enumerate("abc")}}
        write(tmp_path / "input" / f"day-{i}.parquet", columns)
        scorer.run(
            tmp_path / "input", MODELS / "sum3.onnx", tmp_path / "own", feed="x=a,b,c", keep="id", new_only=True,
            cluster="synchronous",
        )  # fmt: skip
    for number in (1, 6):
        found = replayed(tmp_path / "own", "--where", f"id == {number}")
        assert found["file"] == str(tmp_path / "input" / f"day-{number // 4}.parquet")
        assert (found["row"], found["row_of_file"], found["faults"]) == (number, number % 4, [])
        assert [one["equal"] for one in found["scores"].values()] == [True]


SHORT = "input_ids=text|text('FOLDER/tokenizer.json', max_length=24)"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("example", "package", "flags"),
    [
        ("flights", "onnxruntime", ("--limit", 20_000, "--file-rows", 2_048)),
        ("reviews", "tokenizers", ("--limit", 64, "--file-rows", 8, "--feed", SHORT)),
        ("pictures", "PIL", ("--file-rows", 16)),
    ],
)
def test_random_rows_of_the_examples_are_equal(tmp_path, example, package, flags):
    pytest.importorskip(package)
    folder = shutil.copytree(ROOT / "examples" / example, tmp_path / example)
    if (folder / "prepare.py").exists():
        made = subprocess.run([sys.executable, "prepare.py"], cwd=folder, capture_output=True, text=True, check=False)
        if "No module named" in made.stderr:
            pytest.skip(made.stderr)
        assert made.returncode == 0, made.stderr
    flags = [flag.replace("FOLDER", str(folder)) if isinstance(flag, str) else flag for flag in flags]
    out = tmp_path / "out"
    code, _, err = cli("run", "--config", folder / "job.toml", "--output", out, *flags)
    assert code == 0, err
    stored, place = read(out), Place.of(str(out), None)
    for row in np.random.default_rng(2).integers(len(stored), size=100).tolist():
        found = replay(place, row)
        assert found.faults == ()
        assert all(one["equal"] for one in found.scores.values()), (row, found.scores)
        for name, one in found.scores.items():
            assert one["stored"] == stored[name][row].as_py()
        source = pq.read_table(found.file).slice(found.row_of_file, 1)
        kept = [name for name in source.column_names if name in stored.column_names]
        assert kept
        assert stored.select(kept).slice(row, 1).to_pylist() == source.select(kept).to_pylist()
