"""optimise: time the candidates against the model they were made from, and compare their scores on held-out rows.

Times are those of the model alone, on one thread, in processor time: other programs hardly change it. The two models
alternate, and only their ratio in the same turn counts, so that a slow moment of the machine concerns both.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scorer.preflight.trial import try_rows
from scorer.scoring import batches
from scorer.scoring.compare import Difference, difference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from scorer.binding.spec import Binding, Fetch
    from scorer.model.resident import Engine
    from scorer.plan.frozen import FrozenPlan

    Batch = dict[str, np.ndarray]

_TURNS = 11
_PASS_S = 0.05  # processor time of the original in each turn
_KEPT_BYTES = 256 << 20  # of batches, for timing and calibration
_POOLED = ("mean_pool", "cls", "normalize")
"""Steps whose results are embeddings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """The speed of a candidate: times that of the original, in the middle of all turns, and in the outer quarters."""

    ratio: float
    low: float
    high: float
    rows_per_s: float
    """Of the candidate, on one thread, without reading and packing."""


class Recording:
    """A model that keeps what it is fed, up to a limit; otherwise it is the model that it wraps."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.spec, self.fits, self.calling = engine.spec, engine.fits, engine.calling
        self.nodes, self.trees = engine.nodes, engine.trees
        self.fed: list[Batch] = []
        self._bytes = 0

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """Run the model; keep a copy of the feeds if it accepts them."""
        results = self._engine.run(outputs, feeds)
        if self._bytes < _KEPT_BYTES:
            self.fed.append({name: np.array(values) for name, values in feeds.items()})
            self._bytes += sum(values.nbytes for values in self.fed[-1].values())
        return results

    def release_memory(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> None:
        """Release the memory of the model."""
        self._engine.release_memory(outputs, feeds)


def score(table: pa.Table, frozen: FrozenPlan, engine: Engine) -> batches.Scored:
    """Score rows in the batches of a run."""
    (scorer,) = frozen.scorers
    edges = batches.grid(table.num_rows, scorer.binding.fixed_batch or scorer.batch_rows)
    return batches.score(table, edges, scorer.binding, engine, tokens=scorer.batch_tokens)


def differences(binding: Binding, one: Sequence[pa.Array], other: Sequence[pa.Array]) -> dict[str, Difference]:
    """Return how much each fetched output differs, by the name of its columns."""
    found: dict[str, Difference] = {}
    at = 0
    for fetch in binding.fetches:
        span = slice(at, at + len(fetch.columns))
        found[_name(fetch)] = difference(one[span], other[span], embedding=_is_pooled(fetch))
        at = span.stop
    return found


def _name(fetch: Fetch) -> str:
    first, last = fetch.columns[0], fetch.columns[-1]
    return first if first == last else f"{first} to {last}"


def _is_pooled(fetch: Fetch) -> bool:
    return any(step.startswith(_POOLED) for step in fetch.steps)


def couples_rows(engine: Engine, binding: Binding, table: pa.Table) -> str:
    """Return in what way a row's score depends on the other rows in its batch; '' if it does not."""
    verdict = try_rows(engine, binding, table, table.num_rows)
    return "" if verdict is None or verdict.independent else str(verdict)


def speeds(
    original: Engine, candidates: Mapping[str, Engine], outputs: Sequence[str], fed: Sequence[Batch], n_rows: int
) -> dict[str, Speed]:
    """Return how fast each candidate is; `fed` are batches of about `n_rows` rows together."""
    clock = time.thread_time if original.spec.device == "cpu" else time.perf_counter

    def seconds(engine: Engine, chosen: Sequence[Batch]) -> float:
        started = clock()
        for feeds in chosen:
            engine.run(outputs, feeds)
        return float(clock() - started)

    for engine in (original, *candidates.values()):  # the first call takes longer than the next ones
        seconds(engine, fed[:1])
    chosen = _for_one_pass(fed, seconds(original, fed[:1]))
    rows = n_rows * len(chosen) / len(fed)
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for turn in range(_TURNS):
        for name, engine in candidates.items():
            if turn % 2:
                second = seconds(engine, chosen)
                pairs[name].append((seconds(original, chosen), second))
            else:
                pairs[name].append((seconds(original, chosen), seconds(engine, chosen)))
    return {name: _speed(timed, rows) for name, timed in pairs.items()}


def _for_one_pass(fed: Sequence[Batch], batch_s: float) -> list[Batch]:
    """Return the batches of one turn: some of them, or all several times."""
    n_batches = max(1, round(_PASS_S / max(batch_s, 1e-6)))
    if n_batches <= len(fed):
        return [fed[at * len(fed) // n_batches] for at in range(n_batches)]  # of all lengths, if they are sorted
    return [*fed] * max(1, round(n_batches / len(fed)))


def _speed(pairs: Sequence[tuple[float, float]], rows: float) -> Speed:
    ratios = [original / max(candidate, 1e-9) for original, candidate in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    seconds = statistics.median(candidate for _, candidate in pairs)
    return Speed(ratio=middle, low=low, high=high, rows_per_s=rows / max(seconds, 1e-9))
