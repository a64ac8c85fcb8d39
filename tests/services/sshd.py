"""An OpenSSH server on a port of the loopback interface, and the keys of its host and of its only user."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import psutil

from services.processes import environment, free_ports, kill, output_of, require_programs, start_program, wait_until

_CONF = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
"""


class Sshd:
    """A running server."""

    def __init__(self, folder, port, process):
        self.folder, self.port, self._process = Path(folder), port, process

    def options(self, hosts, **worker):
        """Return the flags of a cluster with a scheduler and this many workers, all on this machine."""
        connect = {
            "port": self.port, "known_hosts": f"{self.folder}/known_hosts", "client_keys": [f"{self.folder}/user"],
        }  # fmt: skip
        given = {
            "hosts": ["127.0.0.1"] * (hosts + 1), "connect_options": connect,
            "worker_options": {"nthreads": 1, **worker},
        }  # fmt: skip
        named = [f"{name}={json.dumps(value)}" for name, value in given.items()]
        return ["--cluster", "distributed:SSHCluster", *(text for one in named for text in ("--cluster-option", one))]

    def sessions(self):
        """Return the processes that the server has started."""
        return psutil.Process(self._process.pid).children(recursive=True)


@contextmanager
def sshd():
    """Start a server and end it, with all that it has started."""
    program, keygen, *_ = require_programs("sshd", "ssh-keygen", "setpriv")
    folder, (port,) = tempfile.mkdtemp(prefix="sshd-"), free_ports(1)
    try:
        for name in ("host", "user"):
            output_of([keygen, "-q", "-t", "ed25519", "-N", "", "-f", f"{folder}/{name}"])
        Path("/run/sshd").mkdir(exist_ok=True)  # the server refuses to start without it
        (Path(folder) / "config").write_text(_CONF.format(port=port, folder=folder))
        public = (Path(folder) / "host.pub").read_text()
        (Path(folder) / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
        log = Path(folder) / "log"
        process = start_program([program, "-D", "-e", "-f", f"{folder}/config"], log, env=environment())
        try:
            wait_until(lambda: log.exists() and "listening" in log.read_text(), 20, lambda: f"sshd\n{log.read_text()}")
            yield Sshd(folder, port, process)
        finally:
            kill(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
