"""Ctrl-C and SIGTERM: the first one drains, the second one stops.

Nothing is raised inside a wait, so what is half done is always finished or known. Outside the main
thread there are no signals, and nothing here does anything.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


AT_ONCE = "stopped at once; committed parts are kept, repeat the command to go on"
"""What a KeyboardInterrupt means."""
_ECHO_S = 0.3
_DEAF_S = 10.0
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


@dataclass(frozen=True, slots=True)
class Origin:
    """A process to whose whole group a terminal sends Ctrl-C, and a notebook its interrupt."""

    host: str
    pid: int
    group: int

    @classmethod
    def here(cls) -> Origin:
        """The one that asks."""
        return cls(socket.gethostname(), os.getpid(), os.getpgrp())


class InterruptFilter:
    """A handler that lets no interrupt through while runs go on, and for a while after; then as if it was not there.

    A while, because whoever interrupts twice means the driver both times.
    """

    def __init__(self, before: Callable[[int, FrameType | None], object]) -> None:
        self._before = before
        self._runs, self._until = 0, 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if not self._runs and time.monotonic() >= self._until:
            self._before(number, frame)

    def run(self) -> Callable[[], None]:
        """A run has begun; what comes back ends it."""
        self._runs += 1
        return self._ended

    def _ended(self) -> None:
        self._runs -= 1
        self._until = time.monotonic() + _DEAF_S


def ignore_interrupts_from(driver: Origin) -> Callable[[], None]:
    """Ignore interrupts that are meant for the driver and reach this process as well, until what comes back is called.

    Workers of a cluster that was started in the driver's process are in its group, and would end with their parts.
    """
    here = Origin.here()
    main = threading.current_thread() is threading.main_thread()
    if (here.host, here.group) == (driver.host, driver.group) and here.pid != driver.pid and main:
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):  # it is not ignored already
            deaf = handler if isinstance(handler, InterruptFilter) else InterruptFilter(handler)
            signal.signal(signal.SIGINT, deaf)
            return deaf.run()
    return lambda: None


@contextmanager
def ignored_by_children() -> Iterator[None]:
    """Processes started meanwhile do not hear the Ctrl-C that the terminal sends to all of them; ours comes afterwards.

    A signal that is blocked is blocked in whatever is started, too, and in every thread that starts something. Threads
    that were there before may still take it: then it is noted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)  # one that waits is heard here
        if noted:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def keep_handlers() -> Iterator[None]:
    """What is imported meanwhile does not change what an interrupt does."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is not before:
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
