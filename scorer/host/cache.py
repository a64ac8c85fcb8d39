"""The user's cache folder, and the tuning results in it: one file per model, versions and machine.

Nothing is cached if the folder is on a network file system.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

_MEMORY = ("tmpfs", "ramfs")
_NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "cifs", "smb", "ceph", "glusterfs", "afs", "fuse.sshfs", "9p")


def key_of(*facts: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    """Return a cache key for these facts on this machine."""
    machine = [platform.machine(), _of_processor("model name"), os.cpu_count()]
    return hashlib.sha256(json.dumps([machine, *facts], sort_keys=True, default=str).encode()).hexdigest()[:32]


def load(key: str) -> dict[str, Any] | None:
    """Return the cached values of this key, or None."""
    results = folder("tuning")
    if results is None:
        return None
    with suppress(OSError, ValueError):
        cached = json.loads((results / f"{key}.json").read_text("utf-8"))
        return cached if isinstance(cached, dict) else None
    return None


def store(key: str, values: dict[str, Any]) -> None:
    """Cache values under this key; write errors are ignored."""
    results = folder("tuning")
    if results is None:
        return
    with suppress(OSError):
        results.mkdir(parents=True, exist_ok=True)
        temporary = results / f"{key}.{os.getpid()}"
        temporary.write_text(json.dumps(values), "utf-8")
        temporary.replace(results / f"{key}.json")


def folder(kind: str) -> Path | None:
    """Return a folder in the user's cache, or None if that is on a network: a thousand workers must not write there."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(base) or _file_system(base).startswith(_NETWORK):
        return None
    return Path(base) / "scorer" / kind


def on_disk(path: str | Path) -> bool:
    """Return whether the path is on a local disk: neither on a network nor in memory."""
    return not _file_system(str(path)).startswith((*_NETWORK, *_MEMORY))


def processor_key() -> str:
    """Return a hash of the processor's name and instruction sets, for what is cached for one kind of processor."""
    facts = [platform.machine(), *(_of_processor(name) for name in ("model name", "flags", "Features"))]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]


def _file_system(path: str) -> str:
    """Return the kind of the file system that the path is on; '' if unknown."""
    longest, kind = "", ""
    with suppress(OSError), open("/proc/mounts", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            _, point, name, *_ = line.split()
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(longest):
                longest, kind = point, name
    return kind


def _of_processor(name: str) -> str:
    """Return what the system says of its first processor under this name; '' if it says nothing."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        return next((line.partition(":")[2].strip() for line in file if line.startswith(name)), "")
    return platform.processor()
