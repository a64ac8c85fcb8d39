"""Apply to each feed the converter of its kind."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    from scorer.binding.features.packed import Packed
    from scorer.binding.spec import Feed


def pack(feeds: Sequence[Feed], table: pa.Table) -> dict[str, Packed]:
    """Return the packed columns of each feed, by tensor name."""
    from scorer.binding.features import (  # noqa: PLC0415 - they implement this interface
        codes,
        constant,
        image,
        lists,
        numeric,
        strings,
        text,
    )

    converters: dict[str, Callable[[Feed, pa.Table], Packed]] = {
        "numeric": numeric.Numbers,
        "nested": lists.Lists,
        "strings": strings.Strings,
        "vocab": partial(numeric.Numbers, convert=codes.vocab),
        "epoch": partial(numeric.Numbers, convert=codes.epoch),
        "mixed": partial(numeric.Numbers, convert=codes.mixed),
        "const": constant.Constant,
        "image": image.Images,
    }
    packed = {feed.tensor: converters[feed.kind](feed, table) for feed in feeds if feed.kind != "text"}
    return packed | text.pack([feed for feed in feeds if feed.kind == "text"], table)
