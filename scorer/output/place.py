"""The folders of an output and its proof, and the plans that lie there."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scorer.dataset.listing import PROOF
from scorer.display.words import nearest, quoted_list
from scorer.errors import CommitError, OutputExists, ScorerError
from scorer.plan.frozen import FORMAT, FrozenPlan, told_apart
from scorer.storage.files import files_in

INTENT = "publish.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run's output and proof are."""

    output: Path
    folder: Path
    """OUT.scorer, or --work-dir."""

    @classmethod
    def of(cls, output: str, work_dir: str | None) -> Place:
        """Symbolic links resolved first, so that a rename lands where the link points."""
        out = Path(os.path.realpath(output))
        folder = Path(os.path.realpath(work_dir)) if work_dir else out.with_name(out.name + PROOF)
        return cls(output=out, folder=folder)

    @property
    def lock(self) -> Path:
        """The lock file."""
        return self.folder / "lock"

    def staging(self, plan_hash: str) -> Staging:
        """Where the parts of this plan are made."""
        return Staging(root=self.folder / f"work-{plan_hash[:8]}")

    def pending(self) -> FrozenPlan | None:
        """The plan of a publish that was begun and cut off."""
        for intent in self.folder.glob(f"work-*/{INTENT}") if os.path.isdir(self.folder) else ():
            plan = load_plan(intent.parent / "plan.json") or load_plan(self.folder / "plan.json")
            if plan is not None and intent.parent == self.staging(plan.plan_hash).root:
                return plan
        return None

    def published(self) -> FrozenPlan | None:
        """The plan behind the output that is there, or that a pending publish is about to put there."""
        pending = self.pending()
        if pending is not None:
            return pending
        try:
            manifest = json.loads((self.folder / "manifest.json").read_text())
        except (OSError, ValueError):
            return None
        plan = load_plan(self.folder / "plan.json")
        fits = plan is not None and isinstance(manifest, dict) and manifest.get("plan") == plan.plan_hash
        return plan if fits and os.path.isdir(self.output) else None

    def unfinished(self) -> list[FrozenPlan]:
        """Plans of runs that were begun here and not published."""
        paths = sorted(self.folder.glob("work-*/plan.json")) if os.path.isdir(self.folder) else []
        plans = map(load_plan, paths)
        return [plan for plan in plans if plan is not None]


def load_plan(path: Path) -> FrozenPlan | None:
    """A frozen plan as it was written, or None when there is none that can be read."""
    try:
        return FrozenPlan.from_dict(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def another_format(place: Place) -> ScorerError | None:
    """The error where the plan beside an output was written by a version of scorer that had another format for it."""
    path = place.folder / "plan.json"
    try:
        data = json.loads(path.read_text())
        found, by = data["request"]["format"], data["versions"]["scorer"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if found == FORMAT:
        return None
    what, hint = "another version of scorer made this output", f"use scorer {by}, or score again with --overwrite"
    return CommitError(what, str(path), f"a plan in format {FORMAT}", f"one in format {found}, by scorer {by}", hint)


def refuse_another_format(place: Place) -> None:
    """Raise where that is why no plan could be read."""
    problem = another_format(place)
    if problem is not None:
        raise problem


def missing_parts(place: Place, plan: FrozenPlan) -> list[str]:
    """Published parts that are gone or of another size, by a listing alone."""
    try:
        ledger = pq.read_table(place.folder / "ledger.parquet", columns=["name", "size"])
    except (OSError, pa.ArrowException):
        return [f"the ledger of {plan.n_parts} parts"]
    faults = []
    for name, size in zip(ledger["name"].to_pylist(), ledger["size"].to_pylist(), strict=True):
        try:
            same = os.stat(place.output / name).st_size == size
        except OSError:
            same = False
        if not same:
            faults.append(name)
    return faults


def not_parquet(output: Path) -> list[str]:
    """Files in a folder that are not Parquet by name."""
    return [name for name in files_in(output) if not name.endswith(".parquet")]


def nobody_wrote(place: Place, kind: type[ScorerError] = CommitError) -> ScorerError:
    """The error where no run has written; its hint names the output that was probably meant."""
    hint = "name the output folder of a run; give --work-dir if it had one"
    with suppress(OSError):
        beside = [one.removesuffix(PROOF) for one in os.listdir(place.output.parent) if one.endswith(PROOF)]
        meant = nearest(place.output.name.removesuffix(PROOF), beside)  # who names the proof means its output
        hint = f"did you mean {meant}?" if meant else hint
    return kind("no run of scorer has written here", str(place.output), f"{place.folder}", "nothing", hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Staging:
    """Where the parts of one plan are made, before they are published."""

    root: Path

    @property
    def tmp(self) -> Path:
        """Attempts; never published."""
        return self.root / "tmp"

    @property
    def parts(self) -> Path:
        """Committed parts; becomes the output in one rename."""
        return self.root / "parts"

    @property
    def started(self) -> Path:
        """A mark for each part in flight."""
        return self.root / "started"

    @property
    def quarantine(self) -> Path:
        """Rows that could not be scored."""
        return self.root / "quarantine"


def flat_name(name: str) -> str:
    """A part's name for a file beside it, in a folder without subfolders."""
    return name.replace("/", "__").removesuffix(".parquet")


def existing_problem(
    place: Place, published: FrozenPlan | None, request: dict[str, Any], *, overwrite: bool
) -> ScorerError | None:
    """An output of something else: only --overwrite, and only over Parquet."""
    if not overwrite:
        strange = not_parquet(place.output)
        what, hint = "the output exists", "choose another --output, or replace it with --overwrite"
        if published is None and strange:
            hint = f"choose another --output; this folder holds {quoted_list(strange, 3)} and is never replaced"
        older = another_format(place)
        old = "files that no run of scorer put there" if older is None else f"that of another version: {older.found}"
        if published is not None:
            old = f"that of another request: {told_apart(published.request, request)}"
        return OutputExists(what, str(place.output), "nothing, or this very run's output", old, hint)
    strange = not_parquet(place.output)
    if published is None and strange:
        what, hint = (
            "the output holds files that are not Parquet",
            "remove the folder yourself, or choose another --output",
        )
        return OutputExists(what, str(place.output), "nothing but Parquet", quoted_list(strange), hint)
    return None
