"""The folders of an output and its proof, on a disk or on an object store, and the plans stored there."""

from __future__ import annotations

import json
import os
import re
import uuid
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from scorer.dataset.listing import PROOF
from scorer.display.words import nearest
from scorer.errors import CommitError, OptionsError, ScorerError
from scorer.host.private import private_folder
from scorer.locations import is_url, scheme
from scorer.options import store_options
from scorer.options.values import PATH, STORE_OPTIONS
from scorer.options.wrong_types import described, wrong_type
from scorer.plan.frozen import FORMAT, FrozenPlan
from scorer.plan.generations import KEY, folder_of
from scorer.storage import stores
from scorer.storage.files import AtOnce
from scorer.storage.stores import AnyPath, ObjectPath, for_arrow, is_folder, path_of, raise_if_unknown, size_of
from scorer.tables import deleted
from scorer.tables.target import SCHEME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scorer.options.store_options import StoreOption

INTENT = "publish.json"
SUCCESS = "_SUCCESS"
"""The empty file that --success-file puts into an output on a store."""
_MARKER = "seen-"
_PLANS_AT_ONCE = 32  # plans of generations, each a file of its own
_LONGEST_NAME = 180  # bytes: file systems allow 255, and attempts add to it
_WORK = re.compile("work-[0-9a-f]{8}")
_STAGED = {"plan.json", "tmp", "parts", "started", "quarantine", "journal.jsonl", "journal", INTENT, deleted.NAME}
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
    def at(
        cls, output: str | AnyPath, work_dir: str | AnyPath | None, store_option: StoreOption = ()
    ) -> Place:  # fmt: skip
        """Return the place of an output that is given in Python; raise `OptionsError` if it is no path.

        Options of stores apply to this process from here on, as those of a run do.
        """
        if store_option:
            try:
                stores.configure(store_options.parse(store_option))
            except TypeError as error:
                raise OptionsError(
                    "the value of 'store_option' is not valid",
                    where="store_option",
                    expected=STORE_OPTIONS.types,
                    found=described(store_option),
                    hint='pass a mapping, such as {"region": "eu-west-1"}',
                ) from error
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
        if isinstance(out, ObjectPath) and isinstance(folder, ObjectPath):
            return StorePlace(output=out, folder=folder)
        if isinstance(out, Path) and isinstance(folder, Path):
            return DiskPlace(output=out, folder=folder)
        raise TypeError(folder)  # `_is_elsewhere` has refused it

    @property
    def occupied(self) -> bool:
        """Whether there is a file in the output."""
        there = is_folder(self.output)
        return there if isinstance(self.output, ObjectPath) else there and any(True for _ in self.output.iterdir())

    @property
    def local_folder(self) -> Path:
        """A folder for the logs and keys of a queue's jobs: that of the proof, or one in the current folder."""
        return self.folder if isinstance(self.folder, Path) else Path.cwd() / f"{self.output.name}.jobs"

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

    def staging(self, plan_hash: str, *, in_table: bool = False) -> Staging:
        """Return the staging folders of a plan; the parts of a table are written to its own folder."""
        return Staging(root=self.folder / f"work-{plan_hash[:8]}", table=self.output if in_table else None)

    def _found(self, pattern: str) -> Iterable[AnyPath]:
        """Return paths below the folder; a disk may not take its name, and a store need not be asked for it first."""
        there = isinstance(self.folder, ObjectPath) or is_folder(self.folder)
        return self.folder.glob(pattern) if there else ()

    def work_folders(self) -> list[AnyPath]:
        """Return the staging folders of all plans, also of those that are half removed; no folder of another origin."""
        named = [path for path in self._found("work-*") if _WORK.fullmatch(path.name) and path.is_dir()]
        return [path for path in named if _is_staging([child.name for child in path.iterdir()])]

    def generation_folders(self) -> list[AnyPath]:
        """Return the folders that hold the plans of generations."""
        return [*self._found(f"{KEY}=*")]

    def proof_of(self, plan: FrozenPlan) -> AnyPath:
        """Return the folder with what is kept of a plan of the published output."""
        own = self.folder / folder_of(plan.generation)
        return own if plan.generation and is_folder(own) else self.folder

    def pending(self) -> FrozenPlan | None:
        """Return the plan whose publishing was interrupted, or None."""
        for intent in self._found(f"work-*/{INTENT}"):
            plan = load_plan(intent.parent / "plan.json") or load_plan(self.folder / "plan.json")
            if plan is not None and intent.parent == self.staging(plan.plan_hash).root:
                return plan
        return None

    def published(self) -> FrozenPlan | None:
        """Return the plan of the published output, or of one whose publishing was interrupted; None without either."""
        with AtOnce(self.folder) as ask:
            pending, manifest = ask(self.pending), ask((self.folder / "manifest.json").read_text)
            found = pending()
            if found is not None:
                return found
            try:
                named = json.loads(manifest())
            except (OSError, ValueError) as error:
                raise_if_unknown(self.folder, error)
                return None
            plan, there = ask(lambda: load_plan(self.folder / "plan.json")), ask(lambda: is_folder(self.output))
            found = plan()
            fits = found is not None and isinstance(named, dict) and named.get("plan") == found.plan_hash
            return found if fits and there() else None

    def generations(self, last: FrozenPlan) -> list[FrozenPlan]:
        """Return the plans of all generations of the published output, whose last one is given.

        An output without generations is its own first one. Raise `CommitError` if an earlier plan is lost.
        """
        paths = [self.folder / folder_of(n) / "plan.json" for n in range(1, last.generation)]
        with ThreadPoolExecutor(_PLANS_AT_ONCE) as pool:
            found = list(pool.map(load_plan, paths))
        for path, plan, following in zip(paths, found, [*found, last][1:], strict=True):
            if plan is None or following is None or following.previous != plan.plan_hash:
                raise CommitError(
                    "the proof of an earlier generation is lost",
                    where=str(path),
                    expected="the plan that this generation was scored by",
                    found="no plan, or another one",
                    hint="restore it, or score everything again with --overwrite",
                )
        return [*(replace(plan, generation=n) for n, plan in enumerate(found, 1) if plan is not None), last]

    def lost_generation(self, last: FrozenPlan) -> ScorerError | None:
        """Return the error of `generations` if an earlier plan is lost, or None."""
        try:
            self.generations(last)
        except CommitError as error:
            return error
        return None

    def unfinished(self) -> list[FrozenPlan]:
        """Return the plans of runs that were started here and not published."""
        plans = [load_plan(path) for path in sorted(self._found("work-*/plan.json"), key=str)]
        return [plan for plan in plans if plan is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlace(Place):
    """The place of an output on a disk."""

    output: Path
    folder: Path

    @property
    def lock(self) -> Path:
        """The path of the lock file."""
        return self.folder / "lock"

    def staging(self, plan_hash: str, *, in_table: bool = False) -> DiskStaging:
        """Return the staging folders of a plan; the parts of a table are written to its own folder."""
        return DiskStaging(root=self.folder / f"work-{plan_hash[:8]}", table=self.output if in_table else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePlace(Place):
    """The place of an output on an object store."""

    output: ObjectPath
    folder: ObjectPath

    @property
    def lock(self) -> ObjectPath:
        """The path of the lease."""
        return self.folder / "lock"

    def staging(self, plan_hash: str, *, in_table: bool = False) -> StoreStaging:
        """Return the staging folders of a plan; the parts of a table are written to its own folder."""
        return StoreStaging(root=self.folder / f"work-{plan_hash[:8]}", table=self.output if in_table else None)


def _resolved(location: str) -> AnyPath:
    """Return the path of a location; the links of a local one are resolved, and the table of a catalog is asked for."""
    if scheme(location) == SCHEME:
        from scorer.tables import iceberg_commit  # noqa: PLC0415 - only for catalogs

        location = iceberg_commit.folder_of(location)
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
    with AtOnce(place.folder) as ask:
        listed = ask(lambda: sizes_in(place.output))
        try:
            sizes = files_of(for_arrow(place.folder / "ledger.parquet"))
        except (OSError, pa.ArrowException) as error:
            raise_if_unknown(place.folder, error)
            return [f"the ledger of {plan.n_parts} parts"]
        there = listed()
    return [name for name, size in sizes.items() if there(name) != size]


def sizes_of(ledger: str | Path | pa.NativeFile) -> dict[str, int]:
    """Return the size of each part's file, by its name, as a ledger has it; 0 for a part without rows."""
    table = pq.read_table(ledger, columns=["name", "size"])
    return dict(zip(table["name"].to_pylist(), table["size"].to_pylist(), strict=True))


def files_of(ledger: str | Path | pa.NativeFile) -> dict[str, int]:
    """Return the size of each published file, by its name, as a ledger has it; a part without rows has no file."""
    return {name: size for name, size in sizes_of(ledger).items() if size}


def sizes_in(output: AnyPath) -> Callable[[str], int]:
    """Return a function that gives the size of a part, or -1 if it is missing; a store is listed once."""
    if not isinstance(output, ObjectPath):
        return lambda name: size_of(output / name)
    there = output.files()
    return lambda name: there[name].size if name in there else -1


def sizes_below(top: ObjectPath) -> dict[str, int]:
    """Return the size of every object below a location of a store, by its name there: one request for 1,000."""
    return {name: file.size for name, file in top.files().items()}


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
    table: AnyPath | None = None
    """The folder of the table whose files the parts become; nobody sees them there before its log names them."""

    @property
    def tmp(self) -> AnyPath:
        """Unfinished files of attempts; never published. Not used on a store, where no object is ever unfinished."""
        return self.root / "tmp"

    @property
    def parts(self) -> AnyPath:
        """Committed parts; becomes the output in one rename, or is copied to the output on a store."""
        return self.table or self.root / "parts"

    @property
    def started(self) -> Path:
        """One mark for each part in progress; on this host's own disk if the output is on a store."""
        if isinstance(self.root, Path):
            return self.root / "started"
        own = f"{self.root.name}-{zlib.crc32(str(self.root).encode()):08x}"  # outputs may share a plan
        return Path(private_folder()) / "started" / own

    @property
    def quarantine(self) -> AnyPath:
        """Rows that could not be scored."""
        return self.root / "quarantine"

    @property
    def deleted(self) -> AnyPath:
        """The numbers of rows that the input table has deleted."""
        return self.root / deleted.NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskStaging(Staging):
    """Staging folders on a disk."""

    root: Path
    table: Path | None = None

    @property
    def parts(self) -> Path:
        """Committed parts; becomes the output in one rename."""
        return self.table or self.root / "parts"

    @property
    def quarantine(self) -> Path:
        """Rows that could not be scored."""
        return self.root / "quarantine"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStaging(Staging):
    """Staging folders on an object store."""

    root: ObjectPath
    table: ObjectPath | None = None

    @property
    def parts(self) -> ObjectPath:
        """Committed parts; copied to the output."""
        return self.table or self.root / "parts"

    @property
    def quarantine(self) -> ObjectPath:
        """Rows that could not be scored."""
        return self.root / "quarantine"


def flat_name(name: str) -> str:
    """Return a part's name without its suffix, and with its folders joined into one file name of usual length."""
    flat = name.replace("/", "__").removesuffix(".parquet")
    if len(flat.encode()) <= _LONGEST_NAME:
        return flat
    last = flat.rpartition("__")[2]
    return f"{zlib.crc32(flat.encode()):08x}-{last}"
