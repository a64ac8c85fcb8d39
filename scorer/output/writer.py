"""One part's file: written, checked, and committed under its final name; the first attempt wins."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from scorer.errors import CommitError
from scorer.events import Proof, Receipt
from scorer.storage.files import NO_REPLACE, FileId, map_write_errors, rename, retry, sync
from scorer.storage.footers import open_parquet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from scorer.output.place import Staging
    from scorer.storage.encoding import Storage


PROOF_KEY = b"scorer"


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
    encoded: Callable[[], None] | None = None,
) -> Receipt:  # fmt: skip
    """Write and commit one part; the first attempt wins. Return the receipt of the attempt that was committed.

    `encoded` is called once the file is encoded and only the sync to disk is left.
    """
    final = staging.parts / name
    tmp = staging.tmp / f"{final.stem}.{attempt}.parquet"
    write_durably(tmp, content, {PROOF_KEY: proof.to_json().encode()}, encoded)
    size = tmp.stat().st_size
    return Receipt(proof=proof, name=name, size=size) if commit(tmp, final, content.rows) else receipt_of(staging, name)


Source: TypeAlias = "str | Path | FileId | pa.BufferReader"
"""What holds a part: a path, an object on a store, or the part's bytes."""


def open_part(source: Source) -> pq.ParquetFile:
    """Open a committed part."""
    if isinstance(source, pa.BufferReader):
        return pq.ParquetFile(source, page_checksum_verification=True)
    return open_parquet(source if isinstance(source, FileId) else str(source))


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


def commit(tmp: Path, final: Path, rows: int) -> bool:
    """Link the file under its final name; return False, and leave the existing file, if another attempt was first."""
    with open_parquet(str(tmp)) as parquet:
        got = parquet.metadata.num_rows
    if got != rows:
        msg = f"wrote {rows} rows to {tmp} and found {got}"
        raise AssertionError(msg)
    first = True
    with map_write_errors(final):
        try:
            retry(lambda: os.link(tmp, final))
        except FileExistsError:
            first = False
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}:
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
