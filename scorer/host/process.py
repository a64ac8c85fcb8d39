"""The current process: its name, start time and memory."""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


_before_reset = [0]  # the peak that the kernel has forgotten, because `measuring` made it start again


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:  # systems without /proc: the peak is the best estimate
        return peak()


def private() -> int:
    """Return the resident bytes that belong to this process alone; 0 on systems without /proc."""
    return _kilobytes("/proc/self/status", "RssAnon:") << 10


def mapped(path: str) -> int:
    """Return the resident bytes of a file that this process maps; 0 on systems without /proc."""
    found, inside = 0, False
    with suppress(OSError), open("/proc/self/smaps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            first, *rest = line.split(maxsplit=5)
            if not first.endswith(":"):
                inside = rest[-1].rstrip("\n") == path
            elif inside and first == "Rss:":
                found += int(rest[0]) << 10
    return found


def release_unused() -> None:
    """Return freed memory to the system, where the C library can do that."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def peak() -> int:
    """Return the peak resident memory of this process in bytes."""
    return max(_before_reset[0], _recorded_peak())


def memory_limit() -> int:
    """Return the memory that this process may use: that of the machine, or less in a container or a job."""
    least = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError), open(path, encoding="ascii") as file:
            least = min(least, int(file.read()))
    return least


@dataclass(slots=True)
class Growth:
    """How much the resident memory of this process grew."""

    most: int = 0
    """Bytes between the start and the peak; what was released again counts."""


@contextmanager
def measuring() -> Iterator[Growth]:
    """Measure how much memory the block needs; where the kernel keeps no peak that can be reset, what is left of it."""
    found = Growth()
    _before_reset[0] = peak()
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # resets VmHWM, and nothing else
    start, recorded = resident(), _recorded_peak()
    yield found
    after = _recorded_peak()
    found.most = max(0, resident() - start, after - start if after > recorded else 0)


def _recorded_peak() -> int:
    """Return the peak that the kernel has recorded."""
    recorded = _kilobytes("/proc/self/status", "VmHWM:")  # getrusage would include the process that forked this one
    if recorded:
        return recorded << 10
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _kilobytes(path: str, name: str) -> int:
    """Return a figure of a file in /proc; 0 if it is not there."""
    with suppress(OSError, ValueError), open(path, encoding="ascii") as file:
        for line in file:
            if line.startswith(name):
                return int(line.split()[1])
    return 0


def myself() -> dict[str, Any]:
    """Return what identifies this process: its host, id and start time, and what the id refers to.

    Containers may share a host name, and each counts process ids of its own.
    """
    here = {"host": socket.gethostname(), "boot": boot_id(), "pid_namespace": _pid_namespace()}
    return {**here, "pid": os.getpid(), "born": _start_time(os.getpid())}


def shares_process_ids(other: dict[str, Any]) -> bool:
    """Return whether the id of another process, as by its `myself`, means the same process here."""
    here = {"boot": boot_id(), "pid_namespace": _pid_namespace()}
    known = all(other.get(name) in {None, here[name]} for name in here)  # older versions of scorer wrote neither
    return known and other.get("host") == socket.gethostname()


@cache
def boot_id() -> str | None:
    """Return a name that this machine got when it started; None if unknown. Machines may share a host name."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return None


def _pid_namespace() -> str | None:
    """Return the namespace that counts the process ids seen here, which is a container's own; None if unknown."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return None


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
    found = [socket.gethostname(), boot_id() or ""]
    with suppress(OSError):
        found.append(os.readlink("/proc/self/ns/mnt"))  # and containers a machine
    return " ".join(found)


def name_of_process() -> str:
    """Return `host:pid`, for receipts and errors."""
    return f"{socket.gethostname()}:{os.getpid()}"
