"""What runs could leave behind in a process: settings, folders on sys.path, handlers, open files, threads, files."""

import copy
import gc
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import warnings

import dask


def _names(folder):
    """Return the files in the folder; Dask's two lock files in the user's private folder stay there."""
    own = f"scorer-{os.getuid()}/dask-scratch-space/"
    files = (os.path.relpath(os.path.join(top, name), folder) for top, _, names in os.walk(folder) for name in names)
    return sorted(file for file in files if file not in {f"{own}global.lock", f"{own}purge.lock"})


def _open_files():
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}").split(":")[0])
        except OSError:  # the listing itself
            continue
    return sorted(found)


def _flat(config, prefix=""):
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def state():
    """Return the state of this process, as dictionaries of plain values."""
    gc.collect()
    loggers = {name: one for name, one in logging.root.manager.loggerDict.items() if isinstance(one, logging.Logger)}
    return {
        "dask": copy.deepcopy(dict(_flat(dask.config.config))),
        "path": list(sys.path),
        "environment": dict(os.environ),
        "signals": {int(one): signal.getsignal(one) for one in signal.valid_signals()},
        "levels": {name: (one.level, [handler.level for handler in one.handlers]) for name, one in loggers.items()},
        "filters": list(warnings.filters),
        "files": _open_files(),
        "threads": sorted(one.name for one in threading.enumerate()),
        "temporary": _names(tempfile.gettempdir()),
    }


def changes(before, wait_s=10):
    """Return what differs from an earlier state; wait a little for threads that are just ending."""
    until = time.monotonic() + wait_s
    while True:
        now = state()
        found = {name: _change(before[name], now[name]) for name in before if before[name] != now[name]}
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.2)


def _change(before, now):
    if isinstance(before, dict):
        names = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
        return {str(name): (repr(before.get(name)), repr(now.get(name))) for name in names}
    return {
        "more": [repr(one) for one in now if one not in before],
        "n": [len(before), len(now)],
        "less": [repr(one) for one in before if one not in now],
    }
