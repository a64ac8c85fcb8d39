"""Ctrl-C and SIGTERM: the first signal finishes the running parts, the second one stops immediately.

The first signal raises no exception: the run sees the request between two parts, so no part is left half done.
Python handles signals in the main thread only, so these functions do nothing in other threads.
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


INTERRUPTED_TEXT = "stopped immediately; committed parts are kept, run the same command again to continue"
"""Shown for a KeyboardInterrupt."""
_REPEAT_S = 0.3  # a signal that comes sooner is a copy of the one before
_IGNORE_S = 10.0  # after a run, during which a worker still ignores interrupts
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Stop:
    """A signal handler that records the request to stop: true once a signal was received."""

    def __init__(self, on_first: Callable[[], None]) -> None:
        self._on_first = on_first
        self._received = 0.0
        self.exit_code = 0

    def __bool__(self) -> bool:
        """Return whether a signal was received."""
        return bool(self.exit_code)

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the handler's signature
        """Call `on_first` at the first signal; raise KeyboardInterrupt at the second."""
        now = time.monotonic()
        if self and now - self._received < _REPEAT_S:
            return  # a queue signals the whole process group, and the parent forwards it: this is the same signal
        if self:
            raise KeyboardInterrupt
        self._received = now
        self.exit_code = EXIT_CODES[signal.Signals(number)]
        self._on_first()


def interrupts_are_ignored() -> bool:
    """Return whether this process ignores Ctrl-C."""
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@contextmanager
def draining(on_first: Callable[[], None]) -> Iterator[Stop]:
    """Handle Ctrl-C and SIGTERM inside the block: call `on_first` first, raise KeyboardInterrupt the second time.

    Ctrl-C stays ignored if it is: a script's shell ignores it for a command that it starts in the background.
    """
    stop = Stop(on_first)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handled = [number for number in EXIT_CODES if number != signal.SIGINT or not interrupts_are_ignored()]
    replaced = {number: signal.signal(number, stop) for number in handled}
    try:
        yield stop
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


@dataclass(frozen=True, slots=True)
class Origin:
    """The process that an interrupt is meant for: a terminal or a notebook sends it to its whole process group."""

    host: str
    pid: int
    group: int

    @classmethod
    def here(cls) -> Origin:
        """Return the origin of this process."""
        return cls(socket.gethostname(), os.getpid(), os.getpgrp())


class InterruptFilter:
    """A SIGINT handler that ignores interrupts while a run is active and for ten seconds after it.

    After that it calls the handler it replaced. The ten seconds cover a second Ctrl-C, also meant for the driver.
    """

    def __init__(self, replaced: Callable[[int, FrameType | None], object]) -> None:
        self._replaced = replaced
        self._runs, self._ignore_until = 0, 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Call the replaced handler, unless interrupts are ignored now."""
        if not self._runs and time.monotonic() >= self._ignore_until:
            self._replaced(number, frame)

    def start_run(self) -> Callable[[], None]:
        """Count one more active run; return the function that ends it."""
        self._runs += 1
        return self._end_run

    def _end_run(self) -> None:
        self._runs -= 1
        self._ignore_until = time.monotonic() + _IGNORE_S


def ignore_interrupts_from(driver: Origin) -> Callable[[], None]:
    """Ignore interrupts that are meant for the driver but reach this process too; return the function that ends this.

    Worker processes started by the driver are in its process group, so Ctrl-C would end them in the middle of a part.
    """
    here = Origin.here()
    main = threading.current_thread() is threading.main_thread()
    if (here.host, here.group) == (driver.host, driver.group) and here.pid != driver.pid and main:
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):  # else SIGINT is ignored already
            filter_ = handler if isinstance(handler, InterruptFilter) else InterruptFilter(handler)
            signal.signal(signal.SIGINT, filter_)
            return filter_.start_run()
    return lambda: None


@contextmanager
def ignored_by_children() -> Iterator[None]:
    """Start processes inside the block that ignore Ctrl-C; an interrupt of this process is raised after the block.

    A blocked signal is also blocked in new processes and new threads. An older thread may still receive the signal,
    which is then recorded and raised after the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    replaced = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, replaced)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # delivers a blocked interrupt
        if received:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def keep_handlers() -> Iterator[None]:
    """Restore the SIGINT handler after the block, in case an import inside it replaces the handler."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is not handler:
            signal.signal(signal.SIGINT, handler)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM inside the block, so that requests to a queue are cancelled on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    replaced = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, replaced)
