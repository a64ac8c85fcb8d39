"""`scorer clean` removes what unfinished runs left, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support.runs import MODELS, cli, write

import scorer
from scorer.errors import OutputLocked, RunFailed
from scorer.output import lock
from scorer.output.place import Place


def run(tmp_path, *, bad=False, **options):
    """Score four files; with `bad`, the last row cannot be scored, so that the run is not finished."""
    source = tmp_path / ("bad" if bad else "good")
    for i in range(4):
        write(source / f"{i}.parquet", {"idx": [n % 10 for n in range(99)] + [99 if bad and i == 3 else 9]})
    return scorer.run(
        source, MODELS / "gather.onnx", tmp_path / "out", feed="idx=idx", batch_rows=50,
        cluster="synchronous", **options,
    )  # fmt: skip


def tree(folder):
    """Every file below a folder, with its contents."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def unfinished(tmp_path, **options):
    """Leave an unfinished run."""
    with pytest.raises(RunFailed):
        run(tmp_path, bad=True, **options)


def dead_lock(tmp_path):
    """Leave the lock of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    owner = json.dumps({**lock.myself(), "pid": process.pid, "born": 1, "token": "0" * 32})
    (tmp_path / "out.scorer" / "lock").write_text(owner)


def test_an_unfinished_run_is_removed_with_its_folder_and_its_bytes_are_counted(tmp_path):
    unfinished(tmp_path)
    before = tree(tmp_path / "out.scorer")
    code, text, _ = cli("clean", tmp_path / "out", "--json")
    found = json.loads(text)
    assert code == 0
    assert (found["files"], found["size"]) == (len(before), sum(map(len, before.values())))
    assert len(before) > 3
    assert not (tmp_path / "out.scorer").exists()
    assert run(tmp_path, bad=False).counts.scored == 400


def test_a_published_run_and_its_proof_stay_as_they_are(tmp_path):
    run(tmp_path)
    before = {name: tree(tmp_path / name) for name in ("out", "out.scorer")}
    unfinished(tmp_path, overwrite=True)
    (tmp_path / "out.scorer" / f"lock.{'a' * 32}").write_text("{}")
    (tmp_path / "out.scorer" / "seen-1234abcd").write_text("")
    dead_lock(tmp_path)
    code, text, _ = cli("clean", tmp_path / "out")
    assert code == 0
    assert text.startswith("Removed ")
    after = {name: tree(tmp_path / name) for name in ("out", "out.scorer")}
    assert after["out"] == before["out"]
    assert after["out.scorer"] | {"events.jsonl": b""} == before["out.scorer"] | {"events.jsonl": b""}
    assert scorer.verify(tmp_path / "out", deep=True).whole
    assert cli("clean", tmp_path / "out")[:2] == (0, f"Nothing to remove beside {tmp_path / 'out'}\n")


def test_a_dry_run_says_the_same_and_removes_nothing(tmp_path):
    unfinished(tmp_path)
    dead_lock(tmp_path)
    before = tree(tmp_path)
    _, dry, _ = cli("clean", tmp_path / "out", "--dry-run", "--json")
    assert tree(tmp_path) == before
    _, done, _ = cli("clean", tmp_path / "out", "--json")
    assert json.loads(dry) | {"dry_run": False} == json.loads(done)
    assert any(path.endswith("out.scorer/lock") for path in json.loads(done)["removed"])


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_nothing_is_removed_while_a_run_lives(flags, tmp_path):
    unfinished(tmp_path)
    with lock.held(tmp_path / "out.scorer" / "lock", print):
        before = tree(tmp_path)
        code, _, error = cli("clean", tmp_path / "out", *flags)
        assert code == OutputLocked.exit_code
        assert f"process {os.getpid()}" in error
        assert set(tree(tmp_path)) == set(before)


def test_a_half_published_output_is_not_touched(tmp_path):
    run(tmp_path)
    unfinished(tmp_path, overwrite=True)
    (work,) = Place.of(str(tmp_path / "out"), None).work_folders()
    (work / "publish.json").write_text("{}")
    before = tree(tmp_path)
    code, _, error = cli("clean", tmp_path / "out")
    assert code == 5
    assert "the output is published only in part" in error
    assert tree(tmp_path) == before


def test_files_of_another_origin_stay(tmp_path):
    unfinished(tmp_path, work_dir=tmp_path / "work")
    for name in ("notes.txt", "work-mine/a.txt", "older/b.txt", "locksmith", "probe-9"):
        (tmp_path / "work" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "work" / name).write_text("mine")
    assert cli("clean", tmp_path / "out", "--work-dir", tmp_path / "work")[0] == 0
    assert set(tree(tmp_path / "work").values()) == {b"mine"}
    assert len(tree(tmp_path / "work")) == 5


def test_a_place_without_a_run_is_an_error(tmp_path):
    code, _, error = cli("clean", tmp_path / "out")
    assert code == 5
    assert "no run of scorer has written here" in error
