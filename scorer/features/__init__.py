"""What turns columns into tensors, and tensors into columns.

One small interface: `pack` looks at a whole part once, `Packed.batch` makes a tensor of some of its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    from scorer.rules import Setting


ASKED, BY_FEATURES, BY_NAME = "as asked", "by the model's feature names", "by name"
BY_LIST, BY_POSITION = "the one list that fits", "by position: every float column in file order, the model names none"
"""Why columns feed a tensor, for whoever reads the plan."""

Rows = slice | np.ndarray
"""Rows of a part: a stretch, which numpy can view, or their numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """One input tensor and the columns that fill it."""

    tensor: str
    kind: str
    """numeric, nested, strings, or a converter: text, image, vocab, epoch, const."""
    dtype: str
    """numpy's name, 'bfloat16', or 'string'."""
    columns: tuple[str, ...]
    shape: tuple[int | None, ...]
    """Of one row: () for [N], (28,) for [N, 28]; None where only the rows will tell."""
    on_null: str
    """error, nan, or a constant."""
    on_lossy: str
    """error or warn."""
    rule: str = ASKED
    """Why these columns."""
    settings: tuple[tuple[str, Setting], ...] = ()
    """What a converter was told, defaults filled in."""

    def setting(self, name: str) -> Setting:
        """One of the settings."""
        return dict(self.settings)[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """One output tensor and the columns it becomes."""

    tensor: str
    kind: str
    """flat, list, ragged or zipmap."""
    columns: tuple[str, ...]
    type: str
    """Arrow's name of the value type."""
    labels: tuple[str, ...] = ()
    """Keys of a map, in the order of `columns`."""
    width: int = 1
    """Values in a row; of a ragged one, in each of its items."""
    steps: tuple[str, ...] = ()
    """What is done to the tensor first, such as softmax or topk(3)."""


class Packed:
    """The columns of a whole part, ready to be cut into batches."""

    lengths: np.ndarray | None = None
    """Of each row, where rows of like length should be scored together."""
    left = False
    """Whether padding comes before a row's own values, where lengths differ."""
    one_place = False
    """Whether a batch may be made where the one before it lay."""
    shared = False
    """Whether `batch` is the same for every batch and has no row of its own for each row."""

    def __init__(self) -> None:
        self.bad: dict[int, str] = {}
        """Rows that cannot be fed, with the reason; `batch` may add to it and fill their place with anything."""
        self.lossy = 0
        """Values that a cast changed and that are fed all the same."""
        self.truncated = 0
        """Rows that were cut to fit."""

    def batch(self, rows: Rows) -> np.ndarray:
        """Those rows as the tensor, in that order."""
        raise NotImplementedError


def pack(feeds: Sequence[Feed], table: pa.Table) -> dict[str, Packed]:
    """The packed columns by tensor."""
    from scorer.features import codes, constant, image, nested, numeric, strings, text  # noqa: PLC0415 - they implement this interface

    packers: dict[str, Callable[[Feed, pa.Table], Packed]] = {
        "numeric": numeric.Numbers,
        "nested": nested.Lists,
        "strings": strings.Strings,
        "vocab": codes.Codes,
        "epoch": codes.Epochs,
        "const": constant.Constant,
        "image": image.Images,
    }
    packed = {feed.tensor: packers[feed.kind](feed, table) for feed in feeds if feed.kind != "text"}
    return packed | text.pack([feed for feed in feeds if feed.kind == "text"], table)
