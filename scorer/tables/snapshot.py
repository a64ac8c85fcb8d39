"""A table at one version, as plain data: which files hold its rows, and what their columns are called there.

Everything after planning works with this, and needs neither deltalake nor pyiceberg.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

import pyarrow as pa

from scorer.arrow import decode_schema, encode_schema
from scorer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from scorer.storage.files import FileId


FIELD_ID = b"PARQUET:field_id"
"""Metadata of a field of `Snapshot.schema`: the id under which the files have it."""
STORED = b"scorer:stored"
"""Metadata of a field: its names in files without ids, a JSON list; without it, its own name."""
NO_NAMES = b"null"
"""The value of `STORED` if the table does not say the names of its columns in files without ids: those are refused."""
IN_FILES = b"scorer:in-files"
"""Metadata of a field that every file must have: its value in files without it is not read, and not null."""
DEFAULT = b"scorer:default"
"""Metadata of a field: its value in files without it, as `default_of` writes it; null without this."""
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True, kw_only=True)
class At:
    """Which state of a table is requested; the current one if nothing is."""

    version: str | None = None
    """Of a Delta table: a number, or a time as in ISO 8601."""
    snapshot: str | None = None
    """Of an Iceberg table: an id, or the name of a branch or tag."""
    pinned: bool = False
    """Whether it is the state of an unfinished run, which existed then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFile:
    """A data file of a table."""

    id: FileId
    """Its location and its size by the table's log; the version is 0 if it is not known yet."""
    rows: int | None = None
    """Stored rows by the log, the deleted ones included; None if it does not say."""
    keys: tuple[tuple[str, str | None], ...] = ()
    """Partition values as text that Arrow casts to the types of the schema, as `key_texts` returns it."""
    must_have: tuple[str, ...] = ()
    """Columns whose values in its partition are not read, so that the file must have them."""
    deletes: str = ""
    """Identifies its deleted rows, as `identity_of` does; '' if it has none."""

    @property
    def folder(self) -> str:
        """The folder in the output: key=value for each partition column."""
        return "/".join(f"{_quoted(key)}={HIVE_NULL if value is None else _quoted(value)}" for key, value in self.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A table at one version."""

    kind: str
    """delta or iceberg."""
    location: str
    table_id: str
    version: str
    """The number of the version, or the id of the snapshot."""
    schema: pa.Schema
    """The columns by their names in the table, with the partition columns. `FIELD_ID` and `STORED` in the metadata of
    a field, at any depth, say how it is found in a file; see `scorer.tables.columns`."""
    partition_columns: tuple[str, ...] = ()
    files: tuple[TableFile, ...]
    """Sorted by (keys, path), with numbers in natural order."""
    deleted: Mapping[str, np.ndarray] = field(default_factory=dict)
    """The numbers of the deleted rows of a file by its path: sorted, int64, each once."""

    @property
    def name(self) -> str:
        """The table and its version in words."""
        return _name(self.kind, self.version)

    @property
    def columns(self) -> pa.Schema:
        """The columns that are in the files: all but the partition columns."""
        return pa.schema([column for column in self.schema if column.name not in self.partition_columns])


@dataclass(frozen=True, slots=True, kw_only=True)
class TableState:
    """What a plan has of the table that it reads, besides the files."""

    kind: str
    location: str
    table_id: str
    version: str
    columns: str
    """The columns in the files, as Arrow's schema in base64, with what says how they are stored."""
    deleted: str = ""
    """Digest of the file with the numbers of deleted rows; '' if no row is deleted."""

    @classmethod
    def of(cls, snapshot: Snapshot, deleted: str) -> TableState:
        """Return the state of a snapshot."""
        columns = encode_schema(snapshot.columns)
        return cls(
            kind=snapshot.kind, location=snapshot.location, table_id=snapshot.table_id, version=snapshot.version,
            columns=columns, deleted=deleted,
        )  # fmt: skip

    @property
    def schema(self) -> pa.Schema:
        """The columns in the files."""
        return decode_schema(self.columns)

    @property
    def name(self) -> str:
        """The table and its version in words."""
        return _name(self.kind, self.version)


def _name(kind: str, version: str) -> str:
    return f"a Delta table, version {version}" if kind == "delta" else f"an Iceberg table, snapshot {version}"


def identity_of(deleted: np.ndarray) -> str:
    """Return what identifies a file's deleted rows; '' without any."""
    return hashlib.sha256(deleted.astype("<i8").tobytes()).hexdigest()[:16] if len(deleted) else ""


def stored_as(names: Sequence[str] | None) -> dict[bytes, bytes]:
    """Return the metadata of a field that files without ids have under one of these names; None if it is unknown."""
    return {STORED: NO_NAMES if names is None else json.dumps(list(names)).encode()}


def default_of(value: pa.Scalar) -> dict[bytes, bytes]:
    """Return the metadata of a field that has this value in files without it."""
    column = pa.record_batch([pa.array([value.as_py()], value.type)], names=[""])
    with pa.BufferOutputStream() as sink:
        with pa.ipc.new_stream(sink, column.schema) as stream:
            stream.write(column)
        return {DEFAULT: base64.b64encode(sink.getvalue())}


def value_of(default: bytes) -> pa.Scalar:
    """Return the value that `default_of` wrote."""
    return pa.ipc.open_stream(base64.b64decode(default)).read_next_batch().column(0)[0]


def key_texts(values: pa.Array, where: str, name: str) -> list[str | None]:
    """Return partition values as text from which Arrow makes the same values again; raise InputError otherwise."""
    try:
        texts = values.cast(pa.string())
        same = texts.cast(values.type).equals(values)
    except (pa.ArrowException, ValueError):
        same = False
    if not same:
        raise InputError(
            f"values of the partition column {name!r} cannot be written as text",
            where=where,
            expected="numbers, texts in UTF-8, dates or times",
            found=str(values.type),
            hint="partition the table by another column, or write its rows to a plain folder",
        )
    found: list[str | None] = texts.to_pylist()
    return found


def _quoted(text: str) -> str:
    return quote(text, safe=" !#$&'()+,;@[]^`{}~")
