"""Progress of a run as text: lines redrawn in place on a terminal, otherwise a line every few seconds.

`scorer status` shows the same lines, from the numbers in the lock file.
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
LINE_S, LINES_S = 5.0, 60.0  # between lines at the start, and after hours: a log of a long run stays readable
_LINES_PER_RUN = 100  # between both limits, a line whenever the run has become 1 % longer
_BAR = 100  # most columns of the progress bar
_TWO_BLOCKS = 120  # from this width on, the facts are shown in two blocks
_LABEL = 12  # columns of a label
_MINUTE_S = 60


def block(progress: Snapshot, terminal: Terminal) -> list[str]:
    """Return the progress bar and the facts below it, for a terminal."""
    columns = (terminal.columns or 80) - 1  # some terminals wrap a line whose last column is used
    two = columns >= _TWO_BLOCKS
    room = (columns // 2 if two else columns) - _LABEL - 2
    pairs = [(name, shorten(text, room)) for name, text in facts_of(progress)]
    half = (len(pairs) + 1) // 2
    shown = facts(pairs, None, terminal.paint)
    lines = beside(shown[:half], shown[half:], columns) if two else shown
    return [_bar(progress, min(columns, _BAR), terminal), *lines]


def line(progress: Snapshot) -> str:
    """Return the progress as one line, for a log."""
    parts = [
        f"{share_of(progress):4.0%}",
        f"{progress.done:,} of {progress.parts:,} parts",
        f"{progress.rows_per_s_now:,.0f} rows/s, {progress.rows_per_s:,.0f} on average",
        _remaining(progress),
        f"{size(progress.memory_bytes)}" if progress.memory_bytes else "",
        f"{progress.quarantined:,} quarantined" if progress.quarantined else "",
        f"{plural(progress.retried, 'part')} retried" if progress.retried else "",
        f"{progress.failed:,} failed" if progress.failed else "",
    ]
    return "  ".join(part for part in parts if part)


def share_of(progress: Snapshot) -> float:
    """Return the share of finished rows, 1 only if all parts are committed."""
    return min(
        progress.rows_done / progress.rows if progress.rows else 1.0, 1.0 if progress.done == progress.parts else 0.99
    )


def _bar(progress: Snapshot, columns: int, terminal: Terminal) -> str:
    share = share_of(progress)
    room = max(columns - 9, 5)
    if terminal.lines:
        halves = int(2 * room * share)
        full = "━" * (halves // 2) + "╸" * (halves % 2)
        rest = "─" * (room - len(full))
    else:
        full = "#" * int(room * share)
        rest = "." * (room - len(full))
    colour = "bad" if progress.failed else "caution" if progress.stopping else "bar"
    return f"  {terminal.paint(colour, full)}{terminal.paint('rest', rest)} {share:4.0%}"


def facts_of(progress: Snapshot) -> list[tuple[str, str]]:
    """Return labels and texts; always the same labels, so that no line moves when it is redrawn."""
    rows = [f"{progress.rows_done:,} of {progress.rows:,}"]
    rows += [f"{progress.quarantined:,} quarantined"] if progress.quarantined else []
    rows += [f"{progress.filtered:,} filtered"] if progress.filtered else []
    parts = [f"{progress.done:,} of {progress.parts:,} committed"]
    parts += [f"{progress.resumed:,} from an earlier run"] if progress.resumed else []
    parts += [f"{progress.retried:,} retried"] if progress.retried else []
    parts += [f"{progress.failed:,} failed"] if progress.failed else []
    threads = [plural(progress.threads, "thread")] if progress.threads else []
    memory = [f"{size(progress.memory_bytes)} of memory"] if progress.memory_bytes else []
    elapsed = f"{progress.seconds:.0f} s" if progress.seconds < _MINUTE_S else duration(progress.seconds)
    return [
        ("time", f"{elapsed}, {_remaining(progress)}".removesuffix(", ")),
        ("rows", ", ".join(rows)),
        ("speed", f"{progress.rows_per_s_now:,.0f} rows/s now, {progress.rows_per_s:,.0f} on average"),
        ("parts", ", ".join(parts)),
        ("data", f"{size(progress.bytes_read)} read, {size(progress.bytes_written)} written"),
        ("workers", ", ".join([f"{progress.workers:,}" if progress.workers else "?", *threads, *memory])),
        *([("dashboard", progress.dashboard)] if progress.dashboard else []),
    ]


def _remaining(progress: Snapshot) -> str:
    """Return the remaining time: measured, else from the forecast; '' if both are unknown."""
    if progress.done == progress.parts:
        return "publishing"
    if progress.stopping:
        return "stopping"
    if progress.left_s is not None:
        return f"{time_range(*progress.left_s)} left"
    if progress.forecast_s is not None:
        low, high = (max(0.0, end - progress.seconds) for end in progress.forecast_s)
        return f"{time_range(low, high)} left (forecast)" if high else ""
    return ""


class Live:
    """An observer that shows a run on a terminal, in lines that are redrawn in place."""

    def __init__(self, stream: TextIO, watcher: Watcher, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._watcher, self._clock = stream, watcher, clock
        self._progress = Progress(clock)
        self._drawn = float("-inf")

    def __call__(self, event: Event) -> None:
        """Count the event; print its message, and redraw the lines if they are due."""
        self._progress(event)
        message = message_of(event)
        for one in wrap(visible(message), terminal_of(self._stream).columns) if message else []:
            self._watcher.print_above(one)
        due = isinstance(event, Tick) and self._clock() - self._drawn >= DRAW_S
        if message or due or (isinstance(event, PartFinished) and self._progress.complete):
            self._drawn = self._clock()
            snapshot = self._progress.snapshot()
            self._watcher.redraw([] if snapshot is None else block(snapshot, terminal_of(self._stream)))


class Lines:
    """An observer that writes a line every few seconds to a log, and fewer when the run takes hours."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._progress = Progress(clock)
        self._began = self._written = clock()

    def __call__(self, event: Event) -> None:
        """Count the event; write its message, or a line of progress if one is due."""
        self._progress(event)
        now = self._clock()
        if isinstance(event, PlanReady):
            self._began = self._written = now
        message = message_of(event)
        if message:
            self._write(message)
        elif isinstance(event, Tick) and now - self._written >= min(
            max(LINE_S, (now - self._began) / _LINES_PER_RUN), LINES_S
        ):
            snapshot = self._progress.snapshot()
            if snapshot is not None:
                self._written = now
                self._write(line(snapshot))

    def _write(self, text: str) -> None:
        self._stream.write(visible(text) + "\n")
        self._stream.flush()


def message_of(event: Event) -> str:
    """Return the message of an event; '' for most."""
    match event:
        case PlanReady():
            done = f", {event.done:,} of them already done" if event.done else ""
            return f"scoring {event.rows:,} rows in {plural(event.parts, 'part')}{done}, on {event.where}"
        case PartFailed():
            return f"part {event.part} failed: {event.error.splitlines()[0]}"
        case Notice() | Stopping():
            return event.text
    return ""


@contextmanager
def watching(stream: TextIO, *, quiet: bool = False, still: bool = False) -> Iterator[tuple[Observer, ...]]:
    """Give the observers that show a run on this stream; the terminal is restored however the run ends.

    With `still`, nothing is redrawn in place, because a debugger may use the terminal too.
    """
    if quiet:
        yield ()
    elif is_live(stream) and not still:
        with live_output(stream) as (watcher, screen):
            watcher.redraw([terminal_of(screen).paint("label", f"  {READY}")])
            yield (Live(screen, watcher),)
    else:
        yield (Lines(stream),)


def follow(next_lines: Callable[[], list[str] | None], stream: TextIO, every_s: float) -> None:
    """Show the lines that `next_lines` returns, in place on a terminal, until it returns None or Ctrl-C is pressed."""
    watcher = Watcher(stream) if is_live(stream) else None
    before: list[str] = []
    try:
        while (lines := next_lines()) is not None:
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
