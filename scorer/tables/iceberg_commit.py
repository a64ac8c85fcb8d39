"""Add files to an Iceberg table in one commit, and look for it: see `scorer.output.publish_table`.

A snapshot names the request of its run and a number. The library's own retries are off, because they commit again after
a conflict without a look.

A table is iceberg://CATALOG/NAMESPACE.TABLE, with a catalog of pyiceberg's configuration.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from scorer.display.words import cut
from scorer.errors import CommitError, OptionsError, ScorerError
from scorer.locations import is_url, join
from scorer.storage import stores
from scorer.storage.footers import open_parquet
from scorer.tables.iceberg_metadata import names_in
from scorer.tables.target import SCHEME, Existing, another_run, refuse_changed, stored_elsewhere

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile
    from pyiceberg.partitioning import PartitionSpec
    from pyiceberg.schema import Schema
    from pyiceberg.table import Table, Transaction
    from pyiceberg.table.metadata import TableMetadata
    from pyiceberg.table.snapshots import Snapshot

    from scorer.tables.target import Contents, Identity, NewFile, Target

_FOOTERS = 32  # read at once
_ID = b"PARQUET:field_id"
_OWN_RETRIES = "commit.retry.num-retries"
_NEWEST_FORMAT = 2


def missing_package() -> ScorerError | None:
    """Return the error if the library is not installed."""
    if find_spec("pyiceberg") is not None:
        return None
    return OptionsError(
        "--format iceberg needs another package",
        where="--format iceberg",
        expected="pyiceberg",
        found="not installed",
        hint="pip install 'dask-scorer[iceberg]'",
    )


def folder_of(name: str) -> str:
    """Return the folder of a table, or the one that a new table will have."""
    problem = missing_package()
    if problem is not None:
        raise problem
    from scorer.tables._iceberg_files import location  # noqa: PLC0415 - needs pyiceberg

    with _opened(name) as (catalog, table):
        found = _load(catalog, table)
        if found is not None:
            return location(found.location())
        return location(_folder_of_new(catalog, table, name))


def look(name: str, request: str) -> Existing | None:
    """Return what the table is like now, and how often a request was committed to it; None if there is no table."""
    with _opened(name) as (catalog, table):
        found = _load(catalog, table)
        return None if found is None else _existing(found.metadata, request)


def files_at(name: str, version: int | None) -> dict[str, int] | None:
    """Return the live files of a snapshot of the table with their sizes; None if that snapshot is not there."""
    with _opened(name) as (catalog, table):
        found = _load(catalog, table)
        if found is None:
            return None
        snapshot = found.current_snapshot() if version is None else found.snapshot_by_id(version)
        if snapshot is None:
            return {} if version is None else None
        top = f"{found.location()}/"
        return {file.file_path.removeprefix(top): file.file_size_in_bytes for file in _data_files(found, snapshot)}


def with_ids(schema: pa.Schema, columns: pa.Schema, name: str) -> pa.Schema:
    """Return the schema of the files with the ids of the table's columns; those of a new table are given here."""
    with _opened(name) as (catalog, table):
        found = _load(catalog, table)
        return _identified(schema, _new_schema(columns) if found is None else found.schema())


def committed(name: str, target: Target, identity: Identity) -> int | None:  # noqa: ARG001 - as that of Delta tables
    """Return the snapshot with which the table got the files of a plan; None if it has not got them."""
    with _opened(name) as (catalog, table):
        found = _load(catalog, table)
        for snapshot in found.snapshots() if found is not None else []:
            said = _said(snapshot)
            if said.get("scorer.request") != identity.request or int(said["scorer.commit"]) < identity.number:
                continue
            if said.get("scorer.plan") == identity.plan:
                return snapshot.snapshot_id
            raise another_run(name, identity)
    return None


def try_commit(name: str, target: Target, identity: Identity, contents: Contents) -> Exception | None:
    """Try to commit; return the error, which may also mean that only the answer was lost."""
    said = {
        "scorer.request": identity.request, "scorer.plan": identity.plan, "scorer.commit": str(identity.number),
        **contents.notes,
    }  # fmt: skip
    with _opened(name) as (catalog, table):
        found = _load(catalog, table)
        if found is None:
            schema = _new_schema(target.columns)
            transaction: Transaction = catalog.create_table_transaction(
                table, schema, _folder_of_new(catalog, table, name), _spec(schema, target.partition_by)
            )
            old: list[DataFile] = []
        else:
            refuse_changed(name, target, _existing(found.metadata, identity.request))
            found.metadata.properties[_OWN_RETRIES] = "0"  # in memory: the next try looks first if this one was made
            transaction, old = found.transaction(), _replaced(found, target, contents.removed, name)
        metadata = transaction.table_metadata
        new = _data_files_of(contents.files, metadata)
        try:
            producer = transaction.update_snapshot(snapshot_properties=said)
            with producer.overwrite() if old else producer.fast_append() as changes:
                for file in new:
                    changes.append_data_file(file)
                for file in old:
                    changes.delete_data_file(file)
            transaction.commit_transaction()
        except ScorerError:
            raise
        except Exception as error:  # noqa: BLE001 - what a catalog raises is its own
            return error
    return None


def _replaced(table: Table, target: Target, removed: Sequence[str], name: str) -> list[DataFile]:
    """Return the files whose rows the commit replaces: those to remove by name, or by the mode."""
    snapshot = table.current_snapshot()
    if removed:
        top = f"{table.location()}/"
        live = (
            {}
            if snapshot is None
            else {file.file_path.removeprefix(top): file for file in _data_files(table, snapshot)}
        )
        lost = [one for one in removed if one not in live]
        if lost:
            raise stored_elsewhere(name, lost)
        return [live[one] for one in removed]
    if snapshot is None or target.mode not in {"overwrite", "replace"}:
        return []
    found = list(_data_files(table, snapshot))
    if target.mode == "overwrite":
        return found
    names = [one.name for one in table.spec().fields]
    places = [(names.index(one.column), one.values) for one in target.replaced]
    return [file for file in found if all(_text(file.partition[at]) in values for at, values in places)]


def _data_files(table: Table, snapshot: Snapshot) -> Iterator[DataFile]:
    """Yield the live data files of a snapshot."""
    from pyiceberg.manifest import DataFileContent  # noqa: PLC0415 - an extra

    for manifest in snapshot.manifests(table.io):
        for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True):
            if entry.data_file.content == DataFileContent.DATA:
                entry.data_file.spec_id = manifest.partition_spec_id
                yield entry.data_file


def _data_files_of(files: Sequence[NewFile], metadata: TableMetadata) -> list[DataFile]:
    """Return the entries of new files, with the statistics of their footers."""
    with ThreadPoolExecutor(min(_FOOTERS, max(1, len(files))), "scorer-footers") as pool:
        return list(pool.map(lambda file: _data_file(file, metadata), files))


def _data_file(file: NewFile, metadata: TableMetadata) -> DataFile:
    from pyiceberg.io.pyarrow import (  # noqa: PLC0415 - an extra
        compute_statistics_plan,
        data_file_statistics_from_parquet_metadata,
        parquet_path_to_id_mapping,
    )
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat  # noqa: PLC0415 - an extra
    from pyiceberg.typedef import Record  # noqa: PLC0415 - an extra

    from scorer.tables._iceberg_files import location  # noqa: PLC0415 - needs pyiceberg

    path = f"{metadata.location}/{file.path}"
    place = location(path)
    with open_parquet(stores.identity(place) if is_url(place) else place) as parquet:
        footer = parquet.metadata
    schema = metadata.schema()
    known = parquet_path_to_id_mapping(schema)
    ids = {footer.schema.column(i).path for i in range(footer.num_columns)}
    plan = compute_statistics_plan(schema, metadata.properties)
    statistics = data_file_statistics_from_parquet_metadata(
        parquet_metadata=footer,
        stats_columns=plan,
        parquet_column_mapping={path: number for path, number in known.items() if path in ids},
    )
    keys = [_value(file.keys[one.name], schema.find_type(one.source_id)) for one in metadata.spec().fields]
    return DataFile.from_args(
        content=DataFileContent.DATA, file_path=path, file_format=FileFormat.PARQUET, partition=Record(*keys),
        file_size_in_bytes=file.size, sort_order_id=None, spec_id=metadata.default_spec_id, equality_ids=None,
        key_metadata=None, **statistics.to_serialized_dict(),
    )  # fmt: skip


def _value(text: str | None, kind: Any) -> Any:  # noqa: ANN401 - of pyiceberg
    """Return a partition value as the manifest has it."""
    from pyiceberg.io.pyarrow import schema_to_pyarrow  # noqa: PLC0415 - an extra

    arrow = schema_to_pyarrow(kind)
    if text is None:
        return None
    array = pa.array([text]).cast(arrow)
    return (array.cast(pa.int32()) if pa.types.is_date32(arrow) else array)[0].as_py()


def _text(value: Any) -> str | None:  # noqa: ANN401 - a partition value
    return None if value is None else str(value)


def _existing(metadata: TableMetadata, request: str) -> Existing:
    from pyiceberg.io.pyarrow import schema_to_pyarrow  # noqa: PLC0415 - an extra

    said = [_said(snapshot) for snapshot in metadata.snapshots]
    commits = [int(one["scorer.commit"]) for one in said if one.get("scorer.request") == request]
    schema = metadata.schema()
    return Existing(
        version=-1 if metadata.current_snapshot_id is None else metadata.current_snapshot_id,
        table_id=str(metadata.table_uuid),
        schema=schema_to_pyarrow(schema, include_field_ids=False),
        partition_by=tuple(schema.find_column_name(one.source_id) or "" for one in metadata.spec().fields),
        commits=max(commits, default=0),
        obstacles=tuple(_obstacles(metadata)),
    )


def _obstacles(metadata: TableMetadata) -> list[str]:
    """Return what keeps scorer from adding files to a table."""
    found = [f"format version {metadata.format_version}"] * (metadata.format_version > _NEWEST_FORMAT)
    for one in metadata.spec().fields:
        if str(one.transform) != "identity":
            found.append(f"partitions by {one.transform} of a column ({one.name})")
        elif one.name != metadata.schema().find_column_name(one.source_id):
            found.append(f"a partition with another name than its column ({one.name})")
    return found


def _new_schema(columns: pa.Schema) -> Schema:
    """Return the schema of a new table with these columns."""
    from pyiceberg.catalog import Catalog  # noqa: PLC0415 - an extra
    from pyiceberg.schema import assign_fresh_schema_ids  # noqa: PLC0415 - an extra

    converted = Catalog._convert_schema_if_needed(columns)  # noqa: SLF001 - the way in which the library does it
    return assign_fresh_schema_ids(converted)


def _spec(schema: Schema, names: Sequence[str]) -> PartitionSpec:
    from pyiceberg.partitioning import PartitionField, PartitionSpec  # noqa: PLC0415 - an extra
    from pyiceberg.transforms import IdentityTransform  # noqa: PLC0415 - an extra

    fields = [
        PartitionField(
            source_id=schema.find_field(name).field_id, field_id=1000 + i, transform=IdentityTransform(), name=name
        )
        for i, name in enumerate(names)
    ]
    return PartitionSpec(*fields)


def _identified(schema: pa.Schema, table: Schema) -> pa.Schema:
    """Return the schema with the ids of a table's columns, by name, at any depth."""
    from pyiceberg.io.pyarrow import schema_to_pyarrow  # noqa: PLC0415 - an extra

    theirs = schema_to_pyarrow(table)
    return pa.schema([_with_id(field, theirs.field(field.name)) for field in schema], metadata=schema.metadata)


def _with_id(field: pa.Field, other: pa.Field) -> pa.Field:
    number = (other.metadata or {}).get(_ID)
    own = {**(field.metadata or {}), **({_ID: number} if number else {})}
    return pa.field(field.name, _type_with_ids(field.type, other.type), field.nullable, own or None)


def _type_with_ids(kind: pa.DataType, other: pa.DataType) -> pa.DataType:
    if pa.types.is_struct(kind):
        return pa.struct([_with_id(field, other.field(field.name)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_with_id(kind.key_field, other.key_field), _with_id(kind.item_field, other.item_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(_with_id(kind.value_field, other.value_field))
    if pa.types.is_list(kind):
        return pa.list_(_with_id(kind.value_field, other.value_field))
    return kind


def _said(snapshot: Snapshot) -> Mapping[str, str]:
    """Return the properties of a snapshot's summary."""
    return {} if snapshot.summary is None else snapshot.summary.additional_properties


@contextmanager
def _opened(name: str) -> Iterator[tuple[Catalog, str]]:
    """Open the catalog of a table; yield it with the table's name in it."""
    from pyiceberg.catalog import load_catalog  # noqa: PLC0415 - an extra

    from scorer.tables import _iceberg_files  # noqa: PLC0415 - needs pyiceberg

    named, table = names_in(name, OptionsError)
    try:
        catalog = load_catalog(named, **{"py-io-impl": f"{_iceberg_files.__name__}.TableFiles"})
    except Exception as error:  # what a catalog raises is its own
        raise _unusable(name, named, error) from error
    with catalog:
        yield catalog, table


def _load(catalog: Catalog, table: str) -> Table | None:
    from pyiceberg.exceptions import NoSuchTableError  # noqa: PLC0415 - an extra

    try:
        return catalog.load_table(table)
    except NoSuchTableError:
        return None
    except Exception as error:  # what a catalog raises is its own
        raise _unusable(f"{SCHEME}://{catalog.name}/{table}", catalog.name, error) from error


def _folder_of_new(catalog: Catalog, table: str, name: str) -> str:
    """Return the folder of a table that does not exist yet: that of its namespace, or one in the warehouse."""
    namespace, _, own = table.rpartition(".")
    try:
        properties = catalog.load_namespace_properties(namespace)
    except Exception as error:  # what a catalog raises is its own
        raise CommitError(
            "the namespace of the new table cannot be used",
            where=name,
            expected=f"a namespace {namespace!r} in the catalog {catalog.name!r}",
            found=_words(error),
            hint=f"create it: pyiceberg --catalog {catalog.name} create namespace {namespace}",
        ) from error
    top = properties.get("location") or (
        join(catalog.properties["warehouse"], *namespace.split(".")) if "warehouse" in catalog.properties else ""
    )
    if not top or catalog.properties.get("type") == "rest" or catalog.properties.get("uri", "").startswith("http"):
        raise CommitError(
            "scorer cannot create a table in this catalog, which chooses its folder",
            where=name,
            expected="a table that exists, or a catalog with a warehouse",
            found=f"the catalog {catalog.name!r} without a table {table!r}",
            hint="create the table with its columns, then use --mode append",
        )
    return join(top, own)


def _unusable(name: str, catalog: str, error: Exception) -> CommitError:
    return CommitError(
        "the Iceberg catalog cannot be used",
        where=name,
        expected=f"a catalog {catalog!r} in pyiceberg's configuration, which answers",
        found=_words(error),
        hint=f"check ~/.pyiceberg.yaml or PYICEBERG_CATALOG__{catalog.upper()}__URI, and try: pyiceberg list",
    )


def _words(error: Exception) -> str:
    return cut(" ".join(str(error).split()), 300) or type(error).__name__
