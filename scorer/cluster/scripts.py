"""Scripts that start worker processes: each process imports the script, which needs a guard for that."""

from __future__ import annotations

import multiprocessing
import os
import sys

from scorer.errors import ClusterError


def can_spawn() -> bool:
    """Return whether worker processes can start without an `if __name__ == "__main__":` guard.

    Each spawned process imports the main module again, and a script without the guard would then start the run again.
    Three cases are safe: there is no main file (a notebook or a prompt), the main file is the `scorer` command, or it
    lies in scorer's package folder, which is `__main__.py` of `python -m scorer`.
    """
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    return (
        file is None
        or os.path.basename(file) == "scorer"
        or os.path.dirname(file) == os.path.dirname(os.path.dirname(__file__))
    )


def end_if_imported_by_a_worker() -> None:
    """Exit if this process is a worker that imports the script which started it: the script has no guard.

    Workers cannot be started there. The process that started this one reports it, so nothing is printed here.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as the check of multiprocessing does
        raise SystemExit(1)


def causes_of(error: BaseException) -> list[BaseException]:
    """Return an error and what caused it, the first cause last."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    return causes


def ended_in_import(error: BaseException) -> bool:
    """Return whether worker processes ended while they imported a script, as they do if it has no guard."""
    return any("failed to start worker process" in str(cause) for cause in causes_of(error)) and not can_spawn()


def without_guard(workers: int) -> ClusterError:
    """Return the error for a script that starts worker processes without a guard."""
    return ClusterError(
        "the worker processes did not start",
        where=f"{workers} process{'es' if workers > 1 else ''}",
        expected="processes that can import the script",
        found="processes that ended while they imported it",
        hint='in a script, call scorer under `if __name__ == "__main__":`, because each process imports the script; '
        'or pass cluster="embedded" to use threads',
    )
