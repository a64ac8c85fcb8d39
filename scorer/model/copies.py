"""The model cache of a host: models and other files that are fetched from stores, or that the driver delivers.

TMP/scorer-UID/models/DIGEST/model.onnx    complete or absent: written to a temporary folder, then renamed
TMP/scorer-UID/models/.urls/HASH.json      which contents a URL had, by their ETags, so that they are fetched once
TMP/scorer-UID/models/.urls/HASH.lock      held by the process that fetches this URL, while others of the host wait

Only this user can write there, see `host/private.py`. The digest of a copy is computed again before it is used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import posixpath
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from scorer.display.words import cut
from scorer.errors import ModelError, ScorerError
from scorer.host.private import private_folder
from scorer.host.process import name_of_process
from scorer.locations import beside, is_url, normal, split
from scorer.storage import stores
from scorer.storage.files import Changed, FileId, one_process, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from scorer.model.spec import SessionSpec

_PIECE_BYTES, _CONNECTIONS = 8 << 20, 8


class Planned(Protocol):
    """A model or another file that was planned: where it is, and what it contains."""

    @property
    def path(self) -> str: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    @property
    def files(self) -> tuple[str, ...]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Copy:
    """A file with the files that belong to it, relative to its folder, and the digest of all."""

    path: str
    digest: str
    files: tuple[str, ...] = ()

    @classmethod
    def of_file(cls, path: str, sha256: str) -> Copy:
        """Return the planned copy of a single file with this sha256."""
        return cls(path, hashlib.sha256(bytes.fromhex(sha256)).hexdigest())


def root() -> Path:
    """Return the folder of this user's model cache on this host."""
    return Path(private_folder()) / "models"


def digest_of(path: str | Path, files: Sequence[str] = ()) -> str:
    """Return the digest of a model and its external data `files`: the sha256 over those of its files."""
    digest = hashlib.sha256()
    for one in (Path(path), *(Path(path).parent / name for name in files)):
        with one.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def readable(location: str) -> str:
    """Return the path at which a file can be read: as given, or in the cache, to which it is fetched, for a URL."""
    return fetch(location).path if is_url(location) else location


def fetch(location: str, names: Callable[[Path], Sequence[str]] = lambda _: (), most_bytes: int | None = None) -> Copy:
    """Return the copy of what is behind a URL now; it is downloaded if the cache does not have it.

    `names` returns which other files belong to the first one, relative to its folder. Raises OSError.
    """
    stores.refuse_secrets(location)
    store = stores.of(location, hasty=True)
    with _only_one(location) as known:
        first = store.identity(location)
        if most_bytes is not None and first.size > most_bytes:
            raise OSError(errno.EFBIG, f"{first.size} bytes", location)
        return _known(known, first) or _download(known, first, names)


def local_copy(planned: Planned, *, fetched: bool = True) -> str | None:
    """Return where this process can read what was planned: as planned, or in the cache; None if it is in neither.

    A URL is fetched first, unless `fetched` is False. Raises `ModelError` if it has other contents by now.
    """
    if is_url(planned.path) and fetched:
        try:
            found = fetch(planned.path, lambda _: planned.files)
        except (OSError, ScorerError):  # no rights or no client here: the driver delivers it
            pass
        else:
            if found.digest != planned.digest:
                raise changed(planned, found.digest[:16])
            return found.path
    elif os.path.isfile(planned.path) and _has_digest(planned.path, planned):
        return planned.path
    copy = str(_cached_folder(planned.digest) / _name(planned.path))
    return copy if os.path.isfile(copy) and _has_digest(copy, planned) else None


def local_spec(spec: SessionSpec, *, fetched: bool = True) -> SessionSpec | None:
    """Return the spec with the path of the planned model, as `local_copy` finds it; None if this process has none."""
    path = local_copy(spec, fetched=fetched)
    return None if path is None else replace(spec, path=path)


def changed(planned: Planned, found: str) -> ModelError:
    """Return the error for a file that is not the planned one; `found` is what is there, in words."""
    return ModelError(
        "the model is not the one that was planned",
        where=f"{planned.path} on {name_of_process()}",
        expected=f"sha256 {planned.digest[:16]}",
        found=found,
        hint="restore it, or start again with --overwrite; workers must see the same file",
    )


def missing(planned: Planned) -> ModelError:
    """Return the error for a file that this process can neither read nor fetch, or that is another one."""
    try:
        if is_url(planned.path):
            return changed(planned, fetch(planned.path, lambda _: planned.files).digest[:16])
        there = os.path.exists(planned.path)
        return changed(planned, digest_of(planned.path, planned.files)[:16] if there else "nothing")
    except FileNotFoundError:
        return changed(planned, "nothing")
    except (OSError, ScorerError) as error:
        words = error.what if isinstance(error, ScorerError) else error.strerror or str(error)
        return ModelError(
            "the model cannot be read",
            where=f"{planned.path} on {name_of_process()}",
            expected="a file that this process may read",
            found=cut(words),
            hint="check the credentials and the network of this process",
        )


def names_of(planned: Planned) -> list[str]:
    """Return the names of a planned file and of those that belong to it, relative to its folder."""
    return [_name(planned.path), *planned.files]


def receive(planned: Planned, delivery: str, name: str, chunk: bytes) -> None:
    """Append to a file in the temporary folder of this delivery."""
    path = _temporary_folder(planned, delivery) / name
    path.parent.mkdir(parents=True, exist_ok=True)  # external data may be in a subfolder
    with path.open("ab") as file:
        file.write(chunk)


def complete(planned: Planned, delivery: str) -> bool:
    """Move a delivery into the cache; False if another was first or the digest is not the planned one."""
    temporary, folder, name = _temporary_folder(planned, delivery), _cached_folder(planned.digest), _name(planned.path)
    try:
        if _has_digest(str(folder / name), planned) or not _has_digest(str(temporary / name), planned):
            return False
        _move(temporary, folder)
        return True
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _only_one(location: str) -> Iterator[Path]:
    """Let one process of this host at a time fetch a URL; yield the path of what is known of it."""
    folder = root() / ".urls"
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / f"{hashlib.sha256(normal(location).encode()).hexdigest()[:32]}.json"
    with one_process(known.with_suffix(".lock")):
        yield known


def _known(known: Path, first: FileId) -> Copy | None:
    """Return the copy in the cache, if it is undamaged and the store still has the files that it was made of."""
    try:
        seen = json.loads(known.read_text("utf-8"))
        files = [FileId(*one) for one in seen["files"]]
        copy = Copy(str(_cached_folder(seen["digest"]) / _name(first.path)), seen["digest"], tuple(seen["names"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    same = first.version and files[:1] == [first] and all(stores.identity(file.path) == file for file in files[1:])
    return copy if same and _has_digest(copy.path, copy) else None


def _download(known: Path, first: FileId, names: Callable[[Path], Sequence[str]]) -> Copy:
    """Fetch a file and those that belong to it into the cache, and note what the URL had."""
    temporary = known.with_suffix(".part")  # one process at a time: what is there was left by one that ended
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        path = temporary / _name(first.path)
        _download_file(first, path)
        more = tuple(names(path))
        others = [stores.identity(beside(first.path, name)) for name in more]
        for name, file in zip(more, others, strict=True):
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _download_file(file, target)
        copy = Copy("", digest_of(path, more), more)
        folder = _cached_folder(copy.digest)
        _move(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    files = [[file.path, file.size, file.version] for file in (first, *others)]
    seen = {"url": first.path, "digest": copy.digest, "names": more, "files": files}
    write_atomically(known, json.dumps(seen).encode(), durable=False)
    return replace(copy, path=str(folder / _name(first.path)))


def _download_file(file: FileId, path: Path) -> None:
    """Write what is on a store into a file; raise `Changed` if it changes meanwhile."""
    free = shutil.disk_usage(path.parent).free
    if file.size > free:
        raise OSError(
            errno.ENOSPC, f"{file.size / 1e6:,.1f} MB are needed, and {free / 1e6:,.1f} MB are free", str(path)
        )
    store = stores.of(file.path)

    def piece(start: int) -> None:
        _write(out.fileno(), start, store.read_range(file, start, min(start + _PIECE_BYTES, file.size)))

    with path.open("wb") as out:
        pool = ThreadPoolExecutor(_CONNECTIONS, "scorer-fetch")
        try:
            for _ in pool.map(piece, range(0, file.size, _PIECE_BYTES)):
                pass
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
            data, now = store.read_with_identity(file.path)  # a web server that serves no ranges
            if now != file:
                raise Changed(errno.EREMCHG, "another object is there now", file.path) from error
            _write(out.fileno(), 0, data)
        finally:
            pool.shutdown(cancel_futures=True)
    if path.stat().st_size != file.size:
        raise OSError(errno.EREMOTEIO, f"{path.stat().st_size} of {file.size} bytes came", file.path)


def _write(handle: int, start: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, start)
        view, start = view[written:], start + written


def _move(temporary: Path, folder: Path) -> None:
    """Move a complete folder into the cache, or its files, if the folder is there: that replaces damaged ones."""
    with suppress(OSError):
        temporary.rename(folder)
        return
    for path in temporary.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)


def _cached_folder(digest: str) -> Path:
    return root() / digest


def _temporary_folder(planned: Planned, delivery: str) -> Path:
    return root() / f".{planned.digest}.{delivery}"


def _name(location: str) -> str:
    return posixpath.basename(split(location)[1]) if is_url(location) else os.path.basename(location)


def _has_digest(path: str, planned: Planned) -> bool:
    try:
        return digest_of(path, planned.files) == planned.digest
    except OSError:
        return False
