"""List the input's files from paths, patterns and folders, in a fixed order.

Links are followed, and each file and folder may be reached once. Opens no file and does not know what they contain.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from scorer.dataset.trees import Bucket, Disk, has_magic
from scorer.display.words import is_utf8, plural
from scorer.errors import InputError, InputNotFound
from scorer.locations import is_url, natural, split

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scorer.dataset.trees import Tree
    from scorer.storage.files import FileId
    from scorer.tables.snapshot import TableFile

PROOF = ".scorer"
"""Suffix of the folder that holds an output's proof: the proof of `out` is in `out.scorer`."""

SUFFIXES = (".parquet", ".parq", ".pq")
_NAME_IT = "name this folder as the input, alone: a table is read by its log, which knows deleted rows"
_TABLE_FORMATS = {
    "_delta_log": ("a Delta table", _NAME_IT),
    ".hoodie": ("a Hudi table", "list the files of its latest commit"),
    "_temporary": ("an unfinished Spark or Hadoop job's output", "wait for that job, or remove _temporary"),
}


class Listed(NamedTuple):
    """A file of the input; nothing is known of what it contains."""

    path: str
    folder: str
    """Folder inside its input, repeated in the output; '' at the top."""
    top: str
    """The folder that was named as the input, or that holds the file that was named."""
    id: FileId | None = None
    """Which object it is, if the list of a store has it."""
    of_table: TableFile | None = None
    """What the log of a table says of it."""


def trees() -> tuple[Tree, Tree]:
    """Return the folders of disks and of stores."""
    return Disk(), Bucket()


def list_files(
    inputs: Sequence[str], ignore: set[str], both: tuple[Tree, Tree] | None = None
) -> tuple[list[Listed], int]:  # fmt: skip
    """Return every file in order, and the number of skipped files. `both` are disks and stores."""
    both = both or trees()
    found: list[Listed] = []
    skipped = 0
    seen: dict[str, str] = {}
    for text in inputs:
        before = len(found)
        others: list[str] = []
        tree = both[is_url(text)]
        for path in _expand(text, tree):
            listed, not_parquet = _files_under(path, ignore, tree)
            others += not_parquet
            found += listed
        skipped += len(others)
        if len(found) == before:
            from scorer.dataset.to_parquet import described  # noqa: PLC0415 - only for an error

            name, hint = described(others)
            raise InputNotFound(
                "the input contains no Parquet file",
                where=text,
                expected="at least one Parquet file",
                found=f"none; {plural(len(others), 'other file')}" + (f", such as {name}" if name else ""),
                hint=hint or f"file names must end in {', '.join(SUFFIXES)}; names that start with . or _ are skipped",
            )
    for path, *_ in found:
        if not is_utf8(path):
            raise InputError(
                "the path of an input file is not valid UTF-8",
                where=path,
                expected="a path in UTF-8, with its folders",
                found=repr(os.path.basename(path)),
                hint="rename it, or make a link to it with another name",
            )
        real = both[is_url(path)].real(path)
        if real in seen:
            raise InputError(
                "the input contains one file twice",
                where=path,
                expected="each file once",
                found=f"also as {seen[real]}",
                hint="name it once; otherwise every row would be scored twice",
            )
        seen[real] = path
    return found, skipped


def _expand(text: str, tree: Tree) -> list[str]:
    if tree.is_pattern(text):
        matches = sorted(_matches(text, tree), key=natural)
        if not matches:
            from scorer.dataset.to_parquet import described  # noqa: PLC0415 - only for an error

            others = sorted(path for path in _all_matches(text, tree) if tree.kind(path) == "file")
            name, hint = described([tree.absolute(path) for path in others])
            raise InputNotFound(
                "the pattern matches no Parquet file",
                where=text,
                expected="at least one file",
                found=f"none; {plural(len(others), 'other file')}, such as {name}" if name else "none",
                hint=hint or f"check the folder; file names must end in {', '.join(SUFFIXES)}",
            )
        return [tree.absolute(match) for match in matches]
    path = tree.absolute(text)
    kind = tree.kind(path if is_url(text) else text)
    if kind == "other":
        raise InputError(
            "the input is neither a file nor a folder",
            where=text,
            expected="a file, a folder or a pattern",
            found="a pipe, a socket or a device",
            hint="write it to a file first",
        )
    if not kind:
        raise InputNotFound(
            "the input does not exist",
            where=text,
            expected="a file, a folder or a pattern",
            found=tree.instead(text),
            hint=_hint_for_missing(text),
        )
    return [path]


def _hint_for_missing(text: str) -> str:
    """Return what to check if nothing is at a location."""
    if is_url(text):
        return "check the name of the bucket and of the folder"
    if re.match("[a-z][a-z0-9]+:/[^/]", text):  # pathlib.Path makes one slash of two
        return "pass a URL as a str, not as a Path, which removes one of its slashes"
    return "check the path; relative paths start at the current folder"


def _all_matches(pattern: str, tree: Tree) -> Iterator[str]:
    """Yield all that matches a pattern."""
    top, rest = split(pattern) if is_url(pattern) else ("/" if pattern.startswith("/") else "", pattern)
    parts = [part for part in rest.split("/") if part]
    fixed = next((i for i, part in enumerate(parts) if has_magic(part)), len(parts))
    if len(parts) - fixed > 1 or "**" in parts:
        tree.below(os.path.join(top, *parts[:fixed]))
    yield from _glob(top, parts, tree)


def _matches(pattern: str, tree: Tree) -> list[str]:
    """Return the matches of a pattern, without those that the listing of a folder would skip."""
    found = []
    for match in _all_matches(pattern, tree):
        kind = tree.kind(match)
        if pattern.endswith("/") and kind != "folder":
            continue
        name = os.path.basename(match.rstrip("/"))
        inside = (
            f"{PROOF}/" in match and f"{PROOF}/" not in pattern
        )  # a pattern that names a proof folder asks for its files
        from_scorer = name.endswith(PROOF) or tree.kind(match.rstrip("/") + PROOF) == "folder" or inside
        plain_file = kind == "file" and not name.lower().endswith(SUFFIXES)
        if not from_scorer and not plain_file and not name.startswith((".", "_")):
            found.append(match)
    return found


def _files_under(path: str, ignore: set[str], tree: Tree) -> tuple[list[Listed], list[str]]:
    """Return the files of one path, sorted, and the skipped files."""
    if tree.kind(path) != "folder":
        return [Listed(path, "", os.path.dirname(path), tree.identity(path))], []
    found: list[Listed] = []
    skipped: list[str] = []
    tree.below(path)
    for folder, names in _walk(path, ignore, tree):
        inside = _inside(folder, path)
        good = [n for n in names if n.lower().endswith(SUFFIXES) and n[0] not in "._"]
        kept = set(good)
        skipped += [os.path.join(folder, name) for name in names if name not in kept and not _is_marker(name)]
        paths = [os.path.join(folder, name) for name in good]
        found += [Listed(one, inside, path, tree.identity(one)) for one in paths]
    found.sort(key=lambda file: natural(_inside(file.path, path)))
    return found, skipped


def _inside(path: str, top: str) -> str:
    """Return a path relative to a folder; '' for the folder itself."""
    return path[len(top) :].lstrip("/")


def _walk(top: str, ignore: set[str], tree: Tree) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder with its file names, except hidden folders and outputs of scorer."""
    entered: dict[str, str] = {}
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        _enter_once(folder, entered, tree)
        folders: list[str] = []
        names: list[str] = []
        for entry in tree.entries(folder):
            (folders if tree.leads_to_folder(entry) else names).append(entry.name)
        _refuse_table_format(folder, folders, tree)
        outputs = {name.removesuffix(PROOF) for name in folders if name.endswith(PROOF)}
        inner = [
            os.path.join(folder, name)
            for name in folders
            if name[0] not in "._" and not name.endswith(PROOF) and name not in outputs
        ]
        waiting += [path for path in reversed(inner) if tree.real(path) not in ignore]
        yield folder, names


def _glob(folder: str, parts: Sequence[str], tree: Tree) -> Iterator[str]:
    """Yield what matches the parts of a pattern, as `glob.iglob` does, but raise for a folder that cannot be listed."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _glob_below(folder, rest, tree)
    elif not glob.has_magic(part):
        path = os.path.join(folder, part)
        if rest:
            yield from _glob(path, rest, tree)
        elif tree.exists(path):
            yield path
    elif tree.is_folder(folder):
        for entry in tree.entries(folder):
            if fnmatch.fnmatchcase(entry.name, part) and (part[0] == "." or entry.name[0] != "."):
                path = os.path.join(folder, entry.name)
                if not rest:
                    yield path
                elif tree.leads_to_folder(entry):
                    yield from _glob(path, rest, tree)


def _glob_below(top: str, rest: Sequence[str], tree: Tree) -> Iterator[str]:
    """Yield what matches the rest of a pattern in a folder and in all folders below it, without hidden ones."""
    entered: dict[str, str] = {}
    waiting = [top] if tree.is_folder(top) else []
    while waiting:
        folder = waiting.pop()
        _enter_once(folder, entered, tree)
        if rest:
            yield from _glob(folder, rest, tree)
        elif folder:
            yield folder
        inner: list[str] = []
        for entry in tree.entries(folder):
            if entry.name[0] != ".":
                path = os.path.join(folder, entry.name)
                if tree.leads_to_folder(entry):
                    inner.append(path)
                elif not rest:
                    yield path
        waiting += reversed(inner)


def _enter_once(folder: str, entered: dict[str, str], tree: Tree) -> None:
    """Note that a folder is listed; raise if it was listed before, under this name or another."""
    real = tree.real(folder)
    if real in entered:
        raise InputError(
            "the input contains one folder twice",
            where=folder,
            expected="each folder once",
            found=f"also as {entered[real]}",
            hint="remove the link, or name the folders that you mean; otherwise every row would be scored twice",
        )
    entered[real] = folder


def _refuse_table_format(folder: str, folders: list[str], tree: Tree) -> None:
    """Raise if a table format manages the folder: its files may contain rows that the table has deleted."""
    kind, hint = next((_TABLE_FORMATS[name] for name in folders if name in _TABLE_FORMATS), ("", ""))
    inner = tree.entries(os.path.join(folder, "metadata")) if "metadata" in folders else ()
    if any(entry.name.endswith(".metadata.json") for entry in inner):
        kind, hint = "an Iceberg table", _NAME_IT
    if kind:
        raise InputError(
            "the folder contains files that do not belong to its current data",
            where=folder,
            expected="a plain folder of finished Parquet files",
            found=kind,
            hint=hint,
        )


def _is_marker(name: str) -> bool:
    """Return whether other tools write this file beside their tables."""
    return name in {"_SUCCESS", "_metadata", "_common_metadata"} or name.endswith(".crc")


def is_glob(text: str) -> bool:
    """Return whether a path is a pattern, and not the name of an existing file; a URL is not looked up."""
    return has_magic(text) and (is_url(text) or not os.path.lexists(text))
