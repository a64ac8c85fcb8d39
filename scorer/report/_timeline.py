"""When parts were worked on, by whom, how fast, and which of them took oddly long; from the ledger's columns.

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
_BINS = 120
_DRAWN_PARTS, _STAGED_PARTS, _DRAWN_LANES = 1_200, 240, 40  # beyond, nobody could tell them apart
_LANE_PX, _ROW_PX = 20, 12
_LEVELS = 5
_SLOW = 2.0  # times the median, of a part's seconds and of its seconds per row
_SLOW_S = 0.05  # at least: below, chance decides
_SLOWEST = 60
_TOUCH_S = 0.002  # clocks are noted to a tenth of a millisecond, and threads change hands in less than this


@dataclass(frozen=True, slots=True)
class Work:
    """The parts of one run whose times are known, in the order they began."""

    part: np.ndarray
    rows: np.ndarray
    began: np.ndarray
    """Seconds after the first part began."""
    ended: np.ndarray
    stages: np.ndarray
    """Seconds by part and stage."""
    workers: tuple[str, ...]
    who: np.ndarray
    """For each part, its worker's place in `workers`."""
    left_out: int
    """Parts that are in the ledger and not here."""

    @property
    def took(self) -> np.ndarray:
        """Seconds of each part."""
        return self.ended - self.began  # type: ignore[no-any-return]

    @property
    def span(self) -> float:
        """Seconds from the first part's begin to the last one's end."""
        return float(self.ended.max())

    def says(self, i: int) -> str:
        """One part in words."""
        spent = ", ".join(
            f"{name} {s:.2g} s" for name, s in zip(STAGES, self.stages[i], strict=True) if s >= _TOUCH_S / 2
        )
        rows, worker = plural(int(self.rows[i]), "row"), self.workers[self.who[i]]
        head = f"part {self.part[i]}: {rows} in {self.took[i]:.3g} s on {worker}"
        return f"{head}\n{spent}" if spent else head


class Slow(NamedTuple):
    """A part that took oddly long."""

    part: int
    worker: str
    rows: int
    seconds: float
    times: float
    """As long a row as the median part."""
    most: str
    """The stage that took the most of it."""


def work(ledger: pa.Table, began: str, resumed: int) -> Work | None:
    """What the ledger says about the last run; None where no times were noted.

    Of the earliest parts, as many as an earlier run did, those are left out that ended before this run began.
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
    coded = ledger["worker"].combine_chunks().dictionary_encode()
    known, codes = coded.dictionary.to_pylist(), coded.indices.to_numpy()[order]
    workers = sorted(known[code] for code in np.unique(codes))
    places = {name: i for i, name in enumerate(workers)}
    place = np.array([places.get(name, -1) for name in known])
    return Work(
        part=ledger["part"].to_numpy()[order],
        rows=ledger["rows"].to_numpy()[order],
        began=started[order] - first,
        ended=np.maximum(ended[order] - first, started[order] - first + _TOUCH_S / 2),
        stages=np.stack([ledger[f"{name}_s"].to_numpy()[order] for name in STAGES], axis=1),
        workers=tuple(workers),
        who=place[codes],
        left_out=ledger.num_rows - len(order),
    )


def throughput(done: Work) -> Plot:
    """Rows per second over time; a part's rows are spread evenly over its time."""
    bins = int(max(1, min(_BINS, 4 * len(done.part))))
    edges = np.linspace(0, done.span, bins + 1)
    rates = np.diff(_by_then(edges, done.began, done.ended, done.rows)) / np.diff(edges)
    mean = float(done.rows.sum() / done.span)
    return bars(
        f"rows per second over {duration(done.span)}",
        rates.tolist(),
        lambda i: f"{short_number(float(rates[i]))} rows/s, {_clock(edges[i])} to {_clock(edges[i + 1])}",
        time_ticks(done.span),
        height=190, gap=0.0, rules=[(mean, f"mean {short_number(mean)} rows/s")],
    )  # fmt: skip


def slow(done: Work) -> np.ndarray:
    """Which parts took oddly long: both for a part and for a row."""
    took, row = done.took, done.took / np.maximum(done.rows, 1)
    return (took > _SLOW * np.median(took)) & (row > _SLOW * np.median(row)) & (took > _SLOW_S)  # type: ignore[no-any-return]


def slowest(done: Work, most: int) -> list[Slow]:
    """The worst of them, by what they cost."""
    row = done.took / np.maximum(done.rows, 1)
    found = np.flatnonzero(slow(done))
    worst = found[np.argsort(-done.took[found], kind="stable")][:most]
    return [
        Slow(
            int(done.part[i]), done.workers[done.who[i]], int(done.rows[i]), float(done.took[i]),
            float(row[i] / np.median(row)), STAGES[int(done.stages[i].argmax())],
        )
        for i in worst
    ]  # fmt: skip


def lanes(done: Work) -> tuple[Plot, str]:
    """Who did what when, and how it is drawn: a part each, or where there are too many, how busy everybody was."""
    lane = _packed(done) if len(done.part) <= _DRAWN_PARTS else None
    if lane is None or len(set(lane)) > _DRAWN_LANES:
        return _busy(done), "busy"
    return _parts(done, lane), "stages" if len(done.part) <= _STAGED_PARTS else "parts"


def _packed(done: Work) -> list[tuple[int, int]]:
    """For each part its worker and the first of its lanes that is free: as many lanes as it had threads at work."""
    free: list[list[float]] = [[] for _ in done.workers]
    lane = []
    for who, began, ended in zip(done.who.tolist(), done.began.tolist(), done.ended.tolist(), strict=True):
        ends = free[who]
        place = next((i for i, end in enumerate(ends) if end <= began + _TOUCH_S), len(ends))
        ends[place:] = [ended, *ends[place + 1 :]]
        lane.append((who, place))
    return lane


def _parts(done: Work, lane: list[tuple[int, int]]) -> Plot:
    """A bar for each part."""
    rows = {one: i for i, one in enumerate(sorted(set(lane)))}
    tall, odd = 100 / len(rows), slow(done)
    shapes: list[Shape] = []
    for i, one in enumerate(lane):
        x, y = 100 * done.began[i] / done.span, rows[one] * tall + 0.1 * tall
        width, says = 100 * done.took[i] / done.span, done.says(i)
        if len(lane) <= _STAGED_PARTS:
            shapes += _staged(done, i, (x, y, width, 0.8 * tall), says)
        else:
            shapes.append(shape(x, y, width, 0.8 * tall, "even" if done.part[i] % 2 else "bar", says))
        if odd[i]:
            shapes.append(shape(x, y, width, 0.8 * tall, "slow", f"slow {says}"))
    own = Counter(who for who, _ in rows)
    first = {who: min(i for (w, _), i in rows.items() if w == who) for who in own}
    up = tuple(Tick(round((first[who] + own[who] / 2) * tall, 2), done.workers[who]) for who in sorted(own))
    return Plot(
        name=f"parts on {plural(len(own), 'worker')} over {duration(done.span)}",
        height=_LANE_PX * len(rows), shapes=tuple(shapes), across=time_ticks(done.span), up=up,
        gutter="wide", grid=False,
    )  # fmt: skip


def _staged(done: Work, i: int, frame: tuple[float, float, float, float], says: str) -> list[Shape]:
    """A part's bar, divided by its stages; what is left is grey."""
    x, y, width, height = frame
    spent = done.stages[i] * min(1.0, done.took[i] / max(done.stages[i].sum(), 1e-9)) / done.took[i] * width
    shapes = [shape(x, y, width, height, "rest", says)]
    for name, wide in zip(STAGES, spent.tolist(), strict=True):
        if wide >= 0.05:  # noqa: PLR2004 - of a hundredth: half a pixel
            shapes.append(shape(x, y, wide, height, name, says))
        x += wide
    return shapes


def _busy(done: Work) -> Plot:
    """How busy each worker was, or each group of them; the slowest parts on top."""
    many_, edges = len(done.workers), np.linspace(0, done.span, _BINS + 1)
    rows = min(many_, _DRAWN_LANES)
    row_of = np.arange(many_) * rows // many_
    tall, shapes, up = 100 / rows, [], []
    for row in range(rows):
        names = [done.workers[who] for who in np.flatnonzero(row_of == row)]
        name = names[0] if len(names) == 1 else f"{names[0]} + {len(names) - 1}"
        mine = np.flatnonzero(row_of[done.who] == row)
        began, ended = done.began[mine], done.ended[mine]
        spent = np.diff(_by_then(edges, began, ended, ended - began))
        share = spent / np.diff(edges) / _at_once(began, ended)
        level = np.ceil(np.clip(share, 0, 1) * _LEVELS - 1e-6).astype(int)
        starts = np.flatnonzero(np.diff(level, prepend=-1))
        for first, last in zip(starts, [*starts[1:], _BINS], strict=True):
            if level[first] > 0:
                says = f"{name}: {share[first:last].mean():.0%} busy, {_clock(edges[first])} to {_clock(edges[last])}"
                x, wide = 100 * first / _BINS, 100 * (last - first) / _BINS
                shapes.append(shape(x, (row + 0.05) * tall, wide, 0.9 * tall, f"busy{level[first]}", says))
        up.append(Tick(round((row + 0.5) * tall, 2), name))
    odd = np.flatnonzero(slow(done))
    for i in odd[np.argsort(-done.took[odd], kind="stable")][:_SLOWEST]:
        x, wide = 100 * done.began[i] / done.span, 100 * done.took[i] / done.span
        shapes.append(shape(x, (row_of[done.who[i]] + 0.1) * tall, wide, 0.8 * tall, "slow", f"slow {done.says(i)}"))
    return Plot(
        name=f"how busy {plural(many_, 'worker')} were over {duration(done.span)}",
        height=max(_LANE_PX, _ROW_PX * rows) if rows > 1 else 2 * _LANE_PX,
        shapes=tuple(shapes), across=time_ticks(done.span), up=tuple(up), gutter="wide", grid=False,
    )  # fmt: skip


def _by_then(times: np.ndarray, began: np.ndarray, ended: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """How much was done by each time, when each amount grows evenly from its begin to its end."""
    rate = amounts / (ended - began)

    def grown(since: np.ndarray) -> np.ndarray:
        order = np.argsort(since, kind="stable")
        rates = np.concatenate([[0.0], np.cumsum(rate[order])])
        offsets = np.concatenate([[0.0], np.cumsum((rate * since)[order])])
        n = np.searchsorted(since[order], times)
        return rates[n] * times - offsets[n]  # type: ignore[no-any-return]

    done = np.maximum.accumulate(grown(began) - grown(ended))
    return np.round(done, 6)  # differences of large sums: what is left of nothing is nothing


def _at_once(began: np.ndarray, ended: np.ndarray) -> int:
    """The most parts that were in hand at one time."""
    times = np.concatenate([began + _TOUCH_S, ended])
    steps = np.concatenate([np.ones(len(began), int), -np.ones(len(ended), int)])
    return max(1, int(np.cumsum(steps[np.lexsort((steps, times))]).max(initial=1)))


def _clock(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 120 else duration(float(seconds))  # noqa: PLR2004 - two minutes
