"""--new-only: compare the input with what an output has already, and plan its next generation.

Only new files are opened. The next generation is scored exactly as the one before: its plan has the same binding,
batches and columns, and other files.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scorer.arrow import common_type, decode_schema, is_encoded
from scorer.dataset import fields, keys, tables
from scorer.dataset.listing import trees
from scorer.dataset.summary import keys_with_other_values, summarise_files
from scorer.display.words import cut, plural, quoted_list
from scorer.errors import CommitError, InputChanged, InputError, OutputExists, PlanError, ScorerError
from scorer.host.versions import versions
from scorer.output.place import StorePlace, missing_parts
from scorer.plan.frozen import FrozenPlan, explain_differences
from scorer.plan.generations import KEY, Difference, difference, recipe, without_generation
from scorer.preflight import freeze
from scorer.preflight.earlier import changed_output
from scorer.preflight.findings import shared_name
from scorer.preflight.freeze import Bound
from scorer.preflight.tuning import Probe
from scorer.storage.stores import changes as changed_files
from scorer.storage.stores import for_arrow

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from scorer.binding.spec import Transform
    from scorer.dataset.conditions import Condition
    from scorer.dataset.summary import Dataset, Input
    from scorer.model.spec import SessionSpec
    from scorer.options.fields import Options
    from scorer.output.place import Place
    from scorer.plan.parts import PlannedFile
    from scorer.preflight.findings import Findings
    from scorer.storage.files import FileId
    from scorer.tables.changes import Changes
    from scorer.tables.snapshot import Snapshot, TableState


_SHOWN = 3  # names of files in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Increment:
    """What a run with --new-only would do to an output that exists, or to an unfinished run."""

    plan: FrozenPlan
    """The last generation's plan, or that of the unfinished one."""
    done: bool = False
    """Whether nothing is new."""
    resumes: bool = False
    """Whether `plan` is unfinished."""
    dataset: Dataset | None = None
    """The new files; None if there are none, or if `plan` is to be finished first."""
    request: dict[str, Any] = field(default_factory=dict)
    """The request of the next generation; its input are the files of all generations."""
    left_out: tuple[str, ...] = ()
    """Files that --where rules out by their keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What a command with --new-only asks for, and where its problems and notes go."""

    found: Findings
    options: Options
    place: Place
    listed: Input
    conditions: Sequence[Condition]
    request: dict[str, Any]
    """The request without its input."""

    def increment(self) -> Increment | None:
        """Return what is to be added to the output; None if there is none yet, or --overwrite replaces it.

        What is in the way becomes a problem.
        """
        try:
            return self._increment()
        except ScorerError:
            if self.options.out.overwrite:
                return None
            raise

    def _increment(self) -> Increment | None:
        place, published = self.place, self.place.published()
        if published is None:
            return self._unfinished(self.listed.identities(), "") if place.unfinished() else None
        problem = _other_recipe(place, published, self.request)
        if problem is None and place.pending() is not None:
            return Increment(plan=published, resumes=True)
        if problem is None:
            missing = missing_parts(place, published)
            problem = changed_output(place, missing) if missing else None
        if problem is not None:
            return self._refuse(published, problem)
        if self.listed.table is not None and published.table is not None:
            return self._of_table(self.listed.table, published.table, published)
        now = self.listed.identities()
        unfinished = self._unfinished(now, published.plan_hash)
        if unfinished is not None:
            return unfinished
        known = {file.path: file for plan in place.generations(published) for file in plan.files}
        differs = difference((file.id for file in known.values()), now)
        problem = _changed(self.options, published, differs)
        if problem is not None:
            return self._refuse(published, problem)
        return self._next(now, published, known, differs)

    def _refuse(self, published: FrozenPlan, problem: ScorerError) -> Increment | None:
        """Add the problem, unless the output is to be replaced."""
        if self.options.out.overwrite:
            return None
        self.found.problems.append(problem)
        return Increment(plan=published)

    def _unfinished(self, now: Iterable[FileId], previous: str) -> Increment | None:
        """Return the unfinished generation after a plan ('': the first one), if its files are still the same."""
        files = {file.path: file for file in now}
        for plan in self.place.unfinished():
            same = recipe(plan.request) == recipe(self.request)
            same = same and plan.request.get("device") == self.request.get("device")
            if not plan.generation or plan.previous != previous or not same:
                continue
            changed = [file.path for file in plan.files if files.get(file.path) != file.id]
            if plan.table is not None:  # a compaction may have replaced its files, which are still there
                changed = changed_files([file.id for file in plan.files])[0]
            if not changed:
                return Increment(plan=plan, resumes=True)
            if previous:
                self.found.notes.append(
                    f"an unfinished run is planned again, because {plural(len(changed), 'file')} of it changed: "
                    f"{quoted_list(changed, _SHOWN)}"
                )
        return None

    def _of_table(self, table: Snapshot, scored: TableState, published: FrozenPlan) -> Increment | None:
        """Return what is to be added from a table: the files with rows that are new since the scored version."""
        unfinished = self._unfinished((), published.plan_hash)
        if unfinished is not None:
            return unfinished
        from scorer.tables.changes import as_added, changes  # noqa: PLC0415 - only for tables

        found = changes(table, scored.version)
        if found.rewritten:
            return self._refuse(published, _rewritten(table, scored, found))
        if found.removed:
            files, names = plural(len(found.removed), "file"), quoted_list(found.removed, _SHOWN)
            self.found.notes.append(f"{files} of the table were deleted; their rows stay in the output: {names}")
        new = as_added(table, found)
        listed = replace(self.listed, files=tuple(tables.listed(new, trees())), table=new)
        every = replace(listed, files=(*self.listed.files, *listed.files))
        matching = _matching(every, self.conditions, decode_schema(published.read_schema))
        chosen = tuple(file for file in listed.files if file.path in matching)
        if not chosen:
            return Increment(plan=published, done=True)
        dataset = summarise_files(replace(listed, files=chosen))
        self.found.problems += _problems(self.place, dataset, published)
        self.found.notes.append(
            f"--new-only adds {plural(len(chosen), 'file')} that are new since {scored.name.partition(', ')[2]}"
        )
        inputs = [published.request["input"], *map(freeze.as_input, dataset.files)]
        request = {**self.request, "input": freeze.digest_of_input(inputs)}
        return Increment(plan=published, dataset=dataset, request=request)

    def _next(
        self, now: Sequence[FileId], published: FrozenPlan, known: Mapping[str, PlannedFile], differs: Difference
    ) -> Increment:
        """Return the next generation, with the summary of its files; what makes it impossible becomes a problem."""
        if differs.gone:
            gone, names = plural(len(differs.gone), "file"), [file.path for file in differs.gone]
            self.found.notes.append(
                f"{gone} of the input cannot be found any more; their rows stay in the output: "
                f"{quoted_list(names, _SHOWN)}"
            )
        matching = _matching(self.listed, self.conditions, decode_schema(published.read_schema))
        new = {file.path for file in differs.new} & matching
        if not new:
            return Increment(plan=published, done=True)
        chosen = tuple(file for file in self.listed.files if file.path in new)
        dataset = summarise_files(replace(self.listed, files=chosen))
        self.found.problems += _problems(self.place, dataset, published)
        self.found.notes += folder_notes(self.place, dataset)
        self.found.notes.append(
            f"--new-only adds {plural(len(new), 'new file')} to {plural(len(known), 'file')} scored already"
        )
        opened = {file.path: file for file in dataset.files}
        scored = [opened.get(file.path) or known[file.path] for file in now if file.path in {*new, *known}]
        left_out = tuple(file.path for file in now if file.path not in {*new, *known})
        inputs = [*map(freeze.as_input, scored), *left_out, *(["gone", file.path] for file in differs.gone)]
        request = {**self.request, "input": freeze.digest_of_input(inputs)}
        return Increment(plan=published, dataset=dataset, left_out=left_out, request=request)


def _other_recipe(place: Place, published: FrozenPlan, request: dict[str, Any]) -> ScorerError | None:
    """Return the error for an output scored with another model, other options or on another kind of storage."""
    before, now = recipe(published.request), recipe(request)
    found = explain_differences(replace(published, request=before), now)
    if not found and published.request.get("limit") is not None:
        found = f"only the first {published.request['limit']:,} rows of its input, by --limit"
    if not found and (published.request.get("table") or [])[:2] != (request.get("table") or [])[:2]:
        found = f"another input: {published.table.name if published.table else 'plain Parquet files'}"
    if not found and published.own_names != isinstance(place, StorePlace):
        found = "file names of an output on an object store" if published.own_names else "file names of one on a disk"
    if not found:
        return None
    return OutputExists(
        "the output was scored in another way, so new files cannot be added to it",
        where=str(place.output),
        expected="the same model, options and kind of storage",
        found=found,
        hint="choose another --output, or score everything again with --overwrite",
    )


def _rewritten(table: Snapshot, scored: TableState, found: Changes) -> ScorerError:
    return InputChanged(
        "rows of the table were updated or deleted since they were scored",
        where=table.location,
        expected=f"rows that were added since {scored.name.partition(', ')[2]}, and no other changes",
        found=f"{plural(len(found.rewritten), 'file')} with other rows in {table.name.partition(', ')[2]}: "
        f"{quoted_list(found.rewritten, _SHOWN)}",
        hint="score everything again with --overwrite",
    )


def _changed(options: Options, published: FrozenPlan, differs: Difference) -> ScorerError | None:
    """Return the error for files that changed or were moved since they were scored."""
    if differs.changed:
        changed = [file.path for file in differs.changed]
        generation = f"generation {published.generation}" if published.generation else "the output"
        return InputChanged(
            "input files changed since they were scored",
            where=quoted_list(options.input),
            expected=f"the files of {generation}, unchanged",
            found=f"{len(changed):,} changed: {quoted_list(changed)}",
            hint="restore them, or score everything again with --overwrite",
        )
    if differs.moved:
        old, new = differs.moved[0]
        return InputChanged(
            "input files were moved since they were scored, so their rows would be scored twice",
            where=quoted_list(options.input),
            expected="files in the places where they were scored",
            found=f"{plural(len(differs.moved), 'file')} with the same name, size and time elsewhere: "
            f"{old.path!r} is now {new.path!r}",
            hint="move them back, or score everything again with --overwrite",
        )
    return None


def _matching(listed: Input, conditions: Sequence[Condition], planned: pa.Schema) -> set[str]:
    """Return the paths of the files that --where does not rule out by their keys.

    A key that the files hold too has their type, which the earlier generation knows.
    """
    types = pa.schema([planned.field(key.name) if key.name in planned.names else key for key in listed.hive])
    wanted = {*keys.matching(listed.files, conditions, listed.hive), *keys.matching(listed.files, conditions, types)}
    return {file.path for file in wanted}


def _problems(place: Place, dataset: Dataset, published: FrozenPlan) -> list[ScorerError]:
    """Return why the new files cannot be scored as the others were."""
    planned = decode_schema(published.read_schema)
    duplicates = [name for name in sorted(dataset.duplicates) if name in planned.names]
    return [
        *_other_columns(dataset, planned),
        *shared_name(dataset, duplicates),
        *keys_with_other_values(dataset, planned.names),
        *_other_folder(dataset, published),
        *column_problems(place, decode_schema(published.output_schema).names, dataset),
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
    for feed in published.binding.feeds:
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


def column_problems(place: Place, columns: Sequence[str], dataset: Dataset) -> list[ScorerError]:
    """Return the error for a column or key whose name is that of the folders of generations."""
    if isinstance(place, StorePlace):
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


def folder_notes(place: Place, dataset: Dataset) -> list[str]:
    """Return a note if the folders of generations of the input are not repeated in the output."""
    dropped = any(without_generation(file.folder) != file.folder for file in dataset.files)
    if not dropped or isinstance(place, StorePlace):
        return []
    return [f"folders named {KEY}=… of the input are not repeated; the output has its own"]


def next_plan(
    options: Options, place: Place, grown: Increment, spec: SessionSpec, transform: Transform | None
) -> FrozenPlan:
    """Return the plan of the next generation: as the last one, with other files and the numbers after its parts."""
    last, dataset = grown.plan, grown.dataset
    if dataset is None:
        raise TypeError(grown)
    bound = Bound(
        binding=last.binding, transform=last.transform, read_schema=decode_schema(last.read_schema),
        output_schema=decode_schema(last.output_schema), joins=last.joins,
    )  # fmt: skip
    speed, row_bytes = _measured(place)
    probe = Probe(
        batch_rows=last.batch_rows, rows_per_s=speed, batch_tokens=last.batch_tokens, nominal_rows_per_s=speed
    )  # fmt: skip
    file_rows = options.out.file_rows
    if options.out.file_bytes is not None:
        file_rows = max(1, int(options.out.file_bytes / row_bytes))
    size = freeze.part_size(options, dataset, bound, probe, frozenset(last.unread), file_rows)
    if last.own_names:
        size = size.at_most(max(1, int(freeze.MOST_STORE_BYTES / row_bytes)))
    files = freeze.planned_files(options, dataset, size)
    mine = last.transform
    if mine is not None and transform is not None:
        mine = replace(mine, folder=transform.folder)
    return replace(
        last,
        request=grown.request,
        files=files,
        table=freeze.table_state(files, dataset),
        left_out=grown.left_out,
        session=spec,
        transform=mine,
        storage=replace(last.storage, stretch_rows=size.target if last.storage.copied else 0),
        generation=max(1, last.generation) + 1,
        first_part=last.first_part + last.n_parts,
        previous=last.plan_hash,
        trial_sessions=0,
        versions=versions(),
        plan_hash="",
    )


def _measured(place: Place) -> tuple[float | None, float]:
    """Return the speed of one thread in rows per second, and the bytes of a row, in earlier generations."""
    path = place.folder / "ledger.parquet"
    try:
        names = ["rows", "scored", "size", "pack_s", "infer_s", "unpack_s"]
        ledger = pq.read_table(for_arrow(path), columns=names)
    except (OSError, pa.ArrowException) as error:
        raise CommitError(
            "the proof beside the output cannot be read",
            where=str(path),
            expected="a ledger",
            found=cut(str(error)),
            hint="restore it, or score everything again with --overwrite",
        ) from error
    sums = {name: pc.sum(ledger[name]).as_py() or 0 for name in names}
    seconds = sums["pack_s"] + sums["infer_s"] + sums["unpack_s"]
    speed = sums["rows"] / seconds if seconds > 0 and sums["rows"] else None
    return speed, max(1.0, sums["size"] / max(1, sums["scored"]))
