"""What a cluster leaves behind: its processes, the ports on which they listened, and the files that they wrote."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import psutil

SHARED = {"global.lock", "purge.lock"}
"""Files of Dask's scratch folder, which all clusters of a user share."""
LOCK = ".dirlock"
"""The end of a lock's name there: a worker that is killed leaves it, and the next one that starts removes it."""


class Traces:
    """Everything that was seen of a cluster's processes while they ran."""

    def __init__(self, found, keep):
        self._found, self._keep = found, [str(path) for path in keep]
        """A function that returns the processes now, and the folders whose files may stay."""
        self.processes, self.ports, self.files = set(), set(), set()

    def look(self):
        """Note the processes, ports and files of this moment."""
        for process in self._found():
            with suppress(psutil.Error):
                self.processes.add(process)
                self.ports |= {one.laddr.port for one in process.net_connections() if one.status == psutil.CONN_LISTEN}
                for one in process.open_files():
                    if one.mode != "r" and not self._stays(one.path):
                        self.files.add(one.path)

    def _stays(self, path):
        return path.endswith(LOCK) or Path(path).name in SHARED or any(map(path.startswith, self._keep))

    def left(self, seconds=40):
        """Return what is still there of all that, after at most so many seconds."""
        until = time.monotonic() + seconds
        while (left := self._left()) and time.monotonic() < until:
            time.sleep(0.2)
        return left

    def _left(self):
        running = {one for one in (*self.processes, *self._found()) if one.is_running()}
        listening = {one.laddr.port for one in psutil.net_connections("inet") if one.status == psutil.CONN_LISTEN}
        return [*running, *(self.ports & listening), *(path for path in self.files if Path(path).exists())]


def of_environment(name, value):
    """Return a function that finds the processes with this variable in their environment."""

    def found():
        processes = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(name) == value:
                    processes.append(process)
        return processes

    return found
