"""What a stream can show, and lines at the bottom of a terminal that are redrawn in place.

The cursor is never hidden and no terminal mode is changed, so the terminal works however the process ends.
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
_SIZE = (80, 24)  # columns and rows, if the terminal does not report them
_CLOSE_S = 1.0  # longest wait for the drawing lock at the end
_FRAME_BYTES, _END_BYTES = 1 << 16, 1 << 24  # captured output shown above one frame, and at the end
_FACT = re.compile(r"  \w+: +")
_COPYABLE = re.compile(r"scorer |['`]")  # a hint with a command or a name to copy
_MIN_FACT = 20  # columns that a fact keeps in a narrow window


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """What a stream can show."""

    columns: int | None = None
    """Width; None if the stream is no terminal, and lines are not wrapped."""
    rows: int = 24
    colours: bool = False
    lines: bool = False
    """Whether it can show characters beyond ASCII."""

    def paint(self, kind: str, text: str) -> str:
        """Return the text in the colour of its kind, if the stream shows colours."""
        return f"\x1b[{_COLOURS[kind]}m{text}\x1b[0m" if self.colours and kind and text else text


def terminal_of(stream: TextIO) -> Terminal:
    """Return what a stream can show now; call it for each frame, because windows are resized."""
    if not is_terminal(stream):
        return Terminal()
    columns, rows = _SIZE
    with suppress(OSError, ValueError):
        columns, rows = os.get_terminal_size(stream.fileno())
    colours = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    encoding = (stream.encoding or "").lower().replace("-", "")
    return Terminal(columns=columns or _SIZE[0], rows=rows or _SIZE[1], colours=colours, lines=encoding == "utf8")


def is_terminal(stream: TextIO) -> bool:
    """Return whether a stream is a terminal."""
    with suppress(ValueError):  # the stream may be closed
        return stream.isatty()
    return False


def is_live(stream: TextIO) -> bool:
    """Return whether lines can be redrawn in place."""
    return is_terminal(stream) and os.environ.get("TERM") != "dumb"


def error_text(text: str, terminal: Terminal) -> str:
    """Return an error wrapped for a terminal; a hint with a command or a name to copy stays on one line."""
    shown: list[str] = []
    for line in f"Error: {text}".splitlines():
        fact = _FACT.match(line)
        if fact is not None:
            label, indent = fact[0], " " * len(fact[0])
            available = None if terminal.columns is None else max(terminal.columns - len(label), _MIN_FACT)
            first, *rest = wrap(line[len(label) :], available)
            shown += [terminal.paint("label", label) + first, *(indent + more for more in rest)]
        elif line.startswith("Hint: "):
            first, *rest = [line] if _COPYABLE.search(line) else wrap(line, terminal.columns)
            shown += [terminal.paint("bold", "Hint:") + first.removeprefix("Hint:"), *rest]
        else:
            shown += wrap(line, terminal.columns)
    shown[0] = terminal.paint("bad", "Error:") + shown[0].removeprefix("Error:")
    return "\n".join(shown)


class LiveLines:
    """Lines at the bottom of a terminal that are redrawn in place; other text is printed above them.

    A frame is a single write and erases nothing that stays, so nothing flickers. Between frames the cursor is below the
    lines, at the left: if the terminal echoes `^C` there, the next frame erases it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._lines: list[str] = []
        self._columns = 0

    def draw(self, lines: Sequence[str], above: Sequence[str] = ()) -> None:
        """Replace the current lines with these; print `above` before them, to stay."""
        terminal = terminal_of(self.stream)
        lines = list(lines)[: max(1, terminal.rows - 2)]
        if not above and lines == self._lines and (terminal.columns or _SIZE[0]) == self._columns:
            return
        columns = terminal.columns or _SIZE[0]
        up = self._height(columns)
        text = (f"\x1b[{up}A" if up else "") + "\r"
        for line in [*above, *lines]:
            full = width(line) % columns == 0 and line  # the cursor is still on the last letter: no erasing here
            text += line + ("\n" if full else "\x1b[K\n")
        self._lines, self._columns = lines, columns
        self._write(text + "\x1b[J")

    def clear(self) -> None:
        """Erase the lines."""
        up = self._height(terminal_of(self.stream).columns or _SIZE[0])
        self._lines = []
        if up:
            self._write(f"\x1b[{up}A\r" + "\x1b[K\n" * up + f"\x1b[{up}A")

    def forget(self) -> None:
        """Leave the lines where they are and draw below them next time, because another program has written."""
        self._lines = []

    def _height(self, columns: int) -> int:
        """Return the rows that the lines take; lines wider than the window, which may have shrunk, take several."""
        return sum(max(1, -(-width(line) // columns)) for line in self._lines)

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # the terminal was closed; the run continues
            self.stream.write(text)
            self.stream.flush()


class Watcher:
    """Draws live lines and prints above them, under one lock, because a signal handler may interrupt the drawing."""

    def __init__(self, stream: TextIO, captured: Sequence[CapturedOutput] = ()) -> None:
        self._live, self._captured = LiveLines(stream), captured
        self._lock = threading.Lock()
        self._pending: deque[str] = deque()
        self._open = True

    def redraw(self, lines: Sequence[str]) -> None:
        """Draw the lines, and print pending text above them; do nothing if another thread is drawing."""
        if not self._open or not self._lock.acquire(blocking=False):
            return
        try:
            self._live.draw(lines, self._take_pending())
        finally:
            self._lock.release()

    def print_above(self, text: str) -> None:
        """Print this text above the lines at the next `redraw`."""
        self._pending.append(text)

    def close(self) -> None:
        """Erase the lines, and print all pending text."""
        self._open = False
        self._lock.acquire(timeout=_CLOSE_S)  # a `redraw` that was interrupted while it held the lock never releases it
        for captured in self._captured:
            captured.close()
        self._live.clear()
        pending = self._take_pending()
        if pending:
            self._live.draw([], pending)
        for captured in self._captured:
            captured.release()

    def forget(self) -> None:
        """Draw below the current position next time, because the shell has written."""
        self._live.forget()

    def _take_pending(self) -> list[str]:
        pending = [self._pending.popleft() for _ in range(len(self._pending))]
        return [*(line for captured in self._captured for line in captured.lines()), *pending]


class CapturedOutput:
    """Captures in a file all output to a descriptor, that of worker processes and native code included.

    A file never blocks its writer; a full pipe would.
    """

    def __init__(self, stream: TextIO) -> None:
        stream.flush()
        self._stream, self._descriptor = stream, stream.fileno()
        self._original = os.dup(self._descriptor)
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by `release`
        self._offset, self._partial, self._open = 0, b"", True
        os.dup2(self._file.fileno(), self._descriptor)

    def screen(self) -> TextIO:
        """Return a stream to the terminal itself."""
        return open(self._original, "w", encoding=self._stream.encoding, errors="replace", closefd=False)

    def lines(self) -> list[str]:
        """Return the complete lines since the last call; after `close`, also a last line without a line end."""
        data = os.pread(self._file.fileno(), _FRAME_BYTES if self._open else _END_BYTES, self._offset)
        self._offset += len(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        if not self._open and self._partial:
            lines.append(self._partial)
        return [visible(line.decode("utf-8", "replace").rstrip("\r").expandtabs()) for line in lines]

    def close(self) -> None:
        """Connect the descriptor to the terminal again."""
        with suppress(OSError, ValueError):
            self._stream.flush()
        os.dup2(self._original, self._descriptor)
        self._open = False

    def release(self) -> None:
        """Close the capture file."""
        self._file.close()
        os.close(self._original)


@contextmanager
def live_output(stream: TextIO) -> Iterator[tuple[Watcher, TextIO]]:
    """Show live lines on this terminal inside the block; output of other code is printed above them."""
    main = threading.current_thread() is threading.main_thread()
    captured = [
        CapturedOutput(stream),
        *([CapturedOutput(sys.stdout)] if is_terminal(sys.stdout) and sys.stdout is not stream else []),
    ]
    screen = captured[0].screen()
    watcher = Watcher(screen, captured)
    replaced = signal.signal(signal.SIGCONT, lambda *_: watcher.forget()) if main else None
    try:
        yield watcher, screen
    finally:
        if main:
            signal.signal(signal.SIGCONT, replaced or signal.SIG_DFL)
        watcher.close()
