"""What a loaded model must offer, and which of the two engines loads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from scorer.model._forest import Unsupported
from scorer.model.session import Session
from scorer.model.trees import TreeEngine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scorer.model.spec import SessionSpec


class Engine(Protocol):
    """A loaded model. `run` may be called from many threads at once."""

    spec: SessionSpec
    fits: int | None
    """Largest number of rows to try in a batch after memory ran out; None if it never did."""
    calling: dict[int, float]
    """Threads inside `run`, with the time at which each entered."""
    nodes: dict[str, dict[str, int]]
    """Number of nodes by device and operator; {} if everything runs on the CPU."""
    trees: str
    """How the model's tree ensembles are scored, in words; '' if it has none, or if ONNX Runtime was requested."""

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """Return the model's outputs for one batch, in the order of `outputs`."""
        ...

    def release_memory(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> None:
        """Return to the system what batches left allocated on the CPU; may run one batch for it."""
        ...


def load(spec: SessionSpec) -> Engine:
    """Load a model: its trees compiled if that is possible and wanted, else all of it on ONNX Runtime."""
    if spec.trees and spec.device == "cpu" and spec.intra_op == 1:
        try:
            return TreeEngine(spec)
        except Unsupported as why:
            session = Session(spec)
            session.trees = f"by ONNX Runtime: {why}" if str(why) else ""
            return session
    return Session(spec)
