"""A table whose columns are added to the rows of the input, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from scorer.arrow import decode_schema

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """One table of --join: where it is, which rows belong to a row of the input, and which columns are added."""

    name: str
    location: str
    digest: str
    """Identifies the contents: the files with their sizes and times or ETags, or the version of a table."""
    kind: str = ""
    """delta or iceberg, if it is such a table."""
    version: str = ""
    """The version of such a table."""
    left: tuple[str, ...]
    """The keys among the columns of the input."""
    right: tuple[str, ...]
    """The keys among the columns of the table, in the same order."""
    schema: str
    """The keys in the types in which they are compared, then the added columns by their names in the table (Arrow's
    own form, in base64)."""
    missing: str
    """What happens to a row whose key the table does not have: null or error."""

    @property
    def keys(self) -> list[pa.Field]:
        """The keys, in the types in which they are compared."""
        return list(decode_schema(self.schema))[: len(self.right)]

    @property
    def fields(self) -> list[pa.Field]:
        """The columns that are added, by their names in the table."""
        return list(decode_schema(self.schema))[len(self.right) :]

    @property
    def added(self) -> list[pa.Field]:
        """The columns that are added, by their names beside those of the input."""
        return [pa.field(qualified(self.name, field.name), field.type) for field in self.fields]

    @property
    def words(self) -> str:
        """The join as the plan shows it."""
        pairs = zip(self.left, self.right, strict=True)
        on = ", ".join(one if one == other else f"{one} = {other}" for one, other in pairs)
        version = f", version {self.version}" if self.version else ""
        missing = "a bad row" if self.missing == "error" else "null"
        columns = len(self.fields)
        return (
            f"{self.location}{version} on {on}; {columns} {'column' if columns == 1 else 'columns'}; "
            f"a missing key gives {missing}"
        )

    def facts(self) -> dict[str, Any]:
        """Return the join as data for JSON."""
        columns = [field.name for field in self.added]
        return {name: value for name, value in asdict(self).items() if name != "schema"} | {"columns": columns}


def qualified(name: str, column: str) -> str:
    """Return the name that a column of a joined table has beside the columns of the input."""
    return f"{name}.{column}"


def joined_name(name: str, read: pa.Schema, joins: Sequence[Join]) -> str:
    """Return the column of a joined table that a name means, in full; '' if it means a column that is read."""
    added = {full: full.partition(".")[2] for join in joins for full in (field.name for field in join.added)}
    if name in read.names or name in added:
        return name if name in added else ""
    return next((full for full, plain in added.items() if plain == name), "")
