"""What changed in a table between two versions, from the commits of a Delta table or the snapshots of an Iceberg table.

A commit says of each file whether its rows are new or gone (`dataChange`), or only stored in another way, as after a
compaction; a snapshot says so of all its files (`replace`). A comparison of two lists of files could not tell.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from scorer.errors import InputChanged
from scorer.storage.stores import path_of
from scorer.tables import delta, iceberg
from scorer.tables.iceberg_metadata import load
from scorer.tables.snapshot import At

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np

    from scorer.tables.snapshot import Snapshot, TableFile


@dataclass(slots=True)
class Changes:
    """The files whose rows are new, and those whose rows are not in the table any more or are there in another form."""

    added: dict[str, str] = field(default_factory=dict)
    """Files with new rows, each with the version that added it. A later compaction may have replaced them."""
    rewritten: list[str] = field(default_factory=list)
    """Files in which rows were updated or deleted."""
    removed: list[str] = field(default_factory=list)
    """Files all of whose rows were deleted."""
    _stored_again: dict[str, bool] = field(default_factory=dict)
    """Files that a compaction wrote, and whether they may hold new rows."""

    def commit(self, version: str, adds: Iterable[tuple[str, bool]], removes: Iterable[tuple[str, bool]]) -> None:
        """Take in one commit: files, each with whether its rows changed."""
        adds, removes = list(adds), list(removes)
        new, gone = [path for path, changed in adds if changed], [path for path, changed in removes if changed]
        for path in gone:
            if path in self.added:
                del self.added[path]
            elif new or self._stored_again.get(path):
                self.rewritten.append(path)
            else:
                self.removed.append(path)
        mixed = any(self._holds_new(path) for path, changed in removes if not changed)
        self._stored_again |= {path: mixed for path, changed in adds if not changed}
        self.added |= dict.fromkeys(new, version)

    def _holds_new(self, path: str) -> bool:
        return path in self.added or self._stored_again.get(path, False)


def changes(table: Snapshot, since: str) -> Changes:
    """Return what changed after a version of a table; raise `InputChanged` if the table does not say any more."""
    return _of_delta(table, int(since)) if table.kind == "delta" else _of_iceberg(table, since)


def as_added(table: Snapshot, found: Changes) -> Snapshot:
    """Return the table with only the files that have new rows; those that were compacted since, as they were added."""
    states = {table.version: table}
    live = {file.id.path for file in table.files}
    files: list[TableFile] = []
    deleted: dict[str, np.ndarray] = {}
    for path, version in found.added.items():
        at = table.version if path in live else version
        if at not in states:
            states[at] = _state(table, at)
        files += [file for file in states[at].files if file.id.path == path]
        deleted |= {path: states[at].deleted[path]} if path in states[at].deleted else {}
    return replace(table, files=tuple(files), deleted=deleted)


def _state(table: Snapshot, version: str) -> Snapshot:
    if table.kind == "delta":
        return delta.snapshot(table.location, At(version=version))
    return iceberg.snapshot(table.location, At(snapshot=version))


def _of_delta(table: Snapshot, since: int) -> Changes:
    found, location = Changes(), table.location
    if int(table.version) < since:
        raise _older(table, str(since))
    for version in range(since + 1, int(table.version) + 1):
        actions = list(_actions(location, version, since))
        pairs = {
            name: [
                (delta.resolved(one[name]["path"], location), bool(one[name].get("dataChange", True)))
                for one in actions
                if name in one
            ]
            for name in ("add", "remove")
        }
        found.commit(str(version), pairs["add"], pairs["remove"])
    return found


def _of_iceberg(table: Snapshot, since: str) -> Changes:
    """Compare each snapshot after one with its parent; that a branch was set back is an error, too."""
    found = Changes()
    first, last = (text.partition(":")[0] for text in (since, table.version))
    chain = _chain(table, first, last)
    before: dict[str, str] = {}
    for number, operation in chain:
        now = {file.id.path: file.deletes for file in _state(table, number).files}
        if number != first:
            kept = operation == "replace"
            other = [path for path, deletes in now.items() if before.get(path) != deletes]
            gone = [path for path, deletes in before.items() if now.get(path) != deletes]
            found.commit(number, [(path, not kept) for path in other], [(path, not kept) for path in gone])
        before = now
    return found


def _chain(table: Snapshot, first: str, last: str) -> list[tuple[str, str]]:
    """Return the snapshots from one to another, each with its operation."""
    by_id = {str(one.snapshot_id): one for one in load(table.location).snapshots}
    chain: list[tuple[str, str]] = []
    number = last
    while number in by_id:
        one = by_id[number]
        operation = "" if one.summary is None else str(one.summary.operation.value)
        chain.append((number, operation))
        if number == first:
            return chain[::-1]
        number = str(one.parent_snapshot_id)
    raise InputChanged(
        f"what changed since snapshot {first} of the table can no longer be told",
        where=table.location,
        expected=f"snapshot {first} before snapshot {last}",
        found="a snapshot that expired" if first not in by_id else "a snapshot that is not before it",
        hint="score everything again with --overwrite",
    )


def _older(table: Snapshot, since: str) -> InputChanged:
    return InputChanged(
        "the requested version of the table is older than the one that was scored",
        where=table.location,
        expected=f"version {since} or a later one",
        found=f"version {table.version}",
        hint="leave out --input-version, or choose another --output",
    )


def _actions(location: str, version: int, since: int) -> Iterator[dict[str, Any]]:
    path = path_of(location) / delta.LOG / f"{version:020d}.json"
    try:
        lines = path.read_text().splitlines()
        yield from (json.loads(line) for line in lines if line.strip())
    except (FileNotFoundError, ValueError) as error:
        raise InputChanged(
            f"what changed since version {since} of the table can no longer be told",
            where=str(path),
            expected="the commit of each version since then",
            found="a damaged commit" if isinstance(error, ValueError) else "nothing: the log was cleaned up",
            hint="score everything again with --overwrite",
        ) from error
