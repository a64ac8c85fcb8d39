"""Files that change between two runs or during a run: nothing is lost, and no other output is replaced."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.external_weights import scaling
from support.runs import MODELS, cli, oracle, read, write

import scorer
from scorer.errors import CommitError, OutputExists, RunFailed
from scorer.output import existing, publish

SUM, NAMED = MODELS / "sum3.onnx", MODELS / "named3.onnx"
FEED = {"feed": "x=a,b,c", "keep": "id", "threads": 2, "part_bytes": 4096, "batch_rows": 64}


class Cut(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def source(tmp_path):
    """2,000 rows in ten row groups, and their scores."""
    rng = np.random.default_rng(5)
    columns = {"id": np.arange(2000)} | {name: rng.standard_normal(2000).astype(np.float32) for name in "abc"}
    return write(tmp_path / "in.parquet", columns, row_group_size=200)


def other(source, tmp_path):
    """Write another input with other rows."""
    return write(tmp_path / "other.parquet", {"id": np.arange(5), **{c: np.ones(5, np.float32) for c in "abc"}})


def exact(output, source):
    table, rows = read(output), read(source.parent / "in.parquet") if source.is_dir() else read_one(source)
    matrix = np.stack([rows[c].to_numpy() for c in "abc"], axis=1)
    assert table["id"].to_pylist() == rows["id"].to_pylist()
    assert np.allclose(table["total"].to_numpy(), oracle(SUM, {"x": matrix})["total"])
    assert cli("verify", output, "--deep")[0] == 0


def read_one(path):
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read()


def staged(output):
    """Return the staged parts of the unfinished run."""
    return sorted(Path(f"{output}.scorer").glob("work-*/parts/*.parquet"))


@pytest.fixture
def before_publish(source, tmp_path, monkeypatch):
    """The output of a run that stopped when all parts were staged."""

    def cut(*_, **__):
        raise Cut

    monkeypatch.setattr(publish, "publish", cut)
    with pytest.raises(Cut):
        scorer.run(source, SUM, tmp_path / "out", **FEED)
    monkeypatch.undo()
    assert len(staged(tmp_path / "out")) >= 8
    return tmp_path / "out"


def test_a_staged_part_that_was_truncated_is_scored_again(source, before_publish):
    part = staged(before_publish)[3]
    part.write_bytes(part.read_bytes()[:200])
    report = scorer.run(source, SUM, before_publish, **FEED)
    assert report.parts - report.parts_resumed == 1
    exact(before_publish, source)


def test_a_staged_part_with_the_file_of_another_part_is_scored_again(source, before_publish):
    parts = staged(before_publish)
    shutil.copy(parts[1], parts[2])
    next(Path(f"{before_publish}.scorer").glob("work-*/journal.jsonl")).unlink()
    report = scorer.run(source, SUM, before_publish, **FEED)
    assert report.parts - report.parts_resumed == 1
    exact(before_publish, source)


def test_a_stray_file_in_staging_is_neither_counted_nor_published(source, before_publish):
    parts = staged(before_publish)
    parts[1].unlink()
    (parts[0].parent / ".DS_Store").write_text("x")
    scorer.run(source, SUM, before_publish, **FEED)
    exact(before_publish, source)
    assert not (before_publish / ".DS_Store").exists()


def test_a_run_that_loses_a_staged_part_is_not_published(source, tmp_path):
    def remove(event):
        if isinstance(event, scorer.events.PartFinished) and event.receipt.proof.part == 2:
            next(Path(f"{tmp_path}/out.scorer").glob("work-*/parts/part-00002.parquet")).unlink()

    with pytest.raises(CommitError, match="staged parts changed"):
        scorer.run(source, SUM, tmp_path / "out", observers=[remove], **FEED)
    assert not (tmp_path / "out").exists()
    scorer.run(source, SUM, tmp_path / "out", **FEED)
    exact(tmp_path / "out", source)


def test_a_folder_that_appears_at_the_output_during_the_run_is_left_alone(source, tmp_path):
    def appear(event):
        if isinstance(event, scorer.events.PartFinished) and not (tmp_path / "out").exists():
            write(tmp_path / "out" / "thesis.parquet", {"a": [1]})

    with pytest.raises(CommitError, match="other files appeared in the output folder"):
        scorer.run(source, SUM, tmp_path / "out", observers=[appear], **FEED)
    assert read(tmp_path / "out").column_names == ["a"]
    with pytest.raises(scorer.PreflightError, match="the output exists"):
        scorer.run(source, SUM, tmp_path / "out", **FEED)
    shutil.move(tmp_path / "out", tmp_path / "mine")
    report = scorer.run(source, SUM, tmp_path / "out", **FEED)
    assert report.calls == 0
    exact(tmp_path / "out", source)


def test_a_file_that_is_added_while_an_output_is_replaced_is_left_alone(source, tmp_path):
    first = scorer.run(source, SUM, tmp_path / "out", **FEED)

    def add(event):
        if isinstance(event, scorer.events.PartFinished):
            write(tmp_path / "out" / "thesis.parquet", {"id": [1], "total": [1.0]})

    with pytest.raises(CommitError, match="other files appeared in the output folder") as refused:
        scorer.run(source, SUM, tmp_path / "out", limit=300, overwrite=True, observers=[add], **FEED)
    assert refused.value.found == "'thesis.parquet'"
    assert (tmp_path / "out" / "thesis.parquet").exists()
    assert len(list((tmp_path / "out").iterdir())) == first.parts + 1
    (tmp_path / "out" / "thesis.parquet").unlink()
    report = scorer.run(source, SUM, tmp_path / "out", limit=300, overwrite=True, **FEED)
    assert report.calls == 0
    assert read(tmp_path / "out").num_rows == 300


def overwrite(source, output, **more):
    """Replace an output by the scores of the first 300 rows; return the error, if it is refused."""
    try:
        scorer.run(source, SUM, output, limit=300, overwrite=True, **FEED, **more)
    except scorer.PreflightError as error:
        (problem,) = error.problems
        assert isinstance(problem, OutputExists)
        return problem
    assert read(output).num_rows == 300
    assert cli("verify", output, "--deep", *(["--work-dir", more["work_dir"]] if more else []))[0] == 0
    return None


def test_a_part_that_somebody_wrote_again_is_not_replaced(source, tmp_path):
    scorer.run(source, SUM, tmp_path / "out", **FEED)
    write(tmp_path / "out" / "part-00003.parquet", {"corrected": np.arange(9)})
    assert overwrite(source, tmp_path / "out").found == "'part-00003.parquet'"
    assert read_one(tmp_path / "out" / "part-00003.parquet").column_names == ["corrected"]


def test_a_part_that_is_damaged_or_gone_is_replaced(source, tmp_path):
    scorer.run(source, SUM, tmp_path / "out", **FEED)
    (tmp_path / "out" / "part-00002.parquet").unlink()
    (tmp_path / "out" / "part-00003.parquet").write_bytes(b"damaged")
    assert overwrite(source, tmp_path / "out") is None


def test_a_link_in_an_output_is_not_replaced(source, tmp_path):
    scorer.run(source, SUM, tmp_path / "out", **FEED)
    write(tmp_path / "mine" / "a.parquet", {"a": [1]})
    (tmp_path / "out" / "mine").symlink_to(tmp_path / "mine")
    assert overwrite(source, tmp_path / "out").found == "'mine'"
    assert (tmp_path / "out" / "mine").is_symlink()


def test_the_output_of_another_run_in_the_place_of_the_proven_one_is_not_replaced(source, tmp_path):
    scorer.run(source, SUM, tmp_path / "out", **FEED)
    scorer.run(source, SUM, tmp_path / "other", row_id=True, **FEED)
    shutil.rmtree(tmp_path / "out")
    shutil.move(tmp_path / "other", tmp_path / "out")
    assert "'part-00000.parquet'" in overwrite(source, tmp_path / "out").found
    assert "_row" in read(tmp_path / "out").column_names


def test_an_output_of_an_older_format_is_replaced_as_long_as_its_proof_names_its_files(source, tmp_path):
    scorer.run(source, SUM, tmp_path / "out", **FEED)
    path = tmp_path / "out.scorer" / "plan.json"
    plan = json.loads(path.read_text())
    plan["request"]["format"], plan["versions"]["scorer"] = 1, "0.0.1"
    path.write_text(json.dumps(plan))
    write(tmp_path / "out" / "mine.parquet", {"a": [1]})
    assert overwrite(source, tmp_path / "out").found == "'mine.parquet'"
    (tmp_path / "out" / "mine.parquet").unlink()
    assert overwrite(source, tmp_path / "out") is None


def test_an_output_is_replaced_only_with_the_work_dir_of_its_proof(source, tmp_path):
    scorer.run(source, SUM, tmp_path / "out", work_dir=tmp_path / "work", **FEED)
    problem = overwrite(source, tmp_path / "out")
    assert "--work-dir" in problem.hint
    assert read(tmp_path / "out").num_rows == 2000
    assert overwrite(source, tmp_path / "out", work_dir=tmp_path / "work") is None


def test_folders_of_other_names_in_a_work_dir_are_kept(source, tmp_path):
    theirs = [tmp_path / "work" / name / "notes.txt" for name in ("work-2024", "work-20240101", "data")]
    for path in theirs:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    scorer.run(source, SUM, tmp_path / "out", work_dir=tmp_path / "work", **FEED)
    assert overwrite(source, tmp_path / "out", work_dir=tmp_path / "work") is None
    assert [path.read_text() for path in theirs] == ["mine"] * 3


def test_a_folder_behind_a_link_is_not_replaced(source, tmp_path):
    write(tmp_path / "mine" / "a.parquet", {"a": [1]})
    (tmp_path / "out").symlink_to(tmp_path / "mine")
    assert "'a.parquet'" in overwrite(source, tmp_path / "out").found
    assert read(tmp_path / "mine").num_rows == 1


def test_a_run_that_was_planned_before_another_published_does_not_replace_it(source, tmp_path):
    plan = scorer.prepare(source, SUM, tmp_path / "out", **FEED)
    first = scorer.run(other(source, tmp_path), SUM, tmp_path / "out", **FEED)
    with pytest.raises(OutputExists, match="the output exists"):
        scorer.execute(plan)
    assert read(tmp_path / "out").num_rows == first.counts.scored == 5


def test_a_plan_whose_request_is_already_done_scores_nothing(source, tmp_path):
    plan = scorer.prepare(source, SUM, tmp_path / "out", **FEED)
    scorer.run(source, SUM, tmp_path / "out", **FEED)
    assert scorer.execute(plan).already_done
    exact(tmp_path / "out", source)


def test_overwriting_the_output_of_the_same_request_does_nothing_and_says_how_to_score_again(source, tmp_path):
    out = tmp_path / "out"
    flags = ("--output", out, "--feed", "x=a,b,c", "--threads", "1")
    assert cli("run", source, "--model", SUM, *flags)[0] == 0
    text = cli("run", source, "--model", SUM, *flags)[1]
    assert "Done already" in text
    assert "--overwrite" not in text
    text = " ".join(cli("run", source, "--model", SUM, *flags, "--overwrite")[1].split())
    assert "Done already" in text
    assert f"to score it again, remove {out} and {out}.scorer first" in text


@pytest.mark.parametrize("moved", [0, 1, 2, 3])
def test_an_overwrite_interrupted_while_publishing_is_finished_by_the_next_run(source, tmp_path, monkeypatch, moved):
    """With `moved` files of the new proof in place, the old command must not take the new output for its own."""
    scorer.run(source, SUM, tmp_path / "out", **FEED)
    calls = 0

    def cut_after(source_, target):
        nonlocal calls
        if Path(target).parent == tmp_path / "out.scorer" and Path(target).name in existing.PROOF_FILES:
            if calls == moved:
                raise Cut
            calls += 1
        return renamed(source_, target)

    import os

    renamed = os.rename
    monkeypatch.setattr(os, "rename", cut_after)
    with pytest.raises(Cut):
        scorer.run(source, SUM, tmp_path / "out", limit=300, overwrite=True, **FEED)
    monkeypatch.undo()
    flags = ("--feed", "x=a,b,c", "--keep", "id", "--threads", "2", "--part-bytes", "4096", "--batch-rows", "64")
    code, _, text = cli("run", source, "--model", SUM, "--output", tmp_path / "out", *flags)
    assert code == 3
    assert "limit" in text
    report = scorer.run(source, SUM, tmp_path / "out", limit=300, **FEED)
    assert report.already_done
    assert read(tmp_path / "out").num_rows == 300
    assert cli("verify", tmp_path / "out", "--deep")[0] == 0


@pytest.mark.parametrize("place", ["function", "branch without nodes"])
def test_external_weights_that_change_make_another_request(source, tmp_path, place):
    model = scaling(tmp_path, place)
    asked = ("run", source, "--model", model, "--output", tmp_path / "out", "--feed", "x=a,b", "--threads", 1)
    assert cli(*asked)[0] == 0
    assert "already" in cli(*asked)[1]
    (tmp_path / "w.bin").write_bytes(np.full(2, 4, np.float32).tobytes())
    code, _, text = cli(*asked)
    assert code == 3
    assert "the model's contents" in text


def test_a_broken_page_is_one_clear_error_for_every_slice(tmp_path):
    rng = np.random.default_rng(1)
    columns = {"id": np.arange(60_000)} | {name: rng.integers(0, 9, 60_000).astype(np.float32) for name in "abc"}
    path = write(tmp_path / "in.parquet", columns, row_group_size=60_000, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    path.write_bytes(data)
    asked = {**FEED, "part_bytes": "64KiB", "cluster": "synchronous"}
    with pytest.raises(RunFailed) as failed:
        scorer.run(path, SUM, tmp_path / "out", **asked)
    assert "StopIteration" not in str(failed.value)
    assert "cannot be read as Parquet" in failed.value.found
    assert not (tmp_path / "out").exists()


def test_a_tensor_fed_by_position_gets_a_note_and_is_refused_by_strict(source, tmp_path):
    plan = scorer.prepare(source, SUM, tmp_path / "out", by_position=True)
    assert any("by position" in note for note in plan.notes)
    strict = scorer.prepare(source, SUM, tmp_path / "out", by_position=True, strict=True)
    assert "by position" in strict.problems[0].what
    assert not any("position" in note for note in scorer.prepare(source, NAMED, tmp_path / "out").notes)


def test_a_work_folder_serves_its_own_output_again_and_another_only_after_that_is_gone(source, tmp_path):
    shared = {"work_dir": tmp_path / "work", **FEED}
    scorer.run(source, SUM, tmp_path / "a", **shared)
    scorer.run(source, SUM, tmp_path / "a", limit=100, overwrite=True, **shared)
    with pytest.raises(scorer.PreflightError, match="belongs to another output"):
        scorer.run(source, SUM, tmp_path / "b", overwrite=True, **shared)
    assert cli("verify", tmp_path / "a", "--work-dir", tmp_path / "work", "--deep")[0] == 0
    shutil.copytree(tmp_path / "a", tmp_path / "copy" / "a")
    shutil.copytree(tmp_path / "work", tmp_path / "copy" / "work")
    again = shared | {"work_dir": tmp_path / "copy" / "work", "limit": 100}
    assert scorer.run(source, SUM, tmp_path / "copy" / "a", **again).already_done
    shutil.rmtree(tmp_path / "a")
    scorer.run(source, SUM, tmp_path / "b", **shared)
    assert cli("verify", tmp_path / "b", "--work-dir", tmp_path / "work", "--deep")[0] == 0


def test_a_run_that_published_into_the_work_folder_meanwhile_keeps_it(source, tmp_path):
    shared = {"work_dir": tmp_path / "work", **FEED}
    plan = scorer.prepare(source, SUM, tmp_path / "b", **shared)
    scorer.run(source, SUM, tmp_path / "a", **shared)
    with pytest.raises(OutputExists, match="belongs to another output"):
        scorer.execute(plan)
    assert cli("verify", tmp_path / "a", "--work-dir", tmp_path / "work", "--deep")[0] == 0
    assert not (tmp_path / "b").exists()
