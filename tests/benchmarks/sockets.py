"""List the sockets on which a run listens, in each mode: process, address, port, and whether they use TLS.

python tests/benchmarks/sockets.py [FLAGS OF A QUEUE ...]
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

DENSE = Path(__file__).parent.parent / "models" / "dense28.onnx"
MODES = {
    "embedded": (),
    "processes": ("--cluster", "processes", "--workers", "2"),
    "processes, --tls": ("--cluster", "processes", "--workers", "2", "--tls"),
}


def encrypted(address, port):
    """Return whether the other side uses TLS: it shows a certificate, or refuses a client without one."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((address, port), 2) as plain, context.wrap_socket(plain) as wrapped:
            wrapped.recv(1)
    except ssl.SSLError as error:
        return "certificate required" in str(error).lower() or "handshake failure" in str(error).lower()
    except OSError:
        return False
    return True


def listening(run):
    """Return the listening sockets of a run's processes and of its jobs."""
    family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
    family += [p for p in psutil.process_iter(["cmdline"]) if "dask_worker" in " ".join(p.info["cmdline"] or ())]
    found = set()
    for process in {p.pid: p for p in family}.values():
        with contextlib.suppress(psutil.Error):
            for one in process.net_connections("inet"):
                if one.status == psutil.CONN_LISTEN:
                    found.add((process.pid, one.laddr.ip, one.laddr.port))
    return sorted(found)


def main():
    """Print the table."""
    modes = MODES | ({"a queue": tuple(sys.argv[1:])} if sys.argv[1:] else {})
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        rng = np.random.default_rng(0)
        pq.write_table(
            pa.table({f"f{i}": rng.standard_normal(200_000, dtype=np.float32) for i in range(28)}), at / "in.parquet"
        )
        for mode, flags in modes.items():
            run = subprocess.Popen(
                [sys.executable, "-m", "scorer", "run", str(at / "in.parquet"), "--model", str(DENSE), "--output",
                 str(at / "out"), "--overwrite", "--batch-rows", "1", "--no-tune", *flags],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                until = time.monotonic() + 60
                while run.poll() is None and time.monotonic() < until and not [*at.glob("out.scorer/work-*/started/*")]:
                    time.sleep(0.1)
                rows = [(pid, ip, port, encrypted(ip, port)) for pid, ip, port in listening(run)]
            finally:
                os.killpg(run.pid, signal.SIGTERM)
                run.wait()
            print(f"{mode}: {len(rows)} sockets")
            for pid, ip, port, tls in rows:
                print(f"  process {pid}  {ip}:{port}  {'tls' if tls else 'clear'}")
            for left in at.glob("out*"):
                subprocess.run(["rm", "-rf", left], check=True)


if __name__ == "__main__":
    main()
