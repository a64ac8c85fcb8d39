"""The library compiled from trees.c, and the instruction set that this machine uses of it."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from scorer.model._compile import LIBRARY

LEVELS = ("avx512", "avx2", "base")
"""Instruction sets for which the library may be compiled, the fastest first."""
_FLAGS = {
    "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma", "bmi2"},
    "avx2": {"avx2", "fma", "bmi2", "movbe"},
}
_CHOICE = "SCORER_TREES_LEVEL"
"""Environment variable that names a lower level, for tests and for comparing."""


def available() -> list[str]:
    """Return the levels that the library has and this processor supports, the fastest first."""
    library = _library()
    if library is None:
        return []
    flags = _processor_flags()
    return [
        level for level in LEVELS if hasattr(library, f"trees_sum_f32_{level}") and flags >= _FLAGS.get(level, set())
    ]


def chosen() -> str:
    """Return the level to use; '' if the library is not in this installation."""
    levels = available()
    requested = os.environ.get(_CHOICE, "")
    return requested if requested in levels else levels[0] if levels else ""


def why_not() -> str:
    """Return why there is no library; '' if it loads."""
    if not LIBRARY.exists():
        return "no C compiler was found when scorer was installed"
    return "" if _library() is not None else "the library of this installation does not load on this machine"


def function(name: str, real: np.dtype, level: str) -> Any:  # noqa: ANN401 - ctypes
    """Return a function of the library for a number type and level."""
    return getattr(_library(), f"{name}_{'f32' if real == np.float32 else 'f64'}_{level}")


@cache
def _library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(LIBRARY)) if LIBRARY.exists() else None
    except OSError:
        return None


@cache
def _processor_flags() -> frozenset[str]:
    """Return the instruction sets of this processor, as Linux and macOS report them."""
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return frozenset()
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()
