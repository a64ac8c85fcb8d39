"""Try what can be chosen on the first rows, and keep what is fastest: the rows of a batch."""

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
    from scorer.model.session import Session


METHOD = 3  # what was found by another one is not remembered
PROBE_ROWS = 16_384
PROBED_FROM = 50_000  # rows: below, a probe costs more than it can save
_CANDIDATES = (256, 1024, 4096, 16_384)
_HEAVY = (8, 32, 128)  # a net 4,096 wide, two threads, rows/s: 1,258, 1,892, 2,008; a picture net: 1,981, 1,300, 1,025
_ROUNDS, _LEAST_ROUNDS = 5, 2  # at first memory is new
_FIRST_S = 0.0025  # to know how long a row takes
_LONG_ENOUGH_S = 2.0  # of work for each thread: below, a probe takes as long as it can save
_TRIAL_S, _LEAST_TRIAL_ROWS = 0.01, 4096
_TIE = 1.03  # a larger batch must be this much faster
_CALL_S = 50e-6  # that a call costs a run and not a trial: its threads wait for the interpreter, and for others' calls
_BEHIND = 1.3  # times as slow as the best: not tried again, and smaller ones of a light model not at all
_LONG_S, _HEAVY_LONG_S = 0.05, 0.2  # of one batch; the canary has shown that the memory lasts for the latter
_MOST_S, _HEAVY_MOST_S, _SHARE = 0.5, 3.0, 0.02  # of the probe, and of the work ahead
_HEAVY_FROM_S = 30.0  # of work for each thread: two turns of the longest trials are 2 % of it
_LONG_RUN_S = 10.0
_TOGETHER_S = 0.02  # of one thread, to see what two do
_TWO_CORES = 1.6  # times as much by two threads as by one, where nothing stands in their way
HEAVY_BATCH_ROWS, CONVERTED_BATCH_ROWS = 32, 4  # of numbers; of pictures and texts: 2 and 4 are 9 % faster than 8
BATCH_TOKENS = 512  # MiniLM on reviews, rows/s at 128 to 2,048: 35.8, 35.9, 36.3, 35.2, 32.1; at 32 rows: 26.5
_LARGEST, _GROWING_S = 65_536, 5.0  # of batches on a device that are tried: rows or tokens, and seconds
_ON_A_DEVICE = 16  # times the batch
_FEW = 2
_MOMENT_S = 0.005
_HEAVY_S = 0.5e-3  # a row


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What tuning found."""

    batch_rows: int
    rows_per_s: float | None
    """Of scoring, one thread of those that score at once; None when nothing was timed."""
    trials: tuple[str, ...] = ()
    batch_tokens: int | None = None
    """What texts are batched by, if there are any: a batch of short ones has more rows."""
    together: float | None = None
    """How much more two threads score than one; None where that was not tried."""


def worthwhile(binding: Binding, row_s: float, rows: int, threads: int, device: str) -> bool:
    """Whether a probe may pay, when a row took about `row_s`: light rows must be many, heavy ones a long run."""
    if device == "cpu" and heavy(binding, row_s):
        return not binding.texts and rows / threads * row_s >= _HEAVY_FROM_S
    return rows >= PROBED_FROM


def probe(session: Session, binding: Binding, table: pa.Table, row_s: float, ahead: float, threads: int = 1) -> Probe:
    """The batch rows that score the sample fastest: interleaved, best of several turns.

    As many threads try at once as will score on this machine, for they share its caches. Batches that would take long
    are not tried, because of their memory. A row took about `row_s` so far, and so many rows are `ahead` of each
    thread: the probe takes a small share of that work.
    """
    much = heavy(binding, row_s)
    candidates, long_s, most_s = (_HEAVY, _HEAVY_LONG_S, _HEAVY_MOST_S) if much else (_CANDIDATES, _LONG_S, _MOST_S)
    first = table.slice(0, max(candidates[0], min(BATCH_ROWS, int(_FIRST_S / row_s))))
    at_once = candidates[0] if much else first.num_rows
    for _ in range(1 if much else 2):  # warm: less than at first
        once_s = _scored(session, binding, table.slice(0, 0), at_once)
        row_s = min(row_s, _net(_scored(session, binding, first, at_once), once_s) / first.num_rows)
    if not much:
        if ahead * row_s < _LONG_ENOUGH_S:
            return untuned(binding, None, row_s, device="cpu")
        table = table.slice(0, int(max(_LEAST_TRIAL_ROWS, _SHARE * ahead / (_LEAST_ROUNDS * len(candidates)))))
        long_s = min(long_s, max(_TRIAL_S, _SHARE * ahead * row_s / (2 * _LEAST_ROUNDS)))
    fitting = [n for n in candidates if n <= table.num_rows and n * row_s <= long_s] or [candidates[0]]

    def tried(pool: ThreadPoolExecutor, batch_rows: int, row_s: float) -> float:
        some = min(table.num_rows, max(batch_rows, int(_TRIAL_S / row_s)))
        rows = max(1, some // batch_rows) * min(some, batch_rows)
        taken = _at_once(pool, threads, session, binding, table.slice(0, rows), batch_rows)
        return float(_net(taken, once_s) / rows)

    best = _best_of_turns(
        tried, fitting, row_s, threads, lambda row_s: min(most_s, _SHARE * ahead * row_s), light=not much
    )
    cost = {n: seconds + _CALL_S / n for n, seconds in best.items()}
    chosen = min(cost)
    for batch_rows in sorted(cost):
        if cost[batch_rows] * _TIE < cost[chosen]:
            chosen = batch_rows
    trials = [f"{n:,} rows: {1 / best[n]:,.0f} rows/s" for n in sorted(best)]
    together = None
    if not much and ahead * best[chosen] >= _LONG_RUN_S:  # below, processes take longer to start than they save
        few = table.slice(0, max(chosen, min(table.num_rows, int(_TOGETHER_S / best[chosen]))))
        together = _together(session, binding, few, chosen)
        trials.append("two threads: " + ("the machine is busy" if together is None else f"{together:.1f} times one"))
    return Probe(batch_rows=chosen, rows_per_s=1 / best[chosen], trials=tuple(trials), together=together)


def _best_of_turns(
    tried: Callable[[ThreadPoolExecutor, int, float], float], candidates: Sequence[int], row_s: float, threads: int,
    most_s: Callable[[float], float], *, light: bool,
) -> dict[int, float]:  # fmt: skip
    """Seconds of a row by the rows of a batch: the best of several turns, as many as there is time for."""
    left, best = sorted(candidates, reverse=True), dict[int, float]()
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for turn in range(1, _ROUNDS + 1):
            for batch_rows in left:
                seconds = tried(pool, batch_rows, row_s)
                best[batch_rows] = min(best.get(batch_rows, seconds), seconds)
                row_s = min(row_s, seconds)
                if turn == 1 and light and seconds > _BEHIND * min(best.values()):
                    break
            left = [n for n in best if turn == 1 or best[n] <= _BEHIND * min(best.values())]
            another = (time.perf_counter() - began) * (turn + 1) / turn
            if turn >= _LEAST_ROUNDS and another > most_s(min(best.values())):
                break
    return best


def grow_batches(session: Session, binding: Binding, table: pa.Table, row_s: float) -> Probe:
    """Batches twice as large, from few rows on, while that is faster and memory lasts: for devices with much of both.

    Texts are batched by tokens, all else by rows.
    """
    texts = binding.texts
    unit = "tokens" if texts else "rows"
    best, chosen, trials, fits = 0.0, 0, [], session.fits
    size, began = BATCH_TOKENS if texts else CONVERTED_BATCH_ROWS, time.perf_counter()
    some = table.slice(0, CONVERTED_BATCH_ROWS)
    _scored(session, binding, some, some.num_rows)  # the first call on a device does more than the next ones
    while size <= _LARGEST and time.perf_counter() - began < _GROWING_S:
        rows = min(table.num_rows, int(max(2 * size, _LONG_S / row_s)))
        if not texts and rows < size:
            break
        seconds = _scored(session, binding, table.slice(0, rows), rows if texts else size, size if texts else None)
        if session.fits != fits:
            trials.append(f"{size:,} {unit}: more than the memory holds")
            session.fits = fits
            break
        rate, row_s = rows / seconds, seconds / rows
        trials.append(f"{size:,} {unit}: {rate:,.0f} rows/s")
        if rate > best * _TIE:
            best, chosen = rate, size
        elif rate < best / _TIE:
            break
        size *= 2
    usual = untuned(binding, None, row_s, device=session.spec.device)
    known = replace(usual, rows_per_s=best or usual.rows_per_s, trials=tuple(trials))
    if not chosen:
        return known
    return replace(known, batch_tokens=chosen) if texts else replace(known, batch_rows=chosen)


def _net(taken: float, once_s: float) -> float:
    """Seconds without those that a look at the columns takes, however many rows there are."""
    return max(taken - once_s, taken / 2)


def _at_once(
    pool: ThreadPoolExecutor, threads: int, session: Session, binding: Binding, table: pa.Table, batch_rows: int
) -> float:
    """Seconds for the table in each of so many threads that begin together: their mean."""
    gate = threading.Barrier(threads)

    def one(_: int) -> float:
        gate.wait()
        return _scored(session, binding, table, batch_rows)

    return sum(pool.map(one, range(threads))) / threads


def _scored(session: Session, binding: Binding, table: pa.Table, batch_rows: int, tokens: int | None = None) -> float:
    """Seconds for the table."""
    started = time.perf_counter()
    batches.score(table, batches.grid(table.num_rows, batch_rows), binding, session, tokens=tokens)
    return time.perf_counter() - started


def _together(session: Session, binding: Binding, table: pa.Table, batch_rows: int) -> float | None:
    """How much more two threads score than one: the best of three; None on a machine too busy to tell."""
    pages = bytes(8 << 20)
    with ThreadPoolExecutor(2) as pool:
        free = _gain(pool, lambda: hashlib.sha256(pages).digest())  # without the interpreter's lock
        if free < _TWO_CORES:
            return None
        return _gain(pool, lambda: _scored(session, binding, table, batch_rows))


def _gain(pool: ThreadPoolExecutor, work: Callable[[], object]) -> float:
    best = 0.0
    for _ in range(3):
        started = time.perf_counter()
        work()
        alone = time.perf_counter() - started
        list(pool.map(lambda _: work(), range(2)))
        best = max(best, 2 * alone / (time.perf_counter() - started - alone))
    return best


def untuned(binding: Binding, asked: int | None, row_s: float | None, *, device: str) -> Probe:
    """What is used when nothing is probed: heavy rows want small batches, which need less memory and padding.

    Other devices than the processor want more at once, whatever they are.
    """
    more = 1 if device == "cpu" else _ON_A_DEVICE
    heavy_rows = CONVERTED_BATCH_ROWS if binding.texts or binding.pictures else HEAVY_BATCH_ROWS
    usual = more * heavy_rows if heavy(binding, row_s or 0) else BATCH_ROWS
    free = asked is None and binding.fixed_batch is None
    return Probe(
        batch_rows=binding.fixed_batch or asked or usual,
        rows_per_s=1 / row_s if row_s else None,
        batch_tokens=more * BATCH_TOKENS if free and binding.texts else None,
    )


def rows_to_encode(rows: int, rows_per_s: float | None) -> int:
    """How many of the first rows to score once more, to see what is written: no more than take a moment."""
    return min(rows, max(_FEW, int(_MOMENT_S * (rows_per_s or 0))))


def heavy(binding: Binding, row_s: float) -> bool:
    """Whether a row is so much work that a batch of thousands gains nothing."""
    return binding.texts or binding.pictures or row_s > _HEAVY_S
