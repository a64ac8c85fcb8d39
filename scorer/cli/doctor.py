"""What is installed, which devices work, and what to type where something is missing."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

from scorer.cluster.connect import CPU_COUNT
from scorer.host.devices import PROVIDERS, RUNTIMES, cards
from scorer.host.versions import versions
from scorer.model.session import runtime, why_not

_INSTALL = "pip uninstall -y {runtimes}, then pip install 'onnxruntime-gpu[cuda,cudnn]'"


def examine() -> dict[str, Any]:
    """Facts and advice."""
    there = [name for name, provider in PROVIDERS.items() if provider in runtime()["providers"]]
    broken = {name: why for name in there if (why := why_not(name))}
    installed = [name for name in RUNTIMES if _installed(name)]
    advice = _advice(there, broken, installed)
    if platform.system() == "Windows":
        advice.append("Windows is supported through WSL")
    return {
        **versions(),
        "platform": platform.platform(),
        "cores": CPU_COUNT,
        "runtimes": ", ".join(installed),
        "cards": ", ".join(cards()),
        "devices": ", ".join(name for name in there if name not in broken),
        **{f"{name} fails": why for name, why in broken.items()},
        "advice": "; ".join(advice) or "nothing is missing",
    }


def _advice(there: list[str], broken: dict[str, str], installed: list[str]) -> list[str]:
    """What to type."""
    if len(installed) > 1:
        command = _INSTALL.format(runtimes=" ".join(installed))
        return [f"{' and '.join(installed)} overwrite each other: {command}"]
    if "cuda" not in there and cards():
        return ["no CUDA in this runtime; for a GPU: " + _INSTALL.format(runtimes=" ".join(installed))]
    if "driver" in broken.get("cuda", ""):
        return ["for CUDA: a machine with an NVIDIA card and its driver; on a cluster, a job that asks for a GPU"]
    if "cuda" in broken:
        return [
            f"CUDA's libraries are not found: pip install 'onnxruntime-gpu[cuda,cudnn]=={versions()['onnxruntime']}'"
        ]
    if "tensorrt" in broken:
        return ["for TensorRT, which --device tensorrt needs: NVIDIA's libraries on LD_LIBRARY_PATH"]
    return []


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
