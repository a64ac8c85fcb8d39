"""The ledger, with one row per part, and the manifest, with the totals and the ledger's digest."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from scorer.display.words import quoted_list
from scorer.errors import CommitError
from scorer.events import Counts, Proof, Receipt
from scorer.output.place import sizes_below
from scorer.storage.files import file_digest, map_write_errors, sync, write_json
from scorer.storage.stores import for_arrow

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from scorer.output.place import Staging
    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.parts import Part
    from scorer.storage.stores import ObjectPath


LEDGER = pa.schema([
    ("part", pa.int64()), ("name", pa.string()), ("file", pa.string()),
    ("row_start", pa.int64()), ("row_stop", pa.int64()),
    ("rows", pa.int64()), ("scored", pa.int64()), ("quarantined", pa.int64()), ("filtered", pa.int64()),
    ("lossy", pa.int64()), ("nan", pa.int64()), ("truncated", pa.int64()), ("size", pa.int64()),
    ("digests", pa.map_(pa.string(), pa.string())), ("quarantine", pa.string()),
    ("batch_rows", pa.int64()), ("calls", pa.int64()), ("device", pa.string()),
    ("worker", pa.string()), ("attempt", pa.string()), ("bytes_read", pa.int64()),
    ("read_s", pa.float64()), ("decode_s", pa.float64()), ("pack_s", pa.float64()), ("infer_s", pa.float64()),
    ("unpack_s", pa.float64()), ("write_s", pa.float64()), ("started", pa.float64()), ("ended", pa.float64()),
])  # fmt: skip
"""The columns of the ledger, which has one row per part. The file and its rows are the first ones of the part."""
FILES = pa.field("files", pa.int64())
"""One more column, if a part has the rows of several files: how many."""
DELETED = pa.field("deleted", pa.int64())
"""One more column, if rows of a table are deleted: how many of the part's rows."""
TIMES = ("started", "ended")
"""Columns that may be null: a part known only from its footer has no times, and older ledgers have none."""


def totals(receipts: Iterable[Receipt]) -> Counts:
    """Add up the counts of these receipts."""
    total = Counts()
    for receipt in receipts:
        total += receipt.proof.counts
    return total


def as_published(plan: FrozenPlan, receipts: Mapping[int, Receipt]) -> dict[int, Receipt]:
    """Return the receipts with size 0 for the parts whose files are not published.

    With --where, these are the parts without rows. If no part has rows, the first one's file is published, because it
    has the columns.
    """
    if not plan.conditions:
        return dict(receipts)
    empty = [part for part, receipt in receipts.items() if not receipt.proof.counts.scored]
    left_out = empty if len(empty) < len(receipts) else [part for part in empty if part != min(empty)]
    return {**receipts, **{part: replace(receipts[part], size=0) for part in left_out}}


def write_proof(staging: Staging, plan: FrozenPlan, receipts: Mapping[int, Receipt], report: dict[str, Any]) -> None:
    """Write the ledger, the manifest and the report; refuse a ledger that is incomplete or does not add up.

    The receipts are those of `as_published`.
    """
    parts = list(plan.parts())
    absent = [part.index for part in parts if part.index not in receipts]
    changed = _changed(staging, receipts.values())
    if changed:
        raise CommitError(
            "staged parts changed during the run",
            where=str(staging.parts),
            expected="files of the recorded sizes",
            found=quoted_list(changed),
            hint="repeat the command; it scores these parts again",
        )
    uneven = [i for i, receipt in receipts.items() if not receipt.proof.counts.balanced]
    counts = totals(receipts.values())
    if absent or uneven or counts.rows != plan.rows:
        missing = f"{len(absent)} parts without a receipt, {len(uneven)} whose rows do not add up"
        raise CommitError(
            "the ledger does not add up",
            where=str(staging.root),
            expected=f"{plan.rows} rows in {len(parts)} parts",
            found=f"{counts.rows} rows, {missing}",
            hint="this is a bug in scorer, please report it; nothing was published, and the parts are kept",
        )
    with map_write_errors(staging.root):
        ledger = staging.root / "ledger.parquet"
        _write_ledger(rows_of(plan, receipts), ledger)
        manifest = {
            "scorer": plan.versions.get("scorer", ""),
            "plan": plan.plan_hash,
            "request": plan.request_hash,
            "model": plan.session.digest,
            "parts": len(parts),
            "size": sum(receipt.size for receipt in receipts.values()),
            **{name: value for name, value in counts.to_dict().items() if name != DELETED.name or value},
            **({"files_left_out": len(plan.left_out)} if plan.left_out else {}),
            "ledger": file_digest(ledger),
        }
        write_json(staging.root / "manifest.json", manifest)
        write_json(staging.root / "report.json", report)


def rows_of(plan: FrozenPlan, receipts: Mapping[int, Receipt]) -> pa.Table:
    """Return the ledger as a table, for the parts that have a receipt."""
    rows = [_ledger_row(part, receipts[part.index]) for part in plan.parts() if part.index in receipts]
    more = [FILES] if any(file.joined for file in plan.files) else []
    return pa.Table.from_pylist(rows, pa.schema([*LEDGER, *more, *([DELETED] if plan.deleted else [])]))


def _write_ledger(rows: pa.Table, path: Path | ObjectPath) -> None:
    if isinstance(path, Path):
        pq.write_table(rows, path, compression="zstd")
        sync(path)
        return
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    path.write_bytes(sink.getvalue().to_pybytes())


def _changed(staging: Staging, receipts: Iterable[Receipt]) -> list[str]:
    """List the parts that are missing or have another size than their receipt says."""
    parts, named = staging.parts, [receipt for receipt in receipts if receipt.size]
    if isinstance(parts, Path):
        return [receipt.name for receipt in named if _size(parts / receipt.name) != receipt.size]
    with map_write_errors(parts):
        sizes = sizes_below(parts)
    return [receipt.name for receipt in named if sizes.get(receipt.name) != receipt.size]


def _size(path: Path) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return -1


def read_receipts(path: Path | ObjectPath) -> dict[int, Receipt]:
    """Read the receipts of a finished run from its ledger."""
    receipts = {}
    for row in pq.read_table(for_arrow(path)).to_pylist():
        proof = Proof(
            part=row["part"], plan="", model="", digests=dict(row["digests"]), quarantine=row["quarantine"],
            counts=counts_of(row),
        )  # fmt: skip
        receipts[proof.part] = Receipt(proof=proof, name=row["name"], size=row["size"])
    return receipts


def counts_of(row: Mapping[str, Any]) -> Counts:
    """Return the counts of a row of the ledger."""
    return Counts(**{name: row[name] for name in Counts().to_dict() if name in row})


def _ledger_row(part: Part, receipt: Receipt) -> dict[str, Any]:
    proof, first = receipt.proof, part.sources[0]
    return {
        "part": part.index,
        "name": part.name,
        "file": first.path,
        "row_start": first.start,
        "row_stop": first.stop,
        FILES.name: len(part.sources),
        **proof.counts.to_dict(),
        "size": receipt.size,
        "digests": list(proof.digests.items()),
        "quarantine": proof.quarantine,
        **{
            name: getattr(receipt, name)
            for name in ("batch_rows", "calls", "device", "worker", "attempt", "bytes_read")
        },
        **{f"{name}_s": value for name, value in receipt.stages.to_dict().items()},
        **{name: getattr(receipt, name) or None for name in TIMES},
    }
