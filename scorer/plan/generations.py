"""Generations of an output that grows with its input: what each has scored, and what is new since then.

    OUT/generation=0001/part-00000.parquet      the first run with --new-only
    OUT/generation=0002/part-00031.parquet      the files that were new at the second; part numbers go on

Only compares values; reads nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scorer.display.words import plural, quoted_list

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scorer.storage.files import FileId

KEY = "generation"
"""The key of the folders, and the column of the ledger."""
_OUTSIDE_RECIPE = frozenset({"input", "table", "limit", "device", "mode"})
_SHOWN = 3  # names of files in a message
_FOLDER = re.compile(rf"{KEY}=[0-9]{{4,}}")


def folder_of(generation: int) -> str:
    """Return the name of a generation's folder, in the output and in its proof."""
    return f"{KEY}={generation:04d}"


def without_generation(folder: str) -> str:
    """Return a folder of the input without the folder of a generation, if the input is such an output."""
    return "/".join(part for part in folder.split("/") if not _FOLDER.fullmatch(part))


def generation_in(name: str) -> int:
    """Return the generation in the name of a part; 0 without one."""
    top = name.partition("/")[0]
    return int(top.partition("=")[2]) if _FOLDER.fullmatch(top) else 0


def recipe(request: dict[str, Any]) -> dict[str, Any]:
    """Return how a request scores, whatever it scores: the part that all generations of an output share."""
    return {name: value for name, value in request.items() if name not in _OUTSIDE_RECIPE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How an input differs from what was scored, each in the order in which the files were given."""

    new: tuple[FileId, ...]
    changed: tuple[FileId, ...]
    """As they are now."""
    gone: tuple[FileId, ...]
    """As they were scored."""
    moved: tuple[tuple[FileId, FileId], ...]
    """Of `gone` and `new`: files of one name, size and version, which seem to be the same."""

    @property
    def only_new(self) -> bool:
        """Whether files were added and nothing else happened."""
        return bool(self.new) and not self.changed and not self.gone

    def __str__(self) -> str:
        """Return the numbers of files, and the first names."""
        found = []
        for files, before, after in ((self.new, "new ", ""), (self.changed, "", " changed"), (self.gone, "", " gone")):
            if files:
                names = quoted_list([file.path for file in files], _SHOWN)
                found.append(f"{plural(len(files), f'{before}input file')}{after}: {names}")
        return "; ".join(found)


def difference(known: Iterable[FileId], now: Iterable[FileId]) -> Difference:
    """Compare the files that were scored with those of the input now."""
    scored = {file.path: file for file in known}
    listed = {file.path: file for file in now}
    new = tuple(file for path, file in listed.items() if path not in scored)
    gone = tuple(file for path, file in scored.items() if path not in listed)
    return Difference(
        new=new,
        changed=tuple(file for path, file in listed.items() if path in scored and scored[path] != file),
        gone=gone,
        moved=_moved(gone, new),
    )


def _moved(gone: tuple[FileId, ...], new: tuple[FileId, ...]) -> tuple[tuple[FileId, FileId], ...]:
    """Return each vanished file with the only new one that agrees with it in all but the folder."""
    if not gone:
        return ()
    alike = Counter(_without_folder(file) for file in new)
    found = {_without_folder(file): file for file in new}
    return tuple((file, found[key]) for file in gone if alike[key := _without_folder(file)] == 1)


def _without_folder(file: FileId) -> tuple[str, int, int | str]:
    return file.path.rpartition("/")[2], file.size, file.version
