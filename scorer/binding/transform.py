"""The user's own function between reading and feeding: frame in, frame out, row by row the same ones."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from scorer.binding.spec import Transform
from scorer.errors import BindingError, InputChanged, OptionsError, ScorerError

if TYPE_CHECKING:
    from collections.abc import Callable


_HINT = "--transform package.module:function, importable from the current folder"
_NULLABLE = {pa.bool_(): pd.BooleanDtype()} | {
    pa.type_for_alias(f"{sign}int{bits}"): pd.api.types.pandas_dtype(f"{sign.upper()}Int{bits}")
    for sign in ("", "u")
    for bits in (8, 16, 32, 64)
}


def find(name: str) -> Transform:
    """The function as it is now; refused when it cannot be imported."""
    folder = os.getcwd()
    return Transform(name=name, folder=folder, digest=_digest(_imported(name, folder)))


def apply(transform: Transform, table: pa.Table) -> tuple[pa.Table, dict[int, str]]:
    """What the function makes of the rows, and those for which it raises."""
    function = _load(transform)
    frame = pd.DataFrame({name: _series(table[name]) for name in transform.reads})
    bad: dict[int, str] = {}
    pieces = list(_pieces(function, frame, bad, name=transform.name))
    if not pieces:
        return table.schema.empty_table(), bad
    return pa.concat_tables(pieces, promote_options="permissive"), bad


def _series(column: pa.ChunkedArray) -> pd.Series:
    """As pandas itself reads it, but whole numbers and truth values with nulls stay what they are."""
    exact = column.null_count and (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type))
    return column.to_pandas(types_mapper=_NULLABLE.get if exact else None)  # type: ignore[no-any-return]


def realign(table: pa.Table, bad: dict[int, str], rows: int) -> pa.Table:
    """The good rows at their places again, null where a row is bad."""
    if not bad:
        return table
    places, at = [], 0
    for row in range(rows):
        places.append(None if row in bad else at)
        at += row not in bad
    return table.take(pa.array(places, pa.int64()))


def conform_transformed(table: pa.Table, schema: pa.Schema, name: str) -> pa.Table:
    """The planned columns in the planned types."""
    gone = [column for column in schema.names if column not in table.column_names]
    if gone:
        what, hint = f"the transform did not give column {gone[0]!r} this time", "make it give the same columns always"
        raise BindingError(what, name, ", ".join(schema.names), ", ".join(table.column_names), hint)
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        what, hint = "the transform gave another type this time", "make it cast its columns"
        raise BindingError(what, name, str(schema).replace("\n", ", "), str(error)[:200], hint) from error


def _pieces(
    function: Callable[[pd.DataFrame], Any], frame: pd.DataFrame, bad: dict[int, str], *, name: str, first: int = 0
) -> list[pa.Table]:
    """The function over the frame, halved where it raises until the row stands alone."""
    try:
        given = function(frame.reset_index(drop=True))
    except ScorerError:
        raise
    except Exception as error:  # noqa: BLE001 - the user's code; a bad row costs only itself
        if len(frame) <= 1:
            bad[first] = f"{name}: {type(error).__name__}: {str(error)[:200]}"
            return []
        half = len(frame) // 2
        before = _pieces(function, frame.iloc[:half], bad, name=name, first=first)
        return before + _pieces(function, frame.iloc[half:], bad, name=name, first=first + half)
    return [_checked(given, len(frame), name)]


def _checked(given: object, rows: int, name: str) -> pa.Table:
    """A frame with the same rows in the same order, as a table."""
    if not isinstance(given, pd.DataFrame):
        raise _broken(name, type(given).__name__)
    if len(given) != rows or not given.index.equals(pd.RangeIndex(rows)):
        found = f"{len(given)} rows for {rows}" if len(given) != rows else "another order, or another index"
        raise _broken(name, found)
    if len(set(map(str, given.columns))) != given.shape[1]:
        raise _broken(name, "two columns of one name")
    return pa.Table.from_pandas(given.rename(columns=str), preserve_index=False).replace_schema_metadata()


def _broken(name: str, found: str) -> BindingError:
    what, hint = "the transform does not keep to its task", "it gets a frame and gives one with the same rows and index"
    return BindingError(what, name, "a frame with the same rows in the same order", found, hint)


def _load(transform: Transform) -> Callable[[pd.DataFrame], Any]:
    function = _imported(transform.name, transform.folder)
    if transform.digest and _digest(function) != transform.digest:
        what, hint = "the transform is not the one that was planned", "restore it, or start again with --overwrite"
        raise InputChanged(what, transform.name, transform.digest[:16], _digest(function)[:16], hint)
    return function


@functools.lru_cache(maxsize=8)
def _imported(name: str, folder: str) -> Callable[[pd.DataFrame], Any]:
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise OptionsError(
            "the transform is not a function's name", "--transform", "package.module:function", repr(name), _HINT
        )
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except Exception as error:
        text = f"{type(error).__name__}: {str(error)[:200]}"
        raise OptionsError(
            "the transform cannot be imported", f"--transform {name}", "a function", text, _HINT
        ) from error
    if not callable(found):
        raise OptionsError(
            "the transform is no function", f"--transform {name}", "a function", type(found).__name__, _HINT
        )
    return found


@functools.lru_cache(maxsize=8)
def _digest(function: Callable[..., Any]) -> str:
    """Of the file that the function's module was read from; of what it imports nothing is known."""
    path = getattr(sys.modules.get(getattr(function, "__module__", "")), "__file__", None)
    if path is None or not os.path.isfile(path):
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
