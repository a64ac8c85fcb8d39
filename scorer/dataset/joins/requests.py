"""The tables of --join before a run: opened, their keys checked, and their columns beside those of the input."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from scorer.arrow import encode_schema, plain_schema
from scorer.dataset import fields
from scorer.dataset.joins.spec import Join, qualified
from scorer.dataset.summary import problems_of
from scorer.display.words import did_you_mean, plural, quoted_list, size
from scorer.errors import InputError, MissingColumns, OptionsError, PreflightError, ScorerError, TypeMismatch
from scorer.host.process import memory_limit
from scorer.locations import is_url, normal
from scorer.options.grammar import parse_join

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from scorer.dataset.summary import Dataset
    from scorer.options.grammar import JoinText


SHARE = 0.25
"""Of the memory that a process may use: what all joined tables may take."""
_INDEX_BYTES = 16  # of a row: its code, and its part of the buckets


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRequest:
    """A --join whose table was opened."""

    text: JoinText
    location: str
    table: Dataset
    digest: str

    @property
    def where(self) -> str:
        """The flag, for errors."""
        return f"--join {self.text.name}"

    @property
    def columns(self) -> pa.Schema:
        """The columns of the table."""
        return plain_schema(self.table.columns)

    @property
    def joined(self) -> list[pa.Field]:
        """The columns of the table beside those of the input."""
        mark = {fields.JOIN: self.text.name.encode()}
        return [pa.field(qualified(self.text.name, one.name), one.type, metadata=mark) for one in self.columns]

    def row_bytes(self, names: Iterable[str]) -> float:
        """Return the estimated bytes of a row in memory, with these columns and the keys."""
        return _INDEX_BYTES + sum(self.table.column_bytes.get(name, 8.0) for name in {*names, *self.text.right})


def open_all(texts: Sequence[str]) -> tuple[tuple[JoinRequest, ...], dict[str, str], list[ScorerError]]:
    """Open the tables; return them, the digest of each location, and the problems."""
    if not texts:
        return (), {}, []
    from scorer.dataset.joins import lookup  # noqa: PLC0415 - only for joined tables

    found: list[JoinRequest] = []
    problems: list[ScorerError] = []
    for text in filter(None, map(parse_join, texts)):
        location = os.path.expanduser(text.location)
        location = normal(location) if is_url(location) else os.path.abspath(location)
        try:
            table = lookup.open_table(location)
        except ScorerError as error:
            what = f"the table of --join {text.name} cannot be used: {error.what}"
            problems.append(type(error)(what, error.where, error.expected, error.found, error.hint))
        else:
            digest = lookup.digest_of(table)
            found.append(JoinRequest(text=text, location=location, table=table, digest=digest))
    return tuple(found), {one.text.location: one.digest for one in found}, problems


def beside(dataset: Dataset, requests: Sequence[JoinRequest]) -> tuple[Dataset, list[ScorerError]]:
    """Return the input with the columns of the joined tables, and what is wrong with their names and keys."""
    problems: list[ScorerError] = []
    for one in requests:
        clash = [
            name for name in dataset.columns.names if name == one.text.name or name.startswith(f"{one.text.name}.")
        ]
        if clash:
            problems.append(
                OptionsError(
                    f"the input has columns with the name of a joined table: {quoted_list(clash)}",
                    where=one.where,
                    expected="another name for the table",
                    found=quoted_list(clash),
                    hint=f"--join '{one.text.name}_table={one.text.location} on {one.text.on}'",
                )
            )
            continue
        problems += _key_problems(one, dataset.columns)
        more = {qualified(one.text.name, name): number for name, number in one.table.column_bytes.items()}
        dataset = replace(dataset, joined=(*dataset.joined, *one.joined), column_bytes={**dataset.column_bytes, **more})
    return dataset, problems


def _key_problems(one: JoinRequest, columns: pa.Schema) -> list[ScorerError]:
    """Return a problem for each key that is no column on either side, or has types that cannot be compared."""
    from scorer.dataset.joins.index import key_type  # noqa: PLC0415 - only for joined tables

    problems: list[ScorerError] = []
    for left, right in zip(one.text.left, one.text.right, strict=True):
        mine, other = fields.find(columns, left), fields.find(one.columns, right)
        for name, field, whose, there in (
            (left, mine, "the input", columns), (right, other, f"the table {one.text.name}", one.columns),
        ):  # fmt: skip
            if field is None:
                problems.append(
                    MissingColumns(
                        f"--join names a key that {whose} does not have: {name!r}",
                        where=one.where,
                        expected=f"a column of {whose}",
                        found=quoted_list(there.names),
                        hint=did_you_mean(name, there.names),
                    )
                )
        if mine is not None and other is not None and key_type(mine.type, other.type) is None:
            problems.append(
                TypeMismatch(
                    f"the keys {left!r} and {right!r} have types that cannot be compared exactly",
                    where=one.where,
                    expected="two types of whole numbers, of texts or of bytes, or one type of dates, times, decimals "
                    "or booleans",
                    found=f"{mine.type} in the input, {other.type} in the table",
                    hint="write both as one type, such as int64 or string",
                )
            )
    return problems


def planned(
    requests: Sequence[JoinRequest], dataset: Dataset, used: Collection[str], memory: int | None
) -> tuple[tuple[Join, ...], pa.Schema]:
    """Load the tables that a run needs for these columns; return them, and the columns that it reads of the input.

    A table of which no column is used is needed if a key that it does not have is an error. A key may be a column of
    a table before it. `memory` is that of a worker; None if it is this machine's.
    """
    columns = dataset.columns
    if not requests:
        return (), pa.schema(fields.schema_of(columns, used), metadata=dataset.schema.metadata)
    needed = dict.fromkeys(_column_of(columns, name) for name in used if fields.find(columns, name) is not None)
    joins: list[Join] = []
    for one in reversed(requests):
        own = [field for field in one.columns if qualified(one.text.name, field.name) in needed]
        if own or one.text.missing == "error":
            joins.append(_join(one, columns, own))
            needed |= dict.fromkeys(joins[-1].left)
    joins.reverse()
    _load(requests, joins, memory or memory_limit())
    read = [name for name in needed if name not in {field.name for field in dataset.joined}]
    return tuple(joins), pa.schema(fields.schema_of(columns, read), metadata=dataset.schema.metadata)


def _join(one: JoinRequest, columns: pa.Schema, own: Sequence[pa.Field]) -> Join:
    """Return a join that adds these columns of its table."""
    from scorer.dataset.joins.index import key_type  # noqa: PLC0415 - only for joined tables

    left = [_found(columns, name) for name in one.text.left]
    right = [_found(one.columns, name) for name in one.text.right]
    kinds = [key_type(mine.type, other.type) for mine, other in zip(left, right, strict=True)]
    keys = [pa.field(str(at), kind) for at, kind in enumerate(kinds)]
    table = one.table.table
    return Join(
        name=one.text.name, location=one.location, digest=one.digest, kind="" if table is None else table.kind,
        version="" if table is None else table.version, left=tuple(field.name for field in left),
        right=tuple(field.name for field in right),
        schema=encode_schema(pa.schema([*keys, *(pa.field(field.name, field.type) for field in own)])),
        missing=one.text.missing,
    )  # fmt: skip


def _column_of(columns: pa.Schema, name: str) -> str:
    """Return a name, or the column of a joined table that it means: by its plain name, or by the path of a field."""
    full = str(_found(columns, name).name)
    path = fields.path_of(full) if full not in columns.names else ()
    return path[0] if path and fields.is_joined(columns, path[0]) else full


def _found(columns: pa.Schema, name: str) -> pa.Field:
    field = fields.find(columns, name)
    if field is None:
        raise KeyError(name)
    return field


def _load(requests: Sequence[JoinRequest], joins: Sequence[Join], limit: int) -> None:
    """Load the tables into this process; raise if they are too large for `limit` bytes of memory, or keys repeat."""
    from scorer.dataset.joins import lookup  # noqa: PLC0415 - only for joined tables

    by_name = {one.text.name: one for one in requests}
    sizes = {
        join.name: by_name[join.name].row_bytes(field.name for field in join.fields) * by_name[join.name].table.rows
        for join in joins
    }
    if sum(sizes.values()) > SHARE * limit:
        largest = max(sizes, key=lambda name: sizes[name])
        one = by_name[largest]
        raise InputError(
            "the joined tables do not fit into memory",
            where=one.where,
            expected=f"at most {size(SHARE * limit)}, a quarter of the memory of a process",
            found=f"about {size(sum(sizes.values()))}, of which {size(sizes[largest])} for "
            f"{plural(one.table.rows, 'row')} of {largest}",
            hint="use fewer of its columns, leave out rows that no key needs, or join the table before the run",
        )
    problems: list[ScorerError] = []
    for join in joins:
        one = by_name[join.name]
        used = [*join.right, *(field.name for field in join.fields)]
        different = problems_of(one.table, used)
        problems += different
        if not different:
            try:
                lookup.table(join, shared=False)
            except ScorerError as error:
                problems.append(error)
    if problems:
        raise PreflightError(problems)


def held_bytes(joins: Sequence[Join]) -> int:
    """Return the bytes that the tables take in memory."""
    if not joins:
        return 0
    from scorer.dataset.joins import lookup  # noqa: PLC0415 - only for joined tables

    return sum(lookup.table(join, shared=False).nbytes for join in joins)


def joined(rows: pa.Table, joins: Sequence[Join]) -> pa.Table:
    """Return the rows with the columns of joined tables."""
    if not joins:
        return rows
    from scorer.dataset.joins import lookup  # noqa: PLC0415 - only for joined tables

    return lookup.add_columns(rows, joins)[0]


def notes(requests: Sequence[JoinRequest], joins: Sequence[Join], rows: pa.Table) -> list[str]:
    """Return notes on tables that nothing uses, and on keys of the first rows that a table does not have."""
    if not requests:
        return []
    from scorer.dataset.joins import lookup  # noqa: PLC0415 - only for joined tables

    used = {join.name for join in joins}
    found = [
        f"no column of the joined table {one.text.name} is used, so it is not read"
        for one in requests
        if one.text.name not in used
    ]
    for join in joins:
        gone = lookup.missing_rows(rows, join)
        if gone:
            what = "bad rows" if join.missing == "error" else "null"
            found.append(
                f"{gone:,} of the first {plural(rows.num_rows, 'row')} have keys that {join.name} does not have: {what}"
            )
    return found
