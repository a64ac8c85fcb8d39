"""An unfinished run's plan names no code to load: another user may have written it, in a folder that both can use."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.runs import MODELS, read, write

import scorer
from scorer.errors import PreflightError
from scorer.events import PartFinished
from scorer.plan.frozen import FrozenPlan

REQUEST = {
    "feed": "x=a,b,c",
    "keep": "id",
    "tune": False,
    "on_lossy": "warn",
    "part_bytes": 4096,
    "cluster": "synchronous",
}


def plan_of_an_unfinished_run(source, output, **options):
    """Stop a run after its first part; return its work folder and its plan."""

    def stop(event):
        if isinstance(event, PartFinished):
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, scorer.ScorerError)):
        scorer.run(source, MODELS / "sum3.onnx", output, observers=[stop], **REQUEST, **options)
    (folder,) = Path(f"{output}.scorer").glob("work-*")
    return folder, FrozenPlan.from_dict(json.loads((folder / "plan.json").read_text()))


def plant(folder, plan):
    """Replace the unfinished run by one with this plan and without parts."""
    plan = replace(plan, plan_hash="")
    new = folder.with_name(f"work-{plan.plan_hash[:8]}")
    folder.rename(new)
    (new / "plan.json").write_text(json.dumps(plan.to_dict()))
    for path in new.rglob("*"):
        if path.is_file() and path.name != "plan.json":
            path.unlink()


@pytest.fixture
def source(tmp_path):
    columns = {name: [float(row) for row in range(2000)] for name in "abc"}
    return write(tmp_path / "in.parquet", {"id": list(range(2000)), **columns}, row_group_size=200)


def test_a_library_that_was_not_requested_is_refused_and_not_loaded(source, tmp_path):
    folder, plan = plan_of_an_unfinished_run(source, tmp_path / "out")
    library = tmp_path / "other.so"
    library.write_text("not even a library: loading it would fail")
    plant(folder, plan.with_sessions(library=str(library)))
    with pytest.raises(PreflightError, match="would load code that was not requested") as caught:
        scorer.run(source, MODELS / "sum3.onnx", tmp_path / "out", **REQUEST)
    assert str(library) in str(caught.value)


def test_a_transform_comes_from_the_folder_of_the_command(source, tmp_path, monkeypatch):
    code = "def same(frame):\n    return frame\n"
    for name, text in (("mine", code), ("theirs", code + f"open({str(tmp_path / 'ran')!r}, 'w')\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "planted_transform.py").write_text(text)
    monkeypatch.chdir(tmp_path / "mine")
    transform = {"transform": "planted_transform:same"}
    folder, plan = plan_of_an_unfinished_run(source, tmp_path / "out", **transform)
    plant(folder, replace(plan, transform=replace(plan.transform, folder=str(tmp_path / "theirs"))))
    resumed = scorer.prepare(source, MODELS / "sum3.onnx", tmp_path / "out", **REQUEST, **transform)
    assert resumed.frozen.plan_hash != plan.plan_hash  # the planted one
    assert resumed.frozen.transform.folder == str(tmp_path / "mine")
    assert scorer.execute(resumed).counts.scored == read(tmp_path / "out").num_rows == 2000
    assert not (tmp_path / "ran").exists()
