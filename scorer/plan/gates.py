"""What the gates of a run need: figures of columns, and the columns that are read for them alone.

Gates decide whether an output is published, not what is in it. So they are no part of a frozen plan, and parts that are
staged already are published under other gates, too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scorer.options.gates import Gate


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Something that is counted or added up in every part, such as the sum of a column."""

    kind: str
    columns: tuple[str, ...] = ()
    condition: str = ""

    @property
    def key(self) -> str:
        """Its name in receipts and in the manifest."""
        return json.dumps([self.kind, *self.columns, *([self.condition] if self.condition else [])])


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """The gates of a run, with names that are columns, and what is measured for them."""

    gates: tuple[Gate, ...]
    measures: tuple[Measure, ...]
    read: str = ""
    """The columns of the input that are measured and are not in the output's files (Arrow's own form, in base64)."""
    kept: tuple[str, ...] = ()
    """The columns that are measured and are kept: they are decoded, even if they are copied."""
    whole: tuple[str, ...] = ()
    """The columns that hold whole numbers."""
    values: tuple[str, ...] = ()
    """The columns of which PSI counts equal values: texts and truth values."""
    sources: tuple[str, ...] = ()
    """Where the figures of each gate's baseline are from, in words; '' for a gate without one."""

    def facts(self) -> list[tuple[str, str]]:
        """Return each gate with where its baseline is from, for a reader."""
        both = zip(self.gates, self.sources, strict=True)
        return [
            ("gate warn" if gate.warn else "gate", gate.text + (f" (baseline {source})" if source else ""))
            for gate, source in both
        ]

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the gates as `scorer plan --json` prints them."""
        return [
            {"gate": gate.text, "limit": gate.limit, "figures": [*map(str, gate.figures)], "warn": gate.warn}
            for gate in self.gates
        ]
