"""Forecast a run: time, memory and disk space."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from scorer.plan.prepared import Forecast

if TYPE_CHECKING:
    from scorer.preflight.memory import Footprint, Measured


_TIME_RANGE = (0.7, 2.0)  # times the estimate: the first rows, timed on a shared machine, allow no narrower range
_PART_S, _PART_MOST_S = 0.010, 0.1  # in one thread, besides the rows; measured on a local disk: 0.010 to 0.027
_OPENINGS = 20  # reading a footer takes a twentieth of that
_DISK_RANGE = (0.7, 1.3)
_MEMORY_RANGE = (0.8, 1.2)
_PROOF_BYTES = 1000  # of a part's footer: its proof


def part_seconds(open_s: float) -> float:
    """Return what a part costs besides its rows: opening its file, and writing, syncing and committing its own.

    `open_s` is how long the footer of a file took to read while planning, by which slow disks are noticed.
    """
    return min(max(_PART_S, _OPENINGS * open_s), _PART_MOST_S)


def forecast(
    rows: int, parts: int, sample: Measured, rows_per_s: float, threads: int, needs: Footprint, part_s: float
) -> Forecast:
    """Return ranges for the whole run, from the sample's speed and encoded size; `part_s` is the cost of each part."""
    started = time.perf_counter()
    row_bytes, file_bytes = sample.encoded()
    out_bytes = (row_bytes + sample.copied) * rows + (file_bytes + _PROOF_BYTES) * parts
    write_s = (time.perf_counter() - started) / max(sample.out.num_rows, 1)
    seconds = (rows * (1 / rows_per_s + write_s) + parts * part_s) / threads
    low, high = _TIME_RANGE
    less, more = _DISK_RANGE
    memory = needs.total
    return Forecast(
        seconds=(seconds * low, seconds * high),
        memory_bytes=(int(memory * _MEMORY_RANGE[0]), int(memory * _MEMORY_RANGE[1])),
        output_bytes=(int(out_bytes * less), int(out_bytes * more)),
        rows_per_s=rows_per_s,
        memory=needs.explained(),
    )
