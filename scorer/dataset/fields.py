"""Fields of structs by path, such as geo.lat: found in a schema, read from Parquet, taken out of rows.

    geo.lat           the field lat of the column geo; a column of exactly the name 'geo.lat' comes first
    geo.'x.y'         a name with a dot is quoted; a quote in it is doubled
    'my.geo'.lat

A null struct has null fields. Fields of structs in lists have no path.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

_SEGMENT = re.compile(r"(?:'((?:[^']|'')+)'|([^.']+))(?:\.(?=.)|$)", re.DOTALL)
_LEAST = 2  # names in a path: a column and a field
JOIN = b"join"
"""In the metadata of a column: the joined table that it belongs to."""


def path_of(name: str) -> tuple[str, ...]:
    """Return the names of a path: the column, then fields; nothing if the text is not a path."""
    path, at = [], 0
    while at < len(name):
        match = _SEGMENT.match(name, at)
        if match is None:
            return ()
        path.append(match[1].replace("''", "'") if match[1] is not None else match[2])
        at = match.end()
    return tuple(path) if len(path) >= _LEAST else ()


def known_names(columns: pa.Schema) -> dict[str, str]:
    """Return the column for each name by which it can be called.

    A column of a joined table, such as customers.age, has a second name, age, if nothing else has that name.
    """
    names = {name: name for name in columns.names}
    plain: dict[str, list[str]] = {}
    for name in names:
        if "." in name and is_joined(columns, name):  # few names have a dot, and metadata is slow
            plain.setdefault(name.partition(".")[2], []).append(name)
    return {name: own[0] for name, own in plain.items() if len(own) == 1} | names


def is_joined(columns: pa.Schema, name: str) -> bool:
    """Return whether a column belongs to a joined table."""
    at = columns.get_field_index(name)
    return at >= 0 and JOIN in (columns.field(at).metadata or {})


def find(columns: pa.Schema, name: str) -> pa.Field | None:
    """Return the column of this name, or else the field of this path under its plainest name; None without either."""
    at = columns.get_field_index(name)
    if at >= 0:
        return columns.field(at)
    path = path_of(name) if "." in name else ()
    at = columns.get_field_index(path[0]) if path else -1
    if at < 0:
        known = known_names(columns)
        if name in known:
            return columns.field(known[name])
        if path and is_joined(columns, f"{path[0]}.{path[1]}"):
            path = (f"{path[0]}.{path[1]}", *path[2:])
        at = columns.get_field_index(known.get(path[0], "")) if path else -1
        path = (columns.names[at], *path[1:]) if at >= 0 else path
    if at < 0:
        return None
    kind = columns.field(at).type
    for step in path[1:]:
        at = kind.get_field_index(step) if pa.types.is_struct(kind) else -1
        if at < 0:
            return None
        kind = kind.field(at).type
    return pa.field(_name_of(path, columns), kind)


def fields_of(columns: pa.Schema) -> list[pa.Field]:
    """Return all fields of structs that are not structs themselves, under the names of their paths."""
    found = []
    for column in columns:
        if pa.types.is_struct(column.type):
            found += [pa.field(_name_of(path, columns), kind) for path, kind in _leaves((column.name,), column.type)]
    return found


def schema_of(columns: pa.Schema, names: Collection[str]) -> list[pa.Field]:
    """Return the columns of these names in their own order, then the fields of structs."""
    there = set(columns.names)
    inner = ((name, find(columns, name)) for name in names if name not in there)
    return [
        *(field for field in columns if field.name in names),
        *(field.with_name(name) for name, field in inner if field is not None),
    ]


def stored(names: Iterable[str], there: Collection[str]) -> list[str]:
    """Return the names under which Arrow reads these columns and fields from a file with the columns `there`."""
    names = list(names)
    whole = {name for name in names if name in there}
    paths = [path_of(name) for name in names if name not in there]
    return [
        *(name for name in names if name in whole),
        *dict.fromkeys(".".join(path) for path in paths if path and path[0] not in whole),
    ]


def select(rows: Any, names: Sequence[str]) -> Any:  # noqa: ANN401 - a table for a table, a batch for a batch
    """Return these columns and fields of structs; a field comes under the name of its path."""
    there = set(rows.schema.names)
    if there.issuperset(names):
        return rows.select(list(names))
    columns = [rows.column(name) if name in there else _inner(rows, path_of(name)) for name in names]
    return type(rows).from_arrays(columns, names=list(names))


def _inner(rows: Any, path: Sequence[str]) -> Any:  # noqa: ANN401 - a column of a table or of a batch
    column = rows.column(path[0])
    for step in path[1:]:
        column = pc.struct_field(column, column.type.get_field_index(step))
    return column


def _leaves(path: tuple[str, ...], kind: pa.DataType) -> Iterator[tuple[tuple[str, ...], pa.DataType]]:
    for field in kind:
        if pa.types.is_struct(field.type):
            yield from _leaves((*path, field.name), field.type)
        else:
            yield (*path, field.name), field.type


def _name_of(path: Sequence[str], columns: pa.Schema) -> str:
    """Return the path as text, with quotes only where they are necessary."""
    name = ".".join(map(_segment, path))
    return name if name not in columns.names else ".".join([*map(_segment, path[:-1]), _quoted(path[-1])])


def _segment(name: str) -> str:
    return name if name and not set(name) & set(".'") else _quoted(name)


def _quoted(name: str) -> str:
    return "'" + name.replace("'", "''") + "'"
