"""Grid Engine on the hosts of `hosts.lan`: the first runs the master and submits, the others run jobs.

cd tests && python -m services.grid_engine qhost     a command on the first host; without one, a shell
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from services.hosts import lan
from services.processes import require_programs, wait_until

_LIBRARY = Path("/usr/lib/gridengine")
_SHARED = Path("/usr/share/gridengine")
_BOOTSTRAP = """\
admin_user none
default_domain none
ignore_fqdn true
spooling_method classic
spooling_lib libspoolc
spooling_params {common};{spool}
binary_path {library}
qmaster_spool_dir {spool}
security_mode none
listener_threads 2
worker_threads 2
scheduler_threads 1
jvm_threads 0
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A line of qstat."""

    id: int
    state: str
    """r runs, qw waits, E is an error."""
    name: str


class GridEngine:
    """A running Grid Engine with a queue called `debug`."""

    def __init__(self, hosts):
        self.hosts, self.folder = hosts, hosts.folder
        self.first, *self._others = hosts
        self.environment = {"SGE_ROOT": self.folder, "SGE_CELL": "default"}
        self._common, self._spool = self.folder / "default" / "common", self.folder / "spool"

    def prefix(self, cwd=None):
        """Return the prefix of a command that runs on the submit host."""
        return self.first.prefix(cwd)

    def ask(self, *command, timeout=30):
        """Run one of Grid Engine's commands on the first host; return its output."""
        return self.first.run(*command, timeout=timeout, **self.environment)

    def jobs(self):
        """Return the jobs in the queue, in any state."""
        fields = [line.split() for line in self.ask("qstat", "-u", "*").splitlines()[2:]]
        return [Job(id=int(each[0]), state=each[4], name=each[2]) for each in fields]

    def cancel(self, *jobs):
        """Delete jobs."""
        self.ask("qdel", *[str(job.id) for job in jobs])

    def wait_empty(self, seconds=60):
        """Wait until no job is left; return the seconds that it took."""
        begun = time.monotonic()
        wait_until(lambda: not self.jobs(), seconds, lambda: f"an empty queue; there are {self.jobs()}")
        return time.monotonic() - begun

    def log(self):
        """Return the logs of the daemons."""
        texts = [self._spool / "messages", *self.folder.glob("execd/*/messages"), *self.folder.glob("h*.log")]
        return "\n".join(f"== {path}\n{path.read_text()}" for path in texts if path.exists())

    def _start(self):
        for folder in (self._common, self._spool, self.folder / "execd"):
            folder.mkdir(parents=True)
        (self._common / "act_qmaster").write_text(f"{self.first.name}\n")
        parameters = {"common": self._common, "spool": self._spool, "library": _LIBRARY}
        (self._common / "bootstrap").write_text(_BOOTSTRAP.format(**parameters))
        self._fill()
        self.first.start("sge_qmaster", SGE_ND="true", **self.environment)
        wait_until(self._answers, 15, lambda: f"the master\n{self.log()}")
        self._changed(
            "-ssconf", "-Msconf", {"schedule_interval": "0:0:1", "flush_submit_sec": 1, "flush_finish_sec": 1}
        )
        self.ask("qconf", "-as", self.first.name)
        for host in self._others:
            self.ask("qconf", "-ah", host.name)
            host.start("sge_execd", SGE_ND="true", **self.environment)
        wait_until(self._has_all_hosts, 60, lambda: f"the hosts\n{self.log()}")
        names = " ".join(host.name for host in self._others)
        queue = {"qname": "debug", "hostlist": names, "slots": 1, "load_thresholds": "NONE", "pe_list": "NONE"}
        self._changed("-sq", "-Aq", queue | {"shell_start_mode": "unix_behavior"})

    def _fill(self):
        """Fill the database as the installer does."""
        self.ask(_LIBRARY / "spoolinit", "classic", "libspoolc", f"{self._common};{self._spool}", "init")
        text = (_SHARED / "default-configuration").read_text()
        ours = {"execd_spool_dir": self.folder / "execd", "gid_range": "20000-20100", "min_uid": 0, "min_gid": 0}
        for name, value in ours.items():
            text = re.sub(rf"(?m)^{name}\s.*$", f"{name} {value}", text)
        (self.folder / "configuration").write_text(text)
        self.ask(_LIBRARY / "spooldefaults", "configuration", self.folder / "configuration")
        for what in ("complexes", "usersets"):
            source = _SHARED / "util" / "resources" / {"complexes": "centry"}.get(what, what)
            self.ask(_LIBRARY / "spooldefaults", what, source)
        self.ask(_LIBRARY / "spooldefaults", "managers", "root")

    def _changed(self, show, change, values):
        """Change values of a configuration: read it with `show`, write it with `change`."""
        text = self.ask("qconf", show)
        for name, value in values.items():
            text = re.sub(rf"(?m)^{name}\s.*$", f"{name} {value}", text)
        (self.folder / "change").write_text(text)
        self.ask("qconf", change, self.folder / "change")

    def _answers(self):
        with suppress(RuntimeError):
            return self.ask("qconf", "-sh") or True
        return False

    def _has_all_hosts(self):
        with suppress(RuntimeError):  # qconf fails while no execution host has registered
            return {host.name for host in self._others} <= set(self.ask("qconf", "-sel").split())
        return False


@contextmanager
def grid_engine(workers=3):
    """Start a master, and this many hosts that run one job each."""
    require_programs("sge_qmaster", "sge_execd", "qconf", "qsub", "qstat", "qdel", str(_LIBRARY / "spoolinit"))
    with lan(1 + workers) as hosts:
        engine = GridEngine(hosts)
        engine._start()
        yield engine


def main():
    """Run a command, or a shell, on the submit host."""
    with grid_engine() as engine:
        command = sys.argv[1:] or [os.environ.get("SHELL", "bash")]
        more = {name: str(value) for name, value in engine.environment.items()}
        return subprocess.run([*engine.prefix(os.getcwd()), *command], env=os.environ | more, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
