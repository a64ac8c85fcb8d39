"""What changed in a Delta table between two versions, from the commits of its log.

A commit says of each file whether its rows are new or gone (`dataChange`), or only stored in another way, as after a
compaction. A comparison of two lists of files could not tell.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scorer.errors import InputChanged
from scorer.storage.stores import path_of
from scorer.tables.delta import LOG, resolved

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(slots=True)
class Changes:
    """The files whose rows are new, and those whose rows are not in the table any more or are there in another form."""

    added: dict[str, int] = field(default_factory=dict)
    """Files with new rows, each with the version that added it. A later compaction may have replaced them."""
    rewritten: list[str] = field(default_factory=list)
    """Files in which rows were updated or deleted."""
    removed: list[str] = field(default_factory=list)
    """Files all of whose rows were deleted."""
    _stored_again: dict[str, bool] = field(default_factory=dict)
    """Files that a compaction wrote, and whether they may hold new rows."""

    def commit(self, version: int, adds: Iterable[tuple[str, bool]], removes: Iterable[tuple[str, bool]]) -> None:
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


def changes(location: str, since: int, until: int) -> Changes:
    """Return what changed after one version up to another; raise `InputChanged` if the log does not say any more."""
    found = Changes()
    for version in range(since + 1, until + 1):
        actions = list(_actions(location, version, since))
        pairs = {
            name: [
                (resolved(one[name]["path"], location), bool(one[name].get("dataChange", True)))
                for one in actions
                if name in one
            ]
            for name in ("add", "remove")
        }
        found.commit(version, pairs["add"], pairs["remove"])
    return found


def _actions(location: str, version: int, since: int) -> Iterator[dict[str, Any]]:
    path = path_of(location) / LOG / f"{version:020d}.json"
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
