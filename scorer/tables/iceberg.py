"""The snapshot of an Iceberg table: its data files, their deleted rows, and the table's columns by field id.

pyiceberg reads the metadata. Everything that scorer cannot read exactly is refused by its name.
"""

from __future__ import annotations

import errno
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scorer.display.words import plural
from scorer.errors import InputError, ScorerError
from scorer.locations import natural
from scorer.storage import stores
from scorer.storage.files import Changed, FileId
from scorer.tables.iceberg_metadata import chosen, load, reading
from scorer.tables.snapshot import (
    FIELD_ID,
    IN_FILES,
    Snapshot,
    TableFile,
    default_of,
    identity_of,
    key_texts,
    stored_as,
)
from scorer.tables.target import SCHEME

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from pyiceberg.manifest import DataFile, ManifestEntry, ManifestFile
    from pyiceberg.schema import Schema
    from pyiceberg.table.metadata import TableMetadata
    from pyiceberg.table.snapshots import Snapshot as IcebergSnapshot

    from scorer.tables.snapshot import At

_READERS = 16  # manifests and delete files that are read at once
_DATA, _POSITIONS = 0, 1  # what a file of a manifest contains
_PATH_COLUMN = 2147483546  # the field id of the paths in a position delete file
_REWRITE = "rewrite its data files first (Spark: CALL system.rewrite_data_files), then score"
_NONE = np.empty(0, np.int64)
_SMALLER = {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}
"""Types as files usually have them, instead of those of pyiceberg."""


def snapshot(location: str, at: At) -> Snapshot:
    """Return the files of a table and their deleted rows, at the snapshot of `at` or the current one."""
    metadata = load(location)
    found, schema = chosen(metadata, location, at)
    where = f"{location}, snapshot {found.snapshot_id}"
    with reading(where):
        entries = _entries(found)
    data = [entry for entry in entries if entry.data_file.content == _DATA]
    deletes = _Deletes([entry for entry in entries if entry.data_file.content != _DATA])
    applied = {entry.data_file.file_path: deletes.of(entry) for entry in data}
    _refuse(where, [entry.data_file for entry in data], list(chain.from_iterable(applied.values())))
    if len(applied) < len(data):
        twice, n = Counter(entry.data_file.file_path for entry in data).most_common(1)[0]
        raise InputError(
            "the table has one data file twice",
            where=where,
            expected="each file once",
            found=f"{n} times {twice}",
            hint="repair the table with its own tools",
        )
    files = [entry.data_file for entry in data]
    values, in_files = _partition_values(files, _arrow_schema(schema, metadata), metadata)
    keys = [name for name in values[0] if all(name in own for own in values)] if values else []
    deleted = _deleted_rows(files, applied, where)
    version = str(found.snapshot_id)
    return Snapshot(
        kind=SCHEME,
        location=location,
        table_id=str(metadata.table_uuid) if "table_uuid" in metadata.model_fields_set else "",
        version=version if schema.schema_id == found.schema_id else f"{version}:{schema.schema_id}",
        schema=_arrow_schema(schema, metadata, in_files),
        partition_columns=tuple(keys),
        files=_table_files(files, values, keys, deleted),
        deleted=deleted,
    )


def _entries(chosen: IcebergSnapshot) -> list[ManifestEntry]:
    """Return what the manifests of a snapshot say about each live data and delete file."""
    from scorer.tables._iceberg_files import StoreFiles  # noqa: PLC0415 - needs pyiceberg

    files = StoreFiles()

    def entries(manifest: ManifestFile) -> list[ManifestEntry]:
        found = manifest.fetch_manifest_entry(files, discard_deleted=True)
        for entry in found:
            entry.data_file.spec_id = manifest.partition_spec_id
        return found

    with ThreadPoolExecutor(_READERS) as pool:
        return list(chain.from_iterable(pool.map(entries, chosen.manifests(files))))


class _Deletes:
    """The delete files of a snapshot, by the data file or the partition to which each is limited."""

    def __init__(self, entries: Iterable[ManifestEntry]) -> None:
        self._of_path: dict[str, list[ManifestEntry]] = {}
        self._of_partition: dict[tuple[int, str], list[ManifestEntry]] = {}
        self._everywhere: list[ManifestEntry] = []
        for entry in entries:
            file = entry.data_file
            low, high = _bounds(file)
            if file.content == _POSITIONS and low is not None and low == high:
                self._of_path.setdefault(low.decode(errors="surrogateescape"), []).append(entry)
            elif file.content == _POSITIONS or any(value is not None for value in _values(file)):
                self._of_partition.setdefault(_partition(file), []).append(entry)
            else:
                self._everywhere.append(entry)

    def of(self, data: ManifestEntry) -> list[DataFile]:
        """Return the delete files that concern a data file: those written with it or later, or later if by value."""
        written, file = data.sequence_number or 0, data.data_file
        near = chain(
            self._of_path.get(file.file_path, ()), self._of_partition.get(_partition(file), ()), self._everywhere
        )
        return [
            one.data_file
            for one in near
            if (one.sequence_number or 0) >= written + (one.data_file.content != _POSITIONS)
            and _may_name(one.data_file, file.file_path)
        ]


def _values(file: DataFile) -> list[Any]:
    """Return the values of a file's partition."""
    return [file.partition[at] for at in range(len(file.partition))]


def _partition(file: DataFile) -> tuple[int, str]:
    """Return the partition as a key; the values are text there, because NaN does not equal itself."""
    return file.spec_id, repr(_values(file))


def _bounds(deletes: DataFile) -> tuple[bytes | None, bytes | None]:
    """Return the least and the largest path in a position delete file, as far as they are known."""
    return (deletes.lower_bounds or {}).get(_PATH_COLUMN), (deletes.upper_bounds or {}).get(_PATH_COLUMN)


def _may_name(deletes: DataFile, path: str) -> bool:
    """Return whether a position delete file may name this data file, by the bounds of its paths."""
    if deletes.content != _POSITIONS:
        return True
    name, (low, high) = path.encode(), _bounds(deletes)
    return (low is None or low <= name) and (high is None or name <= high)


def _refuse(where: str, data: Sequence[DataFile], deletes: Sequence[DataFile]) -> None:
    """Raise for what scorer does not read: delete files by value, deletion vectors, other formats, encrypted files."""
    by_value = {file.file_path for file in deletes if file.content != _POSITIONS}
    if by_value:
        raise InputError(
            "rows of this table are deleted by the values of a key",
            where=where,
            expected="a table without equality deletes",
            found=plural(len(by_value), "equality delete file"),
            hint=_REWRITE,
        )
    formats = {file.file_path: str(file.file_format.value) for file in deletes}
    vectors = [path for path, kind in formats.items() if kind == "PUFFIN"]
    if vectors:
        raise InputError(
            "rows of this table are deleted by deletion vectors, which scorer does not read from Iceberg tables",
            where=where,
            expected="position delete files",
            found=f"deletion vectors in {plural(len(vectors), 'file')}",
            hint=_REWRITE,
        )
    formats |= {file.file_path: str(file.file_format.value) for file in data}
    others = Counter(kind for kind in formats.values() if kind != "PARQUET")
    if others:
        raise InputError(
            "the table has files of a format that scorer does not read",
            where=where,
            expected="Parquet files",
            found=", ".join(f"{plural(n, 'file')} in {kind}" for kind, n in sorted(others.items())),
            hint="set write.format.default to parquet, and " + _REWRITE,
        )
    encrypted = sum(file.key_metadata is not None for file in (*data, *deletes))
    if encrypted:
        raise InputError(
            "the table's files are encrypted",
            where=where,
            expected="files without encryption",
            found=plural(encrypted, "encrypted file"),
            hint="write the rows to a table without encryption.key-id",
        )


def _arrow_schema(schema: Schema, metadata: TableMetadata, in_files: Collection[int] = ()) -> pa.Schema:
    """Return the table's columns with what tells how to find each in a file; `in_files` are ids that each file has."""
    from pyiceberg.io.pyarrow import schema_to_pyarrow  # noqa: PLC0415 - an extra

    mapping = metadata.name_mapping()
    names: dict[int, list[str]] = {}
    left = list(mapping) if mapping else []
    while left:
        mapped = left.pop()
        left += mapped.fields
        if mapped.field_id is not None:
            names[mapped.field_id] = mapped.names

    def field(one: pa.Field) -> pa.Field:
        number = int(one.metadata[FIELD_ID])
        kept = {FIELD_ID: str(number).encode()} | stored_as(names.get(number, ()) if mapping else None)
        kind, default = plain(one.type), schema.find_field(number).initial_default
        if default is not None:
            kept |= default_of(pa.scalar(default, kind))
        elif number in in_files:
            kept[IN_FILES] = b""
        return pa.field(one.name, kind, one.nullable, kept)

    def plain(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_struct(kind):
            return pa.struct([field(one) for one in kind])
        if pa.types.is_map(kind):
            return pa.map_(field(kind.key_field), field(kind.item_field))
        if pa.types.is_large_list(kind):
            return pa.list_(field(kind.value_field))
        return _SMALLER.get(kind, kind)

    return pa.schema([field(one) for one in schema_to_pyarrow(schema)])


def _partition_values(
    data: Sequence[DataFile], columns: pa.Schema, metadata: TableMetadata
) -> tuple[list[dict[str, str | None]], set[int]]:
    """Return each file's columns that have one value in it, as text, and the ids of those whose value is no text."""
    from pyiceberg.transforms import IdentityTransform  # noqa: PLC0415 - an extra

    of_id = {int(field.metadata[FIELD_ID]): field for field in columns}
    texts: list[dict[str, str | None]] = [{} for _ in data]
    no_text = set()
    for number, spec in metadata.specs().items():
        members = [i for i, file in enumerate(data) if file.spec_id == number]
        for at, part in enumerate(spec.fields if members else ()):
            if not isinstance(part.transform, IdentityTransform):
                continue
            field = of_id.get(part.source_id)  # None for a field of a struct
            found = None if field is None else _texts([data[i].partition[at] for i in members], field.type)
            if field is None or found is None:
                no_text.add(part.source_id)
                continue
            for i, text in zip(members, found, strict=True):
                texts[i][field.name] = text
    names = {of_id[number].name for number in no_text if number in of_id}
    return [{name: text for name, text in own.items() if name not in names} for own in texts], no_text


def _texts(values: Sequence[Any], kind: pa.DataType) -> list[str | None] | None:
    """Return values as text from which Arrow makes the same values again; None if there is no such text."""
    try:
        return key_texts(pa.array(values, kind), "", "")
    except (ScorerError, pa.ArrowException, TypeError, ValueError):  # such as NaN, or bytes
        return None


def _table_files(
    data: Sequence[DataFile], values: Sequence[Mapping[str, str | None]], keys: Sequence[str],
    deleted: Mapping[str, np.ndarray],
) -> tuple[TableFile, ...]:  # fmt: skip
    """Return the data files in order. Columns that are not keys of all of them are read from the files."""
    from scorer.tables._iceberg_files import location  # noqa: PLC0415 - needs pyiceberg

    files = []
    for file, own in zip(data, values, strict=True):
        path = location(file.file_path)
        found = TableFile(
            id=FileId(path, file.file_size_in_bytes, 0),
            rows=file.record_count,
            keys=tuple((name, own[name]) for name in keys),
            must_have=tuple(name for name in own if name not in keys and own[name] is not None),
            deletes=identity_of(deleted.get(path, _NONE)),
        )
        files.append(found)
    return tuple(sorted(files, key=lambda file: (natural(file.folder), natural(file.id.path))))


def _deleted_rows(
    data: Sequence[DataFile], applied: Mapping[str, Sequence[DataFile]], where: str
) -> dict[str, np.ndarray]:
    """Return the numbers of the deleted rows of each data file that has such rows, by its path."""
    from scorer.tables._iceberg_files import location  # noqa: PLC0415 - needs pyiceberg

    named: dict[str, set[str]] = {}  # a delete file's path: the data files that it may name
    sizes = {}
    for path, by in applied.items():
        for file in by:
            named.setdefault(file.file_path, set()).add(path)
            sizes[file.file_path] = file.file_size_in_bytes
    with reading(where), ThreadPoolExecutor(_READERS) as pool:
        found = dict(zip(named, pool.map(lambda path: _positions(path, sizes[path], named[path]), named), strict=True))
    deleted = {}
    for file in data:
        pieces = [
            rows for by in applied[file.file_path] if (rows := found[by.file_path].get(file.file_path)) is not None
        ]
        every = np.unique(np.concatenate([_NONE, *pieces]))
        if len(every) and not 0 <= every[0] <= every[-1] < file.record_count:
            raise InputError(
                "the table deletes rows that its file does not have",
                where=file.file_path,
                expected=f"rows 0 to {file.record_count - 1}",
                found=f"rows {every[0]} to {every[-1]}",
                hint=_REWRITE,
            )
        if len(every):
            deleted[location(file.file_path)] = every
    return deleted


def _positions(path: str, size: int, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """Return the positions in a position delete file, for each of the data files that are wanted."""
    from scorer.tables._iceberg_files import location  # noqa: PLC0415 - needs pyiceberg

    data = stores.path_of(location(path)).read_bytes()
    if len(data) != size:
        raise Changed(errno.EREMCHG, f"{len(data)} bytes instead of {size}", path)
    rows = pq.read_table(pa.BufferReader(data), columns=["file_path", "pos"], use_threads=False)
    paths = rows["file_path"].combine_chunks().dictionary_encode()
    codes, positions = paths.indices.to_numpy(), rows["pos"].to_numpy()
    order = np.argsort(codes, kind="stable")
    edges = np.searchsorted(codes[order], np.arange(len(paths.dictionary) + 1))
    names = paths.dictionary.to_pylist()
    return {
        name: positions[order[edges[i] : edges[i + 1]]].astype(np.int64)
        for i, name in enumerate(names)
        if name in wanted
    }
