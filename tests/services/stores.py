"""Object stores on this machine: SeaweedFS, which speaks S3, checks signatures and keeps conditional writes."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs

from services.processes import free_ports, kill, require_programs, start_program, wait_until

KEY, SECRET = "scorer-key", "scorer-secret-0123456789"
RIGHTS = {
    "tests": ("Admin", "Read", "Write", "List", "Tagging"),
    "reader": ("Read", "List"),
    "writer": ("Read", "Write"),
    "lister": ("List",),
    "stranger": ("Read:elsewhere",),
    "anonymous": ("Read:public", "List:public"),
}
"""The users of the server, and what each may do; `anonymous` is everybody without credentials."""


@dataclass(frozen=True)
class S3:
    """A running S3 server: its address, and what a process needs to use it."""

    port: int

    @property
    def endpoint(self):
        """The address of the server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self):
        """The variables with which scorer, and every other client, reaches the server."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
        }

    def user(self, name):
        """Return the variables with which a user of `RIGHTS` reaches the server."""
        return self.environment | {"AWS_ACCESS_KEY_ID": f"{name}-key", "AWS_SECRET_ACCESS_KEY": f"{name}-{SECRET}"}

    def bucket(self, name=""):
        """Create a bucket and return its URL."""
        name = name or f"b{uuid.uuid4().hex[:12]}"
        self.files().create_dir(name)
        return f"s3://{name}"

    def files(self):
        """Return pyarrow's client, as an oracle that shares no code with scorer's."""
        return pyarrow.fs.S3FileSystem(
            access_key=KEY, secret_key=SECRET, region="us-east-1", scheme="http",
            endpoint_override=f"127.0.0.1:{self.port}", allow_bucket_creation=True,
        )  # fmt: skip


@contextmanager
def seaweed():
    """Start SeaweedFS with an S3 server on loopback."""
    weed, _ = require_programs("weed", "setpriv")
    s3, *ports = free_ports(9)
    names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "s3.json").write_text(json.dumps({"identities": [*map(_identity, RIGHTS)]}))
        options = dict(zip(names, ports, strict=False)) | {
            "s3.port": s3,
            "s3.port.grpc": ports[6],
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
        }
        command = [
            weed, f"-logdir={folder}", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer",
            "-s3",
            f"-s3.config={folder}/s3.json", "-volume.max=2000", "-master.volumeSizeLimitMB=64",
            *(f"-{name}={port}" for name, port in options.items()),
        ]  # fmt: skip
        one_volume_a_bucket = {
            "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"
        }  # it would make seven, of which there are too few
        server = start_program(command, Path(folder, "log"), env=os.environ | one_volume_a_bucket)
        found = S3(s3)
        try:
            wait_until(lambda: _answers(found), 60, "SeaweedFS answers")
            yield found
        finally:
            kill(server)


def _identity(name):
    """Return a user as the server's configuration holds it."""
    key, secret = (KEY, SECRET) if name == "tests" else (f"{name}-key", f"{name}-{SECRET}")
    credentials = [] if name == "anonymous" else [{"accessKey": key, "secretKey": secret}]
    return {"name": name, "credentials": credentials, "actions": RIGHTS[name]}


def _answers(server):
    try:
        server.files().get_file_info(pyarrow.fs.FileSelector("/"))
        server.files().create_dir("ready")
    except OSError:
        return False
    return True
