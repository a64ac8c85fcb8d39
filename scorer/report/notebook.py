"""A run while it goes on, in the cell of a notebook: one display, drawn again in place a few times a second.

Knows IPython only where somebody has loaded it. Nothing is drawn in a signal's handler, and drawing waits for nobody.
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
_SAID = 8  # sentences that stay in sight
_LOOK = Terminal(columns=80, lines=True)


class Watch:
    """Who watches a run, and what is left to see of it."""

    def __init__(self, observers: Sequence[Observer], cell: Cell | None = None) -> None:
        self._cell = cell
        self.observers = (*observers, cell) if cell is not None else tuple(observers)

    def ended(self, report: Report) -> Report:
        """The run's last line; hands the report on."""
        if self._cell is not None:
            self._cell.end(report.summary if report.already_done else f"{report.summary}; {report.speed}")
        return report


class Cell:
    """Watches a run in a cell; `end` leaves one line."""

    def __init__(self, show: Callable[[dict[str, str]], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._show, self._clock = show, clock
        self._progress = Progress(clock)
        self._said: deque[tuple[str, str]] = deque(maxlen=_SAID)
        self._unsaid = 0
        self._drawn = float("-inf")
        self._draw([Words(live.READY, tone="soft")], live.READY)

    def __call__(self, event: Event) -> None:
        """Take note; draw when it is time."""
        self._progress(event)
        said = live.said_of(event)
        if said:
            self._unsaid += len(self._said) == _SAID
            self._said.append((said, "bad" if isinstance(event, PartFailed) else ""))
        if isinstance(event, Stopping):  # a signal's handler, maybe in the middle of a drawing
            return
        last = isinstance(event, PartFinished) and self._progress.whole
        if last or ((said or isinstance(event, Tick)) and self._clock() - self._drawn >= DRAW_S):
            seen = self._progress.seen()
            if seen is None:
                self._draw([*self._words(), Words(live.READY, tone="soft")], live.READY)
            else:
                self._draw([*self._words(), *_blocks(seen)], "\n".join(live.block(seen, _LOOK)))

    def end(self, text: str, tone: str = "good") -> None:
        """Leave what was said, and this line."""
        words = [Words(text, tone=tone)] if text else []
        self._draw([*self._words(), *words], text)

    def cut_off(self) -> None:
        """Something ended the run, and says so itself: leave how far it came."""
        seen = self._progress.seen()
        self.end("" if seen is None else f"parts: {dict(live.facts_of(seen))['parts']}", "bad")

    def _words(self) -> list[Words]:
        """What was said; of much, the last."""
        before = [Words(f"... {self._unsaid:,} before", tone="soft")] if self._unsaid else []
        return [*before, *(Words(text, tone=tone) for text, tone in list(self._said))]

    def _draw(self, blocks: Sequence[Block], text: str) -> None:
        self._drawn = self._clock()
        said = [words.text for words in self._words()]
        with suppress(Exception):  # a front end that is gone is no reason to end a run
            self._show({"text/html": html.card("", blocks), "text/plain": "\n".join([*said, text])})


def _blocks(seen: Snapshot) -> list[Block]:
    """The bar, and the facts below it."""
    share = live.share_of(seen)
    tint = "bad" if seen.failed else "warn" if seen.stopping else "bar"
    return [Meters([Meter("", round(100 * share), f"{share:.0%}", tint)]), Facts(live.facts_of(seen))]


def in_kernel() -> bool:
    """Whether a front end shows what this process displays; a terminal's IPython cannot draw again in place."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


@contextmanager
def watching(progress: bool | None, observers: Sequence[Observer]) -> Iterator[Watch]:  # noqa: FBT001 - the public keyword
    """Who watches a run besides these: whoever `progress` asks for, by default the cell where nobody else does."""
    asked = in_kernel() and not observers if progress is None else progress
    if not asked:
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
            cell.cut_off()
            raise


def _display() -> Callable[[dict[str, str]], None]:
    """A new place in the cell's output, where things can be shown one after the other."""
    from IPython.display import display  # noqa: PLC0415 - it is loaded already

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
    """A KeyboardInterrupt says in a notebook what it means, and not where it came by."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt._render_traceback_ = lambda: [f"KeyboardInterrupt: {INTERRUPTED_TEXT}"]  # type: ignore[attr-defined]
        raise
