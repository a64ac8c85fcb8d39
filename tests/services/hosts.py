"""Several hosts on this machine, each with a name, an address and a cable: kernel namespaces behind one switch.

    cd tests && python -m services.hosts 4 sh -c '$H1 hostname; $H2 ping -c 1 h1'

Each host has its own process ids, network, hostname and mounts. The machine's own network is not changed, and nothing
is left when the processes end.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from services.processes import Missing, environment, kill, output_of, require_programs, start_program, wait_until

_NETWORK = "10.97.0"
_REAPS = "trap '' CHLD; exec sleep infinity"  # as the host's first process it reaps the others


class Host:
    """One host; `name` is its hostname, `address` the address of its network interface."""

    def __init__(self, number, holder, first, lan):
        self.name, self.address = f"h{number}", f"{_NETWORK}.{number}"
        self._number, self._holder, self._first, self.lan = number, holder, first, lan
        self._started = 0

    def prefix(self, cwd=None):
        """Return the prefix of a command that runs on this host."""
        wd = [f"--wdns={cwd}"] if cwd is not None else []
        return ["nsenter", f"--target={self._first}", "--net", "--uts", "--mount", "--pid", *wd, "--"]

    def run(self, *command, cwd=None, timeout=60, **more):
        """Run a command and return its output; raise an error if it fails."""
        return output_of([*self.prefix(cwd), *command], env=environment(**more), timeout=timeout)

    def start(self, *command, cwd=None, **more):
        """Start a command in the background; it ends with the host, and `log()` has its output."""
        self._started += 1
        log = self.lan.folder / f"{self.name}-{self._started}.log"
        return start_program([*self.prefix(cwd or self.lan.folder), *command], log, env=environment(**more))

    def log(self):
        """Return the output of the started commands."""
        return "\n".join(path.read_text() for path in sorted(self.lan.folder.glob(f"{self.name}-*.log")))

    def cut(self):
        """Cut the cable: packets are dropped without an error."""
        self.lan._switch("ip", "link", "set", f"p{self._number}", "down")

    def mend(self):
        """Put the cable back."""
        self.lan._switch("ip", "link", "set", f"p{self._number}", "up")

    def private(self, folder):
        """Mount an empty folder on this host over a shared one; return the path."""
        self.run("mount", "-t", "tmpfs", "tmpfs", folder)
        return Path(folder)

    def off(self):
        """Power off: kill every process of this host at once."""
        kill(self._holder)


class Lan:
    """A switch and the hosts on it."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.hosts = []
        self._first = None

    def __iter__(self):
        return iter(self.hosts)

    def log(self):
        """Return the output of all hosts."""
        return "\n".join(f"== {host.name}\n{host.log()}" for host in self.hosts)

    def _switch(self, *command):
        return output_of(["nsenter", f"--target={self._first}", "--net", "--", *command])

    def _start(self, stack, many):
        require_programs("ip", "nsenter", "unshare", "setpriv", "mount")
        self._first = self._hold(stack, "switch")[1]
        self._switch("ip", "link", "add", "br0", "type", "bridge")
        self._switch("ip", "link", "set", "br0", "up")
        names = "".join(f"{_NETWORK}.{i} h{i}\n" for i in range(1, many + 1))
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        for i in range(1, many + 1):
            holder, first = self._hold(stack, f"h{i}")
            self.hosts.append(Host(i, holder, first, self))
            self._plug(self.hosts[-1], first)

    def _plug(self, host, first):
        """Connect the host to the switch."""
        port = f"p{host._number}"
        self._switch("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(first))
        self._switch("ip", "link", "set", port, "master", "br0")
        self._switch("ip", "link", "set", port, "up")
        host.run("ip", "link", "set", "lo", "up")
        host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        host.run("hostname", host.name)
        host.run("mount", "--bind", self.folder / "hosts", "/etc/hosts")

    def _hold(self, stack, name):
        """Start a process that holds a set of namespaces; return it, and the outer pid of the first process inside."""
        log = self.folder / f"{name}-0.log"
        own = ["--net", "--uts", "--mount", "--mount-proc", "--pid", "--fork", "--kill-child"]
        holder = start_program(["unshare", *own, "sh", "-c", _REAPS], log)
        stack.callback(kill, holder)
        wait_until(lambda: _asleep(holder) or holder.poll() is not None, 10, f"the namespaces of {name}")
        if holder.poll() is not None:
            raise Missing(f"namespaces are not allowed here: {log.read_text().strip()}")
        return holder, psutil.Process(holder.pid).children()[0].pid


def _asleep(holder):
    """Return whether the first process sleeps, which means that its mounts exist."""
    return any(child.name() == "sleep" for child in psutil.Process(holder.pid).children())


@contextmanager
def lan(many):
    """Start this many hosts on one switch: h1 is 10.97.0.1, and so on. All folders are shared until made private."""
    folder = tempfile.mkdtemp(prefix="lan-")
    hosts = Lan(folder)
    try:
        with ExitStack() as stack:
            hosts._start(stack, many)
            yield hosts
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main():
    """Run a command, or a shell, with hosts: `$H1 COMMAND` runs a command on the first, and so on."""
    with lan(int(sys.argv[1])) as hosts:
        prefixes = {host.name.upper(): shlex.join(host.prefix(os.getcwd())) for host in hosts}
        print(*(f"{host.name} {host.address}" for host in hosts), sep="\n", file=sys.stderr)
        command = sys.argv[2:] or [os.environ.get("SHELL", "bash")]
        return subprocess.run(command, env=environment(**prefixes), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
