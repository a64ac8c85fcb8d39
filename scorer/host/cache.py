"""What tuning found before, for the same model, versions and machine: in the user's cache folder, if that is local."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

_REMOTE = ("nfs", "lustre", "gpfs", "beegfs", "cifs", "smb", "ceph", "glusterfs", "afs", "fuse.sshfs", "9p")


def key_of(*facts: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    """A name for these facts on this machine."""
    machine = [platform.machine(), _processor(), os.cpu_count()]
    return hashlib.sha256(json.dumps([machine, *facts], sort_keys=True, default=str).encode()).hexdigest()[:32]


def load(key: str) -> dict[str, Any] | None:
    """What was kept under this name, or None."""
    kept = folder("tuning")
    if kept is None:
        return None
    with suppress(OSError, ValueError):
        found = json.loads((kept / f"{key}.json").read_text("utf-8"))
        return found if isinstance(found, dict) else None
    return None


def store(key: str, values: dict[str, Any]) -> None:
    """Keep it for the next time; where that cannot be, nothing happens."""
    kept = folder("tuning")
    if kept is None:
        return
    with suppress(OSError):
        kept.mkdir(parents=True, exist_ok=True)
        own = kept / f"{key}.{os.getpid()}"
        own.write_text(json.dumps(values), "utf-8")
        own.replace(kept / f"{key}.json")


def folder(kind: str) -> Path | None:
    """Where this user keeps such things, on a disk of this machine; a thousand workers leave a shared home alone."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(base) or _is_remote(base):
        return None
    return Path(base) / "scorer" / kind


def _is_remote(path: str) -> bool:
    """Whether the path is on a file system that other machines share."""
    best, kind = "", ""
    with suppress(OSError), open("/proc/mounts", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            _, point, name, *_ = line.split()
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, kind = point, name
    return kind.startswith(_REMOTE)


def _processor() -> str:
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    return platform.processor()
