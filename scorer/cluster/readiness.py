"""Check on every worker, before a row is scored, whether it can score; deliver the model to hosts without it."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field, replace
from socket import gethostname
from typing import TYPE_CHECKING, Any

from scorer.cluster.kinds.sizes import planned_processes
from scorer.display.words import plural, quoted_list
from scorer.errors import ClusterError, ModelError, PreflightError, ScorerError
from scorer.host import devices
from scorer.host.process import name_of_process
from scorer.host.versions import MUST_AGREE, versions
from scorer.locations import is_url
from scorer.model import copies
from scorer.model.resident import SESSIONS, unpacked_note
from scorer.model.session import usable_devices
from scorer.scoring.job import JOBS
from scorer.storage import refusals, stores
from scorer.storage.files import map_write_errors
from scorer.storage.stores import path_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from distributed import Client

    from scorer.cluster.connect import Workers
    from scorer.dataset.joins.spec import Join
    from scorer.model.copies import Planned
    from scorer.model.spec import SessionSpec
    from scorer.output.place import Place
    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.prepared import Plan
    from scorer.storage.files import FileId


_FILES = 16  # input files to check, first and last included: a folder that is not mounted lacks them all
_CHUNK = 32 << 20
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Question:
    """What a worker checks."""

    copies: tuple[Planned, ...]
    """The model, and other files that can be fetched or delivered."""
    inputs: tuple[FileId, ...]
    """Some input files."""
    marker: str
    """A file that the driver has just written into the work folder."""
    extra_files: tuple[str, ...]
    """Local files that feeds and operators need."""
    store_options: tuple[str, ...] = ()
    """How object stores are reached."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """How the workers got the model."""

    notices: tuple[str, ...]
    """What the user should know."""
    packed: str
    """How workers share the weights, in words; '' if they do not."""


@dataclass(slots=True)
class Answer:
    """What a worker found."""

    host: str
    process: str
    versions: dict[str, str]
    lacks: tuple[str, ...] = ()
    """Digests of what it can neither read nor fetch."""
    unseen_inputs: list[str] = field(default_factory=list)
    """Input files that do not exist there, or have another size."""
    missing_files: list[str] = field(default_factory=list)
    """Files of feeds and operators that do not exist there."""
    output_error: str = ""
    """Why it cannot write to the work folder; '' if it can."""
    refusals: list[ScorerError] = field(default_factory=list)
    """What object stores refuse to its credentials."""


def refuse_unfit(client: Client, plan: FrozenPlan, place: Place) -> Loaded:
    """Check all workers and load the model there; raise a `PreflightError` with every reason why they cannot score."""
    marker = place.marker()
    with map_write_errors(marker):
        marker.write_bytes(b"")
    try:
        files = [file.id for file in plan.files]
        step = max(1, len(files) // _FILES)
        planned = planned_copies(plan)
        some = (*files[::step][:_FILES], *files[-1:])
        question = Question(planned, some, str(marker), _extra_files(plan), stores.options())
        answers, problems = _ask(client, _answer, question)
        lacking = {
            (one.digest, answer.host): worker
            for worker, answer in answers.items()
            for one in planned
            if one.digest in answer.lacks
        }
        _deliver_to(client, planned, lacking)
        load_errors, unpacked = _load_errors(client, [scorer.session for scorer in plan.scorers], answers)
        join_errors = _join_errors(client, plan, answers)
    finally:
        with suppress(OSError):
            marker.unlink()
    problems += [*_problems(answers, load_errors, plan, place.folder), *join_errors]
    if problems:
        raise PreflightError(problems)
    models = {scorer.session.digest for scorer in plan.scorers}
    hosts = len({host for digest, host in lacking if digest in models})
    notices = [f"the model was copied to {plural(hosts, 'host')} that cannot read its file"] if hosts else []
    packs = any(scorer.session.pack for scorer in plan.scorers) and not unpacked
    packed = "packed once for the worker processes of each host" if packs else ""
    return Loaded((*notices, *map(unpacked_note, unpacked)), packed)


def planned_copies(plan: FrozenPlan) -> tuple[Planned, ...]:
    """Return the models, and the tokenizers that are behind URLs: workers fetch them, or the driver delivers them."""
    tokenizers = {
        (str(feed.setting("tokenizer")), str(feed.setting("sha256"))) for feed in plan.feeds if feed.kind == "text"
    }
    models = {scorer.session.digest: scorer.session for scorer in plan.scorers}  # two names may have one file
    return (*models.values(), *(copies.Copy.of_file(*one) for one in sorted(tokenizers) if is_url(one[0])))


def deliver(client: Client, planned: Planned, workers: Iterable[str]) -> None:
    """Copy a file into the model cache of the hosts of these workers; pass one worker for each host."""
    to, delivery = list(workers), uuid.uuid4().hex[:8]
    path = copies.local_copy(planned)
    if path is None:
        raise copies.missing(planned)
    for name in copies.names_of(planned):
        with open(os.path.join(os.path.dirname(path), name), "rb") as file:
            chunk = file.read(_CHUNK)
            while chunk:
                client.run(copies.receive, planned, delivery, name, chunk, workers=to)
                chunk = file.read(_CHUNK)
    client.run(_complete_delivery, planned, delivery, workers=to)


def _deliver_to(client: Client, planned: Iterable[Planned], lacking: dict[tuple[str, str], str]) -> None:
    """Deliver what hosts lack; `lacking` has a worker for each digest and host."""
    for one in planned:
        workers = [worker for (digest, _), worker in lacking.items() if digest == one.digest]
        if workers:
            deliver(client, one, workers)


class NewHosts:
    """Delivers the model to the hosts of workers that join after `refuse_unfit`, if they do not have it."""

    def __init__(self, client: Client, plan: FrozenPlan) -> None:
        self._client, self._planned = client, planned_copies(plan)
        self._known: set[str] = set(client.nthreads())

    def deliver(self) -> None:
        """Deliver the model to new hosts that do not have it."""
        new = [address for address in self._client.nthreads() if address not in self._known]
        if not new:
            return
        self._known.update(new)
        replies = self._client.run(_lacks, self._planned, workers=new, on_error="return")
        lacking = {(digest, host): worker for worker, (host, digests) in _answers(replies) for digest in digests}
        _deliver_to(self._client, self._planned, lacking)


def _answers(replies: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the replies that are not errors, with their workers."""
    return [(worker, answer) for worker, answer in replies.items() if not isinstance(answer, BaseException)]


def _ask(client: Client, function: Any, *arguments: Any) -> tuple[dict[str, Any], list[ScorerError]]:  # noqa: ANN401 - Dask's
    """Return what a function returns by worker, and an error that lists the workers that failed to answer."""
    replies = client.run(function, *arguments, on_error="return")
    failed = {worker: reply for worker, reply in replies.items() if isinstance(reply, BaseException)}
    problems: list[ScorerError] = []
    if failed:
        first = next(iter(failed.values()))
        problems.append(
            ClusterError(
                "workers cannot run scorer's check",
                where=_listed([*failed]),
                expected="workers that can import scorer",
                found=f"{type(first).__name__}: {first}",
                hint="install the same version of dask-scorer where the workers run, then restart them",
            )
        )
    if not replies:
        problems.append(
            ClusterError(
                "the cluster has no workers",
                where="the cluster",
                expected="at least one worker",
                found="none",
                hint="start workers, then repeat the command",
            )
        )
    return dict(_answers(replies)), problems


def _load_errors(
    client: Client, specs: Sequence[SessionSpec], answers: dict[str, Answer]
) -> tuple[dict[str, tuple[SessionSpec, str]], dict[str, None]]:
    """Load the models on every worker that answered.

    Returns by worker the first model that fails and its error, and why weights are not packed.
    """
    errors: dict[str, tuple[SessionSpec, str]] = {}
    unpacked: dict[str, None] = {}
    if not answers:
        return errors, unpacked
    for spec in specs:
        replies = client.run(_load, spec, workers=list(answers), on_error="return")
        for worker, reply in replies.items():
            error, why = (str(reply), "") if isinstance(reply, BaseException) else reply
            if error:
                errors.setdefault(worker, (spec, error))
            unpacked |= {why: None} if why else {}
    return errors, unpacked


def _join_errors(client: Client, plan: FrozenPlan, answers: dict[str, Answer]) -> list[ScorerError]:
    """Load the joined tables on every worker that answered; return each error once, with the workers that have it."""
    if not answers or not plan.joins:
        return []
    replies = client.run(_load_joins, plan.joins, workers=list(answers), on_error="return")
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for worker, (location, error) in _answers(replies):
        if error:
            groups[location, error].append(answers[worker].process)
    return [
        ClusterError(
            "workers cannot read a joined table",
            where=_listed(workers),
            expected=f"the planned contents of {location}",
            found=error,
            hint="put the table on a file system that every worker mounts at the same path, or on a store",
        )
        for (location, error), workers in groups.items()
    ]


def _problems(
    answers: dict[str, Answer], load_errors: dict[str, tuple[SessionSpec, str]], plan: FrozenPlan, folder: Path
) -> list[ScorerError]:
    """Return each problem once, with the workers that have it."""
    groups: dict[tuple[str, str, str, str], list[str]] = defaultdict(list)  # by what, expected, found and hint
    for worker, answer in answers.items():
        for problem in _other_versions(answer.versions, plan.versions):
            groups[problem].append(answer.process)
        if answer.unseen_inputs:
            mounted = (
                "put it on a file system that every worker mounts at the same path, or start the workers where it is"
            )
            remote = "give the workers credentials for the store, and the packages that read from it, then restart them"
            problem = (
                "workers do not see the input",
                "the planned files, with the planned sizes",
                quoted_list(answer.unseen_inputs, _SHOWN),
                remote if is_url(answer.unseen_inputs[0]) else mounted,
            )
            groups[problem].append(answer.process)
        if answer.missing_files:
            problem = (
                "workers do not see files that the run needs",
                "the planned files",
                quoted_list(answer.missing_files, _SHOWN),
                "put them on a file system that every worker mounts at the same path",
            )
            groups[problem].append(answer.process)
        if answer.output_error:
            problem = (
                "workers cannot write the output",
                f"write access to {folder}",
                answer.output_error,
                "choose an --output on a file system that every worker mounts at the same path and may write to",
            )
            groups[problem].append(answer.process)
        for refusal in answer.refusals:
            groups[f"{refusal.what} on workers", refusal.expected, refusal.found, refusal.hint].append(answer.process)
        if worker in load_errors:
            spec, error = load_errors[worker]
            problem = (
                "the model does not load on workers",
                f"{spec.path} on {spec.device}",
                error,
                "run `scorer doctor` on the hosts of these workers",
            )
            groups[problem].append(answer.process)
    return _grouped(groups)


def _grouped(groups: Mapping[tuple[str, str, str, str], Sequence[str]]) -> list[ScorerError]:
    """Return an error for each problem, which lists its workers."""
    return [
        ClusterError(what, where=_listed(workers), expected=expected, found=found, hint=hint)
        for (what, expected, found, hint), workers in groups.items()
    ]


def _other_versions(installed: dict[str, str], planned: Mapping[str, str]) -> Iterator[tuple[str, str, str, str]]:
    """Yield a problem for each package whose version on a worker is not that of the plan."""
    for name in MUST_AGREE:
        wanted, found = planned.get(name, ""), installed.get(name, "nothing")
        if wanted and found != wanted:
            package = "dask-scorer" if name == "scorer" else name
            hint = f"install {package} {wanted} where the workers run, then restart them"
            yield f"workers have another version of {name}", f"{name} {wanted}", found, hint


def describe(client: Client) -> dict[str, str]:
    """Return in words what each worker has; raise `PreflightError` if one cannot work with this process."""
    answers, problems = _ask(client, _described)
    groups: dict[tuple[str, str, str, str], list[str]] = defaultdict(list)
    for process, installed, _ in answers.values():
        for problem in _other_versions(installed, versions()):
            groups[problem].append(process)
    problems += _grouped(groups)
    if problems:
        raise PreflightError(problems)
    threads = client.nthreads()
    return {
        f"worker {process}": f"{plural(threads.get(worker, 0), 'thread')}; devices: {', '.join(found)}"
        for worker, (process, _, found) in answers.items()
    }


async def _described() -> tuple[str, dict[str, str], list[str]]:
    """Return a worker's process, its versions, and the devices that work there."""
    return name_of_process(), versions(), await asyncio.to_thread(usable_devices)


def _listed(workers: Sequence[str]) -> str:
    return f"{len(workers)} workers: {quoted_list(workers, _SHOWN)}" if len(workers) > 1 else workers[0]


def _extra_files(plan: FrozenPlan) -> tuple[str, ...]:
    """Return the absolute paths of tokenizers, vocabularies and libraries."""
    settings = {str(value) for feed in plan.feeds for name, value in feed.settings if name in {"tokenizer", "vocab"}}
    libraries = {scorer.session.library for scorer in plan.scorers}
    return tuple(sorted(path for path in settings | libraries if os.path.isabs(path)))


async def _answer(question: Question) -> Answer:
    """Run `_check` on a worker, in a thread beside its event loop."""
    return await asyncio.to_thread(_check, question)


def _check(question: Question) -> Answer:
    answer = Answer(gethostname(), name_of_process(), versions())
    answer.refusals = _refusals(question)
    if answer.refusals:
        return answer
    answer.lacks = _lacking(question.copies)
    answer.unseen_inputs = [file.path for file in question.inputs if not _sees(file)]
    answer.missing_files = [path for path in question.extra_files if not os.path.isfile(path)]
    answer.output_error = _write_error(question.marker)
    return answer


def _refusals(question: Question) -> list[ScorerError]:
    """Return what stores refuse to this worker: to read the first input, and to write beside the output."""
    conflict = JOBS.configure_stores(question.store_options)
    if conflict is not None:
        return [conflict]
    first, folder = question.inputs[0].path if question.inputs else "", question.marker.rpartition("/")[0]
    found = [refusals.read_problem(first)] if refusals.asks(first) else []
    found += [refusals.write_problem(folder)] if refusals.asks(folder) else []
    return [problem for problem in found if problem is not None]


def _sees(file: FileId) -> bool:
    """Return whether a file of this size is there; whether it changed is checked when its rows are read."""
    try:
        return stores.identity(file.path, hasty=True).size == file.size
    except (OSError, ScorerError):  # such as a missing package
        return False


def _write_error(marker: str) -> str:
    """Return why this worker cannot write beside the driver's marker; '' if it can."""
    seen = path_of(marker)
    if not seen.is_file():
        return "no folder, or another one, at this path"
    own = seen.with_name(f"{seen.name}.{uuid.uuid4().hex[:8]}")
    try:
        own.write_bytes(b"")
        own.unlink()
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)
    return ""


async def _load(spec: SessionSpec) -> tuple[str, str]:
    """Load the model on a worker; return why it does not load, or '', and why its weights are not packed, or ''."""
    try:
        await asyncio.to_thread(SESSIONS.session, spec)
    except ScorerError as error:
        return f"{error.what}: {error.found}", ""
    return "", SESSIONS.why_unpacked(spec)


async def _load_joins(joins: tuple[Join, ...]) -> tuple[str, str]:
    """Load joined tables on a worker; return the location of one that does not load, and why; '' if all do."""
    from scorer.dataset.joins import lookup  # noqa: PLC0415 - only for joined tables

    for join in joins:
        try:
            await asyncio.to_thread(lookup.table, join, shared=True)
        except ScorerError as error:
            return join.location, f"{error.what}: {error.found}"
    return "", ""


async def _lacks(planned: tuple[Planned, ...]) -> tuple[str, tuple[str, ...]]:
    """Return a worker's host, and the digests of what that host can neither read nor fetch."""
    return gethostname(), await asyncio.to_thread(_lacking, planned)


def _lacking(planned: Iterable[Planned]) -> tuple[str, ...]:
    return tuple(one.digest for one in planned if not _has(one))


def _has(planned: Planned) -> bool:
    try:
        return copies.local_copy(planned) is not None
    except ModelError:
        return True  # it has another one: loading it raises


async def _complete_delivery(planned: Planned, delivery: str) -> bool:
    """Put what was delivered into the cache of a worker's host."""
    return await asyncio.to_thread(copies.complete, planned, delivery)


def plan_for(workers: Workers, frozen: FrozenPlan, plan: Plan) -> FrozenPlan:
    """Return the plan as these workers carry it out: with the index of their GPU, the engine for trees, packed weights.

    Processes and jobs that scorer starts see one GPU each, so theirs is 0. Other workers use the requested index.
    """
    requested = plan.options.session
    gpu = 0 if workers.own_scheduler and workers.remote else devices.parse(requested.device).first
    share = requested.pack and (planned_processes(plan.options.cluster, plan.cluster) > 1 or workers.share_hosts())
    scorers = []
    for one in frozen.scorers:
        model, trees = plan.models.get(one.name), one.session.trees and requested.trees != "runtime"
        pack = share and model is not None and model.can_be_packed(one.session)
        scorers.append(replace(one, session=replace(one.session, gpu=gpu, trees=trees, pack=pack)))
    return replace(frozen, scorers=tuple(scorers))
