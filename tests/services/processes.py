"""Start programs that end with this process, wait for conditions, and kill process trees."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


class Missing(Exception):
    """Something that a service needs is not installed or not allowed here."""


def require_programs(*programs):
    """Return the paths of the programs that a service needs; raise Missing if one is missing, or without root."""
    if os.geteuid():
        raise Missing("services must be started by root")
    found = {name: shutil.which(name, path=_PATH) for name in programs}
    absent = sorted(name for name, path in found.items() if path is None)
    if absent:
        raise Missing(f"not installed: {', '.join(absent)}; .ci/services installs it")
    return list(found.values())


def require_modules(*modules):
    """Raise Missing unless all of these modules are installed."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        raise Missing(f"not installed: {', '.join(absent)}; .ci/services installs it")


def environment(**more):
    """Return the environment of a program to start: this process's, with changes."""
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return ours | {"PATH": _PATH} | {name: str(value) for name, value in more.items()}


def free_ports(many):
    """Return this many unused ports, below the range that the kernel uses for outgoing connections."""
    ports = []
    with ExitStack() as held:
        for port in range(20_000 + os.getpid() % 8_000, 32_000):
            taken = held.enter_context(socket.socket())
            with suppress(OSError):
                taken.bind(("127.0.0.1", port))
                ports.append(port)
            if len(ports) == many:
                return ports
    raise Missing(f"{many} free ports below 32000")


def start_program(command, log, *, dies_with_us=True, **options):
    """Start a program that writes to the log; it is killed when this process ends."""
    with_us = ["setpriv", "--pdeathsig", "KILL"] if dies_with_us else []
    with open(log, "ab") as file:
        return subprocess.Popen(
            [*with_us, *map(str, command)], stdin=subprocess.DEVNULL, stdout=file, stderr=file, **options
        )


def output_of(command, *, timeout=60, **options):
    """Run a program and return its output; if it fails, raise an error with its output."""
    ended = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=timeout, check=False, **options
    )  # fmt: skip
    if ended.returncode:
        said = (ended.stdout + ended.stderr).strip()
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {ended.returncode}: {said}")
    return ended.stdout


def wait_until(true, seconds, what):
    """Wait for a true value of `true()` and return it; after `seconds`, raise an error that names `what`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        value = true()
        if value:
            return value
        time.sleep(0.05)
    said = what() if callable(what) else what
    raise TimeoutError(f"{said}: not within {seconds} s")


def process_tree(process):
    """Return the process and all its descendants."""
    with suppress(psutil.NoSuchProcess):
        head = psutil.Process(process.pid)
        return [head, *head.children(recursive=True)]
    return []


def kill(process, number=signal.SIGKILL):
    """Kill a process and its descendants."""
    for one in process_tree(process):
        with suppress(psutil.NoSuchProcess):
            one.send_signal(number)
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
