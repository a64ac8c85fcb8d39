"""The table that a run writes: which rows its commit replaces, what the table is like now, and what must fit.

Tables do not have all types of Arrow. A column gets one that stands in for its own, or is refused:

uint8, uint16, uint32          int16, int32, int64: tables have only signed integers
float16, uint64, times ...     refused
lists of a fixed size          lists
dictionaries, views            the values, in their plain layout
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import pyarrow as pa

from scorer.arrow import as_lists, decode_schema, encode_schema, is_list, plain, values_type
from scorer.display.words import plural, quoted_list
from scorer.errors import CommitError, OutputExists, PlanError, ScorerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

NAMES = {"delta": "Delta", "iceberg": "Iceberg"}
_SAME = {
    pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.date32(), pa.string(),
    pa.large_string(), pa.binary(), pa.large_binary(),
}  # fmt: skip
_WIDER = {pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64(), pa.date64(): pa.date32()}
_OF_ICEBERG = {pa.int8(): pa.int32(), pa.int16(): pa.int32()}
"""Types that Delta has and Iceberg has not."""
_DIGITS = 38  # of a decimal
_NOTED = 3  # columns in a note
SCHEME = "iceberg"
"""Of the URL of a table in a catalog: iceberg://CATALOG/NAMESPACE.TABLE."""
ANOTHER_RUN = "another run has added the rows of this request to the table"
"""What is wrong if a commit with the id of this run names the files of another plan."""
Kind = Literal["delta", "iceberg"]
Mode = Literal["new", "append", "overwrite", "replace"]
_SHOWN = 5  # differences in an error


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """A partition column and the values of it whose rows a commit replaces."""

    column: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Existing:
    """What a table is like before a run."""

    version: int
    table_id: str
    schema: pa.Schema
    partition_by: tuple[str, ...]
    commits: int
    """How often the request of the run has been committed."""
    obstacles: tuple[str, ...] = ()
    """Features of the table that keep scorer from adding files, by their names."""
    append_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The table that a run writes; part of the frozen plan."""

    kind: Kind
    mode: Mode
    commit: int
    """How often the request will have been committed by this run's commit: 1, unless it is repeated on purpose."""
    version: int = -1
    """The table's version when the run was planned; -1 for a new table."""
    partition_by: tuple[str, ...] = ()
    replaced: tuple[Replaced, ...] = ()
    """For mode replace: all of these must be met."""
    catalog: str = ""
    """The URL of an Iceberg table in its catalog."""
    schema: str = ""
    """The table's columns, the partition columns last (Arrow's own form, in base64)."""

    @property
    def columns(self) -> pa.Schema:
        """The columns of the rows that are added."""
        return decode_schema(self.schema)

    def to_dict(self) -> dict[str, Any]:
        """Return the target as plan.json has it."""
        return asdict(self)

    def facts(self) -> dict[str, Any]:
        """Return what `scorer plan --json` shows."""
        replaced = [str_of(one) for one in self.replaced]
        shown = {name: getattr(self, name) for name in ("kind", "mode", "version")}
        return shown | {"partition_by": list(self.partition_by), "replaced": replaced}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the target from what `to_dict` returned, after JSON."""
        replaced = tuple(Replaced(column=one["column"], values=tuple(one["values"])) for one in data["replaced"])
        return cls(**{**data, "partition_by": tuple(data["partition_by"]), "replaced": replaced})

    def __str__(self) -> str:
        """Return the kind of table and what a commit does, in words."""
        name = f"{'an' if self.kind == 'iceberg' else 'a'} {NAMES[self.kind]} table"
        if self.mode == "new":
            return f"{name}, which is new"
        if self.version < 0:
            return f"{name}, which is new or empty ({self.mode})"
        doing = {"append": "rows are added", "overwrite": "all rows are replaced"}.get(self.mode)
        if doing is None:
            doing = "the rows with " + " and ".join(str_of(one) for one in self.replaced) + " are replaced"
        return f"{name}, {'snapshot' if self.kind == 'iceberg' else 'version'} {self.version}: {doing}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFile:
    """A file to add: it is in the table's folder already."""

    path: str
    """Inside the table's folder."""
    size: int
    keys: Mapping[str, str | None]
    """The values of the partition columns."""
    statistics: str
    """For the log of a Delta table, see `delta_commit.statistics_of`; those of an Iceberg table are read later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a commit does."""

    files: tuple[NewFile, ...]
    removed: tuple[str, ...]
    """Files of earlier runs that it removes, inside the table's folder."""
    notes: Mapping[str, str]
    """What it says of itself, besides its identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What identifies a commit: the request, how often it has been committed with it, and whose files it adds."""

    request: str
    number: int
    plan: str

    @property
    def app(self) -> str:
        """The id of the request in the table's log."""
        return f"scorer:{self.request}"


def another_run(where: str, identity: Identity) -> CommitError:
    """Return the error for a commit with the id of this run that names the files of another plan."""
    return CommitError(
        ANOTHER_RUN,
        where=where,
        expected="one run of this request",
        found=f"a commit of the request {identity.request[:12]} with the files of another plan",
        hint="nothing is left to do; remove what this run staged with `scorer clean OUT`",
    )


def stored_elsewhere(where: str, files: Sequence[str]) -> CommitError:
    """Return the error for files to remove that the table does not have any more, though it may have their rows."""
    return CommitError(
        "rows that are to be replaced cannot be found in the table any more",
        where=where,
        expected="the files of earlier runs, as they were added",
        found=f"{plural(len(files), 'file')} that another program removed or stored again: {quoted_list(files, 3)}",
        hint="score everything again into another table, or without --new-only with --mode overwrite",
    )


def str_of(one: Replaced) -> str:
    """Return which partitions are replaced, as a condition."""
    return f"{one.column} = {one.values[0]}" if len(one.values) == 1 else f"{one.column} in ({', '.join(one.values)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What is known of the rows before they are scored."""

    keys: pa.Schema
    """The keys in the names of the input's folders, which become partition columns."""
    values: tuple[tuple[tuple[str, str | None], ...], ...] = field(default=())
    """The different values of the keys."""

    def keys_as_in(self, schema: pa.Schema) -> pa.Schema:
        """Return the keys in the types of a table, where it can hold all of their values, which are texts."""
        return pa.schema([self._key_as_in(schema, key) for key in self.keys])

    def _key_as_in(self, schema: pa.Schema, key: pa.Field) -> pa.Field:
        at = schema.get_field_index(key.name)
        kind = key.type if at < 0 else schema.field(at).type
        if kind == key.type or not _is_plain(kind):
            return key
        texts = pa.array([dict(one)[key.name] for one in self.values], pa.string())
        try:
            same = texts.cast(kind).cast(pa.string()).equals(texts)
        except pa.ArrowInvalid:
            return key
        return key.with_type(kind) if same else key


def _is_plain(kind: pa.DataType) -> bool:
    """Return whether a table's log has the values of a type in the form in which Arrow writes them."""
    return bool(pa.types.is_integer(kind) or pa.types.is_date32(kind) or same_type(kind, pa.string()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where the rows of a request go: the table, as it is before the run."""

    where: str
    target: Target
    """Without columns."""
    existing: Existing | None
    rows: Rows
    identified: Callable[[pa.Schema, pa.Schema, str], pa.Schema] | None = None
    """Gives the columns of files the ids that they have in the table; None if the table has none."""

    def fitted(self, schema: pa.Schema) -> tuple[pa.Schema, Target, list[ScorerError], list[str]]:
        """Return the schema of the files in the table's types, the target, and problems and notes on the columns."""
        schema, problems, notes = fit(schema, self.target.kind, self.where)
        keys = self.rows.keys if self.existing is None else self.rows.keys_as_in(self.existing.schema)
        problems += _problems_of_keys(keys, self.where)
        columns = pa.schema([*schema, *keys]).remove_metadata()
        problems += problems_of_schema(columns, self.existing, self.where)
        if self.identified is not None and not problems:
            schema = self.identified(schema, columns, self.where)
        return schema, replace(self.target, schema=encode_schema(columns)), problems, notes


def _problems_of_keys(keys: pa.Schema, where: str) -> list[ScorerError]:
    odd = [f"{key.name}: {key.type}" for key in keys if not _is_plain(key.type)]
    if not odd:
        return []
    return [
        PlanError(
            "scorer does not write partitions by columns of this type",
            where=where,
            expected="partitions by whole numbers, texts or dates",
            found="; ".join(odd),
            hint="write a folder of Parquet files, or partition the input by another column",
        )
    ]


def partition_columns(
    given: Sequence[str], rows: Rows, existing: Existing | None, where: str
) -> tuple[tuple[str, ...], list[ScorerError]]:
    """Return the partition columns of the table, and a problem if the input's folders do not give them."""
    keys = tuple(rows.keys.names)
    wanted = tuple(given) if given else keys if existing is None else existing.partition_by
    if sorted(wanted) != sorted(keys):
        problem = PlanError(
            "the partition columns of the table are not the keys in the input's folder names",
            where=where if not given else "--partition-by",
            expected=f"partitions by {quoted_list(keys)}"
            if keys
            else "no partitions, because no folder of the input is named such as day=2026-01-31",
            found=f"partitions by {quoted_list(wanted)}" if wanted else "a table without partitions",
            hint="name the input's folders like the partitions, or write to another table",
        )
        return wanted, [problem]
    if existing is not None and sorted(wanted) != sorted(existing.partition_by):
        problem = PlanError(
            "the table has other partition columns",
            where=where,
            expected=quoted_list(wanted) or "a table without partitions",
            found=quoted_list(existing.partition_by) or "a table without partitions",
            hint="leave --partition-by out, or write to another table",
        )
        return wanted, [problem]
    return wanted if existing is None else existing.partition_by, []


def problems_with(existing: Existing | None, kind: Kind, mode: Mode, where: str) -> list[ScorerError]:
    """Return what keeps a run from adding its rows to the table, except for columns that differ."""
    if existing is None:
        return []
    if mode == "new":
        return [
            OutputExists(
                "the table exists",
                where=where,
                expected="no table, or --mode",
                found=f"{'an' if kind == 'iceberg' else 'a'} {NAMES[kind]} table, version {existing.version}",
                hint="add --mode append or --mode overwrite, or choose another --output",
            )
        ]
    found = list(existing.obstacles)
    if existing.append_only and mode != "append":
        found.append("appendOnly, with --mode " + mode)
    if not found:
        return []
    return [
        PlanError(
            "scorer cannot write to a table with these features",
            where=where,
            expected="a table to which files can be added as they are",
            found=quoted_list(found, 10),
            hint="write to a table without them, and copy the rows with the table's own tools",
        )
    ]


def problems_of_schema(columns: pa.Schema, existing: Existing | None, where: str) -> list[ScorerError]:
    """Return a problem if the columns of the rows are not those of the table."""
    found = [] if existing is None else differences(columns, existing.schema)
    if not found:
        return []
    return [
        PlanError(
            "the output does not have the columns of the table",
            where=where,
            expected="the names and types of the table's columns",
            found="; ".join(found[:_SHOWN]) + (f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""),
            hint="choose the columns with --keep, --fetch and --prefix, or write to another table",
        )
    ]


def problems_of_replaced(replaced: Sequence[Replaced], partition_by: Sequence[str], rows: Rows) -> list[ScorerError]:
    """Return a problem if a replaced partition is none, or if the input has rows of other partitions."""
    others = [one.column for one in replaced if one.column not in partition_by]
    if others:
        return [
            PlanError(
                "--mode replace names a column that is no partition column",
                where="--mode",
                expected=quoted_list(partition_by) or "a table with partitions",
                found=quoted_list(others),
                hint="replace whole partitions, or use --mode overwrite",
            )
        ]
    outside = [
        values for values in rows.values if not all(dict(values).get(one.column) in one.values for one in replaced)
    ]
    if not outside:
        return []
    first = ", ".join(f"{name}={value}" for name, value in outside[0])
    return [
        PlanError(
            "the input has rows of partitions that are not replaced",
            where="--mode",
            expected="only rows with " + " and ".join(map(str_of, replaced)),
            found=f"{plural(len(outside), 'other partition')}, such as {first}",
            hint="add the same condition with --where, or replace more partitions",
        )
    ]


def refuse_changed(where: str, target: Target, now: Existing) -> None:
    """Raise if the table is no longer one to which the planned rows can be added; nothing is added then."""
    problems = problems_with(now, target.kind, target.mode, where) or problems_of_schema(target.columns, now, where)
    if not problems and sorted(now.partition_by) == sorted(target.partition_by):
        return
    problem = problems[0] if problems else None
    raise CommitError(
        "the table was created or changed during the run; nothing was added to it",
        where=where,
        expected=problem.expected if problem else quoted_list(target.partition_by) or "a table without partitions",
        found=problem.found if problem else f"partitions by {quoted_list(now.partition_by) or 'no column'}",
        hint="remove what this run staged with `scorer clean OUT`, then start again",
    )


def held(kind: pa.DataType, table: str) -> pa.DataType | None:  # noqa: PLR0911 - one line for each kind
    """Return the type in which a table of this kind holds values of a type without a loss; None if there is none."""
    kind = plain(values_type(as_lists(kind)))
    if kind in _SAME or kind in _WIDER:
        kind = _WIDER.get(kind, kind)
        return _OF_ICEBERG.get(kind, kind) if table == "iceberg" else kind
    if pa.types.is_decimal(kind):
        return pa.decimal128(kind.precision, kind.scale) if kind.precision <= _DIGITS and kind.scale >= 0 else None
    if pa.types.is_timestamp(kind):
        return None if kind.unit == "ns" else pa.timestamp("us", "UTC" if kind.tz else None)
    if pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    if pa.types.is_struct(kind):
        fields = _fields(kind, table)
        return pa.struct(fields) if fields else None
    if pa.types.is_map(kind):
        key, item = held(kind.key_type, table), held(kind.item_type, table)
        return None if key is None or item is None else pa.map_(key, kind.item_field.with_type(item))
    if is_list(kind):
        inner = held(kind.value_type, table)
        if inner is None:
            return None
        field = kind.value_field.with_type(inner)
        return pa.large_list(field) if pa.types.is_large_list(kind) else pa.list_(field)
    return None


def _fields(kind: pa.StructType, table: str) -> list[pa.Field] | None:
    types = [held(field.type, table) for field in kind]
    if None in types or not types:
        return None
    return [field.with_type(own) for field, own in zip(kind, types, strict=True)]


def fit(schema: pa.Schema, table: str, where: str) -> tuple[pa.Schema, list[ScorerError], list[str]]:
    """Return the schema in the types of a table, problems for what it cannot hold, and notes on types that change."""
    types = [held(field.type, table) for field in schema]
    refused = [f"{field.name}: {field.type}" for field, kind in zip(schema, types, strict=True) if kind is None]
    problems: list[ScorerError] = []
    if refused:
        problems.append(
            PlanError(
                f"columns cannot be held by {_a(table)} table",
                where=where,
                expected=f"types that {NAMES[table]} has",
                found="; ".join(refused),
                hint="leave them out with --keep; outputs of the model with --fetch",
            )
        )
    problems += _shared_names(schema.names, table, where)
    fields = [field if kind is None else field.with_type(kind) for field, kind in zip(schema, types, strict=True)]
    return pa.schema(fields, metadata=schema.metadata), problems, _notes(schema, fields, table)


def _shared_names(names: Iterable[str], table: str, where: str) -> list[ScorerError]:
    """Return a problem if two names differ only in upper and lower case, which tables do not tell apart."""
    seen: dict[str, str] = {}
    pairs = [(seen[name.lower()], name) for name in names if seen.setdefault(name.lower(), name) != name]
    return [
        PlanError(
            f"column names of {_a(table)} table must differ in more than upper and lower case",
            where=where,
            expected="other names",
            found=quoted_list(pair),
            hint="leave one out with --keep, or rename an output with --fetch TENSOR=NAME or --prefix",
        )
        for pair in pairs[:1]
    ]


def _notes(schema: pa.Schema, fields: list[pa.Field], table: str) -> list[str]:
    """Return a note if the table holds columns in other types than their own; layouts do not count."""
    changed = [
        f"{old.name!r} ({plain(values_type(old.type))} as {new.type})"
        for old, new in zip(schema, fields, strict=True)
        if plain(values_type(old.type)) != new.type
    ]
    more = f" and {len(changed) - _NOTED} more" if len(changed) > _NOTED else ""
    text = f"written in types that {NAMES[table]} has: {', '.join(changed[:_NOTED])}{more}"
    return [text] if changed else []


def _a(table: str) -> str:
    return f"{'an' if table == 'iceberg' else 'a'} {NAMES[table]}"


def differences(ours: pa.Schema, theirs: pa.Schema) -> list[str]:
    """Describe in which columns a table's schema does not fit the rows that are to be added to it."""
    found = []
    for own in ours:
        at = theirs.get_field_index(own.name)
        if at < 0:
            found.append(f"{own.name}: {own.type} is not in the table")
            continue
        other = theirs.field(at)
        if not same_type(own.type, other.type):
            found.append(f"{own.name}: {own.type}, in the table {other.type}")
        elif own.nullable and not other.nullable:
            found.append(f"{own.name}: may be null, in the table not")
    return found + [f"{other.name}: only in the table" for other in theirs if other.name not in ours.names]


def same_type(one: pa.DataType, other: pa.DataType) -> bool:
    """Return whether two types hold the same values in a table; layouts and the names inside lists do not count."""
    one, other = plain(values_type(one)), plain(values_type(other))
    for pair in ((pa.string(), pa.large_string()), (pa.binary(), pa.large_binary())):
        if one in pair and other in pair:
            return True
    if is_list(one) and is_list(other):
        return same_type(one.value_type, other.value_type)
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        names = [field.name for field in one] == [field.name for field in other]
        return names and all(same_type(a.type, b.type) for a, b in zip(one, other, strict=True))
    if pa.types.is_map(one) and pa.types.is_map(other):
        return same_type(one.key_type, other.key_type) and same_type(one.item_type, other.item_type)
    return bool(one == other)
