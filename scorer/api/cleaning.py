"""clean: remove what unfinished runs left beside an output; keep the output and its proof."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorer.errors import CommitError, ScorerError
from scorer.output import lock, publish, publish_table
from scorer.output.place import INTENT, nobody_wrote
from scorer.storage.refusals import explaining
from scorer.storage.stores import AnyPath, ObjectPath, exists, is_folder, size_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from scorer.output.place import Place

_LEFT = re.compile(r"old|probe|lock\.[0-9a-f]{32}|keys-\w{8}")
"""Names of other files and folders that a killed process leaves; a run removes them, too."""
_LOG = "events.jsonl"
"""Removed with the work folders, unless a run is published: then it is about that run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaned:
    """What `clean` removed, or would remove."""

    output: str
    removed: tuple[str, ...]
    """Work folders and files, each with all that is in it."""
    files: int
    size: int
    """In bytes."""
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        """Return what `scorer clean --json` prints."""
        return {name: getattr(self, name) for name in ("output", "files", "size", "dry_run")} | {
            "removed": list(self.removed)
        }


def clean(place: Place, notify: Callable[[str], None], *, dry_run: bool = False) -> Cleaned:
    """Remove what unfinished runs left beside an output; raise `OutputLocked` while a run lives.

    An unfinished run of the same command would start from the beginning afterwards.
    """
    with explaining(CommitError, "list and remove", "list and delete"):
        if not exists(place.folder):
            if exists(place.output):
                return _nothing(place, dry_run=dry_run)
            raise nobody_wrote(place)
        _refuse_half_published(place)
        owner = lock.read(place.lock)
        if owner is not None and lock.is_alive(owner):
            raise lock.refused(place.lock, owner)
        dead = {} if owner is None else {str(place.lock): max(0, size_of(place.lock))}
        found = _leftovers(place)
        if dry_run or not (found or dead):
            return _counted(place, found, dead, dry_run=dry_run)
        with publish.protocol(place).hold(place, notify):  # it replaces the dead lock, and removes its own at the end
            _refuse_half_published(place)
            found = _leftovers(place)
            cleaned = _counted(place, found, dead, dry_run=False)
            for path in found:
                _remove(path)
            _remove_empty_folders(place, found)
        return cleaned


def _nothing(place: Place, *, dry_run: bool) -> Cleaned:
    return Cleaned(output=str(place.output), removed=(), files=0, size=0, dry_run=dry_run)


def _refuse_half_published(place: Place) -> None:
    """Raise `CommitError` if a publish was interrupted: its work folder holds what the output lacks."""
    if any(exists(folder / INTENT) for folder in place.work_folders()):
        raise CommitError(
            "the output is published only in part",
            where=str(place.folder),
            expected="a published output, or none",
            found="a run that ended while it published",
            hint="repeat its command, which finishes publishing and removes the rest",
        )


def _leftovers(place: Place) -> list[AnyPath]:
    """Return the folders and files that no published run needs."""
    found = [*place.work_folders(), *place.markers()]
    found += [path for plan in place.unfinished() for path in publish_table.unlisted_parts(place, plan)]
    children = {path.name: path for path in place.folder.iterdir()} if is_folder(place.folder) else {}
    found += [path for name, path in children.items() if _LEFT.fullmatch(name)]
    if found and _LOG in children and "manifest.json" not in children:
        found.append(children[_LOG])
    return sorted(found, key=str)


def _counted(place: Place, paths: list[AnyPath], dead: dict[str, int], *, dry_run: bool) -> Cleaned:
    """Return how many files these are with those in the folders and the dead lock, and their bytes."""
    sizes = [*dead.values(), *(size for path in paths for size in _sizes(path))]
    return Cleaned(
        output=str(place.output), removed=(*map(str, paths), *dead), files=len(sizes), size=sum(sizes), dry_run=dry_run
    )


def _sizes(path: AnyPath) -> list[int]:
    """Return the size of a file, or of each file in a folder."""
    if isinstance(path, ObjectPath):
        below = [file.size for file in path.files().values()]
        return below or [max(0, size_of(path))]
    if not os.path.isdir(path) or os.path.islink(path):
        return [max(0, size_of(path))]
    return [max(0, size_of(path / folder / name)) for folder, _, names in os.walk(path) for name in names]


def _remove(path: AnyPath) -> None:
    """Remove a file, or a folder with all that is in it; raise `CommitError` if something is left."""
    try:
        if isinstance(path, ObjectPath):
            path.store.remove([str(path), *(file.path for file in path.store.objects(str(path)))])
        elif os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            with suppress(FileNotFoundError):
                path.unlink()
    except OSError as error:
        raise _not_removed(path, error) from error


def _remove_empty_folders(place: Place, removed: list[AnyPath]) -> None:
    """Remove the folders in a table's own folder that have become empty, and its own if it has."""
    output = place.output
    if not isinstance(output, Path):
        return
    below = [path for path in removed if isinstance(path, Path) and path.is_relative_to(output)]
    folders = {folder for path in below for folder in path.parents if folder.is_relative_to(output)}
    for folder in sorted(folders, key=lambda one: len(one.parts), reverse=True):
        with suppress(OSError):
            folder.rmdir()


def _not_removed(path: AnyPath, error: OSError) -> ScorerError:
    return CommitError(
        "not everything could be removed",
        where=str(error.filename or path),
        expected="the right to remove it",
        found=error.strerror or str(error),
        hint="fix the permissions, then repeat the command",
    )
