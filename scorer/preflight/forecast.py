"""Forecast a run: time, memory and disk space."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scorer.host.process import resident
from scorer.plan.prepared import Forecast
from scorer.storage import copying
from scorer.storage.encoding import encoded_growth

if TYPE_CHECKING:
    import pyarrow as pa

    from scorer.storage.encoding import Storage


_TIME_RANGE = (0.7, 2.0)  # times the estimate: the first rows, timed on a shared machine, allow no narrower range
_DISK_RANGE = (0.7, 1.3)
_MEMORY_RANGE = (0.8, 1.2)
_ALLOCATED = 1.3  # times the bytes of a part's rows: what Arrow's allocator holds for them (measured)
_ENCODER_GROWTH = 1.5  # times the bytes of a row group encoded in memory: its buffer grows by doubling (measured)
_PAGE_BYTES = 1.4e6  # held of each column while a row group is decoded in slices
_PROOF_BYTES = 1000  # of a part's footer: its proof
_RUN_BYTES = 40 << 20  # Dask, and the files of the run


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """The memory that one thread needs at most, and that of the process besides, in bytes.

    A part's rows stay in memory until it is written, and Arrow's allocator holds some more than their size. Its
    scores exist twice while batches become columns. The writer holds one encoded row group.
    """

    process: int
    """Memory of the process now: imports, the model, and what the first batches left allocated."""
    rows: float
    """Decoded rows of the largest part."""
    scores: float
    """Scores of the largest part."""
    encoded: float
    """The row group that the writer holds."""
    batch: float
    """What the first batches, in one thread, added to the process."""
    slices: float = 0.0
    """A page of each column and its dictionary, while parts are slices of a row group."""

    def total(self, threads: int) -> float:
        """Return the bytes of one process with so many threads."""
        each = _ALLOCATED * self.rows + 2 * self.scores + self.encoded
        return self.process + _RUN_BYTES + threads * each + (threads - 1) * self.batch + self.slices

    def explained(self, threads: int) -> str:
        """Return the formula with its figures."""
        parts = (
            f"{_ALLOCATED} x {_mb(self.rows)} of rows + 2 x {_mb(self.scores)} of scores + {_mb(self.encoded)} encoded"
        )
        batch = f" + {threads - 1} x {_mb(self.batch)} for a batch" if threads > 1 else ""
        slices = f" + {_mb(self.slices)} for slices of row groups" if self.slices else ""
        return f"{_mb(self.process)} MB now + {_mb(_RUN_BYTES)} for the run + {threads} x ({parts}){batch}{slices}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The first rows, as they are read and as they will be written."""

    rows: pa.Table
    out: pa.Table
    scores: int
    """How many columns at the end of `out` are the model's."""
    storage: Storage
    unread: frozenset[str] = frozenset()
    """Columns that are copied with whole row groups and not decoded."""
    copied: float = 0.0
    """Compressed bytes of a row of all copied columns."""

    def part_bytes(self, part: int, slice_rows: int) -> float:
        """Return the decoded bytes of the largest part: whole row groups, or a slice of one with all its columns."""
        rows = max(self.rows.num_rows, 1)
        decoded = self.rows.select([name for name in self.rows.column_names if name not in self.unread])
        return float(max(part * decoded.nbytes, min(part, slice_rows) * self.rows.nbytes) / rows)

    def encoded(self, *, whole: bool = True) -> tuple[float, float]:
        """Return the encoded bytes of a row and of a file besides; copied columns of whole row groups do not count."""
        copied = self.storage.copied if whole else ()
        table = self.out.select([name for name in self.out.column_names if name not in copied])
        return encoded_growth(table, self.storage)


def footprint(
    part: int, slice_rows: int, group_rows: int, sample: Measured, *, filtered: bool, loaded: int
) -> Footprint:
    """Return the footprint of parts of `part` rows, or of slices of larger row groups.

    `loaded` is the memory of the process before its first batch.
    """
    out, storage = sample.out, sample.storage
    score = out.select(out.column_names[out.num_columns - sample.scores :]).nbytes / max(out.num_rows, 1)
    encoded = sample.encoded(whole=False)[0] * min(storage.row_group_rows, part, slice_rows)
    if storage.copied:
        encoded = max(encoded, _ENCODER_GROWTH * sample.encoded()[0] * min(part, group_rows) + copying.MEMORY)
    process, rows = resident(), sample.rows
    slices = min(_PAGE_BYTES * rows.num_columns, group_rows * rows.nbytes / max(rows.num_rows, 1))
    return Footprint(
        process=process, rows=sample.part_bytes(part, slice_rows) * (2 if filtered else 1), scores=part * score,
        encoded=encoded, batch=max(0, process - loaded - rows.nbytes), slices=slices if group_rows > part else 0.0,
    )  # fmt: skip


def forecast(rows: int, parts: int, sample: Measured, rows_per_s: float, threads: int, needs: Footprint) -> Forecast:
    """Return ranges for the whole run, from the sample's speed and encoded size."""
    started = time.perf_counter()
    row_bytes, file_bytes = sample.encoded()
    out_bytes = (row_bytes + sample.copied) * rows + (file_bytes + _PROOF_BYTES) * parts
    write_s = (time.perf_counter() - started) / max(sample.out.num_rows, 1)
    seconds = rows * (1 / rows_per_s + write_s) / threads
    low, high = _TIME_RANGE
    less, more = _DISK_RANGE
    memory = needs.total(threads)
    return Forecast(
        seconds=(seconds * low, seconds * high),
        memory_bytes=(int(memory * _MEMORY_RANGE[0]), int(memory * _MEMORY_RANGE[1])),
        output_bytes=(int(out_bytes * less), int(out_bytes * more)),
        rows_per_s=rows_per_s,
        memory=needs.explained(threads),
    )


def _mb(size: float) -> str:
    return f"{size / 1e6:,.0f}"
