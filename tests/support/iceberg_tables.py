"""Iceberg tables for tests: written by pyiceberg, with delete files made by hand, and read back by pyiceberg."""

from __future__ import annotations

import io
import itertools
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scorer.tables.columns import open_as_table

COUNT = itertools.count()
FIELD_ID = b"PARQUET:field_id"
NAME = "lake"


class Warehouse:
    """A SQLite catalog with one namespace, `ns`, and its tables below `root`: a folder, or a URL of a store."""

    def __init__(self, folder, root=None, **properties):
        from pyiceberg.catalog.sql import SqlCatalog

        folder.mkdir(parents=True, exist_ok=True)
        self.root = str(root or folder / "wh")
        self.uri = f"sqlite:///{quote(str(folder))}/catalog.db"
        self.catalog = SqlCatalog(NAME, uri=self.uri, warehouse=self.root, **properties)
        self.catalog.create_namespace_if_not_exists("ns")

    def environment(self):
        """Return the variables by which pyiceberg finds this catalog."""
        start = f"PYICEBERG_CATALOG__{NAME.upper()}__"
        return {f"{start}URI": self.uri, f"{start}TYPE": "sql", f"{start}WAREHOUSE": self.root}

    def configure(self, patch):
        """Let pyiceberg find this catalog in this process and in those that it starts."""
        from pyiceberg.utils.config import Config

        for name, value in self.environment().items():
            patch.setenv(name, value)
        patch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())

    def create(self, schema, rows=None, *, name="", spec=None, **properties):
        """Return a new table with these rows, if there are any."""
        options = {} if spec is None else {"partition_spec": spec}
        table = self.catalog.create_table(
            f"ns.{name or f't{next(COUNT)}'}", schema, properties={"format-version": "2"} | properties, **options
        )
        if rows is not None:
            table.append(rows)
        return table

    def close(self):
        """Close the connections to the database."""
        self.catalog.close()


def metadata_path(table):
    """Return the local path of a table's current metadata file."""
    return local(table.metadata_location)


def local(location):
    """Return the path of a file that the metadata names, without file://."""
    return location.removeprefix("file://")


def live_rows(table, **options):
    """Return the live rows as pyiceberg reads them, in the types of files, in the order of the column `id`."""
    rows = table.scan(**options).to_arrow()
    return plain(rows).sort_by("id")


def live(snapshot):
    """Return the live rows of a snapshot as scorer finds them, file by file."""
    pieces = []
    for file in snapshot.files:
        keys = dict(file.keys)
        inside = pa.schema([field for field in snapshot.schema if field.name not in snapshot.partition_columns])
        rows = open_as_table(pq.ParquetFile(file.id.path), inside, file.id.path, file.must_have).read_row_groups(
            range(pq.ParquetFile(file.id.path).num_row_groups), inside.names
        )
        for name, text in keys.items():
            kind = snapshot.schema.field(name).type
            value = pa.scalar(text, pa.string()).cast(kind) if text is not None else pa.scalar(None, kind)
            rows = rows.append_column(name, pa.repeat(value, rows.num_rows))
        assert rows.num_rows == file.rows
        live = np.ones(rows.num_rows, bool)
        live[snapshot.deleted.get(file.id.path, [])] = False
        rows = rows.select(snapshot.schema.names).filter(pa.array(live))
        pieces.append(rows.cast(pa.schema([field.with_nullable(nullable=True) for field in snapshot.schema])))
    return plain(pa.concat_tables(pieces))


def plain(rows):
    """Return the rows without offsets of 64 bits and without metadata."""
    return rows.cast(pa.schema([field.with_type(smaller(field.type)).remove_metadata() for field in rows.schema]))


def smaller(kind):
    """Return a type with offsets of 32 bits and nullable fields."""
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(one.name, smaller(one.type)) for one in kind])
    if pa.types.is_map(kind):
        return pa.map_(smaller(kind.key_type), smaller(kind.item_type))
    if pa.types.is_large_list(kind) or pa.types.is_list(kind):
        return pa.list_(pa.field("element", smaller(kind.value_type)))
    return {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}.get(kind, kind)


def data_files(table):
    """Return the data files of the current snapshot, in the order of their least `id`."""
    files = [task.file for task in table.scan().plan_files()]
    return sorted(files, key=lambda file: pq.read_table(local(file.file_path), partitioning=None)["id"][0].as_py())


def delete_positions(table, of_file, *, bounds=True, format_name="PARQUET"):
    """Commit one position delete file with {data file: row numbers}; it is limited to the partition of the first."""
    ids = {"file_path": b"2147483546", "pos": b"2147483545"}
    pairs = sorted((file.file_path, row) for file, rows in of_file.items() for row in rows)
    kinds = {"file_path": pa.string(), "pos": pa.int64()}
    schema = pa.schema([pa.field(name, kind, metadata={FIELD_ID: ids[name]}) for name, kind in kinds.items()])
    rows = pa.table([[path for path, _ in pairs], [row for _, row in pairs]], schema=schema)
    first = next(iter(of_file))
    paths = [path.encode() for path, _ in pairs]
    limits = {"lower_bounds": {2147483546: min(paths)}, "upper_bounds": {2147483546: max(paths)}} if bounds else {}
    return _commit(table, rows, 1, first, format_name, **limits)


def delete_values(table, rows, ids, near):
    """Commit one equality delete file, limited to the partition of the data file `near`."""
    fields = [field.with_metadata({FIELD_ID: str(n).encode()}) for field, n in zip(rows.schema, ids, strict=True)]
    return _commit(table, rows.cast(pa.schema(fields)), 2, near, "PARQUET", equality_ids=list(ids))


def _commit(table, rows, content, near, format_name, **details):
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat

    sink = io.BytesIO()
    pq.write_table(rows, sink)
    path = f"{table.location()}/data/deletes-{next(COUNT)}.parquet"
    with table.io.new_output(path).create() as stream:
        stream.write(sink.getvalue())
    nothing = {"column_sizes": {}, "value_counts": {}, "null_value_counts": {}, "nan_value_counts": {}}
    limits = {"lower_bounds": {}, "upper_bounds": {}, "split_offsets": [], "equality_ids": None, "sort_order_id": None}
    file = DataFile.from_args(
        content=DataFileContent(content), file_path=path, file_format=FileFormat[format_name], partition=near.partition,
        record_count=rows.num_rows, file_size_in_bytes=len(sink.getvalue()), spec_id=near.spec_id, key_metadata=None,
        **(nothing | limits | details),
    )  # fmt: skip
    file.spec_id = near.spec_id
    with table.transaction() as change, change.update_snapshot().fast_append() as added:
        added.append_data_file(file)
    table.refresh()
    return path
