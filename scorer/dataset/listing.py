"""List the input's files from paths, patterns and folders, in a fixed order.

Opens no file and does not know what they contain.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
from typing import TYPE_CHECKING

from scorer.display.words import quoted_list
from scorer.errors import InputError, InputNotFound

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PROOF = ".scorer"
"""Suffix of the folder that holds an output's proof: the proof of `out` is in `out.scorer`."""

SUFFIXES = (".parquet", ".parq", ".pq")
_TABLE_FORMATS = {
    "_delta_log": ("a Delta table", "list its live files, for example with deltalake's DeltaTable(...).file_uris()"),
    ".hoodie": ("a Hudi table", "list the files of its latest commit"),
    "_temporary": ("an unfinished Spark or Hadoop job's output", "wait for that job, or remove _temporary"),
}


def list_files(inputs: Sequence[str], ignore: set[str]) -> tuple[list[tuple[str, str]], int]:
    """Return (path, folder inside its input) of every file in order, and the number of skipped files."""
    found: list[tuple[str, str]] = []
    skipped = 0
    seen: dict[str, str] = {}
    for text in inputs:
        before, others = len(found), 0
        for path in _expand(text):
            listed, not_parquet = _files_under(path, ignore)
            others += not_parquet
            found += listed
        skipped += others
        if len(found) == before:
            raise InputNotFound(
                "the input contains no Parquet file",
                where=text,
                expected="at least one Parquet file",
                found=f"none; {others} other files",
                hint=f"file names must end in {', '.join(SUFFIXES)}; names that start with . or _ are skipped",
            )
    for path, _ in found:
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
            raise InputNotFound(
                "the pattern matches no Parquet file",
                where=text,
                expected="at least one file",
                found="none",
                hint=f"check the folder; file names must end in {', '.join(SUFFIXES)}",
            )
        return [os.path.abspath(match) for match in matches]
    if os.path.exists(text) and not (os.path.isfile(text) or os.path.isdir(text)):
        raise InputError(
            "the input is neither a file nor a folder",
            where=text,
            expected="a file, a folder or a pattern",
            found="a pipe, a socket or a device",
            hint="write it to a file first",
        )
    if not os.path.exists(text):
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
    for match in glob.glob(pattern, recursive=True):
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
    near = difflib.get_close_matches(name, sorted(os.listdir(folder)), n=3)
    return f"nothing; similar names: {quoted_list(near)}" if near else "nothing"


def _files_under(path: str, ignore: set[str]) -> tuple[list[tuple[str, str]], int]:
    """Return the files of one path, sorted, and the number of skipped files."""
    if not os.path.isdir(path):
        return [(path, "")], 0
    found: list[tuple[str, str]] = []
    skipped = 0
    for folder, names in _walk(path, ignore):
        inside = os.path.relpath(folder, path).replace(os.sep, "/")
        inside = "" if inside == "." else inside
        good = [n for n in names if n.lower().endswith(SUFFIXES) and n[0] not in "._"]
        skipped += sum(1 for name in names if name not in good and not _is_marker(name))
        found += [(os.path.join(folder, name), inside) for name in good]
    found.sort(key=lambda item: natural(os.path.relpath(item[0], path)))
    return found, skipped


def _walk(top: str, ignore: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder with its file names, except hidden folders and outputs of scorer."""
    entered: set[str] = set()
    for folder, folders, names in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        _refuse_table_format(folder, folders)
        outputs = {name.removesuffix(PROOF) for name in folders if name.endswith(PROOF)}
        folders[:] = [
            name
            for name in folders
            if name[0] not in "._"
            and not name.endswith(PROOF)
            and name not in outputs
            and os.path.realpath(os.path.join(folder, name)) not in ignore
        ]
        yield folder, names


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
