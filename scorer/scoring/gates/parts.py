"""Measure the rows of a part: while it is scored, or later from its file.

A part's receipt holds what was measured of it. A receipt lacks it if the part was scored under other gates, or if the
driver was killed before it received the receipt; then the part's file is read again, and the input for columns that are
not in it.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from scorer.arrow import decode_schema
from scorer.dataset import fields
from scorer.display.words import plural
from scorer.errors import CommitError
from scorer.output.writer import open_part
from scorer.scoring.gates.measures import added, measured
from scorer.scoring.gates.pairs import SHOW_ROWS, Places
from scorer.storage.footers import open_parquet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scorer.dataset.reader import Rows
    from scorer.events import Receipt
    from scorer.output.place import Staging
    from scorer.output.writer import Source
    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.gates import Gates, Measure
    from scorer.plan.parts import Part

_AT_ONCE = min(4, os.cpu_count() or 1)  # files that are read at the same time
State = dict[str, Any]


def of_scored(gates: Gates, part: Part, rows: Rows, scores: pa.Table, good: pa.ChunkedArray | None) -> dict[str, State]:
    """Return what is measured of the good rows of a part: their scores, and columns of the input that were read."""
    names = dict.fromkeys(name for measure in gates.measures for name in measure.columns)
    columns = {name: _column(name, scores, rows, good) for name in names}
    return measured(gates.measures, _table(columns, scores.num_rows), _places(part, rows, good))


def _column(name: str, scores: pa.Table, rows: Rows, good: pa.ChunkedArray | None) -> pa.ChunkedArray:
    if name in scores.column_names:
        return scores[name]
    column = rows.table[name]
    return column if good is None else column.filter(good)


def _table(columns: Mapping[str, pa.ChunkedArray], rows: int) -> pa.Table:
    """Return the columns as a table, which has its rows even if there are no columns."""
    return pa.table({**columns, "": pa.nulls(rows)}) if not columns else pa.table(dict(columns))


def _places(part: Part, rows: Rows, good: pa.ChunkedArray | None) -> Places:
    """Return where the good rows of a part are in the input."""

    def of(wanted: Sequence[int]) -> list[tuple[str, int]]:
        numbers = rows.places.numbers()
        at = np.asarray(wanted) if good is None else np.flatnonzero(np.asarray(good))[np.asarray(wanted)]
        files = np.searchsorted(np.cumsum(rows.counts), at, side="right")
        return [(part.sources[file].path, int(numbers[row])) for file, row in zip(files.tolist(), at, strict=True)]

    return Places(part.index, of)


def complete(
    gates: Gates, frozen: FrozenPlan, staging: Staging, receipts: Mapping[int, Receipt], read: Callable[[Part], Rows],
    notify: Callable[[str], None],
) -> dict[int, Receipt]:  # fmt: skip
    """Return new receipts for the parts whose receipts lack something; it is measured from their files.

    `read` reads the rows of a part from the input again.
    """
    keys = {one.key for one in gates.measures}
    lacking = [part for part in frozen.parts() if keys - receipts[part.index].figures.keys()]
    if not lacking:
        return {}
    notify(f"gates need figures that were not measured during scoring; reading {plural(len(lacking), 'staged part')}")

    def measure(part: Part) -> tuple[int, Receipt]:
        receipt = receipts[part.index]
        absent = [one for one in gates.measures if one.key not in receipt.figures]
        found = _of_staged(absent, frozen, staging, part, receipt, read)
        return part.index, replace(receipt, figures={**receipt.figures, **found})

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(pool.map(measure, lacking))


def _of_staged(
    measures: Sequence[Measure], frozen: FrozenPlan, staging: Staging, part: Part, receipt: Receipt,
    read: Callable[[Part], Rows],
) -> dict[str, State]:  # fmt: skip
    """Measure a staged part from its file, and from the input for columns that the file does not have."""
    schema, n_rows = decode_schema(frozen.output_schema), receipt.proof.counts.scored
    names = dict.fromkeys(name for measure in measures for name in measure.columns)
    written = [name for name in names if name in schema.names]
    columns: dict[str, pa.ChunkedArray] = {}
    if written and n_rows:
        columns = _read(staging.parts / receipt.name, written)
    elif written:  # a part without rows may have no file
        columns = {name: pa.chunked_array([], schema.field(name).type) for name in written}
    places = Places(part.index, lambda wanted: [("", row) for row in wanted])
    if len(written) < len(names) or any(one.kind in SHOW_ROWS for one in measures):
        rows = read(part)
        good = pa.chunked_array([pa.array(_input_rows(rows, staging, part, receipt))])
        places = _places(part, rows, good)
        columns |= {name: rows.table[name].filter(good) for name in names if name not in columns}
    return measured(measures, _table(columns, n_rows), places)


def _read(source: Source, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    with open_part(source) as parquet:
        table = parquet.read(columns=fields.stored(names, parquet.schema_arrow.names), use_threads=False)
    return {name: fields.select(table, [name])[name] for name in names}


def _input_rows(rows: Rows, staging: Staging, part: Part, receipt: Receipt) -> np.ndarray:
    """Return which of the rows of a part, which were read again, were scored: those that are not in quarantine."""
    good = np.ones(rows.table.num_rows, bool)
    if receipt.proof.quarantine:
        with open_parquet(str(staging.quarantine / receipt.proof.quarantine)) as parquet:
            bad = parquet.read(columns=["_file", "_row"])
        places = {*zip(bad["_file"].to_pylist(), bad["_row"].to_pylist(), strict=True)}
        files = np.repeat([source.path for source in part.sources], rows.counts)
        at = zip(files.tolist(), rows.places.numbers().tolist(), strict=True)
        good = np.fromiter((place not in places for place in at), bool, rows.table.num_rows)
    if np.count_nonzero(good) != receipt.proof.counts.scored:
        raise CommitError(
            "the rows of a staged part cannot be found in the input again",
            where=str(staging.parts / receipt.name),
            expected=f"{receipt.proof.counts.scored:,} scored rows",
            found=f"{np.count_nonzero(good):,} rows",
            hint="leave out the new --gate, or start again with --overwrite",
        )
    return good


def of_files(measures: Sequence[Measure], sources: Sequence[Source]) -> dict[str, State]:
    """Return what is measured of all rows of some files."""
    names = [*dict.fromkeys(name for measure in measures for name in measure.columns)]

    def measure(source: Source) -> dict[str, State]:
        columns = _read(source, names)
        return measured(measures, pa.table(columns), Places(0, lambda wanted: [("", row) for row in wanted]))

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(measure, sources))
    return {one.key: added(one, [states[one.key] for states in found]) for one in measures}
