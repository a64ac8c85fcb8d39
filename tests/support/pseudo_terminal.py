"""A small terminal emulator, and a command on a real pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import unicodedata

_TOKEN = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|(\x1b.)|([\x00-\x1f])|(.)", re.DOTALL)


class Screen:
    """The characters on the screen; lines that scroll off the top are kept in `gone`. Long lines wrap at the edge."""

    def __init__(self, columns=80, rows=24):
        self.columns, self.rows = columns, rows
        self.gone: list[str] = []
        self.grid: list[list[str]] = [[]]
        self.folded: list[bool] = [False]  # whether a line continues the line before it
        self.row = self.column = 0
        self.hidden = False

    def feed(self, text):
        """Process some output."""
        for numbers, command, _, control, letter in _TOKEN.findall(text):
            if command:
                self._command(numbers, command)
            elif control:
                self._control(control)
            elif letter:
                self._put(letter)
        return self

    @property
    def lines(self):
        """The visible lines, without trailing spaces and trailing empty lines."""
        return "\n".join("".join(row).rstrip() for row in self.grid).rstrip("\n").split("\n")

    @property
    def text(self):
        """All lines, those that scrolled away included."""
        return "\n".join([*self.gone, *self.lines])

    def resize(self, columns):
        """Change the width: lines that are now too long wrap, and wrapped lines join again, as in most terminals."""
        whole: list[list[str]] = []
        at = 0
        for n, (row, folded) in enumerate(zip(self.grid, self.folded, strict=True)):
            if folded:
                whole[-1] += row
            else:
                whole.append(list(row))
            if n == self.row:
                at = len(whole) - 1
        self.columns, self.grid, self.folded = columns, [], []
        for n, row in enumerate(whole):
            if n == at:
                self.row = len(self.grid)
            pieces = [row[i : i + columns] for i in range(0, len(row), columns)] or [[]]
            self.grid += pieces
            self.folded += [i > 0 for i in range(len(pieces))]
        return self

    def _command(self, numbers, command):
        count = int(numbers) if numbers.isdigit() else 0
        if command == "A":
            self.row = max(0, self.row - max(count, 1))
        elif command == "K":
            del self.grid[self.row][self.column :]
        elif command == "J" and count == 0:
            del self.grid[self.row][self.column :]
            del self.grid[self.row + 1 :], self.folded[self.row + 1 :]
        elif command in "hl" and numbers == "?25":
            self.hidden = command == "l"
        elif command != "m":
            msg = f"a command this terminal does not know: {numbers}{command}"
            raise AssertionError(msg)

    def _control(self, control):
        if control == "\n":
            self._down(folded=False)
            self.column = 0  # the driver sends \r\n; a bare \n does the same here
        elif control == "\r":
            self.column = 0

    def _down(self, *, folded):
        self.row += 1
        if self.row == len(self.grid):
            self.grid.append([])
            self.folded.append(folded)
        if len(self.grid) > self.rows:
            self.gone.append("".join(self.grid.pop(0)).rstrip())
            self.folded.pop(0)
            self.row -= 1

    def _put(self, letter):
        if unicodedata.combining(letter):
            self.grid[self.row][self.column - 1] += letter
            return
        wide = 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if self.column + wide > self.columns:
            self._down(folded=True)
            self.column = 0
        row = self.grid[self.row]
        row += " " * (self.column + wide - len(row))
        row[self.column : self.column + wide] = [letter, ""][:wide]
        self.column += wide


class PseudoTerminal:
    """A command on a pseudo-terminal of its own, with a keyboard and a screen."""

    def __init__(self, *arguments, columns=80, rows=24, cwd=None, **environment):
        self.screen = Screen(columns, rows)
        self.output = ""
        self._master, slave = pty.openpty()
        self.resize(columns, rows)
        known = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "PYTHONDONTWRITEBYTECODE"}}

        def controlled():
            os.setsid()
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell that runs the tests in the background ignores it
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, "-m", "scorer", *map(str, arguments)], stdin=slave, stdout=slave, stderr=slave, cwd=cwd,
            preexec_fn=controlled,  # noqa: PLW1509 - it only makes the terminal the child's own
            env=known | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"} | environment,
        )  # fmt: skip
        os.close(slave)

    def resize(self, columns, rows=24):
        """Change the size of the window."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text):
        """Send keys."""
        os.write(self._master, text.encode())

    def until(self, wanted, timeout=60):
        """Read until the screen contains the text, or until the function of the screen is true."""
        seen = wanted if callable(wanted) else lambda screen: wanted in screen.text
        ends = time.monotonic() + timeout
        while not seen(self.screen):
            assert time.monotonic() < ends, self.screen.text
            assert self._read(), self.screen.text
        return self.screen

    def end(self, timeout=90):
        """Read to the end; return the exit code."""
        ends = time.monotonic() + timeout
        while self._read():
            assert time.monotonic() < ends, self.screen.text
        os.close(self._master)
        return self.process.wait(timeout)

    def _read(self):
        """Read some output; return False at the end of the output."""
        if not select.select([self._master], [], [], 0.5)[0]:
            return True
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # Linux: the other side is closed
            return False
        self.output += (text := data.decode("utf-8", "replace"))
        self.screen.feed(text)
        return bool(data)
