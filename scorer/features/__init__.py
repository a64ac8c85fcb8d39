"""What turns columns into tensors, and tensors into columns.

One small interface: `pack` looks at a whole part once, `Packed.batch` cuts tensors from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import pyarrow as pa


ASKED, BY_FEATURES, BY_NAME = "as asked", "by the model's feature names", "by name"
BY_LIST, BY_POSITION = "the one list that fits", "by position: every float column in file order, the model names none"
"""Why columns feed a tensor, for whoever reads the plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """One input tensor and the columns that fill it."""

    tensor: str
    kind: str
    """numeric, list or strings: which module packs it."""
    dtype: str
    """numpy's name, or 'string'."""
    columns: tuple[str, ...]
    rank: int
    """1 for [N], 2 for [N, width]."""
    width: int | None
    """None while a list column's length is still unknown."""
    on_null: str
    """error, nan, or a constant."""
    on_lossy: str
    """error or warn."""
    rule: str = ASKED
    """Why these columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """One output tensor and the columns it becomes."""

    tensor: str
    kind: str
    """flat, list or zipmap."""
    columns: tuple[str, ...]
    type: str
    """Arrow's name of the value type."""
    labels: tuple[str, ...] = ()
    """Keys of a map, in the order of `columns`."""
    width: int = 1
    """Values in a row."""


class Packed(Protocol):
    """The columns of a whole part, ready to be cut into batches."""

    bad: dict[int, str]
    """Rows that cannot be fed, with the reason."""
    lossy: int
    """Values that a cast changed and that are fed all the same."""

    def batch(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop as the tensor."""


def pack(feed: Feed, table: pa.Table) -> Packed:
    """The packed columns of one feed."""
    from scorer.features import nested, numeric, strings  # noqa: PLC0415 - they implement this interface

    packers: dict[str, Callable[[Feed, pa.Table], Packed]] = {
        "numeric": numeric.pack,
        "list": nested.pack,
        "strings": strings.pack,
    }
    return packers[feed.kind](feed, table)
