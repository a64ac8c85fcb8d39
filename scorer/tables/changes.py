"""What changed in a table between two versions, from the commits of a Delta table or the snapshots of an Iceberg table.

A commit says of each file whether its rows are new or gone (`dataChange`), or only stored in another way, as after a
compaction; a snapshot says so of all its files (`replace`). A comparison of two lists of files could not tell. Where
compactions have mixed the rows of several files, an update of one counts as an update of all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from scorer.errors import InputChanged
from scorer.storage.stores import path_of
from scorer.tables import delta, iceberg
from scorer.tables.iceberg_metadata import load
from scorer.tables.snapshot import At

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    import numpy as np

    from scorer.tables.snapshot import Snapshot, TableFile


class Action(NamedTuple):
    """What a commit does with one file: it adds or removes it."""

    path: str
    changed: bool
    """Whether rows change with it; if not, they are only stored in another way."""
    partition: str = ""
    """Compactions put no rows of one partition into another."""


@dataclass(slots=True)
class _Group:
    """Files of the table, and the scored files whose rows they hold; a compaction may have mixed those of several."""

    live: dict[str, str] = field(default_factory=dict)
    """The files that are in the table, each with its partition."""
    scored: set[str] = field(default_factory=set)
    added: dict[str, str] = field(default_factory=dict)
    """Files with rows that are not scored yet, each with the version that added it."""
    changed: bool = False
    """Whether rows were updated or deleted."""

    def take(self, other: _Group) -> None:
        """Take in the files of another group."""
        self.live |= other.live
        self.scored |= other.scored
        self.added |= other.added
        self.changed = self.changed or other.changed


class Changes:
    """Which rows of a table are new, and of which scored files the rows were updated or deleted."""

    def __init__(
        self, scored: Mapping[str, str], kept: Collection[str] = (), live: Mapping[str, str] | None = None
    ) -> None:
        """Start with the files that were scored, each with its partition; `kept` are those that were gone then.

        `live` are the files of the table then, if they are known. Those that were not scored are compacted ones: they
        hold the rows of the scored files that are not there.
        """
        there = scored if live is None else live
        groups = [_Group(live={path: there[path]}, scored={path}) for path in scored if path in there]
        groups += [_Group(scored={path}) for path in scored if path not in there and path in kept]
        compacted: dict[str, _Group] = {}
        for path, partition in there.items():
            if path not in scored:
                compacted.setdefault(partition, _Group()).live[path] = partition
        for path in [path for path in scored if path not in there and path not in kept]:
            compacted.setdefault(scored[path], _Group()).scored.add(path)
        groups += compacted.values()
        self._by_id = {id(group): group for group in groups}
        self._kept = frozenset(kept)
        self._of = {path: group for group in groups for path in group.live}
        self._scored = {path: group for group in groups for path in group.scored}
        self._again: set[str] = set()
        self.rewritten: list[str] = []
        """Files of the table in which rows were updated or deleted."""

    def commit(self, version: str, adds: Iterable[Action], removes: Iterable[Action]) -> None:
        """Take in one commit."""
        adds, removes = list(adds), list(removes)
        stored = [one for one in removes if not one.changed and one.path in self._of]
        free = {one.path for one in stored}
        again = (one for one in adds if not one.changed and (one.path not in self._of or one.path in free))
        self._store_again(stored, list(again) if stored else [])
        new = [one for one in adds if one.changed or one.path not in self._of]
        gone = {one.path: self._of.pop(one.path) for one in removes if one.changed and one.path in self._of}
        for path, group in gone.items():
            group.live.pop(path, None)
            group.added.pop(path, None)
        for path, group in gone.items():
            if group.scored and (new or group.live):
                self.rewritten.append(path)
                group.changed = True
            if group.live:
                group.changed = True
            else:
                group.added.clear()
        for one in new:
            self._add(one, version, gone)

    def _store_again(self, sources: list[Action], targets: list[Action]) -> None:
        """Let files take the place of others that held the same rows."""
        partitions = {path: self._of[path].live[path] for path, *_ in sources}
        if {one.partition for one in targets} != set(partitions.values()):  # not by partition, as far as can be seen
            partitions = dict.fromkeys(partitions, "")
            targets = [one._replace(partition="") for one in targets]
        for partition in set(partitions.values()):
            merged = _Group()
            for path in (path for path, own in partitions.items() if own == partition):
                group = self._of.pop(path)
                del group.live[path]
                if group is not merged:
                    merged = self._merge(group, merged)
            for path in (one.path for one in targets if one.partition == partition):
                merged.live[path] = partition
                self._of[path] = merged

    def _merge(self, group: _Group, other: _Group) -> _Group:
        """Return the larger group with the files of the other one."""
        if len(group.live) + len(group.scored) < len(other.live) + len(other.scored):
            group, other = other, group
        group.take(other)
        self._of |= dict.fromkeys(other.live, group)
        self._scored |= dict.fromkeys(other.scored, group)
        self._by_id.pop(id(other), None)
        self._by_id[id(group)] = group
        return group

    def _add(self, one: Action, version: str, gone: Mapping[str, _Group]) -> None:
        group = gone.get(one.path) or self._of.get(one.path) or self._scored.get(one.path)
        if group is None:
            group = _Group()
            self._by_id[id(group)] = group
        if group.scored:  # rows deleted in a file, or a file that is back
            self.rewritten += [one.path] if one.path not in self.rewritten else []
            group.changed = True
        else:
            group.added[one.path] = version
        group.live[one.path] = one.partition
        self._of[one.path] = group

    @property
    def changed(self) -> set[str]:
        """The scored files of which rows were updated or deleted, as far as can be told."""
        return {path for group in self._by_id.values() if group.changed for path in group.scored}

    @property
    def removed(self) -> set[str]:
        """The scored files all of whose rows were deleted, and that were there before."""
        gone = (group for group in self._by_id.values() if not group.changed and not group.live)
        return {path for group in gone for path in group.scored} - self._kept

    def score_again(self, paths: Iterable[str]) -> set[str]:
        """Score again what the table has of scored files; return them with those whose rows cannot be told apart."""
        wanted = set(paths)
        groups = [group for group in self._by_id.values() if not wanted.isdisjoint(group.scored)]
        self._again = wanted = wanted.union(*(group.scored for group in groups))
        return wanted

    def to_score(self, version: str) -> dict[str, str]:
        """Return the files to score, each with the version of the table in which it has the rows to score."""
        found: dict[str, str] = {}
        for group in self._by_id.values():
            if not group.scored.isdisjoint(self._again) or (not group.scored and (group.added or group.changed)):
                found |= dict.fromkeys(group.live, version)
            else:
                found |= group.added
        return found


def changes(table: Snapshot, since: str, scored: Mapping[str, str], kept: Collection[str] = ()) -> Changes:
    """Return what changed after a version of a table; raise `InputChanged` if the table does not say any more.

    `scored` and `kept` are as for `Changes`.
    """
    if table.kind == "delta":
        return _of_delta(table, int(since), scored, kept)
    return _of_iceberg(table, since, scored, kept)


def version_at(table: Snapshot, since: str, scored: str) -> str:
    """Return the version of a table that is meant; raise `InputChanged` if it is older than the one that was scored."""
    version = _state(table, since).version
    if table.kind == "delta" and int(version) < int(scored):
        raise InputChanged(
            "rows that were added after --since are scored already",
            where=table.location,
            expected=f"version {scored}, which was scored, or a later one",
            found=f"version {version}",
            hint="leave out --since",
        )
    return version


def at_versions(table: Snapshot, files: Mapping[str, str]) -> Snapshot:
    """Return the table with only these files, each as it was in its version; a compaction may have replaced some."""
    states = {table.version: table}
    live = {file.id.path for file in table.files}
    found: list[TableFile] = []
    deleted: dict[str, np.ndarray] = {}
    for path, version in files.items():
        at = table.version if path in live else version
        if at not in states:
            states[at] = _state(table, at)
        found += [file for file in states[at].files if file.id.path == path]
        deleted |= {path: states[at].deleted[path]} if path in states[at].deleted else {}
    return replace(table, files=tuple(found), deleted=deleted)


def _state(table: Snapshot, version: str) -> Snapshot:
    if table.kind == "delta":
        return delta.snapshot(table.location, At(version=version))
    return iceberg.snapshot(table.location, At(snapshot=version))


def _of_delta(table: Snapshot, since: int, scored: Mapping[str, str], kept: Collection[str]) -> Changes:
    if int(table.version) < since:
        raise _older(table, str(since))
    commits = [_commit(table, version, since) for version in range(since + 1, int(table.version) + 1)]
    known = {*scored, *(one.path for adds, _ in commits for one in adds)}
    live = None
    if any(one.path not in known for _, removes in commits for one in removes):  # written by an earlier compaction
        live = {file.id.path: partition_of(file.keys) for file in _state(table, str(since)).files}
    found = Changes(scored, kept, live)
    for version, (adds, removes) in enumerate(commits, since + 1):
        found.commit(str(version), adds, removes)
    return found


def _commit(table: Snapshot, version: int, since: int) -> tuple[list[Action], list[Action]]:
    """Return the files that a commit adds, and those that it removes."""
    actions = list(_actions(table.location, version, since))

    def of(kind: str) -> list[Action]:
        own = (one[kind] for one in actions if kind in one)
        return [
            Action(
                delta.resolved(one["path"], table.location), bool(one.get("dataChange", True)),
                partition_of((one.get("partitionValues") or {}).items()),
            )
            for one in own
        ]  # fmt: skip

    return of("add"), of("remove")


def partition_of(keys: Iterable[tuple[str, str | None]]) -> str:
    """Return what identifies a partition, from its columns and their values."""
    return "/".join(sorted(f"{name}={value or ''}" for name, value in keys))


def _of_iceberg(table: Snapshot, since: str, scored: Mapping[str, str], kept: Collection[str]) -> Changes:
    """Compare each snapshot after one with its parent; that a branch was set back is an error, too."""
    first, last = (text.partition(":")[0] for text in (since, table.version))
    chain = _chain(table, first, last)
    before = {file.id.path: file.deletes for file in _state(table, first).files}
    found = Changes(dict.fromkeys(scored, ""), kept, dict.fromkeys(before, ""))  # partitions may have changed
    for number, operation in chain[1:]:
        now = {file.id.path: file.deletes for file in _state(table, number).files}
        changed = operation != "replace"
        other = [Action(path, changed) for path, deletes in now.items() if before.get(path) != deletes]
        gone = [Action(path, changed) for path, deletes in before.items() if now.get(path) != deletes]
        found.commit(number, other, gone)
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
        hint="name a later snapshot with --since, or score everything again with --overwrite",
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
            hint="name a later version with --since, or score everything again with --overwrite",
        ) from error
