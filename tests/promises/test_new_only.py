"""--new-only: an output that grows with its input is what scoring all of the input at once would give."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.buckets import ROOT, bucket
from support.runs import MODELS, cli, read, write

import scorer
from scorer.errors import CommitError
from scorer.output import publish, publish_objects, staging

SUM = MODELS / "sum3.onnx"
FEED = {"feed": "x=a,b,c", "cluster": "synchronous", "tune": False, "batch_rows": 8}
TYPED = ["--feed", "x=a,b,c", "--cluster", "synchronous", "--no-tune", "--batch-rows", 8, "--quiet"]


def add(folder, number, rows=30, **more):
    """Write the file of one night; its ids are unlike those of all others."""
    rng = np.random.default_rng(number)
    columns = {"id": np.arange(rows) + 1000 * number, **{c: rng.standard_normal(rows) for c in "abc"}} | more
    return write(folder / f"night-{number}.parquet", columns, row_group_size=20)


def grow(top, **options):
    return scorer.run(top / "in", SUM, top / "out", new_only=True, **FEED, **options)


def by_id(output):
    """Return all rows of an output in the order of their ids, and what is wrong with the output."""
    return read(output).sort_by("id").select(["id", "a", "b", "c", "total"])


def is_as_scored_at_once(top, **options):
    """Score all of the input at once, and compare; verify the grown output."""
    shutil.rmtree(top / "whole", ignore_errors=True)
    shutil.rmtree(top / "whole.scorer", ignore_errors=True)
    scorer.run(top / "in", SUM, top / "whole", **FEED, **options)
    assert by_id(top / "out").equals(by_id(top / "whole"))
    verdict = scorer.verify(top / "out", deep=True)
    assert verdict.faults == ()
    assert verdict.whole


def manifest(top):
    return json.loads((top / "out.scorer" / "manifest.json").read_text())


def files_of(top):
    """Return every file of the output and its proof, with its time."""
    every = [*(top / "out").rglob("*"), *(top / "out.scorer").rglob("*")]
    return {str(path): path.stat().st_mtime_ns for path in every if path.is_file()}


@pytest.fixture
def first(tmp_path):
    """A folder with two nights that are scored as the first generation."""
    add(tmp_path / "in", 1)
    add(tmp_path / "in", 2)
    grow(tmp_path)
    return tmp_path


class Cut(BaseException):
    """Stands for the end of the process."""


@contextmanager
def cut_after(steps):
    """Raise `Cut` after so many changes of files while an output is published."""
    left = steps

    def counted(function):
        def changed(*args, **options):
            nonlocal left
            left -= 1
            if left < 0:
                raise Cut
            return function(*args, **options)

        return changed

    with (
        mock.patch.multiple(publish, **{name: counted(getattr(publish, name)) for name in ("write_json", "rename")}),
        mock.patch.object(staging, "write_atomically", counted(staging.write_atomically)),
        mock.patch.object(publish.os, "rename", counted(os.rename)),
        mock.patch.object(publish.os, "link", counted(os.link)),
        mock.patch.object(publish.shutil, "rmtree", counted(shutil.rmtree)),
    ):
        yield


@contextmanager
def cut_in(module, names, steps):
    """Raise `Cut` before or after a call of these functions: `steps` counts both."""
    left = steps

    def step():
        nonlocal left
        left -= 1
        if left < 0:
            raise Cut

    def stepped(function):
        def called(*args, **options):
            step()
            result = function(*args, **options)
            step()
            return result

        return called

    with mock.patch.multiple(module, **{name: stepped(getattr(module, name)) for name in names}):
        yield


REPLACING = {"on_changed": "rescore", "on_gone": "remove"}
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 40)),
        st.tuples(st.just("run"), st.just(0)),
        st.tuples(st.just("cut"), st.integers(0, 24)),
        st.tuples(st.sampled_from(["change", "remove"]), st.integers(0, 40)),
    ),
    min_size=2,
    max_size=9,
)


def any_order_of_nights(actions, flat):
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where syncing costs nothing
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        top, night = Path(folder), 1
        add(top / "in", night)
        if flat:
            scorer.run(top / "in", SUM, top / "out", **FEED)
        for action, number in actions:
            there = sorted(int(path.stem.partition("-")[2]) for path in (top / "in").iterdir())
            if action == "add":
                night += 1
                add(top / "in", night, number)
            elif action == "change":
                add(top / "in", there[number % len(there)], number)
            elif action == "remove":
                if len(there) > 1:
                    (top / "in" / f"night-{there[number % len(there)]}.parquet").unlink()
            elif action == "run":
                grow(top, **REPLACING)
            else:
                with cut_after(number), suppress(Cut):
                    grow(top, **REPLACING)
        grow(top, **REPLACING)
        is_as_scored_at_once(top)
        before = files_of(top)
        assert grow(top, **REPLACING).already_done
        assert files_of(top) == before
        assert not list((top / "out.scorer").glob("work-*"))


@settings(max_examples=6, deadline=None)
@given(ACTIONS, st.booleans())
def test_after_any_nights_and_interruptions_the_output_is_as_scored_at_once(actions, flat):
    any_order_of_nights(actions, flat)


@pytest.mark.minutes
@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=80, deadline=None)
@given(ACTIONS, st.booleans())
def test_after_many_nights_and_interruptions_the_output_is_as_scored_at_once(actions, flat):
    any_order_of_nights(actions, flat)


def test_a_new_night_becomes_one_folder_and_part_numbers_go_on(first):
    add(first / "in", 3)
    report = grow(first)
    assert (report.generation, report.counts.rows) == (2, 30)
    assert report.notes == ("--new-only adds 1 new file to 2 files scored already",)
    names = sorted(str(path.relative_to(first / "out")) for path in (first / "out").rglob("*.parquet"))
    assert names == ["generation=0001/part-00000.parquet", "generation=0002/part-00001.parquet"]
    is_as_scored_at_once(first)
    found = manifest(first)
    assert (found["parts"], found["rows"]) == (2, 90)
    assert [(one["generation"], one["files"], one["rows"]) for one in found["generations"]] == [(1, 2, 60), (2, 1, 30)]
    ledger = pq.read_table(first / "out.scorer" / "ledger.parquet")
    assert ledger["generation"].to_pylist() == [1, 2]
    assert scorer.status(first / "out").generations == 2
    assert "2 parts" not in cli("status", first / "out")[1]
    assert "2 in 2 generations" in cli("status", first / "out")[1]
    assert "whole" not in cli("report", first / "out")[1]


def test_only_the_new_files_are_opened(first):
    add(first / "in", 3)
    for name in ("night-1.parquet", "night-2.parquet"):  # not Parquet any more, with the same size and time
        path = first / "in" / name
        then = path.stat()
        path.write_bytes(b"x" * then.st_size)
        os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert grow(first).counts.rows == 30


def test_nothing_new_writes_nothing(first):
    before = files_of(first)
    assert grow(first).already_done
    code, out, _ = cli("run", first / "in", "--model", SUM, "--output", first / "out", "--new-only", *TYPED)
    assert code == 0
    assert out.startswith("Done already: 60 rows are scored")
    assert files_of(first) == before


def test_another_recipe_is_refused_with_what_differs(first):
    add(first / "in", 3)
    with pytest.raises(scorer.PreflightError) as caught:
        grow(first, where="a > 0", keep="id")
    (problem,) = caught.value.problems
    assert problem.what == "the output was scored in another way, so new files cannot be added to it"
    assert problem.found == "keep = ['all'], now ['id']; where = [], now ['a > 0']"
    assert problem.exit_code == 3
    assert manifest(first)["rows"] == 60


def test_another_model_is_refused(first):
    with pytest.raises(scorer.PreflightError, match="the model's contents"):
        scorer.run(first / "in", MODELS / "named3.onnx", first / "out", new_only=True, **FEED)


def test_changed_files_are_refused_by_name_and_overwrite_scores_all_again(first):
    add(first / "in", 2, 31)
    add(first / "in", 3)
    with pytest.raises(scorer.PreflightError, match="input files changed since they were scored") as caught:
        grow(first)
    assert caught.value.problems[0].found == f"1 changed: {str(first / 'in' / 'night-2.parquet')!r}"
    assert caught.value.exit_code == 3
    assert grow(first, overwrite=True).counts.rows == 91
    assert [one["generation"] for one in manifest(first)["generations"]] == [1]
    is_as_scored_at_once(first)


def test_files_that_are_gone_are_noted_and_their_rows_stay(first):
    (first / "in" / "night-1.parquet").unlink()
    assert grow(first).already_done
    add(first / "in", 3)
    report = grow(first)
    assert "1 file of the input cannot be found any more; their rows stay" in report.notes[0]
    assert sorted(set(read(first / "out")["id"].to_numpy() // 1000)) == [1, 2, 3]


def test_a_moved_input_is_refused_because_its_rows_would_be_scored_twice(first):
    (first / "in").rename(first / "elsewhere")
    with pytest.raises(scorer.PreflightError, match="moved since they were scored") as caught:
        scorer.run(first / "elsewhere", SUM, first / "out", new_only=True, **FEED)
    assert "2 files with the same name, size and time elsewhere" in caught.value.problems[0].found


def test_without_the_flag_the_refusal_names_the_new_files_and_the_flag(first):
    add(first / "in", 3)
    with pytest.raises(scorer.PreflightError) as caught:
        scorer.run(first / "in", SUM, first / "out", **FEED)
    (problem,) = caught.value.problems
    assert (
        problem.found == f"the output of another request: 1 new input file: {str(first / 'in' / 'night-3.parquet')!r}"
    )
    assert "add the new files with --new-only" in problem.hint


def test_without_the_flag_a_grown_output_of_the_same_input_is_done_already(first):
    add(first / "in", 3)
    grow(first)
    assert scorer.run(first / "in", SUM, first / "out", **FEED).already_done


def test_a_new_file_with_other_columns_is_refused(first):
    write(first / "in" / "night-3.parquet", {"id": np.arange(3), "a": ["x"] * 3, "b": np.ones(3)})
    with pytest.raises(scorer.PreflightError, match="columns are not as in the files that are scored") as caught:
        grow(first)
    assert caught.value.problems[0].found == "a: string, c: no such column"


def test_a_column_of_the_name_of_the_folders_is_refused(tmp_path):
    add(tmp_path / "in", 1, generation=np.zeros(30))
    with pytest.raises(scorer.PreflightError, match="two columns named 'generation'"):
        grow(tmp_path)
    grow(tmp_path, keep="id")


def test_rows_of_changed_files_are_replaced_and_each_row_can_be_scored_again(first):
    add(first / "in", 2, 31)
    add(first / "in", 3)
    report = grow(first, on_changed="rescore")
    assert (report.generation, report.counts.rows) == (2, 91)  # night 1 was in one part with night 2
    assert [note.partition(":")[0] for note in report.notes] == [
        "the rows of 1 changed file are replaced",
        "1 other file scored again, because the output has their rows in one file with rows that are replaced",
        "--new-only adds 1 new file to 0 files scored already",
    ]
    is_as_scored_at_once(first)
    assert [(one["files"], one["rows"], one["parts"]) for one in manifest(first)["generations"]] == [
        (0, 0, 0),
        (3, 91, 1),
    ]
    add(first / "in", 4)
    assert grow(first).counts.rows == 30
    assert [one["rows"] for one in manifest(first)["generations"]] == [0, 91, 30]
    assert scorer.verify(first / "out", rescore=121).rescored.startswith("121 rows of 2 parts: all have the same bits")
    assert scorer.status(first / "out").rows == 121
    code, out, _ = cli("replay", first / "out", "--row", 95)
    assert code == 0
    assert "row 4 of generation=0003/part-00002.parquet" in out
    assert cli("report", first / "out")[0] == 0


def test_rows_of_files_that_are_gone_are_removed_without_a_new_file(first):
    add(first / "in", 3)
    grow(first)
    (first / "in" / "night-3.parquet").unlink()
    with pytest.raises(scorer.PreflightError, match="input files were removed since they were scored"):
        grow(first, on_gone="error")
    report = grow(first, on_gone="remove")
    assert (report.generation, report.counts.rows, report.parts) == (3, 0, 0)
    assert "their rows are removed from the output" in report.notes[0]
    is_as_scored_at_once(first)
    assert manifest(first)["rows"] == 60
    assert grow(first, on_gone="remove").already_done
    assert scorer.run(first / "in", SUM, first / "out", **FEED).already_done
    assert cli("report", first / "out")[0] == 0
    for night in (1, 2):
        (first / "in" / f"night-{night}.parquet").unlink()
    write(first / "in" / "other.parquet", {"id": np.arange(0), **dict.fromkeys("abc", np.ones(0))})
    assert grow(first, on_gone="remove").counts.rows == 0
    assert read(first / "out").num_rows == 0


def test_rows_are_not_kept_in_a_file_of_the_output_that_is_replaced(first):
    (first / "in" / "night-1.parquet").unlink()
    add(first / "in", 2, 31)
    with pytest.raises(scorer.PreflightError, match="rows that are kept are in one file of the output") as caught:
        grow(first, on_changed="rescore")
    assert "--on-gone remove" in caught.value.problems[0].hint
    grow(first, on_changed="rescore", on_gone="remove")
    is_as_scored_at_once(first)


def test_moved_files_are_scored_again_if_their_earlier_rows_are_removed(first):
    (first / "in").rename(first / "elsewhere")
    add(first / "in", 3)
    shutil.move(first / "elsewhere" / "night-1.parquet", first / "in" / "old-1.parquet")
    grow(first, on_gone="remove")
    is_as_scored_at_once(first)


def test_quarantined_rows_of_replaced_files_leave_the_quarantine(tmp_path):
    for night in (1, 2):
        add(tmp_path / "in", night, a=np.where(np.arange(30) == night, 1e300, 1.0))
        grow(tmp_path, max_bad_rows=1)
    add(tmp_path / "in", 2, 20)
    assert grow(tmp_path, max_bad_rows=1, on_changed="rescore").counts.quarantined == 0
    is_as_scored_at_once(tmp_path, max_bad_rows=1)
    assert pq.read_table(tmp_path / "out.scorer" / "quarantine")["id"].to_pylist() == [1001]


def test_an_output_that_grows_is_an_input_that_grows(first):
    second = {**FEED, "feed": "x=a,b,total", "keep": "id"}
    for night in (3, 4):
        scorer.run(first / "out", SUM, first / "second", new_only=True, fetch="total=again", **second)
        add(first / "in", night)
        grow(first)
    scorer.run(first / "out", SUM, first / "second", new_only=True, fetch="total=again", **second)
    assert sorted(path.name for path in (first / "second").iterdir()) == [f"generation=000{n}" for n in (1, 2, 3)]
    assert read(first / "second").num_rows == 120
    assert scorer.verify(first / "second", deep=True).whole


def test_hive_folders_filters_and_bad_rows(tmp_path):
    def night(day):
        bad = np.where(np.arange(30) == day, 1e300, 0.5)
        write(
            tmp_path / "in" / f"day={day}" / "x.parquet",
            {"id": np.arange(30) + 1000 * day, **dict.fromkeys("abc", bad)},
        )

    options = {"where": ["day > 1", "id > 0"], "max_bad_rows": 1}
    for day in (1, 2, 3):
        night(day)
        report = grow(tmp_path, **options)
        assert (report.generation, report.counts.filtered) == (day, 30 if day == 1 else 0)
    assert [one["rows"] for one in manifest(tmp_path)["generations"]] == [30, 30, 30]
    is_as_scored_at_once(tmp_path, **options | {"max_bad_rows": 2})
    quarantined = pq.read_table(tmp_path / "out.scorer" / "quarantine")
    assert sorted(quarantined["id"].to_pylist()) == [2002, 3003]
    assert scorer.verify(tmp_path / "out", rescore=20).whole


def test_an_unfinished_generation_is_finished_before_newer_files_are_scored(first):
    add(first / "in", 3)
    with mock.patch.object(publish, "publish", side_effect=Cut), pytest.raises(Cut):
        grow(first)
    add(first / "in", 4)
    plan = scorer.prepare(first / "in", SUM, first / "out", new_only=True, **FEED)
    assert plan.resumes
    assert plan.check().rows == 30
    assert grow(first).generation == 3
    assert [one["rows"] for one in manifest(first)["generations"]] == [60, 30, 30]
    is_as_scored_at_once(first)


def test_an_unfinished_first_run_is_finished_although_its_input_has_grown(tmp_path):
    add(tmp_path / "in", 1)
    with mock.patch.object(publish, "publish", side_effect=Cut), pytest.raises(Cut):
        grow(tmp_path)
    add(tmp_path / "in", 2)
    assert grow(tmp_path).generation == 2
    is_as_scored_at_once(tmp_path)


def test_an_unfinished_generation_whose_files_changed_is_planned_again(first):
    add(first / "in", 3)
    with mock.patch.object(publish, "publish", side_effect=Cut), pytest.raises(Cut):
        grow(first)
    add(first / "in", 3, 20)
    report = grow(first)
    assert "an unfinished run is planned again, because 1 file of it changed" in report.notes[0]
    is_as_scored_at_once(first)


def test_a_plan_is_refused_if_another_run_added_a_generation_meanwhile(first):
    add(first / "in", 3)
    plan = scorer.prepare(first / "in", SUM, first / "out", new_only=True, **FEED)
    add(first / "in", 4)
    grow(first)
    with pytest.raises(CommitError, match="the output was changed while this run was prepared"):
        scorer.execute(plan)
    is_as_scored_at_once(first)


def test_verify_finds_a_generation_that_was_removed_and_a_plan_that_was_lost(first):
    add(first / "in", 3)
    grow(first)
    shutil.move(first / "out" / "generation=0002", first / "kept")
    assert scorer.verify(first / "out").faults == ("generation=0002/part-00001.parquet: the part is gone",)
    with pytest.raises(scorer.PreflightError, match="the output was changed after it was published"):
        grow(first)
    shutil.move(first / "kept", first / "out" / "generation=0002")
    assert scorer.verify(first / "out").whole
    (first / "out.scorer" / "generation=0001" / "plan.json").unlink()
    with pytest.raises(CommitError, match="the proof of an earlier generation is lost"):
        scorer.verify(first / "out")
    with pytest.raises(scorer.PreflightError, match="the proof of an earlier generation is lost") as caught:
        grow(first)
    assert caught.value.problems[0].hint == "restore it, or score everything again with --overwrite"
    assert grow(first, overwrite=True).counts.rows == 90
    is_as_scored_at_once(first)


@pytest.mark.parametrize("content", ["", "{}", "[1]"])
def test_a_damaged_plan_of_an_earlier_generation_is_named_and_overwrite_scores_all_again(first, content):
    add(first / "in", 3)
    grow(first)
    path = first / "out.scorer" / "generation=0001" / "plan.json"
    path.write_text(content)
    with pytest.raises(scorer.PreflightError, match="the proof of an earlier generation is lost") as caught:
        grow(first)
    assert caught.value.problems[0].where == str(path)
    assert grow(first, overwrite=True).generation == 1
    is_as_scored_at_once(first)


def test_a_grown_output_without_its_proof_is_checked_by_its_parts(first):
    add(first / "in", 3)
    grow(first)
    shutil.move(first / "out", first / "alone")
    verdict = scorer.verify(first / "alone", deep=True)
    assert verdict.faults == ()
    assert verdict.counts.rows == 90
    (first / "alone" / "generation=0001" / "part-00000.parquet").unlink()
    verdict = scorer.verify(first / "alone")
    assert verdict.unchecked[0].startswith(
        "whether part number 0 is missing, or --where left it without rows or a later"
    )
    assert not verdict.whole


def test_overwrite_without_the_flag_removes_all_generations(first):
    add(first / "in", 3)
    grow(first)
    scorer.run(first / "in", SUM, first / "out", overwrite=True, row_id=True, **FEED)
    assert [path.name for path in (first / "out").iterdir()] == ["part-00000.parquet"]
    assert not list((first / "out.scorer").glob("generation=*"))
    assert scorer.verify(first / "out", deep=True).whole


def test_an_output_without_generations_becomes_the_first_one_in_one_step(tmp_path):
    add(tmp_path / "in", 1)
    scorer.run(tmp_path / "in", SUM, tmp_path / "out", **FEED)
    assert grow(tmp_path).already_done
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["part-00000.parquet"]
    add(tmp_path / "in", 2)
    grow(tmp_path)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["generation=0001", "generation=0002"]
    is_as_scored_at_once(tmp_path)
    assert not (tmp_path / "out.scorer" / "old").exists()


def test_files_of_others_keep_an_output_without_generations_as_it_is(tmp_path):
    add(tmp_path / "in", 1)
    scorer.run(tmp_path / "in", SUM, tmp_path / "out", **FEED)
    add(tmp_path / "in", 2)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(CommitError, match="other files"):
        grow(tmp_path)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    (tmp_path / "out" / "notes.txt").unlink()
    grow(tmp_path)
    is_as_scored_at_once(tmp_path)


def test_a_folder_in_the_place_of_the_next_generation_is_left_alone(first):
    add(first / "in", 3)
    write(first / "out" / "generation=0002" / "theirs.parquet", pa.table({"z": [1]}))
    with pytest.raises(CommitError, match="the folder of the next generation exists"):
        grow(first)
    shutil.rmtree(first / "out" / "generation=0002")
    assert grow(first).parts_resumed == 1
    is_as_scored_at_once(first)


def test_a_limit_cannot_be_combined_with_it(tmp_path):
    with pytest.raises(scorer.PreflightError, match="--limit and --new-only cannot be combined"):
        grow(tmp_path, limit=5)


@pytest.mark.parametrize("overwrite", [False, True], ids=["", "overwrite"])
@pytest.mark.parametrize("flat", [False, True], ids=["from the beginning", "later"])
def test_an_output_on_a_store_grows_by_copies_and_its_manifest_is_last(flat, overwrite, tmp_path):
    with bucket() as store:
        output, _ = f"{ROOT}/top/scores", add(tmp_path / "in", 1)
        add(tmp_path / "in", 2)
        scorer.run(tmp_path / "in", SUM, output, new_only=not flat, **FEED)
        before = {file.path: file.version for file in store.objects(output)}
        add(tmp_path / "in", 3)
        report = scorer.run(tmp_path / "in", SUM, output, new_only=True, overwrite=overwrite, **FEED)
        assert (report.generation, report.counts.rows) == (2, 30)
        after = {file.path: file.version for file in store.objects(output)}
        assert before.items() < after.items()
        assert len(after) == len(before) + 1
        assert scorer.verify(output, deep=True, rescore=20).whole
        assert scorer.run(tmp_path / "in", SUM, output, new_only=True, **FEED).already_done
        add(tmp_path / "in", 1, 31)
        with pytest.raises(scorer.PreflightError, match="input files changed"):
            scorer.run(tmp_path / "in", SUM, output, new_only=True, **FEED)
        (tmp_path / "in" / "night-3.parquet").unlink()
        assert scorer.run(tmp_path / "in", SUM, output, new_only=True, **REPLACING, **FEED).generation == 3
        assert scorer.verify(output, deep=True, rescore=61).counts.rows == 61
        for file in list(store.objects(f"{output}.scorer")):
            store.remove([file.path])
        verdict = scorer.verify(output)
        assert verdict.faults == ()
        assert verdict.unchecked[0].startswith("whether part number 0 is missing, or ")


STEPS_ON_A_STORE = (
    "_show", "_copy_parts", "_keep_proofs_of_generations", "_copy_files", "_copy_proof", "_compare", "_put_manifest",
    "_remove_staging",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("replaces", [False, True], ids=["adds", "replaces"])
@pytest.mark.parametrize("flat", [False, True], ids=["from the beginning", "later"])
def test_a_run_that_ends_at_any_step_while_it_adds_to_an_output_on_a_store_is_finished_by_the_next(
    flat, replaces, tmp_path
):
    more = {"max_bad_rows": 1, "new_only": True} | (REPLACING if replaces else {}) | FEED
    for steps in range(60):
        shutil.rmtree(tmp_path / "in", ignore_errors=True)
        add(tmp_path / "in", 1)
        with bucket() as store:
            output, ended = f"{ROOT}/top/scores", True
            scorer.run(tmp_path / "in", SUM, output, max_bad_rows=1, new_only=not flat, **FEED)
            add(tmp_path / "in", 2, a=np.where(np.arange(30) == 7, 1e300, 1.0))
            if replaces:
                add(tmp_path / "in", 1, 30)
            with cut_in(publish_objects, STEPS_ON_A_STORE, steps), suppress(Cut):
                scorer.run(tmp_path / "in", SUM, output, **more)
                ended = False
            if f"{output}.scorer/manifest.json" in {file.path for file in store.objects(f"{output}.scorer")}:
                assert scorer.verify(output, deep=True).whole
            scorer.run(tmp_path / "in", SUM, output, **more)
            verdict = scorer.verify(output, deep=True)
            assert verdict.whole
            assert (verdict.counts.rows, verdict.counts.quarantined) == (60, 1)
            assert len(list(store.objects(output))) == 1 + (not replaces)
            assert not [file.path for file in store.objects(f"{output}.scorer") if "/work-" in file.path]
        if not ended:
            break
    assert steps > 14
