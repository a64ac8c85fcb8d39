"""The models of this process, each loaded once: whoever comes first loads it, the others wait."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from scorer.errors import ModelError
from scorer.host.process import name_of_process
from scorer.model import copies
from scorer.model.protobuf import digest_of

if TYPE_CHECKING:
    from scorer.model.spec import SessionSpec


_LOAD_TIMEOUT_S = 600
_DELIVERY_LOOK_S = 0.5


def _as_planned(spec: SessionSpec, patience_s: float) -> SessionSpec:
    """The model where this process sees it, once the driver has brought it if need be."""
    until = time.monotonic() + patience_s
    while True:
        found = copies.found(spec)
        if found is not None:
            return found
        if time.monotonic() >= until:
            break
        time.sleep(_DELIVERY_LOOK_S)
    there = digest_of(spec.path, spec.files) if os.path.exists(spec.path) else "nothing"
    what = "the model is not the one that was planned"
    hint = "restore it, or start again with --overwrite; workers must see the same file"
    where_ = f"{spec.path} on {name_of_process()}"
    raise ModelError(what, where_, f"sha256 {spec.digest[:16]}", there[:16], hint)
