"""The installed versions that decide a score's bits, and where they differ from the planned ones."""

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
"""What must be of one version wherever parts are scored."""


@cache
def _version(name: str) -> str | None:
    """What is installed under that name; its description, which may be a book, is not read."""
    with suppress(Exception):
        for line in (distribution(name).read_text("METADATA") or "").splitlines():
            key, _, value = line.partition(":")
            if key == "Version":
                return value.strip()
    return None


def versions() -> dict[str, str]:
    """What decides bits besides the plan."""
    names = {"scorer": "dask-scorer"} | {
        n: n for n in ("onnxruntime", "pyarrow", "pandas", "dask", "distributed", "numpy", "tokenizers", "pillow")
    }
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    found |= {name: known for name, other in names.items() if (known := _version(other))}
    for other in RUNTIMES[1:] if "onnxruntime" not in found else ():
        found |= {"onnxruntime": known} if (known := _version(other)) else {}
    return found


def differing(planned: Mapping[str, str]) -> str:
    """What is installed here in another version than planned and must not be, in words."""
    here = versions()
    wrong = [name for name in MUST_AGREE if name in planned and here.get(name) != planned[name]]
    return ", ".join(f"{name} {here.get(name, 'missing')}, planned with {planned[name]}" for name in wrong)
