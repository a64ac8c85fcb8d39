"""List the sockets on which each mode listens, and what each kind of user gets from them. Needs root.

PYTHONPATH=tests python tests/benchmarks/sockets.py [OPTIONS OF A QUEUE, such as cluster=slurm memory=2GB interface=lo]
"""

from __future__ import annotations

import sys
import tempfile

import psutil
from support import access

PROCESSES = {"cluster": "processes", "workers": 1, "threads": 1}
MODES = {
    "synchronous": {"cluster": "synchronous"},
    "embedded": {"cluster": "embedded", "threads": 1},
    "embedded, --dashboard": {"cluster": "embedded", "threads": 1, "dashboard": True},
    "processes": PROCESSES,
    "processes, --dashboard": PROCESSES | {"dashboard": True},
    "processes, --no-tls": PROCESSES | {"tls": False},
}


def jobs():
    """Return the process ids of the workers that a queue on this machine has started."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if "dask_worker" in " ".join(p.info["cmdline"] or ())]


def main():
    """Print the table."""
    queue = dict(option.split("=", 1) for option in sys.argv[1:])
    modes = MODES | ({f"jobs of {queue['cluster']}": queue} if queue else {})
    for mode, values in modes.items():
        with tempfile.TemporaryDirectory() as folder:
            ports, found = access.of_cluster(values, folder, jobs)
        print(f"{mode}: {len(ports)} listening socket{'' if len(ports) == 1 else 's'}")
        for at, (host, port) in enumerate(ports):
            print(f"  {host}:{port}")
            for user, got in found.items():
                print(f"    {user}: {got['ports'][at]}")


if __name__ == "__main__":
    main()
