"""The staged parts: their folders, the journal of their receipts, and what an earlier run left."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

import pyarrow as pa

from scorer.errors import ScorerError
from scorer.events import Receipt
from scorer.output.writer import receipt_of
from scorer.storage.files import files_in, map_write_errors, write_json
from scorer.storage.stores import ObjectPath

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scorer.output.place import Place, Staging
    from scorer.plan.frozen import FrozenPlan

_JOURNAL = "journal.jsonl"


def prepare(place: Place, plan: FrozenPlan) -> Staging:
    """Create the staging folders and store the plan; remove unfinished files of an interrupted run."""
    staging = place.staging(plan.plan_hash)
    with map_write_errors(staging.root):
        shutil.rmtree(staging.tmp, ignore_errors=True)
        for folder in (staging.tmp, staging.parts, staging.started, staging.quarantine):
            folder.mkdir(parents=True, exist_ok=True)
        for name in {file.folder for file in plan.files}:
            (staging.parts / name).mkdir(parents=True, exist_ok=True)
        for old in staging.root.glob("stop-*"):
            old.unlink(missing_ok=True)
        if not (staging.root / "plan.json").exists():
            write_json(staging.root / "plan.json", plan.to_dict())
    return staging


def discard_others(place: Place, plan_hash: str) -> None:
    """Remove the staging of every other plan."""
    keep = place.staging(plan_hash).root.name
    for folder in place.work_folders():
        if folder.name != keep:
            shutil.rmtree(folder, ignore_errors=True)


def discard_markers(place: Place) -> None:
    """Remove the markers of an earlier driver that was killed while workers were checked."""
    for marker in place.markers():
        with suppress(OSError):
            marker.unlink()


class Journal:
    """A file to which each receipt is appended; parts without a line are known from their footers."""

    def __init__(self, staging: Staging) -> None:
        self._path = staging.root / _JOURNAL
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


def n_staged(staging: Staging) -> int:
    """Count the staged files, from a listing only."""
    if isinstance(staging.parts, ObjectPath):
        return len(staging.parts.files())
    return sum(len(names) for _, _, names in os.walk(staging.parts))


def committed(staging: Staging, plan: FrozenPlan) -> dict[int, Receipt]:
    """Return the receipts of the complete parts in staging, from the journal or from their footers.

    Damaged files and files of other parts are ignored; `sweep` removes them. A part without rows needs no file, because
    publishing may have removed it; the first part does, because its file may be the only one.
    """
    journalled: dict[str, Receipt] = {}
    with suppress(OSError), (staging.root / _JOURNAL).open(encoding="utf-8") as lines:
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):  # the last line may be incomplete
                entry = Receipt.from_json(line)
                journalled[entry.name] = entry
    existing = set(files_in(staging.parts))
    receipts: dict[int, Receipt] = {}
    for part in plan.parts() if existing or journalled else ():
        receipt: Receipt | None = journalled.get(part.name)
        if part.name not in existing:
            if not part.index or not plan.conditions or receipt is None or receipt.proof.counts.scored:
                continue
        elif receipt is None or receipt.size != os.path.getsize(staging.parts / part.name):
            try:
                receipt = receipt_of(staging, part.name)
            except (ScorerError, OSError, ValueError, KeyError, TypeError, pa.ArrowException):
                continue
        if (receipt.proof.plan, receipt.proof.part) == (plan.plan_hash, part.index):
            receipts[part.index] = receipt
    return receipts


def sweep(staging: Staging, receipts: Mapping[int, Receipt]) -> None:
    """Remove the staged files that have no receipt."""
    known = {receipt.name for receipt in receipts.values()}
    for name in files_in(staging.parts):
        if name not in known:
            (staging.parts / name).unlink(missing_ok=True)
