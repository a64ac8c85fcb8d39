"""Ctrl-C and SIGTERM: the first one drains, the second one stops.

Nothing is raised inside a wait, so what is half done is always finished or known. Outside the main
thread there are no signals, and nothing here does anything.
"""

from __future__ import annotations

import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

_ECHO_S = 0.3
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Stop:
    """Whether somebody asked to stop, and how."""

    def __init__(self, first: Callable[[], None]) -> None:
        self._first = first
        self._at = 0.0
        self.exit_code = 0

    def __bool__(self) -> bool:
        """Somebody did."""
        return bool(self.exit_code)

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the handler's signature
        """The signal handler."""
        now = time.monotonic()
        if self and now - self._at < _ECHO_S:
            return  # a job's end is told to the whole group: this is the same signal, passed on
        if self:
            raise KeyboardInterrupt
        self._at = now
        self.exit_code = EXIT_CODES[signal.Signals(number)]
        self._first()


@contextmanager
def draining(first: Callable[[], None]) -> Iterator[Stop]:
    """Call `first` at the first signal; raise KeyboardInterrupt at the second."""
    stop = Stop(first)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in EXIT_CODES}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ignored_by_children() -> Iterator[None]:
    """Processes started meanwhile do not hear the Ctrl-C that the terminal sends to all of them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def term_interrupts() -> Iterator[None]:
    """SIGTERM is a Ctrl-C while nothing drains, so that what was asked of others is taken back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
