"""The folders below an input, on a disk or on an object store, for the rules of `listing`.

    Disk        links are followed; the state of a file is looked at when its footer is read
    Bucket      folders are those in the keys; the store's list has the size and the ETag of each object

What cannot be listed is an error, because its rows would be missing.
"""

from __future__ import annotations

import difflib
import errno
import os
import stat
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from scorer.display.words import cut, quoted_list
from scorer.errors import InputError
from scorer.locations import normal, split
from scorer.storage import refusals, stores
from scorer.storage.files import retry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from scorer.errors import ScorerError
    from scorer.storage.files import FileId


_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
_LOOKED_AT = 10_000  # objects among which similar names are looked for
_ODD_NAME = "rror parsing Path"
"""What obstore says of a name that it cannot hold."""


class Tree(Protocol):
    """Where an input is: on a disk or on a store."""

    def absolute(self, path: str) -> str:
        """Return a path as it is recorded."""

    def real(self, path: str) -> str:
        """Return what is the same for two paths to one file or folder."""

    def is_pattern(self, text: str) -> bool:
        """Return whether a path is a pattern, and not the name of an existing file."""

    def kind(self, path: str) -> str:
        """Return 'file', 'folder', 'other', or '' if nothing is there."""

    def is_folder(self, path: str) -> bool:
        """Return whether a path of a pattern is a folder; raise for a link that leads nowhere."""

    def exists(self, path: str) -> bool:
        """Return whether a path of a pattern exists, if only as a link."""

    def entries(self, folder: str) -> Sequence[Any]:
        """Return the entries of a folder, each with its name, sorted by name."""

    def leads_to_folder(self, entry: Any) -> bool:  # noqa: ANN401 - an entry of this tree
        """Return whether an entry is a folder or leads to one."""

    def below(self, folder: str) -> None:
        """Prepare for a walk through all folders below this one."""

    def identity(self, path: str) -> FileId | None:
        """Return which file was listed under a path; None if only its footer's reader will know."""

    def instead(self, path: str) -> str:
        """Return what exists instead of a missing path."""


class Disk:
    """Local folders."""

    def absolute(self, path: str) -> str:
        """Return the absolute path."""
        return os.path.abspath(path)

    def real(self, path: str) -> str:
        """Return the path without links."""
        return os.path.realpath(path)

    def is_pattern(self, text: str) -> bool:
        """Return whether a path is a pattern, and not the name of an existing file."""
        return has_magic(text) and not os.path.lexists(text)

    def kind(self, path: str) -> str:
        """Return what is at a path; raise if that is unknown."""
        status = _status(path, os.stat)
        if status is None:
            return ""
        return "folder" if stat.S_ISDIR(status.st_mode) else "file" if stat.S_ISREG(status.st_mode) else "other"

    def is_folder(self, path: str) -> bool:
        """Return whether a path of a pattern is a folder; raise for a link that leads nowhere."""
        status = _status(path or ".", os.stat)
        if status is None and os.path.islink(path):
            raise _unlisted(path, FileNotFoundError(errno.ENOENT, ""))
        return status is not None and stat.S_ISDIR(status.st_mode)

    def exists(self, path: str) -> bool:
        """Return whether a path exists, if only as a link."""
        return _status(path, os.lstat) is not None

    def entries(self, folder: str) -> Sequence[os.DirEntry[str]]:
        """Return the entries of a folder, sorted by name."""

        def entries() -> list[os.DirEntry[str]]:
            with os.scandir(folder or ".") as found:
                return sorted(found, key=lambda entry: entry.name)

        try:
            return retry(entries)
        except OSError as error:
            raise _unlisted(folder, error) from error

    def leads_to_folder(self, entry: os.DirEntry[str]) -> bool:
        """Return whether an entry leads to a folder; raise for a link that leads nowhere, except a hidden one."""
        try:
            folder = retry(entry.is_dir)
            if entry.is_symlink():
                retry(entry.stat)
        except OSError as error:
            if entry.name[0] in "._":
                return False
            raise _unlisted(entry.path, error) from error
        return folder

    def below(self, folder: str) -> None:
        """Do nothing: each folder is listed when it is entered."""

    def identity(self, path: str) -> None:
        """Return None: a file may change between the listing and the reading of its footer."""

    def instead(self, path: str) -> str:
        """Return what exists instead of a missing path."""
        if os.path.islink(path):
            return f"a link to {os.readlink(path)!r}, which does not exist"
        folder, name = os.path.split(os.path.abspath(path))
        if not os.path.isdir(folder):
            return f"nothing; the folder {folder!r} does not exist"
        names: list[str] = []
        with suppress(OSError):
            names = os.listdir(folder)
        return _similar(name, names)


def _status(path: str, look: Callable[[str], os.stat_result]) -> os.stat_result | None:
    """Return the status of a path, or None if it does not exist; raise if that is unknown."""
    try:
        return retry(lambda: look(path))
    except OSError as error:
        if error.errno in _MISSING:
            return None
        raise _unlisted(path, error) from error


class _Object(NamedTuple):
    """An object, or a folder: a part of the keys of objects."""

    name: str
    path: str
    file: FileId | None


class Bucket:
    """Folders on object stores. No store is asked the same twice."""

    def __init__(self) -> None:
        self._files: dict[str, FileId] = {}
        self._folders: set[str] = set()
        self._entries: dict[str, list[_Object]] = {}
        """What is directly in the folders that were listed."""
        self._complete: list[str] = []
        """Folders below which everything was listed."""

    def absolute(self, path: str) -> str:
        """Return the location without slashes at its end."""
        return normal(path)

    def real(self, path: str) -> str:
        """Return the location: there are no links."""
        return path

    def is_pattern(self, text: str) -> bool:
        """Return whether a location is a pattern, and not that of an object."""
        return has_magic(text) and not self._look_at(normal(text))

    def kind(self, path: str) -> str:
        """Return what is at a location. If there are an object and a folder, an extension tells which is meant."""
        if not self._knows(path):
            is_object = bool(split(path)[1]) and self._look_at(path)
            if stores.can_list(path) and not (is_object and "." in path.rpartition("/")[2]):
                self.below(path)
        return "folder" if path in self._folders else "file" if path in self._files else ""

    def _look_at(self, path: str) -> bool:
        """Return whether there is an object, and note which one. This is the first question, so it must not last."""
        try:
            found = stores.identity(path, hasty=True)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _not_answered(path, error) from error
        if found.size or not any(True for _ in self._objects(path)):  # otherwise it marks a folder
            self._files[path] = found
        return path in self._files

    def is_folder(self, path: str) -> bool:
        """Return whether an object lies below a location."""
        if not self._knows(path):
            self.entries(path)
        return path in self._folders

    def exists(self, path: str) -> bool:
        """Return whether there is an object, or one below."""
        return bool(self.kind(path))

    def entries(self, folder: str) -> Sequence[_Object]:
        """Return the objects and folders directly below a location, sorted by name."""
        if folder not in self._entries and not self._is_complete(folder):
            try:
                files, folders = stores.of(folder).folder(folder)
            except OSError as error:
                raise _not_answered(folder, error) from error
            self._note(folder, files, folders)
        return self._entries.get(folder, [])

    def leads_to_folder(self, entry: _Object) -> bool:
        """Return whether an entry is a folder."""
        return entry.file is None

    def below(self, folder: str) -> None:
        """List everything below a location, a thousand objects a request."""
        if self._is_complete(folder):
            return
        files: dict[str, list[FileId]] = {folder: []}
        folders: dict[str, set[str]] = {}
        for file in self._objects(folder):
            here = file.path.rpartition("/")[0]
            files.setdefault(here, []).append(file)
            while here != folder and here not in folders.get(above := here.rpartition("/")[0], ()):
                folders.setdefault(above, set()).add(here)
                files.setdefault(above, [])
                here = above
        for one, inside in files.items():
            self._note(one, inside, folders.get(one, ()))
        self._complete.append(folder)

    def identity(self, path: str) -> FileId | None:
        """Return the object that was listed under a location."""
        return self._files.get(path)

    def instead(self, path: str) -> str:
        """Return what exists instead of a missing location."""
        if not stores.can_list(path):
            return f"nothing; {stores.NO_LIST}, so name each file"
        root, key = split(path)
        above, _, name = key.rpartition("/")
        folder = f"{root}/{above}".rstrip("/")
        names = {
            file.path.removeprefix(f"{folder}/").partition("/")[0] for file in islice(self._objects(folder), _LOOKED_AT)
        }
        return _similar(name, names) if names else f"nothing; nothing is below {folder} either"

    def _is_complete(self, path: str) -> bool:
        return any(path == one or path.startswith(f"{one}/") for one in self._complete)

    def _knows(self, path: str) -> bool:
        known = path in self._files or path in self._folders or path.rpartition("/")[0] in self._entries
        return known or self._is_complete(path)

    def _objects(self, folder: str) -> Iterator[FileId]:
        """Yield the objects below a location."""
        try:
            yield from stores.of(folder).objects(folder)
        except OSError as error:
            raise _not_answered(folder, error) from error

    def _note(self, folder: str, files: Iterable[FileId], folders: Iterable[str]) -> None:
        """Note what is directly below a location, without the empty objects that mark folders."""
        inner = set(folders)
        found = [_Object(path.rpartition("/")[2], path, None) for path in inner]
        for file in files:
            name = file.path.rpartition("/")[2]
            if file.size or (file.path not in inner and not _marks_folder(name)):
                found.append(_Object(name, file.path, file))
                self._files[file.path] = file
        self._entries[folder] = sorted(found, key=lambda one: (one.name, one.file is not None))
        self._folders |= inner
        if found:
            self._folders.add(folder)


def _marks_folder(name: str) -> bool:
    """Return whether an empty object with this name may mark a folder without objects, as some tools write them."""
    return "." not in name and name != "_SUCCESS"


def has_magic(text: str) -> bool:
    """Return whether a text has the characters of a pattern."""
    return any(c in text for c in "*?[")


def _similar(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(names), n=3)
    return f"nothing; similar names: {quoted_list(near)}" if near else "nothing"


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


def _not_answered(location: str, error: OSError) -> ScorerError:
    """Return the error for a location of which the store does not say what is there."""
    if not stores.can_list(location):
        return InputError(
            "folders and patterns on a web server cannot be read",
            where=location,
            expected="the URL of each file",
            found=cut(str(error.strerror or error), 300),
            hint="name each file by its URL, or copy them to a store or a disk",
        )
    words = str(error.strerror or error)
    if _ODD_NAME in words:
        return InputError(
            "the name of an object cannot be read",
            where=location,
            expected="names without control characters, and without . or .. as a part",
            found=cut(words, 300),
            hint="rename the object, or name folders without such objects",
        )
    return refusals.explained(error, location, "read the input")
