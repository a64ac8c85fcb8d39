"""`scorer`, and `python -m scorer`."""

import os
import sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads would spin for a while, beside ours, for nothing
if sys.platform == "linux":  # where Arrow has it: a fifth less memory than with mimalloc, which is as fast
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")
    # one arena for each thread of ours: with four for each processor, as usual, most lies idle in one of them
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", f"narenas:{len(os.sched_getaffinity(0)) + 1}")

from scorer.cli import main as cli
from scorer.cli.startup import with_large_frame
from scorer.host.crash import run_supervised


def main() -> None:
    """The command line, with somebody left to explain it if native code ends it."""
    run_supervised(with_large_frame(cli.main))


if __name__ == "__main__":
    main()
