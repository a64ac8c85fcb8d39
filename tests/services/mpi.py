"""A Dask cluster under mpirun: rank 0 is the scheduler, every other rank a worker.

cd tests && python -m services.mpi 3 sh -c 'scorer run ... --scheduler-file $SCHEDULER_FILE'
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from services.processes import Missing, environment, kill, process_tree, require_programs, start_program, wait_until

_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": 1, "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": 1}


class Mpi:
    """A running MPI job; `scheduler_file` has the address of the scheduler."""

    def __init__(self, folder, ranks):
        self.folder, self.ranks = Path(folder), ranks
        self.scheduler_file = self.folder / "scheduler.json"
        self.process = None

    @property
    def address(self):
        """The address of the scheduler; None until it has written its file."""
        with suppress(OSError, json.JSONDecodeError):
            return json.loads(self.scheduler_file.read_text())["address"]
        return None

    def log(self):
        """Return the output of mpirun and the ranks."""
        return (self.folder / "mpirun.log").read_text()

    def _start(self):
        mpirun, dask_mpi, *_ = require_programs("mpirun.openmpi", "dask-mpi", "setpriv")
        command = [
            mpirun, "--oversubscribe", "-n", self.ranks, sys.executable, dask_mpi, "--scheduler-file",
            self.scheduler_file, "--worker-class", "distributed.Worker", "--nthreads", 1, "--interface", "lo",
            "--local-directory", self.folder,
        ]  # fmt: skip
        self.process = start_program(command, self.folder / "mpirun.log", env=environment(**_ROOT), cwd=self.folder)
        wait_until(lambda: self.address or self.process.poll() is not None, 60, lambda: f"a scheduler\n{self.log()}")
        if self.address is None:
            raise Missing(f"mpirun ended with {self.process.returncode}\n{self.log()}")


@contextmanager
def mpi(ranks=3):
    """Start a scheduler and `ranks` - 1 workers of one thread, on loopback."""
    folder = tempfile.mkdtemp(prefix="mpi-")
    cluster = Mpi(folder, ranks)
    try:
        cluster._start()
        yield cluster
    finally:
        if cluster.process is not None:
            members = process_tree(cluster.process)
            cluster.process.terminate()  # mpirun ends its ranks
            with suppress(subprocess.TimeoutExpired):
                cluster.process.wait(10)
            kill(cluster.process)
            for one in members:
                with suppress(Exception):
                    one.kill()
        shutil.rmtree(folder, ignore_errors=True)


def main():
    """Run a command, or a shell, beside this many ranks."""
    with mpi(int(sys.argv[1])) as cluster:
        print(f"SCHEDULER_FILE={cluster.scheduler_file}", file=sys.stderr)
        command = sys.argv[2:] or [os.environ.get("SHELL", "bash")]
        return subprocess.run(command, env=environment(SCHEDULER_FILE=cluster.scheduler_file), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
