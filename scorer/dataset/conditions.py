"""The row filter of --where: parse it, rule out row groups by statistics, mask a table.

    COLUMN op LITERAL      op is one of = == != < <= > >=
    COLUMN in (LITERAL, …)      COLUMN not in (…)      COLUMN is [not] null

A column may be a field of a struct, such as geo.lat.

A comparison with null is false. Texts are compared as bytes, so a text that is not UTF-8 has its place too.
"""

from __future__ import annotations

import datetime as dt
import operator
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from scorer.dataset import fields
from scorer.display.words import did_you_mean, quoted_list
from scorer.errors import MissingColumns, OptionsError, ScorerError, TypeMismatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow.parquet as pq


_PART = r"""(?:'(?:[^']|'')+'|[^\s'"=<>!().]+)"""
_NAME = (
    r"""\s*(?:'(?P<quoted>(?:[^']|'')*)'|"(?P<double>[^"]+)"|(?P<bare>[^\s'"=<>!()]+)|"""
    rf"""(?P<path>{_PART}(?:\.{_PART})+))\s*"""
)
_COMPARE = re.compile(_NAME + r"(?P<op>==|=|!=|<>|<=|>=|<|>)\s*(?P<literal>.+?)\s*", re.DOTALL)
_IN = re.compile(_NAME + r"\s(?P<op>not\s+in|in)\s*\((?P<literal>.*)\)\s*", re.DOTALL | re.IGNORECASE)
_NULL = re.compile(_NAME + r"\sis\s+(?P<op>not\s+null|null)\s*", re.IGNORECASE)
_LITERAL = re.compile(r"\s*(?:'((?:[^']|'')*)'|([^,']+?))\s*(?:,|$)")
_HINT = (
    'for example --where "amount > 10", --where "\'unit price\' > 10", '
    "--where \"day = '2026-01-31'\", --where \"kind in ('a', 'b')\""
)

NULLS = ("null", "not null")
"""The comparisons that have no literal."""
_FINER = re.compile(r"[.,]\d{6}(\d+)")
"""Digits of a fraction of a second after the sixth, which Python's datetime ignores."""
_MOST_DIGITS = 80  # more than any decimal type has

Literal = str | int | float | bool | Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One parsed condition; its literals are converted to the column's type when they are compared."""

    column: str
    op: str
    literals: tuple[Literal, ...]
    text: str


def parse(text: str) -> Condition:
    """Return the parsed condition, or raise an error with examples."""
    for pattern in (_NULL, _IN, _COMPARE):
        match = pattern.fullmatch(text)
        if match is None:
            continue
        quoted = match["quoted"]
        name = match["double"] or match["bare"] or match["path"] if quoted is None else quoted.replace("''", "'")
        op = {"=": "==", "<>": "!="}.get(match["op"], " ".join(match["op"].lower().split()))
        if pattern is _NULL:
            return Condition(column=name, op=op, literals=(), text=text)
        parts = [match["literal"]] if pattern is _COMPARE else _split_list(match["literal"], text)
        return Condition(column=name, op=op, literals=tuple(_literal(p, text) for p in parts), text=text)
    raise OptionsError(
        "the condition cannot be parsed",
        where="--where",
        expected="COLUMN op LITERAL",
        found=repr(text),
        hint=_HINT,
    )


def parse_all(texts: Sequence[str]) -> tuple[tuple[Condition, ...], list[ScorerError]]:
    """Return the row filters that can be parsed, and the problems of the others."""
    conditions: list[Condition] = []
    problems: list[ScorerError] = []
    for text in texts:
        try:
            conditions.append(parse(text))
        except ScorerError as error:
            problems.append(error)
    return tuple(conditions), problems


def check(conditions: Sequence[Condition], schema: pa.Schema, noun: str = "input") -> list[ScorerError]:
    """Return the problems of the conditions for a table of this schema; `noun` says which table it is."""
    problems: list[ScorerError] = []
    for condition in conditions:
        field = fields.find(schema, condition.column)
        if field is None:
            hint = did_you_mean(condition.column, [*schema.names, *(field.name for field in fields.fields_of(schema))])
            missing = MissingColumns(
                f"--where names a column that the {noun} does not have: {condition.column!r}",
                where=condition.text,
                expected=f"a column of the {noun}",
                found=quoted_list(schema.names),
                hint=hint if hint.startswith("did") else _HINT,
            )
            problems.append(missing)
            continue
        if _is_inside_joined(schema, str(field.name)):
            problems.append(
                TypeMismatch(
                    f"--where compares a field of a struct of a joined table: {condition.column!r}",
                    where=condition.text,
                    expected="a column of the input or of a joined table",
                    found="a field inside one",
                    hint="write the field as a column of the joined table",
                )
            )
            continue
        kind = field.type
        try:
            _scalars(condition, kind)
        except (ValueError, TypeError, ArithmeticError) as error:
            mismatch = TypeMismatch(
                f"--where compares {condition.column!r} with a value of another type",
                where=condition.text,
                expected=f"a literal of type {kind}",
                found=str(error),
                hint="put '…' around texts and dates, not around numbers; other types can only be tested for null",
            )
            problems.append(mismatch)
    return problems


def _is_inside_joined(schema: pa.Schema, name: str) -> bool:
    path = fields.path_of(name) if name not in schema.names else ()
    return bool(path) and fields.is_joined(schema, path[0])


def excludes(condition: Condition, group: pq.RowGroupMetaData, kind: pa.DataType, leaf: int) -> bool:
    """Return whether statistics prove that no row of the row group can match.

    Float statistics are not used: NaN is outside every minimum and maximum.
    """
    statistics = group.column(leaf).statistics
    if statistics is None:
        return False
    if condition.op in NULLS:
        if not statistics.has_null_count:
            return False
        return bool(statistics.null_count == (0 if condition.op == "null" else group.num_rows))
    if not statistics.has_min_max or condition.op == "not in" or not _ordered(kind):
        return False
    low, high = _bounds(statistics, kind)
    if low is None or high is None:
        return False
    return not any(_may_match(condition.op, low, high, x) for x in _scalars(condition, kind))


def mask(conditions: Sequence[Condition], table: pa.Table) -> pa.ChunkedArray:
    """Return True for each row that meets every condition; null counts as false."""
    keep = None
    for condition in conditions:
        column = table[condition.column]
        one = _meets(condition, _decode_dictionary(column))
        keep = one if keep is None else pc.and_(keep, one)
    return pc.fill_null(keep, fill_value=False)


def _meets(condition: Condition, column: pa.ChunkedArray) -> pa.ChunkedArray:
    if condition.op == "null":
        return pc.is_null(column)
    if condition.op == "not null":
        return pc.is_valid(column)
    values = [pa.scalar(x, column.type) for x in _scalars(condition, column.type)]
    if condition.op in {"in", "not in"}:
        found = pc.equal(column, values[0])  # not is_in: it treats 0.0 and -0.0 as different, and NaN as equal to NaN
        for value in values[1:]:
            found = pc.or_(found, pc.equal(column, value))
        return pc.invert(found) if condition.op == "not in" else found
    compare = {"==": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal}
    compare |= {">": pc.greater, ">=": pc.greater_equal}
    return compare[condition.op](column, values[0])


def _decode_dictionary(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the column with dictionaries replaced by their values."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _split_list(text: str, condition: str) -> list[str]:
    items, at = [], 0
    while at < len(text):
        match = _LITERAL.match(text, at)
        if match is None or match.end() == at:
            break
        items.append(text[at : match.end()].rstrip().rstrip(",").strip())
        at = match.end()
    if not items or at < len(text):
        raise OptionsError(
            "the list of values cannot be parsed",
            where="--where",
            expected="COLUMN in (LITERAL, …)",
            found=repr(condition),
            hint=_HINT,
        )
    return items


def _literal(text: str, condition: str) -> Literal:
    """Return the literal as text, number or truth value."""
    if quoted := re.fullmatch(r"'((?:[^']|'')*)'", text) or re.fullmatch(r'"([^"]*)"', text):
        return str(quoted[1]).replace("''", "'")
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    for kind in (int, _fraction):
        try:
            return kind(text)
        except ValueError:
            continue
    if re.search(r"\s(and|or)\s", text, re.IGNORECASE):
        raise OptionsError(
            "a condition must be a single comparison",
            where=f"--where {condition!r}",
            expected="one comparison",
            found=repr(text),
            hint="repeat --where instead of `and`; instead of `or`, for example --where \"kind in ('a', 'b')\"",
        )
    raise OptionsError(
        "a value in a condition is neither a number nor quoted",
        where=f"--where {condition!r}",
        expected="a number, true, false or a quoted text",
        found=repr(text),
        hint=_HINT,
    )


def _fraction(text: str) -> float | Decimal:
    """Return the number as a float, or as a decimal number if a float would round its digits; or ValueError."""
    number = float(text)
    exact = Decimal(text)
    return exact if exact.is_finite() and exact != Decimal(repr(number)) else number


def _scalars(condition: Condition, kind: pa.DataType) -> list[Any]:
    """Return the literals in the column's type; raises ValueError, TypeError or ArithmeticError."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return [_typed(x, kind) for x in condition.literals]


def _typed(value: Literal, kind: pa.DataType) -> Any:  # noqa: ANN401 - any Arrow scalar
    text, truth = isinstance(value, str), isinstance(value, bool)
    number = pa.types.is_integer(kind) or (pa.types.is_floating(kind) and not pa.types.is_float16(kind))
    moment = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    fits = {
        pa.types.is_boolean(kind): truth,
        number: not text and not truth,
        pa.types.is_decimal(kind): not truth,
        _is_text(kind) or moment: text,
    }
    if True not in fits:
        raise TypeError(f"a column of type {kind} cannot be compared")
    if not fits[True]:
        raise TypeError(repr(value))
    if moment:
        return _moment(str(value), kind)
    if isinstance(value, Decimal) and abs(value.adjusted()) > _MOST_DIGITS:
        value = float(value)
    if pa.types.is_integer(kind) and isinstance(value, float | Decimal):
        if value % 1:
            raise ValueError(f"{value} is not a whole number")
        value = int(value)
    try:
        if pa.types.is_decimal(kind):
            return pa.scalar(str(value)).cast(kind).as_py()
        return pa.scalar(float(value) if isinstance(value, Decimal) else value, kind).as_py()
    except (pa.ArrowInvalid, OverflowError):
        shown = str(value) if isinstance(value, Decimal) else repr(value)
        raise ValueError(f"{shown}, which {kind} cannot hold") from None


def _moment(text: str, kind: pa.DataType) -> Any:  # noqa: ANN401 - a date or a datetime
    """Return the date or time; ValueError if the column's unit cannot hold it exactly."""
    moment = dt.datetime.fromisoformat(text)
    finer = _FINER.search(text)
    digits = finer[1].rstrip("0") if finer else ""
    if pa.types.is_date(kind):
        if moment.time() != dt.time() or digits:
            raise ValueError(f"{text!r}, which has a time of day")
        return moment.date()
    if kind.tz and moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    exact = pa.scalar(moment, kind)
    if exact.as_py() != moment or (digits and (kind.unit != "ns" or len(digits) > len("789"))):
        raise ValueError(f"{text!r}, which {kind} cannot hold")
    return pa.scalar(exact.value + int(digits.ljust(3, "0")), kind).as_py() if digits else exact.as_py()


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _ordered(kind: pa.DataType) -> bool:
    """Return whether the minimum and maximum of this type can rule rows out."""
    return bool(pa.types.is_integer(kind) or pa.types.is_date(kind) or pa.types.is_timestamp(kind) or _is_text(kind))


def _bounds(statistics: Any, kind: pa.DataType) -> tuple[Any, Any]:  # noqa: ANN401 - pyarrow is untyped
    try:
        low, high = statistics.min, statistics.max
    except (OverflowError, UnicodeDecodeError):  # outside the years 1 to 9999 of Python's dates, or not UTF-8
        return None, None
    if pa.types.is_timestamp(kind) and kind.tz and getattr(low, "tzinfo", None) is None:
        return None, None
    return low, high


def _may_match(op: str, low: Any, high: Any, value: Any) -> bool:  # noqa: ANN401 - any ordered scalar
    try:
        if op == "!=":
            return not low == high == value
        if op in {"==", "in"}:
            return bool(low <= value <= high)
        compare = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}[op]
        return bool(compare(low if op in {"<", "<="} else high, value))
    except TypeError:  # statistics of another type than the column prove nothing
        return True
