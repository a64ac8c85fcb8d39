"""The staged parts: begun, journalled, found again, swept."""

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

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scorer.output.place import Place, Staging
    from scorer.plan.frozen import FrozenPlan

_JOURNAL = "journal.jsonl"


def begin(place: Place, plan: FrozenPlan) -> Staging:
    """Staging folders, the plan in them; what an interrupted run left behind is swept."""
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
    for folder in place.folder.glob("work-*"):
        if folder.name != keep:
            shutil.rmtree(folder, ignore_errors=True)


class Journal:
    """Receipts as they come, one line each; footers are read where it is silent."""

    def __init__(self, staging: Staging) -> None:
        self._path = staging.root / _JOURNAL
        self._file = self._path.open("a", encoding="utf-8")

    def add(self, receipt: Receipt) -> None:
        """Note one receipt."""
        with map_write_errors(self._path):
            self._file.write(receipt.to_json() + "\n")
            self._file.flush()

    def close(self) -> None:
        """Nothing more will come."""
        with suppress(OSError):
            self._file.close()


def n_staged(staging: Staging) -> int:
    """How many files are in staging, by a listing alone."""
    return sum(len(names) for _, _, names in os.walk(staging.parts))


def committed(staging: Staging, plan: FrozenPlan) -> dict[int, Receipt]:
    """Receipts of the parts that are whole in staging now, from the journal or their footers.

    What is damaged, or another part's file, counts as not there; `sweep` removes it.
    """
    noted: dict[str, Receipt] = {}
    with suppress(OSError), (staging.root / _JOURNAL).open(encoding="utf-8") as lines:
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):  # the last line may be torn
                one = Receipt.from_json(line)
                noted[one.name] = one
    there = set(files_in(staging.parts))
    found: dict[int, Receipt] = {}
    for part in plan.parts() if there else ():
        if part.name not in there:
            continue
        receipt: Receipt | None = noted.get(part.name)
        if receipt is None or receipt.size != os.path.getsize(staging.parts / part.name):
            try:
                receipt = receipt_of(staging, part.name)
            except (ScorerError, OSError, ValueError, KeyError, TypeError, pa.ArrowException):
                continue
        if (receipt.proof.plan, receipt.proof.part) == (plan.plan_hash, part.index):
            found[part.index] = receipt
    return found


def sweep(staging: Staging, receipts: Mapping[int, Receipt]) -> None:
    """Remove from the staged parts whatever no receipt speaks for."""
    known = {receipt.name for receipt in receipts.values()}
    for name in files_in(staging.parts):
        if name not in known:
            (staging.parts / name).unlink(missing_ok=True)
