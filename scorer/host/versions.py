"""The package versions that decide a score's bits, and how they differ from the planned ones."""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import distribution
from typing import TYPE_CHECKING

from scorer.host.devices import RUNTIMES

if TYPE_CHECKING:
    from collections.abc import Mapping

MUST_AGREE = ("scorer", "onnxruntime", "pyarrow")
"""Packages that must have the same version in every process that scores."""


@cache
def _version(name: str) -> str | None:
    """Return the installed version of a distribution, or None. Stops reading before its long description."""
    with suppress(Exception):
        for line in (distribution(name).read_text("METADATA") or "").splitlines():
            key, _, value = line.partition(":")
            if key == "Version":
                return value.strip()
    return None


def versions() -> dict[str, str]:
    """Return package -> installed version, for the packages that can change a score's bits."""
    names = {"scorer": "dask-scorer"} | {
        n: n for n in ("onnxruntime", "pyarrow", "pandas", "dask", "distributed", "numpy", "tokenizers", "pillow")
    }
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    found |= {name: known for name, other in names.items() if (known := _version(other))}
    for other in RUNTIMES[1:] if "onnxruntime" not in found else ():
        found |= {"onnxruntime": known} if (known := _version(other)) else {}
    return found


def version_conflicts(planned: Mapping[str, str]) -> str:
    """Return as text which packages of `MUST_AGREE` differ from the plan; empty if none does."""
    here = versions()
    wrong = [name for name in MUST_AGREE if name in planned and here.get(name) != planned[name]]
    return ", ".join(f"{name} {here.get(name, 'missing')}, planned with {planned[name]}" for name in wrong)
