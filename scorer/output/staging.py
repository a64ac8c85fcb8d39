"""The staged parts: their folders, the journal of their receipts, and what an earlier run left.

on a disk      one journal, to which each receipt is appended
on a store     journal/TOKEN-00001.jsonl and so on: a segment for a thousand receipts or half a minute, never changed
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from scorer.errors import CommitError, InputChanged, ScorerError
from scorer.events import Receipt
from scorer.output.existing import PROOF_FILES, PROOF_OF_GENERATION
from scorer.output.place import files_of, load_plan, sizes_below, sizes_of
from scorer.output.writer import receipt_of
from scorer.plan.generations import folder_of
from scorer.storage import stores
from scorer.storage.files import AtOnce, as_json, files_in, map_write_errors, sync, write_atomically, write_json
from scorer.storage.stores import exists, for_arrow
from scorer.tables.deleted import NAME, digest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from scorer.output.place import DiskPlace, DiskStaging, Place, Staging
    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.parts import Part
    from scorer.storage.stores import AnyPath, ObjectPath

_JOURNAL, _SEGMENTS = "journal.jsonl", "journal"
_SEGMENT_RECEIPTS, _SEGMENT_S = 1000, 30.0  # a segment of the journal has so many receipts, or those of so many seconds
_PUT_WITHIN_S, _AGAIN_S = 30.0, (0.2, 0.5, 1.0)  # how long one attempt may take; waits before further ones
_AT_ONCE = 32  # requests, when segments and footers are read
_BROKEN = (ScorerError, OSError, ValueError, KeyError, TypeError, pa.ArrowException)


def prepare(place: Place, plan: FrozenPlan, deleted: bytes = b"") -> Staging:
    """Create the staging folders and store the plan; remove unfinished files of an interrupted run.

    `deleted` are the contents of the file with the numbers of deleted rows, if the input has some.
    """
    staging = place.staging(plan.plan_hash, in_table=plan.target is not None)
    if not isinstance(staging.root, Path):
        _write_deleted(staging, plan, deleted)
        _prepare_objects(staging, staging.root, plan)
        return staging
    with map_write_errors(staging.root):
        remove_folder(staging.tmp)
        for folder in (staging.tmp, staging.parts, staging.started, staging.quarantine):
            folder.mkdir(parents=True, exist_ok=True)
        for name in {plan.folder_of(file) for file in plan.files}:
            (staging.parts / name).mkdir(parents=True, exist_ok=True)
        for old in staging.root.glob("stop-*"):
            old.unlink(missing_ok=True)
        _write_deleted(staging, plan, deleted)
        if not (staging.root / "plan.json").exists():
            write_json(staging.root / "plan.json", plan.to_dict())
    return staging


def _write_deleted(staging: Staging, plan: FrozenPlan, data: bytes) -> None:
    """Write the numbers of deleted rows before the plan, which has their digest; refuse others than the planned."""
    wanted = "" if plan.table is None else plan.table.deleted
    if wanted and not data and exists(staging.deleted):  # of a plan that is resumed
        data = staging.deleted.read_bytes()
    if (digest(data) if data else "") != wanted:
        raise InputChanged(
            "the deleted rows of the table are not the planned ones",
            where=plan.table.location if plan.table is not None else str(staging.root),
            expected=f"those of {plan.table.name if plan.table is not None else 'no table'}",
            found="others",
            hint="start again with --overwrite",
        )
    if data:
        with map_write_errors(staging.deleted):
            write_atomically(staging.deleted, data, durable=True)


def _prepare_objects(staging: Staging, root: ObjectPath, plan: FrozenPlan) -> None:
    """Put the plan, unless it is there; remove the stop files of earlier runs."""
    staging.started.mkdir(parents=True, exist_ok=True)
    path = root / "plan.json"
    with map_write_errors(root), AtOnce(root) as ask:
        swept = ask(lambda: root.store.remove(str(old) for old in root.glob("stop-*")))
        first = root.store.put_new(str(path), as_json(plan.to_dict())) is not None
        swept()
        if first:
            return
        found = load_plan(path)
    if found is None or found.plan_hash != plan.plan_hash:
        raise CommitError(
            "another plan is in the staging folder of this one",
            where=str(path),
            expected=f"plan {plan.plan_hash[:12]}",
            found="a plan that cannot be read" if found is None else f"plan {found.plan_hash[:12]}",
            hint="choose another --output, or remove this folder",
        )


def discard_others(place: Place, plan_hash: str) -> None:
    """Remove the staging of every other plan."""
    keep = place.staging(plan_hash).root.name
    for folder in place.work_folders():
        if folder.name != keep:
            remove_folder(folder)


def remove_folder(folder: Path | ObjectPath) -> None:
    """Remove a folder with all that is in it, as far as possible."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with suppress(OSError):
        folder.store.remove(file.path for file in folder.files().values())


def discard_markers(place: Place) -> None:
    """Remove the markers of an earlier driver that was killed while workers were checked."""
    for marker in place.markers():
        with suppress(OSError):
            marker.unlink()


class Journal:
    """A file to which each receipt is appended; parts without a line are known from their footers."""

    def __init__(self, root: Path) -> None:
        self._path = root / _JOURNAL
        with map_write_errors(self._path):
            self._file = self._path.open("a", encoding="utf-8")

    def add(self, receipt: Receipt) -> None:
        """Append one receipt."""
        with map_write_errors(self._path):
            self._file.write(receipt.to_json() + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the journal."""
        with suppress(OSError):
            self._file.close()


class Segments:
    """Objects with some receipts each, written in a thread: a store that answers slowly does not delay the driver.

    A segment that cannot be written is no error, because the footers have the same receipts.
    """

    def __init__(self, root: ObjectPath) -> None:
        self._folder, self._token = root / _SEGMENTS, uuid.uuid4().hex[:8]
        self._number = 0
        self._lines: list[str] = []
        self._since = time.monotonic()
        self._writer = ThreadPoolExecutor(1, "scorer-journal")

    def add(self, receipt: Receipt) -> None:
        """Keep one receipt, and write a segment if it is due."""
        self._lines.append(receipt.to_json())
        if len(self._lines) >= _SEGMENT_RECEIPTS or time.monotonic() - self._since > _SEGMENT_S:
            self._flush()

    def close(self) -> None:
        """Write the last segment."""
        if self._lines:
            self._flush()
        self._writer.shutdown()

    def _flush(self) -> None:
        data = "".join(f"{line}\n" for line in self._lines).encode()
        self._lines, self._since = [], time.monotonic()
        self._number += 1
        self._writer.submit(self._put, self._folder / f"{self._token}-{self._number:05d}.jsonl", data)

    def _put(self, path: ObjectPath, data: bytes) -> None:
        with suppress(OSError):  # the driver waits for this at its end
            store = stores.of(str(path), within_s=_PUT_WITHIN_S).guarded(lambda: None, _AGAIN_S)
            store.put(str(path), data)


def open_journal(staging: Staging) -> Journal | Segments:
    """Return the journal of a staging folder, to write to it."""
    return Journal(staging.root) if isinstance(staging.root, Path) else Segments(staging.root)


def record(staging: Staging, receipts: Collection[Receipt]) -> None:
    """Add receipts to the journal, which replace earlier ones of the same parts."""
    if not receipts:
        return
    journal = open_journal(staging)
    try:
        for receipt in receipts:
            journal.add(receipt)
    finally:
        journal.close()


def _journalled(staging: Staging) -> dict[str, Receipt]:
    """Return the receipts of the journal, by the part's name."""
    found: dict[str, Receipt] = {}
    for line in _journal_lines(staging.root):
        with suppress(ValueError, KeyError, TypeError):  # the last line may be incomplete
            entry = Receipt.from_json(line)
            found[entry.name] = entry
    return found


def _journal_lines(root: Path | ObjectPath) -> Iterator[str]:
    if isinstance(root, Path):
        with suppress(OSError), (root / _JOURNAL).open(encoding="utf-8") as lines:
            yield from lines
        return
    with suppress(OSError), ThreadPoolExecutor(_AT_ONCE) as pool:
        for text in pool.map(lambda path: path.read_text(), sorted((root / _SEGMENTS).iterdir())):
            yield from text.splitlines()


def staged_names(staging: Staging, plan: FrozenPlan) -> Iterator[str]:
    """Yield the names of the staged files; in a table's folder, these are the files that have the plan's name."""
    return (name for name in files_in(staging.parts) if plan.target is None or name.endswith(plan.suffix))


def n_staged(staging: Staging, plan: FrozenPlan) -> int:
    """Count the staged files, from a listing only."""
    return sum(1 for _ in staged_names(staging, plan))


def committed(staging: Staging, plan: FrozenPlan) -> dict[int, Receipt]:
    """Return the receipts of the complete parts in staging, from the journal or from their footers.

    Damaged files and files of other parts are ignored; `sweep` removes them. A part without rows needs no file, because
    publishing may have removed it; the first part does, because its file may be the only one.
    """
    if not isinstance(staging.parts, Path):
        return _committed_objects(staging, staging.parts, plan)
    journalled = _journalled(staging)
    existing = set(staged_names(staging, plan))
    receipts: dict[int, Receipt] = {}
    for part in plan.parts() if existing or journalled else ():
        receipt: Receipt | None = journalled.get(part.name)
        if part.name not in existing:
            if part.index == plan.first_part or not plan.conditions or receipt is None or receipt.proof.counts.scored:
                continue
        elif receipt is None or receipt.size != os.path.getsize(staging.parts / part.name):
            receipt = _receipt_in_footer(staging, part)
        if receipt is not None and (receipt.proof.plan, receipt.proof.part) == (plan.plan_hash, part.index):
            receipts[part.index] = receipt
    return receipts


def _committed_objects(staging: Staging, parts: ObjectPath, plan: FrozenPlan) -> dict[int, Receipt]:
    """Return the receipts from a listing, the journal, and the footers of parts that the journal does not have."""
    with map_write_errors(parts):
        sizes = sizes_below(parts)
    journalled = _journalled(staging) if sizes else {}
    existing = [part for part in plan.parts() if part.name in sizes] if sizes else []
    found = {part.index: receipt for part in existing if (receipt := journalled.get(part.name)) is not None}
    doubtful = [part for part in existing if part.index not in found or found[part.index].size != sizes[part.name]]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        read = pool.map(lambda part: (part, _receipt_in_footer(staging, part)), doubtful)
        receipts: dict[int, Receipt | None] = {**found, **{part.index: receipt for part, receipt in read}}
    return {
        index: receipt
        for index, receipt in receipts.items()
        if receipt is not None and (receipt.proof.plan, receipt.proof.part) == (plan.plan_hash, index)
    }


def _receipt_in_footer(staging: Staging, part: Part) -> Receipt | None:
    try:
        return receipt_of(staging, part.name)
    except _BROKEN:
        return None


def sweep(staging: Staging, plan: FrozenPlan, receipts: Mapping[int, Receipt]) -> None:
    """Remove the staged files that have no receipt."""
    known = {receipt.name for receipt in receipts.values()}
    others = (staging.parts / name for name in staged_names(staging, plan) if name not in known)
    if not isinstance(staging.parts, Path):
        with map_write_errors(staging.parts):
            staging.parts.store.remove(map(str, others))
        return
    for path in others:
        path.unlink(missing_ok=True)


def remove_parts_without_rows(staging: DiskStaging) -> None:
    """Remove the files that the ledger lists with size 0, and then empty folders.

    If publishing fails, these parts are known from the journal.
    """
    names = [name for name, size in sizes_of(staging.root / "ledger.parquet").items() if not size]
    for name in names:
        (staging.parts / name).unlink(missing_ok=True)
    for folder in sorted({parent for name in names for parent in (staging.parts / name).parents}, reverse=True):
        if staging.parts in folder.parents and os.path.isdir(folder) and not os.listdir(folder):
            folder.rmdir()


def sweep_quarantine(staging: DiskStaging) -> None:
    """Remove the quarantine files that the ledger does not name: attempts that were not committed left them."""
    ledger = staging.root / "ledger.parquet"
    if ledger.exists():
        _remove_quarantine_of_others(ledger, staging.quarantine)


def _remove_quarantine_of_others(ledger: Path, quarantine: Path) -> None:
    """Remove the files of a quarantine that the ledger does not name, and the folder if none is left."""
    if not quarantine.exists():
        return
    named = set(pq.read_table(ledger, columns=["quarantine"])["quarantine"].to_pylist())
    for path in quarantine.iterdir():
        if path.name not in named:
            path.unlink()
    if not any(quarantine.iterdir()):
        quarantine.rmdir()


def named_files(ledger: AnyPath) -> set[str]:
    """Return the names of the published files of a ledger; a part without rows has none."""
    return set(files_of(for_arrow(ledger)))


def is_flat(place: Place) -> bool:
    """Return whether the published output has no generations yet."""
    published = load_plan(place.folder / "plan.json")
    return published is not None and not published.generation


def move_proof(place: DiskPlace, staging: DiskStaging, plan: FrozenPlan) -> None:
    """Move the new proof over the old one. plan.json is last, because a repeated publish starts from it."""
    _keep_proofs_of_generations(place, staging, plan)
    for name in (*PROOF_FILES[1:], PROOF_FILES[0]):
        source, target = staging.root / name, place.folder / name
        if not source.exists():
            continue
        if target.is_dir() and plan.generation > 1:  # quarantine, to which each generation adds files
            for path in source.iterdir():
                os.rename(path, target / path.name)
            continue
        if target.is_dir():
            shutil.rmtree(target)
        os.rename(source, target)
    _remove_quarantine_of_others(place.folder / "ledger.parquet", place.folder / "quarantine")
    if plan.table is None or not plan.table.deleted:
        (place.folder / NAME).unlink(missing_ok=True)


def _keep_proofs_of_generations(place: DiskPlace, staging: DiskStaging, plan: FrozenPlan) -> None:
    """Copy what later generations replace into folders of their own; remove those of an output that was replaced.

    In each folder, plan.json is copied last: if it is there, the folder is complete.
    """
    if plan.generation > 1 and is_flat(place):
        _copy_proof(place.folder, place.folder / folder_of(1))
    if plan.generation and (staging.root / "plan.json").exists():
        _copy_proof(staging.root, place.folder / folder_of(plan.generation))
    if plan.generation <= 1:
        for folder in place.generation_folders():
            if folder.name != folder_of(1) or not plan.generation:
                remove_folder(folder)


def _copy_proof(source: Path, target: Path) -> None:
    if (target / "plan.json").exists() and load_plan(target / "plan.json") == load_plan(source / "plan.json"):
        return
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for name in (*PROOF_OF_GENERATION[1:], PROOF_OF_GENERATION[0]):
        if (source / name).exists():
            write_atomically(target / name, (source / name).read_bytes(), durable=True)
    sync(target)
