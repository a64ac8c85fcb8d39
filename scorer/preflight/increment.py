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

from scorer.arrow import decode_schema
from scorer.binding.outputs import Kept
from scorer.dataset import keys, tables
from scorer.dataset.listing import trees
from scorer.dataset.summary import summarise_files
from scorer.display.words import cut, plural, quoted_list
from scorer.errors import CommitError, InputChanged, OutputExists, ScorerError
from scorer.host.versions import versions
from scorer.output import publish
from scorer.output.place import StorePlace
from scorer.plan.frozen import FrozenPlan, explain_differences, hash_of
from scorer.plan.generations import Difference, difference, recipe
from scorer.plan.history import gone_files, known_files, live_parts, with_shared_parts
from scorer.preflight import freeze
from scorer.preflight.earlier import changed_output
from scorer.preflight.findings import (
    column_problems,
    folder_notes,
    gone_error,
    kept_with_replaced,
    misfits,
    no_version,
    nothing_left,
)
from scorer.preflight.models.bound import Bound
from scorer.preflight.tuning import Probe, combined
from scorer.storage.stores import changes as changed_files
from scorer.storage.stores import for_arrow
from scorer.tables.snapshot import TableState
from scorer.tables.target import Rows, partition_columns, problems_of_schema, problems_with

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scorer.binding.spec import Transform
    from scorer.dataset.conditions import Condition
    from scorer.dataset.listing import Listed
    from scorer.dataset.summary import Dataset, Input
    from scorer.model.spec import SessionSpec
    from scorer.options.fields import Options, OutputOptions
    from scorer.output.place import Place
    from scorer.plan.parts import PlannedFile
    from scorer.preflight.cutting import Size
    from scorer.preflight.findings import Findings
    from scorer.storage.files import FileId
    from scorer.tables.snapshot import Snapshot
    from scorer.tables.target import Target


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
    """The files to score; None if there are none, or if `plan` is to be finished first."""
    request: dict[str, Any] = field(default_factory=dict)
    """The request of the next generation, whose input are the files of all generations; empty if there is none."""
    table: Snapshot | None = None
    """The table that is read."""
    target: Target | None = None
    """The table that is written."""
    left_out: tuple[str, ...] = ()
    """Files that --where rules out by their keys."""
    replaced: tuple[str, ...] = ()
    """Files whose earlier rows are removed; some of them are scored again."""
    gone: tuple[str, ...] = ()
    """Files that the table does not have any more, and whose rows stay."""

    @property
    def grows(self) -> bool:
        """Whether there is a next generation."""
        return bool(self.request)


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
        if self.options.out.since and (published is None or published.table is None):
            self.found.problems.append(no_version(str(place.output), self.options.out.since))
            return None
        if published is None:
            return self._unfinished(self.listed.identities(), "") if place.unfinished() else None
        problem = _other_recipe(place, published, self.request)
        if problem is None and place.pending() is not None:
            return Increment(plan=published, resumes=True)
        if problem is None:
            missing = missing_of(place, published)
            problem = changed_output(place, missing) if missing else None
        if problem is not None:
            return self._refuse(published, problem)
        of_table = self.listed.table is not None and published.table is not None
        now = self.listed.identities()
        unfinished = self._unfinished(() if of_table else now, published.plan_hash)
        if unfinished is not None:
            return unfinished
        plans = place.generations(published)
        grown = self._of_table(published, plans) if of_table else self._of_files(now, published, plans)
        if isinstance(grown, Increment) and grown.replaced and grown.dataset is None and published.target is None:
            lost = not known_files(plans).keys() - set(grown.replaced)
            grown = nothing_left(str(place.output), grown.replaced) if lost else grown
        return self._refuse(published, grown) if isinstance(grown, ScorerError) else self._with_target(grown, plans)

    def _refuse(self, published: FrozenPlan, problem: ScorerError) -> Increment | None:
        """Add the problem, unless the output is to be replaced."""
        if self.options.out.overwrite:
            return None
        self.found.problems.append(problem)
        return Increment(plan=published)

    def _unfinished(self, now: Iterable[FileId], previous: str) -> Increment | None:
        """Return the unfinished generation after a plan ('': the first one), if its files are still the same."""
        files = {file.path: file for file in now}
        out = self.options.out
        for plan in self.place.unfinished():
            same = recipe(plan.request) == recipe(self.request)
            same = same and plan.request.get("device") == self.request.get("device")
            same = same and (not plan.replaced or "rescore" in out.on_changed or "remove" in out.on_gone)
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

    def _of_files(
        self, now: Sequence[FileId], published: FrozenPlan, plans: Sequence[FrozenPlan]
    ) -> Increment | ScorerError:
        """Return the next generation from plain files, or why there is none."""
        known, out = known_files(plans), self.options.out
        differs = difference((file.id for file in known.values()), now)
        problem = _changed(self.options, published, differs)
        if problem is not None:
            return problem
        gone = {file.path for file in differs.gone}
        changed = {file.path for file in differs.changed}
        replaced = with_shared_parts(plans, changed | (gone if out.on_gone == "remove" else set()))
        if out.on_gone != "remove" and replaced & gone:
            return kept_with_replaced(self.options, replaced & gone)
        matching = _matching(self.listed, self.conditions, decode_schema(published.read_schema))
        new = ({file.path for file in differs.new} & matching) | (replaced - gone)
        self.found.notes += _gone_notes(out, sorted(gone), "the input") + _again_notes(changed, replaced - gone)
        if not new and not replaced:
            return Increment(plan=published, done=True)
        dataset = self._summary([file for file in self.listed.files if file.path in new], published)
        added, left = len(new) - len(replaced - gone), len(known.keys() - replaced)
        if added:
            already = f"{plural(left, 'file')} scored already"
            self.found.notes.append(f"--new-only adds {plural(added, 'new file')} to {already}")
        opened = {} if dataset is None else {file.path: file for file in dataset.files}
        scored = [opened.get(file.path) or known[file.path] for file in now if file.path in {*new, *known}]
        left_out = tuple(file.path for file in now if file.path not in {*new, *known})
        lost = [["gone", path] for path in known if path in gone - replaced]
        inputs = [*map(freeze.as_input, scored), *left_out, *lost]
        request = {**self.request, "input": freeze.digest_of_input(inputs)}
        return Increment(
            plan=published, dataset=dataset, left_out=left_out, request=request, replaced=tuple(sorted(replaced))
        )

    def _of_table(self, published: FrozenPlan, plans: Sequence[FrozenPlan]) -> Increment | ScorerError:
        """Return the next generation from a table, or why there is none."""
        table, before, out = self.listed.table, published.table, self.options.out
        if table is None or before is None:
            raise TypeError(published)
        from scorer.tables.changes import at_versions, changes, partition_of, version_at  # noqa: PLC0415 - only here

        known, kept = known_files(plans), gone_files(plans)
        before = replace(before, version=version_at(table, out.since, before.version) if out.since else before.version)
        found = changes(table, before.version, {path: partition_of(file.hive) for path, file in known.items()}, kept)
        if found.changed and out.on_changed == "error":
            return _rewritten(table, before, found.rewritten)
        gone = (found.removed | kept) if out.on_gone == "remove" else found.removed
        if gone and out.on_gone == "error":
            return gone_error(table.location, sorted(gone))
        replaced: set[str] = set()
        more = found.changed | (gone if out.on_gone == "remove" else set())
        while more - replaced:
            replaced |= found.score_again(with_shared_parts(plans, more))
            more = with_shared_parts(plans, replaced)
        if out.on_gone != "remove" and replaced & (gone | kept) - found.changed:
            return kept_with_replaced(self.options, replaced & (gone | kept))
        self.found.notes += _gone_notes(out, sorted(gone), "the table") + _again_notes(found.changed, replaced - gone)
        new = at_versions(table, found.to_score(table.version))
        listed = tuple(tables.listed(new, trees()))
        every = replace(self.listed, files=(*self.listed.files, *listed), table=new)
        matching = _matching(every, self.conditions, decode_schema(published.read_schema))
        chosen = [file for file in listed if file.path in matching]
        if not chosen and not replaced:
            return Increment(plan=published, done=True)
        dataset = self._summary(chosen, published, new)
        if chosen:
            since = before.name.partition(", ")[2]
            self.found.notes.append(f"--new-only adds {plural(len(chosen), 'file')} that are new since {since}")
        inputs = [published.request["input"], *map(freeze.as_input, () if dataset is None else dataset.files)]
        inputs += [["replaced", path] for path in sorted(replaced)]
        request = {**self.request, "input": freeze.digest_of_input(inputs)}
        lost = () if out.on_gone == "remove" else tuple(sorted(gone))
        return Increment(
            plan=published, dataset=dataset, request=request, table=table, replaced=tuple(sorted(replaced)), gone=lost
        )

    def _summary(self, files: Sequence[Listed], published: FrozenPlan, table: Snapshot | None = None) -> Dataset | None:
        """Return the summary of the files to score; what does not fit the earlier ones becomes a problem."""
        if not files:
            return None
        dataset = summarise_files(replace(self.listed, files=tuple(files), table=table))
        self.found.problems += misfits(dataset, published)
        self.found.notes += folder_notes(dataset, own_names=published.own_names)
        return dataset

    def _with_target(self, grown: Increment, plans: Sequence[FrozenPlan]) -> Increment:
        """Return the increment with the table that is written, as it is now; what prevents it becomes a problem."""
        target = grown.plan.target
        if target is None or not grown.grows:
            return grown
        target, problems = next_target(self.place, grown, target, plans)
        self.found.problems += problems
        return replace(grown, target=target)


def missing_of(place: Place, published: FrozenPlan) -> list[str]:
    """List what is missing of a published output; a table may have other files with the same rows by now."""
    target = published.target and replace(published.target, mode="append")
    return publish.missing_parts(place, replace(published, target=target))


def next_target(
    place: Place, grown: Increment, target: Target, plans: Sequence[FrozenPlan]
) -> tuple[Target, list[ScorerError]]:
    """Return the target of the next generation of a table, and what keeps its rows from being added."""
    from scorer.output import publish_table  # noqa: PLC0415 - only for tables

    library, where = publish_table.library_of(target.kind), publish_table.name_of(place, target)
    existing = library.look(where, hash_of(grown.request))
    dataset = grown.dataset
    values = () if dataset is None else tuple(dict.fromkeys(tuple(file.hive.items()) for file in dataset.files))
    rows = Rows(keys=pa.schema([]) if dataset is None else dataset.hive, values=values)
    problems = problems_with(existing, target.kind, "overwrite" if grown.replaced else "append", where)
    columns = target.columns
    if dataset is not None:
        problems += partition_columns(target.partition_by, rows, existing, where)[1]
        keys = rows.keys if existing is None else rows.keys_as_in(existing.schema)
        columns = pa.schema([*decode_schema(grown.plan.output_schema), *keys]).remove_metadata()
    problems += problems_of_schema(columns, existing, where)
    if grown.replaced and existing is not None:
        left = {part.name for part in live_parts([*plans, replace(grown.plan, files=(), replaced=grown.replaced)])}
        problems += publish_table.not_removable(place, target, existing, left)
    version, commits = (-1, 0) if existing is None else (existing.version, existing.commits)
    return replace(target, mode="append", version=version, commit=1 + commits, replaced=()), problems


def _other_recipe(place: Place, published: FrozenPlan, request: dict[str, Any]) -> ScorerError | None:
    """Return the error for an output scored with another model, other options or on another kind of storage."""
    before, now = recipe(published.request), recipe(request)
    found = explain_differences(replace(published, request=before), now)
    if not found and published.request.get("limit") is not None:
        found = f"only the first {published.request['limit']:,} rows of its input, by --limit"
    if not found and (published.request.get("table") or [])[:2] != (request.get("table") or [])[:2]:
        found = f"another input: {published.table.name if published.table else 'plain Parquet files'}"
    if not found and published.own_names != (isinstance(place, StorePlace) or published.target is not None):
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


def _rewritten(table: Snapshot, scored: TableState, files: Sequence[str]) -> ScorerError:
    return InputChanged(
        "rows of the table were updated or deleted since they were scored",
        where=table.location,
        expected=f"rows that were added since {scored.name.partition(', ')[2]}, and no other changes",
        found=f"{plural(len(files), 'file')} with other rows in {table.name.partition(', ')[2]}: "
        f"{quoted_list(files, _SHOWN)}",
        hint="replace their rows with --on-changed rescore, or score everything again with --overwrite",
    )


def _gone_notes(out: OutputOptions, gone: Sequence[str], where: str) -> list[str]:
    """Return a note on the files that were removed from the input."""
    if not gone:
        return []
    rows = "their rows stay in the output" if out.on_gone == "keep" else "their rows are removed from the output"
    return [f"{plural(len(gone), 'file')} of {where} cannot be found any more; {rows}: {quoted_list(gone, _SHOWN)}"]


def _again_notes(changed: set[str], again: set[str]) -> list[str]:
    """Return notes on the files whose rows are scored again."""
    notes, others = [], sorted(again - changed)
    if changed:
        notes.append(
            f"the rows of {plural(len(changed), 'changed file')} are replaced: {quoted_list(sorted(changed), _SHOWN)}"
        )
    if others:
        notes.append(
            f"{plural(len(others), 'other file')} scored again, because the output has their rows in one file with "
            f"rows that are replaced: {quoted_list(others, _SHOWN)}"
        )
    return notes


def _changed(options: Options, published: FrozenPlan, differs: Difference) -> ScorerError | None:
    """Return the error for files that changed, were removed or moved, unless the request says what to do with them."""
    out, where = options.out, quoted_list(options.input)
    if differs.changed and out.on_changed == "error":
        changed = [file.path for file in differs.changed]
        generation = f"generation {published.generation}" if published.generation else "the output"
        return InputChanged(
            "input files changed since they were scored",
            where=where,
            expected=f"the files of {generation}, unchanged",
            found=f"{len(changed):,} changed: {quoted_list(changed)}",
            hint="restore them, replace their rows with --on-changed rescore, or score all again with --overwrite",
        )
    if differs.moved and out.on_gone != "remove":
        old, new = differs.moved[0]
        return InputChanged(
            "input files were moved since they were scored, so their rows would be scored twice",
            where=where,
            expected="files in the places where they were scored",
            found=f"{plural(len(differs.moved), 'file')} with the same name, size and time elsewhere: "
            f"{old.path!r} is now {new.path!r}",
            hint="move them back, or replace their rows with --on-gone remove",
        )
    if differs.gone and out.on_gone == "error":
        return gone_error(where, [file.path for file in differs.gone])
    return None


def _matching(listed: Input, conditions: Sequence[Condition], planned: pa.Schema) -> set[str]:
    """Return the paths of the files that --where does not rule out by their keys.

    A key that the files hold too has their type, which the earlier generation knows.
    """
    types = pa.schema([planned.field(key.name) if key.name in planned.names else key for key in listed.hive])
    wanted = {*keys.matching(listed.files, conditions, listed.hive), *keys.matching(listed.files, conditions, types)}
    return {file.path for file in wanted}


def check_first(found: Findings, frozen: FrozenPlan, dataset: Dataset) -> None:
    """Add what keeps the first generation from having folders of its own, and notes on them."""
    columns, own_names = decode_schema(frozen.output_schema).names, frozen.own_names
    found.problems += column_problems(columns, dataset, own_names=own_names)
    found.notes += folder_notes(dataset, own_names=own_names)


def next_plan(
    options: Options, place: Place, grown: Increment, specs: Sequence[SessionSpec], transform: Transform | None
) -> FrozenPlan:
    """Return the plan of the next generation: as the last one, with other files and the numbers after its parts."""
    last, dataset = grown.plan, grown.dataset
    files: tuple[PlannedFile, ...] = ()
    table = None if grown.table is None else TableState.of(grown.table, "")
    stretch_rows = last.storage.stretch_rows
    if dataset is not None:
        size = _size(options, place, last, dataset)
        files = freeze.planned_files(options, dataset, size)
        table = freeze.table_state(files, dataset)
        stretch_rows = size.target if last.storage.copied else 0
    mine = last.transform
    if mine is not None and transform is not None:
        mine = replace(mine, folder=transform.folder)
    return replace(
        last,
        request=grown.request,
        files=files,
        table=table,
        target=grown.target,
        left_out=grown.left_out,
        scorers=tuple(replace(one, session=spec) for one, spec in zip(last.scorers, specs, strict=True)),
        transform=mine,
        storage=replace(last.storage, stretch_rows=stretch_rows),
        generation=max(1, last.generation) + 1,
        first_part=last.first_part + last.n_parts,
        previous=last.plan_hash,
        replaced=grown.replaced,
        gone=grown.gone,
        trial_sessions=0,
        versions=versions(),
        plan_hash="",
    )


def _size(options: Options, place: Place, last: FrozenPlan, dataset: Dataset) -> Size:
    """Return how large the parts of the next generation are."""
    bound = Bound(
        bindings=tuple(scorer.binding for scorer in last.scorers), kept=Kept(last.kept, last.row_id),
        transform=last.transform, read_schema=decode_schema(last.read_schema),
        output_schema=decode_schema(last.output_schema), joins=last.joins,
    )  # fmt: skip
    speed, row_bytes = _measured(place)
    probes = [Probe(batch_rows=one.batch_rows, rows_per_s=None, batch_tokens=one.batch_tokens) for one in last.scorers]
    probe = replace(combined(probes), rows_per_s=speed, nominal_rows_per_s=speed)
    file_rows = options.out.file_rows
    if options.out.file_bytes is not None:
        file_rows = max(1, int(options.out.file_bytes / row_bytes))
    size = freeze.part_size(options, dataset, bound, probe, frozenset(last.unread), file_rows)
    return size.at_most(max(1, int(freeze.MOST_STORE_BYTES / row_bytes))) if last.own_names else size


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
