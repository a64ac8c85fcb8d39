"""Runs onto an object store that are stopped, killed, frozen and spoiled, in short; `.ci/nightly` has the long form."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from faults.kill_runs import MODEL, ROWS, command, make_input
from support.runs import ROOT

import scorer
from scorer.errors import StoreUnavailable
from scorer.events import PartFinished, to_dict
from scorer.storage import objects, stores
from services.spoiling import spoiling

pytestmark = pytest.mark.service


def script(name, *arguments):
    """Run a script in its own process: it forks, or starts proxies."""
    path = ROOT / "tests" / "faults" / name
    done = subprocess.run([sys.executable, path, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


def names(s3, top):
    found = s3.files().get_file_info(pafs.FileSelector(top, recursive=True, allow_not_found=True))
    return sorted(one.path.removeprefix(f"{top}/") for one in found if one.type is pafs.FileType.File)


def assert_exact(s3, output, expected):
    top = output.removeprefix("s3://")
    tables = [pq.read_table(f"{top}/{name}", filesystem=s3.files()) for name in names(s3, top)]
    assert [row for table in tables for row in table["id"].to_pylist()] == list(range(ROWS))
    assert [value for table in tables for value in table["total"].to_pylist()] == expected.tolist()


@pytest.mark.timeout(400)
def test_a_run_that_stops_at_any_request_is_completed_by_the_same_command(s3):
    table = script("stop_at_every_request.py", 17)
    stopped, _, said = table.splitlines()[-1].partition(" interruptions, ")
    assert int(stopped) > 24
    assert said == "0 manifests over something incomplete, 0 not exact after the same command"


@pytest.mark.timeout(300)
def test_a_killed_run_shows_nothing_incomplete_and_loses_no_row(s3):
    found = json.loads(script("kill_runs_on_a_store.py", 3, "--seed", 5))
    assert (found["lies"], found["wrong"], found["unfinished"], found["left"]) == (0, 0, 0, 0)
    assert found["seen_complete"] > 0


@pytest.mark.timeout(300)
def test_a_driver_that_wakes_after_another_took_over_says_so_and_changes_nothing(s3):
    found = json.loads(script("freeze_drivers_on_a_store.py", 2, "--seed", 3))  # both are stopped while they score
    assert sum(many for name, many in found.items() if "said that it lost the lease" in name) >= 1


@pytest.mark.timeout(300)
def test_runs_are_exact_although_one_request_in_five_is_spoiled(s3):
    found = json.loads(script("spoil_runs_on_a_store.py", 3))
    assert found["wrong"] == []
    assert found["faults"] > 60


def test_an_interrupt_finishes_the_parts_in_progress_and_the_same_command_goes_on(s3, tmp_path):
    source, output = tmp_path / "input", f"{s3.bucket()}/{uuid.uuid4().hex[:8]}"
    expected = make_input(source, 1)
    asked, staged = command(source, output, "embedded"), f"{output}.scorer".removeprefix("s3://")
    run = subprocess.Popen(asked, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not any("/parts/" in name for name in names(s3, staged)):
        assert run.poll() is None
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert names(s3, output.removeprefix("s3://")) == []
    assert "lock" not in names(s3, staged)
    done = subprocess.run([*asked, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["parts_resumed"] > 0
    assert_exact(s3, output, expected)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", [pytest.param("vanishes", marks=pytest.mark.minutes), "refuses to write"])
def test_a_store_that_fails_ends_the_run_with_its_words_and_keeps_the_parts(s3, tmp_path, how):
    source, output = tmp_path / "input", f"{s3.bucket()}/{uuid.uuid4().hex[:8]}"
    expected, staged = make_input(source, 1), f"{output}.scorer".removeprefix("s3://")
    asked = command(source, output, "embedded")
    with spoiling(s3) as proxy:
        run = subprocess.Popen(asked, stderr=subprocess.PIPE, text=True, env=os.environ | proxy.environment)
        while sum("/parts/" in name for name in names(s3, staged)) < 5:
            assert run.poll() is None
            time.sleep(0.02)
        if how == "refuses to write":
            proxy.verbs, proxy.fault_kinds, proxy.rate = {"PUT"}, ("403",), 1.0
            run.wait(200)
    _, said = run.communicate(timeout=250)  # it waits three minutes
    assert run.returncode in {3, 5}, said
    assert "committed parts are kept" in said
    assert "Traceback" not in said
    assert names(s3, output.removeprefix("s3://")) == []
    done = subprocess.run([*asked, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["parts_resumed"] >= 5
    assert_exact(s3, output, expected)


def test_an_input_whose_store_fails_for_ever_ends_the_run_and_keeps_the_parts(s3, tmp_path, monkeypatch):
    source, bucket = tmp_path / "input", s3.bucket()
    expected = make_input(source, 1)
    for path in source.iterdir():
        with s3.files().open_output_stream(f"{bucket.removeprefix('s3://')}/in/{path.name}") as file:
            file.write(path.read_bytes())
    options = {"feed": "x=a,b,c", "keep": "id", "part_bytes": "10000", "batch_rows": 4, "threads": 1, "ahead": 1}
    events = []
    with spoiling(s3) as proxy:
        for name, value in proxy.environment.items():
            monkeypatch.setenv(name, value)
        stores._stores.clear()
        monkeypatch.setattr(objects, "_PATIENCE_S", 3.0)

        def fail(event):
            if isinstance(event, PartFinished):
                proxy.fault_kinds, proxy.rate = ("500",), 1.0

        with pytest.raises(StoreUnavailable, match="InternalError"):
            scorer.run(f"{bucket}/in", MODEL, tmp_path / "out", observers=[fail], cluster="embedded", **options)
        assert not (tmp_path / "out").exists()
        proxy.fault_kinds, proxy.rate = ("503",), 0.3
        monkeypatch.setattr(objects, "_PATIENCE_S", 60.0)
        proxy.faults.clear()
        report = scorer.run(
            f"{bucket}/in", MODEL, tmp_path / "out", observers=[events.append], cluster="embedded", **options
        )
    assert report.parts_resumed > 0
    assert 0 < report.throttled <= proxy.faults.total()
    assert report.throttled_s > 0
    last = [to_dict(event) for event in events if isinstance(event, PartFinished)][-1]
    assert 0 < last["throttled"] <= report.throttled
    assert json.loads((tmp_path / "out.scorer" / "report.json").read_text())["throttled"] == report.throttled
    assert "repeated" in str(report)
    table = pq.read_table(tmp_path / "out")
    assert table["id"].to_pylist() == list(range(ROWS))
    assert table["total"].to_pylist() == expected.tolist()


def test_two_drivers_at_once_publish_one_output(s3, tmp_path):
    source, output = tmp_path / "input", f"{s3.bucket()}/{uuid.uuid4().hex[:8]}"
    make_input(source, 1)
    both = [subprocess.Popen(command(source, output, "embedded"), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = {run.wait(): run.communicate()[1] for run in both}
    assert set(said) <= {0, 3}
    assert 0 in said
    assert 3 not in said or "another run is writing this output" in said[3]
    table = pq.read_table(output.removeprefix("s3://"), filesystem=s3.files())
    assert table.num_rows == ROWS
