"""The snapshot of a Delta table at a version or time.

deltalake says which files are live, with their partition values and deleted rows. Their rows are read by scorer itself,
which finds columns by their physical names or ids.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa

from scorer.display.words import cut, quoted_list
from scorer.errors import InputError, InputNotFound, ScorerError
from scorer.locations import is_url, natural, normal
from scorer.storage.files import FileId
from scorer.tables import clients
from scorer.tables.snapshot import FIELD_ID, Snapshot, TableFile, identity_of, key_texts, stored_as

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from deltalake import DeltaTable

    from scorer.tables.snapshot import At


LOG = "_delta_log"
READER_FEATURES = frozenset({"columnMapping", "deletionVectors", "timestampNtz", "v2Checkpoint"})
"""What a table may require of its readers."""
_NEWEST_READER = 3
_MODE = "delta.columnMapping.mode"
_ID, _NAME = b"delta.columnMapping.id", b"delta.columnMapping.physicalName"
_UNSUPPORTED = re.compile(r"Unsupported table features required: \[(.*?)\]")
_UNKNOWN = re.compile(r"Feature '(.*?)' is not supported")
_NO_VERSION = re.compile(r"end version (\d+) not the same as the specified end version")


def snapshot(location: str, at: At) -> Snapshot:
    """Return the table at a location, at a version, a time or now; raise InputError if it cannot be read exactly."""
    table = _opened(location, at.version)
    _refuse_unknown(table, location)
    from deltalake.exceptions import DeltaError  # noqa: PLC0415 - an extra

    try:
        return _snapshot(table, location)
    except DeltaError as error:  # a feature of writers may be required of readers, too
        raise _not_opened(location, at.version, error) from error


def _snapshot(table: DeltaTable, location: str) -> Snapshot:
    schema = _schema(table, location)
    keys = tuple(table.metadata().partition_columns)
    where = f"{location}, version {table.version()}"
    deleted = _deleted(table, location)
    files = sorted(_files(table, location, schema, keys, where, deleted), key=_place)
    unknown = sorted(deleted.keys() - {file.id.path for file in files})
    if unknown:
        raise _broken(where, "deleted rows of files that are in the table", quoted_list(unknown, 3))
    return Snapshot(
        kind="delta", location=location, table_id=str(table.metadata().id), version=str(table.version()), schema=schema,
        partition_columns=keys, files=tuple(files), deleted=deleted,
    )  # fmt: skip


def _opened(location: str, version: str | None) -> DeltaTable:
    if find_spec("deltalake") is None:
        raise InputError(
            "reading a Delta table needs another package",
            where=location,
            expected="deltalake",
            found="not installed",
            hint="pip install 'dask-scorer[delta]'",
        )
    from deltalake import DeltaTable  # noqa: PLC0415 - an extra
    from deltalake.exceptions import DeltaError  # noqa: PLC0415 - an extra

    number = int(version) if version is not None and version.isdecimal() else None
    try:
        table = DeltaTable(location, version=number, storage_options=clients.for_delta(location) or None)
        if version is not None and number is None:
            _go_to(table, version, location)
    except (DeltaError, OSError, ValueError, OverflowError) as error:
        raise _not_opened(location, version, error) from error
    return table


def _go_to(table: DeltaTable, time: str, location: str) -> None:
    """Load the version that was the current one at a time."""
    wanted = datetime.fromisoformat(time)
    wanted = wanted if wanted.tzinfo else wanted.replace(tzinfo=UTC)
    newest, made = table.version(), [entry.get("timestamp") for entry in table.history()]
    table.load_as_version(wanted)
    before = newest - table.version()  # commits after this version, which come first in the history
    first = made[-1] if before == len(made) - 1 else None
    if first is not None and datetime.fromtimestamp(first / 1000, UTC) > wanted:  # the library takes the first one
        raise InputNotFound(
            "the table has no version from that time",
            where=location,
            expected=f"a version of {wanted.isoformat()} or before",
            found=f"version {table.version()} of {datetime.fromtimestamp(first / 1000, UTC).isoformat()} as the first",
            hint="choose a later time, or a version by its number",
        )


def _not_opened(location: str, version: str | None, error: Exception) -> ScorerError:
    words = str(error)
    if found := _UNSUPPORTED.search(words):
        return _unsupported(location, [name.strip() for name in found[1].split(",")])
    if found := _UNKNOWN.search(words):
        return _unsupported(location, [found[1]])
    if found := _NO_VERSION.search(words):
        return InputNotFound(
            "the table does not have this version",
            where=location,
            expected=f"version {version}",
            found=f"versions up to {found[1]}",
            hint="choose one of its versions, or leave out --input-version for the current one",
        )
    return InputError(
        "the Delta table cannot be opened",
        where=location if version is None else f"{location}, version {version}",
        expected="a log that can be read",
        found=cut(" ".join(words.split()), 300),
        hint="check its _delta_log; the files of old versions are removed by the table's own tools",
    )


def _refuse_unknown(table: DeltaTable, location: str) -> None:
    protocol = table.protocol()
    where = f"{location}, version {table.version()}"
    unknown = sorted({*(protocol.reader_features or ())} - READER_FEATURES)
    if protocol.min_reader_version > _NEWEST_READER:
        unknown.append(f"reader version {protocol.min_reader_version}")
    if unknown:
        raise _unsupported(where, unknown)


def _unsupported(where: str, features: list[str]) -> InputError:
    return InputError(
        "this table needs a reader that scorer does not have",
        where=where,
        expected=f"no reader features but {', '.join(sorted(READER_FEATURES))}",
        found=", ".join(features),
        hint="write a copy of the table without them",
    )


def _schema(table: DeltaTable, location: str) -> pa.Schema:
    """Return the columns with what says how files store them."""
    from deltalake.exceptions import DeltaError  # noqa: PLC0415 - an extra

    try:
        found = pa.schema(table.schema().to_arrow())
    except (DeltaError, pa.ArrowException, ValueError) as error:
        raise _broken(location, "columns of types that Arrow has", cut(str(error), 200)) from error
    mode = table.metadata().configuration.get(_MODE, "none")
    return pa.schema([_mapped(field, mode) for field in found])


def _mapped(field: pa.Field, mode: str) -> pa.Field:
    own = field.metadata or {}
    metadata: dict[bytes, bytes] = {}
    if mode != "none" and _NAME in own:
        metadata = stored_as([own[_NAME].decode()])
        if mode == "id" and _ID in own:
            metadata[FIELD_ID] = own[_ID]
    return pa.field(field.name, _mapped_type(field.type, mode), field.nullable, metadata or None)


def _mapped_type(kind: pa.DataType, mode: str) -> pa.DataType:
    if pa.types.is_struct(kind):
        return pa.struct([_mapped(kind.field(i), mode) for i in range(kind.num_fields)])
    if pa.types.is_map(kind):
        return pa.map_(_mapped(kind.key_field, mode), _mapped(kind.item_field, mode))
    if pa.types.is_list(kind):
        return pa.list_(_mapped(kind.value_field, mode))
    return kind


def _deleted(table: DeltaTable, location: str) -> dict[str, np.ndarray]:
    """Return the numbers of deleted rows by file. They come as one value for each row: true if it is live."""
    found: dict[str, np.ndarray] = {}
    for batch in table.deletion_vectors():
        rows = pa.record_batch(batch)
        for path, mask in zip(rows.column("filepath"), rows.column("selection_vector"), strict=True):
            kept = mask.values.to_numpy(zero_copy_only=False)
            numbers = np.flatnonzero(~kept.astype(bool)).astype(np.int64)
            if len(numbers):
                found[_local(path.as_py()) if not is_url(location) else normal(unquote(path.as_py()))] = numbers
    return found


def _files(
    table: DeltaTable, location: str, schema: pa.Schema, keys: tuple[str, ...], where: str,
    deleted: Mapping[str, np.ndarray],
) -> Iterator[TableFile]:  # fmt: skip
    actions = pa.table(table.get_add_actions())
    values: list[list[str | None]] = []
    for key in keys:
        column = actions.column("partition").combine_chunks().field(key)
        values.append(key_texts(column.cast(schema.field(key).type), where, key))
    rows = actions.column("num_records").to_pylist() if "num_records" in actions.column_names else []
    for i, (path, size) in enumerate(zip(actions["path"].to_pylist(), actions["size_bytes"].to_pylist(), strict=True)):
        place = resolved(path, location)
        yield TableFile(
            id=FileId(place, size, 0),
            rows=rows[i] if rows else None,
            keys=tuple((key, own[i]) for key, own in zip(keys, values, strict=True)),
            deletes=identity_of(deleted.get(place, np.empty(0, np.int64))),
        )


def resolved(path: str, location: str) -> str:
    """Return where a file of the log is: its path is encoded as in a URL, and relative to the table or absolute."""
    if urlsplit(path).scheme == "file":
        return _local(path)
    if is_url(path):
        return normal(unquote(path))
    name = unquote(path)
    if is_url(location):
        return normal(f"{location}/{name}")
    return os.path.normpath(os.path.join(location, name))


def _local(path: str) -> str:
    """Return the path of a file: URL."""
    return os.path.normpath(unquote(urlsplit(path).path)) if path.startswith("file:") else os.path.normpath(path)


def _place(file: TableFile) -> tuple[Any, ...]:
    """Return what files are sorted by: their keys, then their paths; numbers are compared as numbers."""
    keys = tuple((value is not None, natural(value or "")) for _, value in file.keys)
    return (*keys, natural(file.id.path))


def _broken(where: str, expected: str, found: str) -> InputError:
    return InputError(
        "the Delta table cannot be read",
        where=where,
        expected=expected,
        found=found,
        hint="repair it with the table's own tools, or write its rows to a plain folder",
    )
