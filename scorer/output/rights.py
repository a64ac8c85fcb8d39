"""What a process may do on an object store, before a row is scored: read the input, write beside the output.

A question costs one to three requests and changes nothing: the write is one that must fail, because it replaces an
object that does not exist. It is made by every process with its own credentials.
"""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scorer.errors import InputError, PlanError, ScorerError
from scorer.locations import cloud, join, split
from scorer.storage import refusals, stores
from scorer.storage.files import FileId

if TYPE_CHECKING:
    from collections.abc import Iterator

_NOTHING = FileId("", 0, "00000000000000000000000000000000")
"""An object that does not exist: no contents have this ETag."""
_GLOB = re.compile(r"[*?\[]")


def asks(location: str) -> bool:
    """Return whether a location is on a store whose rights can be asked for."""
    return cloud(location) in {"s3", "gs", "az"}


def read_problem(location: str, noun: str = "input") -> ScorerError | None:
    """Return what keeps this process from listing and reading a location; None if nothing does, or nothing is there."""
    with _asking(location, f"read the {noun}", InputError) as question:
        root, key = split(location)
        parts = key.split("/")
        at = next((i for i, part in enumerate(parts) if _GLOB.search(part)), None)
        store = stores.of(root, hasty=True)
        if at is None and key:
            question.right = "get"
            with suppress(FileNotFoundError, PermissionError):  # a folder; without the right to list, a store says 403
                store.read_range(FileId(location, 1, ""), 0, 1)
                return None
        question.right = "list"
        first = next(store.objects(join(root, *parts[:at]) if parts[:at] else root), None)
        if first is not None and first.size:
            question.right = "get"
            store.read_range(first, 0, 1)
    return question.problem


def write_problem(folder: str) -> ScorerError | None:
    """Return what keeps this process from writing below a location; None if nothing does."""
    with _asking(folder, "write the output", PlanError) as question:
        store, probe = stores.of(folder, hasty=True), join(folder, "rights")
        question.right = "list"
        next(store.objects(folder), None)
        question.right = "put"
        if store.put_over(probe, b"", _NOTHING) is not None:  # this server ignores conditions
            store.remove([probe])
    return question.problem


@dataclass(slots=True)
class _Question:
    """The right that is being asked for, and what a store refused."""

    right: str = ""
    problem: ScorerError | None = None


@contextmanager
def _asking(where: str, doing: str, kind: type[ScorerError]) -> Iterator[_Question]:
    question = _Question()
    try:
        yield question
    except ScorerError as error:  # no credentials, no package, or a wrong option
        question.problem = error
    except OSError as error:
        question.problem = refusals.explained(error, where, doing, question.right, kind)
