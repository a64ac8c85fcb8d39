"""Choose the rows of a batch: time a few sizes on the first rows and take one that is clearly the fastest.

The same request, data and machine must always give the same batch rows and the same parts, however busy the machine
is. So parts follow from a rough figure for the speed. A short run is not tuned, and uses no result of a longer one. A
size replaces the default only if two halves of a complete probe agree on it.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from scorer.preflight.cutting import BATCH_ROWS
from scorer.scoring import batches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scorer.binding.spec import Binding
    from scorer.model.resident import Engine


METHOD = 4  # version of the probe; cached results of another version are not used
PROBE_ROWS = 16_384
PROBED_FROM = 50_000  # rows: for fewer, a probe costs more time than it can save
_CANDIDATES = (256, 1024, 4096, 16_384)
_HEAVY = (8, 32, 128)  # a net 4,096 wide, two threads, rows/s: 1,258, 1,892, 2,008; a picture net: 1,981, 1,300, 1,025
_ROUNDS = 6  # of which each half must give the same result; the first is slower, because it touches new memory
_LONG_ENOUGH_S = 10.0  # of work for each thread, with less, a probe costs more than it saves
_TRIAL_S = 0.01
_CLEARLY = 1.08  # times as fast as the default must a size be; less may be chance
_TIE = 1.03  # on an accelerator, a larger batch must be this much faster
_FEW_ROWS, _FEW_CONVERTED = 64, 4  # to learn whether a row takes long
_LIGHT_RATE, _HEAVY_RATE, _CONVERTED_RATE = 300_000.0, 1_000.0, 100.0  # rows/s, from which parts and probes follow
_CALL_S = 50e-6
"""Overhead of a call in a real run that a trial does not see: threads wait for the GIL and for each other."""
_BEHIND = 1.3  # times the best seconds: slower sizes are not tried again, nor smaller ones of a light model
_BATCH_MOST_S = 0.05  # for one batch
_DEFAULT_MOST_S = 0.25  # for one batch of the default size, with which the others are compared
_HEAVY_BATCH_MOST_S = 0.2  # the independence check has shown that the memory is enough for it
_HEAVY_FROM_S = 30.0  # of work for each thread: two turns of the longest trials are 2 % of it
_LONG_RUN_S = 10.0  # of work for each thread: in less, processes take longer to start than they save
_TOGETHER_S = 0.02  # of one thread's scoring, to measure how much two threads gain
_TWO_CORES = 1.6  # times as much by two threads as by one, for work without the GIL; less: the machine is busy
HEAVY_BATCH_ROWS, CONVERTED_BATCH_ROWS = 32, 4  # of numbers; of pictures and texts: 2 and 4 are 9 % faster than 8
BATCH_TOKENS = 512  # MiniLM on reviews, rows/s at 128 to 2,048: 35.8, 35.9, 36.3, 35.2, 32.1; at 32 rows: 26.5
_LARGEST, _GROWING_S = 65_536, 5.0  # rows or tokens of the largest batch tried on an accelerator; seconds for all
_ACCELERATOR_FACTOR = 16  # times the rows or tokens of a batch on the CPU
_LEAST_ENCODED, _ENCODED_S = 2, 0.005  # rows that are scored once more to measure their encoded size; seconds
_HEAVY_S = 0.25e-3  # per row
_MOST_GRIDS = 4  # times the largest batch: a longer common multiple would make parts too large


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
    nominal_rows_per_s: float | None = None
    """A rough figure for the speed of one thread, by which parts are cut; None if nothing was timed."""
    confirmed: bool = False
    """Whether both halves of a complete probe chose this batch size; only then is it cached."""


def combined(probes: Sequence[Probe]) -> Probe:
    """Return the figures of several models that score the same rows, one after the other, as those of one.

    Its batches are the grid on which a row group is cut into parts.
    """
    if len(probes) == 1:
        return probes[0]
    largest, common = max(one.batch_rows for one in probes), math.lcm(*(one.batch_rows for one in probes))
    return Probe(
        batch_rows=common if common <= _MOST_GRIDS * largest else largest,
        rows_per_s=_in_turn([one.rows_per_s for one in probes]),
        batch_tokens=next((one.batch_tokens for one in probes if one.batch_tokens is not None), None),
        together=min((one.together for one in probes if one.together is not None), default=None),
        nominal_rows_per_s=_in_turn([one.nominal_rows_per_s for one in probes]),
    )


def _in_turn(speeds: Sequence[float | None]) -> float | None:
    """Return the speed of doing one after the other; None if one speed is unknown."""
    known = [speed for speed in speeds if speed]
    return 1 / sum(1 / speed for speed in known) if len(known) == len(speeds) else None


def worthwhile(binding: Binding, row_s: float, rows: int, threads: int, device: str) -> bool:
    """Whether a probe may save time if a row takes about `row_s`: only in a long run."""
    if device != "cpu":
        return rows >= PROBED_FROM
    work_s = rows / threads * row_s
    if heavy(binding, row_s):
        return not binding.texts and work_s >= _HEAVY_FROM_S
    return rows >= PROBED_FROM and work_s >= _LONG_ENOUGH_S


def row_seconds(session: Engine, binding: Binding, table: pa.Table) -> float:
    """Return the seconds of a row in one thread: of processor time on the CPU, which other programs hardly change."""
    few = _FEW_CONVERTED if binding.texts or binding.pictures else _FEW_ROWS
    clock = time.thread_time if session.spec.device == "cpu" else time.perf_counter

    def timed(rows: pa.Table) -> float:
        started, n = clock(), rows.num_rows
        batches.score(rows, batches.grid(n, binding.fixed_batch or n), binding, session)
        seconds = float(clock() - started)
        return seconds / int(n)

    rows, best = min(few, table.num_rows), 0.0
    while best * rows < _BATCH_MOST_S:
        several = pa.concat_tables([table] * -(-rows // table.num_rows)).slice(0, rows)
        best = min(timed(several) for _ in range(3 if rows > few else 2))
        if rows >= BATCH_ROWS:
            break
        rows = min(8 * rows, BATCH_ROWS)
    return max(best, 1e-9)


def nominal_rate(binding: Binding, row_s: float) -> float:
    """Return a rough figure for the rows per second of one thread, which does not vary from run to run.

    There are three: for texts and pictures, for numbers of which a row takes long, and for all others.
    """
    if binding.texts or binding.pictures:
        return _CONVERTED_RATE
    return _HEAVY_RATE if heavy(binding, row_s) else _LIGHT_RATE


def probe(session: Engine, binding: Binding, table: pa.Table, row_s: float, ahead: float, threads: int = 1) -> Probe:
    """Return the default batch rows, or those that score the sample clearly faster.

    Sizes take turns, and each counts by its best turn. Trials run in as many threads as will score on this machine,
    because threads share its caches. Batches that would take long are not tried, because of their memory. Each thread
    has `ahead` rows to score.
    """
    slow = heavy(binding, row_s)
    candidates, batch_most_s = (_HEAVY, _HEAVY_BATCH_MOST_S) if slow else (_CANDIDATES, _BATCH_MOST_S)
    longest_s = {BATCH_ROWS: _DEFAULT_MOST_S}
    fitting = [n for n in candidates if n <= table.num_rows and n * row_s <= longest_s.get(n, batch_most_s)]
    fitting = fitting or [candidates[0]]
    _seconds(session, binding, table.slice(0, fitting[0]), fitting[0])  # the first call takes longer than the next
    busy = time.thread_time()
    setup_s = _seconds(session, binding, table.slice(0, 0), fitting[0])
    setup_busy_s = time.thread_time() - busy

    def timed(pool: ThreadPoolExecutor, batch_rows: int) -> _Trial:
        most = min(table.num_rows, max(batch_rows, int(_TRIAL_S / row_s)))
        rows = max(1, most // batch_rows) * min(most, batch_rows)
        wall_s, busy_s = _mean_seconds(pool, threads, session, binding, table.slice(0, rows), batch_rows)
        # other programs hardly change the processor time; of a heavy row, some may be spent in waiting for memory
        cost = _without_setup(wall_s, setup_s) if slow else _without_setup(busy_s, setup_busy_s)
        return _Trial(row_s=_without_setup(wall_s, setup_s) / rows, cost=cost / rows + _CALL_S / batch_rows)

    turns = _take_turns(timed, fitting, threads)
    best = {n: min(trial.row_s for trial in seen) for n, seen in turns.items()}
    default = untuned(binding, None, row_s, device="cpu").batch_rows
    halves = {_clearly_fastest(turns, default, half) for half in (0, 1)}
    chosen = halves.pop() if len(halves) == 1 else default
    if chosen not in best:
        chosen = min(best, key=lambda n: abs(n - chosen))
    trials = [f"{n:,} rows: {1 / best[n]:,.0f} rows/s" for n in sorted(best)]
    together = None
    if not slow and ahead * row_s >= _LONG_RUN_S:
        few = table.slice(0, max(chosen, min(table.num_rows, int(_TOGETHER_S / best[chosen]))))
        together = _gain_of_two(session, binding, few, chosen)
        trials.append("two threads: " + ("the machine is busy" if together is None else f"{together:.1f} times one"))
    return Probe(
        batch_rows=chosen, rows_per_s=1 / best[chosen], trials=tuple(trials), together=together, confirmed=not halves
    )


@dataclass(frozen=True, slots=True)
class _Trial:
    """One turn of a batch size."""

    row_s: float
    """Seconds per row."""
    cost: float
    """What sizes are compared by: processor seconds per row, and the overhead of a call."""


def _take_turns(
    timed: Callable[[ThreadPoolExecutor, int], _Trial], candidates: Sequence[int], threads: int
) -> dict[int, list[_Trial]]:
    """Return the turns of each size; one that is far behind gets no further ones."""
    turns: dict[int, list[_Trial]] = {n: [] for n in sorted(candidates, reverse=True)}
    with ThreadPoolExecutor(threads) as pool:
        for turn in range(_ROUNDS):
            costs = {n: min(trial.cost for trial in seen) for n, seen in turns.items() if seen}
            for n, seen in turns.items():
                if turn < 2 or costs[n] <= _BEHIND * min(costs.values()):  # noqa: PLR2004 - one turn in each half
                    seen.append(timed(pool, n))
    return turns


def _clearly_fastest(turns: dict[int, list[_Trial]], default: int, half: int) -> int:
    """Return the size that is clearly faster than the default in every second turn, or else the default."""
    costs = {n: min(trial.cost for trial in seen[half::2]) for n, seen in turns.items()}
    fastest = min(costs, key=lambda n: costs[n])
    if default in costs and costs[fastest] * _CLEARLY >= costs[default]:
        return default
    near = [n for n in costs if costs[n] <= costs[fastest] * _CLEARLY]
    return min(near, key=lambda n: (abs(math.log(n / default)), n))


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
    timed = replace(default, rows_per_s=best or default.rows_per_s, trials=tuple(trials), confirmed=bool(trials))
    if not chosen:
        return timed
    return replace(timed, batch_tokens=chosen) if texts else replace(timed, batch_rows=chosen)


def _without_setup(seconds: float, setup_s: float) -> float:
    """Return the seconds less those that preparing the columns takes for any number of rows."""
    return max(seconds - setup_s, seconds / 2)


def _mean_seconds(
    pool: ThreadPoolExecutor, threads: int, session: Engine, binding: Binding, table: pa.Table, batch_rows: int
) -> tuple[float, float]:
    """Score the table in threads that start together; return their mean seconds, and the least processor time."""
    start = threading.Barrier(threads)

    def one(_: int) -> tuple[float, float]:
        start.wait()
        busy = time.thread_time()
        return _seconds(session, binding, table, batch_rows), time.thread_time() - busy

    wall_s, busy_s = zip(*pool.map(one, range(threads)), strict=True)
    return sum(wall_s) / threads, min(busy_s)


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
