"""Write one part to staging and commit it, first wins; return its receipt.

work-<plan8>/tmp/part-….<attempt>.parquet   written, checked, then linked to
work-<plan8>/parts/…/part-00000.parquet     its one final name
"""

from __future__ import annotations

import base64
import ctypes
import errno
import hashlib
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scorer.dataset import ERRORS, WHY, from_quarantine
from scorer.errors import CommitError, OutputFull
from scorer.events import Proof, Receipt
from scorer.footers import open_parquet
from scorer.patience import patiently
from scorer.storage import QUARANTINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from scorer.storage import Storage

PROOF_KEY = b"scorer"
BadRow = tuple[str, str, str, int]
"""Reason, stage, file and row number."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.ENAMETOOLONG}
_HERE = -100  # AT_FDCWD
NO_REPLACE, EXCHANGE = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Staging:
    """Where the parts of one plan are made, before they are published."""

    root: Path

    @property
    def tmp(self) -> Path:
        """Attempts; never published."""
        return self.root / "tmp"

    @property
    def parts(self) -> Path:
        """Committed parts; becomes the output in one rename."""
        return self.root / "parts"

    @property
    def started(self) -> Path:
        """A mark for each part in flight."""
        return self.root / "started"

    @property
    def quarantine(self) -> Path:
        """Rows that could not be scored."""
        return self.root / "quarantine"


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


def write_quarantine(staging: Staging, name: str, attempt: str, table: pa.Table, bad: Sequence[BadRow]) -> str:
    """Commit the bad rows, as their file has them, with the reason; returns the file's name."""
    own = f"{flat_name(name)}.{attempt}.parquet"
    fresh = WHY if from_quarantine(table.schema) else ERRORS  # what was in one stays where it came from
    table = table.drop_columns([name for name in fresh.names if name in table.column_names])
    for field, values in zip(ERRORS, zip(*bad, strict=True), strict=True):
        if field.name in fresh.names:
            table = table.append_column(field, pa.array(values, field.type))
    table = table.select([name for name in table.column_names if name not in ERRORS.names] + ERRORS.names)
    tmp = staging.tmp / own
    _write(tmp, Encoded.of(table, QUARANTINE))
    _commit(tmp, staging.quarantine / own, len(bad))
    return own


def flat_name(name: str) -> str:
    """A part's name for a file beside it, in a folder without subfolders."""
    return name.replace("/", "__").removesuffix(".parquet")


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


def against(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table in the planned schema, nullability and metadata included; anything else is an error."""
    columns = []
    for field in schema:
        column = table[field.name]
        if column.type != field.type:
            column = column.cast(field.type)
        if column.null_count and not field.nullable:
            what = f"column {field.name!r} has nulls and the input's schema says it has none"
            raise CommitError(what, "", "no nulls", f"{column.null_count} nulls", "drop the column with --keep")
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def digest(column: pa.ChunkedArray | pa.Array) -> str:
    """A digest of the values alone: the same however they are chunked, encoded or stored."""
    hasher = hashlib.sha256()
    if isinstance(column, pa.ChunkedArray):  # to put one chunk together would copy it
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    _feed_digest(column, hasher)
    return hasher.hexdigest()[:32]


def encode_schema(schema: pa.Schema) -> str:
    """An Arrow schema as text."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def decode_schema(text: str) -> pa.Schema:
    """The inverse of `encode_schema`."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


@contextmanager
def map_write_errors(path: str | Path) -> Iterator[None]:
    """A disk's complaints as ours."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in _FULL:
            hint = "make room or check the rights, then repeat the command; committed parts are kept"
            raise OutputFull("the output cannot be written", str(path), "room and rights", reason, hint) from error
        what, hint = "the output cannot be written", "repeat the command; committed parts are kept"
        raise CommitError(what, str(path), "a working file system", reason, hint) from error


def sync(path: str | Path) -> None:
    """Make a file's contents, or the renames in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(
    path: Path, content: Content, notes: dict[bytes, bytes] | None = None, encoded: Callable[[], None] | None = None
) -> None:
    """One complete, checked, durable file."""
    with map_write_errors(path):
        try:
            patiently(lambda: write_once(path, content, notes, encoded))
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
            patiently(lambda: os.link(tmp, final))
        except FileExistsError:
            first = False
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}:
                raise
            first = _commit_without_links(tmp, final)
        tmp.unlink(missing_ok=True)
    return first


def rename(source: Path, target: Path, flag: int) -> None:
    """Linux's renameat2: NO_REPLACE or EXCHANGE, or OSError where the system has neither."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if libc.renameat2(_HERE, os.fsencode(source), _HERE, os.fsencode(target), flag):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))


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


def _feed_digest(array: pa.Array, hasher: hashlib._Hash) -> None:
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _feed_digest(array.cast(kind.value_type), hasher)
    listed = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    name = "list" if listed else str(kind)  # a list's child is renamed on its way through Parquet
    hasher.update(f"{name}:{len(array)}:{array.null_count};".encode())
    if array.null_count:
        hasher.update(np.packbits(array.is_null().to_numpy(zero_copy_only=False)).tobytes())
        array = array.drop_null()
    if listed:
        hasher.update(pc.list_value_length(array).cast(pa.int64()).to_numpy().tobytes())
        return _feed_digest(array.flatten(), hasher)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        hasher.update(pc.binary_length(array).cast(pa.int64()).to_numpy().tobytes())
        for text in array.to_pylist():
            hasher.update(text.encode())
        return None
    hasher.update(np.ascontiguousarray(array.to_numpy(zero_copy_only=False)).data)
    return None
