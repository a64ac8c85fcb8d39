"""The packed weights of this host: written once for each model, runtime and processor, and mapped by all processes.

CACHE/scorer/packed/DIGEST-VERSION-PROCESSOR/    complete or absent: written to a temporary folder, then renamed
    model.onnx, model.bin                        the optimised graph, and its weights
    packed.json                                  the digests of both files, or why this model must not be packed
    checked.json                                 the inodes and times of the files whose digests were right
CACHE/scorer/packed/DIGEST-VERSION-PROCESSOR.lock    held by the process that packs, while others of the host wait

CACHE is the user's cache folder, or the user's temporary folder if the first is on a network or in memory.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorer.display.words import cut
from scorer.host import cache, isolation
from scorer.host.private import is_private, private_folder
from scorer.host.process import boot_id
from scorer.host.versions import versions
from scorer.storage.files import file_digest, one_process, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable

    from scorer.model.spec import SessionSpec


_MOST_BYTES = 20_000_000_000  # of all packed weights of a user on this host
_ROOM = 2.5  # times the bytes of the model: usual packed weights take 1.2 to 2.1 times as much
_WRITING = "scorer.model.packing._writing"
_RECORD, _CHECKED, _PART, _LOCK = "packed.json", "checked.json", ".part", ".lock"


class NotPacked(Exception):
    """Why the weights are not packed, in words."""


@dataclass(frozen=True, slots=True)
class PackedModel:
    """A packed model, and what it needs."""

    path: str
    bytes: int
    """Of its files."""
    private_bytes: int
    """What each process holds of its own."""
    shared_bytes: int
    """What all processes of a host hold together."""


def obtain(spec: SessionSpec, readable: Callable[[], SessionSpec]) -> PackedModel:
    """Return the packed model of this host; write it first if it is absent or damaged. Raise `NotPacked` if it cannot.

    `readable` returns the spec with a path that this process can read; it is called only to write.
    """
    try:
        folder = _root() / _name(spec)
        found = _read(folder)
        if found is None:
            with one_process(folder.with_name(folder.name + _LOCK)):
                found = _read(folder) or _write(readable(), folder)
                with suppress(OSError):  # others may remove the same ones
                    _remove_oldest(folder)
    except OSError as error:
        raise NotPacked(f"{error.strerror or error}: {error.filename or 'the cache folder'}") from error
    with suppress(OSError):
        os.utime(folder)  # the folder that was used last is removed last
    return found


def _root() -> Path:
    """Return the folder of packed weights; create it if need be."""
    in_cache = cache.folder("packed")
    for base in (in_cache, Path(private_folder()) / "packed"):
        if base is not None and cache.on_disk(base):
            base.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not is_private(str(base)):
                raise NotPacked(f"other users can use the folder {base}")
            return base
    raise NotPacked("the cache folder and the temporary folder of this host are in memory or on a network")


def _name(spec: SessionSpec) -> str:
    """Return the name of a folder: how weights are packed depends on the runtime and the processor."""
    return f"{spec.digest[:32]}-{versions()['onnxruntime']}-{cache.processor_key()}"


def _read(folder: Path) -> PackedModel | None:
    """Return what is packed in a folder; None if it is absent or damaged. Raise `NotPacked` if this model must not be.

    The digests of the files are computed once for each start of the machine; later the inodes and times must be those
    of the files that were right.
    """
    try:
        record = json.loads((folder / _RECORD).read_text("utf-8"))
        if record["refused"]:
            raise NotPacked(record["refused"])
        files: dict[str, str] = record["files"]
        seen = _identity(folder, files)
        if json.loads(_text(folder / _CHECKED) or "null") != seen:
            if any(file_digest(folder / name) != digest for name, digest in files.items()):
                return None
            with suppress(OSError):
                write_atomically(folder / _CHECKED, json.dumps(seen).encode(), durable=False)
        return PackedModel(
            str(folder / "model.onnx"), *(record[f"{name}_bytes"] for name in ("file", "private", "shared"))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _identity(folder: Path, files: dict[str, str]) -> list[Any]:
    """Return what changes if one of the files is written to, or if the machine starts again."""
    stats = [(folder / name).stat() for name in sorted(files)]
    return [boot_id(), *([one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns] for one in stats)]


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text("utf-8")
    return ""


def _write(spec: SessionSpec, folder: Path) -> PackedModel:
    """Pack a model into a folder, if it gives the same scores; replace what is there."""
    size = sum(path.stat().st_size for path in (Path(spec.path), *(Path(spec.path).parent / one for one in spec.files)))
    free = shutil.disk_usage(folder.parent).free
    if free < _ROOM * size:
        raise NotPacked(f"{_ROOM * size / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free in {folder.parent}")
    temporary = folder.with_name(folder.name + _PART)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(mode=0o700)
    try:
        write_atomically(temporary / _RECORD, json.dumps(_packed_into(temporary, spec)).encode(), durable=False)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    found = _read(folder)
    if found is None:
        raise NotPacked(f"the files in {folder} changed while they were written")
    return found


def _packed_into(temporary: Path, spec: SessionSpec) -> dict[str, Any]:
    """Pack a model into a folder and return the record, or one that says why this model must not be packed."""
    try:
        wrote = isolation.call(f"{_WRITING}:write", spec, str(temporary))
        if wrote is None:
            return _refused(temporary, "no made-up batch could show that it gives the same scores")
        rows, size, scores = wrote
        again, private, shared = isolation.call(f"{_WRITING}:measure", spec, str(temporary), rows, size)
    except Exception as error:
        raise NotPacked(f"the process that packed the model failed: {cut(str(error))}") from error
    if again != scores:
        return _refused(temporary, "the scores would have other bits")
    files = {path.name: file_digest(path) for path in temporary.iterdir()}
    total = sum(path.stat().st_size for path in temporary.iterdir())
    write_atomically(temporary / _CHECKED, json.dumps(_identity(temporary, files)).encode(), durable=False)
    return {"refused": "", "files": files, "file_bytes": total, "private_bytes": private, "shared_bytes": shared}


def _refused(temporary: Path, why: str) -> dict[str, Any]:
    """Remove what was packed, and return the record of a model that must not be packed."""
    for path in temporary.iterdir():
        path.unlink()
    return {"refused": why}


def _remove_oldest(used: Path) -> None:
    """Remove the folders that were not used for longest, while all are larger than allowed; and what was left half.

    A process that maps a file keeps it until it ends.
    """
    folders = [path for path in used.parent.iterdir() if path.is_dir() and path != used and _is_free(path)]
    sizes = {path: sum(one.stat().st_size for one in path.iterdir()) for path in (used, *folders)}
    total = sum(sizes.values())
    for path in sorted(folders, key=lambda one: (not one.name.endswith(_PART), one.stat().st_mtime)):
        if path.name.endswith(_PART) or total > _MOST_BYTES:
            shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path]


def _is_free(folder: Path) -> bool:
    """Return whether no process is packing into this folder."""
    with suppress(OSError), folder.with_name(folder.name.removesuffix(_PART) + _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
