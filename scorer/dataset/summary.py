"""Look at the input: which files, which schema, how many rows and bytes.

Reads footers only; knows nothing about models or Dask. `reader` reads the rows.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from scorer.arrow import values_type
from scorer.dataset.listing import list_files
from scorer.display.words import quoted_list
from scorer.errors import InputError, ScorerError
from scorer.host.crash import note_step
from scorer.storage.files import file_id
from scorer.storage.footers import (
    codec_of,
    decoded_column_bytes,
    dictionary_encoded,
    null_counts,
    open_parquet,
    unreadable,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.storage.files import FileId


HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_FOOTER_THREADS = 8
_SAMPLED_FILES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One input file as the plan saw it."""

    id: FileId
    folder: str
    """Folder inside the input, mirrored in the output; '' at its top."""
    row_groups: tuple[int, ...]
    """Rows of each."""

    @property
    def path(self) -> str:
        """The file's path."""
        return self.id.path

    @property
    def rows(self) -> int:
        """All rows of the file."""
        return sum(self.row_groups)

    @property
    def hive(self) -> dict[str, str | None]:
        """Keys that live in the path."""
        pairs = (part.partition("=")[::2] for part in self.folder.split("/") if "=" in part)
        return {key: None if value == HIVE_NULL else unquote(value) for key, value in pairs}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """What the footers say."""

    files: tuple[File, ...]
    schema: pa.Schema
    """Columns in the files; a dictionary in one file and plain values in another count as values."""
    hive: pa.Schema
    """Columns that live in the paths."""
    variants: tuple[tuple[str, pa.Schema], ...]
    """Files whose schema differs from the first one's."""
    skipped: int
    """Files passed over: hidden, not Parquet, or outputs of earlier runs."""
    column_bytes: dict[str, float]
    """Estimated decoded bytes of a row in each top-level column."""
    codec: str
    row_group_rows: int
    """Of its largest row groups, as far as they were looked at."""
    dictionaries: tuple[str, ...]
    """Leaf paths of fixed width whose dictionary paid in the source."""
    nulls: dict[str, int]
    """Nulls by flat column, where every sampled footer counts them."""
    footer: pq.FileMetaData | None = None
    """Of the first file."""

    @property
    def folder(self) -> str:
        """Where the (first) input begins; paths that stand in columns are relative to it."""
        return _root(self.files[0])

    @property
    def folders(self) -> set[str]:
        """Where the inputs begin."""
        return {_root(file) for file in self.files}

    @property
    def rows(self) -> int:
        """All rows of the input."""
        return sum(file.rows for file in self.files)

    @property
    def columns(self) -> pa.Schema:
        """What a feed or a filter may name: columns of files, then keys of paths."""
        names, twice = set(self.schema.names), self.twice
        keys = [field for field in self.hive if field.name not in names]
        return pa.schema([*(f for f in self.schema if f.name not in twice), *keys], metadata=self.schema.metadata)

    @property
    def twice(self) -> set[str]:
        """Names that several columns share: none of them can be asked for."""
        return {name for name, count in Counter(self.schema.names).items() if count > 1}


def summarise(inputs: Sequence[str], ignore: Sequence[str] = ()) -> Dataset:
    """The dataset behind `inputs`, in their order; `ignore` are folders of our own output.

    Raises one `InputError`, or several as an ExceptionGroup-free list via `problems_of`.
    """
    found, skipped = list_files(inputs, {os.path.realpath(path) for path in ignore})
    first = _footer(*found[0])
    known = None if isinstance(first, ScorerError) else first.schema
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        rest = pool.map(lambda item: _footer(item[0], item[1], known), found[1:])
        footers = [first, *(footer if i < _SAMPLED_FILES else _light(footer) for i, footer in enumerate(rest, 1))]
    problems = [footer for footer in footers if isinstance(footer, ScorerError)]
    if problems:
        more = len(problems) - 1
        rest_ = f" (and {more} more file{'s' if more > 1 else ''})" if more else ""
        one = problems[0]
        raise type(one)(one.what + rest_, one.where, one.expected, one.found, one.hint)
    good = [footer for footer in footers if not isinstance(footer, ScorerError)]
    files = tuple(footer.file for footer in good)
    schema, variants = _one_schema(good)
    sample = [footer.metadata for footer in good if footer.metadata is not None]
    return Dataset(
        files=files,
        schema=schema,
        hive=_hive_schema(files),
        variants=variants,
        skipped=skipped,
        column_bytes=decoded_column_bytes(schema, sample),
        codec=codec_of(sample),
        row_group_rows=max((max(file.row_groups, default=0) for file in files[:_SAMPLED_FILES]), default=0),
        dictionaries=dictionary_encoded(sample),
        nulls=null_counts(sample) if len(good) == len(sample) else {},
        footer=good[0].metadata,
    )


def _root(file: File) -> str:
    """The input that a file was found in."""
    here = os.path.dirname(file.path)
    return here.removesuffix(file.folder).rstrip("/") or "/" if file.folder else here


def problems_of(dataset: Dataset, columns: Sequence[str]) -> list[ScorerError]:
    """Columns in use that are not the same in every file; one problem per file."""
    first = dataset.files[0].path
    problems: list[ScorerError] = []
    hint = "make the files agree, drop the columns with --keep, or score the files apart"
    types = {field.name: field.type for field in dataset.schema}
    for path, schema in dataset.variants:
        ours = {name: types[name] for name in columns if name in types}
        other = Counter(schema.names)
        theirs = {name: schema.field(name).type if other[name] == 1 else None for name in ours}
        odd = [name for name in ours if theirs[name] is None or values_type(ours[name]) != values_type(theirs[name])]
        if odd:
            what = f"columns are not the same in every file: {quoted_list(odd)}"
            expected = ", ".join(f"{name}: {ours[name]}" for name in odd[:3]) + f", as in {first}"
            found = ", ".join(f"{name}: {theirs[name] or 'no such column'}" for name in odd[:3])
            problems.append(InputError(what, path, expected, found, hint))
    return problems


def shared_name(dataset: Dataset, tokens: Sequence[str], *, keep_all: bool) -> list[ScorerError]:
    """A name that several columns have, if anything asks for it."""
    asked = sorted(name for name in dataset.twice if keep_all or any(name in token for token in tokens))
    if not asked:
        return []
    what, hint = f"columns share one name: {quoted_list(asked)}", "rename them, or leave them out with --keep"
    return [InputError(what, dataset.files[0].path, "one column of a name", "several", hint)]


@dataclass(frozen=True, slots=True)
class _Footer:
    """What is kept of one file's footer; of most files little, for there may be 100,000."""

    file: File
    schema: pa.Schema | None
    """None where it is the first file's."""
    metadata: pq.FileMetaData | None


def _light(footer: _Footer | ScorerError) -> _Footer | ScorerError:
    return footer if isinstance(footer, ScorerError) else replace(footer, metadata=None)


def _footer(path: str, folder: str, known: pa.Schema | None = None) -> _Footer | ScorerError:
    note_step(f"reading the footer of {path}")
    try:
        identity = file_id(path)
        with open_parquet(path) as parquet:
            metadata, schema = parquet.metadata, parquet.schema_arrow
        groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        return unreadable(path, error)
    if min(groups, default=0) < 0 or sum(groups) != metadata.num_rows:
        return unreadable(path, ValueError(f"row counts that do not add up: {groups[:5]}, {metadata.num_rows}"))
    file = File(id=identity, folder=folder, row_groups=groups)
    same = known is not None and schema.equals(known, check_metadata=False)
    return _Footer(file, None if same else schema, metadata)


def _one_schema(footers: Sequence[_Footer]) -> tuple[pa.Schema, tuple[tuple[str, pa.Schema], ...]]:
    """The common schema, and the files that differ from the first."""
    schemas = [(footer.file.path, footer.schema) for footer in footers if footer.schema is not None]
    first = schemas[0][1].remove_metadata().with_metadata(_own_metadata(schemas[0][1]))
    variants = tuple(schemas[1:])
    fields = list(first)
    for _, schema in variants:
        for i, ours in enumerate(fields):
            at = schema.get_field_index(ours.name)
            if at >= 0:
                fields[i] = _joined(ours, schema.field(at))
    return pa.schema(fields, metadata=first.metadata), variants


def _joined(ours: pa.Field, theirs: pa.Field) -> pa.Field:
    """A column as both files can hold it; types that differ for real are refused where they are used."""
    if ours.type != theirs.type and values_type(ours.type) == values_type(theirs.type):
        ours = ours.with_type(values_type(ours.type))
    return ours.with_nullable(ours.nullable or theirs.nullable)


def _own_metadata(schema: pa.Schema) -> dict[bytes, bytes]:
    """Schema metadata that still holds for the output: all but what pandas wrote about its frame."""
    return {k: v for k, v in (schema.metadata or {}).items() if k not in {b"pandas", b"ARROW:schema"}}


def _hive_schema(files: Sequence[File]) -> pa.Schema:
    keys = [tuple(file.hive) for file in files]
    if len(set(keys)) > 1:
        other = next(file for file, own in zip(files, keys, strict=True) if own != keys[0])
        what, hint = "the folders name different keys", "use one key=value layout for all files"
        raise InputError(
            what, other.path, f"the keys {quoted_list(keys[0])}", quoted_list(tuple(other.hive)) or "none", hint
        )
    fields = []
    for key in keys[0]:
        values = {file.hive[key] for file in files} - {None}
        whole = values and all(re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", v or "") for v in values)
        fields.append(pa.field(key, pa.int64() if whole else pa.string()))
    return pa.schema(fields)
