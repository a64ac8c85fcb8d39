"""Progress of a run in a notebook cell: one display, redrawn in place a few times a second.

IPython is used only if it is already loaded. Nothing is drawn in a signal handler, and drawing never blocks the run.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from scorer.display import html
from scorer.display.blocks import Facts, Meter, Meters, Words
from scorer.display.terminal import Terminal
from scorer.display.words import plural
from scorer.events import PartFailed, PartFinished, Stopping, Tick
from scorer.host.signals import INTERRUPTED_TEXT
from scorer.report import live
from scorer.report.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from scorer.display.blocks import Block
    from scorer.events import Event, Observer
    from scorer.report.outcome import Report
    from scorer.report.progress import Snapshot


DRAW_S = 0.25
_MESSAGES = 8  # most messages that are shown
_TERMINAL = Terminal(columns=80, lines=True)


class Watch:
    """The observers of a run, and the cell that shows it, if any."""

    def __init__(self, observers: Sequence[Observer], cell: Cell | None = None) -> None:
        self._cell = cell
        self.observers = (*observers, cell) if cell is not None else tuple(observers)

    def ended(self, report: Report) -> Report:
        """Show the report's summary as the last line of the cell; return the report."""
        if self._cell is not None:
            self._cell.end(report.summary if report.already_done else f"{report.summary}; {report.speed}")
        return report


class Cell:
    """An observer that shows a run in a cell; `end` replaces the progress with one line."""

    def __init__(self, show: Callable[[dict[str, str]], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._show, self._clock = show, clock
        self._progress = Progress(clock)
        self._messages: deque[tuple[str, str]] = deque(maxlen=_MESSAGES)
        self._dropped = 0
        self._drawn = float("-inf")
        self._draw([Words(live.READY, tone="soft")], live.READY)

    def __call__(self, event: Event) -> None:
        """Count the event; redraw the cell if it is due."""
        self._progress(event)
        message = live.message_of(event)
        if message:
            self._dropped += len(self._messages) == _MESSAGES
            self._messages.append((message, "bad" if isinstance(event, PartFailed) else ""))
        if isinstance(event, Stopping):  # sent by a signal handler, which may have interrupted a drawing
            return
        last = isinstance(event, PartFinished) and self._progress.complete
        if last or ((message or isinstance(event, Tick)) and self._clock() - self._drawn >= DRAW_S):
            snapshot = self._progress.snapshot()
            if snapshot is None:
                self._draw([*self._shown_messages(), Words(live.READY, tone="soft")], live.READY)
            else:
                self._draw([*self._shown_messages(), *_blocks(snapshot)], "\n".join(live.block(snapshot, _TERMINAL)))

    def end(self, text: str, tone: str = "good") -> None:
        """Show the messages and this line, without the progress."""
        words = [Words(text, tone=tone)] if text else []
        self._draw([*self._shown_messages(), *words], text)

    def abort(self) -> None:
        """Show how many parts are committed, when an exception ends the run; the notebook shows the exception."""
        snapshot = self._progress.snapshot()
        self.end("" if snapshot is None else f"parts: {dict(live.facts_of(snapshot))['parts']}", "bad")

    def _shown_messages(self) -> list[Words]:
        """Return the last messages, and how many came before them."""
        earlier = [Words(f"... {plural(self._dropped, 'earlier message')}", tone="soft")] if self._dropped else []
        return [*earlier, *(Words(text, tone=tone) for text, tone in list(self._messages))]

    def _draw(self, blocks: Sequence[Block], text: str) -> None:
        self._drawn = self._clock()
        messages = [words.text for words in self._shown_messages()]
        with suppress(Exception):  # the front end may be disconnected: the run continues
            self._show({"text/html": html.card("", blocks), "text/plain": "\n".join([*messages, text])})


def _blocks(snapshot: Snapshot) -> list[Block]:
    """Return the progress bar and the facts below it."""
    share = live.share_of(snapshot)
    tint = "bad" if snapshot.failed else "warn" if snapshot.stopping else "bar"
    return [Meters([Meter("", round(100 * share), f"{share:.0%}", tint)]), Facts(live.facts_of(snapshot))]


def in_kernel() -> bool:
    """Return whether this process is a notebook kernel; IPython in a terminal cannot redraw in place."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


@contextmanager
def watching(progress: bool | None, observers: Sequence[Observer]) -> Iterator[Watch]:  # noqa: FBT001 - the public keyword
    """Give these observers, and a display if `progress` is True; by default in a notebook if there are no observers."""
    shown = in_kernel() and not observers if progress is None else progress
    if not shown:
        with _short_interrupts():
            yield Watch(observers)
    elif not in_kernel():
        with live.watching(sys.stderr) as more:
            yield Watch([*observers, *more])
    else:
        cell = Cell(_display())
        try:
            with _short_interrupts():
                yield Watch(observers, cell)
        except BaseException:
            cell.abort()
            raise


def _display() -> Callable[[dict[str, str]], None]:
    """Return a function that shows something in the cell's output, and replaces it when called again."""
    from IPython.display import display  # noqa: PLC0415 - already loaded in a kernel

    handle: Any = None

    def show(forms: dict[str, str]) -> None:
        nonlocal handle
        if handle is None:
            handle = display(forms, raw=True, display_id=True)
        else:
            handle.update(forms, raw=True)

    return show


@contextmanager
def _short_interrupts() -> Iterator[None]:
    """Show a KeyboardInterrupt in a notebook as one line, without its traceback."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt._render_traceback_ = lambda: [f"KeyboardInterrupt: {INTERRUPTED_TEXT}"]  # type: ignore[attr-defined]
        raise
