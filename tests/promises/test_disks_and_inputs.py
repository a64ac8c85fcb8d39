"""A full disk, a read-only output, an input that disappears, several drivers: an error, and no row is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from support.runs import MODELS, cli, command, read, without_rights, write

from scorer.errors import OutputLocked
from scorer.output import lock

ROWS = 60_000
FLAGS = ("--feed", "x=a,b,c", "--part-bytes", "40KiB", "--threads", 1, "--no-tune", "--quiet")


@pytest.fixture
def source(tmp_path):
    """An input of random floats, which do not compress."""
    rng = np.random.default_rng(3)
    columns = {c: rng.standard_normal(ROWS).astype(np.float32) for c in "abc"}
    return write(tmp_path / "in" / "in.parquet", {"id": np.arange(ROWS), **columns}, row_group_size=3000)


def asked(source, output, *more, batch_rows=64):
    return (
        "run",
        source,
        "--model",
        MODELS / "sum3.onnx",
        "--output",
        output,
        "--batch-rows",
        batch_rows,
        *FLAGS,
        *more,
    )


def exact(output):
    assert read(output)["id"].to_pylist() == list(range(ROWS))
    assert cli("verify", output, "--deep")[0] == 0
    assert {path.name for path in Path(f"{output}.scorer").iterdir()} == {
        "events.jsonl", "plan.json", "ledger.parquet", "manifest.json", "report.html", "report.json"
    }  # fmt: skip


def staged(output):
    return sum(1 for _ in Path(f"{output}.scorer").glob("work-*/parts/*.parquet"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of three megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(disk, output):
    """Fill the disk with another file once four parts are committed."""
    until = time.monotonic() + 60
    while staged(output) < 4 and time.monotonic() < until:
        time.sleep(0.002)
    with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


@pytest.mark.parametrize(
    "cluster", [("embedded",), pytest.param(("processes", "--workers", 2), marks=pytest.mark.slow)], ids=lambda c: c[0]
)
@pytest.mark.slow
def test_a_full_disk_loses_no_committed_part(cluster, source, small_disk):
    output = small_disk / "out"
    command_ = asked(source, output, "--cluster", *cluster, batch_rows=1)
    thread = threading.Thread(target=fill, args=(small_disk, output))
    thread.start()
    done = command(*command_)
    thread.join()
    assert done.returncode == 5, done.stderr
    assert "No space left on device" in done.stderr
    assert "committed parts are kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert not output.exists()
    kept = staged(output)
    assert kept >= 4
    again = command(*command_)
    assert again.returncode == 5, again.stderr
    assert "No space left on device" in again.stderr
    assert staged(output) == kept
    (small_disk / "ballast").unlink()
    final = command(*command_, "--json")
    assert final.returncode == 0, final.stderr
    assert f'"parts_resumed": {kept}' in final.stdout
    exact(output)


def test_an_output_on_a_read_only_file_system_is_refused_before_the_start(source, tmp_path):
    folder = tmp_path / "fixed"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a read-only file system needs root")
    try:
        done = command(*asked(source, folder / "out"))
    finally:
        subprocess.run(["umount", folder], check=True)
    assert done.returncode == 5, done.stderr
    assert "the output cannot be written here" in done.stderr
    assert "no permission to write" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_output_in_a_new_folder_may_have_its_proof_elsewhere(source, tmp_path):
    output, proof = tmp_path / "scored" / "day=1", tmp_path / "proofs" / "day=1"
    done = command(*asked(source, output), "--work-dir", proof)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in output.parent.iterdir()] == ["day=1"]
    assert (proof / "manifest.json").exists()


@pytest.fixture
def forbidden(source):
    """A folder of the input that this user may not list, and the start of a command that root cannot list it with."""
    start = without_rights()
    if start is None:
        pytest.skip("root may read everything")
    folder = source.parent / "day=2"
    write(folder / "more.parquet", {"id": [0], "a": [1.0], "b": [1.0], "c": [1.0]})
    write(source.parent / "day=1" / "more.parquet", {"id": [0], "a": [1.0], "b": [1.0], "c": [1.0]})
    folder.chmod(0)
    yield folder, start
    folder.chmod(0o755)


def test_a_file_without_permission_is_not_called_damaged(forbidden, source, tmp_path):
    folder, start = forbidden
    folder.chmod(0o755)
    (folder / "more.parquet").chmod(0)
    done = command(*asked(folder, tmp_path / "out"), start=start)
    assert done.returncode == 3
    assert "Error: a file cannot be read\n" in done.stderr
    assert "found:    Permission denied" in done.stderr
    assert "Hint: get permission to read it" in done.stderr


LIMITED = """
import resource, sys
from scorer.errors import UnreadableFile
from scorer.dataset.reader import first_rows
from scorer.dataset.summary import summarise
path, name, limit = sys.argv[1], getattr(resource, sys.argv[2]), int(sys.argv[3])
dataset = summarise([path])
if name == resource.RLIMIT_AS:
    limit += int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(name, (limit, limit))
try:
    first_rows(dataset, dataset.schema, 10**7)
except UnreadableFile as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("name", "limit", "what", "hint"),
    [
        ("RLIMIT_AS", 64 << 20, "memory ran out while a file was read", "free memory or request more"),
        ("RLIMIT_NOFILE", 3, "a file cannot be read", "ulimit -n"),
    ],
)
def test_a_file_that_a_limit_keeps_from_being_read_is_not_called_damaged(tmp_path, name, limit, what, hint):
    path = write(
        tmp_path / "in.parquet",
        {"x": [bytes(128 << 20)]},
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
    )
    environment = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"}  # others reserve addresses
    arguments = [sys.executable, "-c", LIMITED, path, name, str(limit)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=100, env=environment)
    assert done.stdout.startswith(f"{what}\n"), done.stdout + done.stderr
    assert hint in done.stdout


@pytest.mark.parametrize("pattern", ["", "*/more.parquet", "**/*.parquet", "day=2/m.parquet"])
def test_a_folder_that_cannot_be_listed_is_an_error(forbidden, source, tmp_path, pattern):
    folder, start = forbidden
    done = command(*asked(source.parent / pattern, tmp_path / "out"), start=start)
    assert done.returncode == 3, done.stderr
    assert "the input cannot be listed completely" in done.stderr
    assert f"where:    {folder}" in done.stderr
    assert "found:    Permission denied" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "what", ["file", *(pytest.param(what, marks=pytest.mark.slow) for what in ("folder", "shorter"))]
)
def test_a_run_whose_input_disappears_fails_and_resumes_when_the_input_is_back(what, source, tmp_path):
    output, away = tmp_path / "out", tmp_path / "away"

    def vanish():
        until = time.monotonic() + 60
        while staged(output) < 3 and time.monotonic() < until:
            time.sleep(0.002)
        if what == "shorter":
            shutil.copy2(source, away)
            with source.open("r+b") as file:
                file.truncate(1000)
        else:
            (source if what == "file" else source.parent).rename(away)

    thread = threading.Thread(target=vanish)
    thread.start()
    done = command(*asked(source, output, batch_rows=1))
    thread.join()
    assert done.returncode == 1, done.stderr
    assert "the input changed after it was planned" in done.stderr
    assert "Traceback" not in done.stderr
    assert not output.exists()
    kept = staged(output)
    assert kept >= 3
    if what == "shorter":
        shutil.copy2(away, source)
    else:
        away.rename(source if what == "file" else source.parent)
    code, text, stderr = cli(*asked(source, output, "--json", batch_rows=1))
    assert code == 0, stderr
    assert f'"parts_resumed": {kept}' in text
    exact(output)


def test_four_drivers_started_at_once_write_one_output(source, tmp_path):
    output = tmp_path / "out"
    ended = []

    def drive():
        ended.append(command(*asked(source, output)))

    threads = [threading.Thread(target=drive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    codes = sorted(done.returncode for done in ended)
    assert codes[0] == 0
    assert set(codes) <= {0, 3}
    assert all("another run is writing" in done.stderr for done in ended if done.returncode == 3)
    assert all("Traceback" not in done.stderr for done in ended)
    exact(output)


def test_a_lock_whose_release_was_interrupted_has_no_owner(tmp_path, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    path = tmp_path / "out.scorer" / "lock"
    holding = lock.held(path, print)
    monkeypatch.setattr(holding.__enter__()._heartbeat, "join", interrupted)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        holding.__exit__(None, None, None)
    monkeypatch.undo()
    assert path.exists()
    assert lock.is_alive(lock.read(path)) is False
    with lock.held(path, print):
        assert lock.is_alive(lock.read(path)) is True
        with pytest.raises(OutputLocked), lock.held(path, print):
            pass
    assert not path.exists()
