"""One part's file: written, checked, committed under its one name, first attempt wins."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from scorer.errors import CommitError
from scorer.events import Proof, Receipt
from scorer.storage.files import NO_REPLACE, map_write_errors, rename, retry, sync
from scorer.storage.footers import open_parquet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from scorer.output.place import Staging
    from scorer.storage.encoding import Storage


PROOF_KEY = b"scorer"


class Content(Protocol):
    """What a file holds, and how it gets there."""

    @property
    def rows(self) -> int:
        """Rows that the file will have."""

    def write(self, path: str | Path, notes: dict[bytes, bytes]) -> None:
        """The file, with these keys and values in its footer; another time the same."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tables of one schema, one after the other."""

    schema: pa.Schema
    storage: Storage
    rows: int
    tables: Callable[[], Iterable[pa.Table]]

    @classmethod
    def of(cls, table: pa.Table, storage: Storage) -> Encoded:
        """One table."""
        return cls(table.schema, storage, table.num_rows, lambda: [table])

    def write(self, path: str | Path, notes: dict[bytes, bytes]) -> None:
        """Arrow writes it without asking the interpreter for each page."""
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
    """Commit the content under its final name, unless another attempt was first; what the one that counts proves.

    `encoded` is called when only the disk is left to wait for.
    """
    final = staging.parts / name
    tmp = staging.tmp / f"{final.stem}.{attempt}.parquet"
    _write(tmp, content, {PROOF_KEY: proof.to_json().encode()}, encoded)
    size = tmp.stat().st_size
    return (
        Receipt(proof=proof, name=name, size=size) if _commit(tmp, final, content.rows) else receipt_of(staging, name)
    )


def read_footer(path: str | Path) -> tuple[Proof | None, int, pa.Schema]:
    """What a committed part's footer says, None when it is not ours; its rows and its schema."""
    with open_parquet(str(path)) as parquet:
        text = (parquet.metadata.metadata or {}).get(PROOF_KEY)
        rows, schema = parquet.metadata.num_rows, parquet.schema_arrow
    return Proof.from_json(text) if text else None, rows, schema


def read_proof(path: str | Path) -> Proof | None:
    """The proof alone."""
    return read_footer(path)[0]


def receipt_of(staging: Staging, name: str) -> Receipt:
    """What a committed part proves about itself."""
    path = staging.parts / name
    proof = read_proof(path)
    if proof is None:
        what, hint = "a staged part is not one of ours", "remove it, and repeat the command"
        raise CommitError(what, str(path), f"{PROOF_KEY.decode()!r} in its footer", "nothing", hint)
    return Receipt(proof=proof, name=name, size=path.stat().st_size)


def _write(
    path: Path, content: Content, notes: dict[bytes, bytes] | None = None, encoded: Callable[[], None] | None = None
) -> None:
    """One complete, checked, durable file."""
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
    """The file, on the disk when this returns."""
    content.write(path, notes or {})
    if encoded is not None:
        encoded()
    sync(path)


def _commit(tmp: Path, final: Path, rows: int) -> bool:
    """Give the file its one name; False, and the first one left in place, for whoever is second."""
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
    """For file systems without hard links; without renameat2 too, equal attempts may replace each other."""
    try:
        rename(tmp, final, NO_REPLACE)
    except FileExistsError:
        return False
    except OSError:
        if final.exists():
            return False
        tmp.rename(final)
    return True
