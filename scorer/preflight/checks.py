"""Everything that can be known before a row is scored: the plan, or all reasons against it at once.

Writes nothing.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from scorer.arrow import is_encoded, plain_schema
from scorer.binding import spec
from scorer.binding import transform as transform_
from scorer.binding.feeds import named_files
from scorer.binding.inputs import bind, shapes
from scorer.binding.outputs import output_schema, requested_fetches
from scorer.binding.spec import BY_POSITION
from scorer.cluster import dashboard
from scorer.cluster.connect import spawns
from scorer.dataset import conditions as conditions_
from scorer.dataset import reader
from scorer.dataset.summary import problems_of, shared_name, summarise
from scorer.display.words import plural, quoted_list
from scorer.errors import BindingError, CommitError, PlanError, PreflightError, ScorerError
from scorer.host import devices
from scorer.host.crash import note_step
from scorer.host.process import resident
from scorer.host.versions import versions
from scorer.model.protobuf import digest_of, inspect_model
from scorer.model.resident import SESSIONS
from scorer.model.session import library_for, settle_device, why_not
from scorer.model.spec import SessionSpec
from scorer.options.values import within_budget
from scorer.output import place as place_
from scorer.output.place import Place
from scorer.output.quarantine import in_words
from scorer.plan.frozen import FrozenPlan, refuse_different
from scorer.plan.prepared import Plan
from scorer.preflight import freeze, independence, placement, trial
from scorer.preflight.freeze import Inputs, request_of
from scorer.storage.footers import unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scorer.binding.spec import Binding, Transform
    from scorer.dataset.conditions import Condition
    from scorer.dataset.summary import Dataset
    from scorer.model.session import Session
    from scorer.model.spec import ModelSpec
    from scorer.options.request import Options
    from scorer.plan.prepared import Forecast


_TINY_FILES = 10_000  # opening so many small files is most of the work


@dataclass(slots=True)
class _Found:
    """What is known so far; steps add what they find wrong to `problems` instead of raising it."""

    options: Options
    place: Place
    problems: list[ScorerError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    model: ModelSpec | None = None
    dataset: Dataset | None = None
    session: Session | None = None
    session_spec: SessionSpec | None = None
    conditions: list[Condition] = field(default_factory=list)
    transform: Transform | None = None
    files: dict[str, str] = field(default_factory=dict)
    """Digests of what the flags name besides input and model."""
    verdict: independence.Independence | None = None
    forecast: Forecast | None = None

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Turn errors into entries of `problems`."""
        try:
            yield
        except PreflightError as several:
            self.problems += several.problems
        except ScorerError as error:
            self.problems.append(error)
        except (pa.ArrowException, UnicodeDecodeError, MemoryError) as error:  # a file that is damaged inside
            self.problems.append(unreadable(", ".join(self.options.input), error))

    def plan(self, frozen: FrozenPlan | None, *, done: bool = False, resumes: bool = False) -> Plan:
        """The plan as it is now."""
        return Plan(
            options=self.options,
            output=str(self.place.output),
            work_dir=str(self.place.folder),
            problems=tuple(self.problems),
            notes=tuple(self.notes),
            frozen=None if self.problems else frozen,
            model=self.model,
            canary="" if self.verdict is None else str(self.verdict),
            forecast=self.forecast,
            nodes={} if self.session is None else devices.counts(self.session.nodes),
            done=done,
            resumes=resumes,
            spawns=spawns(),
        )


def prepare(options: Options) -> Plan:
    """The plan of a checked request."""
    output, problem = placement.output_of(options)
    problems = [one for one in (problem, dashboard.problem(options.cluster)) if one is not None]
    found = _Found(options, Place.of(output, options.out.work_dir), problems)
    _look(found)
    misplaced = placement.problems_of(found.place, options.input)
    found.problems += misplaced
    if not misplaced and found.dataset is not None and found.model is not None:
        request = request_of(options, found.dataset, found.model, found.files)
        earlier = _earlier(found, request)
        if earlier is not None:
            _check_versions(found, earlier[0])
            if options.rows.part_bytes is not None and not earlier[1]:
                found.notes.append("the parts are those of the earlier, unfinished run, whatever --part-bytes says now")
            return found.plan(earlier[0], done=earlier[1], resumes=not earlier[1])
        _load(found)
        return found.plan(_freeze(found, found.dataset, found.model, request))
    _load(found)
    return found.plan(None)


def _look(found: _Found) -> None:
    """Model, dataset, device and filter, each by itself."""
    options = found.options
    with found.collecting():
        note_step(f"reading the model {options.model}")
        found.model = inspect_model(options.model)
    with found.collecting():
        found.dataset = summarise(options.input, [str(found.place.output), str(found.place.folder)])
    for text in options.rows.where:
        with found.collecting():
            found.conditions.append(conditions_.parse(text))
    with found.collecting():
        found.files = named_files(options.binding.feed)
        if options.binding.transform is not None:
            found.transform = transform_.find(options.binding.transform)
            found.files[found.transform.name] = found.transform.digest
        if options.session.ort_library is not None and os.path.isfile(options.session.ort_library):
            found.files[options.session.ort_library] = digest_of(options.session.ort_library, ())
    with found.collecting():
        device = settle_device(options.session.device)
        unused = why_not("cuda") if device == "cpu" and options.session.device.lower() == "auto" else ""
        found.notes += [f"the device is the cpu; cuda does not work here: {unused}"] if unused else []
        if found.model is not None:
            found.session_spec = SessionSpec(
                path=found.model.path, digest=found.model.digest, files=found.model.files, device=device,
                gpu=devices.parse(options.session.device).first,
                library=library_for(options.session.ort_library, found.model.opsets),
            )  # fmt: skip
    if found.dataset is not None:
        found.problems += conditions_.check(found.conditions, found.dataset.columns)
        found.notes += _remarks(found.dataset)


def _load(found: _Found) -> None:
    """The resident session of this process; a model that parses may still not load."""
    if found.session_spec is not None:
        with found.collecting():
            note_step(f"loading the model {found.session_spec.path}")
            found.session = SESSIONS.session(found.session_spec)


def _earlier(found: _Found, request: dict[str, Any]) -> tuple[FrozenPlan, bool] | None:
    """The plan that an earlier run of this request froze, and whether it is done."""
    place, overwrite = found.place, found.options.out.overwrite
    published = place.published()
    if published is not None and published.request == request:
        if place.pending() is not None:
            return published, False
        gone = place_.missing_parts(place, published)
        if not gone:
            return published, True
        if not overwrite:
            what, hint = (
                "the output was changed after it was published",
                "`scorer verify OUT` says how; --overwrite scores again",
            )
            found.problems.append(
                CommitError(what, str(place.output), "every part of its ledger", quoted_list(gone), hint)
            )
            return None
    if place.output.is_dir() and any(place.output.iterdir()):
        problem = place_.existing_problem(place, published, request, overwrite=overwrite)
        if problem is not None:
            found.problems.append(problem)
            return None
    for unfinished in place.unfinished():
        if unfinished.request == request:
            return unfinished, False
        if not overwrite and published is None:
            found.problems.append(refuse_different(str(place.folder), unfinished.request, request))
            return None
    return None


def _freeze(found: _Found, dataset: Dataset, model: ModelSpec, request: dict[str, Any]) -> FrozenPlan | None:
    """Bind, look at a few rows, cut the parts; None when something is wrong."""
    options = found.options
    columns = dataset.columns
    tokens = [str(feed) for feed in options.binding.feed] + [*options.binding.keep, *options.rows.where]
    shared = shared_name(dataset, tokens, keep_all=options.binding.keep == ("all",))
    if shared:
        found.problems += shared
        return None
    rows = fed = None
    if options.binding.transform is not None:
        with found.collecting():
            rows, fed = _transformed(found, dataset)
        if fed is None:
            return None
    binding, problems = bind(options.binding, model, columns, dataset.folder, None if fed is None else fed.schema)
    wanted, more = requested_fetches(options.binding, model)
    binding = replace(binding, kept=_without_keys(found, dataset, binding.kept))
    reads = spec.reads(found.transform, binding.fed)
    used = dict.fromkeys([*reads, *binding.kept, *(c.column for c in found.conditions)])
    for feed in binding.feeds:
        if feed.rule == BY_POSITION:
            _doubt(found, f"{feed.tensor!r} is fed {feed.rule}; --feed says which", model.path)
    found.problems += _strewn_pictures(dataset, binding)
    found.problems += [*problems, *more, *problems_of(dataset, list(used)), *_known_nulls(found, dataset, binding)]
    if found.problems or found.session is None or found.session_spec is None:
        return None
    read_schema = pa.schema([field for field in columns if field.name in used], metadata=dataset.schema.metadata)
    with found.collecting():
        note_step(
            f"sending the first rows of {dataset.files[0].path if dataset.files else 'nothing'} through the model"
        )
        read_schema = plain_schema(read_schema)
        if rows is None or fed is None:
            rows = fed = reader.first_rows(
                dataset, read_schema, freeze.sample_rows(found.options, dataset, read_schema)
            )
        rows, fed = rows.select(read_schema.names), fed.select(list(binding.fed))
        loaded = resident()
        binding = shapes(binding, fed)
        fetches, wrong = trial.outputs(
            found.session, binding, wanted, fed.slice(0, trial.SAMPLE_ROWS), model, options.binding.prefix
        )
        binding = replace(binding, fetches=fetches)
        schema, clashes = output_schema(binding, columns, options.input[0])
        found.problems += [*wrong, *clashes]
        if not found.problems:
            _watch(found, found.session, model, binding, fed)
            found.notes += devices.notes_on_cpu_nodes(found.session.nodes)
        if not found.problems:
            known = Inputs(
                dataset=dataset, binding=binding, session=found.session, spec=found.session_spec, request=request,
                read_schema=read_schema, output_schema=schema, rows=rows, fed=fed, loaded=loaded, versions=versions(),
                transform=found.transform,
            )  # fmt: skip
            return _cut(found, known)
    return None


def _transformed(found: _Found, dataset: Dataset) -> tuple[pa.Table, pa.Table | None]:
    """The first rows and what the transform makes of them; rows for which it raises are left out."""
    if found.transform is None:
        return pa.table({}), None
    schema = plain_schema(dataset.columns)
    found.transform = replace(found.transform, reads=tuple(schema.names))
    rows = reader.first_rows(dataset, schema, freeze.sample_rows(found.options, dataset, schema))
    fed, bad = transform_.apply(found.transform, rows)
    if bad and not fed.num_rows:
        what, hint = "the transform fails for every row that was tried", "run it on the first rows in a notebook"
        first = next(iter(bad.values()))
        raise BindingError(what, found.transform.name, "a frame with the same rows", first, hint)
    good = [row for row in range(rows.num_rows) if row not in bad]
    return rows.take(pa.array(good, pa.int64())) if bad else rows, fed


def _watch(found: _Found, session: Session, model: ModelSpec, binding: Binding, rows: pa.Table) -> None:
    """Send the canary in; without rows to send, doubt what the operators alone make doubtful."""
    ahead = rows.num_rows if found.dataset is None else freeze.rows_ahead(found.options, found.dataset)
    found.verdict = independence.try_rows(session, binding, rows, ahead)
    if found.verdict is None and model.coupled and binding.fixed_batch != 1:
        _doubt(found, f"a row's score may depend on its batch: {quoted_list(model.coupled)}", model.path)
    if found.verdict is not None:
        _expect_bad_rows(found, found.verdict)
    if found.verdict is not None and not found.verdict.independent:
        cause = f" ({quoted_list(model.coupled)})" if model.coupled else ""
        _doubt(found, f"{found.verdict}{cause}", model.path)


def _expect_bad_rows(found: _Found, verdict: independence.Independence) -> None:
    """Rows among the first that cannot be scored: said before the run, which is refused if they are all so."""
    bad, budget = sum(verdict.bad.values()), found.options.scoring.max_bad_rows
    if not bad:
        return
    why = in_words(verdict.bad)
    total = found.dataset.rows if found.dataset is not None else 0
    if bad < verdict.rows or found.conditions or within_budget(budget, bad, total):
        found.notes.append(f"{bad:,} of the first {verdict.rows:,} rows would go to quarantine: {why}")
        return
    what, hint = "not one of the first rows can be scored", "check --feed: order, types and values of the columns"
    expected = "a row that the model takes"
    found.problems.append(
        BindingError(what, quoted_list(found.options.input), expected, f"{bad:,} bad rows: {why}", hint)
    )


def _cut(found: _Found, known: Inputs) -> FrozenPlan:
    """Batch rows, parts and forecast, once nothing is wrong."""
    row_s = found.verdict.row_s if found.verdict is not None else None
    frozen, found.forecast = freeze.freeze(found.options, known, freeze.choose_batch(found.options, known, row_s))
    if found.forecast is not None:
        problem = placement.room_problem(found.place, found.forecast.output_bytes[0])
        found.problems += [problem] if problem else []
    return frozen


def _without_keys(found: _Found, dataset: Dataset, kept: Sequence[str]) -> tuple[str, ...]:
    """Kept columns without the keys of the paths, which must not be in the files too."""
    keys = set(dataset.hive.names)
    doubled = [name for name in kept if name in keys and name in dataset.schema.names]
    if doubled:
        found.notes.append(f"{quoted_list(doubled)} are keys of the paths and are left out of the files")
    return tuple(name for name in kept if name not in keys)


def _known_nulls(found: _Found, dataset: Dataset, binding: Binding) -> list[ScorerError]:
    """Nulls that the footers show where the feed allows none, if they alone break the budget."""
    options = found.options
    if options.rows.where or options.rows.limit is not None or found.transform is not None:
        return []
    problems: list[ScorerError] = []
    for feed in binding.feeds:
        nulls = {n: dataset.nulls.get(n, 0) for n in feed.columns} if feed.on_null == "error" else {}
        worst = max(nulls, key=lambda name: nulls[name], default="")
        if worst and not within_budget(options.scoring.max_bad_rows, nulls[worst], dataset.rows):
            what = f"column {worst!r} has nulls and input {feed.tensor!r} takes none"
            found_ = f"{nulls[worst]:,} of {dataset.rows:,} rows"
            one, other = f"--on-null '{feed.tensor}=0'", f'--where "{worst} is not null"'
            hint = f"{one} (or another constant), {other}, or --max-bad-rows {nulls[worst]}"
            problems.append(
                BindingError(
                    what, f"tensor {feed.tensor!r}", f"at most {options.scoring.max_bad_rows} bad rows", found_, hint
                )
            )
    return problems


def _strewn_pictures(dataset: Dataset, binding: Binding) -> list[ScorerError]:
    """Paths of pictures that could mean files in several folders."""
    paths = [f for f in binding.feeds if f.kind == "image" and f.columns[0] in dataset.columns.names]
    paths = [f for f in paths if not is_encoded(dataset.columns.field(f.columns[0]).type)]
    if not paths or len(dataset.folders) <= 1:
        return []
    what, hint = f"the paths in {paths[0].columns[0]!r} may begin in several folders", "score the folders apart"
    return [BindingError(what, f"tensor {paths[0].tensor!r}", "one folder", quoted_list(sorted(dataset.folders)), hint)]


def _check_versions(found: _Found, frozen: FrozenPlan) -> None:
    """A run that goes on with another runtime may round differently."""
    now = versions()
    changed = [f"{name} {old} -> {now[name]}" for name, old in frozen.versions.items() if now.get(name, old) != old]
    if changed:
        _doubt(found, f"the plan was made with other versions: {', '.join(changed)}", str(found.place.folder))


def _doubt(found: _Found, text: str, place: str) -> None:
    """Something that questions the scores: a note, or with --strict a reason not to start."""
    if found.options.scoring.strict:
        hint = "run without --strict to accept it"
        found.problems.append(PlanError(text, place, "no doubt about the scores (--strict)", "this one", hint))
    else:
        found.notes.append(text)


def _remarks(dataset: Dataset) -> list[str]:
    """What a person should know, though nothing is wrong."""
    notes = []
    if dataset.skipped:
        passed = plural(dataset.skipped, "file")
        notes.append(f"passed over {passed} in the input: no Parquet, hidden, or a name that starts with _")
    if dataset.rows == 0:
        notes.append("the input has no rows; the output will have none")
    if len(dataset.files) >= _TINY_FILES and dataset.rows / len(dataset.files) < _TINY_FILES:
        notes.append(f"{len(dataset.files):,} small files: opening them will take most of the time; compact them first")
    return notes
