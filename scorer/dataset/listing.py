"""Which files the input means: paths, patterns and folders, in a fixed order.

Opens no file; knows nothing of what is in them.
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
"""What the folder of an output's proof has behind the output's name."""

SUFFIXES = (".parquet", ".parq", ".pq")
_TABLE_FORMATS = {
    "_delta_log": ("a Delta table", "list its live files, for example with deltalake's DeltaTable(...).file_uris()"),
    ".hoodie": ("a Hudi table", "list the files of its latest commit"),
    "_temporary": ("an unfinished Spark or Hadoop job's output", "wait for that job, or remove _temporary"),
}


def list_files(inputs: Sequence[str], ignore: set[str]) -> tuple[list[tuple[str, str]], int]:
    """(path, folder inside its input) of every file in order, and how many were passed over."""
    found: list[tuple[str, str]] = []
    skipped = 0
    seen: dict[str, str] = {}
    for text in inputs:
        before, others = len(found), 0
        for path in _expand(text):
            listed, passed = _under(path, ignore)
            others += passed
            found += listed
        skipped += others
        if len(found) == before:
            what = "there is no Parquet file in the input"
            hint = f"files end in {', '.join(SUFFIXES)}; names that start with . or _ are passed over"
            raise InputNotFound(what, text, "at least one Parquet file", f"none; {others} other files", hint)
    for path, _ in found:
        real = os.path.realpath(path)
        if real in seen:
            what, hint = "one file is reached twice", "every row would be scored twice; name it once"
            raise InputError(what, path, "each file once", f"also as {seen[real]}", hint)
        seen[real] = path
    return found, skipped


def _expand(text: str) -> list[str]:
    if re.match(r"^[a-z][a-z0-9+.-]+://", text):
        what, hint = "the input is a URL", "copy it to a local or shared file system first"
        raise InputError(what, text, "a local path", text.split(":", 1)[0] + ":// is not supported yet", hint)
    if is_glob(text):
        matches = sorted(_matches(text), key=natural)
        if not matches:
            what, hint = "the pattern matches no Parquet file", f"check the folder; files end in {', '.join(SUFFIXES)}"
            raise InputNotFound(what, text, "at least one file", "none", hint)
        return [os.path.abspath(match) for match in matches]
    if os.path.exists(text) and not (os.path.isfile(text) or os.path.isdir(text)):
        what, hint = "the input is neither a file nor a folder", "write it to a file first"
        raise InputError(what, text, "a file, a folder or a pattern", "a pipe, a socket or a device", hint)
    if not os.path.exists(text):
        what, hint = "the input is not there", "check the path; relative paths start at the current folder"
        raise InputNotFound(what, text, "a file, a folder or a pattern", _neighbours(text), hint)
    return [os.path.abspath(text)]


def _matches(pattern: str) -> list[str]:
    """What a pattern means: what a folder's listing would not pass over."""
    found = []
    for match in glob.glob(pattern, recursive=True):
        name = os.path.basename(match.rstrip("/"))
        inside = f"{PROOF}/" in match and f"{PROOF}/" not in pattern  # who names it means it
        ours = name.endswith(PROOF) or os.path.isdir(match.rstrip("/") + PROOF) or inside
        plain_file = os.path.isfile(match) and not name.lower().endswith(SUFFIXES)
        if not ours and not plain_file and not name.startswith((".", "_")):
            found.append(match)
    return found


def _neighbours(text: str) -> str:
    """What is there instead of a missing path."""
    if os.path.islink(text):
        return f"a link to {os.readlink(text)!r}, which is not there"
    folder, name = os.path.split(os.path.abspath(text))
    if not os.path.isdir(folder):
        return f"nothing; there is no folder {folder!r}"
    near = difflib.get_close_matches(name, sorted(os.listdir(folder)), n=3)
    return f"nothing; beside it: {quoted_list(near)}" if near else "nothing"


def _under(path: str, ignore: set[str]) -> tuple[list[tuple[str, str]], int]:
    """The files of one input, sorted, and how many were passed over."""
    if not os.path.isdir(path):
        return [(path, "")], 0
    found: list[tuple[str, str]] = []
    skipped = 0
    for folder, names in _walk(path, ignore):
        inside = os.path.relpath(folder, path).replace(os.sep, "/")
        inside = "" if inside == "." else inside
        good = [n for n in names if n.lower().endswith(SUFFIXES) and n[0] not in "._"]
        skipped += sum(1 for name in names if name not in good and not _beside_tables(name))
        found += [(os.path.join(folder, name), inside) for name in good]
    found.sort(key=lambda item: natural(os.path.relpath(item[0], path)))
    return found, skipped


def _walk(top: str, ignore: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Folders with their files, leaving out hidden ones and outputs of scorer."""
    entered: set[str] = set()
    for folder, folders, names in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        _refuse_table_format(folder, folders)
        ours = {name.removesuffix(PROOF) for name in folders if name.endswith(PROOF)}
        folders[:] = [
            name
            for name in folders
            if name[0] not in "._"
            and not name.endswith(PROOF)
            and name not in ours
            and os.path.realpath(os.path.join(folder, name)) not in ignore
        ]
        yield folder, names


def _refuse_table_format(folder: str, folders: list[str]) -> None:
    """A folder that a table format manages holds deleted rows too: refuse it."""
    kind, hint = next((_TABLE_FORMATS[name] for name in folders if name in _TABLE_FORMATS), ("", ""))
    metadata = os.path.join(folder, "metadata")
    if "metadata" in folders and glob.glob(os.path.join(glob.escape(metadata), "*.metadata.json")):
        kind, hint = "an Iceberg table", "list its live files, for example with pyiceberg's table.scan().plan_files()"
    if kind:
        what = "the folder holds files that a plain reading would score by mistake"
        raise InputError(what, folder, "a plain folder of finished Parquet files", kind, hint)


def _beside_tables(name: str) -> bool:
    """Whether a file is what other tools leave beside their tables, and no table."""
    return name in {"_SUCCESS", "_metadata", "_common_metadata"} or name.endswith(".crc")


def natural(path: str) -> list[list[tuple[int, int, str]]]:
    """Sort key: part by part, digits as numbers; the path itself where that leaves a tie."""
    parts = [
        [(1, int(bit), "") if bit.isdecimal() else (0, 0, bit) for bit in re.split(r"([0-9]+)", part)]
        for part in path.split("/")
    ]
    return [*parts, [(0, 0, path)]]


def is_glob(text: str) -> bool:
    """Whether a path is a pattern (and no file of that very name exists)."""
    return any(c in text for c in "*?[") and not os.path.lexists(text)
