"""Where a run's time went, and the one change that would save the most of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scorer.events import Stages

WAIT = "wait"
_CHANGES = {
    "read": "bring the input nearer to the workers: local disks, or fewer and larger files",
    "decode": "read less: fewer columns with --keep, fewer rows with --where",
    "pack": "--cluster processes, if columns are turned into tensors one value at a time",
    "infer": "the model itself: more cores, a GPU, or a smaller or quantised model",
    "unpack": "write fewer outputs with --fetch",
    "write": "write less: fewer columns with --keep, or another --compression",
    WAIT: "threads stood idle: smaller parts with --part-bytes, or fewer --threads",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """What took the most of the threads' time."""

    stage: str
    share: float
    gain: float
    """How many times as fast the run would be without that stage: more than any change can bring."""
    change: str
    shares: dict[str, float]
    """Of every stage, waiting included."""

    def __str__(self) -> str:
        """In a sentence."""
        return (
            f"{self.stage}: {self.share:.0%} of the threads' time; at most {self.gain:.1f} times as fast: {self.change}"
        )


def verdict(stages: Stages, seconds: float, threads: int) -> Bottleneck | None:
    """The verdict on so many seconds of so many threads; None when nothing was done."""
    spent = {name: max(0.0, value) for name, value in asdict(stages).items()}
    if not sum(spent.values()):
        return None
    spent[WAIT] = max(0.0, threads * seconds - sum(spent.values()))
    total = sum(spent.values())
    shares = {name: round(value / total, 4) for name, value in spent.items()}
    stage = max(shares, key=lambda name: shares[name])
    gain = 1 / max(1 - shares[stage], 0.01)
    return Bottleneck(stage=stage, share=shares[stage], gain=gain, change=_CHANGES[stage], shares=shares)
