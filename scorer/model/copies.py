"""The model cache of a host that cannot read the driver's file: one copy per model, named by its digest.

TMP/scorer-UID/models/DIGEST/model.onnx    complete or absent: written to a temporary folder, then renamed

Only this user can write there, see `host/private.py`.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scorer.host.private import private_folder
from scorer.model.protobuf import digest_of

if TYPE_CHECKING:
    from scorer.model.spec import SessionSpec


def root() -> Path:
    """Return the folder of this user's model cache on this host."""
    return Path(private_folder()) / "models"


def local_spec(spec: SessionSpec) -> SessionSpec | None:
    """Return the spec with the path of the planned model: as planned, or in the cache; None if it is in neither."""
    if os.path.isfile(spec.path) and _has_digest(spec.path, spec):
        return spec
    copy = str(_cached_folder(spec) / os.path.basename(spec.path))
    return replace(spec, path=copy) if os.path.isfile(copy) and _has_digest(copy, spec) else None


def model_files(spec: SessionSpec) -> list[str]:
    """Return the names of the model's files, relative to its folder."""
    return [os.path.basename(spec.path), *spec.files]


def receive(spec: SessionSpec, delivery: str, name: str, chunk: bytes) -> None:
    """Append to a file of the model in the temporary folder of this delivery."""
    path = _temporary_folder(spec, delivery) / name
    path.parent.mkdir(parents=True, exist_ok=True)  # external data may be in a subfolder
    with path.open("ab") as file:
        file.write(chunk)


def complete(spec: SessionSpec, delivery: str) -> bool:
    """Move the model into the cache; False if another delivery was first or the digest is not the planned one."""
    temporary, cached = _temporary_folder(spec, delivery), _cached_folder(spec)
    try:
        if not _has_digest(str(temporary / os.path.basename(spec.path)), spec):
            return False
        with suppress(OSError):  # the cache already has the same model
            temporary.rename(cached)
            return True
        return False
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _cached_folder(spec: SessionSpec) -> Path:
    return root() / spec.digest


def _temporary_folder(spec: SessionSpec, delivery: str) -> Path:
    return root() / f".{spec.digest}.{delivery}"


def _has_digest(path: str, spec: SessionSpec) -> bool:
    try:
        return digest_of(path, spec.files) == spec.digest
    except OSError:
        return False
