"""Add files to a Delta table in one commit, and look for it: see `scorer.output.publish_table`.

The commit has an id, the request of the run, and a number. The library refuses only commits with one id that are made
at the same time.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import time
from decimal import Decimal
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa

from scorer.display.words import cut
from scorer.errors import CommitError, OptionsError, ScorerError
from scorer.tables import clients
from scorer.tables.target import Existing, another_run, refuse_changed, stored_elsewhere

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import pyarrow.parquet as pq
    from deltalake import DeltaTable

    from scorer.tables.target import Contents, Identity, Target

_MOST_COLUMNS = 32  # as other writers: a log with the ranges of a thousand columns is slow to read
_LONGEST = 32  # characters of a text; readers expect that longer ones are cut off
_MS = 1000  # microseconds: ranges of times are in milliseconds
_WRITTEN_WITHOUT = {
    "appendOnly", "changeDataFeed", "checkConstraints", "columnMapping", "deletionVectors", "generatedColumns",
    "identityColumns", "invariants", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck",
}  # fmt: skip
"""Features that ask nothing of a writer that adds files, unless the table uses them; `_obstacles` looks."""


def missing_package() -> ScorerError | None:
    """Return the error if the library is not installed."""
    if find_spec("deltalake") is not None:
        return None
    return OptionsError(
        "--format delta needs another package",
        where="--format delta",
        expected="deltalake",
        found="not installed",
        hint="pip install 'dask-scorer[delta]'",
    )


def look(location: str, request: str) -> Existing | None:
    """Return what the table is like now, and how often a request was committed to it; None if there is no table."""
    table = _open(location)
    return None if table is None else _existing(table, request)


def _existing(table: DeltaTable, request: str) -> Existing:
    configuration = dict(table.metadata().configuration)
    return Existing(
        version=table.version(),
        table_id=str(table.metadata().id),
        schema=pa.schema(table.schema().to_arrow()),
        partition_by=tuple(table.metadata().partition_columns),
        commits=table.transaction_version(f"scorer:{request}") or 0,
        obstacles=tuple(_obstacles(table, configuration)),
        append_only=configuration.get("delta.appendOnly", "").lower() == "true",
    )


def files_at(location: str, version: int | None) -> dict[str, int] | None:
    """Return the live files of a version of the table with their sizes; None if that version cannot be read."""
    table = _open(location, version)
    if table is None:
        return None
    actions = pa.table(table.get_add_actions())
    pairs = zip(actions["path"].to_pylist(), actions["size_bytes"].to_pylist(), strict=True)
    return {unquote(path): size for path, size in pairs}


def _paths(table: DeltaTable) -> dict[str, str]:
    """Return the paths of the live files as the log has them, by their names in the table's folder."""
    return {unquote(path): path for path in pa.table(table.get_add_actions())["path"].to_pylist()}


def committed(location: str, target: Target, identity: Identity) -> int | None:
    """Return the version with which the table got the files of a plan; None if it has not got them."""
    table = _open(location)
    if table is None or (table.transaction_version(identity.app) or 0) < identity.number:
        return None
    history = table.history(max(1, table.version() - target.version))
    for entry in history:
        if entry.get("scorer.request") == identity.request and entry.get("scorer.plan") == identity.plan:
            return int(entry["version"])
    raise another_run(location, identity)


def try_commit(location: str, target: Target, identity: Identity, contents: Contents) -> Exception | None:
    """Try to commit; return the error, which may also mean that only the answer was lost."""
    from deltalake import CommitProperties, Schema, Transaction  # noqa: PLC0415 - an extra
    from deltalake.exceptions import DeltaError  # noqa: PLC0415 - an extra
    from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions  # noqa: PLC0415 - an extra

    now = int(time.time() * 1000)
    actions = [
        AddAction(one.path, one.size, dict(one.keys), now, True, one.statistics)  # noqa: FBT003
        for one in contents.files
    ]
    properties = CommitProperties(
        custom_metadata={"scorer.request": identity.request, "scorer.plan": identity.plan, **contents.notes},
        max_commit_retries=0,  # the next try looks first whether this one was made
        app_transactions=[Transaction(identity.app, identity.number)],
    )
    keys = list(target.partition_by)
    try:
        table = _open(location)
        if table is None:
            create_table_with_add_actions(
                location, Schema.from_arrow(target.columns), actions, mode="error", partition_by=keys,
                storage_options=clients.for_delta(location) or None, commit_properties=properties,
            )  # fmt: skip
            return None
        refuse_changed(location, target, _existing(table, identity.request))
        paths = _paths(table) if contents.removed else {}
        lost = [name for name in contents.removed if name not in paths]
        if lost:
            raise stored_elsewhere(location, lost)
        removed = [RemoveAction(paths[name], True, now) for name in contents.removed]  # noqa: FBT003
        filters = [(one.column, "in", list(one.values)) for one in target.replaced] or None
        table.create_write_transaction(
            [*actions, *removed], "append" if target.mode == "append" else "overwrite", table.schema(),
            partition_by=keys, partition_filters=filters, commit_properties=properties,
        )  # fmt: skip
    except (DeltaError, OSError) as error:
        return error
    return None


def _open(location: str, version: int | None = None) -> DeltaTable | None:
    """Return the table at a location; None if there is none."""
    from deltalake import DeltaTable  # noqa: PLC0415 - an extra
    from deltalake.exceptions import DeltaError, TableNotFoundError  # noqa: PLC0415 - an extra

    try:
        return DeltaTable(location, version, storage_options=clients.for_delta(location) or None)
    except TableNotFoundError:
        return None
    except (DeltaError, OSError, ValueError) as error:
        raise CommitError(
            "the table cannot be read",
            where=location,
            expected="a Delta table, or nothing",
            found=cut(" ".join(str(error).split()), 300),
            hint="repeat the command; if it fails again, open the table with its own tools",
        ) from error


def _obstacles(table: DeltaTable, configuration: Mapping[str, str | None]) -> list[str]:
    """Return the features that the table uses and that ask more of a writer than adding files."""
    protocol = table.protocol()
    found = [one for one in protocol.writer_features or () if one not in _WRITTEN_WITHOUT]
    found += ["checkConstraints"] * any(name.startswith("delta.constraints.") for name in configuration)
    found += ["columnMapping"] * (configuration.get("delta.columnMapping.mode", "none") != "none")
    names = {"delta.generationExpression": "generatedColumns", "delta.identity.start": "identityColumns",
             "delta.invariants": "invariants"}  # fmt: skip
    for one in table.schema().fields:
        found += [f"{feature} ({one.name})" for key, feature in names.items() if key in (one.metadata or {})]
    return found


def statistics_of(metadata: pq.FileMetaData, schema: pa.Schema, without_nan: Collection[str]) -> str:
    """Return the statistics of a file for its add action. Floats have a range only if they are known to have no NaN.

    A footer's range leaves NaN out, but a reader that sorts NaN above all numbers would skip the file for it.
    """
    nulls: dict[str, int] = {}
    lows: dict[str, Any] = {}
    highs: dict[str, Any] = {}
    for name, leaf in [*_flat(metadata, schema).items()][:_MOST_COLUMNS]:
        chunks = [metadata.row_group(group).column(leaf).statistics for group in range(metadata.num_row_groups)]
        if any(chunk is None or not chunk.has_null_count for chunk in chunks):
            continue
        nulls[name] = sum(chunk.null_count for chunk in chunks)
        kind = schema.field(name).type
        filled = [
            chunk
            for chunk, group in zip(chunks, range(metadata.num_row_groups), strict=True)
            if chunk.null_count < metadata.row_group(group).num_rows
        ]
        if not filled or not all(chunk.has_min_max for chunk in filled):
            continue
        if pa.types.is_floating(kind) and name not in without_nan:
            continue
        try:
            low, high = min(chunk.min for chunk in filled), max(chunk.max for chunk in filled)
        except (pa.ArrowException, ValueError, OverflowError, TypeError):  # such as a time after the year 9999
            continue
        pair = _plain(low, up=False), _plain(high, up=True)
        if None not in pair:
            lows[name], highs[name] = pair
    counts = {"numRecords": metadata.num_rows, "minValues": lows, "maxValues": highs, "nullCount": nulls}
    return json.dumps(counts, allow_nan=False)


def _flat(metadata: pq.FileMetaData, schema: pa.Schema) -> dict[str, int]:
    """Return the leaf of each column that has one value in each row."""
    paths = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}
    return {
        field.name: paths[field.name]
        for field in schema
        if field.name in paths and "." not in field.name and not pa.types.is_nested(field.type)
    }


def _plain(value: Any, *, up: bool) -> Any:  # noqa: ANN401, PLR0911 - any value; one line for each kind
    """Return the end of a range as JSON has it, at or beyond the value; None if there is none."""
    if isinstance(value, bool | bytes):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value if len(value) <= _LONGEST else None
    if isinstance(value, dt.datetime):
        cut = value.microsecond % _MS
        if cut and up:
            try:
                value += dt.timedelta(microseconds=_MS - cut)
            except OverflowError:
                return None
        else:
            value -= dt.timedelta(microseconds=cut)
        text = value.replace(tzinfo=None).isoformat(timespec="milliseconds")
        return f"{text}Z" if value.tzinfo is not None else text
    if isinstance(value, dt.date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return None  # JSON's numbers are floats for most readers, which may be less than the decimal
    return None
