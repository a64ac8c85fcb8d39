"""The entry point of `scorer` and `python -m scorer`."""

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:  # `python -m scorer`
    # Python put the current folder first; a file there, such as pandas.py, must not replace a package.
    _folder = sys.path.pop(0)
    if os.path.samefile(_folder, os.path.dirname(os.path.dirname(__file__))):
        sys.path.append(_folder)  # scorer itself was found there

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its idle threads would spin and slow scorer's
if sys.platform == "linux":  # Arrow has jemalloc here: 20 % less memory than mimalloc, and as fast
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")
    # one arena for each thread: the default, four for each processor, leaves most memory idle in some arena
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", f"narenas:{len(os.sched_getaffinity(0)) + 1}")

from scorer.cli import main as cli
from scorer.cli.startup import with_large_frame
from scorer.host import streams
from scorer.host.crash import run_supervised


def main() -> None:
    """Run the command line in a supervised child process, which explains a crash in native code."""
    streams.protect()
    run_supervised(with_large_frame(cli.main))


if __name__ == "__main__":
    main()
