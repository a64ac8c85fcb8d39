"""Which worker scored which part when, how fast, and which parts were slow: plots from the ledger's columns.

Knows nothing about files or pages.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scorer.display.plots import Plot, Shape, Tick, bars, shape, time_ticks
from scorer.display.words import duration, plural, short_number

if TYPE_CHECKING:
    import pyarrow as pa


STAGES = ("read", "decode", "pack", "infer", "unpack", "write")
_BINS = 120  # of time, over the whole run
_DRAWN_PARTS, _STAGED_PARTS, _DRAWN_LANES = 1_200, 240, 40  # beyond these, bars and rows are too small to see
_LANE_PX, _ROW_PX = 20, 12
_LEVELS = 5  # shades of a busy worker
_SLOW = 2.0  # times the median: of a part's seconds, and of its seconds per row
_SLOW_S, _SLOW_SHARE = 1.0, 0.005  # shorter parts are never slow: seconds, and share of the run
_SLOWEST = 60  # slow parts that are marked on the plot of busy workers
_GAP_S = 0.002  # parts may overlap by this on one thread: times are recorded to 0.1 ms, and a switch takes less


@dataclass(frozen=True, slots=True)
class Work:
    """The parts of one run whose times are recorded, in the order of their start."""

    part: np.ndarray
    rows: np.ndarray
    started: np.ndarray
    """Seconds since the start of the first part."""
    ended: np.ndarray
    stages: np.ndarray
    """Seconds, one row per part and one column per stage."""
    workers: tuple[str, ...]
    worker: np.ndarray
    """For each part, the index of its worker in `workers`."""
    left_out: int
    """Number of parts in the ledger that are not in this value."""

    @property
    def seconds(self) -> np.ndarray:
        """Duration of each part."""
        return self.ended - self.started  # type: ignore[no-any-return]

    @property
    def span(self) -> float:
        """Seconds from the start of the first part to the end of the last."""
        return float(self.ended.max())

    def described(self, i: int) -> str:
        """Return part `i` as text: rows, seconds, worker, and seconds of each stage."""
        spent = ", ".join(
            f"{name} {s:.2g} s" for name, s in zip(STAGES, self.stages[i], strict=True) if s >= _GAP_S / 2
        )
        rows, worker = plural(int(self.rows[i]), "row"), self.workers[self.worker[i]]
        head = f"part {self.part[i]}: {rows} in {self.seconds[i]:.3g} s on {worker}"
        return f"{head}\n{spent}" if spent else head


class Slow(NamedTuple):
    """A part that took long, by itself and per row."""

    part: int
    worker: str
    rows: int
    seconds: float
    times_median: float
    """Its seconds per row, divided by the median of all parts."""
    longest_stage: str


def work_of(ledger: pa.Table, began: str, resumed: int) -> Work | None:
    """Return the parts that the last run scored; None if the ledger has no times.

    The run started at `began`. Of the `resumed` earliest parts, those that ended before that are left out.
    """
    started, ended = (ledger[name].to_numpy() for name in ("started", "ended"))
    timed = np.flatnonzero(ended >= started)  # null is NaN here
    order = timed[np.argsort(started[timed], kind="stable")]
    try:
        since = datetime.fromisoformat(began).timestamp()
    except ValueError:
        since = 0.0
    order = order[(np.arange(len(order)) >= resumed) | (ended[order] > since)]
    if not len(order):
        return None
    first = started[order[0]]
    encoded = ledger["worker"].combine_chunks().dictionary_encode()
    names, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()[order]
    workers = sorted(names[code] for code in np.unique(codes))
    indices = {name: i for i, name in enumerate(workers)}
    index_of_code = np.array([indices.get(name, -1) for name in names])
    return Work(
        part=ledger["part"].to_numpy()[order],
        rows=ledger["rows"].to_numpy()[order],
        started=started[order] - first,
        ended=np.maximum(ended[order] - first, started[order] - first + _GAP_S / 2),
        stages=np.stack([ledger[f"{name}_s"].to_numpy()[order] for name in STAGES], axis=1),
        workers=tuple(workers),
        worker=index_of_code[codes],
        left_out=ledger.num_rows - len(order),
    )


def throughput(done: Work) -> Plot:
    """Return the plot of rows per second; the rows of a part are spread evenly over its duration."""
    bins = int(max(1, min(_BINS, 4 * len(done.part))))
    edges = np.linspace(0, done.span, bins + 1)
    rates = np.diff(_done_until(edges, done.started, done.ended, done.rows)) / np.diff(edges)
    mean = float(done.rows.sum() / done.span)
    return bars(
        f"rows per second over {duration(done.span)}",
        rates.tolist(),
        lambda i: f"{short_number(float(rates[i]))} rows/s, {_clock(edges[i])} to {_clock(edges[i + 1])}",
        time_ticks(done.span),
        height=190, gap=0.0, rules=[(mean, f"mean {short_number(mean)} rows/s")],
    )  # fmt: skip


def shortest_slow_s(done: Work) -> float:
    """Return the seconds that a part must take at least to be slow."""
    return max(_SLOW_S, _SLOW_SHARE * done.span)


def is_slow(done: Work) -> np.ndarray:
    """Return for each part whether it is slow: more than twice the median, in seconds and in seconds per row.

    A slow part takes at least a second and half a percent of the run; the times of shorter ones vary by chance.
    """
    part_s, row_s = done.seconds, done.seconds / np.maximum(done.rows, 1)
    return (part_s > _SLOW * np.median(part_s)) & (row_s > _SLOW * np.median(row_s)) & (part_s >= shortest_slow_s(done))  # type: ignore[no-any-return]


def slowest_parts(done: Work, limit: int) -> list[Slow]:
    """Return the slow parts, the longest first."""
    row_s = done.seconds / np.maximum(done.rows, 1)
    found = np.flatnonzero(is_slow(done))
    worst = found[np.argsort(-done.seconds[found], kind="stable")][:limit]
    return [
        Slow(
            int(done.part[i]), done.workers[done.worker[i]], int(done.rows[i]), float(done.seconds[i]),
            float(row_s[i] / np.median(row_s)), STAGES[int(done.stages[i].argmax())],
        )
        for i in worst
    ]  # fmt: skip


def lanes(done: Work) -> tuple[Plot, str]:
    """Return the plot of parts by worker, and how it is drawn.

    "stages" is a bar for each part, coloured by stage; "parts" is a plain bar for each part. If there are too many
    parts, "busy" shows how busy each worker was.
    """
    lane = _assign_lanes(done) if len(done.part) <= _DRAWN_PARTS else None
    if lane is None or len(set(lane)) > _DRAWN_LANES:
        return _plot_busy(done), "busy"
    return _plot_parts(done, lane), "stages" if len(done.part) <= _STAGED_PARTS else "parts"


def _assign_lanes(done: Work) -> list[tuple[int, int]]:
    """Return for each part its worker and the first free lane of that worker: one lane per busy thread."""
    lane_ends: list[list[float]] = [[] for _ in done.workers]
    lanes = []
    for worker, started, ended in zip(done.worker.tolist(), done.started.tolist(), done.ended.tolist(), strict=True):
        ends = lane_ends[worker]
        lane = next((i for i, end in enumerate(ends) if end <= started + _GAP_S), len(ends))
        ends[lane:] = [ended, *ends[lane + 1 :]]
        lanes.append((worker, lane))
    return lanes


def _plot_parts(done: Work, lane: list[tuple[int, int]]) -> Plot:
    """Draw a bar for each part."""
    rows = {one: i for i, one in enumerate(sorted(set(lane)))}
    tall, slow = 100 / len(rows), is_slow(done)
    shapes: list[Shape] = []
    for i, one in enumerate(lane):
        x, y = 100 * done.started[i] / done.span, rows[one] * tall + 0.1 * tall
        width, says = 100 * done.seconds[i] / done.span, done.described(i)
        if len(lane) <= _STAGED_PARTS:
            shapes += _stage_shapes(done, i, (x, y, width, 0.8 * tall), says)
        else:
            shapes.append(shape(x, y, width, 0.8 * tall, "even" if done.part[i] % 2 else "bar", says))
        if slow[i]:
            shapes.append(shape(x, y, width, 0.8 * tall, "slow", f"slow {says}"))
    n_lanes = Counter(worker for worker, _ in rows)
    first = {worker: min(i for (w, _), i in rows.items() if w == worker) for worker in n_lanes}
    up = tuple(Tick(round((first[w] + n_lanes[w] / 2) * tall, 2), done.workers[w]) for w in sorted(n_lanes))
    return Plot(
        name=f"parts on {plural(len(n_lanes), 'worker')} over {duration(done.span)}",
        height=_LANE_PX * len(rows), shapes=tuple(shapes), across=time_ticks(done.span), up=up,
        gutter="wide", grid=False,
    )  # fmt: skip


def _stage_shapes(done: Work, i: int, frame: tuple[float, float, float, float], says: str) -> list[Shape]:
    """Return the bar of a part divided by its stages; time outside of all stages is grey."""
    x, y, width, height = frame
    part_s = done.seconds[i]
    spent = done.stages[i] * min(1.0, part_s / max(done.stages[i].sum(), 1e-9)) / part_s * width
    shapes = [shape(x, y, width, height, "rest", says)]
    for name, wide in zip(STAGES, spent.tolist(), strict=True):
        if wide >= 0.05:  # noqa: PLR2004 - percent of the width: half a pixel
            shapes.append(shape(x, y, wide, height, name, says))
        x += wide
    return shapes


def _plot_busy(done: Work) -> Plot:
    """Draw how busy each worker or group of workers was, and the slowest parts above that."""
    n, edges = len(done.workers), np.linspace(0, done.span, _BINS + 1)
    rows = min(n, _DRAWN_LANES)
    row_of = np.arange(n) * rows // n
    tall, shapes, up = 100 / rows, [], []
    for row in range(rows):
        names = [done.workers[worker] for worker in np.flatnonzero(row_of == row)]
        name = names[0] if len(names) == 1 else f"{names[0]} + {len(names) - 1}"
        parts = np.flatnonzero(row_of[done.worker] == row)
        started, ended = done.started[parts], done.ended[parts]
        spent = np.diff(_done_until(edges, started, ended, ended - started))
        share = spent / np.diff(edges) / _most_at_once(started, ended)
        level = np.ceil(np.clip(share, 0, 1) * _LEVELS - 1e-6).astype(int)
        starts = np.flatnonzero(np.diff(level, prepend=-1))
        for first, last in zip(starts, [*starts[1:], _BINS], strict=True):
            if level[first] > 0:
                says = f"{name}: {share[first:last].mean():.0%} busy, {_clock(edges[first])} to {_clock(edges[last])}"
                x, wide = 100 * first / _BINS, 100 * (last - first) / _BINS
                shapes.append(shape(x, (row + 0.05) * tall, wide, 0.9 * tall, f"busy{level[first]}", says))
        up.append(Tick(round((row + 0.5) * tall, 2), name))
    slow = np.flatnonzero(is_slow(done))
    for i in slow[np.argsort(-done.seconds[slow], kind="stable")][:_SLOWEST]:
        x, wide = 100 * done.started[i] / done.span, 100 * done.seconds[i] / done.span
        says = f"slow {done.described(i)}"
        shapes.append(shape(x, (row_of[done.worker[i]] + 0.1) * tall, wide, 0.8 * tall, "slow", says))
    return Plot(
        name=f"how busy {plural(n, 'worker')} were over {duration(done.span)}",
        height=max(_LANE_PX, _ROW_PX * rows) if rows > 1 else 2 * _LANE_PX,
        shapes=tuple(shapes), across=time_ticks(done.span), up=tuple(up), gutter="wide", grid=False,
    )  # fmt: skip


def _done_until(times: np.ndarray, started: np.ndarray, ended: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """Return the sum of all amounts at each time, if each amount grows evenly from its start to its end."""
    rate = amounts / (ended - started)

    def growth(since: np.ndarray) -> np.ndarray:
        order = np.argsort(since, kind="stable")
        rates = np.concatenate([[0.0], np.cumsum(rate[order])])
        offsets = np.concatenate([[0.0], np.cumsum((rate * since)[order])])
        n = np.searchsorted(since[order], times)
        return rates[n] * times - offsets[n]  # type: ignore[no-any-return]

    done = np.maximum.accumulate(growth(started) - growth(ended))
    return np.round(done, 6)  # differences of large sums leave rounding errors where nothing was done


def _most_at_once(started: np.ndarray, ended: np.ndarray) -> int:
    """Return the largest number of parts that were scored at the same time."""
    times = np.concatenate([started + _GAP_S, ended])
    steps = np.concatenate([np.ones(len(started), int), -np.ones(len(ended), int)])
    return max(1, int(np.cumsum(steps[np.lexsort((steps, times))]).max(initial=1)))


def _clock(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 120 else duration(float(seconds))  # noqa: PLR2004 - two minutes
