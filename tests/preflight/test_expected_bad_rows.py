"""Bad rows are reported: in the plan before the run, and at the end of the run with the reason."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs import MODELS, cli, write

import scorer
from scorer.output import quarantine

GATHER = MODELS / "gather.onnx"
ROWS = 1000


def indices(folder, bad):
    """A file of indices into a table of ten rows; the bad ones are out of range."""
    index = np.arange(ROWS) % 3
    index[bad] = 900 + np.arange(ROWS)[bad]
    return write(folder / "in.parquet", {"idx": index, "name": [f"row {i}" for i in range(ROWS)]}, row_group_size=250)


def test_bad_rows_among_the_first_are_a_note_of_the_plan(tmp_path):
    plan = scorer.prepare(indices(tmp_path, slice(0, 20, 2)), GATHER, tmp_path / "out", max_bad_rows=20)
    (note,) = [note for note in plan.notes if "bad row" in note]
    assert note.startswith("10 bad rows among the first ")
    assert ": 10 x Gather: indices element out of data bounds" in note
    assert "idx=900" in note
    assert not plan.problems


def test_a_run_does_not_start_if_none_of_its_first_rows_can_be_scored(tmp_path):
    source = indices(tmp_path, slice(None))
    plan = scorer.prepare(source, GATHER, tmp_path / "out")
    (problem,) = plan.problems
    assert problem.what == "none of the first rows can be scored"
    assert "256 bad rows: 256 x" in problem.found
    assert not scorer.prepare(source, GATHER, tmp_path / "out", max_bad_rows="100%").problems
    assert not scorer.prepare(source, GATHER, tmp_path / "out", where="idx < 10").problems


@pytest.mark.parametrize(("limit", "tolerated"), [(5, 5), (1, 1), (0, 0), (20, "100%")])
def test_bad_rows_after_the_limit_do_not_stop_a_run_from_starting(limit, tolerated, tmp_path):
    source = indices(tmp_path, slice(None))
    report = scorer.run(source, GATHER, tmp_path / "out", limit=limit, max_bad_rows=tolerated, cluster="synchronous")
    assert (report.counts.rows, report.counts.quarantined) == (limit, limit)
    if limit:
        plan = scorer.prepare(source, GATHER, tmp_path / "other", limit=limit, max_bad_rows=limit - 1)
        assert [problem.what for problem in plan.problems] == ["none of the first rows can be scored"]


def test_a_failed_run_says_why_and_how_often(tmp_path):
    code, out, said = cli("run", indices(tmp_path, slice(500, 510)), "--model", GATHER, "--output", tmp_path / "out")
    assert code == 1, out
    assert "10 rows could not be scored; nothing was published" in said
    assert "10 of 1,000: 10 x " in said
    assert "indices element out of data bounds" in said
    page = next(tmp_path.glob("out.scorer/work-*/report.html"))
    assert str(page) in cli("status", tmp_path / "out")[1]
    code, _, said = cli("report", tmp_path / "out")
    assert (code, str(page) in said) == (5, True)


def test_errors_that_differ_in_numbers_only_are_one_reason():
    told = quarantine.in_words({"'3' in 'a'": 1, "'7' in 'a'": 2, "not a float32": 1, "b": 1, "c": 1})
    assert told == "3 x '3' in 'a' (or other numbers); 1 x not a float32; 1 x b; 1 x other errors"


def test_done_already_does_not_hide_the_quarantine(tmp_path):
    source = indices(tmp_path, slice(500, 510))
    asked = ["run", source, "--model", GATHER, "--output", tmp_path / "out"]
    assert cli(*asked, "--max-bad-rows", 10)[0] == 0
    code, out, _ = cli(*asked)
    assert code == 0
    assert "Done already: 990 rows are scored" in out
    assert "quarantine 10 rows with their errors, in " in " ".join(out.split())


@pytest.mark.parametrize("cluster", ["synchronous", "processes"])
def test_the_key_of_a_path_goes_to_quarantine_with_its_row_and_a_pattern_finds_it_there(tmp_path, cluster):
    for month, bad in (("a b", slice(4, 6)), ("02", slice(7, 8))):
        indices(tmp_path / "in" / f"month={month}", bad)
    scorer.run(tmp_path / "in", GATHER, tmp_path / "out", max_bad_rows=3, cluster=cluster)
    folder = tmp_path / "out.scorer" / "quarantine"
    found = pd.concat([pq.read_table(path).to_pandas() for path in sorted(folder.iterdir())])
    assert dict(zip(found["name"], found["month"], strict=True)) == {"row 7": "02", "row 4": "a b", "row 5": "a b"}
    whole, pattern = (
        scorer.prepare(source, MODELS / "gather.onnx", tmp_path / "mended", where="idx < 0", keep=["month"])
        for source in (folder, folder / "*.parquet")
    )
    assert not whole.problems
    assert whole.frozen.rows == pattern.frozen.rows == 3
    assert pa.types.is_string(pq.read_schema(next(folder.iterdir())).field("month").type)
