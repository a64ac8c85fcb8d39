"""The folders of an output and its proof, and the plans stored there."""

from __future__ import annotations

import json
import os
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from scorer.dataset.listing import PROOF
from scorer.display.words import nearest
from scorer.errors import CommitError, OptionsError, ScorerError
from scorer.locations import is_url
from scorer.options.values import PATH
from scorer.options.wrong_types import wrong_type
from scorer.plan.frozen import FORMAT, FrozenPlan
from scorer.storage.stores import AnyPath, ObjectPath, for_arrow, is_folder, path_of, raise_if_unknown, size_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

INTENT = "publish.json"
_MARKER = "seen-"
_WORK = re.compile("work-[0-9a-f]{8}")
_STAGED = {"plan.json", "tmp", "parts", "started", "quarantine", "journal.jsonl", INTENT}
"""Names in a staging folder. While it is removed, any one of them may be the last."""


def _is_staging(names: list[str]) -> bool:
    """Return whether a folder with these names is a staging folder, or what is left of one."""
    return not names or any(name in _STAGED or name.startswith("stop-") for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run's output and its proof are stored."""

    output: AnyPath
    folder: AnyPath
    """OUT.scorer, or --work-dir: the proof of a finished run, the lock and the staged parts of a running one."""

    @classmethod
    def at(cls, output: str | AnyPath, work_dir: str | AnyPath | None) -> Place:
        """Return the place of an output that is given in Python; raise `OptionsError` if it is no path."""
        for name, value in (("output", output), ("work_dir", work_dir)):
            if not isinstance(value, str | AnyPath) and (name == "output" or value is not None):
                raise wrong_type(name, value, PATH)
        return cls.of(str(output), None if work_dir is None else str(work_dir))

    @classmethod
    def of(cls, output: str, work_dir: str | None) -> Place:
        """Return the place of an output; symbolic links are resolved, so that a rename does not replace the link."""
        out = _resolved(output)
        if not out.name and isinstance(out, ObjectPath):
            raise OptionsError(
                "a whole bucket cannot be an output",
                where=output,
                expected="a name in it, with room for a proof beside it",
                found=str(out),
                hint=f"name a folder in it, such as {out / 'scores'}",
            )
        if not out.name:
            raise OptionsError(
                "the root folder cannot be an output",
                where=output,
                expected="a folder that scorer can create, and replace by a rename",
                found=str(out),
                hint=f"name a folder in it, such as {out / 'scores'}",
            )
        folder = _resolved(work_dir) if work_dir else out.with_name(out.name + PROOF)
        if work_dir and _is_elsewhere(out, folder):
            raise OptionsError(
                "the folder for --work-dir is on another store than the output",
                where="--work-dir",
                expected=f"a folder in {out.parts[0]}"
                if isinstance(out, ObjectPath)
                else "a folder on the output's disk",
                found=str(folder),
                hint="leave out --work-dir, or name a folder beside the output",
            )
        return cls(output=out, folder=folder)

    @property
    def lock(self) -> AnyPath:
        """The path of the lock file."""
        return self.folder / "lock"

    def marker(self) -> AnyPath:
        """Return a new path for a file that shows workers that they see this folder."""
        return self.folder / f"{_MARKER}{uuid.uuid4().hex[:8]}"

    def markers(self) -> list[AnyPath]:
        """Return the markers, and the files that workers wrote beside them; left if a driver or worker was killed."""
        return [*self.folder.glob(f"{_MARKER}*")]

    def staging(self, plan_hash: str) -> Staging:
        """Return the staging folders of a plan."""
        return Staging(root=self.folder / f"work-{plan_hash[:8]}")

    def work_folders(self) -> list[AnyPath]:
        """Return the staging folders of all plans, also of those that are half removed; no folder of another origin."""
        found: Iterable[AnyPath] = self.folder.glob("work-*")
        named = [path for path in found if _WORK.fullmatch(path.name) and path.is_dir()]
        return [path for path in named if _is_staging([child.name for child in path.iterdir()])]

    def pending(self) -> FrozenPlan | None:
        """Return the plan whose publishing was interrupted, or None."""
        for intent in self.folder.glob(f"work-*/{INTENT}") if is_folder(self.folder) else ():
            plan = load_plan(intent.parent / "plan.json") or load_plan(self.folder / "plan.json")
            if plan is not None and intent.parent == self.staging(plan.plan_hash).root:
                return plan
        return None

    def published(self) -> FrozenPlan | None:
        """Return the plan of the published output, or of one whose publishing was interrupted; None without either."""
        pending = self.pending()
        if pending is not None:
            return pending
        try:
            manifest = json.loads((self.folder / "manifest.json").read_text())
        except (OSError, ValueError) as error:
            raise_if_unknown(self.folder, error)
            return None
        plan = load_plan(self.folder / "plan.json")
        fits = plan is not None and isinstance(manifest, dict) and manifest.get("plan") == plan.plan_hash
        return plan if fits and is_folder(self.output) else None

    def unfinished(self) -> list[FrozenPlan]:
        """Return the plans of runs that were started here and not published."""
        found: Iterable[AnyPath] = self.folder.glob("work-*/plan.json") if is_folder(self.folder) else ()
        plans = [load_plan(path) for path in sorted(found, key=str)]
        return [plan for plan in plans if plan is not None]


def _resolved(location: str) -> AnyPath:
    """Return the path of a location; the links of a local one are resolved."""
    return path_of(location if is_url(location) else os.path.realpath(location))


def _is_elsewhere(output: AnyPath, folder: AnyPath) -> bool:
    """Return whether a work folder is on another kind of storage, in another bucket, or is a whole bucket."""
    if not isinstance(output, ObjectPath) or not isinstance(folder, ObjectPath):
        return isinstance(output, ObjectPath) or isinstance(folder, ObjectPath)
    return folder.parts[0] != output.parts[0] or not folder.name


def load_plan(path: AnyPath) -> FrozenPlan | None:
    """Read a frozen plan; return None if the file does not exist or is not a valid plan."""
    try:
        return FrozenPlan.from_dict(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise_if_unknown(path, error)
        return None


def another_format(place: Place) -> ScorerError | None:
    """Return the error for a plan that a version of scorer with another plan format wrote, or None."""
    path = place.folder / "plan.json"
    try:
        data = json.loads(path.read_text())
        found, version = data["request"]["format"], data["versions"]["scorer"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise_if_unknown(path, error)
        return None
    if found == FORMAT:
        return None
    return CommitError(
        "another version of scorer created this output",
        where=str(path),
        expected=f"a plan in format {FORMAT}",
        found=f"format {found}, by scorer {version}",
        hint=f"use scorer {version}, or score again with --overwrite",
    )


def refuse_another_format(place: Place) -> None:
    """Raise the error of `another_format`, if any."""
    problem = another_format(place)
    if problem is not None:
        raise problem


def missing_parts(place: Place, plan: FrozenPlan) -> list[str]:
    """List the published parts that are missing or have another size, from the ledger and the files' sizes."""
    try:
        ledger = pq.read_table(for_arrow(place.folder / "ledger.parquet"), columns=["name", "size"])
    except (OSError, pa.ArrowException) as error:
        raise_if_unknown(place.folder, error)
        return [f"the ledger of {plan.n_parts} parts"]
    there = sizes_in(place.output)
    sizes = zip(ledger["name"].to_pylist(), ledger["size"].to_pylist(), strict=True)
    return [name for name, size in sizes if size and there(name) != size]  # a part without rows has no file


def sizes_in(output: AnyPath) -> Callable[[str], int]:
    """Return a function that gives the size of a part, or -1 if it is missing; a store is listed once."""
    if not isinstance(output, ObjectPath):
        return lambda name: size_of(output / name)
    there = output.files()
    return lambda name: there[name].size if name in there else -1


def nobody_wrote(place: Place, kind: type[ScorerError] = CommitError) -> ScorerError:
    """Return the error for a place without a run. Its hint names the output that was probably meant."""
    hint = "name the output folder of a run; give --work-dir if it had one"
    with suppress(OSError):
        names = [path.name for path in place.output.parent.iterdir()]
        outputs = [name.removesuffix(PROOF) for name in names if name.endswith(PROOF)]
        meant = nearest(place.output.name.removesuffix(PROOF), outputs)  # OUT.scorer stands for OUT
        hint = f"did you mean {meant}?" if meant else hint
    return kind(
        "no run of scorer has written here",
        where=str(place.output),
        expected=str(place.folder),
        found="nothing",
        hint=hint,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Staging:
    """The folders in which the parts of one plan are written before they are published."""

    root: AnyPath

    @property
    def tmp(self) -> AnyPath:
        """Unfinished files of attempts; never published."""
        return self.root / "tmp"

    @property
    def parts(self) -> AnyPath:
        """Committed parts; becomes the output in one rename."""
        return self.root / "parts"

    @property
    def started(self) -> AnyPath:
        """One mark for each part in progress."""
        return self.root / "started"

    @property
    def quarantine(self) -> AnyPath:
        """Rows that could not be scored."""
        return self.root / "quarantine"


def flat_name(name: str) -> str:
    """Return a part's name without its suffix, and with its folders joined into one file name."""
    return name.replace("/", "__").removesuffix(".parquet")
