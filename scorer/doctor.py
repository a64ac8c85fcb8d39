"""What is installed, which devices are there, and what to type where something is missing."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

from dask.system import CPU_COUNT

from scorer.devices import PROVIDERS, RUNTIMES
from scorer.report import versions
from scorer.session import runtime


def examine() -> dict[str, Any]:
    """Facts and advice."""
    there = [name for name, provider in PROVIDERS.items() if provider in runtime()["providers"]]
    installed = [name for name in RUNTIMES if _installed(name)]
    advice = []
    if len(installed) > 1:
        advice.append(
            f"{' and '.join(installed)} overwrite each other: pip uninstall -y {' '.join(installed)}, "
            f"then pip install {installed[-1]}"
        )
    if "cuda" not in there:
        advice.append(
            "no CUDA in this runtime; for a GPU: pip uninstall -y onnxruntime, then pip install onnxruntime-gpu"
        )
    if platform.system() == "Windows":
        advice.append("Windows is supported through WSL")
    return {
        **versions(),
        "platform": platform.platform(),
        "cores": CPU_COUNT,
        "runtimes": ", ".join(installed),
        "devices": ", ".join(there),
        "advice": "; ".join(advice) or "nothing is missing",
    }


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
