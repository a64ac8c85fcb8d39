"""Several drivers that write to one table at once."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_BEGUN = "the folder of the new table holds files"


def run_at_once(commands: Iterable[Sequence[object]]) -> tuple[list[int], list[str]]:
    """Run commands at once; return their exit codes and what they wrote to stderr.

    A driver that plans a new table after another one has begun to write its parts is refused. Its command is repeated
    when the others have ended.
    """
    lines = [list(map(str, command)) for command in commands]
    runs = [subprocess.Popen(line, stderr=subprocess.PIPE, text=True) for line in lines]
    said = [run.communicate()[1] for run in runs]
    codes = [run.returncode for run in runs]
    for n, line in enumerate(lines):
        if _BEGUN in said[n]:
            again = subprocess.run(line, stderr=subprocess.PIPE, text=True, check=False)
            codes[n], said[n] = again.returncode, again.stderr
    return codes, said
