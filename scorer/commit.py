"""Receipts against the plan: what is done, and how the output appears, whole or not at all.

    OUT/                 the parts, in one rename
    OUT.scorer/          plan.json  ledger.parquet  manifest.json  report.json  report.html  quarantine/  lock
      work-<plan8>/      the same files while the run lasts, with tmp/ and parts/

Publishing is recorded before it begins, so a run that finds it half done finishes it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from scorer import lock
from scorer.errors import CommitError, InputError, ScorerError, nearest, some
from scorer.events import Receipt
from scorer.ledger import write_json
from scorer.plan import FORMAT, FrozenPlan
from scorer.progress import Snapshot
from scorer.rules import PROOF
from scorer.sink import EXCHANGE, Staging, map_write_errors, read_proof, receipt_of, rename, sync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PROOF_FILES = ("plan.json", "ledger.parquet", "manifest.json", "report.json", "report.html", "quarantine")
_INTENT = "publish.json"
_JOURNAL = "journal.jsonl"


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
        for intent in self.folder.glob(f"work-*/{_INTENT}") if os.path.isdir(self.folder) else ():
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


def probe_rename(place: Place) -> None:
    """Try the rename that publishing will need, before any row is scored."""
    probe, target = place.folder / "probe", place.output.with_name(f".{place.output.name}.probe")
    try:
        probe.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            target.rmdir()
        probe.rename(target)
        target.rmdir()
    except OSError as error:
        with suppress(OSError):
            probe.rmdir()
        same = "staging and output on one file system"
        hint = f"--output {place.output / 'scores'}, or --work-dir on the output's file system"
        what = "the output could not be published here"
        raise CommitError(what, str(place.output), same, os.strerror(error.errno or 0), hint) from error


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


def files_in(top: Path) -> Iterator[str]:
    """Every file at any depth, as the ledger would name it."""
    for folder, _, names in os.walk(top):
        for name in names:
            yield os.path.relpath(os.path.join(folder, name), top).replace(os.sep, "/")


def publish(place: Place, plan: FrozenPlan, *, overwrite: bool) -> None:
    """Make the staged parts the output; safe to repeat from any point."""
    staging = place.staging(plan.plan_hash)
    with map_write_errors(place.output):
        _sweep_quarantine(staging)
        write_json(staging.root / _INTENT, {"plan": plan.plan_hash, "overwrite": overwrite})
        if not _is_published(place, plan):
            for folder, _, _ in os.walk(staging.parts):
                sync(folder)
            _swap(place, staging, overwrite=overwrite)
            sync(place.output.parent)
        _move_proof(place, staging)
        shutil.rmtree(place.folder / "old", ignore_errors=True)
        shutil.rmtree(staging.root)
        sync(place.folder)


def finish_half_published(place: Place) -> None:
    """Complete a publish that was cut off, if there was one."""
    plan = place.pending()
    if plan is not None:
        intent = json.loads((place.staging(plan.plan_hash).root / _INTENT).read_text())
        publish(place, plan, overwrite=bool(intent.get("overwrite")))


def tidy(place: Place, tell: Callable[[str], None]) -> None:
    """Behind a finished run: remove what a process that died just then could not."""
    owner = lock.read(place.lock)
    left = [folder for folder in place.folder.glob("work-*") if not (folder / "plan.json").exists()]
    if (owner is None and not left) or (owner is not None and lock.is_alive(owner) is not False):
        return
    with suppress(ScorerError, OSError), lock.held(place.lock, tell):
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)


def not_parquet(output: Path) -> list[str]:
    """Files in a folder that are not Parquet by name."""
    return [name for name in files_in(output) if not name.endswith(".parquet")]


def room_problem(place: Place, needed: int) -> ScorerError | None:
    """Not enough space for what the plan expects to write."""
    at = place.folder
    while not at.exists():
        at = at.parent
    free = shutil.disk_usage(at).free
    if free >= needed:
        return None
    what, hint = "there is not enough room for the output", "make room, or choose another --output"
    return InputError(what, str(at), f"{needed / 1e6:,.1f} MB free", f"{free / 1e6:,.1f} MB", hint)


def _is_published(place: Place, plan: FrozenPlan) -> bool:
    """Whether the output is this plan's: its first part says so."""
    first = next(plan.parts())
    try:
        proof = read_proof(place.output / first.name)
    except (OSError, pa.ArrowException):
        return False
    return proof is not None and proof.plan == plan.plan_hash


def _swap(place: Place, staging: Staging, *, overwrite: bool) -> None:
    """The one step that makes the output appear, or replaces it."""
    place.output.parent.mkdir(parents=True, exist_ok=True)
    there = os.path.isdir(place.output) and any(place.output.iterdir())
    strange = not_parquet(place.output) if there else []
    if there and (not overwrite or strange):
        (staging.root / _INTENT).unlink(missing_ok=True)
        what = "something else has appeared where the output belongs; nothing was published"
        hint = "move it away and repeat the command: the parts are kept, and only the publishing is left"
        found = some(strange or sorted(path.name for path in place.output.iterdir()))
        raise CommitError(what, str(place.output), "nothing, or an empty folder", found, hint)
    if not there:
        os.rename(staging.parts, place.output)  # POSIX: replaces an empty folder, refuses any other
        return
    old = place.folder / "old"
    shutil.rmtree(old, ignore_errors=True)
    try:
        rename(staging.parts, place.output, EXCHANGE)
        os.rename(staging.parts, old)
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}:
            raise
        os.rename(place.output, old)
        os.rename(staging.parts, place.output)


def _move_proof(place: Place, staging: Staging) -> None:
    """The new run's proof takes the old one's place; the plan last, as it leads here again."""
    for name in (*PROOF_FILES[1:], PROOF_FILES[0]):
        source, target = staging.root / name, place.folder / name
        if not source.exists():
            continue
        if target.is_dir():
            shutil.rmtree(target)
        os.rename(source, target)
    named = pq.read_table(place.folder / "ledger.parquet", columns=["quarantine"])["quarantine"]
    if not any(named.to_pylist()):
        shutil.rmtree(place.folder / "quarantine", ignore_errors=True)


def _sweep_quarantine(staging: Staging) -> None:
    """Quarantine files that no part's footer names were left by lost attempts."""
    ledger = staging.root / "ledger.parquet"
    if not ledger.exists() or not staging.quarantine.exists():
        return
    named = set(pq.read_table(ledger, columns=["quarantine"])["quarantine"].to_pylist())
    for path in staging.quarantine.iterdir():
        if path.name not in named:
            path.unlink()
    if not any(staging.quarantine.iterdir()):
        staging.quarantine.rmdir()


def state_of(place: Place) -> dict[str, Any]:
    """What can be seen from outside: running, unfinished, done, or nothing."""
    owner = lock.read(place.lock)
    plan = place.published()
    if owner is not None and lock.is_alive(owner) is not False:
        told = {name: owner[name] for name in ("host", "pid", *Snapshot.__slots__) if name in owner}
        age = max(0.0, time.time() - owner.get("now", 0.0))  # by its clock and ours
        return {"state": "running", "output": str(place.output), "age_s": round(age, 1), **told}
    unfinished = place.unfinished()
    if unfinished:
        first = unfinished[0]
        done = n_staged(place.staging(first.plan_hash))
        hint = "repeat the command to go on"
        page = place.staging(first.plan_hash).root / "report.html"
        told = {"parts": first.n_parts, "done": done, "hint": hint, "page": str(page) if page.exists() else ""}
        return {"state": "unfinished", "output": str(place.output), **told}
    if plan is not None:
        manifest = json.loads((place.folder / "manifest.json").read_text())
        shown = ("parts", "rows", "scored", "quarantined", "filtered", "size")
        return {"state": "done", "output": str(place.output), **{n: manifest[n] for n in shown}}
    refuse_another_format(place)
    if os.path.exists(place.folder / "manifest.json"):
        what, hint = "the output is gone; its proof is here", "move both together, or score again with --overwrite"
        raise InputError(what, str(place.output), "the output folder", f"only {place.folder}", hint)
    raise nobody_wrote(place, InputError)


def nobody_wrote(place: Place, kind: type[ScorerError] = CommitError) -> ScorerError:
    """The error where no run has written; its hint names the output that was probably meant."""
    hint = "name the output folder of a run; give --work-dir if it had one"
    with suppress(OSError):
        beside = [one.removesuffix(PROOF) for one in os.listdir(place.output.parent) if one.endswith(PROOF)]
        meant = nearest(place.output.name.removesuffix(PROOF), beside)  # who names the proof means its output
        hint = f"did you mean {meant}?" if meant else hint
    return kind("no run of scorer has written here", str(place.output), f"{place.folder}", "nothing", hint)
