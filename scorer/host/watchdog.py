"""Notice a call that hangs: a thread that looks now and then who has been inside for too long."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


_LOOKS = 8  # within the limit
_RARELY_S = 1.0


class Watchdog:
    """Barks once, with the thread that hangs and for how many seconds it does."""

    def __init__(
        self, calling: Callable[[], Mapping[int, float]], limit_s: float, on_stall: Callable[[int, float], None]
    ) -> None:
        self._calling, self._limit_s, self._on_stall = calling, limit_s, on_stall
        self._stop = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="scorer-watchdog").start()

    def close(self) -> None:
        """Look no more."""
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(min(_RARELY_S, self._limit_s / _LOOKS)):
            now = time.monotonic()
            for thread, since in list(self._calling().items()):
                if now - since > self._limit_s:
                    self._on_stall(thread, now - since)
                    return
