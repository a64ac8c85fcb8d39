"""List the input's files from paths, patterns and folders, in a fixed order.

Links are followed, and each file and folder may be reached once. What cannot be listed is an error, because its rows
would be missing. Opens no file and does not know what they contain.
"""

from __future__ import annotations

import difflib
import errno
import fnmatch
import glob
import os
import re
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from scorer.display.words import is_utf8, plural, quoted_list
from scorer.errors import InputError, InputNotFound
from scorer.storage.files import retry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PROOF = ".scorer"
"""Suffix of the folder that holds an output's proof: the proof of `out` is in `out.scorer`."""

SUFFIXES = (".parquet", ".parq", ".pq")
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
_TABLE_FORMATS = {
    "_delta_log": ("a Delta table", "list its live files, for example with deltalake's DeltaTable(...).file_uris()"),
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


def list_files(inputs: Sequence[str], ignore: set[str]) -> tuple[list[Listed], int]:
    """Return every file in order, and the number of skipped files."""
    found: list[Listed] = []
    skipped = 0
    seen: dict[str, str] = {}
    for text in inputs:
        before = len(found)
        others: list[str] = []
        for path in _expand(text):
            listed, not_parquet = _files_under(path, ignore)
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
    for path, _, _ in found:
        if not is_utf8(path):
            raise InputError(
                "the path of an input file is not valid UTF-8",
                where=path,
                expected="a path in UTF-8, with its folders",
                found=repr(os.path.basename(path)),
                hint="rename it, or make a link to it with another name",
            )
        real = os.path.realpath(path)
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


def _expand(text: str) -> list[str]:
    if re.match(r"^[a-z][a-z0-9+.-]+://", text):
        raise InputError(
            "the input is a URL",
            where=text,
            expected="a local path",
            found=text.split(":", 1)[0] + ":// is not supported yet",
            hint="copy it to a local or shared file system first",
        )
    if is_glob(text):
        matches = sorted(_matches(text), key=natural)
        if not matches:
            from scorer.dataset.to_parquet import described  # noqa: PLC0415 - only for an error

            others = sorted(path for path in glob.iglob(text, recursive=True) if os.path.isfile(path))
            name, hint = described([os.path.abspath(path) for path in others])
            raise InputNotFound(
                "the pattern matches no Parquet file",
                where=text,
                expected="at least one file",
                found=f"none; {plural(len(others), 'other file')}, such as {name}" if name else "none",
                hint=hint or f"check the folder; file names must end in {', '.join(SUFFIXES)}",
            )
        return [os.path.abspath(match) for match in matches]
    status = _status(text, os.stat)
    if status is not None and not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise InputError(
            "the input is neither a file nor a folder",
            where=text,
            expected="a file, a folder or a pattern",
            found="a pipe, a socket or a device",
            hint="write it to a file first",
        )
    if status is None:
        raise InputNotFound(
            "the input does not exist",
            where=text,
            expected="a file, a folder or a pattern",
            found=_found_instead(text),
            hint="check the path; relative paths start at the current folder",
        )
    return [os.path.abspath(text)]


def _matches(pattern: str) -> list[str]:
    """Return the matches of a pattern, without those that the listing of a folder would skip."""
    found = []
    for match in _glob("/" if pattern.startswith("/") else "", [part for part in pattern.split("/") if part]):
        if pattern.endswith("/") and not os.path.isdir(match):
            continue
        name = os.path.basename(match.rstrip("/"))
        inside = (
            f"{PROOF}/" in match and f"{PROOF}/" not in pattern
        )  # a pattern that names a proof folder asks for its files
        from_scorer = name.endswith(PROOF) or os.path.isdir(match.rstrip("/") + PROOF) or inside
        plain_file = os.path.isfile(match) and not name.lower().endswith(SUFFIXES)
        if not from_scorer and not plain_file and not name.startswith((".", "_")):
            found.append(match)
    return found


def _found_instead(text: str) -> str:
    """Return what exists instead of a missing path."""
    if os.path.islink(text):
        return f"a link to {os.readlink(text)!r}, which does not exist"
    folder, name = os.path.split(os.path.abspath(text))
    if not os.path.isdir(folder):
        return f"nothing; the folder {folder!r} does not exist"
    near: list[str] = []
    with suppress(OSError):
        near = difflib.get_close_matches(name, sorted(os.listdir(folder)), n=3)
    return f"nothing; similar names: {quoted_list(near)}" if near else "nothing"


def _files_under(path: str, ignore: set[str]) -> tuple[list[Listed], list[str]]:
    """Return the files of one path, sorted, and the skipped files."""
    if not os.path.isdir(path):
        return [Listed(path, "", os.path.dirname(path))], []
    found: list[Listed] = []
    skipped: list[str] = []
    for folder, names in _walk(path, ignore):
        inside = os.path.relpath(folder, path).replace(os.sep, "/")
        inside = "" if inside == "." else inside
        good = [n for n in names if n.lower().endswith(SUFFIXES) and n[0] not in "._"]
        kept = set(good)
        skipped += [os.path.join(folder, name) for name in names if name not in kept and not _is_marker(name)]
        found += [Listed(os.path.join(folder, name), inside, path) for name in good]
    found.sort(key=lambda file: natural(os.path.relpath(file.path, path)))
    return found, skipped


def _walk(top: str, ignore: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder with its file names, except hidden folders and outputs of scorer."""
    entered: dict[str, str] = {}
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        _enter_once(folder, entered)
        folders: list[str] = []
        names: list[str] = []
        for entry in _entries(folder):
            (folders if _is_folder(entry) else names).append(entry.name)
        _refuse_table_format(folder, folders)
        outputs = {name.removesuffix(PROOF) for name in folders if name.endswith(PROOF)}
        inner = [
            os.path.join(folder, name)
            for name in folders
            if name[0] not in "._" and not name.endswith(PROOF) and name not in outputs
        ]
        waiting += [path for path in reversed(inner) if os.path.realpath(path) not in ignore]
        yield folder, names


def _glob(folder: str, parts: Sequence[str]) -> Iterator[str]:
    """Yield what matches the parts of a pattern, as `glob.iglob` does, but raise for a folder that cannot be listed."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _glob_below(folder, rest)
    elif not glob.has_magic(part):
        path = os.path.join(folder, part)
        if rest:
            yield from _glob(path, rest)
        elif _status(path, os.lstat) is not None:
            yield path
    elif _is_existing_folder(folder):
        for entry in _entries(folder):
            if fnmatch.fnmatchcase(entry.name, part) and (part[0] == "." or entry.name[0] != "."):
                path = os.path.join(folder, entry.name)
                if not rest:
                    yield path
                elif _is_folder(entry):
                    yield from _glob(path, rest)


def _glob_below(top: str, rest: Sequence[str]) -> Iterator[str]:
    """Yield what matches the rest of a pattern in a folder and in all folders below it, without hidden ones."""
    entered: dict[str, str] = {}
    waiting = [top] if _is_existing_folder(top) else []
    while waiting:
        folder = waiting.pop()
        _enter_once(folder, entered)
        if rest:
            yield from _glob(folder, rest)
        elif folder:
            yield folder
        inner: list[str] = []
        for entry in _entries(folder):
            if entry.name[0] != ".":
                path = os.path.join(folder, entry.name)
                if _is_folder(entry):
                    inner.append(path)
                elif not rest:
                    yield path
        waiting += reversed(inner)


def _enter_once(folder: str, entered: dict[str, str]) -> None:
    """Note that a folder is listed; raise if it was listed before, under this name or another."""
    real = os.path.realpath(folder)
    if real in entered:
        raise InputError(
            "the input contains one folder twice",
            where=folder,
            expected="each folder once",
            found=f"also as {entered[real]}",
            hint="remove the link, or name the folders that you mean; otherwise every row would be scored twice",
        )
    entered[real] = folder


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name."""

    def entries() -> list[os.DirEntry[str]]:
        with os.scandir(folder or ".") as found:
            return sorted(found, key=lambda entry: entry.name)

    try:
        return retry(entries)
    except OSError as error:
        raise _unlisted(folder, error) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or leads to one; raise for a link that leads nowhere, except a hidden one."""
    try:
        folder = retry(entry.is_dir)
        if entry.is_symlink():
            retry(entry.stat)
    except OSError as error:
        if entry.name[0] in "._":
            return False
        raise _unlisted(entry.path, error) from error
    return folder


def _is_existing_folder(path: str) -> bool:
    """Return whether a path of a pattern is a folder; raise for a link that leads nowhere."""
    status = _status(path or ".", os.stat)
    if status is None and os.path.islink(path):
        raise _unlisted(path, FileNotFoundError(errno.ENOENT, ""))
    return status is not None and stat.S_ISDIR(status.st_mode)


def _status(path: str, look: Callable[[str], os.stat_result]) -> os.stat_result | None:
    """Return the status of a path, or None if it does not exist; raise if that is unknown."""
    try:
        return retry(lambda: look(path))
    except OSError as error:
        if error.errno in _MISSING:
            return None
        raise _unlisted(path, error) from error


def _unlisted(path: str, error: OSError) -> InputError:
    """Return the error for a folder or a link of which it is unknown what it contains."""
    found = os.strerror(error.errno) if error.errno else str(error)
    hint = "repeat the command; if it fails again, check the file system"
    if error.errno in {errno.EACCES, errno.EPERM}:
        hint = "get permission to read and enter this folder, or name only the files that you mean"
    elif error.errno in _MISSING:
        hint = "restore what the link leads to, or remove the link"
    with suppress(OSError):
        found = f"a link to {os.readlink(path)!r}: {found}"
    return InputError(
        "the input cannot be listed completely",
        where=path,
        expected="files and folders that can be listed",
        found=found,
        hint=hint,
    )


def _refuse_table_format(folder: str, folders: list[str]) -> None:
    """Raise if a table format manages the folder: its files may contain rows that the table has deleted."""
    kind, hint = next((_TABLE_FORMATS[name] for name in folders if name in _TABLE_FORMATS), ("", ""))
    metadata = os.path.join(folder, "metadata")
    if "metadata" in folders and glob.glob(os.path.join(glob.escape(metadata), "*.metadata.json")):
        kind, hint = "an Iceberg table", "list its live files, for example with pyiceberg's table.scan().plan_files()"
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


def natural(path: str) -> list[list[tuple[int, int, str]]]:
    """Return a sort key that compares digits as numbers, folder by folder; the path itself breaks ties."""
    parts = [
        [(1, int(bit), "") if bit.isdecimal() else (0, 0, bit) for bit in re.split(r"([0-9]+)", part)]
        for part in path.split("/")
    ]
    return [*parts, [(0, 0, path)]]


def is_glob(text: str) -> bool:
    """Return whether a path is a pattern, and not the name of an existing file."""
    return any(c in text for c in "*?[") and not os.path.lexists(text)
