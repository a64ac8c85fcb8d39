"""What travels to the process that converts, and back: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from scorer.model.converting.sources import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the graph is to be written."""

    double: bool = False
    """Whether its input is float64."""
    opset: int = 0
    """The version of ONNX's operators; 0 for the usual one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be converted, and the rows to compare with."""

    source: Source
    table: pa.Table
    data: str
    """Where the rows are from."""
    tolerance: float
    features: tuple[str, ...] = ()
    """The columns that feed the model, in its order; () for those that the model names."""
    unusable: dict[str, str] = field(default_factory=dict)
    """The types of the columns that `table` leaves out, because no model takes them."""
    settings: Settings = Settings()
    trust: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A model that passed the gate."""

    model: bytes
    record: dict[str, Any]
    """What was compared."""
    features: tuple[str, ...]
    flags: tuple[str, ...] = ()
    """Flags that a run of this model needs."""
    notes: tuple[str, ...] = ()
