"""A run while it goes on: a few lines drawn again in place on a terminal, a line now and then elsewhere.

The same lines show a run in hand to `scorer status`, which knows it from the lock only.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from scorer.display.tables import beside, facts, shorten, wrap
from scorer.display.terminal import Watcher, is_live, live_output, terminal_of
from scorer.display.words import duration, plural, size, time_range, visible
from scorer.events import Notice, PartFailed, PartFinished, PlanReady, Stopping, Tick
from scorer.report.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scorer.display.terminal import Terminal
    from scorer.events import Event, Observer
    from scorer.report.progress import Snapshot


READY = "getting ready: input, model, workers"
DRAW_S = 0.15
LINE_S, LINES_S = 5.0, 60.0  # between lines at first, and after hours: a log is read, not watched
_LATER = 100  # a line for each hundredth of the time gone by
_BAR = 100  # columns of a bar that the eye still takes in
_TWO = 120  # columns from which the facts stand in two blocks
_LABEL = 12  # columns before a fact
_MINUTE_S = 60


def block(seen: Snapshot, look: Terminal) -> list[str]:
    """A run in hand, in a window."""
    columns = (look.columns or 80) - 1  # a letter in the last column would make some terminals fold the line
    two = columns >= _TWO
    room = (columns // 2 if two else columns) - _LABEL - 2
    told = [(name, shorten(text, room)) for name, text in facts_of(seen)]
    half = (len(told) + 1) // 2
    shown = facts(told, None, look.paint)
    lines = beside(shown[:half], shown[half:], columns) if two else shown
    return [_bar(seen, min(columns, _BAR), look), *lines]


def line(seen: Snapshot) -> str:
    """A run in hand, in a log."""
    parts = [
        f"{share_of(seen):4.0%}",
        f"{seen.done:,} of {seen.parts:,} parts",
        f"{seen.rows_per_s_now:,.0f} rows/s, {seen.rows_per_s:,.0f} on average",
        f"{_left(seen)}",
        f"{size(seen.memory_bytes)}" if seen.memory_bytes else "",
        f"{seen.quarantined:,} quarantined" if seen.quarantined else "",
        f"{plural(seen.retried, 'part')} tried again" if seen.retried else "",
        f"{seen.failed:,} failed" if seen.failed else "",
    ]
    return "  ".join(part for part in parts if part)


def share_of(seen: Snapshot) -> float:
    """Of the rows; whole only when all are done."""
    return min(seen.rows_done / seen.rows if seen.rows else 1.0, 1.0 if seen.done == seen.parts else 0.99)


def _bar(seen: Snapshot, columns: int, look: Terminal) -> str:
    share = share_of(seen)
    room = max(columns - 9, 5)
    if look.lines:
        halves = int(2 * room * share)
        full = "━" * (halves // 2) + "╸" * (halves % 2)
        rest = "─" * (room - len(full))
    else:
        full = "#" * int(room * share)
        rest = "." * (room - len(full))
    colour = "bad" if seen.failed else "caution" if seen.stopping else "bar"
    return f"  {look.paint(colour, full)}{look.paint('rest', rest)} {share:4.0%}"


def facts_of(seen: Snapshot) -> list[tuple[str, str]]:
    """What there is to say, a label and a text each; always the same labels, so that nothing jumps."""
    rows = [f"{seen.rows_done:,} of {seen.rows:,}"]
    rows += [f"{seen.quarantined:,} quarantined"] if seen.quarantined else []
    rows += [f"{seen.filtered:,} filtered"] if seen.filtered else []
    parts = [f"{seen.done:,} of {seen.parts:,} committed"]
    parts += [f"{seen.resumed:,} by an earlier run"] if seen.resumed else []
    parts += [f"{seen.retried:,} tried again"] if seen.retried else []
    parts += [f"{seen.failed:,} failed"] if seen.failed else []
    threads = [plural(seen.threads, "thread")] if seen.threads else []
    memory = [f"{size(seen.memory_bytes)} of memory"] if seen.memory_bytes else []
    gone = f"{seen.seconds:.0f} s" if seen.seconds < _MINUTE_S else duration(seen.seconds)
    return [
        ("time", f"{gone}, {_left(seen)}".removesuffix(", ")),
        ("rows", ", ".join(rows)),
        ("speed", f"{seen.rows_per_s_now:,.0f} rows/s now, {seen.rows_per_s:,.0f} on average"),
        ("parts", ", ".join(parts)),
        ("data", f"{size(seen.bytes_read)} read, {size(seen.bytes_written)} written"),
        ("workers", ", ".join([f"{seen.workers:,}" if seen.workers else "?", *threads, *memory])),
        *([("dashboard", seen.dashboard)] if seen.dashboard else []),
    ]


def _left(seen: Snapshot) -> str:
    """Time left, or what is known instead."""
    if seen.done == seen.parts:
        return "publishing"
    if seen.stopping:
        return "stopping"
    if seen.left_s is not None:
        return f"{time_range(*seen.left_s)} left"
    if seen.forecast_s is not None:
        low, high = (max(0.0, end - seen.seconds) for end in seen.forecast_s)
        return f"the plan says {time_range(low, high)} left" if high else ""
    return ""


class Live:
    """Watches a run on a terminal."""

    def __init__(self, stream: TextIO, watcher: Watcher, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._watcher, self._clock = stream, watcher, clock
        self._progress = Progress(clock)
        self._drawn = float("-inf")

    def __call__(self, event: Event) -> None:
        """Take note; draw when it is time, or at once when there is something to say."""
        self._progress(event)
        said = said_of(event)
        for one in wrap(visible(said), terminal_of(self._stream).columns) if said else []:
            self._watcher.print_above(one)
        due = isinstance(event, Tick) and self._clock() - self._drawn >= DRAW_S
        if said or due or (isinstance(event, PartFinished) and self._progress.whole):
            self._drawn = self._clock()
            seen = self._progress.seen()
            self._watcher.redraw([] if seen is None else block(seen, terminal_of(self._stream)))


class Lines:
    """Watches a run where nobody looks: a line every few seconds, fewer when it takes hours."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._progress = Progress(clock)
        self._began = self._told = clock()

    def __call__(self, event: Event) -> None:
        """Take note, and write when there is something to say or it is time."""
        self._progress(event)
        now = self._clock()
        if isinstance(event, PlanReady):
            self._began = self._told = now
        said = said_of(event)
        if said:
            self._write(said)
        elif isinstance(event, Tick) and now - self._told >= min(max(LINE_S, (now - self._began) / _LATER), LINES_S):
            seen = self._progress.seen()
            if seen is not None:
                self._told = now
                self._write(line(seen))

    def _write(self, text: str) -> None:
        self._stream.write(visible(text) + "\n")
        self._stream.flush()


def said_of(event: Event) -> str:
    """What an event says in words; '' for most."""
    match event:
        case PlanReady():
            done = f", {event.done:,} of them done before" if event.done else ""
            return f"scoring {event.rows:,} rows in {plural(event.parts, 'part')}{done}, on {event.where}"
        case PartFailed():
            return f"part {event.part} failed: {event.error.splitlines()[0]}"
        case Notice() | Stopping():
            return event.text
    return ""


@contextmanager
def watching(stream: TextIO, *, quiet: bool = False, still: bool = False) -> Iterator[tuple[Observer, ...]]:
    """Who watches a run from this stream; the terminal is left as it was, however the run ends.

    `still` gives lines that stay, also on a terminal: a debugger may have something to say in between.
    """
    if quiet:
        yield ()
    elif is_live(stream) and not still:
        with live_output(stream) as (watcher, screen):
            watcher.redraw([terminal_of(screen).paint("label", f"  {READY}")])
            yield (Live(screen, watcher),)
    else:
        yield (Lines(stream),)


def follow(again: Callable[[], list[str] | None], stream: TextIO, every_s: float) -> None:
    """Show what `again` gives, in place on a terminal, until it gives None or somebody interrupts."""
    watcher = Watcher(stream) if is_live(stream) else None
    before: list[str] = []
    try:
        while (lines := again()) is not None:
            if watcher is not None:
                watcher.redraw(lines)
            elif lines != before:
                stream.write("\n".join(lines) + "\n")
                stream.flush()
            before = lines
            time.sleep(every_s)
    except KeyboardInterrupt:
        pass
    finally:
        if watcher is not None:
            watcher.close()
