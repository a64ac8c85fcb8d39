"""What a run will take: time, memory and disk."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scorer.host.process import resident
from scorer.plan.prepared import Forecast
from scorer.storage import copying
from scorer.storage.encoding import encoded_bytes

if TYPE_CHECKING:
    import pyarrow as pa

    from scorer.storage.encoding import Storage


_SPREAD = (0.7, 2.0)  # a sample of the first rows on a shared machine says no more
_DISK = (0.7, 1.3)
_MEMORY = (0.8, 1.2)
_KEPT = 1.3  # of a part's rows, what Arrow's allocator holds; measured, like the next
_GROWN = 1.5  # of a row group that is encoded in memory, which grows by doubling
_PAGES = 1.4e6  # of a column that is decoded bit by bit
_RUN_BYTES = 40 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What one thread holds at the most, in bytes, and what the process holds besides.

    A part's rows stay until it is written, and Arrow's allocator keeps some more. Its scores are there
    twice while batches become columns. The writer keeps one encoded row group.
    """

    process: int
    """Imports, model, and what the first batches left behind, now; Dask and the files of the run come on top."""
    rows: float
    scores: float
    encoded: float
    batch: float
    """What the first batches, in one thread, added to the process."""
    slices: float = 0.0
    """A page of each column, and its dictionary, while parts are slices of a row group."""

    def total(self, threads: int) -> float:
        """Of one process with so many threads."""
        each = _KEPT * self.rows + 2 * self.scores + self.encoded
        return self.process + _RUN_BYTES + threads * each + (threads - 1) * self.batch + self.slices

    def explained(self, threads: int) -> str:
        """The formula with its figures."""
        parts = f"{_KEPT} x {_mb(self.rows)} of rows + 2 x {_mb(self.scores)} of scores + {_mb(self.encoded)} encoded"
        batch = f" + {threads - 1} x {_mb(self.batch)} for a batch" if threads > 1 else ""
        slices = f" + {_mb(self.slices)} for slices of row groups" if self.slices else ""
        return f"{_mb(self.process)} MB now + {_mb(_RUN_BYTES)} for the run + {threads} x ({parts}){batch}{slices}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The first rows, as they are read and as they will be written."""

    rows: pa.Table
    out: pa.Table
    scores: int
    """Columns at the end of `out` that the model adds."""
    storage: Storage
    unread: frozenset[str] = frozenset()
    """Columns that are copied from whole row groups and not decoded."""
    copied: float = 0.0
    """Bytes of a row of all copied columns as they are stored."""

    def held(self, part: int, slice_rows: int) -> float:
        """Decoded bytes of the largest part: of whole row groups, or a slice of one with all its columns."""
        many = max(self.rows.num_rows, 1)
        lean = self.rows.select([name for name in self.rows.column_names if name not in self.unread])
        return float(max(part * lean.nbytes, min(part, slice_rows) * self.rows.nbytes) / many)

    def encoded(self, *, whole: bool = True) -> float:
        """Bytes of a row of what is encoded; of whole row groups the copied columns are not."""
        copied = self.storage.copied if whole else ()
        own = self.out.select([name for name in self.out.column_names if name not in copied])
        return float(encoded_bytes(own, self.storage) / max(self.out.num_rows, 1))


def footprint(
    part: int, slice_rows: int, group_rows: int, sample: Measured, *, filtered: bool, loaded: int
) -> Footprint:
    """The footprint of parts of so many rows, or of slices of larger row groups.

    `loaded` is what the process held before its first batch.
    """
    out, storage = sample.out, sample.storage
    score = out.select(out.column_names[out.num_columns - sample.scores :]).nbytes / max(out.num_rows, 1)
    encoded = sample.encoded(whole=False) * min(storage.row_group_rows, part, slice_rows)
    if storage.copied:
        encoded = max(encoded, _GROWN * sample.encoded() * min(part, group_rows) + copying.MEMORY)
    process, rows = resident(), sample.rows
    slices = min(_PAGES * rows.num_columns, group_rows * rows.nbytes / max(rows.num_rows, 1))
    return Footprint(
        process=process, rows=sample.held(part, slice_rows) * (2 if filtered else 1), scores=part * score,
        encoded=encoded, batch=max(0, process - loaded - rows.nbytes), slices=slices if group_rows > part else 0.0,
    )  # fmt: skip


def forecast(rows: int, sample: Measured, rows_per_s: float, threads: int, held: Footprint) -> Forecast:
    """Ranges for the whole run, given the sample's speed and its encoded size."""
    started = time.perf_counter()
    out_bytes = (sample.encoded() + sample.copied) * rows
    write_s = (time.perf_counter() - started) / max(sample.out.num_rows, 1)
    seconds = rows * (1 / rows_per_s + write_s) / threads
    low, high = _SPREAD
    less, more = _DISK
    memory = held.total(threads)
    return Forecast(
        seconds=(seconds * low, seconds * high),
        memory_bytes=(int(memory * _MEMORY[0]), int(memory * _MEMORY[1])),
        output_bytes=(int(out_bytes * less), int(out_bytes * more)),
        rows_per_s=rows_per_s,
        memory=held.explained(threads),
    )


def _mb(size: float) -> str:
    return f"{size / 1e6:,.0f}"
