"""The Hive keys of the input: read from key=value folders, typed, and compared with --where.

    sales/year=2026/month=13/x.parquet      {"year": "2026", "month": "13"}

Knows only paths. A file that --where rules out by its keys is never opened.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa

from scorer.arrow import values_type
from scorer.dataset import conditions as conditions_
from scorer.display.words import plural, quoted_list
from scorer.errors import InputError
from scorer.locations import is_below, is_url, normal

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from scorer.dataset.conditions import Condition
    from scorer.dataset.listing import Listed


HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")


def keys_of(folder: str) -> dict[str, str | None]:
    """Return the keys in a path (key=value folders), with their values."""
    pairs = (part.partition("=")[::2] for part in folder.split("/") if "=" in part)
    return {key: None if value == HIVE_NULL else unquote(value) for key, value in pairs}


def of(file: Listed) -> dict[str, str | None]:
    """Return the keys of a file with their values as text: those of its table, or those in its path."""
    return keys_of(file.folder) if file.of_table is None else dict(file.of_table.keys)


def below(files: Sequence[Listed], base: str | None) -> tuple[list[Listed], tuple[str, ...]]:
    """Return the files with the key=value folders above their inputs, and the keys there that are not used.

    The folders start below `base`. Without it, they are those directly above each input, if all files then have the
    same keys.
    """
    if base is not None:
        base = normal(base) if is_url(base) else os.path.abspath(base)
        return [_below_base(file, base) for file in files], ()
    above = {file.top: _keys_above(file.top) for file in files}
    longer = [file._replace(folder="/".join(filter(None, (above[file.top], file.folder)))) for file in files]
    if len({tuple(keys_of(file.folder)) for file in longer}) == 1:
        return longer, ()
    return list(files), tuple(dict.fromkeys(key for folder in above.values() for key in keys_of(folder)))


def _keys_above(top: str) -> str:
    """Return the key=value folders at the end of a path."""
    parts = top.split("/")
    first = len(parts)
    while first and parts[first - 1].find("=") > 0:
        first -= 1
    return "/".join(parts[first:])


def _below_base(file: Listed, base: str) -> Listed:
    folder = _relative(os.path.dirname(file.path), base)
    if folder.partition("/")[0] == "..":
        raise InputError(
            "an input is not below --base",
            where=file.path,
            expected=f"a path below {base}",
            found=os.path.dirname(file.path),
            hint="give --base a folder above every input, or leave it out",
        )
    return file._replace(folder="" if folder == "." else folder)


def _relative(folder: str, base: str) -> str:
    """Return the path of a folder from another; it starts with .. if it is not below."""
    if is_url(folder) != is_url(base):
        return ".."
    if is_url(base):
        return folder[len(base) :].lstrip("/") if is_below(folder, base) else ".."
    return os.path.relpath(folder, base).replace(os.sep, "/")


def schema_of(files: Sequence[Listed]) -> pa.Schema:
    """Return the keys as columns: whole numbers if all values of a key are, otherwise text."""
    values = [of(file) for file in files]
    keys = tuple(values[0])
    for file, own in zip(files, values, strict=True):
        if tuple(own) != keys:
            raise InputError(
                "the key=value folders have different keys",
                where=file.path,
                expected=f"the keys {quoted_list(keys)}",
                found=quoted_list(tuple(own)) or "none",
                hint="use one key=value layout for all files",
            )
    fields = []
    for key in keys:
        texts = {own[key] for own in values} - {None}
        whole = texts and all(_WHOLE.fullmatch(text or "") for text in texts)
        fields.append(pa.field(key, pa.int64() if whole else pa.string()))
    return pa.schema(fields)


def matching(files: Sequence[Listed], conditions: Sequence[Condition], types: pa.Schema) -> list[Listed]:
    """Return the files whose keys meet the conditions; if none does, the first one, for its columns.

    A condition on other columns, or with a value of another type, rules out no file.
    """
    named = [condition for condition in conditions if condition.column in types.names]
    if not named:
        return list(files)
    keep = [True] * len(files)
    values = [of(file) for file in files]
    for condition in named:
        name, kind = condition.column, values_type(types.field(condition.column).type)
        try:
            column = pa.chunked_array([pa.array([own[name] for own in values], pa.string()).cast(kind)])
            met = conditions_.mask([condition], pa.table({name: column})).to_pylist()
        except (pa.ArrowException, ValueError, TypeError, ArithmeticError):
            continue
        keep = [one and other for one, other in zip(keep, met, strict=True)]
    return [file for file, kept in zip(files, keep, strict=True) if kept] or [files[0]]


def left_out_note(files: int, conditions: Sequence[Condition], keys: Container[str]) -> str:
    """Describe how many files the conditions ruled out, and by which keys; '' if none."""
    named = dict.fromkeys(condition.column for condition in conditions if condition.column in keys)
    return f"{plural(files, 'file')} left out by --where on {quoted_list(named)}, not opened" if files else ""
