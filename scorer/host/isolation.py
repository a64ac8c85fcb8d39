"""Call a function in a process of its own, so that native code which ends a process ends only that one."""

from __future__ import annotations

import ctypes
import importlib
import os
import pickle
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

_PARENT_DIED = 1  # PR_SET_PDEATHSIG
STALLED = 75
"""Exit code of a process whose watchdog ended it."""


class Died(Exception):
    """The process ended without an answer."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code
        """As subprocess gives it: below zero, the signal."""

    def __str__(self) -> str:
        """How, in words."""
        if self.code == STALLED:
            return "ended by the watchdog: a batch took longer than --batch-timeout"
        return f"ended by {ending(self.code)}"


def ending(code: int) -> str:
    """The name of a signal, or the exit code."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"


def die_with(parent: int) -> None:
    """Outlive nobody: end when the process that started this one does, where the system can see to that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DIED, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def call(target: str, *args: Any) -> Any:  # noqa: ANN401 - whatever the function takes and gives
    """The result of package.module:function, or its exception; `Died` if the process gave neither."""
    question = pickle.dumps((os.getpid(), sys.path, target, args))
    done = subprocess.run(
        [sys.executable, "-c", "from scorer.host.isolation import answer; answer()"],
        input=question, stdout=subprocess.PIPE, check=False, start_new_session=True,
    )  # fmt: skip
    if done.returncode or not done.stdout:
        raise Died(done.returncode)
    result, error = pickle.loads(done.stdout)  # noqa: S301 - written by our own process
    if error is not None:
        raise error
    return result


def answer() -> None:
    """The other side: one question on stdin, one answer on what was stdout."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed must not spoil the answer
    try:
        parent, path, target, args = pickle.load(sys.stdin.buffer)  # noqa: S301 - written by our own process
    except EOFError:  # the asker was killed
        os._exit(1)
    die_with(parent)
    sys.path[:] = path
    module, _, name = target.partition(":")
    result, error = None, None
    try:
        result = getattr(importlib.import_module(module), name)(*args)
    except Exception as raised:  # noqa: BLE001 - the asker decides
        error = raised
    with suppress(BrokenPipeError):  # the asker was killed
        pickle.dump((result, error), out)
        out.flush()
    os._exit(0)  # no thread of a runtime is waited for
