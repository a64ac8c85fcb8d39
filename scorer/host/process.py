"""The process that asks: its name, its birth, the memory it holds."""

from __future__ import annotations

import os
import resource
import socket
import sys
from contextlib import suppress
from typing import Any


def resident() -> int:
    """Bytes of memory that this process holds."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:  # elsewhere the most it ever held will do
        return peak()


def peak() -> int:
    """The most bytes of memory that this process ever held."""
    with suppress(OSError, ValueError), open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmHWM:"):  # getrusage would count who started us, too
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def myself() -> dict[str, Any]:
    """What tells this process from every other one."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())}


def _born(pid: int) -> str | None:
    """When a process started, so that a recycled process id is not taken for it; None where the system does not say."""
    stat = process_stat(pid)
    return stat[1] if stat else None


def process_stat(pid: int) -> tuple[str, str] | None:
    """State and time of birth."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return None


def name_of_process() -> str:
    """Host and process id, for receipts and errors."""
    return f"{socket.gethostname()}:{os.getpid()}"
