"""With --where, a part without rows has no file in the output, and its proof is complete all the same."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.runs import MODELS, cli, read, write

import scorer
from scorer.errors import CommitError
from scorer.events import PartFinished

FILES, ROWS = 6, 5
ASKED = {"feed": "x=a,b,c", "where": "id >= 20", "cluster": "synchronous", "file_rows": ROWS}


@pytest.fixture
def top(tmp_path):
    """Six files of five rows in folders k=0 to k=2: the first four have no row that the condition keeps."""
    for file in range(FILES):
        values = np.arange(file * ROWS, (file + 1) * ROWS)
        columns = {name: values.astype(np.float32) for name in "abc"} | {"id": values}
        write(tmp_path / "in" / f"k={file // 2}" / f"{file}.parquet", columns)
    return tmp_path


def run(top, **more):
    return scorer.run(top / "in", MODELS / "sum3.onnx", top / "out", **ASKED | more)


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def ledger(top):
    return pq.read_table(top / "out.scorer" / "ledger.parquet").to_pylist()


def verdict(output, *flags):
    return json.loads(cli("verify", output, *flags, "--json")[1])


@pytest.mark.parametrize("cluster", ["synchronous", "embedded", "processes"])
def test_parts_without_rows_have_no_file_and_no_folder(top, cluster):
    report = run(top, cluster=cluster)
    assert names(top / "out") == ["k=2", "k=2/part-00004.parquet", "k=2/part-00005.parquet"]
    assert read(top / "out")["id"].to_pylist() == list(range(20, 30))
    assert (report.counts.rows, report.counts.scored, report.counts.filtered) == (30, 10, 20)
    assert (report.parts, report.files) == (6, 2)
    assert "(6 parts in 2 files, " in str(report)


def test_the_ledger_has_a_row_for_each_part_and_verify_adds_them_up(top):
    report = run(top)
    assert [(row["filtered"], row["size"] > 0) for row in ledger(top)] == [(5, False)] * 4 + [(0, True)] * 2
    assert sum(row["size"] for row in ledger(top)) == report.output_bytes
    for flags in ((), ("--deep",), ("--rescore", "7")):
        assert (verdict(top / "out", *flags)["whole"], verdict(top / "out", *flags)["filtered"]) == (True, 20)
    assert run(top).already_done
    assert cli("report", top / "out")[0] == 0


def test_a_file_in_the_place_of_a_part_without_rows_is_found(top):
    run(top)
    (top / "out" / "k=0").mkdir()
    shutil.copy(top / "in" / "k=0" / "0.parquet", top / "out" / "k=0" / "part-00000.parquet")
    assert verdict(top / "out")["faults"] == ["k=0/part-00000.parquet: not in the ledger"]
    with pytest.raises(scorer.errors.PreflightError, match="did not publish"):
        run(top, where="id >= 10", overwrite=True)


def test_a_ledger_that_takes_the_file_from_scored_rows_is_found(top):
    run(top)
    path = top / "out.scorer" / "ledger.parquet"
    rows = ledger(top)
    rows[4]["size"] = 0
    pq.write_table(pq.read_table(path).from_pylist(rows, pq.read_schema(path)), path)
    assert "k=2/part-00004.parquet: it has 5 scored rows, but no file" in verdict(top / "out")["faults"]


def test_if_no_part_has_rows_the_first_one_has_a_file(top):
    assert run(top, where="id < 0").counts.filtered == 30
    assert names(top / "out") == ["k=0", "k=0/part-00000.parquet"]
    assert read(top / "out").num_rows == 0
    assert verdict(top / "out", "--deep")["whole"]
    assert run(top, where="id < 0").already_done


def test_without_where_each_part_has_a_file(top):
    write(top / "in" / "k=3" / "9.parquet", pq.read_table(top / "in" / "k=0" / "0.parquet").slice(0, 0))
    run(top, where=())
    assert len(list((top / "out").rglob("*.parquet"))) == 7


def test_parts_without_rows_are_not_scored_again_after_publishing_failed(top):
    def appear(event):
        if isinstance(event, PartFinished) and event.receipt.proof.part == 5:
            (top / "out").mkdir()
            (top / "out" / "other.txt").write_text("another program's")

    with pytest.raises(CommitError, match="other files appeared"):
        scorer.run(top / "in", MODELS / "sum3.onnx", top / "out", observers=[appear], **ASKED)
    (top / "out" / "other.txt").unlink()
    report = run(top)
    first = 1  # is read again, because its file could have been the only one
    assert (report.parts_resumed, report.calls, report.counts.filtered) == (6 - first, 0, 20)
    assert verdict(top / "out", "--deep")["whole"]


def test_overwriting_replaces_an_output_whose_first_part_has_no_file(top):
    run(top)
    report = run(top, where="id < 5", overwrite=True)
    assert (report.counts.scored, report.files) == (5, 1)
    assert names(top / "out") == ["k=0", "k=0/part-00000.parquet"]
    assert run(top, overwrite=True).counts.scored == 10
    assert verdict(top / "out")["whole"]


def test_moved_away_from_its_proof_missing_numbers_are_left_unchecked(top, tmp_path):
    run(top)
    shutil.copytree(top / "out", tmp_path / "elsewhere" / "out")
    found = verdict(tmp_path / "elsewhere" / "out")
    assert (found["faults"], found["whole"]) == ([], False)
    assert "whether part number 0 is missing, or --where left it without rows" in found["unchecked"]
    run(top, where=(), overwrite=True)
    shutil.copytree(top / "out", tmp_path / "away" / "out")
    (tmp_path / "away" / "out" / "k=0" / "part-00000.parquet").unlink()
    assert "part number 0 is missing" in verdict(tmp_path / "away" / "out")["faults"]
