"""Try what can be chosen on the first rows, and keep what is fastest: the rows of a batch."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from scorer import partition
from scorer.parts import BATCH_ROWS

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    from scorer.binding import Binding
    from scorer.session import Session

PROBE_ROWS = 16_384
PROBED_FROM = 50_000  # rows: below, a probe costs more than it can save
_CANDIDATES = (256, 1024, 4096, 16_384)
_ROUNDS = 5
_TIE = 1.03  # a larger batch must be this much faster
_LONG_S = 0.05  # of one trial
_MOST_S, _SHARE = 0.5, 0.02  # of the probe, and of the work ahead
_LONG_RUN_S = 10.0
_TWO_CORES = 1.6  # times as much by two threads as by one, where nothing stands in their way
HEAVY_BATCH_ROWS = 8
BATCH_TOKENS = 512  # MiniLM on reviews, rows/s at 128 to 2,048: 35.8, 35.9, 36.3, 35.2, 32.1; at 32 rows: 26.5
_LARGEST, _GROWING_S = 65_536, 5.0  # of batches on a device that are tried: rows or tokens, and seconds
_ON_A_DEVICE = 16  # times the batch
_FEW = 2
_MOMENT_S = 0.02
_HEAVY_S = 0.5e-3  # a row


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What tuning found."""

    batch_rows: int
    rows_per_s: float | None
    """Of scoring, one thread; None when nothing was timed."""
    trials: tuple[str, ...] = ()
    batch_tokens: int | None = None
    """What texts are batched by, if there are any: a batch of short ones has more rows."""
    together: float | None = None
    """How much more two threads score than one; None where that was not tried."""


def probe(session: Session, binding: Binding, table: pa.Table, row_s: float, ahead: float) -> Probe:
    """The batch rows that score the sample fastest: interleaved, one thread, best of five.

    Batches that would take long are not tried: a model so heavy gains nothing by them. A row took about `row_s`
    so far, and so many rows are `ahead` of each thread: the probe takes a small share of that work.
    """
    fitting = [n for n in _CANDIDATES if n <= table.num_rows and n * row_s <= _LONG_S]
    best = dict.fromkeys(fitting or _CANDIDATES[:1], float("inf"))
    began = time.perf_counter()
    for turn in range(_ROUNDS):
        for batch_rows in best:
            rows = min(table.num_rows, max(batch_rows, min(4 * _CANDIDATES[0], int(_LONG_S / row_s))))
            seconds = _scored(session, binding, table.slice(0, rows), batch_rows)
            best[batch_rows] = min(best[batch_rows], seconds / rows)
        if turn and time.perf_counter() - began > min(_MOST_S, _SHARE * ahead * min(best.values())):
            break
    chosen = min(best)
    for batch_rows in sorted(best):
        if best[batch_rows] * _TIE < best[chosen]:
            chosen = batch_rows
    trials = [f"{n:,} rows: {1 / seconds:,.0f} rows/s" for n, seconds in best.items()]
    together = None
    if ahead * best[chosen] >= _LONG_RUN_S:  # below, processes take longer to start than they save
        few = table.slice(0, max(chosen, min(table.num_rows, int(_LONG_S / best[chosen]))))
        together = _together(session, binding, few, chosen)
        trials.append("two threads: " + ("the machine is busy" if together is None else f"{together:.1f} times one"))
    return Probe(batch_rows=chosen, rows_per_s=1 / best[chosen], trials=tuple(trials), together=together)


def grown(session: Session, binding: Binding, table: pa.Table, row_s: float) -> Probe:
    """Batches twice as large, from few rows on, while that is faster and memory lasts: for devices with much of both.

    Texts are batched by tokens, all else by rows.
    """
    texts = any(feed.kind == "text" for feed in binding.feeds)
    unit = "tokens" if texts else "rows"
    best, chosen, trials, fits = 0.0, 0, [], session.fits
    size, began = BATCH_TOKENS if texts else HEAVY_BATCH_ROWS, time.perf_counter()
    some = table.slice(0, HEAVY_BATCH_ROWS)
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


def _scored(session: Session, binding: Binding, table: pa.Table, batch_rows: int, tokens: int | None = None) -> float:
    """Seconds for the table."""
    started = time.perf_counter()
    partition.score(table, partition.grid(table.num_rows, batch_rows), binding, session, tokens=tokens)
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
    usual = more * HEAVY_BATCH_ROWS if heavy(binding, row_s) else BATCH_ROWS
    free = asked is None and binding.fixed_batch is None
    return Probe(
        batch_rows=binding.fixed_batch or asked or usual,
        rows_per_s=1 / row_s if row_s else None,
        batch_tokens=more * BATCH_TOKENS if free and any(feed.kind == "text" for feed in binding.feeds) else None,
    )


def worth_showing(rows: int, rows_per_s: float | None) -> int:
    """How many of the first rows to score once more, to see what is written: no more than take a moment."""
    return min(rows, max(_FEW, int(_MOMENT_S * (rows_per_s or 0))))


def heavy(binding: Binding, row_s: float | None) -> bool:
    """Whether a row is so much work that a large batch gains nothing."""
    converted = any(feed.kind in {"text", "image"} for feed in binding.feeds)
    return converted or (row_s or 0) > _HEAVY_S
