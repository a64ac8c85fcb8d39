"""Run the command in a child process, so that the parent can explain a crash in native code.

The child has its own process group and ends with its parent. The parent forwards signals to it. The child writes its
current step to a page of shared memory; after a crash, the parent reads the step there and names it in the error.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from scorer.errors import CommitError, InputError, NativeCrash
from scorer.host.isolation import describe_exit, end_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable


_SCORING = "scoring, with marks in "  # start of a step that is followed by the folder of marks
_PAGE_BYTES = 8192
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_CHECKS = InputError.exit_code, "export the file again or leave it out: it may be damaged or malicious"
_PUBLISHING = CommitError.exit_code, "repeat the command: it publishes the parts, unless they are published already"
_VERIFYING = CommitError.exit_code, "restore the file, or score again with --overwrite: it may be damaged"
_page: mmap.mmap | None = None


def note_step(text: str) -> None:
    """Record the current step in memory shared with the parent, which names it if native code kills this process."""
    _note(*_CHECKS, text)


def note_scoring(started: str) -> None:
    """Record that parts are being scored; the marks in this folder name the parts in progress."""
    _note(NativeCrash.exit_code, "", _SCORING + started)


def note_publishing(output: str) -> None:
    """Record that the output is being published, or is published already."""
    _note(*_PUBLISHING, f"publishing {output}")


def note_verifying(path: str) -> None:
    """Record that an output, or a file of it, is being verified."""
    _note(*_VERIFYING, f"verifying {path}")


def _note(exit_code: int, hint: str, step: str) -> None:
    if _page is not None:
        data = f"{exit_code}\n{hint}\n{step}".encode("utf-8", "replace")[: _PAGE_BYTES - 1]
        _page[: len(data) + 1] = data + b"\0"


def run_supervised(command: Callable[[], Any]) -> None:
    """Run the command in a child process and exit with its code; explain its crash, if it crashes.

    On systems other than Linux, the command runs in this process.
    """
    global _page  # noqa: PLW0603 - one page per process, shared with the parent
    if sys.platform != "linux":
        command()
        return
    _page = mmap.mmap(-1, _PAGE_BYTES)
    parent = os.getpid()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # a background group may write to the terminal, too
        end_with_parent(parent)
        _run_and_exit(command)
        return
    with suppress(OSError):
        os.setpgid(child, child)  # the child sets it too: either may run first
    os._exit(_wait_for(child))


def _run_and_exit(command: Callable[[], Any]) -> None:
    """Run the command and exit without clean-up: unloading 1,500 modules takes 0.2 s."""
    code: object = 0
    try:
        command()
    except SystemExit as exit_:
        code = exit_.code
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)  # noqa: T201 - the interpreter does the same
        code = 1
    with suppress(OSError):  # what cannot be printed does not change what the command did
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code or 0)


def _wait_for(child: int) -> int:
    """Wait for the command and return its exit code; print the error if it crashed."""
    for number in (*_FORWARDED, signal.SIGCONT):
        if signal.getsignal(number) is signal.SIG_IGN:  # by nohup, or by the shell of a script's background job
            continue
        signal.signal(number, lambda number, _: _forward(child, number))
    signal.signal(signal.SIGTSTP, lambda *_: _pause(child))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    if -code in _FORWARDED:
        return 128 - code
    error = _crash_error(code, child)
    if "--json" in sys.argv:
        print(json.dumps({"error": error.to_dict()}), flush=True)  # noqa: T201 - as the command prints its errors
    print(f"Error: {error}", file=sys.stderr, flush=True)  # noqa: T201
    return error.exit_code


def _forward(child: int, number: int) -> None:
    with suppress(ProcessLookupError):  # the child may just have ended
        os.kill(child, number)


def _pause(child: int) -> None:
    _forward(child, signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)


def _crash_error(code: int, child: int) -> NativeCrash:
    """Return the error that says how the child ended, and at which step or in which parts."""
    noted = bytes(_page or b"").partition(b"\0")[0].decode("utf-8", "replace")
    exit_code, hint, step = noted.split("\n", 2) if noted else (*_CHECKS, "")
    killed, how = code == -signal.SIGKILL, describe_exit(code)
    what = f"the process was killed ({how})" if killed else f"the process crashed in native code ({how})"
    memory = "if nobody killed it, memory ran out: request more, or try --threads 1 or a smaller --part-bytes"
    if not step.startswith(_SCORING):
        error = NativeCrash(
            what,
            where=step or "starting up",
            expected="a result or an error",
            found=how,
            hint=memory if killed and hint != _PUBLISHING[1] else hint,
        )
        error.exit_code = int(exit_code)
        return error
    parts = _parts_in_progress(step.removeprefix(_SCORING), child)
    return NativeCrash(
        what,
        where="in progress: " + (", ".join(parts) if parts else "no part"),
        expected="every part scored",
        found=how,
        hint=memory if killed else "run the command again: it scores these parts in isolation and reports which fail",
    )


def _parts_in_progress(started: str, child: int) -> list[str]:
    """Return the names of the parts that the child had started and not finished."""
    found = []
    with suppress(OSError):
        for name in sorted(os.listdir(started)):
            with suppress(OSError, ValueError, AttributeError), open(os.path.join(started, name), "rb") as mark:
                if not name.endswith(".crash") and json.load(mark).get("pid") == child:
                    found.append(name.rpartition(".")[0])
    return found
