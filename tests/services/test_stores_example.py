"""The example of a store runs with its two commands, and gives the scores of a local run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.runs import FLIGHTS, ROOT, cli, read

from scorer.storage import stores
from services.processes import free_ports, kill, start_program

pytestmark = pytest.mark.service
COMMANDS = ["sh server.sh &", "sh run.sh"]


def test_the_example_runs_from_a_store_and_to_it(s3, tmp_path, monkeypatch):
    readme = (ROOT / "examples" / "stores" / "README.md").read_text("utf-8")
    assert all(f"    {command}\n" in readme for command in COMMANDS)
    for name in s3.environment:  # the fixture only shows that SeaweedFS is installed
        monkeypatch.delenv(name)
    folder = tmp_path / "stores"
    shutil.copytree(ROOT / "examples" / "stores", folder, ignore=shutil.ignore_patterns("data"))
    shutil.copytree(FLIGHTS, tmp_path / "flights", ignore=shutil.ignore_patterns("*.scored*", "*.scorer"))
    names = [f"{name}.port{kind}" for name in ("s3", "master", "volume", "filer") for kind in ("", ".grpc")]
    ports = free_ports(len(names))
    flags = [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    monkeypatch.chdir(folder)
    server = start_program(["sh", "server.sh", *flags], tmp_path / "log", env=environment)
    endpoint = f"http://127.0.0.1:{ports[0]}"
    try:
        done = subprocess.run(
            ["sh", "run.sh", endpoint], capture_output=True, text=True, timeout=100, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr
        assert "The output is complete: s3://lake/scores" in done.stdout
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "example-key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example-secret")
        stores.configure((f"endpoint={endpoint}", "region=us-east-1", "allow_http=true"))
        remote = [stores.of("s3://lake").read(one.path) for one in stores.of("s3://lake").objects("s3://lake/scores")]
    finally:
        stores.configure(())
        kill(server)
    code, *_ = cli(
        "run", tmp_path / "flights" / "flights.parquet", "--model", FLIGHTS / "late.onnx", "-o", tmp_path / "l"
    )
    assert code == 0
    rows = [row for data in remote for row in pq.read_table(BytesIO(data)).to_pylist()]
    assert rows == read(tmp_path / "l").to_pylist()
