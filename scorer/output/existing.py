"""What exists at the output: the files that a run published, and those that no run may replace."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from scorer.dataset.listing import PROOF
from scorer.display.words import quoted_list
from scorer.errors import OutputExists, ScorerError
from scorer.output.place import SUCCESS, Place, another_format, files_of, missing_parts
from scorer.output.writer import read_proof
from scorer.plan.frozen import explain_differences
from scorer.plan.generations import difference, recipe
from scorer.storage.files import AtOnce, files_in
from scorer.storage.stores import (
    ObjectPath,
    digest_of,
    exists,
    for_arrow,
    is_folder,
    path_of,
    raise_if_unknown,
    size_of,
)
from scorer.tables.deleted import NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.generations import Difference
    from scorer.storage.files import FileId
    from scorer.storage.stores import AnyPath

PROOF_FILES = ("plan.json", "ledger.parquet", "manifest.json", "report.json", "report.html", "quarantine", NAME)
"""What publishing moves beside the output."""
PROOF_OF_GENERATION = ("plan.json", NAME, "report.json", "report.html")
"""What is kept of each generation in a folder of its own; ledger, manifest and quarantine are those of all."""
_REPLACED = {*PROOF_FILES, "lock", "old", "probe"}
"""The names in a work folder that a run replaces or removes."""
T = TypeVar("T")
R = TypeVar("R")
_AT_ONCE, _WHOLE_AT_ONCE = 64, 4  # requests for footers, and for whole files, which are in memory
_BROKEN = (OSError, ValueError, KeyError, TypeError, pa.ArrowException)
"""The exceptions that a damaged proof or footer causes."""


class Files:
    """The files below a folder. On a store they are listed once, and a footer is read with one request.

    The empty file of --success-file is none of them.
    """

    def __init__(self, top: AnyPath) -> None:
        self.top = top
        self._listed = top.files() if isinstance(top, ObjectPath) else None
        if self._listed is not None and SUCCESS in self._listed and not self._listed[SUCCESS].size:
            del self._listed[SUCCESS]

    def names(self, unlisted: Callable[[str, OSError], None] | None = None) -> Iterator[str]:
        """Yield the name of every file, relative to the folder.

        `unlisted` is called with each local folder that cannot be listed, and the reason.
        """
        if isinstance(self.top, ObjectPath):
            yield from self._listed or ()
        else:
            yield from files_in(self.top, unlisted)

    def exists(self) -> bool:
        """Return whether the folder is there."""
        return exists(self.top) if self._listed is None else bool(self._listed)

    def size(self, name: str) -> int:
        """Return the size of a file; -1 if it is missing."""
        if self._listed is None:
            return size_of(self.top / name)
        return self._listed[name].size if name in self._listed else -1

    def source(self, name: str, *, whole: bool) -> Path | FileId | pa.BufferReader:
        """Return what `open_part` can open. Of an object it reads the footer only, unless all bytes are wanted."""
        path = self.top / name
        if not isinstance(path, ObjectPath):
            return path
        file = self._listed.get(name) if self._listed else None
        return for_arrow(path) if whole or file is None else file

    def each(self, function: Callable[[T], R], items: Iterable[T], *, whole: bool) -> Iterator[R]:
        """Yield the result for each item, in their order; on a store, several are computed at once."""
        if not isinstance(self.top, ObjectPath):
            yield from map(function, items)
            return
        with ThreadPoolExecutor(_WHOLE_AT_ONCE if whole else _AT_ONCE, "scorer-store") as threads:
            try:
                yield from threads.map(function, items)
            finally:
                threads.shutdown(cancel_futures=True)


def existing_problem(
    place: Place, published: FrozenPlan | None, request: dict[str, Any], *, overwrite: bool,
    files: Sequence[FileId] = (),
) -> ScorerError | None:  # fmt: skip
    """Return the error for an output of another request, or None if `overwrite` may replace it.

    `files` are those of the input now, if they are known.
    """
    with AtOnce(place.folder) as ask:
        half, others = ask(place.pending), ask(lambda: Files(place.output))
        recorded = _published_files(place)
        is_half = half() is not None
        if recorded is None and not is_half:
            return _without_proof(place, overwrite=overwrite)
        foreign = [] if is_half else _foreign(recorded, others())  # a half-published output is finished first
    if overwrite and not foreign:
        return None
    if overwrite:
        return OutputExists(
            "the output holds files that scorer did not publish",
            where=str(place.output),
            expected="only files that its ledger names, as they were published",
            found=quoted_list(foreign),
            hint="choose another --output, or move these files away",
        )
    other_version = another_format(place)
    found, replace_it = "an output whose plan cannot be read", "replace it with --overwrite"
    if published is not None:
        differs = _difference(place, published, files) if published.request["input"] != request["input"] else None
        differences = explain_differences(published, request, differs)
        if differs is not None and differs.only_new and recipe(published.request) == recipe(request):
            replace_it = "add the new files with --new-only, or score everything again with --overwrite"
        found = f"the output of another request: {differences}" if differences else "a changed output of this request"
    elif other_version is not None:
        found = f"the output of another version: {other_version.found}"
    return OutputExists(
        "the output exists",
        where=str(place.output),
        expected="no output, or that of this request",
        found=f"{found}; scorer did not publish {quoted_list(foreign)} in it" if foreign else found,
        hint="choose another --output" if foreign else f"choose another --output, or {replace_it}",
    )


def _difference(place: Place, published: FrozenPlan, files: Sequence[FileId]) -> Difference | None:
    """Return how the input differs from what was scored; None if that is not known."""
    if not files:
        return None
    with suppress(ScorerError):
        return difference((file.id for plan in place.generations(published) for file in plan.files), files)
    return None


def foreign_files(place: Place) -> list[str]:
    """List the files of the output that are not as a run published them, from the proof; all files without a proof.

    A file of the ledger is foreign if somebody wrote it again: it has another size, and its footer is not this plan's.
    The first file's footer is always read, because another output may have been put in this one's place.
    """
    with AtOnce(place.folder) as ask:
        files = ask(lambda: Files(place.output))
        return _foreign(_published_files(place), files())


def _foreign(published: tuple[set[str], dict[str, int]] | None, files: Files) -> list[str]:
    if published is None:
        return sorted(_all_names(files))
    plans, sizes = published
    foreign: list[str] = []
    doubtful: list[str] = []
    for name in sorted(_all_names(files)):
        if name not in sizes:
            foreign.append(name)
        elif not doubtful or files.size(name) != sizes[name]:
            doubtful.append(name)
    return foreign + [name for name in doubtful if _is_of_another(files, name, plans)]


def other_output(place: Place) -> ScorerError | None:
    """Return the error for a --work-dir with the proof or the staged parts of another output that still exists."""
    if place.folder == place.output.with_name(place.output.name + PROOF):
        return None  # moved together with its output
    other = _recorded_output(place)
    if other in {None, str(place.output)}:
        return None
    return OutputExists(
        "the folder for --work-dir belongs to another output",
        where=str(place.folder),
        expected="a folder for this output alone",
        found=f"the {'staged parts' if place.unfinished() else 'proof'} of {other}",
        hint=f"choose another folder, such as --work-dir {place.folder.with_name(f'{place.output.name}.work')}",
    )


def _recorded_output(place: Place) -> str | None:
    """Return the output that the work folder is for: that of an unfinished run, else a published one that exists."""
    with suppress(*_BROKEN):
        if place.unfinished():
            return str(json.loads(_first_line(place.folder / "events.jsonl"))["output"])
        published, plan = str(json.loads((place.folder / "report.json").read_text())["output"]), place.published()
        copied = plan is not None and not missing_parts(place, plan)  # together with its work folder
        return published if exists(path_of(published)) and not copied else None
    return None


def work_dir_problem(place: Place) -> ScorerError | None:
    """Return the error for a --work-dir of another output, or with files that a run would replace."""
    other = other_output(place)
    if other is not None:
        return other
    if not is_folder(place.folder) or place.work_folders() or (place.folder / "events.jsonl").exists():
        return None
    theirs = sorted(_REPLACED.intersection(path.name for path in place.folder.iterdir()))
    if not theirs or any(map(_is_of_a_run, (place.folder / "plan.json", place.folder / "manifest.json", place.lock))):
        return None
    return OutputExists(
        "the folder for --work-dir holds files that scorer would replace",
        where=str(place.folder),
        expected="no folder, an empty one, or the --work-dir of a run",
        found=quoted_list(theirs),
        hint=f"choose a folder in it: --work-dir {place.folder / f'{place.output.name}.scorer'}",
    )


def _first_line(path: AnyPath) -> str:
    if isinstance(path, ObjectPath):
        return path.read_text().partition("\n")[0]
    with path.open(encoding="utf-8") as file:
        return file.readline()


def _is_of_a_run(path: AnyPath) -> bool:
    """Return whether a run wrote this plan, manifest or lock."""
    try:
        return not {"plan_hash", "ledger", "token"}.isdisjoint(json.loads(path.read_text()))
    except _BROKEN as error:
        raise_if_unknown(path, error)
        return False


def _without_proof(place: Place, *, overwrite: bool) -> OutputExists:
    """Return the error for a folder without a proof that names its files."""
    names = sorted(path.name for path in place.output.iterdir())
    files = Files(place.output)
    found = f"{quoted_list(names, 3)}, without a proof that scorer published this"
    hint = "choose another --output"
    first = next((name for name in sorted(_all_names(files)) if name.endswith(".parquet")), "")
    if first and not _is_of_another(files, first, None):
        damaged = exists(place.folder / "manifest.json")
        proof = "whose proof is damaged or incomplete" if damaged else "without its proof"
        found = f"{quoted_list(names, 3)} of a run of scorer, {proof}"
        hint = (
            "give the run's --work-dir if it had one; otherwise choose another --output, or remove this folder by hand"
        )
    return OutputExists(
        "--overwrite replaces only what scorer published" if overwrite else "the output exists",
        where=str(place.output),
        expected=f"no folder, an empty one, or an output whose proof is in {place.folder}",
        found=found,
        hint=hint,
    )


def _published_files(place: Place) -> tuple[set[str], dict[str, int]] | None:
    """Return the hashes of the plans and the size of each published file; None unless plan, manifest and ledger agree.

    The plan may have the format of another version.
    """
    try:
        with AtOnce(place.folder) as ask:
            texts = [ask((place.folder / name).read_text) for name in ("plan.json", "manifest.json")]
            there = ask(lambda: for_arrow(place.folder / "ledger.parquet"))
            plan, manifest = json.loads(texts[0]())["plan_hash"], json.loads(texts[1]())
            ledger = there()
        if (manifest["plan"], manifest["ledger"]) != (plan, digest_of(ledger)):
            return None
        plans = {plan, *(one["plan"] for one in manifest.get("generations", ()))}
        return plans, files_of(ledger)
    except _BROKEN as error:
        raise_if_unknown(place.folder, error)
        return None


def _is_of_another(files: Files, name: str, plans: set[str] | None) -> bool:
    """Return whether a file is of another plan (None: of any) or not of scorer; False if it is damaged."""
    try:
        proof = read_proof(files.source(name, whole=False))
    except _BROKEN as error:
        raise_if_unknown(files.top, error)
        return plans is None
    return proof is None or (plans is not None and proof.plan not in plans)


def _all_names(files: Files) -> Iterator[str]:
    """Yield every file and link below a folder, and every folder that cannot be listed, relative to it."""
    if isinstance(files.top, ObjectPath):
        yield from files.names()
        return
    top = files.top
    unlisted: list[str] = []
    for folder, folders, names in os.walk(top, onerror=lambda error: unlisted.append(str(error.filename))):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in (*names, *links):
            yield os.path.relpath(os.path.join(folder, name), top).replace(os.sep, "/")
    yield from (os.path.relpath(path, top).replace(os.sep, "/") for path in unlisted)
