"""The ledger, with one row per part, and the manifest, with the totals and the ledger's digest."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scorer.display.words import cut, quoted_list
from scorer.errors import CommitError
from scorer.events import RARE_COUNTS, Counts, Proof, Receipt
from scorer.output.place import sizes_below
from scorer.plan.generations import KEY, folder_of
from scorer.plan.history import known_files, live_parts
from scorer.storage.files import AtOnce, map_write_errors, write_atomically, write_json
from scorer.storage.stores import for_arrow

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from scorer.output.place import Place, Staging
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
GENERATION = pa.field(KEY, pa.int64())
"""One more column, if the output has generations: which of them the part belongs to."""
DELETED = pa.field("deleted", pa.int64())
"""One more column, if rows of a table are deleted: how many of the part's rows."""
UNMATCHED = pa.field("unmatched", pa.int64())
"""One more column, if tables are joined: how many of the scored rows have a key that one of them does not have."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What the proof says of the generations that an output has already."""

    ledger: pa.Table
    generations: tuple[dict[str, Any], ...]
    """As the manifest lists them."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What was measured of them for gates."""


NOTHING_EARLIER = Earlier(ledger=pa.table({}), generations=())


def read_earlier(place: Place, plan: FrozenPlan, published: FrozenPlan) -> Earlier:
    """Read the proof of the published output, to which a plan adds a generation.

    If the output has no generations yet, it becomes the first one, and its parts get the names that publishing will
    give them.
    """
    try:
        ledger = pq.read_table(for_arrow(place.folder / "ledger.parquet"))
        manifest = json.loads((place.folder / "manifest.json").read_text())
        entries = tuple(manifest["generations"]) if published.generation else ()
        figures = manifest.get("figures", {})
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise CommitError(
            "the proof beside the output cannot be read",
            where=str(place.folder),
            expected="a manifest and a ledger",
            found=cut(str(error)),
            hint="restore it, or score everything again with --overwrite",
        ) from error
    if published.generation:
        return _without_replaced(place, plan, published, Earlier(ledger=ledger, generations=entries, figures=figures))
    if not plan.own_names:
        names = [f"{folder_of(1)}/{name}" for name in ledger["name"].to_pylist()]
        ledger = ledger.set_column(ledger.column_names.index("name"), LEDGER.field("name"), pa.array(names))
    ledger = ledger.append_column(GENERATION, pa.array([1] * ledger.num_rows, pa.int64()))
    first = replace(published, generation=1)
    entries = (_entry(first, len(first.files), ledger),)
    return _without_replaced(place, plan, published, Earlier(ledger=ledger, generations=entries, figures=figures))


def _without_replaced(place: Place, plan: FrozenPlan, published: FrozenPlan, earlier: Earlier) -> Earlier:
    """Return the proof of earlier generations without the parts that a plan removes.

    What was measured for gates counts the rows of these parts too, so it is forgotten.
    """
    if not plan.replaced:
        return earlier
    plans = [*place.generations(published), replace(plan, files=())]
    known = known_files(plans)
    kept = pa.array([part.index for part in live_parts(plans)], pa.int64())
    ledger = earlier.ledger.filter(pc.is_in(earlier.ledger["part"], value_set=kept))
    entries = [
        {**entry, "files": sum(known.get(file.path) is file for file in one.files),
         **_sums(ledger.filter(pc.equal(ledger[KEY], entry[KEY])))}
        for entry, one in zip(earlier.generations, plans, strict=False)
    ]  # fmt: skip
    return Earlier(ledger=ledger, generations=tuple(entries))


def write_proof(
    staging: Staging, plan: FrozenPlan, receipts: Mapping[int, Receipt], report: dict[str, Any],
    earlier: Earlier = NOTHING_EARLIER, figures: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    """Write the ledger, the manifest and the report; refuse a ledger that is incomplete or does not add up.

    Returns the digest of the ledger.

    The receipts are those of `as_published`. Ledger and manifest contain the earlier generations, too; so do
    `figures`, which were measured for gates.
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
    own = rows_of(plan, receipts)
    every = _joined(earlier.ledger, own)
    data = _encoded(every)
    ledger, digest = staging.root / "ledger.parquet", hashlib.sha256(data).hexdigest()
    with map_write_errors(staging.root), AtOnce(staging.root) as ask:
        manifest = {
            "scorer": plan.versions.get("scorer", ""),
            "plan": plan.plan_hash,
            "request": plan.request_hash,
            "model": plan.model_digest,
            **_sums(every),
            **({"files_left_out": len(plan.left_out)} if plan.left_out else {}),
            **({"generations": [*earlier.generations, _entry(plan, len(plan.files), own)]} if plan.generation else {}),
            **({"figures": figures} if figures else {}),
            "ledger": digest,
        }
        steps = [
            ask(lambda: write_atomically(ledger, data, durable=True)),
            ask(lambda: write_json(staging.root / "manifest.json", manifest)),
            ask(lambda: write_json(staging.root / "report.json", report)),
        ]
        for step in steps:
            step()
    return digest


def _sums(ledger: pa.Table) -> dict[str, int]:
    """Return the number of parts, their size and the counts of their rows, as a manifest has them."""
    names = [name for name in ("size", *Counts().to_dict()) if name in ledger.column_names]
    sums = {name: pc.sum(ledger[name]).as_py() or 0 for name in names}
    return {
        "parts": ledger.num_rows,
        **{name: value for name, value in sums.items() if value or name not in RARE_COUNTS},
    }


def _entry(plan: FrozenPlan, files: int, ledger: pa.Table) -> dict[str, Any]:
    """Return what a manifest says of one generation: its files and parts that the output has."""
    return {
        KEY: plan.generation,
        "scorer": plan.versions.get("scorer", ""),
        "plan": plan.plan_hash,
        "request": plan.request_hash,
        "files": files,
        **_sums(ledger),
    }


def _joined(earlier: pa.Table, own: pa.Table) -> pa.Table:
    """Return a ledger with the rows of both; a column that only one of them has gets its usual value."""
    if not earlier.num_columns:
        return own
    schema = pa.schema([*own.schema, *(field for field in earlier.schema if field.name not in own.column_names)])
    return pa.concat_tables([_with_columns(one, schema) for one in (earlier, own)])


def _with_columns(ledger: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a ledger with the columns of this schema: those that it lacks are one file, or zero, or no time."""
    columns = []
    for column in schema:
        if column.name in ledger.column_names:
            columns.append(ledger[column.name].cast(column.type))
        else:
            usual = None if column.name in TIMES else 1 if column.name == FILES.name else 0
            columns.append(pa.array([usual] * ledger.num_rows, column.type))
    return pa.table(columns, schema=schema)


def rows_of(plan: FrozenPlan, receipts: Mapping[int, Receipt]) -> pa.Table:
    """Return the ledger as a table, for the parts that have a receipt."""
    done = (part for part in plan.parts() if part.index in receipts)
    rows = [{**_ledger_row(part, receipts[part.index]), KEY: plan.generation} for part in done]
    more = [FILES] if any(file.joined for file in plan.files) else []
    more += [GENERATION] if plan.generation else []
    more += [DELETED] if plan.deleted else []
    more += [UNMATCHED] if plan.joins else []
    return pa.Table.from_pylist(rows, pa.schema([*LEDGER, *more]))


def _encoded(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


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
