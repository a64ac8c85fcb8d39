"""Apply the user's function between reading and feeding: a frame in, a frame of the same rows out."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from scorer.arrow import is_encoded, python_values, values_type
from scorer.binding.features.packed import NOT_UTF8
from scorer.binding.spec import Transform
from scorer.dataset.fields import find as find_column
from scorer.dataset.fields import select
from scorer.display.words import cut
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
    """Import the function and return it with the digest of its source; `OptionsError` if it cannot be imported."""
    folder = os.getcwd()
    return Transform(name=name, folder=folder, digest=_digest(_imported(name, folder)))


def function_of(transform: object) -> Callable[[pd.DataFrame], Any] | None:
    """Return a function that is given as such or by its name, or None; `OptionsError` for anything else."""
    if transform is None or callable(transform):
        return transform
    if not isinstance(transform, str):
        raise OptionsError(
            "the transform is not a function",
            where="transform",
            expected="a function, or its name as package.module:function",
            found=type(transform).__name__,
            hint="pass transform=function",
        )
    return _imported(transform, os.getcwd())


def name_of(function: Callable[..., Any]) -> str:
    """Return the name of a function for errors."""
    return str(getattr(function, "__qualname__", type(function).__name__))


def apply_function(function: Callable[[pd.DataFrame], Any], frame: pd.DataFrame) -> tuple[pa.Table, dict[int, str]]:
    """Apply a function to a frame; return the new rows, and the reason for each row on which it raises."""
    bad: dict[int, str] = {}
    pieces = _apply_halving(function, frame, bad, name=name_of(function))
    return (pa.concat_tables(pieces, promote_options="permissive") if pieces else pa.table({})), bad


def as_pandas(table: pa.Table) -> pd.DataFrame:
    """Return the table as the frame that a transform gets."""
    return pd.DataFrame({name: _series(table[name]) for name in table.column_names})


def apply(transform: Transform, table: pa.Table) -> tuple[pa.Table, dict[int, str]]:
    """Apply the function to a table; return the new rows, and the reason for each row on which it raises."""
    function = _load(transform)
    try:
        frame = as_pandas(table.select(transform.reads))
    except (UnicodeDecodeError, pa.ArrowException):
        unread = _undecodable_rows(table.select(transform.reads))
        if not unread:
            raise
        good = [row for row in range(table.num_rows) if row not in unread]
        given, failed = apply(transform, _rows_of(table, good)) if good else (table.slice(0, 0), {})
        return given, unread | {good[row]: reason for row, reason in failed.items()}
    bad: dict[int, str] = {}
    pieces = list(_apply_halving(function, frame, bad, name=transform.name))
    if not pieces:
        return table.schema.empty_table(), bad
    return pa.concat_tables(pieces, promote_options="permissive"), bad


def _undecodable_rows(table: pa.Table) -> dict[int, str]:
    """Return the rows that pandas cannot hold because of a text that is not UTF-8, with the reason."""
    bad: dict[int, str] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if not is_encoded(values_type(column.type)):
            for row, value in enumerate(python_values(column)):
                if isinstance(value, bytes):
                    bad.setdefault(row, f"{NOT_UTF8} in column {name!r}")
    return bad


def _rows_of(table: pa.Table, rows: list[int]) -> pa.Table:
    """Return these rows; dictionaries keep only the categories that these rows have."""
    taken = table.take(pa.array(rows, pa.int64()))
    columns = [
        column.cast(column.type.value_type).dictionary_encode() if pa.types.is_dictionary(column.type) else column
        for column in taken.columns
    ]
    return pa.Table.from_arrays(columns, names=table.column_names)


def _series(column: pa.ChunkedArray) -> pd.Series:
    """Convert a column as pandas reads it, except that integers and booleans with nulls keep their type."""
    exact = column.null_count and (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type))
    return column.to_pandas(types_mapper=_NULLABLE.get if exact else None)  # type: ignore[no-any-return]


def realign(table: pa.Table, bad: dict[int, str], rows: int) -> pa.Table:
    """Return `rows` rows: the good rows at their original positions, nulls in place of the bad ones."""
    if not bad:
        return table
    places, at = [], 0
    for row in range(rows):
        places.append(None if row in bad else at)
        at += row not in bad
    return table.take(pa.array(places, pa.int64()))


def conform_transformed(table: pa.Table, schema: pa.Schema, name: str) -> pa.Table:
    """Return the planned columns in the planned types; `BindingError` if the function returned others."""
    missing = [column for column in schema.names if find_column(table.schema, column) is None]
    if missing:
        raise BindingError(
            f"the transform did not return column {missing[0]!r}",
            where=name,
            expected=", ".join(schema.names),
            found=", ".join(table.column_names),
            hint="return the same columns in every call",
        )
    try:
        return select(table, schema.names).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise BindingError(
            "the transform returned a column of another type",
            where=name,
            expected=str(schema).replace("\n", ", "),
            found=cut(str(error)),
            hint="cast the columns in the function, so that their types do not depend on the rows",
        ) from error


def _apply_halving(
    function: Callable[[pd.DataFrame], Any], frame: pd.DataFrame, bad: dict[int, str], *, name: str, first: int = 0
) -> list[pa.Table]:
    """Apply the function to the frame. If it raises, halve the frame until the row that causes it is alone."""
    try:
        result = function(frame.reset_index(drop=True))
    except ScorerError:
        raise
    except Exception as error:  # noqa: BLE001 - the user's code; only the bad row may fail
        if len(frame) <= 1:
            bad[first] = f"{name}: {type(error).__name__}: {cut(str(error))}"
            return []
        half = len(frame) // 2
        before = _apply_halving(function, frame.iloc[:half], bad, name=name, first=first)
        return before + _apply_halving(function, frame.iloc[half:], bad, name=name, first=first + half)
    return [_checked_table(result, len(frame), name)]


def _checked_table(result: object, rows: int, name: str) -> pa.Table:
    """Return the result as a table; `BindingError` if it is not a frame of the same rows in the same order."""
    if not isinstance(result, pd.DataFrame):
        raise _bad_result(name, type(result).__name__)
    if len(result) != rows or not result.index.equals(pd.RangeIndex(rows)):
        found = f"{len(result)} rows for {rows}" if len(result) != rows else "another order, or another index"
        raise _bad_result(name, found)
    if len(set(map(str, result.columns))) != result.shape[1]:
        raise _bad_result(name, "two columns with the same name")
    return pa.Table.from_pandas(result.rename(columns=str), preserve_index=False).replace_schema_metadata()


def _bad_result(name: str, found: str) -> BindingError:
    return BindingError(
        "the transform's result cannot be used",
        where=name,
        expected="a frame with the same rows in the same order",
        found=found,
        hint="return a pandas DataFrame with the same rows and index as the argument",
    )


def _load(transform: Transform) -> Callable[[pd.DataFrame], Any]:
    function = _imported(transform.name, transform.folder)
    if transform.digest and _digest(function) != transform.digest:
        raise InputChanged(
            "the transform is not the one that was planned",
            where=transform.name,
            expected=transform.digest[:16],
            found=_digest(function)[:16],
            hint="restore it, or start again with --overwrite",
        )
    return function


@functools.lru_cache(maxsize=8)
def _imported(name: str, folder: str) -> Callable[[pd.DataFrame], Any]:
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise OptionsError(
            "the transform is not the name of a function",
            where="--transform",
            expected="package.module:function",
            found=repr(name),
            hint=f"did you mean {':'.join(name.rsplit('.', 1))!r}?" if not colon and "." in name.strip(".") else _HINT,
        )
    if folder not in sys.path:
        sys.path.append(folder)  # at the end, so that a file there cannot replace a package
    try:
        found = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except Exception as error:
        raise OptionsError(
            "the transform cannot be imported",
            where=f"--transform {name}",
            expected="a function",
            found=f"{type(error).__name__}: {cut(str(error))}",
            hint=_HINT,
        ) from error
    if not callable(found):
        raise OptionsError(
            "the transform is not a function",
            where=f"--transform {name}",
            expected="a function",
            found=type(found).__name__,
            hint=_HINT,
        )
    return found


@functools.lru_cache(maxsize=8)
def _digest(function: Callable[..., Any]) -> str:
    """Return the digest of the file of the function's module; the modules that it imports are not covered."""
    path = getattr(sys.modules.get(getattr(function, "__module__", "")), "__file__", None)
    if path is None or not os.path.isfile(path):
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
