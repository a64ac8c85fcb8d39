"""Publishing on a disk: the output appears complete, or not at all. `protocol` chooses how an output is published."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from scorer.display.words import quoted_list
from scorer.errors import CommitError, ScorerError
from scorer.host.crash import note_publishing
from scorer.output import lock
from scorer.output import place as place_
from scorer.output import staging as staging_
from scorer.output.existing import foreign_files
from scorer.output.place import INTENT, StorePlace
from scorer.output.staging import (
    discard_markers,
    is_flat,
    move_proof,
    named_files,
    remove_folder,
    remove_parts_without_rows,
    sweep_quarantine,
)
from scorer.output.writer import NO_LINKS, read_proof
from scorer.plan.generations import folder_of
from scorer.storage.files import EXCHANGE, files_in, map_write_errors, rename, sync, write_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from scorer.output.lease import Lease
    from scorer.output.lock import Lock
    from scorer.output.place import DiskPlace, DiskStaging, Place
    from scorer.plan.frozen import FrozenPlan


class Publishing(Protocol):
    """How an output is published: this module, or `publish_objects`."""

    # places and locks are those of the output's kind, which `protocol` knows
    def hold(self, place: Any, notify: Callable[[str], None]) -> AbstractContextManager[Lock | Lease]:  # noqa: ANN401
        """Be the only driver of the output inside the block; raise `OutputLocked` if there is another one."""

    def probe(self, place: Any, held: Any) -> None:  # noqa: ANN401
        """Try what publishing needs, before any row is scored."""

    def publish(
        self, place: Any, plan: FrozenPlan, held: Any, *, overwrite: bool, success_file: bool = False  # noqa: ANN401
    ) -> None:  # fmt: skip
        """Make the staged parts the output. After an interruption at any point, it is safe to repeat."""

    def tidy(self, place: Any, notify: Callable[[str], None]) -> None:  # noqa: ANN401
        """Remove what processes that died left beside a finished run."""


def protocol(place: Place) -> Publishing:
    """Return how a folder of Parquet files is published here."""
    if isinstance(place, StorePlace):
        from scorer.output import publish_objects  # noqa: PLC0415 - only for object stores

        return publish_objects
    return sys.modules[__name__]


def publish_plan(
    place: Place, plan: FrozenPlan, held: Lock | Lease, *, overwrite: bool = False, success_file: bool = False
) -> str:
    """Make the staged parts of a plan the output, or a part of the table that is the output; return a note, or ''."""
    if plan.target is not None:
        from scorer.output import publish_table  # noqa: PLC0415 - only for tables

        return publish_table.publish(place, plan, held)
    protocol(place).publish(place, plan, held, overwrite=overwrite, success_file=success_file)
    return ""


def missing_parts(place: Place, published: FrozenPlan) -> list[str]:
    """List what is missing of a published plan, in the output or in the table."""
    if published.target is None:
        return place_.missing_parts(place, published)
    from scorer.output import publish_table  # noqa: PLC0415 - only for tables

    return publish_table.missing(place, published)


def discard_others(place: Place, plan: FrozenPlan) -> None:
    """Remove the staging of other plans, and the parts that they left in a table's folder."""
    for other in place.unfinished() if plan.target is not None else ():
        if other.plan_hash != plan.plan_hash:
            from scorer.output import publish_table  # noqa: PLC0415 - only for tables

            for path in publish_table.unlisted_parts(place, other):
                path.unlink()
    staging_.discard_others(place, plan.plan_hash)


def unprovable(place: Place, published: FrozenPlan, *, overwrite: bool) -> bool:
    """Return whether parts of a published plan are missing; if it may be replaced, also whether its proof is."""
    return bool(missing_parts(place, published) or (overwrite and place.lost_generation(published)))


def finish_half_published(place: Place, held: Lock | Lease) -> None:
    """Complete a publish that was interrupted, if any."""
    plan = place.pending()
    if plan is not None:
        note_publishing(str(place.output))
        with map_write_errors(place.folder):
            intent = json.loads((place.staging(plan.plan_hash).root / INTENT).read_text())
        overwrite, success_file = bool(intent.get("overwrite")), bool(intent.get("success_file"))
        publish_plan(place, plan, held, overwrite=overwrite, success_file=success_file)


def hold(place: DiskPlace, notify: Callable[[str], None]) -> AbstractContextManager[Lock | Lease]:
    """Hold the output's lock inside the block."""
    return lock.held(place.lock, notify)


def probe(place: DiskPlace, held: object = None) -> None:  # noqa: ARG001 - see `Publishing`
    """Try the rename that publishing needs, before any row is scored."""
    folder, target = place.folder / "probe", place.output.with_name(f".{place.output.name}.probe")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)  # with --work-dir, nothing else has created it
        with suppress(FileNotFoundError):
            target.rmdir()
        folder.rename(target)
        target.rmdir()
    except OSError as error:
        with suppress(OSError):
            folder.rmdir()
        raise CommitError(
            "the output cannot be published here",
            where=str(place.output),
            expected="the output and its work folder on one file system",
            found=os.strerror(error.errno or 0),
            hint=f"pass --output {place.output / 'scores'}, or a --work-dir on the output's file system",
        ) from error


def publish(
    place: DiskPlace, plan: FrozenPlan, held: object, *, overwrite: bool, success_file: bool = False  # noqa: ARG001
) -> None:  # fmt: skip
    """Make the staged parts the output. After an interruption at any point, it is safe to repeat."""
    staging = place.staging(plan.plan_hash)
    with map_write_errors(place.output):
        sweep_quarantine(staging)
        write_json(staging.root / INTENT, {"plan": plan.plan_hash, "overwrite": overwrite})
        if not _is_published(place, staging, plan):
            remove_parts_without_rows(staging)
            exchange = plan.generation > 1 and (bool(plan.replaced) or is_flat(place))
            if exchange:
                _link_earlier_parts(place, staging, plan)
            for folder, _, _ in os.walk(staging.parts):
                sync(folder)
            if plan.generation > 1 and not exchange:
                _add_generation(place, staging, folder_of(plan.generation))
            else:
                _replace_output(place, staging, overwrite=overwrite or exchange)
            sync(place.output.parent)
        move_proof(place, staging, plan)
        shutil.rmtree(place.folder / "old", ignore_errors=True)
        shutil.rmtree(staging.root)
        sync(place.folder)


def tidy(place: DiskPlace, notify: Callable[[str], None]) -> None:
    """Remove what processes that died left beside a finished run: a lock, work folders, markers for workers."""
    owner = lock.read(place.lock)
    leftovers = [folder for folder in place.work_folders() if not (folder / "plan.json").exists()]
    if (owner is None and not leftovers and not place.markers()) or (
        owner is not None and lock.is_alive(owner) is not False
    ):
        return
    with suppress(ScorerError, OSError), lock.held(place.lock, notify):
        for folder in leftovers:
            remove_folder(folder)
        discard_markers(place)


def _is_published(place: DiskPlace, staging: DiskStaging, plan: FrozenPlan) -> bool:
    """Return whether the output is this plan's, according to the footer of its first file.

    If the plan removes parts, it may have none of its own: then the names of all files decide.
    """
    there = os.path.isdir(place.output)
    if plan.replaced:
        ledger = staging.root / "ledger.parquet"
        if not ledger.exists():
            return True
        new, files = named_files(ledger), set(files_in(place.output))
        return new <= files and files.isdisjoint(named_files(place.folder / "ledger.parquet") - new)
    first = next((part for part in plan.parts() if os.path.exists(place.output / part.name)), None) if there else None
    if first is None:
        return False
    try:
        proof = read_proof(place.output / first.name)
    except (OSError, pa.ArrowException):
        return False
    return proof is not None and proof.plan == plan.plan_hash


def _link_earlier_parts(place: DiskPlace, staging: DiskStaging, plan: FrozenPlan) -> None:
    """Link the parts that stay beside the new ones, so that one rename replaces the output by both.

    They are copied on a file system without hard links.
    """
    own, flat = folder_of(plan.generation), is_flat(place)
    if not place.output.exists() and (place.folder / "old").exists():  # two renames were interrupted
        os.rename(place.folder / "old", place.output)
    for folder in staging.parts.iterdir() if staging.parts.is_dir() else ():  # of an earlier attempt
        if folder.name != own:
            shutil.rmtree(folder, ignore_errors=True)
    for name in sorted(named_files(staging.root / "ledger.parquet")):
        if not name.startswith(f"{own}/"):
            source, target = place.output / (name.partition("/")[2] if flat else name), staging.parts / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                shutil.copy2(source, target)
                sync(target)


def _add_generation(place: DiskPlace, staging: DiskStaging, name: str) -> None:
    """Rename the staged folder into the output: the one step that makes a generation appear."""
    try:
        os.rename(staging.parts / name, place.output / name)  # POSIX: replaces an empty folder, fails for any other
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            raise
        (staging.root / INTENT).unlink(missing_ok=True)
        raise CommitError(
            "the folder of the next generation exists, and no run published it; nothing was published",
            where=str(place.output / name),
            expected="no folder, or an empty one",
            found="other files",
            hint="move it away and repeat the command; it publishes the parts, which are kept",
        ) from error


def _replace_output(place: DiskPlace, staging: DiskStaging, *, overwrite: bool) -> None:
    """Rename the staged parts to the output, or exchange the two: the one step that makes the output appear."""
    place.output.parent.mkdir(parents=True, exist_ok=True)
    exists = os.path.isdir(place.output) and any(place.output.iterdir())
    other_files = foreign_files(place) if exists and overwrite else []
    if exists and (not overwrite or other_files):
        (staging.root / INTENT).unlink(missing_ok=True)
        raise CommitError(
            "other files appeared in the output folder during the run; nothing was published",
            where=str(place.output),
            expected="no folder, or an empty one",
            found=quoted_list(other_files or sorted(path.name for path in place.output.iterdir())),
            hint="move them away and repeat the command; it publishes the parts, which are kept",
        )
    if not exists:
        os.rename(staging.parts, place.output)  # POSIX: replaces an empty folder, fails for any other
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
