"""Check a request and plan its run: `prepare` returns a plan, with all problems if the run cannot start.

Each step is a function that returns what it learned, for the steps after it:

    read           model, input footers, row filters, transform, device
    place          where the output goes, and whether an earlier run of this request can be resumed
    load           the models into this process
    bind           columns to tensors
    sample         the first rows
    try            the first rows through each model: outputs, independence of rows
    freeze         batch rows, parts, storage, forecast

A step that fails adds its problem to the `Findings`. Steps that need its result are skipped; all others still run.
Writes nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from scorer.arrow import plain_schema
from scorer.binding import spec as spec_
from scorer.binding import transform as transform_
from scorer.binding.axes import doubt_advice
from scorer.binding.feeds import named_files, without_unused
from scorer.binding.inputs import bind, shapes
from scorer.binding.outputs import kept_of, output_schema, requested_fetches
from scorer.binding.request import expand, requested_feeds
from scorer.binding.spec import UNCONFIRMED
from scorer.cluster import connect
from scorer.cluster.scripts import can_spawn
from scorer.dataset import conditions as conditions_
from scorer.dataset import fields, reader
from scorer.dataset.joins import requests as joins_
from scorer.dataset.summary import keys_with_other_values, list_input, problems_of, ranges, summarise
from scorer.display.words import plural, quoted_list
from scorer.errors import BindingError, CommitError, ScorerError
from scorer.host import devices
from scorer.host.crash import note_step
from scorer.host.limits import limits_as_errors
from scorer.host.process import measuring
from scorer.model.copies import digest_of
from scorer.options.values import within_budget
from scorer.output.place import Place, StorePlace
from scorer.output.quarantine import in_words
from scorer.plan.prepared import Plan
from scorer.preflight import axes, findings, freeze, increment, placement, trial, tuning
from scorer.preflight.earlier import check_versions, earlier_run, earlier_table, wanted_table, with_requested_code
from scorer.preflight.findings import Findings, ambiguous_paths, dataset_notes, known_nulls, shared_name, type_notes
from scorer.preflight.freeze import request_for, request_of
from scorer.preflight.models.bound import Bound, Sample
from scorer.preflight.models.loading import load, session_specs, share_weights
from scorer.preflight.models.requested import models_of
from scorer.scoring.job import JOBS
from scorer.storage.files import AtOnce
from scorer.storage.refusals import explaining

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.binding.outputs import FetchRequest
    from scorer.binding.spec import Binding, Feed, Transform
    from scorer.dataset.conditions import Condition
    from scorer.dataset.joins.requests import JoinRequest
    from scorer.dataset.joins.spec import Join
    from scorer.dataset.summary import Dataset
    from scorer.model.spec import SessionSpec
    from scorer.options.fields import Options
    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.prepared import Forecast
    from scorer.preflight.models.loading import Loaded
    from scorer.preflight.models.requested import Model
    from scorer.preflight.trial import Independence
    from scorer.tables.snapshot import TableState
    from scorer.tables.target import Destination


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    """What the flags name besides the input and the model."""

    conditions: tuple[Condition, ...]
    transform: Transform | None
    files: dict[str, str]
    """Digest of each file, and of each joined table."""
    joins: tuple[JoinRequest, ...] = ()
    destination: Destination | None = None
    """The table that the output is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decided:
    """The outcome of the steps after reading; each field keeps its default if its step did not run."""

    frozen: FrozenPlan | None = None
    canary: str = ""
    """The results of the batch-independence checks, in words."""
    forecast: Forecast | None = None
    weights: str = ""
    done: bool = False
    resumes: bool = False
    matched: tuple[Feed, ...] = ()


@limits_as_errors()
def prepare(options: Options) -> Plan:
    """Return the plan of a request whose options are valid, with every problem that the checks found."""
    found = Findings()
    conflict = JOBS.configure_stores(options.stores.settings)
    found.problems += [] if conflict is None else [conflict]
    output, problem = placement.output_of(options)
    found.problems += [one for one in (problem, *connect.problems(options.cluster)) if one is not None]
    place = Place.of(output, options.out.work_dir)
    refused = placement.refusals(place, options.input, [model.path for model in options.model])
    found.problems += placement.reasons(refused)
    models = () if refused["model"] else _read_models(found, options)
    found.notes += [model.words(note) for model in models for note in model.spec.notes]
    flags = tuple(word for model in models for word in model.folder_flags)
    return replace(_checked(found, options, place, refused, models), folder_flags=flags)


def _checked(
    found: Findings, options: Options, place: Place, refused: dict[str, list[ScorerError]], models: Sequence[Model]
) -> Plan:
    """Return the plan of a request whose models were read."""
    conditions, unparsed = conditions_.parse_all(options.rows.where)
    if options.out.new_only and models and not (found.problems or unparsed):
        grown = _grow(found, options, place, models, conditions)
        if grown is not None:
            return grown
    with AtOnce(place.folder) as ask:
        placed = ask(lambda: [] if refused["output"] else placement.problems_of(place, options.input))
        pinned = None if refused["output"] else earlier_table(options, place)
        dataset = None if refused["input"] else _read_footers(found, options, place, conditions, pinned)
        misplaced = placed()
    found.problems += unparsed
    named = _read_named(found, options, models, conditions)
    specs = session_specs(found, options, models, 0 if dataset is None else freeze.rows_ahead(options, dataset))
    unjoined = len(named.joins) < len(options.rows.join)
    if dataset is not None:
        dataset, unfit = joins_.beside(dataset, named.joins)
        unjoined = unjoined or bool(unfit)
        found.problems += unfit or ([] if unjoined else conditions_.check(named.conditions, dataset.columns))
        found.notes += dataset_notes(dataset, conditions)
    found.problems += misplaced + placement.problems_on_a_disk(options, place)
    decided = _Decided()
    if misplaced or refused["output"] or dataset is None or not models or unjoined:
        loaded = load(found, options, models, specs)
    else:
        loaded, decided = _resume_or_decide(found, options, place, dataset, models, named, specs)
    return _plan(found, options, place, models, loaded, dataset, decided)


def _resume_or_decide(
    found: Findings, options: Options, place: Place, dataset: Dataset, models: Sequence[Model], named: _Named,
    specs: Sequence[SessionSpec],
) -> tuple[Loaded | None, _Decided]:  # fmt: skip
    """Return what an earlier run of this request decided; without one, load the models and decide now."""
    request = request_of(options, dataset, models, named.files)
    earlier, destination = earlier_run(found, options, place, dataset, request)
    if earlier is not None:
        frozen, done = earlier
        if not done:
            frozen = with_requested_code(found, place, frozen, specs, named.transform)
            frozen = frozen.with_inodes(file.id for file in dataset.files)
        return None, _Decided(frozen=frozen, done=done, resumes=not done)
    loaded = load(found, options, models, specs)
    on_store = isinstance(place, StorePlace)
    named = replace(named, destination=destination)
    decided = _decide(found, options, dataset, models, named, loaded, request, on_store=on_store)
    found.problems += placement.room_problems(place, decided.forecast)
    if options.out.new_only and decided.frozen is not None:
        increment.check_first(found, decided.frozen, dataset)
    return loaded, decided


def _grow(
    found: Findings, options: Options, place: Place, models: Sequence[Model], conditions: tuple[Condition, ...]
) -> Plan | None:
    """Return the plan of the next generation of an output; None if all of the input is to be scored.

    No model is loaded and no row is scored here, because earlier generations have shown that they fit.
    None, too, if something is wrong besides: then the other checks find it with all that is wrong.
    """
    first = Findings()
    first.problems += placement.problems_of(place, options.input)
    listed = None
    with first.collecting(options):
        named = _read_named(first, options, models, conditions)
        ignore, wanted = [str(place.output), str(place.folder)], replace(wanted_table(options, None), empty=True)
        listed = list_input(options.input, ignore, options.rows.base, wanted)
    if first.problems or listed is None:
        return None
    grown = frozen = None
    with found.collecting(options), explaining(CommitError):
        request = request_for(options, [], listed.table, models, named.files)
        grown = increment.Search(
            found=found, options=options, place=place, listed=listed, conditions=conditions, request=request
        ).increment()
        if grown is None:
            return None
        frozen = grown.plan
        specs = session_specs(found, options, models, (grown.dataset or frozen).rows)
        if grown.grows and specs:
            found.notes += [] if grown.dataset is None else dataset_notes(grown.dataset, conditions)
            frozen = increment.next_plan(options, place, grown, specs, named.transform)
        elif grown.resumes:
            frozen = with_requested_code(found, place, frozen, specs, named.transform)
            frozen = frozen.with_inodes(listed.identities())
        check_versions(found, options, place, grown.plan)
    done, resumes = grown is not None and grown.done, grown is not None and grown.resumes
    dataset = None if grown is None else grown.dataset
    return _plan(found, options, place, models, None, dataset, _Decided(frozen=frozen, done=done, resumes=resumes))


def _plan(
    found: Findings, options: Options, place: Place, models: Sequence[Model], loaded: Loaded | None,
    dataset: Dataset | None, decided: _Decided,
) -> Plan:  # fmt: skip
    frozen = decided.frozen if dataset is not None and not decided.done else None
    gates = findings.bind_gates(found, options, decided.frozen, dataset, done=decided.done)
    return Plan(
        options=options,
        output=str(place.output),
        work_dir=str(place.folder),
        problems=tuple(found.problems),
        notes=tuple(found.notes),
        frozen=None if found.problems else decided.frozen,
        models={model.name: model.spec for model in models},
        canary=decided.canary,
        forecast=decided.forecast,
        deleted=b"" if frozen is None or dataset is None else freeze.deleted_rows(frozen.files, dataset),
        nodes={} if loaded is None else loaded.nodes,
        trees="" if loaded is None else _in_words(models, [session.trees for session in loaded.sessions]),
        weights=decided.weights,
        done=decided.done,
        resumes=decided.resumes,
        spawns=can_spawn(),
        gates=gates,
        matched=decided.matched,
    )


def _in_words(models: Sequence[Model], texts: Sequence[str]) -> str:
    """Return a text about each model as one text; '' says nothing about a model."""
    return "; ".join(model.words(text) for model, text in zip(models, texts, strict=True) if text)


def _read_models(found: Findings, options: Options) -> tuple[Model, ...]:
    with found.collecting(options):
        return models_of(options)
    return ()


def _read_footers(
    found: Findings, options: Options, place: Place, conditions: tuple[Condition, ...], pinned: TableState | None
) -> Dataset | None:
    ruling_out = conditions if options.rows.limit is None else ()  # --limit counts the rows of every file
    with found.collecting(options):
        ignore = [str(place.output), str(place.folder)]
        wanted = wanted_table(options, pinned)
        return summarise(options.input, ignore, base=options.rows.base, conditions=ruling_out, wanted=wanted)
    return None


def _read_named(
    found: Findings, options: Options, models: Sequence[Model], conditions: tuple[Condition, ...]
) -> _Named:
    """Import the transform, and compute the digests of the files."""
    files: dict[str, str] = {}
    transform = None
    with found.collecting(options):
        for model in models:
            files |= named_files(model.options.feed, model.options.labels)
        if options.binding.transform is not None:
            transform = transform_.find(options.binding.transform)
            files[transform.name] = transform.digest
        if options.session.ort_library is not None and os.path.isfile(options.session.ort_library):
            files[options.session.ort_library] = digest_of(options.session.ort_library, ())
    joins, digests, unread = joins_.open_all(options.rows.join)
    found.problems += unread
    return _Named(conditions=conditions, transform=transform, files=files | digests, joins=joins)


def _decide(
    found: Findings, options: Options, dataset: Dataset, models: Sequence[Model], named: _Named, loaded: Loaded | None,
    request: dict[str, Any], *, on_store: bool,
) -> _Decided:  # fmt: skip
    """Bind, sample, try and freeze; from the sample on, a step runs only if there is no problem so far."""
    shared = _shared_names(options, dataset, models, named)
    if shared:
        found.problems += shared
        return _Decided()
    rows = fed = None
    if options.binding.transform is not None:
        with found.collecting(options):
            named, rows, fed = _transformed(options, dataset, named)
        if fed is None:
            return _Decided()
    bound, wanted = _bind(found, options, dataset, models, named, None if fed is None else fed.schema)
    if found.problems or loaded is None:
        return _Decided(matched=tuple(feed for binding in bound.bindings for feed in binding.feeds))
    verdicts: list[Independence | None] = []
    frozen, forecast, weights = None, None, [""] * len(models)
    with found.collecting(options):
        first = dataset.files[0].path if dataset.files else "nothing"
        note_step(f"sending the first rows of {first} through the model")
        bound = replace(bound, read_schema=plain_schema(bound.read_schema))
        sample = _sample(options, dataset, bound, rows, fed)
        found.notes += joins_.notes(named.joins, bound.joins, sample.rows)
        bound, sample = _try_outputs(found, options, dataset, models, loaded, bound, wanted, sample)
        if named.destination is not None:
            schema, target, unfit, changed = named.destination.fitted(bound.output_schema)
            bound = replace(bound, output_schema=schema, target=target)
            found.problems, found.notes = [*found.problems, *unfit], [*found.notes, *changed]
        if not found.problems:
            verdicts = _try_rows(found, options, dataset, models, loaded, bound, sample)
            sample = replace(sample, scores=tuple(() if one is None else one.scores for one in verdicts))
        if not found.problems:
            probes = [
                freeze.choose_batch(options, dataset, session, binding, sample, None if one is None else one.row_s)
                for session, binding, one in zip(loaded.sessions, bound.bindings, verdicts, strict=True)
            ]
            loaded, weights = share_weights(found, options, models, loaded, tuning.combined(probes).together)
            frozen, forecast, notes = freeze.freeze(
                options, request, dataset, loaded, bound, sample, probes, on_store=on_store
            )
            found.notes += notes
    canary = _in_words(models, ["" if one is None else str(one) for one in verdicts]) if verdicts else ""
    return _Decided(frozen=frozen, canary=canary, forecast=forecast, weights=_in_words(models, weights))


def _try_rows(
    found: Findings, options: Options, dataset: Dataset, models: Sequence[Model], loaded: Loaded, bound: Bound,
    sample: Sample,
) -> list[Independence | None]:  # fmt: skip
    """Check for each model whether a row's scores depend on its batch; report rows that cannot be scored."""
    ahead = freeze.rows_ahead(options, dataset)
    verdicts = []
    for model, session, binding in zip(models, loaded.sessions, bound.bindings, strict=True):
        found.notes += map(model.words, axes.note(binding, model.options.batch_axis))
        verdict = trial.try_rows(session, binding, sample.fed, ahead)
        if verdict is not None:
            _expect_bad_rows(found, options, dataset, model, verdict)
        _doubt_independence(found, options, model, binding, verdict)
        found.notes += map(model.words, devices.notes_on_cpu_nodes(session.nodes))
        verdicts.append(verdict)
    return verdicts


def _shared_names(options: Options, dataset: Dataset, models: Sequence[Model], named: _Named) -> list[ScorerError]:
    """Return a problem if a column that the request names shares its name with another."""
    duplicates, keep = sorted(dataset.duplicates), options.binding.keep
    if not duplicates or keep == ("all",):
        return shared_name(dataset, duplicates)
    tokens = [] if keep == ("none",) else [*keep]
    for model in models if options.binding.transform is None else ():
        for one in requested_feeds(model.options.feed, model.spec)[0].values():
            tokens += [token for item in one.items for token in item.tokens]
            tokens += one.tokens
    used = expand(tokens, dataset.schema.names)[0] + [condition.column for condition in named.conditions]
    return shared_name(dataset, [name for name in duplicates if name in used])


def _transformed(options: Options, dataset: Dataset, named: _Named) -> tuple[_Named, pa.Table | None, pa.Table | None]:
    """Return the first rows as they are read and as the transform returns them, without the rows it fails for."""
    if named.transform is None:
        return named, None, None
    schema = plain_schema(dataset.columns)
    transform = replace(named.transform, reads=tuple(schema.names))
    named = replace(named, transform=transform)
    joins, schema = joins_.planned(named.joins, dataset, schema.names, options.cluster.memory)
    rows = _first_rows(options, dataset, plain_schema(schema), joins)
    fed, bad = transform_.apply(transform, rows)
    if bad and not fed.num_rows:
        raise BindingError(
            "the transform fails for every row that was tried",
            where=transform.name,
            expected="a frame with the same rows",
            found=next(iter(bad.values())),
            hint="run it on the first rows in a notebook",
        )
    good = [row for row in range(rows.num_rows) if row not in bad]
    return named, rows.take(pa.array(good, pa.int64())) if bad else rows, fed


def _bind(
    found: Findings, options: Options, dataset: Dataset, models: Sequence[Model], named: _Named,
    given: pa.Schema | None,
) -> tuple[Bound, list[tuple[FetchRequest, ...]]]:  # fmt: skip
    """Match columns to the tensors of each model; `given` are the columns that the transform returns."""
    columns = dataset.columns
    bindings, wanted, wrong = [], [], []
    for model in models:
        binding, problems = bind(model.options, model.spec, columns, dataset.folder, given)
        fetches, more = requested_fetches(model.options, model.spec)
        if named.transform is None:
            binding = without_unused(binding, model.spec, columns, lambda names: ranges(dataset, names))
        bindings.append(binding)
        wanted.append(fetches)
        wrong += model.problems([*ambiguous_paths(dataset, binding), *problems, *more])
    kept, keep_problems = kept_of(options.binding, columns)
    bound = Bound(
        bindings=tuple(bindings), kept=kept, transform=named.transform, read_schema=pa.schema([]),
        output_schema=pa.schema([]),
    )  # fmt: skip
    named_columns = [*kept.columns, *(c.column for c in named.conditions)]
    found.problems += keys_with_other_values(
        dataset, named_columns if named.transform else [*named_columns, *bound.fed]
    )
    kept_names, notes = findings.without_keys(dataset, kept.columns)
    found.notes += notes
    used = dict.fromkeys([*spec_.reads(bound.transform, bindings), *kept_names, *(c.column for c in named.conditions)])
    for model, binding in zip(models, bindings, strict=True):
        for feed in binding.feeds:
            if feed.rule in UNCONFIRMED:
                text = f"input {feed.tensor!r} is fed {feed.rule}; {UNCONFIRMED[feed.rule]}"
                found.doubt(options, model.words(text), model.spec.path)
    found.problems += [
        *wrong, *keep_problems,
        *problems_of(dataset, list(dict.fromkeys([*bound.fed, *used] if named.transform is None else used))),
        *(problem for model, binding in zip(models, bindings, strict=True)
          for problem in model.problems(known_nulls(options, dataset, binding))),
    ]  # fmt: skip
    found.notes += type_notes(dataset, list(used), kept_names)
    joins: tuple[Join, ...] = ()
    schema = pa.schema([])
    with found.collecting(options):
        joins, schema = joins_.planned([] if found.problems else named.joins, dataset, used, options.cluster.memory)
    return replace(bound, kept=replace(kept, columns=kept_names), read_schema=schema, joins=joins), wanted


def _sample(options: Options, dataset: Dataset, bound: Bound, rows: pa.Table | None, fed: pa.Table | None) -> Sample:
    """Return the first rows with the columns in use; the rows are read here unless a transform was given them."""
    if rows is None or fed is None:
        rows = fed = _first_rows(options, dataset, bound.read_schema, bound.joins)
    return Sample(rows=fields.select(rows, bound.names), fed=fields.select(fed, bound.read))


def _first_rows(options: Options, dataset: Dataset, schema: pa.Schema, joins: Sequence[Join]) -> pa.Table:
    """Return the first rows of the input with the columns of joined tables."""
    return joins_.joined(reader.first_rows(dataset, schema, freeze.sample_rows(options, dataset, schema)), joins)


def _try_outputs(
    found: Findings, options: Options, dataset: Dataset, models: Sequence[Model], loaded: Loaded, bound: Bound,
    wanted: Sequence[tuple[FetchRequest, ...]], sample: Sample,
) -> tuple[Bound, Sample]:  # fmt: skip
    """Score the first rows to complete the bindings: their outputs, and the schema of the output."""
    few = sample.fed.slice(0, trial.SAMPLE_ROWS)
    bindings, first_row_bytes = [], []
    for model, session, binding, fetches in zip(models, loaded.sessions, bound.bindings, wanted, strict=True):
        with measuring() as growth:
            shaped = shapes(binding, sample.fed)
            tried, wrong = trial.outputs(session, shaped, fetches, few, model.spec, model.prefix)
        found.problems += model.problems(wrong)
        bindings.append(tried)
        first_row_bytes.append(growth.most / trial.first_rows(tried))
    bound = replace(bound, bindings=tuple(bindings))
    schema, clashes = output_schema(bound.kept, bound.fetches, dataset.columns, options.input[0], dataset.hive.names)
    found.problems += clashes
    return replace(bound, output_schema=schema), replace(sample, first_row_bytes=tuple(first_row_bytes))


def _expect_bad_rows(found: Findings, options: Options, dataset: Dataset, model: Model, verdict: Independence) -> None:
    """Report first rows that cannot be scored: a note, or a problem if all of them fail."""
    bad, budget, ahead = sum(verdict.bad.values()), options.scoring.max_bad_rows, freeze.rows_ahead(options, dataset)
    if not bad:
        return
    why = in_words(verdict.bad)
    if bad < verdict.rows or options.rows.where or within_budget(budget, min(bad, ahead), ahead):
        found.notes.append(model.words(f"{plural(bad, 'bad row')} among the first {verdict.rows:,}: {why}"))
        return
    problem = BindingError(
        "none of the first rows can be scored",
        where=quoted_list(options.input),
        expected="rows that the model accepts",
        found=f"{bad:,} bad rows: {why}",
        hint="check --feed: order, types and values of the columns",
    )
    found.problems += model.problems([problem])


def _doubt_independence(
    found: Findings, options: Options, model: Model, binding: Binding, verdict: Independence | None
) -> None:
    """Warn if scores depend on the batch; if no rows could be compared, warn of operators that may cause it."""
    spec = model.spec
    if verdict is None and spec.coupled and binding.fixed_batch != 1:
        text = f"a row's score may depend on the other rows in its batch: {quoted_list(spec.coupled)}"
        found.doubt(options, model.words(text), spec.path)
    if verdict is not None and not verdict.independent:
        cause = f" ({quoted_list(spec.coupled)})" if spec.coupled else ""
        advice = doubt_advice(spec, dict(binding.batch_axes))
        found.doubt(options, model.words(f"{verdict}{cause}{advice}"), spec.path)
