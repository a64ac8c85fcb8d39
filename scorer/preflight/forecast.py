"""Forecast a run: time, disk space, and the memory of the process that needs most.

Memory is what was measured on the first rows, times the rows of a part. It does not depend on how fast this machine was
or on what tuning tried, so that equal plans get equal figures.
"""

from __future__ import annotations

import math
import time
import tracemalloc
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from scorer.binding import transform as transform_
from scorer.binding.features.pack import pack
from scorer.dataset.cursors import DECODE_ROWS
from scorer.display.words import size
from scorer.host import process
from scorer.plan.prepared import Forecast
from scorer.scoring import batches
from scorer.storage import copying
from scorer.storage.encoding import encoded_growth

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scorer.binding.spec import Binding, Transform
    from scorer.model.resident import Engine
    from scorer.storage.encoding import Storage


_TIME_RANGE = (0.7, 2.0)  # times the estimate: the first rows, timed on a shared machine, allow no narrower range
_PART_S, _PART_MOST_S = 0.010, 0.1  # in one thread, besides the rows; measured on a local disk: 0.010 to 0.027
_FILE_SHARE = 0.2  # of that for each further file of a part, which is only opened and read
_OPENINGS = 20  # reading a footer takes a twentieth of that
_DISK_RANGE = (0.7, 1.3)
_MEMORY_RANGE = (0.8, 1.2)
_PROOF_BYTES = 1000  # of a part's footer: its proof
_ALLOCATED = 1.3  # times the bytes of a part's rows: what Arrow's allocator holds for them (measured)
_ENCODER_GROWTH = 1.5  # times the bytes of a row group encoded in memory: its buffer grows by doubling (measured)
_PAGE_BYTES = 1.4e6  # held of each column while a row group is decoded in slices
_WINDOWS = 2  # row groups of which slices are read at once: the next one begins before the last one ends
_RUN_BYTES = 24 << 20  # Dask, and the files of the run
_WORKER_BYTES = 150 << 20  # a worker's process before it loads the model: Python, Dask, Arrow, ONNX Runtime
_FRAGMENTED = 1.4  # times what a transform holds: what pandas frees in pieces stays with the process (measured)
_TRACED_ROWS = 1024  # enough that what does not depend on the rows counts little
_LARGE_VALUE = 16 << 20  # bytes of one row that are counted apart from usual rows
_UNUSUAL = 8  # times the bytes of usual rows
_VALUE_COPIES = 6.0  # of a large value at once: read, decoded, converted, encoded, compressed (measured)


def part_seconds(open_s: float, files: float = 1.0) -> float:
    """Return what a part costs besides its rows: opening its files, and writing, syncing and committing its own.

    `open_s` is how long the footer of a file took to read while planning, by which slow disks are noticed. `files` is
    the mean number of files that a part reads.
    """
    return min(max(_PART_S, _OPENINGS * open_s), _PART_MOST_S) * (1 + _FILE_SHARE * (files - 1))


@dataclass(frozen=True, slots=True)
class Parts:
    """What the parts of a run cost besides their rows."""

    count: int
    seconds: float
    """Of each part, in one thread: see `part_seconds`."""
    entry_bytes: int
    """Of the metadata of each part's file."""


def forecast(
    rows: int, parts: Parts, sample: Measured, rows_per_s: float, threads: int, needs: Footprint, network: Network
) -> Forecast:
    """Return ranges for the whole run, from the sample's speed and encoded size.

    Parts are read from a store while others are scored: the run takes as long as the slower of both.
    """
    started = time.perf_counter()
    row_bytes, file_bytes = sample.encoded()
    out_bytes = (row_bytes + sample.copied) * rows + (file_bytes + parts.entry_bytes + _PROOF_BYTES) * parts.count
    write_s = (time.perf_counter() - started) / max(sample.out.num_rows, 1)
    seconds = max((rows * (1 / rows_per_s + write_s) + parts.count * parts.seconds) / threads, network.seconds)
    low, high = _TIME_RANGE
    less, more = _DISK_RANGE
    memory = needs.total
    return Forecast(
        seconds=(seconds * low, seconds * high),
        memory_bytes=(int(memory * _MEMORY_RANGE[0]), int(most(needs))),
        output_bytes=(int(out_bytes * less), int(out_bytes * more)),
        rows_per_s=rows_per_s,
        memory=needs.explained(),
        network=str(network),
    )


@dataclass(frozen=True, slots=True)
class Network:
    """What a run reads from stores, and how fast its first rows came from there."""

    nbytes: float = 0.0
    bytes_per_s: float = math.inf
    """Of all hosts together."""

    @property
    def seconds(self) -> float:
        """How long the bytes take."""
        return self.nbytes / self.bytes_per_s

    def __str__(self) -> str:
        """Return both figures in words; nothing if nothing is read from a store or its speed is unknown."""
        if not self.nbytes or math.isinf(self.bytes_per_s):
            return ""
        return f"{size(self.nbytes)} from the store at {size(self.bytes_per_s)}/s, as the first rows"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """The memory of this process around the loading of a model, or of several one after the other, in bytes."""

    process: int
    """With the model, before the first rows were read."""
    model: int
    """What the model holds."""
    peak: int
    """What loading it needed at most."""
    weights: int = 0
    """Packed weights that the model uses and all processes of a host share; not part of `model`."""
    joined: int = 0
    """What tables of --join take, which are loaded after it."""

    @classmethod
    def in_turn(cls, each: Sequence[Loading], joined: int) -> Loading:
        """Return the figures of several models that are loaded one after the other, and of joined tables."""
        held = peak = 0
        for one in each:
            peak = max(peak, held + one.peak)
            held += one.model + one.weights
        weights = sum(one.weights for one in each)
        return cls(process=each[-1].process, model=held - weights, peak=peak, weights=weights, joined=joined)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """How the run's threads are divided into processes."""

    parts: int
    """Parts in the memory of one process at once: one for each scoring thread, one that is written meanwhile."""
    separate: bool
    """Whether workers are processes beside this one."""
    waiting: int = 0
    """Parts of one process at once whose bytes are on their way from or to a store, those that are scored included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The first rows, as they are read and as they will be written."""

    rows: pa.Table
    out: pa.Table
    scores: int
    """How many columns at the end of `out` are the model's."""
    storage: Storage
    held: float
    """Bytes of a row that the converters and the transform hold while a part is scored."""
    batch: int
    """Bytes that a batch needs."""
    unread: frozenset[str] = frozenset()
    """Columns that are copied with whole row groups and not decoded."""
    copied: float = 0.0
    """Compressed bytes of a row of all copied columns."""
    largest_group: float = 0.0
    """Decoded bytes of the largest row group of the input, without unread columns."""

    @property
    def decoded(self) -> pa.Table:
        """The rows without unread columns."""
        return self.rows.select([name for name in self.rows.column_names if name not in self.unread])

    def encoded(self, *, whole: bool = True) -> tuple[float, float]:
        """Return the encoded bytes of a row and of a file besides; copied columns of whole row groups do not count."""
        copied = self.storage.copied if whole else ()
        table = self.out.select([name for name in self.out.column_names if name not in copied])
        return encoded_growth(table, self.storage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """The memory of the process that needs most, in bytes.

    A part's rows stay in memory until it is written, and Arrow's allocator holds some more than their size. Its
    scores exist twice while batches become columns. The writer holds one encoded row group.
    """

    workers: Workers
    base: int
    """A process with the model, before its first part."""
    rows: float
    """Decoded rows of the largest part."""
    held: float
    """What converters and transform hold of it."""
    scores: float
    """Scores of the largest part."""
    encoded: float
    """The row group that the writer holds."""
    batch: float
    """What one batch needs."""
    slices: float = 0.0
    """A page of each column and its dictionary, while parts are slices of a row group."""
    value: float = 0.0
    """The largest value, if it is far larger than others."""
    remote: float = 0.0
    """Stored bytes of all parts that are on their way from or to a store."""
    weights: int = 0
    """Packed weights, which all workers of a host share."""
    joined: int = 0
    """Tables of --join."""
    reached: int = 0
    """What a process needed at least: for the checks in this process, or to load the model."""

    @property
    def total(self) -> float:
        """The bytes of the process that needs most."""
        each = _ALLOCATED * self.rows + self.held + 2 * self.scores + self.encoded + self.batch
        shared = self.slices + _VALUE_COPIES * self.value + self.remote + self.joined
        return float(max(self.base + self.weights + _RUN_BYTES + self.workers.parts * each + shared, self.reached))

    def explained(self) -> str:
        """Return the formula with its figures."""
        parts = [f"{_ALLOCATED} x {_mb(self.rows)} of rows", f"2 x {_mb(self.scores)} of scores"]
        parts += [f"{_mb(self.encoded)} encoded", f"{_mb(self.batch)} for a batch"]
        parts += [f"{_mb(self.held)} converted"] if self.held >= 1e6 else []  # noqa: PLR2004 - shown in MB
        terms = [f"{_mb(self.base)} MB with the model"]
        terms += [f"{_mb(self.weights)} of weights, which all workers share"] if self.weights else []
        terms += [f"{_mb(_RUN_BYTES)} for the run"]
        terms += [f"{self.workers.parts} x ({' + '.join(parts)})"]
        terms += [f"{_mb(self.remote)} from and to stores"] if self.remote else []
        terms += [f"{_mb(self.joined)} for joined tables"] if self.joined >= 1e6 else []  # noqa: PLR2004 - shown in MB
        terms += [f"{_mb(self.slices)} for slices of row groups"] if self.slices else []
        terms += [f"{_VALUE_COPIES:g} x {_mb(self.value)} for the largest value"] if self.value else []
        where = "each worker: " if self.workers.separate else ""
        return f"{where}{' + '.join(terms)}; at least {_mb(self.reached)}, as before the first part"


def most(needs: Footprint) -> float:
    """Return the high end of the memory that is forecast."""
    return needs.total * _MEMORY_RANGE[1]


def footprint(
    part: int, slice_rows: int, group_rows: int, sample: Measured, loading: Loading, workers: Workers, *,
    filtered: bool, remote: Remote | None = None,
) -> Footprint:  # fmt: skip
    """Return the footprint of parts of `part` rows, or of slices of larger row groups."""
    out, storage, rows = sample.out, sample.storage, sample.rows
    score = out.select(out.column_names[out.num_columns - sample.scores :]).nbytes / max(out.num_rows, 1)
    encoded = sample.encoded(whole=False)[0] * min(storage.row_group_rows, part, slice_rows)
    if storage.copied:
        encoded = max(encoded, _ENCODER_GROWTH * sample.encoded()[0] * min(part, group_rows) + copying.MEMORY)
    usual, value = _usual_and_largest(sample.decoded, sample.largest_group, group_rows)
    every, largest = _usual_and_largest(rows, 0.0, group_rows)  # slices of row groups are decoded with all columns
    value = max(value, largest if group_rows > part else 0.0)
    read = max(part * usual, min(part, slice_rows) * every)
    own = process.peak()
    return Footprint(
        workers=workers,
        base=_WORKER_BYTES + loading.model if workers.separate else loading.process,
        rows=read * (2 if filtered else 1),
        held=part * sample.held,
        scores=part * score,
        encoded=encoded if not max(value, largest) else copying.MEMORY if storage.copied else 0.0,
        batch=sample.batch,
        slices=_slices(sample.decoded, group_rows) if group_rows > part and not value else 0.0,
        value=value,
        joined=loading.joined,
        remote=0.0 if remote is None else _on_the_way(remote, part, group_rows, workers),
        weights=loading.weights,
        reached=max(own, _WORKER_BYTES + loading.peak) if workers.separate else own,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """What passes between a worker and stores."""

    read_row: float = 0.0
    """Stored bytes of a row in the columns that are read; 0 if the input is local."""
    columns: int = 0
    """How many columns are read."""
    written_row: float = 0.0
    """Encoded bytes of a row of the output; 0 if it is local."""


def _on_the_way(remote: Remote, part: int, group_rows: int, workers: Workers) -> float:
    """Return the bytes of parts on their way: all stored columns of each, but only some blocks of large row groups."""
    written = workers.waiting * remote.written_row * part
    if group_rows <= part or not remote.read_row:
        return written + workers.waiting * remote.read_row * part
    from scorer.storage.fetched import window_bytes  # noqa: PLC0415 - only for stores

    return written + _WINDOWS * min(float(window_bytes(remote.columns)), remote.read_row * group_rows)


def _slices(rows: pa.Table, group_rows: int) -> float:
    """Return what is held of a row group while parts take slices of it."""
    n = max(rows.num_rows, 1)
    fixed = [column.nbytes / n for column in rows.columns if pa.types.is_primitive(column.type)]
    others = rows.nbytes / n - sum(fixed)
    pages = min(_PAGE_BYTES * len(fixed), group_rows * sum(fixed))
    return float(pages + 2 * min(group_rows, DECODE_ROWS) * others)  # decoded, and the pages behind it


def _usual_and_largest(rows: pa.Table, largest_group: float, group_rows: int) -> tuple[float, float]:
    """Return the bytes of a usual row, and those of the largest value if it is far larger; 0 if there is none.

    It may be among the first rows, or be what makes a row group far larger than so many rows.
    """
    few = usual_rows(rows)
    usual = few.nbytes / max(few.num_rows, 1)
    value = 0.0 if few is rows else max(float(rows.slice(i, 1).nbytes) for i in range(rows.num_rows))
    excess = largest_group - _UNUSUAL * usual * group_rows
    return usual, max(value, excess if excess >= _LARGE_VALUE else 0.0)


def usual_rows(rows: pa.Table) -> pa.Table:
    """Return the rows without those that are far larger than others; the same table if there are none."""
    if rows.nbytes < _LARGE_VALUE:
        return rows
    sizes = np.array([rows.slice(i, 1).nbytes for i in range(rows.num_rows)])
    usual = sizes < max(_LARGE_VALUE, _UNUSUAL * np.median(sizes))
    return rows if usual.all() else rows.filter(pa.array(usual))


def held_row_bytes(transform: Transform | None, bindings: Sequence[Binding], rows: pa.Table, fed: pa.Table) -> float:
    """Return the bytes of a row that the transform and the converters hold while a part is scored."""
    n = min(_TRACED_ROWS, rows.num_rows, fed.num_rows)
    if not n:
        return 0.0
    rows, fed = rows.slice(0, n), fed.slice(0, n)
    needed = max(float(_traced(partial(pack, binding.feeds, fed))) for binding in bindings)
    if transform is not None:
        given = rows.select(list(transform.reads))
        with suppress(pa.ArrowException):  # a dictionary may hold a text that only bad rows have
            needed = max(needed, _FRAGMENTED * _traced(lambda: transform_.apply(transform, given)))
        needed += float(fed.nbytes)
    return needed / int(n)


def _traced(work: Callable[[], object]) -> int:
    """Return the peak of what Python and numpy allocate in the call."""
    own = not tracemalloc.is_tracing()
    if own:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        work()
        return max(0, tracemalloc.get_traced_memory()[1] - before)
    finally:
        if own:
            tracemalloc.stop()


def batch_bytes(session: Engine, binding: Binding, fed: pa.Table, batch_rows: int, tokens: int | None) -> int:
    """Return what a batch needs, by scoring one or two; return to the system what batches left allocated."""
    one = batches.placeholder_feeds(binding, binding.fixed_batch or 1)
    names = [fetch.tensor for fetch in binding.fetches]
    session.release_memory(names, one)
    process.release_unused()  # otherwise a batch would need nothing that earlier ones have not left
    table = fed.slice(0, min(2 * batch_rows, fed.num_rows))
    with process.measuring() as growth:
        batches.score(table, batches.grid(table.num_rows, batch_rows), binding, session, tokens=tokens)
    session.release_memory(names, one)
    process.release_unused()
    return int(growth.most * max(1.0, batch_rows / max(table.num_rows, 1)))


def _mb(size: float) -> str:
    return f"{size / 1e6:,.0f}"
