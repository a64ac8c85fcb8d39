"""A thread that notices calls that take too long."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


_CHECKS = 8  # checks per limit, so a stall is noticed at most an eighth late
_MAX_WAIT_S = 1.0  # between two checks


class Watchdog:
    """Calls `on_stall` once, with the thread that exceeded the limit and its seconds so far.

    `calling` returns thread -> start time of its current call.
    """

    def __init__(
        self, calling: Callable[[], Mapping[int, float]], limit_s: float, on_stall: Callable[[int, float], None]
    ) -> None:
        self._calling, self._limit_s, self._on_stall = calling, limit_s, on_stall
        self._stop = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="scorer-watchdog").start()

    def close(self) -> None:
        """Stop checking."""
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(min(_MAX_WAIT_S, self._limit_s / _CHECKS)):
            now = time.monotonic()
            for thread, since in list(self._calling().items()):
                if now - since > self._limit_s:
                    self._on_stall(thread, now - since)
                    return
