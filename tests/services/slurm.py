"""Slurm with virtual nodes on this machine, and its own munge.

    cd tests && python -m services.slurm scorer run ...     a command with SLURM_CONF set; without one, a shell

Two can run at the same time: each has its own folder, ports and munge socket.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from services.processes import environment, free_ports, kill, output_of, require_programs, start_program, wait_until

NODES = 4
_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmctldPort={port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
KillWait=5
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A line of squeue."""

    id: int
    state: str
    name: str
    node: str
    """Empty while it waits."""
    reason: str


class Slurm:
    """A running Slurm; `folder` has its logs."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.conf = self.folder / "slurm.conf"
        self.environment = environment(SLURM_CONF=self.conf)

    def ask(self, *command, timeout=30):
        """Run one of Slurm's commands; return its output."""
        return output_of(command, env=self.environment, timeout=timeout)

    def jobs(self, *states):
        """Return the jobs in the queue, or only those in these states, such as RUNNING."""
        lines = self.ask("squeue", "--noheader", "--format=%A|%T|%j|%N|%r").splitlines()
        fields = [line.split("|") for line in lines]
        found = [Job(id=int(i), state=state, name=name, node=node, reason=why) for i, state, name, node, why in fields]
        return [job for job in found if not states or job.state in states]

    def cancel(self, *jobs):
        """Cancel jobs, or all of them."""
        if jobs:
            self.ask("scancel", *[getattr(job, "id", job) for job in jobs])
        else:
            self.ask("scancel", "--user", "root")

    def wait_for_jobs(self, many, *states, seconds=60):
        """Wait for at least this many jobs; return them."""
        return wait_until(
            lambda: len(jobs := self.jobs(*states)) >= many and jobs, seconds, lambda: f"{many} jobs, {self.jobs()}"
        )

    def wait_empty(self, seconds=60):
        """Wait until no job is left; return the seconds that it took."""
        begun = time.monotonic()
        wait_until(lambda: not self.jobs(), seconds, lambda: f"an empty queue; there are {self.jobs()}")
        return time.monotonic() - begun

    def log(self, lines=40):
        """Return the last lines of the daemons' logs."""
        texts = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {path.name}\n" + "\n".join(path.read_text().splitlines()[-lines:]) for path in texts)

    def processes(self):
        """Return all processes of this Slurm: daemons, jobs, and their descendants."""
        mark = f"SLURM_CONF={self.conf}"
        ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
        return [process for process in psutil.process_iter() if process.pid not in ours and _belongs(process, mark)]

    def _start(self, stack, nodes):
        slurmctld, slurmd, munged, mungekey, *_ = require_programs(
            "slurmctld", "slurmd", "munged", "mungekey", "sbatch", "squeue", "scancel", "sinfo", "setpriv"
        )
        control, *ports = free_ports(1 + nodes)
        self._write_conf(control, ports)
        key = self.folder / "munge.key"
        output_of([mungekey, "--create", "--keyfile", key])
        munge = self.folder / "munge"
        paths = {"socket": f"{munge}.socket", "pid-file": f"{munge}.pid", "log-file": f"{munge}.log"}
        flags = [
            f"--{name}={value}" for name, value in {**paths, "key-file": key, "seed-file": f"{munge}.seed"}.items()
        ]
        self._run(stack, [munged, "--foreground", "--force", *flags])
        wait_until(Path(paths["socket"]).exists, 20, lambda: f"munge\n{self.log()}")
        self._run(stack, [slurmctld, "-D", "-f", self.conf])
        for i in range(nodes):
            self._run(stack, [slurmd, "-D", "-f", self.conf, "-N", f"n{i + 1}"])
        wait_until(lambda: self._idle() == nodes, 60, lambda: f"{nodes} idle nodes\n{self.log()}")

    def _write_conf(self, control, ports):
        host = socket.gethostname().split(".")[0]
        text = _CONF.format(host=host, folder=self.folder, port=control)
        for i, port in enumerate(ports, 1):
            where = f"NodeHostname={host} NodeAddr=127.0.0.1 Port={port}"
            text += f"NodeName=n{i} {where} CPUs=2 RealMemory=4000\n"
        nodes = ",".join(f"n{i}" for i in range(1, len(ports) + 1))
        self.conf.write_text(f"{text}PartitionName=debug Nodes={nodes} Default=YES MaxTime=INFINITE State=UP\n")
        (self.folder / "state").mkdir()

    def _run(self, stack, command):
        process = start_program(command, self.folder / "daemons.log", env=self.environment, cwd=self.folder)
        stack.callback(kill, process)

    def _idle(self):
        with suppress(RuntimeError):  # the controller is not yet there
            states = self.ask("sinfo", "--noheader", "--Node", "--format=%T").split()
            return states.count("idle")
        return 0

    def _end_jobs(self):
        """While there is a controller that can end them."""
        with suppress(Exception):
            self.cancel()
            self.wait_empty(15)

    def _sweep(self):
        """No step, no daemon, no job, no driver is left."""
        for number in ("terminate", "kill"):
            for process in self.processes():
                with suppress(psutil.NoSuchProcess):
                    getattr(process, number)()
            with suppress(TimeoutError):
                wait_until(lambda: not self.processes(), 5, "the end of all processes")


def _belongs(process, mark):
    """By its environment; a step has overwritten that with its title, but stays in its node's folder."""
    with suppress(psutil.Error, OSError):
        if mark.encode() in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
            return True
        folder = mark.removeprefix("SLURM_CONF=").removesuffix("slurm.conf")
        return process.name().startswith("slurm") and process.cwd().startswith(folder)
    return False


@contextmanager
def slurm(nodes=NODES):
    """Start Slurm with this many nodes of two cores and 4,000 MB each, in the partition `debug`."""
    folder = tempfile.mkdtemp(prefix="slurm-")
    os.chmod(folder, 0o755)
    queue = Slurm(folder)
    try:
        with ExitStack() as stack:
            stack.callback(queue._sweep)
            queue._start(stack, nodes)
            stack.callback(queue._end_jobs)
            yield queue
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main():
    """Run a command, or a shell, with SLURM_CONF set."""
    with slurm() as queue:
        print(f"SLURM_CONF={queue.conf}", file=sys.stderr)
        command = sys.argv[1:] or [os.environ.get("SHELL", "bash")]
        return subprocess.run(command, env=queue.environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
