"""The current process: its name, start time and memory."""

from __future__ import annotations

import os
import resource
import socket
import sys
from contextlib import suppress
from typing import Any


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:  # systems without /proc: the peak is the best estimate
        return peak()


def peak() -> int:
    """Return the peak resident memory of this process in bytes."""
    with suppress(OSError, ValueError), open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmHWM:"):  # getrusage would include the process that forked this one
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def myself() -> dict[str, Any]:
    """Return host, process id and start time, which together identify this process."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "born": _start_time(os.getpid())}


def _start_time(pid: int) -> str | None:
    """Return when a process started, which tells apart processes with the same id; None if unknown."""
    stat = process_stat(pid)
    return stat[1] if stat else None


def process_stat(pid: int) -> tuple[str, str] | None:
    """Return the state and the start time of a process, or None if it does not exist or there is no /proc."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return None


def mounts() -> str:
    """Return which machine and mounts this process sees: where it is the same, equal inodes mean the same file."""
    found = [socket.gethostname()]
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        found.append(file.read().strip())  # machines may share a name
    with suppress(OSError):
        found.append(os.readlink("/proc/self/ns/mnt"))  # and containers a machine
    return " ".join(found)


def name_of_process() -> str:
    """Return `host:pid`, for receipts and errors."""
    return f"{socket.gethostname()}:{os.getpid()}"
