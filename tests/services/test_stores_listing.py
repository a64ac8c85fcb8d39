"""Inputs on a real store give the same bytes as local files; promises/test_inputs_on_stores.py has the details."""

from __future__ import annotations

import pytest
from support.runs import MODELS, command
from support.stored import hive, stored_bytes

import scorer

pytestmark = pytest.mark.service

DENSE = str(MODELS / "dense28.onnx")


def upload(s3, top):
    """Copy a local folder to a new bucket, with a client that is not scorer's; return its URL."""
    bucket = s3.bucket()
    for path in sorted(top.rglob("*.parquet")):
        with s3.files().open_output_stream(f"{bucket.removeprefix('s3://')}/in/{path.relative_to(top)}") as file:
            file.write(path.read_bytes())
    return f"{bucket}/in"


def both(s3, tmp_path, text, **options):
    top = hive(tmp_path / "in")
    for place, out in ((top, "local"), (upload(s3, top), "remote")):
        report = scorer.run(f"{place}{text}", model=DENSE, output=tmp_path / out, batch_rows=1000, **options)
        assert report.counts.scored == report.counts.rows > 0
    assert stored_bytes(tmp_path / "remote") == stored_bytes(tmp_path / "local")


def test_an_input_on_a_store_gives_the_bytes_of_local_files_in_each_kind_of_process(s3, tmp_path, backend):
    both(s3, tmp_path, "", **backend)


@pytest.mark.parametrize("text", ["/*", "/**/*.parquet", "/day=[02]/part-?.parquet", "/day=1/part-10.parquet"])
def test_a_pattern_or_one_object_on_a_store_gives_the_bytes_of_local_files(s3, tmp_path, text):
    both(s3, tmp_path, text)


def test_commands_take_urls(s3, tmp_path):
    url = upload(s3, hive(tmp_path / "in"))
    for words in (("plan", url, "--model", DENSE, "--output", tmp_path / "out"), ("inspect", DENSE, "--input", url),
                  ("run", url, "--model", DENSE, "--output", tmp_path / "out"), ("verify", tmp_path / "out", "--deep"),
                  ("verify", tmp_path / "out", "--rescore", 100)):  # fmt: skip
        done = command(*words)
        assert done.returncode == 0, done.stderr
        assert "AWS" not in done.stdout + done.stderr
    again = command("run", f"{url}/day=7", "--model", DENSE, "--output", tmp_path / "out2")
    assert again.returncode == 3
    assert "found:    nothing; similar names: 'day=2', 'day=1', 'day=0'" in again.stderr
    assert "Traceback" not in again.stderr
