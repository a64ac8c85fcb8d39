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

_NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "cifs", "smb", "ceph", "glusterfs", "afs", "fuse.sshfs", "9p")


def key_of(*facts: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    """Return a cache key for these facts on this machine."""
    machine = [platform.machine(), _processor(), os.cpu_count()]
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
    if not os.path.isabs(base) or _is_remote(base):
        return None
    return Path(base) / "scorer" / kind


def _is_remote(path: str) -> bool:
    """Return whether the path is on a network file system."""
    longest, kind = "", ""
    with suppress(OSError), open("/proc/mounts", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            _, point, name, *_ = line.split()
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(longest):
                longest, kind = point, name
    return kind.startswith(_NETWORK)


def _processor() -> str:
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    return platform.processor()
