"""What a stream can show, and lines at the foot of a terminal that are drawn again in place.

Nothing is hidden and no mode is changed, so whatever ends the process leaves a terminal that works.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import threading
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from scorer.display.tables import width, wrap
from scorer.display.words import visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


_COLOURS = {
    "label": "2", "head": "2", "rest": "2", "bold": "1", "bar": "36", "good": "32", "caution": "33", "bad": "1;31",
}  # fmt: skip
_SIZE = (80, 24)
_CLOSE_S = 1.0
_CAUGHT_BYTES, _ALL_BYTES = 1 << 16, 1 << 24  # of what others print, said at once; and at the end
_FACT = re.compile(r"  \w+: +")
_PASTED = re.compile(r"scorer |['`]")
_LEAST = 20  # columns that a fact keeps when the window is narrow


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """What a stream can show."""

    columns: int | None = None
    """None where nobody looks: lines are as long as they are."""
    rows: int = 24
    colours: bool = False
    lines: bool = False
    """Whether it can show more letters than ASCII has."""

    def paint(self, kind: str, text: str) -> str:
        """In the colour of its kind, if there are colours."""
        return f"\x1b[{_COLOURS[kind]}m{text}\x1b[0m" if self.colours and kind and text else text


def terminal_of(stream: TextIO) -> Terminal:
    """What a stream can show now; asked again each time, because windows change."""
    if not is_terminal(stream):
        return Terminal()
    columns, rows = _SIZE
    with suppress(OSError, ValueError):
        columns, rows = os.get_terminal_size(stream.fileno())
    colours = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    encoding = (stream.encoding or "").lower().replace("-", "")
    return Terminal(columns=columns or _SIZE[0], rows=rows or _SIZE[1], colours=colours, lines=encoding == "utf8")


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at it."""
    with suppress(ValueError):  # it may be closed
        return stream.isatty()
    return False


def is_live(stream: TextIO) -> bool:
    """Whether lines can be drawn again in place."""
    return is_terminal(stream) and os.environ.get("TERM") != "dumb"


def error_text(text: str, look: Terminal) -> str:
    """An error's own lines for a window: facts wrap below themselves; a hint with something to paste stays one line."""
    shown: list[str] = []
    for line in f"Error: {text}".splitlines():
        fact = _FACT.match(line)
        if fact is not None:
            label, indent = fact[0], " " * len(fact[0])
            room = None if look.columns is None else max(look.columns - len(label), _LEAST)
            first, *rest = wrap(line[len(label) :], room)
            shown += [look.paint("label", label) + first, *(indent + more for more in rest)]
        elif line.startswith("Hint: "):
            first, *rest = [line] if _PASTED.search(line) else wrap(line, look.columns)
            shown += [look.paint("bold", "Hint:") + first.removeprefix("Hint:"), *rest]
        else:
            shown += wrap(line, look.columns)
    shown[0] = look.paint("bad", "Error:") + shown[0].removeprefix("Error:")
    return "\n".join(shown)


class LiveLines:
    """Lines at the foot of a terminal; what is said goes above them.

    A frame is one write and erases nothing that stays, so nothing flickers. The cursor rests below the lines, at the
    left: a `^C` that the terminal echoes lands there, and the next frame wipes it away.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._lines: list[str] = []
        self._columns = 0

    def draw(self, lines: Sequence[str], said: Sequence[str] = ()) -> None:
        """Show these lines where the last ones are, and above them what is to stay."""
        now = terminal_of(self.stream)
        lines = list(lines)[: max(1, now.rows - 2)]
        if not said and lines == self._lines and (now.columns or _SIZE[0]) == self._columns:
            return
        columns = now.columns or _SIZE[0]
        up = self._height(columns)
        text = (f"\x1b[{up}A" if up else "") + "\r"
        for line in [*said, *lines]:
            full = width(line) % columns == 0 and line  # the cursor is on the last letter still: it would be wiped
            text += line + ("\n" if full else "\x1b[K\n")
        self._lines, self._columns = lines, columns
        self._write(text + "\x1b[J")

    def clear(self) -> None:
        """Take the lines away."""
        up = self._height(terminal_of(self.stream).columns or _SIZE[0])
        self._lines = []
        if up:
            self._write(f"\x1b[{up}A\r" + "\x1b[K\n" * up + f"\x1b[{up}A")

    def forget(self) -> None:
        """Leave the lines where they are and begin anew below: somebody else has written meanwhile."""
        self._lines = []

    def _height(self, columns: int) -> int:
        """Rows that the lines take: those wider than the window, which may have become narrower, are folded."""
        return sum(max(1, -(-width(line) // columns)) for line in self._lines)

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # the terminal is gone; the run is not
            self.stream.write(text)
            self.stream.flush()


class Watcher:
    """Draws and says under one lock: a signal's handler may come in between."""

    def __init__(self, stream: TextIO, caught: Sequence[CapturedOutput] = ()) -> None:
        self._foot, self._caught = LiveLines(stream), caught
        self._lock = threading.Lock()
        self._waiting: deque[str] = deque()
        self._open = True

    def redraw(self, lines: Sequence[str]) -> None:
        """Draw, with what waits to be said above; left for the next time if somebody is drawing."""
        if not self._open or not self._lock.acquire(blocking=False):
            return
        try:
            self._foot.draw(lines, self._said())
        finally:
            self._lock.release()

    def print_above(self, text: str) -> None:
        """What `show` puts above the lines the next time."""
        self._waiting.append(text)

    def close(self) -> None:
        """Take the lines away, and say what still waits."""
        self._open = False
        self._lock.acquire(timeout=_CLOSE_S)  # whoever was interrupted with it in hand will not be back
        for caught in self._caught:
            caught.close()
        self._foot.clear()
        said = self._said()
        if said:
            self._foot.draw([], said)
        for caught in self._caught:
            caught.release()

    def forget(self) -> None:
        """The shell has written meanwhile."""
        self._foot.forget()

    def _said(self) -> list[str]:
        said = [self._waiting.popleft() for _ in range(len(self._waiting))]
        return [*(line for caught in self._caught for line in caught.lines()), *said]


class CapturedOutput:
    """What anybody prints to a descriptor, worker processes and native code too: kept in a file until it can be said.

    A file never makes its writer wait; a pipe that nobody empties would.
    """

    def __init__(self, stream: TextIO) -> None:
        stream.flush()
        self._stream, self._number = stream, stream.fileno()
        self._kept = os.dup(self._number)
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by `release`
        self._at, self._begun, self._open = 0, b"", True
        os.dup2(self._file.fileno(), self._number)

    def screen(self) -> TextIO:
        """The terminal itself."""
        return open(self._kept, "w", encoding=self._stream.encoding, errors="replace", closefd=False)

    def lines(self) -> list[str]:
        """Whole lines that came since the last time; at the end, what has no end of line, too."""
        data = os.pread(self._file.fileno(), _CAUGHT_BYTES if self._open else _ALL_BYTES, self._at)
        self._at += len(data)
        *lines, self._begun = (self._begun + data).split(b"\n")
        if not self._open and self._begun:
            lines.append(self._begun)
        return [visible(line.decode("utf-8", "replace").rstrip("\r").expandtabs()) for line in lines]

    def close(self) -> None:
        """The descriptor is the terminal again."""
        with suppress(OSError, ValueError):
            self._stream.flush()
        os.dup2(self._kept, self._number)
        self._open = False

    def release(self) -> None:
        """All has been said."""
        self._file.close()
        os.close(self._kept)


@contextmanager
def foot(stream: TextIO) -> Iterator[tuple[Watcher, TextIO]]:
    """Lines at the foot of this terminal; meanwhile, what anybody prints to it goes above them."""
    main = threading.current_thread() is threading.main_thread()
    caught = [
        CapturedOutput(stream),
        *([CapturedOutput(sys.stdout)] if is_terminal(sys.stdout) and sys.stdout is not stream else []),
    ]
    screen = caught[0].screen()
    watcher = Watcher(screen, caught)
    before = signal.signal(signal.SIGCONT, lambda *_: watcher.forget()) if main else None
    try:
        yield watcher, screen
    finally:
        if main:
            signal.signal(signal.SIGCONT, before or signal.SIG_DFL)
        watcher.close()
