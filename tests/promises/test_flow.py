"""Whole runs over every back end: scores, resuming, bad rows, publishing."""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.runs import BACKENDS, MODELS, cli, command, oracle, read, report_of, write

import scorer
from scorer.errors import RunFailed
from scorer.output.place import load_plan

DENSE = MODELS / "dense28.onnx"


def dense_scores(folder, batch_rows):
    """Return the scores of ONNX Runtime alone, row group by row group, file by file."""
    pieces = []
    for path in sorted(folder.iterdir()):
        parquet = pq.ParquetFile(path)
        for g in range(parquet.metadata.num_row_groups):
            group = parquet.read_row_group(g)
            matrix = np.stack([group[f"f{i}"].to_numpy() for i in range(28)], axis=1)
            pieces.append(oracle(DENSE, {"input": matrix}, batch_rows)["score"][:, 0])
    return np.concatenate(pieces)


def same_bits(left, right):
    return np.array_equal(left.view(np.int32), right.view(np.int32))


def test_scores_equal_the_bare_runtime_bit_for_bit(backend, floats28, tmp_path):
    report = scorer.run(floats28, DENSE, tmp_path / "out", batch_rows=4096, **backend)
    table = read(tmp_path / "out")
    others = ("quarantined", "filtered", "deleted", "unmatched", "lossy", "nan", "truncated")
    assert report.counts.to_dict() == {"rows": 200_000, "scored": 200_000, **dict.fromkeys(others, 0)}
    assert table["id"].to_pylist() == list(range(200_000))
    assert same_bits(table["score"].to_numpy(), dense_scores(floats28, 4096))
    assert {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()} == {".parquet"}
    assert cli("verify", tmp_path / "out", "--deep")[0] == 0


@pytest.mark.slow
def test_any_threads_and_processes_give_the_same_bytes_of_scores(floats28, tmp_path):
    scores = []
    for name, options in {
        "one": {"threads": 1},
        "four": {"threads": 4},
        "two processes": {"cluster": "processes", "workers": 2, "threads": 2},
        "here": {"cluster": "synchronous"},
    }.items():
        scorer.run(floats28, DENSE, tmp_path / name, batch_rows=1024, part_bytes="1MiB", **options)
        scores.append(read(tmp_path / name)["score"].to_numpy())
    assert all(same_bits(scores[0], other) for other in scores[1:])


def test_a_single_row_group_is_cut_into_parts_for_all_threads(tmp_path):
    rng = np.random.default_rng(3)
    columns = {f"f{i}": rng.standard_normal(300_000).astype(np.float32) for i in range(28)}
    write(tmp_path / "in" / "one.parquet", columns, row_group_size=300_000)
    report = scorer.run(tmp_path / "in", DENSE, tmp_path / "out", part_bytes="4MiB", batch_rows=2048, threads=4)
    assert report.parts >= 8
    assert same_bits(read(tmp_path / "out")["score"].to_numpy(), dense_scores(tmp_path / "in", 2048))


def test_the_second_run_does_nothing_in_under_two_seconds(floats28, tmp_path):
    first = command("run", floats28, "--model", DENSE, "--output", tmp_path / "out", "--json")
    assert first.returncode == 0, first.stderr
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    started = time.monotonic()
    second = command("run", floats28, "--model", DENSE, "--output", tmp_path / "out", "--json")
    seconds = time.monotonic() - started
    report = json.loads(second.stdout)
    assert second.returncode == 0, second.stderr
    assert report["already_done"]
    assert report["calls"] == 0
    assert report["counts"]["scored"] == 200_000
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert seconds < 4  # under 2 on an idle machine, quoted in docs/figures.md


def test_other_threads_resume_the_same_plan_and_score_nothing_twice(floats28, tmp_path):
    """An observer interrupts the run after the third part, like a kill between two parts."""
    whole = scorer.run(floats28, DENSE, tmp_path / "whole", part_bytes="1MiB", batch_rows=2048, threads=2)

    class Killed(BaseException):
        pass

    def kill_after_three(event):
        nonlocal seen
        seen += isinstance(event, scorer.events.PartFinished)
        if seen == 3:
            raise Killed

    seen = 0
    with pytest.raises(Killed):
        scorer.run(
            floats28,
            DENSE,
            tmp_path / "out",
            observers=[kill_after_three],
            part_bytes="1MiB",
            batch_rows=2048,
            threads=2,
        )
    assert not (tmp_path / "out").exists()
    (work,) = (tmp_path / "out.scorer").glob("work-*")
    frozen = load_plan(work / "plan.json")
    kept = {path: path.stat().st_ino for path in (work / "parts").rglob("*.parquet")}
    assert len(kept) >= 3

    report = scorer.run(floats28, DENSE, tmp_path / "out", part_bytes="1MiB", batch_rows=2048, threads=1)
    assert report.plan == frozen.plan_hash
    assert report.parts_resumed == len(kept)
    assert report.parts == whole.parts
    published = {path.stat().st_ino for path in (tmp_path / "out").rglob("*.parquet")}
    assert set(kept.values()) < published
    assert same_bits(read(tmp_path / "out")["score"].to_numpy(), read(tmp_path / "whole")["score"].to_numpy())
    assert report.counts.scored == 200_000


@pytest.mark.parametrize("cluster", BACKENDS)
def test_a_bad_row_costs_only_itself(tmp_path, cluster):
    index = np.arange(1000) % 10
    index[[3, 500, 501, 999]] = 77
    write(tmp_path / "in.parquet", {"idx": index, "name": [f"row {i}" for i in range(1000)]}, row_group_size=400)
    asked = {"batch_rows": 64, "cluster": cluster}
    with pytest.raises(RunFailed, match="4 rows could not be scored; nothing was published") as failed:
        scorer.run(tmp_path / "in.parquet", MODELS / "gather.onnx", tmp_path / "out", **asked)
    assert "--max-bad-rows 4" in failed.value.hint
    assert not (tmp_path / "out").exists()

    report = scorer.run(tmp_path / "in.parquet", MODELS / "gather.onnx", tmp_path / "out", max_bad_rows=4, **asked)
    assert report.calls == 0  # a larger budget only publishes
    assert report.counts.quarantined == 4
    good = np.setdiff1d(np.arange(1000), [3, 500, 501, 999])
    expected = oracle(MODELS / "gather.onnx", {"idx": index[good]})["value"]
    table = read(tmp_path / "out")
    assert table["name"].to_pylist() == [f"row {i}" for i in good]
    assert np.array_equal(table["value"].to_numpy(), expected)
    bad = read(report.quarantine)
    assert bad["_row"].to_pylist() == [3, 500, 501, 999]
    assert bad["name"].to_pylist() == ["row 3", "row 500", "row 501", "row 999"]
    assert set(bad["_stage"].to_pylist()) == {"infer"}
    assert all("idx" in text or "indices" in text.lower() for text in bad["_error"].to_pylist())


def test_overwriting_replaces_the_output_only_at_the_end(floats28, tmp_path):
    old = scorer.run(floats28, DENSE, tmp_path / "out", limit=1000)
    seen = []

    def look(event):
        if isinstance(event, scorer.events.PartFinished):
            seen.append(read(tmp_path / "out").num_rows)

    new = scorer.run(floats28, DENSE, tmp_path / "out", limit=50_000, overwrite=True, observers=[look])
    assert set(seen) == {1000}
    assert (old.counts.scored, new.counts.scored, read(tmp_path / "out").num_rows) == (1000, 50_000, 50_000)
    assert cli("verify", tmp_path / "out", "--deep")[0] == 0
    assert sorted(path.name for path in (tmp_path / "out.scorer").iterdir()) == [
        "events.jsonl", "ledger.parquet", "manifest.json", "plan.json", "report.html", "report.json",
    ]  # fmt: skip


def test_a_half_done_publish_is_finished_by_the_next_run(floats28, tmp_path, monkeypatch):
    from scorer.output import publish

    def cut_off(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(publish, "move_proof", cut_off)
    with pytest.raises(KeyboardInterrupt):
        scorer.run(floats28, DENSE, tmp_path / "out", limit=20_000)
    monkeypatch.undo()
    assert read(tmp_path / "out").num_rows == 20_000
    report = scorer.run(floats28, DENSE, tmp_path / "out", limit=20_000)
    assert report.already_done
    assert not list((tmp_path / "out.scorer").glob("work-*"))
    assert cli("verify", tmp_path / "out")[0] == 0


def test_input_that_changes_after_the_plan_fails_its_parts_and_publishes_nothing(backend, tmp_path):
    path = write(tmp_path / "in.parquet", {c: np.ones(500, np.float32) for c in "abc"})
    plan = scorer.prepare(path, MODELS / "named3.onnx", tmp_path / "out", **backend)
    write(path, {c: np.ones(400, np.float32) for c in "abc"})
    with pytest.raises(RunFailed, match="1 of 1 parts failed") as failed:
        scorer.execute(plan)
    assert "changed after it was planned" in failed.value.found
    assert not (tmp_path / "out").exists()


def test_an_observer_that_raises_is_dropped_and_the_run_goes_on(floats28, tmp_path, capsys):
    def broken(event):
        raise ValueError(event)

    report = scorer.run(floats28, DENSE, tmp_path / "out", limit=100, observers=[broken])
    assert report.counts.scored == 100
    assert "an observer was dropped" in capsys.readouterr().err


def test_zero_rows_give_a_typed_empty_output(backend, tmp_path):
    path = write(tmp_path / "in.parquet", {c: np.empty(0, np.float32) for c in "abc"})
    report = scorer.run(path, MODELS / "named3.onnx", tmp_path / "out", **backend)
    table = read(tmp_path / "out")
    assert report.counts.rows == table.num_rows == 0
    assert table.schema.names == ["a", "b", "c", "total"]
    assert str(table.schema.field("total").type) == "float"
    assert cli("verify", tmp_path / "out")[0] == 0


def test_the_report_on_disk_is_the_report_returned(floats28, tmp_path):
    report = scorer.run(floats28, DENSE, tmp_path / "out", limit=5000)
    assert report_of(tmp_path / "out") == json.loads(json.dumps(report.to_dict()))


def test_a_changed_output_is_not_called_done(floats28, tmp_path):
    scorer.run(floats28, DENSE, tmp_path / "out", limit=5000)
    next((tmp_path / "out").glob("*.parquet")).unlink()
    code, _, text = cli("run", floats28, "--model", DENSE, "--output", tmp_path / "out", "--limit", "5000")
    assert code == 5
    assert "changed after it was published" in text


def test_the_output_moves_with_its_proof(floats28, tmp_path):
    scorer.run(floats28, DENSE, tmp_path / "out", limit=5000)
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    shutil.move(tmp_path / "out.scorer", tmp_path / "elsewhere.scorer")
    assert cli("verify", tmp_path / "elsewhere", "--deep")[0] == 0
