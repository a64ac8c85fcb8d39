"""The metadata of an Iceberg table: found by its catalog, its folder or its file; one snapshot of it, and its schema.

iceberg://CATALOG/ns.table                  by a catalog of pyiceberg's configuration
s3://lake/orders                            a folder whose metadata/ has *.metadata.json: the newest of them
s3://lake/orders/metadata/v3.metadata.json
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from scorer.display.words import plural, quoted_list
from scorer.errors import InputChanged, InputError, InputNotFound, ScorerError, UnreadableFile
from scorer.locations import is_url, join, scheme
from scorer.storage import refusals, stores
from scorer.tables.target import SCHEME

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyiceberg.schema import Schema
    from pyiceberg.table.metadata import TableMetadata
    from pyiceberg.table.snapshots import Snapshot

    from scorer.tables.snapshot import At

SUFFIX = ".metadata.json"
_SUFFIXES = (SUFFIX, f"{SUFFIX}.gz")
_HINT_FILE = "version-hint.text"
_NUMBER = re.compile(r"v?(\d+)(?=[.-])")
_PINNED = re.compile(r"(\d+)(?::(\d+))?")
_LATEST = 3  # snapshots that an error names
_LINES = 3  # of the text of an error of pyiceberg


def load(location: str) -> TableMetadata:
    """Return the metadata of a table: from its catalog, its metadata file, or the newest one in its folder."""
    if find_spec("pyiceberg") is None:
        raise InputError(
            "reading an Iceberg table needs another package",
            where=location,
            expected="pyiceberg",
            found="not installed",
            hint="pip install 'dask-scorer[iceberg]'",
        )
    if scheme(location) == SCHEME:
        return _from_catalog(location)
    from pyiceberg.serializers import FromInputFile  # noqa: PLC0415 - an extra

    from scorer.tables._iceberg_files import StoreFile  # noqa: PLC0415 - needs pyiceberg

    with reading(location):
        path = location if location.endswith(_SUFFIXES) else newest(location)
        return FromInputFile.table_metadata(StoreFile(path))


def names_in(url: str, error: type[ScorerError]) -> tuple[str, str]:
    """Return the catalog and the table that a URL names; raise this error if it does not name both."""
    catalog, _, table = url.partition("://")[2].partition("/")
    if not catalog or "." not in table or "/" in table:
        raise error(
            "this URL names no Iceberg table",
            where=url,
            expected=f"{SCHEME}://CATALOG/NAMESPACE.TABLE",
            found=f"catalog {catalog!r}, table {table!r}",
            hint="name the catalog as in pyiceberg's configuration, then the table with its namespace",
        )
    return catalog, table


def _from_catalog(location: str) -> TableMetadata:
    from pyiceberg.catalog import load_catalog  # noqa: PLC0415 - an extra
    from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError  # noqa: PLC0415 - an extra

    from scorer.tables._iceberg_files import IMPLEMENTATION  # noqa: PLC0415 - needs pyiceberg

    catalog, table = names_in(location, InputError)
    try:
        with load_catalog(catalog, **IMPLEMENTATION) as opened:
            return opened.load_table(table).metadata
    except (NoSuchTableError, NoSuchNamespaceError) as error:
        raise InputNotFound(
            "the catalog has no such table",
            where=location,
            expected=f"a table {table!r} in the catalog {catalog!r}",
            found="none",
            hint=f"list them: pyiceberg --catalog {catalog} list {table.rpartition('.')[0]}",
        ) from error
    except Exception as error:  # what a catalog raises is its own
        raise InputError(
            "the Iceberg catalog cannot be used",
            where=location,
            expected=f"a catalog {catalog!r} in pyiceberg's configuration, which answers",
            found=_words(error),
            hint=f"check ~/.pyiceberg.yaml or PYICEBERG_CATALOG__{catalog.upper()}__URI, and try: pyiceberg list",
        ) from error


def newest(folder: str) -> str:
    """Return the metadata file of a table's current state; raise if its folder alone does not tell which that is."""
    inside = stores.path_of(join(folder, "metadata"))
    names = [path.name for path in inside.iterdir() if path.name.endswith(_SUFFIXES) and not path.name.startswith(".")]
    hint = (inside / _HINT_FILE).read_text().strip() if (inside / _HINT_FILE).is_file() else ""
    named = [name for name in names if hint and name in {hint, f"{hint}{SUFFIX}", f"{hint}.gz{SUFFIX}"}]
    last = named or _last(names, hint)
    if len(last) == 1:
        return str(inside / last[0])
    raise InputError(
        "the folder does not tell which state of the Iceberg table is the current one",
        where=folder,
        expected=f"one newest metadata file, or its name in {_HINT_FILE}",
        found=quoted_list(sorted(last or names)),
        hint=f"name the table in its catalog, iceberg://CATALOG/ns.table, or one file, {inside / min(last or names)}",
    )


def _last(names: Sequence[str], hint: str) -> list[str]:
    """Return the metadata files that may be the newest: by number, of which a hint names one of the last."""
    numbers = {name: int(found[1]) for name in names if (found := _NUMBER.match(name))}
    versions = {number: name for name, number in numbers.items() if name.startswith("v")}
    if hint.isdigit() and int(hint) in versions:  # the hint is written last, so that a later file may be there already
        number = int(hint)
        while number + 1 in versions:
            number += 1
        return [versions[number]]
    last = max(numbers.values(), default=0)
    return [name for name in names if numbers.get(name, last) == last]  # one without a number may be the newest, too


def chosen(metadata: TableMetadata, location: str, at: At) -> tuple[Snapshot, Schema]:
    """Return the requested snapshot and the schema with which it is read.

    It is the table's current schema for a branch, and otherwise the one that the table had then.
    """
    wanted = at.snapshot
    pinned = _PINNED.fullmatch(wanted or "")
    found = metadata.snapshot_by_id(int(pinned[1])) if pinned else None
    number = int(pinned[2]) if pinned and pinned[2] else found.schema_id if found else None
    if found is None:
        reference = metadata.refs.get(wanted or "main")
        found = metadata.snapshot_by_id(reference.snapshot_id) if reference else metadata.current_snapshot()
        if wanted and not reference:
            found = None
        is_tag = reference is not None and reference.snapshot_ref_type == "tag"
        number = found.schema_id if found and is_tag else None
    schema = metadata.schema() if number is None else next((s for s in metadata.schemas if s.schema_id == number), None)
    if found is None or schema is None:
        raise _no_snapshot(metadata, location, at)
    return found, schema


def _no_snapshot(metadata: TableMetadata, location: str, at: At) -> InputError:
    """Return the error for a snapshot that a table does not have."""
    latest = sorted(metadata.snapshots, key=lambda one: one.timestamp_ms)[-_LATEST:]
    found = (
        f"{plural(len(metadata.snapshots), 'snapshot')}, the latest {', '.join(str(one.snapshot_id) for one in latest)}"
    )
    if at.pinned:
        return InputChanged(
            "the snapshot with which this run began has expired",
            where=location,
            expected=f"snapshot {at.snapshot}",
            found=found,
            hint="start again on a newer snapshot: --overwrite discards what was scored",
        )
    if not metadata.snapshots:
        return InputNotFound(
            "the Iceberg table is empty",
            where=location,
            expected="at least one snapshot",
            found="none",
            hint="write rows to the table first",
        )
    return InputNotFound(
        "the Iceberg table does not have this snapshot any more, or never had it",
        where=location,
        expected=f"snapshot {at.snapshot}" if at.snapshot else "a current snapshot",
        found=f"{quoted_list(sorted(metadata.refs)) or 'no branch or tag'}, and {found}",
        hint="name one of these with --input-snapshot; what has expired cannot be read again",
    )


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Convert what pyiceberg and the stores raise while a table's metadata is read."""
    try:
        yield
    except ScorerError:
        raise
    except FileNotFoundError as error:
        raise InputChanged(
            "a file of the Iceberg table does not exist any more",
            where=where,
            expected=str(error.filename or "its metadata"),
            found="nothing",
            hint="the snapshot may have expired, or the table was moved: score a newer snapshot",
        ) from error
    except OSError as error:
        if isinstance(error.filename, str) and is_url(error.filename):
            raise refusals.explained(error, error.filename, "read the Iceberg table") from error
        raise UnreadableFile(
            "a file of the Iceberg table cannot be read",
            where=error.filename or where,
            expected="a file that can be read",
            found=error.strerror or str(error),
            hint="check its permissions, and the file system",
        ) from error
    except Exception as error:  # damaged metadata ends in errors of pydantic, Avro, Arrow or Python
        raise UnreadableFile(
            "the metadata of the Iceberg table cannot be read",
            where=where,
            expected="metadata of an Iceberg table that pyiceberg reads",
            found=_words(error),
            hint="try: pyiceberg's StaticTable.from_metadata; it reads formats 1 to 3",
        ) from error


def _words(error: BaseException) -> str:
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {'; '.join(lines[:_LINES])}"
