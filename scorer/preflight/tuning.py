"""Choose the rows of a batch: time a few sizes on the first rows and take the fastest."""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from scorer.preflight.cutting import BATCH_ROWS
from scorer.scoring import batches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    from scorer.binding.spec import Binding
    from scorer.model.engine import Engine


METHOD = 3  # version of the probe; cached results of another version are not used
PROBE_ROWS = 16_384
PROBED_FROM = 50_000  # rows: for fewer, a probe costs more time than it can save
_CANDIDATES = (256, 1024, 4096, 16_384)
_HEAVY = (8, 32, 128)  # a net 4,096 wide, two threads, rows/s: 1,258, 1,892, 2,008; a picture net: 1,981, 1,300, 1,025
_ROUNDS, _LEAST_ROUNDS = 5, 2  # the first is slower: it touches new memory
_FIRST_S = 0.0025  # of scoring, to measure the seconds per row
_LONG_ENOUGH_S = 2.0  # of work for each thread: with less, a probe takes as long as it can save
_TRIAL_S, _LEAST_TRIAL_ROWS = 0.01, 4096
_TIE = 1.03  # a larger batch must be this much faster
_CALL_S = 50e-6
"""Overhead of a call in a real run that a trial does not see: threads wait for the GIL and for each other."""
_BEHIND = 1.3  # times the best seconds: slower sizes are not tried again, nor smaller ones of a light model
_BATCH_MOST_S = 0.05  # for one batch
_HEAVY_BATCH_MOST_S = 0.2  # the independence check has shown that the memory is enough for it
_MOST_S, _HEAVY_MOST_S, _SHARE = 0.5, 3.0, 0.02  # for the whole probe: seconds, and share of the run's work
_HEAVY_FROM_S = 30.0  # of work for each thread: two turns of the longest trials are 2 % of it
_LONG_RUN_S = 10.0  # of work for each thread: in less, processes take longer to start than they save
_TOGETHER_S = 0.02  # of one thread's scoring, to measure how much two threads gain
_TWO_CORES = 1.6  # times as much by two threads as by one, for work without the GIL; less: the machine is busy
HEAVY_BATCH_ROWS, CONVERTED_BATCH_ROWS = 32, 4  # of numbers; of pictures and texts: 2 and 4 are 9 % faster than 8
BATCH_TOKENS = 512  # MiniLM on reviews, rows/s at 128 to 2,048: 35.8, 35.9, 36.3, 35.2, 32.1; at 32 rows: 26.5
_LARGEST, _GROWING_S = 65_536, 5.0  # rows or tokens of the largest batch tried on an accelerator; seconds for all
_ACCELERATOR_FACTOR = 16  # times the rows or tokens of a batch on the CPU
_LEAST_ENCODED, _ENCODED_S = 2, 0.005  # rows that are scored once more to measure their encoded size; seconds
_HEAVY_S = 0.5e-3  # per row


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The chosen batch size, and the speed that was measured."""

    batch_rows: int
    rows_per_s: float | None
    """Speed of scoring in one thread while the others score too; None if nothing was timed."""
    trials: tuple[str, ...] = ()
    """Each size that was tried and its speed, in words."""
    batch_tokens: int | None = None
    """Tokens of a batch of texts, so that a batch of short ones has more rows; None without texts."""
    together: float | None = None
    """Speed of two threads relative to one; None if it was not measured."""


def worthwhile(binding: Binding, row_s: float, rows: int, threads: int, device: str) -> bool:
    """Whether a probe may save time if a row takes about `row_s`: many light rows, or a long run of heavy ones."""
    if device == "cpu" and heavy(binding, row_s):
        return not binding.texts and rows / threads * row_s >= _HEAVY_FROM_S
    return rows >= PROBED_FROM


def probe(session: Engine, binding: Binding, table: pa.Table, row_s: float, ahead: float, threads: int = 1) -> Probe:
    """Return the batch rows that score the sample fastest: sizes take turns, and each counts by its best turn.

    Trials run in as many threads as will score on this machine, because threads share its caches. Batches that would
    take long are not tried, because of their memory. `row_s` is a first estimate of the seconds per row. Each thread
    has `ahead` rows to score; the probe takes a small share of that time.
    """
    slow = heavy(binding, row_s)
    candidates, batch_most_s, most_s = (
        (_HEAVY, _HEAVY_BATCH_MOST_S, _HEAVY_MOST_S) if slow else (_CANDIDATES, _BATCH_MOST_S, _MOST_S)
    )
    first = table.slice(0, max(candidates[0], min(BATCH_ROWS, int(_FIRST_S / row_s))))
    first_batch = candidates[0] if slow else first.num_rows
    for _ in range(1 if slow else 2):  # the second time the caches are warm
        setup_s = _seconds(session, binding, table.slice(0, 0), first_batch)
        row_s = min(row_s, _without_setup(_seconds(session, binding, first, first_batch), setup_s) / first.num_rows)
    if not slow:
        if ahead * row_s < _LONG_ENOUGH_S:
            return untuned(binding, None, row_s, device="cpu")
        table = table.slice(0, int(max(_LEAST_TRIAL_ROWS, _SHARE * ahead / (_LEAST_ROUNDS * len(candidates)))))
        batch_most_s = min(batch_most_s, max(_TRIAL_S, _SHARE * ahead * row_s / (2 * _LEAST_ROUNDS)))
    fitting = [n for n in candidates if n <= table.num_rows and n * row_s <= batch_most_s] or [candidates[0]]

    def seconds_per_row(pool: ThreadPoolExecutor, batch_rows: int, row_s: float) -> float:
        most = min(table.num_rows, max(batch_rows, int(_TRIAL_S / row_s)))
        rows = max(1, most // batch_rows) * min(most, batch_rows)
        seconds = _mean_seconds(pool, threads, session, binding, table.slice(0, rows), batch_rows)
        return float(_without_setup(seconds, setup_s) / rows)

    best = _best_of_turns(
        seconds_per_row, fitting, row_s, threads, lambda row_s: min(most_s, _SHARE * ahead * row_s), light=not slow
    )
    cost = {n: seconds + _CALL_S / n for n, seconds in best.items()}
    chosen = min(cost)
    for batch_rows in sorted(cost):
        if cost[batch_rows] * _TIE < cost[chosen]:
            chosen = batch_rows
    trials = [f"{n:,} rows: {1 / best[n]:,.0f} rows/s" for n in sorted(best)]
    together = None
    if not slow and ahead * best[chosen] >= _LONG_RUN_S:
        few = table.slice(0, max(chosen, min(table.num_rows, int(_TOGETHER_S / best[chosen]))))
        together = _gain_of_two(session, binding, few, chosen)
        trials.append("two threads: " + ("the machine is busy" if together is None else f"{together:.1f} times one"))
    return Probe(batch_rows=chosen, rows_per_s=1 / best[chosen], trials=tuple(trials), together=together)


def _best_of_turns(
    seconds_per_row: Callable[[ThreadPoolExecutor, int, float], float], candidates: Sequence[int], row_s: float,
    threads: int, most_s: Callable[[float], float], *, light: bool,
) -> dict[int, float]:  # fmt: skip
    """Return the seconds per row by batch rows: the best of several turns, as many as `most_s` allows."""
    left, best = sorted(candidates, reverse=True), dict[int, float]()
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for turn in range(1, _ROUNDS + 1):
            for batch_rows in left:
                seconds = seconds_per_row(pool, batch_rows, row_s)
                best[batch_rows] = min(best.get(batch_rows, seconds), seconds)
                row_s = min(row_s, seconds)
                if turn == 1 and light and seconds > _BEHIND * min(best.values()):
                    break
            left = [n for n in best if turn == 1 or best[n] <= _BEHIND * min(best.values())]
            after_next_s = (time.perf_counter() - started) * (turn + 1) / turn
            if turn >= _LEAST_ROUNDS and after_next_s > most_s(min(best.values())):
                break
    return best


def grow_batches(session: Engine, binding: Binding, table: pa.Table, row_s: float) -> Probe:
    """Double the batch from a few rows on, while it becomes faster and fits into memory: for accelerators.

    Batches of texts grow by tokens, all others by rows.
    """
    texts = binding.texts
    unit = "tokens" if texts else "rows"
    best, chosen, trials, fits = 0.0, 0, [], session.fits
    size, started = BATCH_TOKENS if texts else CONVERTED_BATCH_ROWS, time.perf_counter()
    few = table.slice(0, CONVERTED_BATCH_ROWS)
    _seconds(session, binding, few, few.num_rows)  # the first call on an accelerator takes longer than the next ones
    while size <= _LARGEST and time.perf_counter() - started < _GROWING_S:
        rows = min(table.num_rows, int(max(2 * size, _BATCH_MOST_S / row_s)))
        if not texts and rows < size:
            break
        seconds = _seconds(session, binding, table.slice(0, rows), rows if texts else size, size if texts else None)
        if session.fits != fits:
            trials.append(f"{size:,} {unit}: out of memory")
            session.fits = fits
            break
        rate, row_s = rows / seconds, seconds / rows
        trials.append(f"{size:,} {unit}: {rate:,.0f} rows/s")
        if rate > best * _TIE:
            best, chosen = rate, size
        elif rate < best / _TIE:
            break
        size *= 2
    default = untuned(binding, None, row_s, device=session.spec.device)
    timed = replace(default, rows_per_s=best or default.rows_per_s, trials=tuple(trials))
    if not chosen:
        return timed
    return replace(timed, batch_tokens=chosen) if texts else replace(timed, batch_rows=chosen)


def _without_setup(seconds: float, setup_s: float) -> float:
    """Return the seconds less those that preparing the columns takes for any number of rows."""
    return max(seconds - setup_s, seconds / 2)


def _mean_seconds(
    pool: ThreadPoolExecutor, threads: int, session: Engine, binding: Binding, table: pa.Table, batch_rows: int
) -> float:
    """Score the table in each of `threads` threads that start together; return their mean seconds."""
    start = threading.Barrier(threads)

    def one(_: int) -> float:
        start.wait()
        return _seconds(session, binding, table, batch_rows)

    return sum(pool.map(one, range(threads))) / threads


def _seconds(session: Engine, binding: Binding, table: pa.Table, batch_rows: int, tokens: int | None = None) -> float:
    """Score the table; return the seconds."""
    started = time.perf_counter()
    batches.score(table, batches.grid(table.num_rows, batch_rows), binding, session, tokens=tokens)
    return time.perf_counter() - started


def _gain_of_two(session: Engine, binding: Binding, table: pa.Table, batch_rows: int) -> float | None:
    """Return the speed of two threads relative to one; None if the machine is too busy to measure it."""
    pages = bytes(8 << 20)
    with ThreadPoolExecutor(2) as pool:
        without_gil = _gain(pool, lambda: hashlib.sha256(pages).digest())
        if without_gil < _TWO_CORES:
            return None
        return _gain(pool, lambda: _seconds(session, binding, table, batch_rows))


def _gain(pool: ThreadPoolExecutor, work: Callable[[], object]) -> float:
    """Return how much more work two threads do than one: the best of three measurements."""
    best = 0.0
    for _ in range(3):
        started = time.perf_counter()
        work()
        alone = time.perf_counter() - started
        list(pool.map(lambda _: work(), range(2)))
        best = max(best, 2 * alone / (time.perf_counter() - started - alone))
    return best


def untuned(binding: Binding, requested: int | None, row_s: float | None, *, device: str) -> Probe:
    """Return the batch size that is used without a probe.

    Heavy rows get small batches, which need less memory and padding. Accelerators get larger batches than the CPU.
    """
    factor = 1 if device == "cpu" else _ACCELERATOR_FACTOR
    heavy_rows = CONVERTED_BATCH_ROWS if binding.texts or binding.pictures else HEAVY_BATCH_ROWS
    default = factor * heavy_rows if heavy(binding, row_s or 0) else BATCH_ROWS
    free = requested is None and binding.fixed_batch is None
    return Probe(
        batch_rows=binding.fixed_batch or requested or default,
        rows_per_s=1 / row_s if row_s else None,
        batch_tokens=factor * BATCH_TOKENS if free and binding.texts else None,
    )


def rows_to_encode(rows: int, rows_per_s: float | None) -> int:
    """Return how many first rows to score once more to measure their encoded size: as many as take 5 ms."""
    return min(rows, max(_LEAST_ENCODED, int(_ENCODED_S * (rows_per_s or 0))))


def heavy(binding: Binding, row_s: float) -> bool:
    """Whether a row takes so long that a batch of thousands gains nothing."""
    return binding.texts or binding.pictures or row_s > _HEAVY_S
