"""A dask-gateway-server with its own proxy and its local backend: each user has a name, and all the same password.

The backend starts schedulers and workers as processes of the user that runs the server.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from contextlib import contextmanager
from pathlib import Path

import psutil

from services.processes import environment, free_ports, kill, require_programs, start_program, wait_until

PASSWORD = "correct horse"
_CONF = """\
c.DaskGateway.backend_class = "dask_gateway_server.backends.local.UnsafeLocalBackend"
c.DaskGateway.authenticator_class = "dask_gateway_server.auth.SimpleAuthenticator"
c.SimpleAuthenticator.password = {password!r}
c.DaskGateway.address = "127.0.0.1:{server}"
c.Proxy.address = "127.0.0.1:{http}"
c.Proxy.tcp_address = "127.0.0.1:{tcp}"
c.ClusterConfig.scheduler_cmd = ["dask", "scheduler"]
c.ClusterConfig.worker_cmd = ["dask", "worker"]
c.LocalBackend.clusters_directory = {folder!r}
c.DBBackendBase.check_timeouts_period = 1.0
"""


class Gateway:
    """A running server."""

    def __init__(self, folder, ports):
        self.folder = Path(folder)
        self.clusters = self.folder / "clusters"
        self.server, self.http, self.tcp = ports

    def user(self, name, password=PASSWORD):
        """Return the environment of a program that this user starts: Dask's configuration of the gateway."""
        settings = {
            "DASK_GATEWAY__ADDRESS": f"http://127.0.0.1:{self.http}",
            "DASK_GATEWAY__PROXY_ADDRESS": f"gateway://127.0.0.1:{self.tcp}",
            "DASK_GATEWAY__AUTH__TYPE": "basic",
            "DASK_GATEWAY__AUTH__KWARGS__USERNAME": name,
            "DASK_GATEWAY__AUTH__KWARGS__PASSWORD": password,
        }
        return environment(**settings)

    def processes(self, *words):
        """Return the processes of clusters whose command line has all of these words."""
        mark, found = str(self.clusters), []
        for process in psutil.process_iter(["cmdline", "cwd"]):
            line = process.info["cmdline"] or []
            if (process.info["cwd"] or "").startswith(mark) and all(word in line for word in words):
                found.append(process)
        return found

    def wait_empty(self, seconds=40):
        """Wait until no cluster has a process or a folder."""
        wait_until(
            lambda: not self.processes() and not list(self.clusters.iterdir()), seconds,
            lambda: f"an empty gateway; there are {self.processes()} and {list(self.clusters.iterdir())}\n{self.log()}",
        )  # fmt: skip

    def log(self):
        """Return the server's log."""
        return (self.folder / "server.log").read_text()


@contextmanager
def gateway():
    """Start a server; end it, and the clusters that are left."""
    (program, *_) = require_programs("dask-gateway-server", "dask", "setpriv")
    folder = tempfile.mkdtemp(prefix="gateway-")
    try:
        found = Gateway(folder, free_ports(3))
        found.clusters.mkdir()
        conf = found.folder / "config.py"
        conf.write_text(
            _CONF.format(
                password=PASSWORD, server=found.server, http=found.http, tcp=found.tcp, folder=str(found.clusters)
            )
        )
        process = start_program(
            [program, "-f", conf], found.folder / "server.log", cwd=folder, env=environment(), start_new_session=True
        )
        try:
            wait_until(lambda: _answers(found.http) and _answers(found.server), 60, lambda: f"a gateway\n{found.log()}")
            yield found
        finally:
            kill(process)
            for left in found.processes():
                left.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _answers(port):
    with socket.socket() as attempt:
        attempt.settimeout(1)
        return attempt.connect_ex(("127.0.0.1", port)) == 0
