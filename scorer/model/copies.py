"""Models on hosts that do not see the driver's file: kept once per host, under the digest of what they hold.

TMP/scorer-UID/models/DIGEST/model.onnx    complete or not there: filled beside, then renamed
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scorer.model.protobuf import digest_of

if TYPE_CHECKING:
    from scorer.model.spec import SessionSpec


def root() -> Path:
    """The folder of this user on this host."""
    return Path(tempfile.gettempdir()) / f"scorer-{os.getuid()}" / "models"


def local_spec(spec: SessionSpec) -> SessionSpec | None:
    """The model where this process sees it: as planned, or on the shelf; None where neither holds what was planned."""
    for path in (spec.path, str(_place(spec) / os.path.basename(spec.path))):
        if os.path.isfile(path) and _holds(path, spec):
            return replace(spec, path=path)
    return None


def model_files(spec: SessionSpec) -> list[str]:
    """Names beside each other that make up the model."""
    return [os.path.basename(spec.path), *spec.files]


def receive(spec: SessionSpec, delivery: str, name: str, chunk: bytes) -> None:
    """Add to a file of the model; nobody sees it yet."""
    path = _filling(spec, delivery) / name
    for folder in (root().parent, root(), _filling(spec, delivery)):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)  # external data may lie in a folder beside the model
    with path.open("ab") as file:
        file.write(chunk)


def complete(spec: SessionSpec, delivery: str) -> bool:
    """Put the model on the shelf; False where another delivery was first, or what came is not what was planned."""
    filling, place = _filling(spec, delivery), _place(spec)
    try:
        if not _holds(str(filling / os.path.basename(spec.path)), spec):
            return False
        with suppress(OSError):  # it is there already: the same bytes
            filling.rename(place)
            return True
        return False
    finally:
        shutil.rmtree(filling, ignore_errors=True)


def _place(spec: SessionSpec) -> Path:
    return root() / spec.digest


def _filling(spec: SessionSpec, delivery: str) -> Path:
    return root() / f".{spec.digest}.{delivery}"


def _holds(path: str, spec: SessionSpec) -> bool:
    try:
        return digest_of(path, spec.files) == spec.digest
    except OSError:
        return False
