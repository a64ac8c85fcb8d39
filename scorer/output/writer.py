"""One part's file: written, checked, and committed under its final name; the first attempt wins.

on a disk      written beside, synced, then linked under its name, which fails if there is one
on a store     encoded in memory, then put under its name in one request, which the store refuses if there is one
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from scorer.errors import CommitError
from scorer.events import Proof, Receipt
from scorer.storage.files import NO_REPLACE, FileId, map_write_errors, rename, retry, sync
from scorer.storage.footers import open_parquet
from scorer.storage.stores import ObjectPath

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from scorer.output.place import Staging
    from scorer.storage.encoding import Storage
    from scorer.storage.stores import AnyPath


PROOF_KEY = b"scorer"
NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS})
"""The errors of a file system without hard links."""


class Content(Protocol):
    """The content of a file, and how to write it."""

    @property
    def rows(self) -> int:
        """Rows that the file will have."""

    def write(self, path: str | Path, notes: dict[bytes, bytes]) -> None:
        """Write the file, with these keys and values in its footer; a retry calls this again."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tables of one schema, written one after the other."""

    schema: pa.Schema
    storage: Storage
    rows: int
    tables: Callable[[], Iterable[pa.Table]]

    @classmethod
    def of(cls, table: pa.Table, storage: Storage) -> Encoded:
        """Return one table as content."""
        return cls(table.schema, storage, table.num_rows, lambda: [table])

    def write(self, path: str | Path, notes: dict[bytes, bytes]) -> None:
        """Write the file through Arrow's own file object, which calls no Python code for each page."""
        schema = self.schema.with_metadata({**(self.schema.metadata or {}), **notes} or None)
        with (
            pa.OSFile(str(path), "wb") as file,
            pq.ParquetWriter(file, schema, **self.storage.options()) as writer,
        ):
            for table in self.tables():
                named = table.replace_schema_metadata(schema.metadata)
                writer.write_table(named, row_group_size=self.storage.row_group_rows)


def write_part(
    staging: Staging, name: str, attempt: str, content: Content, proof: Proof,
    encoded: Callable[[], None] | None = None, notes: Mapping[bytes, bytes] | None = None,
) -> Receipt:  # fmt: skip
    """Write and commit one part; the first attempt wins. Return the receipt of the attempt that was committed.

    `notes` are entries of the file's metadata besides the proof. `encoded` is called once the file is encoded and only
    the sync to disk is left.
    """
    final = staging.parts / name
    tmp = staging.tmp / f"{final.stem}.{attempt}.parquet"
    size = write_file(tmp, final, content, {PROOF_KEY: proof.to_json().encode(), **(notes or {})}, encoded)
    return receipt_of(staging, name) if size is None else Receipt(proof=proof, name=name, size=size)


def write_file(
    tmp: AnyPath, final: AnyPath, content: Content, notes: dict[bytes, bytes] | None = None,
    encoded: Callable[[], None] | None = None,
) -> int | None:  # fmt: skip
    """Write a file and commit it under its final name; return its size, or None if another attempt was first."""
    if isinstance(final, ObjectPath):
        return _put_new(final, content, notes or {}, encoded)
    if isinstance(tmp, ObjectPath):
        raise TypeError(tmp)
    write_durably(tmp, content, notes, encoded)
    size = tmp.stat().st_size
    return size if commit(tmp, final, content.rows) else None


Source: TypeAlias = "str | Path | FileId | pa.BufferReader"
"""What holds a part: a path, an object on a store, or the part's bytes."""


def open_part(source: Source) -> pq.ParquetFile:
    """Open a committed part."""
    if isinstance(source, pa.BufferReader):
        return pq.ParquetFile(source, page_checksum_verification=True)
    return open_parquet(source if isinstance(source, FileId) else str(source))


def _put_new(
    final: ObjectPath, content: Content, notes: dict[bytes, bytes], encoded: Callable[[], None] | None
) -> int | None:
    """Encode a file in memory, and put it under its name if there is none; return its size, or None if there is one.

    None may also mean that this attempt was first and the store's answer was lost: then the footer there is this one.
    """
    with map_write_errors(final), _in_memory(content, notes) as data:
        if encoded is not None:
            encoded()
        return None if final.store.put_new(str(final), data) is None else len(data)


@contextmanager
def _in_memory(content: Content, notes: dict[bytes, bytes]) -> Iterator[memoryview]:
    """Encode a file into memory, check its number of rows, and yield its bytes."""
    with _memory_file() as path:
        retry(lambda: content.write(path, notes))
        _check_rows(path, content.rows)
        with open(path, "rb") as file:
            # not closed here: a client may hold the bytes a little longer, and the mapping ends with the last reference
            yield memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


@contextmanager
def _memory_file() -> Iterator[str]:
    """Yield the path of a file that is in memory only, where the system has such files, else of a temporary file."""
    if not hasattr(os, "memfd_create") or not os.path.isdir("/proc/self/fd"):
        with tempfile.NamedTemporaryFile() as file:
            yield file.name
        return
    handle = os.memfd_create("part")
    try:
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)


def read_footer(source: Source) -> tuple[Proof | None, int, pa.Schema]:
    """Read the footer of a committed part: its proof (None if scorer did not write it), rows and schema."""
    with open_part(source) as parquet:
        text = (parquet.metadata.metadata or {}).get(PROOF_KEY)
        rows, schema = parquet.metadata.num_rows, parquet.schema_arrow
    return Proof.from_json(text) if text else None, rows, schema


def read_proof(source: Source) -> Proof | None:
    """Read the proof in a part's footer; None if scorer did not write the file."""
    return read_footer(source)[0]


def receipt_of(staging: Staging, name: str) -> Receipt:
    """Return the receipt of a committed part, from its footer."""
    path = staging.parts / name
    proof = read_proof(path)
    if proof is None:
        raise CommitError(
            "scorer did not write this staged part",
            where=str(path),
            expected=f"the key {PROOF_KEY.decode()!r} in its footer",
            found="no such key",
            hint="remove the file and repeat the command",
        )
    return Receipt(proof=proof, name=name, size=path.stat().st_size)


def write_durably(
    path: Path, content: Content, notes: dict[bytes, bytes] | None = None, encoded: Callable[[], None] | None = None
) -> None:
    """Write a complete file and sync it to disk, with retries; leave no file after an error."""
    with map_write_errors(path):
        try:
            retry(lambda: write_once(path, content, notes, encoded))
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise


def write_once(
    path: str | Path, content: Content, notes: dict[bytes, bytes] | None = None,
    encoded: Callable[[], None] | None = None,
) -> None:  # fmt: skip
    """Write the file and sync it to disk."""
    content.write(path, notes or {})
    if encoded is not None:
        encoded()
    sync(path)


def _check_rows(path: str | Path, rows: int) -> None:
    """Raise if a file that was just written does not have this number of rows."""
    with open_parquet(str(path)) as parquet:
        got = parquet.metadata.num_rows
    if got != rows:
        msg = f"wrote {rows} rows to {path} and found {got}"
        raise AssertionError(msg)


def commit(tmp: Path, final: Path, rows: int) -> bool:
    """Link the file under its final name; return False, and leave the existing file, if another attempt was first."""
    _check_rows(tmp, rows)
    first = True
    with map_write_errors(final):
        try:
            retry(lambda: os.link(tmp, final))
        except FileExistsError:
            first = False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            first = _commit_without_links(tmp, final)
        tmp.unlink(missing_ok=True)
    return first


def _commit_without_links(tmp: Path, final: Path) -> bool:
    """Commit without hard links. Without renameat2 as well, two attempts with equal contents may replace each other."""
    try:
        rename(tmp, final, NO_REPLACE)
    except FileExistsError:
        return False
    except OSError:
        if final.exists():
            return False
        tmp.rename(final)
    return True
