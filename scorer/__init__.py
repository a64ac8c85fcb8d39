"""Score Parquet datasets with ONNX models on Dask, and prove that no row was lost."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # must be set before ONNX Runtime is imported; 0 opts in

if TYPE_CHECKING:
    from scorer.api.frames import release, score
    from scorer.api.pipeline import execute, prepare, run
    from scorer.api.verification import verify
    from scorer.errors import PreflightError, RunFailed, ScorerError
    from scorer.events import Counts, Event, Observer, Receipt
    from scorer.model.protobuf import inspect_model
    from scorer.model.spec import ModelSpec, TensorSpec
    from scorer.plan.prepared import Forecast, Plan
    from scorer.report.outcome import Report
    from scorer.report.state import status

_MODULES = {
    "api.frames": ("release", "score"),
    "api.pipeline": ("execute", "prepare", "run"),
    "api.verification": ("verify",),
    "errors": ("PreflightError", "RunFailed", "ScorerError"),
    "events": ("Counts", "Event", "Observer", "Receipt"),
    "model.protobuf": ("inspect_model",),
    "model.spec": ("ModelSpec", "TensorSpec"),
    "plan.prepared": ("Forecast", "Plan"),
    "report.outcome": ("Report",),
    "report.state": ("status",),
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
    "status",
    "verify",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name
    """Import a public name on first use, so that `scorer --help` imports nothing heavy."""
    import importlib  # noqa: PLC0415 - `import scorer` stays fast

    if name == "__version__":
        metadata = importlib.import_module("importlib.metadata")
        return metadata.version("dask-scorer")
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"scorer.{module}"), name)
    msg = f"module 'scorer' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    """Return the public names, for completion in notebooks."""
    return [*__all__, "__version__"]
