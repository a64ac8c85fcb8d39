"""A proxy before a server on this machine that behaves like a distant one: it delays, limits the rate and counts."""

from __future__ import annotations

import mmap
import struct
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.processes import kill, require_programs

ROUND_TRIP_S, CONNECTION_RATE, TOTAL_RATE = 0.030, 25e6, 60e6
"""A store in the same region, seen from a small machine."""
_SOURCE = Path(__file__).with_suffix(".c")
_NAMES = (
    "get", "head", "put", "post", "delete", "other", "connections", "most_connections", "down_bytes", "up_bytes",
    "chain",
)  # fmt: skip


@dataclass(frozen=True)
class Link:
    """A running proxy: its port, and what went through it."""

    port: int
    _memory: mmap.mmap

    @property
    def counts(self):
        """Requests by verb, connections and bytes so far; `chain` is the most requests that followed one another."""
        return dict(zip(_NAMES, struct.unpack(f"{len(_NAMES)}Q", self._memory[: 8 * len(_NAMES)]), strict=True))

    def since(self, before):
        """Return the requests and bytes since these counts."""
        return {name: count - before[name] for name, count in self.counts.items()}


@contextmanager
def delaying(port, round_trip_s=ROUND_TRIP_S, connection_rate=CONNECTION_RATE, total_rate=TOTAL_RATE):
    """Start a proxy before the server at this port; rates in bytes per second, 0 for no limit."""
    (compiler,) = require_programs("cc")
    with tempfile.TemporaryDirectory() as folder:
        program, counts = Path(folder, "delaying"), Path(folder, "counts")
        subprocess.run([compiler, "-O2", "-o", program, _SOURCE], check=True)
        command = [program, counts, port, round_trip_s / 2, connection_rate, total_rate]
        proxy = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            listens = int(proxy.stdout.readline())
            with counts.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
                yield Link(listens, memory)
        finally:
            proxy.stdout.close()
            kill(proxy)
