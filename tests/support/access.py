"""Which sockets a run listens on, and what its user with and without keys and another local user get from them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import psutil

from scorer.cluster.connect import connect
from scorer.options.request import build_cluster

KEYS = ("tls_ca_file", "tls_client_key", "tls_client_cert")


def listening(*process_ids):
    """Return the (host, port) pairs on which these processes and their children listen."""
    family = [psutil.Process(one) for one in process_ids]
    found = set()
    for process in [*family, *(child for one in family for child in one.children(recursive=True))]:
        with contextlib.suppress(psutil.Error):
            found |= {tuple(s.laddr) for s in process.net_connections("inet") if s.status == psutil.CONN_LISTEN}
    return found


def attempts(ports, paths=(), security=None):
    """Return what each kind of user gets: {user: {"ports": [...], "paths": [...]}}. Needs root."""
    keys = security and {name: getattr(security, name) for name in KEYS}
    asked = {"ports": list(ports), "paths": [str(path) for path in paths], "keys": keys}
    done = subprocess.run(
        [sys.executable, "-P", str(Path(__file__).with_name("stranger.py"))],
        input=json.dumps(asked), capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def of_cluster(values, folder, also=dict):
    """Connect to workers with these options; return the ports opened for it, and what each user gets from them.

    `also` returns the process ids of workers that are not children of this process.
    """
    before = listening(psutil.Process().pid)
    with connect(build_cluster(values), Path(folder), notify=lambda _: None) as workers:
        ports = sorted(listening(psutil.Process().pid, *also()) - before)
        security = workers.client.security if workers.client is not None else None
        paths = [*Path(folder).glob("keys-*")]
        given = security if security is not None and security.require_encryption else None
        return ports, attempts(ports, paths, given)
