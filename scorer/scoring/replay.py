"""Score one row of a finished run again, and keep what the model was fed and what it returned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scorer.dataset import fields
from scorer.model.resident import SESSIONS
from scorer.scoring import batches
from scorer.scoring.job import JOBS
from scorer.scoring.part import Attempt, fetch, output_rows, read, score, transformed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from scorer.model.resident import Engine
    from scorer.plan.parts import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a part, from the input to its scores."""

    file: str
    number: int
    """Number of the row in its file; the first is 0."""
    values: pa.Table
    """The columns that are read to feed the model."""
    fed: dict[str, np.ndarray]
    """The input tensors of the row alone; with several models, by MODEL:TENSOR."""
    returned: dict[str, Any]
    """The output tensors of the row alone."""
    scores: pa.Table
    """The output columns, computed again with the whole part."""


def replay(key: str, part: Part, at: int) -> Row:
    """Score a part again and return the row at this place of its output; write nothing."""
    job, attempt = JOBS.job(key), Attempt(part)
    fetch(job, attempt)
    rows = read(job, attempt)
    scored = score(job, attempt, rows)
    good = np.array([row for row in range(scored.rows) if row not in scored.bad])
    place = int(good[at])
    source = part.sources[int(np.searchsorted(np.cumsum(rows.counts), place, side="right"))]
    values = fields.select(rows.table, job.reads).slice(place, 1)
    frozen = job.spec.frozen
    given = values if frozen.transform is None else transformed(values, job)[0]
    fed: dict[str, np.ndarray] = {}
    returned: dict[str, Any] = {}
    for scorer in frozen.scorers:
        watched = _Watched(SESSIONS.session(scorer.session))
        batches.score(given, batches.grid(1, 1), scorer.binding, watched)
        fed |= {scorer.tensor(name): values for name, values in watched.fed.items()}
        returned |= {scorer.tensor(name): values for name, values in watched.returned.items()}
    return Row(
        file=source.path,
        number=int(rows.places.numbers()[place]),
        values=values,
        fed=fed,
        returned=returned,
        scores=output_rows(job, attempt, rows, scored, scored.good()).slice(at, 1),
    )


class _Watched:
    """A model that keeps what it was fed last, and what it returned; otherwise it is the model that it wraps."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.spec, self.fits, self.calling = engine.spec, engine.fits, engine.calling
        self.nodes, self.trees = engine.nodes, engine.trees
        self.fed: dict[str, np.ndarray] = {}
        self.returned: dict[str, Any] = {}

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """Run the model; keep a copy of the feeds, and the results."""
        results = self._engine.run(outputs, feeds)
        self.fed = {name: np.array(values) for name, values in feeds.items()}
        self.returned = dict(zip(outputs, results, strict=True))
        return results

    def release_memory(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> None:
        """Release the memory of the model."""
        self._engine.release_memory(outputs, feeds)
