"""Why rows are in quarantine: reasons counted, each with a few rows that have it; from a bounded look at its files."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from scorer.dataset.quarantine import ERRORS, WHY, from_quarantine
from scorer.display.words import plural
from scorer.output.place import Staging, flat_name
from scorer.output.writer import Encoded, _commit, _write
from scorer.storage.encoding import QUARANTINE
from scorer.storage.footers import open_parquet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

BadRow = tuple[str, str, str, int]
"""Reason, stage, file and row number."""


def write_quarantine(staging: Staging, name: str, attempt: str, table: pa.Table, bad: Sequence[BadRow]) -> str:
    """Commit the bad rows, as their file has them, with the reason; returns the file's name."""
    own = f"{flat_name(name)}.{attempt}.parquet"
    fresh = WHY if from_quarantine(table.schema) else ERRORS  # what was in one stays where it came from
    table = table.drop_columns([name for name in fresh.names if name in table.column_names])
    for error, values in zip(ERRORS, zip(*bad, strict=True), strict=True):
        if error.name in fresh.names:
            table = table.append_column(error, pa.array(values, error.type))
    table = table.select([name for name in table.column_names if name not in ERRORS.names] + ERRORS.names)
    tmp = staging.tmp / own
    _write(tmp, Encoded.of(table, QUARANTINE))
    _commit(tmp, staging.quarantine / own, len(bad))
    return own


_FILES, _ROWS, _BATCH = 64, 20_000, 1_000
_REASONS, _EXAMPLES = 12, 3
_COLUMNS, _TEXT = 4, 300
_NUMBERS = re.compile(r"(?<![\w.])-?\d+(\.\d+)?([eE][+-]?\d+)?")
_TOLD = 3  # reasons in a sentence


class Example(NamedTuple):
    """One bad row."""

    file: str
    row: int
    error: str
    values: tuple[tuple[str, str], ...]
    """Some of the columns that were fed."""


@dataclass(slots=True, kw_only=True)
class Reason:
    """Rows that could not be scored for one reason."""

    stage: str
    text: str
    """Its numbers as N: rows whose errors differ in nothing else have one reason."""
    rows: int = 0
    examples: list[Example] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasons:
    """The reasons, the most frequent first."""

    reasons: tuple[Reason, ...]
    others: int
    """Rows with a reason that is not listed."""
    seen: int
    rows: int

    def __str__(self) -> str:
        """What was looked at."""
        return "" if self.seen == self.rows else f"{self.seen:,} of {plural(self.rows, 'bad row')} were looked at."


def in_words(errors: Mapping[str, int]) -> str:
    """The most frequent of these errors, each with its count; those that differ in numbers only are one."""
    kinds: Counter[str] = Counter()
    for error, rows in errors.items():
        kinds[_NUMBERS.sub("N", error)] += rows
    told = [f"{rows:,} x {_cut(text)}" for text, rows in kinds.most_common(_TOLD)]
    rest = kinds.total() - sum(rows for _, rows in kinds.most_common(_TOLD))
    return "; ".join(told + ([f"{rest:,} x something else"] if rest else []))


def reasons(folder: Path, names: Sequence[str], rows: int, fed: Sequence[str]) -> Reasons:
    """Of so many bad rows in these files of the quarantine."""
    found: dict[tuple[str, str], Reason] = {}
    counts: Counter[tuple[str, str]] = Counter()
    step = max(1, -(-len(names) // _FILES))
    for name in names[::step]:
        with open_parquet(str(folder / name)) as parquet:
            shown = [one for one in fed if _plain(parquet.schema_arrow, one)][:_COLUMNS]
            for batch in parquet.iter_batches(_BATCH, columns=[*ERRORS.names, *shown], use_threads=False):
                bad = batch.to_pylist()
                for row in bad:
                    key = (row["_stage"] or "", _NUMBERS.sub("N", row["_error"] or ""))
                    counts[key] += 1
                    reason = found.setdefault(key, Reason(stage=key[0], text=_cut(key[1])))
                    if len(reason.examples) < _EXAMPLES:
                        reason.examples.append(_example(row, shown))
                break  # a file's first thousand rows speak for it
        if counts.total() >= _ROWS:
            break
    listed = counts.most_common(_REASONS)
    for key, count in listed:
        found[key].rows = count
    seen = counts.total()
    others = seen - sum(count for _, count in listed)
    return Reasons(reasons=tuple(found[key] for key, _ in listed), others=others, seen=seen, rows=rows)


def _plain(schema: pa.Schema, name: str) -> bool:
    """Whether the column is there and short enough to show."""
    at = schema.get_field_index(name)
    kind = schema.field(at).type if at >= 0 else pa.null()
    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or at < 0)


def _example(row: dict[str, Any], shown: Sequence[str]) -> Example:
    values = tuple((name, _cut("null" if row[name] is None else str(row[name]))) for name in shown)
    return Example(row["_file"] or "", -1 if row["_row"] is None else row["_row"], _cut(row["_error"] or ""), values)


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}..."
