"""A model as data: its tensors, labels and operators (ModelSpec), and all that is needed to load it (SessionSpec)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from scorer.display import html
from scorer.display.blocks import Facts, Table
from scorer.display.words import name_list, size

_VALUE = 60  # letters of a metadata entry


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A tensor as the model declares it; output shapes are hearsay until rows come back."""

    name: str
    type: str
    """float32, int64, string, …; 'sequence' or 'map' for what is no tensor."""
    shape: tuple[int | str | None, ...] | None
    """None when the rank is unknown; a name or None for a free dimension."""

    def __str__(self) -> str:
        """For example: float32 [N, 28]."""
        if self.shape is None:
            return self.type
        return f"{self.type} [{', '.join('?' if d is None else str(d) for d in self.shape)}]"

    @property
    def words(self) -> tuple[str, str, str]:
        """Name, type and shape."""
        return self.name, self.type, str(self).removeprefix(self.type).strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What a model takes and gives."""

    path: str
    digest: str
    """sha256 over the file and its external data."""
    bytes: int
    files: tuple[str, ...]
    """External data, relative to the model."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    feature_names: tuple[str, ...]
    class_labels: tuple[str, ...]
    zipmaps: dict[str, tuple[str, ...]]
    """Class labels by the name of an output that is a list of maps."""
    operators: dict[str, int]
    opsets: dict[str, int]
    metadata: dict[str, str]
    producer: str
    coupled: tuple[str, ...]
    """Operators that make a row's score depend on its batch, with the reason."""

    def to_dict(self) -> dict[str, Any]:
        """As data."""
        return asdict(self)

    def blocks(self) -> list[Facts | Table]:
        """As a person reads it."""
        told = [
            ("model", f"{self.path} ({size(self.bytes)})"),
            ("digest", self.digest[:16]),
            ("features", name_list(self.feature_names)),
            ("classes", name_list(self.class_labels)),
            ("metadata", "; ".join(f"{name} = {_short(value)}" for name, value in self.metadata.items())),
            ("made by", self.producer),
            ("opsets", ", ".join(f"{name} {version}" for name, version in self.opsets.items())),
            ("operators", ", ".join(f"{name} {times}" for name, times in self.operators.items())),
            ("caution", "; ".join(self.coupled)),
        ]
        classes = ("name", "", "")
        return [
            Facts([(name, text) for name, text in told if text]),
            Table(("input", "type", "shape"), classes, [tensor.words for tensor in self.inputs]),
            Table(("output", "type", "shape"), classes, [tensor.words for tensor in self.outputs]),
        ]

    def _repr_html_(self) -> str:
        return html.card("Model", self.blocks())


def _short(text: str) -> str:
    """On one line, and not for long."""
    text = " ".join(text.split())
    return text if len(text) <= _VALUE else text[:_VALUE] + "..."


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """All that is needed to load the model somewhere else; plain data."""

    path: str
    digest: str
    files: tuple[str, ...]
    device: str
    """Settled: a name, and never 'auto'."""
    gpu: int = 0
    """Which of several this process uses; no part of a plan."""
    intra_op: int = 1
    library: str = ""
    """Custom operators; 'onnxruntime_extensions' for those of that package."""

    @property
    def key(self) -> tuple[str, str, int, int, str]:
        """What tells one resident session from another."""
        return self.digest, self.device, self.gpu, self.intra_op, self.library
