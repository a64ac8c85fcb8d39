"""The problems and notes that the checks collect."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from scorer.arrow import common_type, decode_schema, is_encoded
from scorer.dataset import fields, keys
from scorer.dataset.summary import keys_with_other_values, problems_of
from scorer.display.words import plural, quoted_list
from scorer.errors import BindingError, InputChanged, InputError, OptionsError, PlanError, PreflightError, ScorerError
from scorer.options.values import within_budget
from scorer.plan.generations import KEY, without_generation
from scorer.storage.footers import special_types, unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scorer.binding.spec import Binding
    from scorer.dataset.conditions import Condition
    from scorer.dataset.summary import Dataset
    from scorer.options.fields import Options
    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.gates import Gates


_SHOWN = 3  # columns in a message
_MANY_FILES, _FEW_ROWS = 10_000, 10_000  # with so few rows a file, opening that many files takes most of the time


@dataclass(slots=True)
class Findings:
    """Problems and notes, in the order in which the checks found them."""

    problems: list[ScorerError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def collecting(self, options: Options) -> Iterator[None]:
        """Add an error to `problems` instead of raising it."""
        try:
            yield
        except PreflightError as several:
            self.problems += several.problems
        except ScorerError as error:
            self.problems.append(error)
        except (pa.ArrowException, UnicodeDecodeError, MemoryError) as error:  # a file that is damaged inside
            self.problems.append(unreadable(", ".join(options.input), error))

    def doubt(self, options: Options, text: str, where: str) -> None:
        """Add a note that the scores may be wrong; with --strict, add a problem instead."""
        if options.scoring.strict:
            self.problems.append(
                PlanError(
                    text,
                    where=where,
                    expected="no warning about the scores (--strict)",
                    found="this warning",
                    hint="run without --strict to accept it",
                )
            )
        else:
            self.notes.append(text)


def bind_gates(
    found: Findings, options: Options, frozen: FrozenPlan | None, dataset: Dataset | None, *, done: bool
) -> Gates | None:
    """Return the gates with their columns; None without gates, without a plan, or if its output is published."""
    if not (options.scoring.gate or options.scoring.gate_warn):
        return None
    if done:
        found.notes.append("--gate has no effect: the output is published already")
    if done or frozen is None:
        return None
    from scorer.scoring.gates import checks  # noqa: PLC0415 - only for runs with gates

    with found.collecting(options):
        columns = None
        if dataset is not None:  # columns of joined tables only if they are kept, because they are not in the files
            columns = pa.schema([field for field in dataset.columns if field not in dataset.joined])
        gates, problems = checks.bind_all(options.scoring.gate, options.scoring.gate_warn, frozen, columns)
        if dataset is not None and gates.read:
            names = decode_schema(gates.read).names
            problems += [*problems_of(dataset, names), *keys_with_other_values(dataset, names)]
        found.problems += problems
        return None if problems else gates
    return None


def type_notes(dataset: Dataset, used: Sequence[str], kept: Sequence[str]) -> list[str]:
    """Return notes about columns whose Parquet type Arrow reads as a simpler one."""
    types = special_types(dataset.schema, dataset.footer) if dataset.footer is not None else {}
    times = [name for name in used if types.get(name) == "INT96"]
    plain = [f"{name!r} ({types[name]})" for name in kept if name in types and name not in times]
    notes = [f"times of type INT96 are read in microseconds, and nanoseconds are cut off: {quoted_list(times)}"]
    more = f" and {len(plain) - 3} more" if len(plain) > 3 else ""  # noqa: PLR2004 - enough for a note
    names = ", ".join(plain[:3]) + more
    other = f"kept columns lose their Parquet type, because Arrow does not know it; their bytes stay the same: {names}"
    return (notes if times else []) + ([other] if plain else [])


def dataset_notes(dataset: Dataset, conditions: tuple[Condition, ...]) -> list[str]:
    """Return notes about an input that can be scored: files left out or skipped, no rows, many small files."""
    left_out = keys.left_out_note(len(dataset.left_out), conditions, dataset.hive.names)
    notes = [left_out] if left_out else []
    if dataset.table is not None:
        counts = f"{plural(len(dataset.files), 'file')}, {plural(dataset.rows, 'row')}"
        deleted = sum(file.deleted for file in dataset.files)
        notes.append(f"{dataset.table.name}: {counts}" + (f", and {deleted:,} deleted ones" if deleted else ""))
    if dataset.skipped:
        files = plural(dataset.skipped, "file")
        notes.append(f"skipped {files} in the input: not Parquet, hidden, or with a name that starts with _")
    if dataset.unused_keys:
        unused = quoted_list(dataset.unused_keys)
        notes.append(f"keys in the path that are no columns, because not all files have the same ones: {unused}")
    if dataset.rows == 0:
        notes.append("the input has no rows; the output will have none")
    if len(dataset.files) >= _MANY_FILES and dataset.rows / len(dataset.files) < _FEW_ROWS:
        notes.append(f"{len(dataset.files):,} small files: opening them will take most of the time; compact them first")
    return notes


def ambiguous_paths(dataset: Dataset, binding: Binding) -> list[ScorerError]:
    """Return a problem if image paths could be relative to several input folders."""
    pictures = [(f, fields.find(dataset.columns, f.columns[0])) for f in binding.feeds if f.kind == "image"]
    paths = [f for f, field in pictures if field is not None and not is_encoded(field.type)]
    if not paths or len(dataset.folders) <= 1:
        return []
    return [
        BindingError(
            f"the image paths in {paths[0].columns[0]!r} could be relative to several folders",
            where=f"tensor {paths[0].tensor!r}",
            expected="one folder",
            found=quoted_list(sorted(dataset.folders)),
            hint="score each folder in a run of its own",
        )
    ]


def known_nulls(options: Options, dataset: Dataset, binding: Binding) -> list[ScorerError]:
    """Return a problem for each feed whose nulls, counted in the footers, already exceed --max-bad-rows."""
    if options.rows.where or options.rows.limit is not None or options.binding.transform is not None:
        return []
    problems: list[ScorerError] = []
    for feed in binding.feeds:
        nulls = {n: dataset.nulls.get(n, 0) for n in feed.columns} if feed.on_null == "error" else {}
        worst = max(nulls, key=lambda name: nulls[name], default="")
        if worst and not within_budget(options.scoring.max_bad_rows, nulls[worst], dataset.rows):
            value = "unknown" if feed.dtype == "string" else "0"
            constant, filtered = f"--on-null '{feed.tensor}={value}'", f'--where "{worst} is not null"'
            problems.append(
                BindingError(
                    f"column {worst!r} has nulls, but input {feed.tensor!r} does not accept them",
                    where=f"tensor {feed.tensor!r}",
                    expected=f"at most {options.scoring.max_bad_rows} bad rows",
                    found=f"{nulls[worst]:,} of {dataset.rows:,} rows",
                    hint=f"{constant} (or another constant), {filtered}, or --max-bad-rows {nulls[worst]}",
                )
            )
    return problems


def shared_name(dataset: Dataset, requested: Sequence[str]) -> list[ScorerError]:
    """Return a problem if the request names columns that share their name with another; `requested` are these."""
    if not requested:
        return []
    return [
        InputError(
            f"columns share one name: {quoted_list(requested)}",
            where=dataset.files[0].path,
            expected="different names",
            found="the same name more than once",
            hint="rename them, or leave them out with --keep",
        )
    ]


def without_keys(dataset: Dataset, kept: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the kept columns that are no keys of folder names (key=value), and a note if files hold such keys too."""
    in_path = set(dataset.hive.names)
    doubled = [name for name in kept if name in in_path and name in dataset.schema.names]
    notes = (
        [f"left out of the output's files, because the folder names hold them: {quoted_list(doubled)}"]
        if doubled
        else []
    )
    return tuple(name for name in kept if name not in in_path), notes


def misfits(dataset: Dataset, published: FrozenPlan) -> list[ScorerError]:
    """Return why the new files cannot be scored as the others were."""
    planned = decode_schema(published.read_schema)
    duplicates = [name for name in sorted(dataset.duplicates) if name in planned.names]
    return [
        *_other_columns(dataset, planned),
        *shared_name(dataset, duplicates),
        *keys_with_other_values(dataset, planned.names),
        *_other_folder(dataset, published),
        *column_problems(decode_schema(published.output_schema).names, dataset, own_names=published.own_names),
    ]


def _other_columns(dataset: Dataset, planned: pa.Schema) -> list[ScorerError]:
    """Return the error for the first new file in which a column is missing or has another type."""
    first = [] if dataset.footer is None else [(dataset.files[0].path, dataset.footer.schema.to_arrow_schema())]
    problems: list[ScorerError] = []
    for path, schema in (*first, *dataset.variants):
        columns = pa.schema([*schema, *(key for key in dataset.hive if key.name not in schema.names)])
        actual = {field.name: fields.find(columns, field.name) for field in planned}
        odd = [field for field in planned if not _fits(field, actual[field.name])]
        if odd:
            shown = odd[:_SHOWN]
            problems.append(
                InputError(
                    f"columns are not as in the files that are scored already: {quoted_list([f.name for f in odd])}",
                    where=path,
                    expected=", ".join(map(_in_words, shown)),
                    found=", ".join(f"{f.name}: no such column" if (own := actual[f.name]) is None else _in_words(own)
                                    for f in shown),
                    hint="make the file agree with the others, or score it separately",
                )
            )  # fmt: skip
    return problems[:1]


def _fits(planned: pa.Field, actual: pa.Field | None) -> bool:
    nulls = actual is not None and actual.nullable and not planned.nullable
    return actual is not None and not nulls and common_type(planned.type, actual.type) is not None


def _in_words(column: pa.Field) -> str:
    return f"{column.name}: {column.type}" + ("" if column.nullable else " without nulls")


def _other_folder(dataset: Dataset, published: FrozenPlan) -> list[ScorerError]:
    """Return the error for paths of pictures that would be relative to another folder than before."""
    columns = decode_schema(published.read_schema)
    tops = sorted({file.top for file in dataset.files})
    for feed in published.feeds:
        column = fields.find(columns, feed.columns[0]) if feed.kind == "image" else None
        if column is not None and not is_encoded(column.type) and tops != [feed.setting("folder")]:
            return [
                InputError(
                    f"the paths of pictures in {feed.columns[0]!r} would be relative to another folder than before",
                    where=f"tensor {feed.tensor!r}",
                    expected=str(feed.setting("folder")),
                    found=quoted_list(tops),
                    hint="name the same input folder again, or choose another --output",
                )
            ]
    return []


def column_problems(columns: Sequence[str], dataset: Dataset, *, own_names: bool) -> list[ScorerError]:
    """Return the error for a column or key whose name is that of the folders of generations.

    There are no such folders if the files have names of their own.
    """
    if own_names:
        return []
    by_path = [file.path for file in dataset.files if KEY in keys.keys_of(without_generation(file.folder))]
    if KEY not in columns and not by_path:
        return []
    return [
        PlanError(
            f"the output would have two columns named {KEY!r}",
            where=by_path[0] if by_path else f"column {KEY!r}",
            expected=f"no such column, because --new-only writes folders named {KEY}=0001",
            found="a key=value folder of that name" if by_path else "a column of that name",
            hint=f"rename it{'' if by_path else ', or leave it out with --keep'}",
        )
    ]


def folder_notes(dataset: Dataset, *, own_names: bool) -> list[str]:
    """Return a note if the folders of generations of the input are not repeated in the output."""
    dropped = any(without_generation(file.folder) != file.folder for file in dataset.files)
    if not dropped or own_names:
        return []
    return [f"folders named {KEY}=… of the input are not repeated; the output has its own"]


def gone_error(where: str, files: Sequence[str]) -> ScorerError:
    """Return the error for files that were removed from the input, if that is not allowed."""
    return InputChanged(
        "input files were removed since they were scored",
        where=where,
        expected="all files that were scored (--on-gone error)",
        found=f"{plural(len(files), 'file')} gone: {quoted_list(files, _SHOWN)}",
        hint="restore them, keep their rows with --on-gone keep, or remove their rows with --on-gone remove",
    )


def kept_with_replaced(options: Options, files: set[str]) -> ScorerError:
    """Return the error for rows that must stay in a file of the output that is replaced."""
    return InputChanged(
        "rows that are kept are in one file of the output with rows that are replaced",
        where=quoted_list(options.input),
        expected=f"all files whose rows are in that file, because --on-gone is {options.out.on_gone}",
        found=f"{plural(len(files), 'file')} gone: {quoted_list(sorted(files), _SHOWN)}",
        hint="restore them, or remove their rows with --on-gone remove",
    )


def nothing_left(where: str, files: Sequence[str]) -> ScorerError:
    """Return the error for an output that would have no file any more."""
    return InputChanged(
        "no file would be left in the output",
        where=where,
        expected="an input with at least one file that is scored, or --on-gone keep",
        found=f"all {plural(len(files), 'file')} that were scored are gone",
        hint="keep their rows with --on-gone keep, or remove the output by hand",
    )


def no_version(where: str, since: str) -> ScorerError:
    """Return the error for --since without an output of a table."""
    return OptionsError(
        "--since needs an output to which rows of a table are added",
        where="--since",
        expected=f"an output of rows of a table at {where}",
        found="no such output",
        hint=f"leave out --since {since}: the first run scores all rows",
    )
