"""The snapshot of a table that is named as the input, and its files as the rest of the package lists files.

A Delta table is a folder with _delta_log. An Iceberg table is a folder with metadata/*.metadata.json, one of these
files, or iceberg://CATALOG/NAME.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from scorer.dataset.listing import Listed
from scorer.dataset.trees import has_magic
from scorer.display.words import quoted_list
from scorer.errors import InputChanged, InputError, InputNotFound
from scorer.locations import is_below, is_url, scheme
from scorer.storage import stores
from scorer.tables.snapshot import At, Snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.dataset.trees import Tree
    from scorer.storage.files import FileId
    from scorer.tables.snapshot import TableFile


LOG, METADATA, METADATA_FILE = "_delta_log", "metadata", ".metadata.json"
CATALOG = "iceberg"
"""The scheme of a table that is found by a catalog."""
_WORDS = {"delta": "a Delta table", "iceberg": "an Iceberg table", "parquet": "plain Parquet files"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the request says of a table: its kind and its state."""

    kind: str = "auto"
    at: At = field(default_factory=At)
    empty: bool = False
    """Whether the table may have no file."""


def snapshot_of(inputs: Sequence[str], both: tuple[Tree, Tree], wanted: Wanted, base: str | None) -> Snapshot | None:
    """Return the table that is the input, in the state that is wanted; None if the input are plain files."""
    found = {text: kinds_of(text, both) for text in inputs}
    tables = [text for text, kinds in found.items() if kinds]
    kinds = found[tables[0]] if tables else []
    _refuse_misfits(inputs, tables, kinds, wanted)
    if not tables:
        return None
    if base is not None:
        raise InputError(
            "--base does not apply to a table",
            where=tables[0],
            expected="an input of plain Parquet files",
            found=_WORDS[kinds[0]],
            hint="leave out --base: the log of the table says the values of its partition columns",
        )
    location = tables[0] if scheme(tables[0]) == CATALOG else both[is_url(tables[0])].absolute(tables[0])
    snapshot = _opened(kinds[0] if wanted.kind == "auto" else wanted.kind, location, wanted.at)
    if not snapshot.files and not wanted.empty:
        raise InputNotFound(
            "the table is empty",
            where=location,
            expected="at least one file with rows",
            found=f"{snapshot.name}, without files",
            hint="name another version, or run again when the table has rows",
        )
    return snapshot


def kinds_of(text: str, both: tuple[Tree, Tree]) -> list[str]:
    """Return what kinds of table an input is: usually none or one."""
    if scheme(text) == CATALOG:
        return ["iceberg"]
    tree = both[is_url(text)]
    if has_magic(text) and (is_url(text) or tree.is_pattern(text)):  # a store is not asked twice about a pattern
        return []
    path = tree.absolute(text)
    if path.endswith(METADATA_FILE):
        return ["iceberg"] if tree.kind(path) == "file" else []
    if tree.kind(path if is_url(text) else text) != "folder":
        return []
    names = [entry.name for entry in tree.entries(path)]
    found = ["delta"] if LOG in names else []
    if METADATA in names and tree.is_folder(os.path.join(path, METADATA)):
        inner = tree.entries(os.path.join(path, METADATA))
        found += ["iceberg"] if any(entry.name.endswith(METADATA_FILE) for entry in inner) else []
    return found


def _refuse_misfits(inputs: Sequence[str], tables: Sequence[str], kinds: Sequence[str], wanted: Wanted) -> None:
    """Raise if the request does not fit the tables among the inputs."""
    given = {"--input-version": wanted.at.version, "--input-snapshot": wanted.at.snapshot}
    flags = {"delta": "--input-version", "iceberg": "--input-snapshot"}
    kind = wanted.kind if wanted.kind != "auto" else (kinds[0] if kinds else "parquet")
    if tables and len(inputs) > 1:
        raise InputError(
            "a table is scored on its own",
            where=tables[0],
            expected="one table, or plain Parquet files",
            found=f"{len(inputs)} inputs",
            hint="score each table in a run of its own",
        )
    if len(kinds) > 1 and wanted.kind == "auto":
        raise InputError(
            "the folder is a table of two kinds",
            where=tables[0],
            expected="one log",
            found=quoted_list([LOG, METADATA]),
            hint="say --input-format delta or --input-format iceberg",
        )
    if wanted.kind not in {"auto", *kinds} and (tables or wanted.kind != "parquet"):
        raise InputError(
            "the input has another format",
            where=inputs[0] if not tables else tables[0],
            expected=_WORDS[wanted.kind],
            found=" and ".join(_WORDS[one] for one in kinds or ["parquet"]),
            hint="leave out --input-format; files of a table are not scored without its log, which knows deleted rows",
        )
    for flag, value in given.items():
        if value is not None and flags.get(kind) != flag:
            other = {"delta": ", which has --input-version", "iceberg": ", which has --input-snapshot"}
            raise InputError(
                f"{flag} does not apply to this input",
                where=inputs[0],
                expected="a Delta table" if flag == "--input-version" else "an Iceberg table",
                found=_WORDS[kind] + other.get(kind, ""),
                hint=f"leave out {flag}",
            )


def _opened(kind: str, location: str, at: At) -> Snapshot:
    if kind == "iceberg":
        from scorer.tables import iceberg  # noqa: PLC0415 - needs a library of its own

        return iceberg.snapshot(location, at)
    from scorer.tables import delta  # noqa: PLC0415 - needs a library of its own

    return delta.snapshot(location, at)


def listed(table: Snapshot, both: tuple[Tree, Tree]) -> list[Listed]:
    """Return the files of a table. Those on a store are looked up in its lists."""
    found: list[Listed] = []
    on_store = is_url(table.location) and scheme(table.location) != CATALOG and stores.can_list(table.location)
    elsewhere = [file.id.path for file in table.files if not (on_store and is_below(file.id.path, table.location))]
    beside = stores.listed_beside(elsewhere)
    for file in table.files:
        path = file.id.path
        known = beside.get(path)
        if is_url(path) and on_store and is_below(path, table.location):
            known = both[True].identity(path)
            if known is None:
                raise vacuumed(table, path)
        found.append(Listed(path, file.folder, table.location, known, file))
    return found


def keys_of(table: Snapshot) -> pa.Schema:
    """Return the partition columns."""
    fields = (table.schema.field(name) for name in table.partition_columns)
    return pa.schema([pa.field(one.name, one.type, one.nullable) for one in fields])


def vacuumed(table: Snapshot, path: str) -> InputChanged:
    """Return the error for a file of a version that is not there any more."""
    delta = table.kind == "delta"
    state = f"version {table.version} was vacuumed" if delta else f"snapshot {table.version} has expired"
    return InputChanged(
        "a file of the table is gone",
        where=path,
        expected=f"the files of {table.name}",
        found=f"nothing: {state}, or is incomplete",
        hint=f"start again on a newer {'version' if delta else 'snapshot'}; --overwrite discards what was scored",
    )


def rewritten(file: TableFile, found: FileId) -> InputChanged:
    """Return the error for a file that is not the one in the log."""
    return InputChanged(
        "a file of the table is not the one in its log",
        where=file.id.path,
        expected=f"{file.id.size:,} bytes",
        found=f"{found.size:,} bytes",
        hint="restore the file, or repair the table with its own tools",
    )
