"""When native code ends the command: a light process that waits for it says so, and what was being done.

The command runs in a child, in a process group of its own; signals are passed on to it, and it does not
outlive its parent. What it is about to do it writes to a page of memory that both see.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from scorer.errors import NativeCrash
from scorer.host.isolation import die_with, ending

if TYPE_CHECKING:
    from collections.abc import Callable


_SCORING = "scoring, with marks in "
_PAGE_BYTES = 8192
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_page: mmap.mmap | None = None


def note_step(text: str) -> None:
    """Note what this process does next, for the one that waits for it."""
    if _page is not None:
        data = text.encode("utf-8", "replace")[: _PAGE_BYTES - 1]
        _page[: len(data) + 1] = data + b"\0"


def scoring(started: str) -> None:
    """From here on, marks in this folder say which parts are in flight."""
    note_step(_SCORING + started)


def run_supervised(command: Callable[[], Any]) -> None:
    """Run the command so that somebody is left to explain its end."""
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
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # it may write to the terminal all the same
        die_with(parent)
        _leave(command)
        return
    with suppress(OSError):
        os.setpgid(child, child)  # whoever is first
    os._exit(_wait_for(child))


def _leave(command: Callable[[], Any]) -> None:
    """Run the command and end at once: taking 1,500 modules apart again takes a fifth of a second."""
    code: object = 0
    try:
        command()
    except SystemExit as ending_:
        code = ending_.code
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)  # noqa: T201 - as the interpreter does
        code = 1
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # whoever read is gone
        code = code or 1
    os._exit(code or 0)


def _wait_for(child: int) -> int:
    """The command's exit code, after it ended."""
    for number in (*_PASSED_ON, signal.SIGCONT):
        signal.signal(number, lambda number, _: _tell(child, number))
    signal.signal(signal.SIGTSTP, lambda *_: _pause(child))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    if -code in _PASSED_ON:
        return 128 - code
    error = _explained(code, child)
    if "--json" in sys.argv:
        print(json.dumps({"error": error.to_dict()}), flush=True)  # noqa: T201 - what the command would have done
    print(f"Error: {error}", file=sys.stderr, flush=True)  # noqa: T201
    return error.exit_code


def _tell(child: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it may just have ended
        os.kill(child, number)


def _pause(child: int) -> None:
    _tell(child, signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)


def _explained(code: int, child: int) -> NativeCrash:
    """How it ended, and what it was doing."""
    said = bytes(_page or b"").partition(b"\0")[0].decode("utf-8", "replace")
    how = ending(code)
    what = f"the process was killed ({how})" if code == -signal.SIGKILL else f"native code ended the process ({how})"
    hint = "the file may be damaged or made to do harm; write or export it again, or leave it out"
    if code == -signal.SIGKILL:
        hint = "if nobody did, memory ran out: ask for it, or try --threads 1 or a smaller --part-bytes"
    if not said.startswith(_SCORING):
        error = NativeCrash(what, said or "at the start", "an answer, or an error", how, hint)
        error.exit_code = 3
        return error
    parts = _in_flight(said.removeprefix(_SCORING), child)
    where = "in flight: " + (", ".join(parts) if parts else "no part")
    if code != -signal.SIGKILL:
        hint = "repeat the command: these parts are then scored in processes of their own, and what fails is named"
    return NativeCrash(what, where, "every part scored", how, hint)


def _in_flight(started: str, child: int) -> list[str]:
    """Parts that the process had begun and not ended."""
    found = []
    with suppress(OSError):
        for name in sorted(os.listdir(started)):
            with suppress(OSError, ValueError, AttributeError), open(os.path.join(started, name), "rb") as mark:
                if not name.endswith(".crash") and json.load(mark).get("pid") == child:
                    found.append(name.rpartition(".")[0])
    return found
