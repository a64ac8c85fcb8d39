"""`scorer doctor`: installed versions, devices that work, and commands that install what is missing."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

import click

from scorer.cli.flags import cluster_of, options_of
from scorer.cluster.connect import CPU_COUNT
from scorer.cluster.kinds.queues import temporary_security
from scorer.errors import OptionsError
from scorer.host.devices import PROVIDERS, RUNTIMES, cards
from scorer.host.versions import versions
from scorer.model import trees
from scorer.model.session import runtime, why_not

_INSTALL = "pip uninstall -y {runtimes}, then pip install 'onnxruntime-gpu[cuda,cudnn]'"


_EXTRAS = {
    "convert": ("skl2onnx", "scorer convert needs skl2onnx for models of scikit-learn"),
    "text": ("tokenizers", "text(...) needs tokenizers"),
    "image": ("pillow", "image(...) needs Pillow"),
    "store": ("obstore", "URLs such as s3://, gs://, az:// and https:// need obstore"),
    "hpc": ("dask-jobqueue", "--cluster slurm, pbs, ... needs dask-jobqueue"),
    "dashboard": ("bokeh", "--dashboard needs bokeh"),
}
"""A package of each extra of dask-scorer, and what needs it."""


def examine() -> dict[str, Any]:
    """Return the facts and the advice of `scorer doctor`."""
    available = [name for name, provider in PROVIDERS.items() if provider in runtime()["providers"]]
    broken = {name: why for name in available if (why := why_not(name))}
    tls = _tls_problem()
    installed = [name for name in RUNTIMES if _installed(name)]
    advice = _advice(available, broken, installed)
    if platform.system() == "Windows":
        advice.append("on Windows, run scorer in WSL")
    missing = [extra for extra, (package, _) in _EXTRAS.items() if not _installed(package)]
    advice += [f"{_EXTRAS[extra][1]}: pip install 'dask-scorer[{extra}]'" for extra in missing]
    if tls:
        advice.append(f"worker processes need TLS: {tls.hint}")
    return {
        **versions(),
        "extras": ", ".join(extra for extra in _EXTRAS if extra not in missing) or "none",
        "platform": platform.platform(),
        "cores": CPU_COUNT,
        "runtimes": ", ".join(installed),
        "cards": ", ".join(cards()) or "none",
        "trees": trees.support(),
        "devices": ", ".join(name for name in available if name not in broken),
        **{f"{name} fails": why for name, why in broken.items()},
        **({"tls fails": tls.found} if tls else {}),
        "advice": "; ".join(advice) or "nothing is missing",
    }


def examine_workers(config: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """Start the workers that the flags name and ask them; with an input and a model, check that they can score."""
    from scorer.api import inspection  # noqa: PLC0415 - only for workers

    def notify(text: str) -> None:
        click.echo(text, err=True)

    if config or given["input"] or given["model"]:
        return inspection.inspect_workers(options_of(config, given), notify)
    return inspection.inspect_cluster(cluster_of(given), notify)


def _advice(available: list[str], broken: dict[str, str], installed: list[str]) -> list[str]:
    """Return the commands or steps that would make more devices work."""
    if len(installed) > 1:
        command = _INSTALL.format(runtimes=" ".join(installed))
        return [f"{' and '.join(installed)} overwrite each other: {command}"]
    if "cuda" not in available and cards():
        return ["this ONNX Runtime has no CUDA; to use a GPU: " + _INSTALL.format(runtimes=" ".join(installed))]
    if "driver" in broken.get("cuda", ""):
        return ["CUDA needs an NVIDIA card and its driver; on a cluster, request a GPU for the job"]
    if "cuda" in broken:
        return [
            f"CUDA's libraries were not found: pip install 'onnxruntime-gpu[cuda,cudnn]=={versions()['onnxruntime']}'"
        ]
    if "tensorrt" in broken:
        return ["--device tensorrt needs NVIDIA's TensorRT libraries on LD_LIBRARY_PATH"]
    return []


def _tls_problem() -> OptionsError | None:
    """Return the error that a run on worker processes would raise because it cannot create its keys."""
    try:
        temporary_security("processes")
    except OptionsError as error:
        return error
    return None


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
