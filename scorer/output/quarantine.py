"""Quarantine: write the rows that could not be scored, and count the reasons in a sample of its files."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from scorer.arrow import python_values
from scorer.dataset.quarantine import ERRORS, WHY, from_quarantine
from scorer.display.words import cut, plural
from scorer.output.place import Staging, flat_name
from scorer.output.writer import Encoded, write_file
from scorer.storage.encoding import QUARANTINE
from scorer.storage.footers import open_parquet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scorer.storage.stores import AnyPath

BadRow = tuple[str, str, str, int]
"""Error, stage, file and row number."""


def write_quarantine(staging: Staging, name: str, attempt: str, table: pa.Table, bad: Sequence[BadRow]) -> str:
    """Commit the bad rows, with all their columns and the error; return the file's name."""
    file_name = f"{flat_name(name)}.{attempt}.parquet"
    new = WHY if from_quarantine(table.schema) else ERRORS  # rows of a quarantine keep their first _file and _row
    table = table.select([i for i, name in enumerate(table.column_names) if name not in new.names])
    for error, values in zip(ERRORS, zip(*bad, strict=True), strict=True):
        if error.name in new.names:
            table = table.append_column(error, pa.array(values, error.type))
    own = [i for i, name in enumerate(table.column_names) if name not in ERRORS.names]  # two may have one name
    table = table.select([*own, *map(table.column_names.index, ERRORS.names)])
    write_file(staging.tmp / file_name, staging.quarantine / file_name, Encoded.of(table, QUARANTINE))
    return file_name


_FILES, _ROWS, _FILE_ROWS = 64, 20_000, 1_000  # at most so many files are read, rows in all, and rows of a file
_REASONS, _EXAMPLES = 12, 3  # at most so many reasons, and examples of each
_COLUMNS, _TEXT = 4, 300  # at most so many columns of an example, and characters of a value
_NUMBERS = re.compile(r"(?<![\w.])(?<![A-Za-z]-)-?\d+(\.\d+)?([eE][+-]?\d+)?")
_OTHERS = " (or other numbers)"  # after the first of several errors that differ only in numbers
_SUMMARY_REASONS = 3  # reasons that a summary lists


class Example(NamedTuple):
    """One bad row, as an example of its reason."""

    file: str
    row: int
    error: str
    values: tuple[tuple[str, str], ...]
    """Names and values of some fed columns."""


@dataclass(slots=True, kw_only=True)
class Reason:
    """One reason why rows could not be scored."""

    stage: str
    text: str
    """The error with N for each number, so that errors which differ only in numbers are one reason."""
    rows: int = 0
    examples: list[Example] = field(default_factory=list)

    @property
    def words(self) -> str:
        """The error with its numbers; if they differ, those of the first row."""
        errors = [example.error for example in self.examples]
        return self.text if not errors else f"{errors[0]}{_OTHERS if len(set(errors)) > 1 else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasons:
    """The reasons, the most frequent first, counted in a sample of the bad rows."""

    reasons: tuple[Reason, ...]
    others: int
    """Rows with a reason that is not listed."""
    seen: int
    """Rows in the sample."""
    rows: int
    """Bad rows in all."""

    def __str__(self) -> str:
        """Return how large the sample is; '' if it holds all bad rows."""
        return "" if self.seen == self.rows else f"From a sample: {self.seen:,} of {plural(self.rows, 'bad row')}."


def in_words(errors: Mapping[str, int]) -> str:
    """Return the most frequent errors with their counts; of errors that differ only in numbers, the first one."""
    kinds: Counter[str] = Counter()
    alike: dict[str, list[str]] = {}
    for error, rows in errors.items():
        kind = _NUMBERS.sub("N", error)
        kinds[kind] += rows
        alike.setdefault(kind, []).append(error)
    frequent = [
        f"{rows:,} x {_shorten(alike[kind][0])}{_OTHERS if len(alike[kind]) > 1 else ''}"
        for kind, rows in kinds.most_common(_SUMMARY_REASONS)
    ]
    rest = kinds.total() - sum(rows for _, rows in kinds.most_common(_SUMMARY_REASONS))
    return "; ".join(frequent + ([f"{rest:,} x other errors"] if rest else []))


def reasons(folder: AnyPath, names: Sequence[str], rows: int, fed: Sequence[str]) -> Reasons:
    """Count the reasons of the bad rows, `rows` in all, in a sample of these quarantine files; `fed` names columns."""
    by_key: dict[tuple[str, str], Reason] = {}
    counts: Counter[tuple[str, str]] = Counter()
    step = max(1, -(-len(names) // _FILES))
    for name in names[::step]:
        with open_parquet(str(folder / name)) as parquet:
            shown = [column for column in fed if _is_short(parquet.schema_arrow, column)][:_COLUMNS]
            for batch in parquet.iter_batches(_FILE_ROWS, columns=[*ERRORS.names, *shown], use_threads=False):
                for values in zip(*map(python_values, batch.columns), strict=True):
                    row = dict(zip(batch.schema.names, values, strict=True))
                    key = (row["_stage"] or "", _NUMBERS.sub("N", row["_error"] or ""))
                    counts[key] += 1
                    reason = by_key.setdefault(key, Reason(stage=key[0], text=_shorten(key[1])))
                    if len(reason.examples) < _EXAMPLES:
                        reason.examples.append(_example(row, shown))
                break  # the first rows of each file are a large enough sample
        if counts.total() >= _ROWS:
            break
    listed = counts.most_common(_REASONS)
    for key, count in listed:
        by_key[key].rows = count
    seen = counts.total()
    others = seen - sum(count for _, count in listed)
    return Reasons(reasons=tuple(by_key[key] for key, _ in listed), others=others, seen=seen, rows=rows)


def _is_short(schema: pa.Schema, name: str) -> bool:
    """Return whether the column exists and its values are short enough to show."""
    at = schema.get_field_index(name)
    kind = schema.field(at).type if at >= 0 else pa.null()
    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or at < 0)


def _example(row: dict[str, Any], shown: Sequence[str]) -> Example:
    values = tuple((name, _shorten("null" if row[name] is None else str(row[name]))) for name in shown)
    at = -1 if row["_row"] is None else row["_row"]
    return Example(row["_file"] or "", at, _shorten(row["_error"] or ""), values)


def _shorten(text: str) -> str:
    return cut(text, _TEXT)
