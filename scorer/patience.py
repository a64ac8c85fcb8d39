"""Try again what a shared file system refuses for a moment; what it refuses for good is said at once."""

from __future__ import annotations

import errno
import random
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
_WAITS_S = (0.1, 0.4, 1.6)
_PASSING = {
    getattr(errno, name)
    for name in (
        "EAGAIN", "EBUSY", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "EINTR", "EIO",
        "ENETDOWN", "ENETRESET", "ENETUNREACH", "ENOTCONN", "EREMOTEIO", "ESTALE", "ETIMEDOUT",
    )
    if hasattr(errno, name)
}  # fmt: skip


def patiently(attempt: Callable[[], T], again: Callable[[], None] | None = None) -> T:
    """What `attempt` gives; after a passing error `again` clears the ground, and it is called once more."""
    for wait in _WAITS_S:
        try:
            return attempt()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
        time.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311 - so that a thousand workers do not knock together
        if again is not None:
            again()
    return attempt()
