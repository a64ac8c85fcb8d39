"""Score Parquet datasets with ONNX models, on Dask; and prove that no row was lost."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the first import; set it to 0 to opt in

if TYPE_CHECKING:
    from scorer.errors import PreflightError, RunFailed, ScorerError
    from scorer.events import Counts, Event, Observer, Receipt
    from scorer.forecast import Forecast
    from scorer.frames import release, score
    from scorer.model import ModelSpec, TensorSpec, inspect_model
    from scorer.pipeline import execute, prepare, run
    from scorer.plan import Plan
    from scorer.report import Report

_HOMES = {
    "errors": ("PreflightError", "RunFailed", "ScorerError"),
    "events": ("Counts", "Event", "Observer", "Receipt"),
    "forecast": ("Forecast",),
    "frames": ("release", "score"),
    "model": ("ModelSpec", "TensorSpec", "inspect_model"),
    "pipeline": ("execute", "prepare", "run"),
    "plan": ("Plan",),
    "report": ("Report",),
}

__all__ = [
    "Counts",
    "Event",
    "Forecast",
    "ModelSpec",
    "Observer",
    "Plan",
    "PreflightError",
    "Receipt",
    "Report",
    "RunFailed",
    "ScorerError",
    "TensorSpec",
    "execute",
    "inspect_model",
    "prepare",
    "release",
    "run",
    "score",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name
    """Public names on first use, so that `scorer --help` imports nothing heavy."""
    import importlib  # noqa: PLC0415 - the point of this function

    if name == "__version__":
        metadata = importlib.import_module("importlib.metadata")
        return metadata.version("dask-scorer")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"scorer.{home}"), name)
    msg = f"module 'scorer' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    """For completion in notebooks."""
    return [*__all__, "__version__"]
