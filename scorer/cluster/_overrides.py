"""Settings of this process that runs change while they are active: Dask's settings, variables, log levels.

Runs may overlap in several threads and end in any order, so no run can restore what it found. Here the first run that
changes a setting stores its value, and the last one that ends restores it.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import dask

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping


_MISSING: Any = object()
_SILENT = 50  # of log levels: what Dask logs while a run ends would only disturb
_SILENCED_LOGGERS = ("distributed", "bokeh")


class Overrides:
    """Settings of one kind, and the values that active runs gave them."""

    def __init__(self, read: Callable[[Any], Any], write: Callable[[Any, Any], None]) -> None:
        self._read, self._write = read, write
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._before: dict[Hashable, Any] = {}
        self._active: dict[Hashable, dict[object, Any]] = {}
        """By setting, the values of the active runs, the latest last."""
        os.register_at_fork(after_in_child=self._unlock)  # the thread that holds it does not exist there

    @contextmanager
    def set(self, values: Mapping[Any, Any]) -> Iterator[None]:
        """Change these settings inside the block. After the last such block, each is what it was before the first."""
        owner = object()
        try:
            for setting, value in values.items():
                self._start(setting, owner, value)
            yield
        finally:
            for setting in values:
                self._end(setting, owner)

    def before(self, setting: Hashable) -> Any:  # noqa: ANN401 - any value
        """Return the value that the setting has without active runs."""
        with self._lock:
            return self._before[setting] if setting in self._active else self._read(setting)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other thread change a setting through here inside a short block."""
        with self._lock:
            yield

    def _start(self, setting: Hashable, owner: object, value: Any) -> None:  # noqa: ANN401 - any value
        with self._lock:
            if self._pid != os.getpid():
                self._forget_parent()
            if setting not in self._active:
                self._before[setting], self._active[setting] = self._read(setting), {}
            self._active[setting][owner] = value
            self._write(setting, value)

    def _end(self, setting: Hashable, owner: object) -> None:
        with self._lock:
            active = self._active.get(setting, {})
            if owner not in active:  # an interrupt came before the start
                return
            written = next(reversed(active.values()))
            del active[owner]
            value = next(reversed(active.values())) if active else self._before.pop(setting)
            if not active:
                del self._active[setting]
            if self._read(setting) == written:  # otherwise someone else has changed it meanwhile
                self._write(setting, value)

    def _unlock(self) -> None:
        self._lock = threading.RLock()

    def _forget_parent(self) -> None:
        """Restore, in a forked process, what runs of the parent changed: they do not end here."""
        for setting, value in self._before.items():
            self._write(setting, value)
        self._before, self._active, self._pid = {}, {}, os.getpid()


def _read_dask(name: str) -> Any:  # noqa: ANN401 - any value
    return dask.config.get(name, default=_MISSING)


def _write_dask(name: str, value: Any) -> None:  # noqa: ANN401 - as above
    if value is _MISSING:
        dask.config.pop(name, None)
    else:
        dask.config.set({name: value})


def _read_variable(name: str) -> Any:  # noqa: ANN401 - text or _MISSING
    return os.environ.get(name, _MISSING)


def _write_variable(name: str, value: Any) -> None:  # noqa: ANN401 - as above
    if value is _MISSING:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


DASK_CONFIG = Overrides(_read_dask, _write_dask)
"""Dask's settings by their full names."""
ENVIRONMENT = Overrides(_read_variable, _write_variable)
"""Environment variables."""
_LOG_LEVELS = Overrides(lambda handler: handler.level, lambda handler, level: handler.setLevel(level))
"""The levels of log handlers."""


@contextmanager
def silenced() -> Iterator[None]:
    """Print no log messages of Dask inside the block.

    Dask's clusters have an option for it, but the first one that is closed ends the silence of the others.
    """
    handlers = [one for name in _SILENCED_LOGGERS for one in logging.getLogger(name).handlers]
    with _LOG_LEVELS.set({one: _SILENT for one in handlers if isinstance(one, logging.StreamHandler)}):
        yield


class _WarningFilters:
    """A lock for Python's warning filters: `catch_warnings` changes those of all threads.

    If two threads overlapped, one filter would stay for ever.
    """

    def __init__(self) -> None:
        self._unlock()
        os.register_at_fork(after_in_child=self._unlock)

    def _unlock(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def ignored(self, message: str, category: type[Warning]) -> Iterator[None]:
        """Ignore warnings that begin with this message inside a short block."""
        with self._lock, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message, category)
            yield


WARNINGS = _WarningFilters()
