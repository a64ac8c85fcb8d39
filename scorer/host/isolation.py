"""Call a function in its own process, so that a crash in native code ends only that process."""

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
_CHILD = "import sys; sys.path.append(sys.argv[1]); from scorer.host.isolation import run_child; run_child()"
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""The folder that scorer is imported from. The child cannot rely on the current folder: -P leaves it out."""
STALLED = 75
"""Exit code of a process that its watchdog stopped."""


class Died(Exception):
    """The process ended without returning a result or an error."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code
        """The return code of `subprocess`: negative for a signal."""

    def __str__(self) -> str:
        """Return how the process ended."""
        if self.code == STALLED:
            return "ended by the watchdog: a batch took longer than --batch-timeout"
        return f"ended {'by' if self.code < 0 else 'with'} {describe_exit(self.code)}"


def describe_exit(code: int) -> str:
    """Return the name of the signal, or the exit code, as text."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"


def end_with_parent(parent: int) -> None:
    """End this process when its parent ends (Linux only: PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DIED, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def call(target: str, *args: Any) -> Any:  # noqa: ANN401 - any arguments, any result
    """Call `package.module:function` in a new process: return its result or raise its exception.

    Raises `Died` if the process ended without either.
    """
    request = pickle.dumps((os.getpid(), sys.path, target, args))
    done = subprocess.run(  # noqa: S603 - built above
        [sys.executable, "-P", "-c", _CHILD, _ROOT],
        input=request, stdout=subprocess.PIPE, check=False, start_new_session=True,
    )  # fmt: skip
    if done.returncode or not done.stdout:
        raise Died(done.returncode)
    result, error = pickle.loads(done.stdout)  # noqa: S301 - written by our own process
    if error is not None:
        raise error
    return result


def run_child() -> None:
    """Run in the new process: read one call from stdin, write its result or exception to the original stdout."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # other prints must not damage the result
    try:
        parent, path, target, args = pickle.load(sys.stdin.buffer)  # noqa: S301 - written by our own process
    except EOFError:  # the caller was killed
        os._exit(1)
    end_with_parent(parent)
    sys.path[:] = path
    module, _, name = target.partition(":")
    result, error = None, None
    try:
        result = getattr(importlib.import_module(module), name)(*args)
    except Exception as raised:  # noqa: BLE001 - raised again by `call`
        error = raised
    with suppress(BrokenPipeError):  # the caller was killed
        pickle.dump((result, error), out)
        out.flush()
    os._exit(0)  # does not wait for the threads of the runtime
