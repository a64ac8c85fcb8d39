"""The row filter of --where: parse it, rule out row groups by statistics, mask a table.

    COLUMN op LITERAL      op is one of = == != < <= > >=
    COLUMN in (LITERAL, …)      COLUMN not in (…)      COLUMN is [not] null

A comparison with null is false. Knows nothing about files.
"""

from __future__ import annotations

import datetime as dt
import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from scorer.display.words import did_you_mean, quoted_list
from scorer.errors import MissingColumns, OptionsError, ScorerError, TypeMismatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow.parquet as pq


_NAME = r"""\s*(?:'(?P<quoted>(?:[^']|'')+)'|"(?P<double>[^"]+)"|(?P<bare>[^\s'"=<>!()]+))\s*"""
_COMPARE = re.compile(_NAME + r"(?P<op>==|=|!=|<>|<=|>=|<|>)\s*(?P<literal>.+?)\s*", re.DOTALL)
_IN = re.compile(_NAME + r"\s(?P<op>not\s+in|in)\s*\((?P<literal>.*)\)\s*", re.DOTALL | re.IGNORECASE)
_NULL = re.compile(_NAME + r"\sis\s+(?P<op>not\s+null|null)\s*", re.IGNORECASE)
_LITERAL = re.compile(r"\s*(?:'((?:[^']|'')*)'|([^,']+?))\s*(?:,|$)")
_HINT = (
    'for example --where "amount > 10", --where "\'unit price\' > 10", '
    "--where \"day = '2026-01-31'\", --where \"kind in ('a', 'b')\""
)

Literal = str | int | float | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One parsed condition; `literals` are as typed until `bind` gives them the column's type."""

    column: str
    op: str
    literals: tuple[Literal, ...]
    text: str


def parse(text: str) -> Condition:
    """The condition that `text` says, or an error that shows the form."""
    for pattern in (_NULL, _IN, _COMPARE):
        match = pattern.fullmatch(text)
        if match is None:
            continue
        name = (match["quoted"] or "").replace("''", "'") or match["double"] or match["bare"]
        op = {"=": "==", "<>": "!="}.get(match["op"], " ".join(match["op"].lower().split()))
        if pattern is _NULL:
            return Condition(column=name, op=op, literals=(), text=text)
        parts = [match["literal"]] if pattern is _COMPARE else _items(match["literal"], text)
        return Condition(column=name, op=op, literals=tuple(_literal(p, text) for p in parts), text=text)
    what = "a condition cannot be understood"
    raise OptionsError(what, "--where", "COLUMN op LITERAL", repr(text), _HINT)


def check(conditions: Sequence[Condition], schema: pa.Schema) -> list[ScorerError]:
    """What is wrong with the conditions for a table of this schema."""
    problems: list[ScorerError] = []
    for condition in conditions:
        if condition.column not in schema.names:
            what = f"--where names a column that the input does not have: {condition.column!r}"
            hint = did_you_mean(condition.column, schema.names)
            hint = hint if hint.startswith("did") else _HINT
            problems.append(
                MissingColumns(what, condition.text, "a column of the input", quoted_list(schema.names), hint)
            )
            continue
        kind = schema.field(condition.column).type
        try:
            _scalars(condition, kind)
        except (ValueError, TypeError, ArithmeticError) as error:
            what = f"--where compares {condition.column!r} with something of another type"
            hint = "quote texts and dates with '…', leave numbers bare; other types can only be tested for null"
            problems.append(TypeMismatch(what, condition.text, f"a literal of type {kind}", str(error), hint))
    return problems


def excludes(condition: Condition, group: pq.RowGroupMetaData, kind: pa.DataType, leaf: int) -> bool:
    """Whether statistics prove that no row of the row group can match.

    Only exact, non-float statistics are trusted: NaN is outside every float minimum and maximum.
    """
    statistics = group.column(leaf).statistics
    if statistics is None:
        return False
    if condition.op in {"null", "not null"}:
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
    """True where every condition holds; null counts as false."""
    keep = None
    for condition in conditions:
        column = table[condition.column]
        one = _one(condition, _plain(column))
        keep = one if keep is None else pc.and_(keep, one)
    return pc.fill_null(keep, fill_value=False)


def _one(condition: Condition, column: pa.ChunkedArray) -> pa.ChunkedArray:
    if condition.op == "null":
        return pc.is_null(column)
    if condition.op == "not null":
        return pc.is_valid(column)
    values = [pa.scalar(x, column.type) for x in _scalars(condition, column.type)]
    if condition.op in {"in", "not in"}:
        found = pc.equal(column, values[0])  # one by one: is_in tells 0.0 from -0.0 and finds NaN
        for value in values[1:]:
            found = pc.or_(found, pc.equal(column, value))
        return pc.invert(found) if condition.op == "not in" else found
    compare = {"==": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal}
    compare |= {">": pc.greater, ">=": pc.greater_equal}
    return compare[condition.op](column, values[0])


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Dictionaries as their values."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _items(text: str, whole: str) -> list[str]:
    items, at = [], 0
    while at < len(text):
        match = _LITERAL.match(text, at)
        if match is None or match.end() == at:
            break
        items.append(text[at : match.end()].rstrip().rstrip(",").strip())
        at = match.end()
    if not items or at < len(text):
        what = "a list of values cannot be understood"
        raise OptionsError(what, "--where", "COLUMN in (LITERAL, …)", repr(whole), _HINT)
    return items


def _literal(text: str, whole: str) -> Literal:
    """A quoted text, a number, or a truth value."""
    if quoted := re.fullmatch(r"'((?:[^']|'')*)'", text) or re.fullmatch(r'"([^"]*)"', text):
        return str(quoted[1]).replace("''", "'")
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    if re.search(r"\s(and|or)\s", text, re.IGNORECASE):
        what, hint = (
            "a condition is one comparison",
            "repeat --where: all must hold; for alternatives, for example --where \"kind in ('a', 'b')\"",
        )
        raise OptionsError(what, f"--where {whole!r}", "one comparison", repr(text), hint)
    what = "a value in a condition is neither a number nor quoted"
    raise OptionsError(what, f"--where {whole!r}", "a number, true, false or a quoted text", repr(text), _HINT)


def _scalars(condition: Condition, kind: pa.DataType) -> list[Any]:
    """The literals in the column's type, or ValueError and friends."""
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
        _texty(kind) or moment: text,
    }
    if True not in fits:
        raise TypeError(f"a column of type {kind} cannot be compared")
    if not fits[True]:
        raise TypeError(repr(value))
    if moment:
        return _moment(str(value), kind)
    if pa.types.is_integer(kind) and isinstance(value, float):
        if not value.is_integer():
            raise ValueError(f"{value} is no whole number")
        value = int(value)
    try:
        if pa.types.is_decimal(kind):
            return pa.scalar(str(value)).cast(kind).as_py()
        return pa.scalar(value, kind).as_py()
    except (pa.ArrowInvalid, OverflowError):
        raise ValueError(f"{value!r}, which {kind} cannot hold") from None


def _moment(text: str, kind: pa.DataType) -> Any:  # noqa: ANN401 - a date or a datetime
    """A date or time exactly; what the column's unit would cut off is refused."""
    moment = dt.datetime.fromisoformat(text)
    if pa.types.is_date(kind):
        if moment.time() != dt.time():
            raise ValueError(f"{text!r}, which has a time of day")
        return moment.date()
    if kind.tz and moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    exact = pa.scalar(moment, kind).as_py()
    if exact != moment:
        raise ValueError(f"{text!r}, which {kind} cannot hold")
    return exact


def _texty(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _ordered(kind: pa.DataType) -> bool:
    """Whether a minimum and maximum of this type can be trusted to rule rows out."""
    return bool(pa.types.is_integer(kind) or pa.types.is_date(kind) or pa.types.is_timestamp(kind) or _texty(kind))


def _bounds(statistics: Any, kind: pa.DataType) -> tuple[Any, Any]:  # noqa: ANN401 - pyarrow is untyped
    low, high = statistics.min, statistics.max
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
    except TypeError:  # statistics of another type than the column: prove nothing
        return True
