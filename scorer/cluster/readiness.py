"""Ask every worker, before a row is scored, whether it can do the work; and bring the model where it is missing."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from socket import gethostname
from typing import TYPE_CHECKING, Any

from scorer.display.words import quoted_list
from scorer.errors import ClusterError, PreflightError, ScorerError
from scorer.host.process import name_of_process
from scorer.host.versions import MUST_AGREE, versions
from scorer.model import copies
from scorer.model.resident import SESSIONS
from scorer.storage.files import map_write_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from distributed import Client

    from scorer.model.spec import SessionSpec
    from scorer.plan.frozen import FrozenPlan
    from scorer.storage.files import FileId


_FILES = 16  # of the input, first and last among them: a folder that is not mounted hides them all
_CHUNK = 32 << 20
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Question:
    """What a worker is asked."""

    model: SessionSpec
    inputs: tuple[FileId, ...]
    sign: str
    """A file that the driver has just written into the work folder."""
    others: tuple[str, ...]
    """Files that feeds and operators need."""


@dataclass(slots=True)
class Answer:
    """What a worker found."""

    host: str
    process: str
    versions: dict[str, str]
    model: bool
    unseen: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    output: str = ""
    """Why it cannot write there."""
    load: str = ""
    """Why the model does not load."""


def refuse_unfit(client: Client, plan: FrozenPlan, folder: Path) -> int:
    """Raise every reason why the workers cannot score this plan, together.

    Gives the number of hosts that the model was brought to.
    """
    sign = folder / f"seen-{uuid.uuid4().hex[:8]}"
    with map_write_errors(sign):
        sign.touch()
    try:
        files = [file.id for file in plan.files]
        step = max(1, len(files) // _FILES)
        question = Question(plan.session, (*files[::step][:_FILES], *files[-1:]), str(sign), _others(plan))
        answers, complaints = _ask(client, question)
        lacking = {answer.host: worker for worker, answer in answers.items() if not answer.model}
        if lacking:
            deliver_model(client, plan.session, lacking.values())
        loads, more = _loaded(client, plan.session, answers)
        complaints += more
    finally:
        with suppress(OSError):
            sign.unlink()
    complaints += _complaints(answers, loads, plan, folder)
    if complaints:
        raise PreflightError(complaints)
    return len(lacking)


def deliver_model(client: Client, spec: SessionSpec, workers: Iterable[str]) -> None:
    """Put the model on the shelf of the hosts of these workers, one worker for each host."""
    to, delivery = list(workers), uuid.uuid4().hex[:8]
    for name in copies.model_files(spec):
        with open(os.path.join(os.path.dirname(spec.path), name), "rb") as file:
            chunk = file.read(_CHUNK)
            while chunk:
                client.run(copies.receive, spec, delivery, name, chunk, workers=to)
                chunk = file.read(_CHUNK)
    client.run(_complete, spec, delivery, workers=to)


class NewHosts:
    """Workers that came after the census: each new host gets the model if it lacks it."""

    def __init__(self, client: Client, spec: SessionSpec) -> None:
        self._client, self._spec = client, spec
        self._known: set[str] = set(client.nthreads())

    def deliver(self) -> None:
        """Bring the model to hosts that are new."""
        new = [address for address in self._client.nthreads() if address not in self._known]
        if not new:
            return
        self._known.update(new)
        said = self._client.run(_has, self._spec, workers=new, on_error="return")
        lacking = {host: worker for worker, (host, has) in _answers(said) if not has}
        if lacking:
            deliver_model(self._client, self._spec, lacking.values())


def _answers(said: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(worker, answer) for worker, answer in said.items() if not isinstance(answer, BaseException)]


def _ask(client: Client, question: Question) -> tuple[dict[str, Answer], list[ScorerError]]:
    """Answers by worker, and a complaint about those that gave none."""
    said = client.run(_look, question, on_error="return")
    silent = {worker: said_ for worker, said_ in said.items() if isinstance(said_, BaseException)}
    complaints: list[ScorerError] = []
    if silent:
        first = next(iter(silent.values()))
        what, hint = "workers cannot be asked", "install the same dask-scorer where they run, and start them again"
        complaints.append(
            ClusterError(what, _who(silent), "workers that can import scorer", f"{type(first).__name__}: {first}", hint)
        )
    if not said:
        what, hint = "no worker is there to be asked", "start workers, and repeat the command"
        complaints.append(ClusterError(what, "the cluster", "at least one worker", "none", hint))
    return dict(_answers(said)), complaints


def _loaded(client: Client, spec: SessionSpec, answers: dict[str, Answer]) -> tuple[dict[str, str], list[ScorerError]]:
    """What each worker that can be asked says to loading the model."""
    if not answers:
        return {}, []
    said = client.run(_load, spec, workers=list(answers), on_error="return")
    return {worker: str(error) for worker, error in said.items() if error}, []


def _complaints(answers: dict[str, Answer], loads: dict[str, str], plan: FrozenPlan, folder: Path) -> list[ScorerError]:
    """What is wrong, each thing once, with the workers of which it is true."""
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for worker, answer in answers.items():
        who = answer.process
        for name in MUST_AGREE:
            planned, there = plan.versions.get(name, ""), answer.versions.get(name, "nothing")
            if planned and there != planned:
                hint = f"install {name} {planned} where the workers run, or plan with theirs"
                groups["workers have another version of " + name, f"{name} {planned}", there, hint].append(who)
        if answer.unseen:
            hint = "put it on a file system that every worker mounts at the same path, or start the workers where it is"
            groups[
                "workers do not see the input", "the files as planned", quoted_list(answer.unseen, _SHOWN), hint
            ].append(who)
        if answer.missing:
            hint = "put them on a file system that every worker mounts at the same path"
            groups[
                "workers do not see files that the run needs",
                "the files as planned",
                quoted_list(answer.missing, _SHOWN),
                hint,
            ].append(who)
        if answer.output:
            hint = "choose an --output on a file system that every worker mounts at the same path and may write to"
            groups["workers cannot write the output", str(folder), answer.output, hint].append(who)
        if worker in loads:
            what = "the model does not load on workers"
            groups[
                what, f"{plan.session.path} on {plan.session.device}", loads[worker], "see `scorer doctor` there"
            ].append(who)
    return [
        ClusterError(what, _named(who), expected, found, hint) for (what, expected, found, hint), who in groups.items()
    ]


def _who(workers: dict[str, Any]) -> str:
    return _named(list(workers))


def _named(workers: Sequence[str]) -> str:
    return f"{len(workers)} workers: {quoted_list(workers, _SHOWN)}" if len(workers) > 1 else workers[0]


def _others(plan: FrozenPlan) -> tuple[str, ...]:
    """Tokenizers, vocabularies and libraries, by path."""
    settings = {
        str(value) for feed in plan.binding.feeds for name, value in feed.settings if name in {"tokenizer", "vocab"}
    }
    library = {plan.session.library} if os.path.isabs(plan.session.library) else set()
    return tuple(sorted(path for path in settings | library if os.path.isabs(path)))


async def _look(question: Question) -> Answer:
    """Runs on a worker, beside its event loop."""
    return await asyncio.to_thread(_looked, question)


def _looked(question: Question) -> Answer:
    answer = Answer(gethostname(), name_of_process(), versions(), copies.local_spec(question.model) is not None)
    answer.unseen = [file.path for file in question.inputs if not _sees(file)]
    answer.missing = [path for path in question.others if not os.path.isfile(path)]
    answer.output = _unwritable(question.sign)
    return answer


def _sees(file: FileId) -> bool:
    """Return whether a file of this size is there; whether it changed is checked when its rows are read."""
    try:
        return os.path.getsize(file.path) == file.size
    except OSError:
        return False


def _unwritable(sign: str) -> str:
    """Why the folder of the sign is not the driver's, or cannot be written to; '' if all is well."""
    if not os.path.isfile(sign):
        return "the folder is not there, or is another one"
    own = f"{sign}.{uuid.uuid4().hex[:8]}"
    try:
        with open(own, "w", encoding="utf-8"):
            pass
        os.unlink(own)
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)
    return ""


async def _load(spec: SessionSpec) -> str:
    """Runs on a worker: why the model does not load."""
    try:
        await asyncio.to_thread(SESSIONS.session, spec)
    except ScorerError as error:
        return f"{error.what}: {error.found}"
    return ""


async def _has(spec: SessionSpec) -> tuple[str, bool]:
    """Runs on a worker."""
    return gethostname(), await asyncio.to_thread(copies.local_spec, spec) is not None


async def _complete(spec: SessionSpec, delivery: str) -> bool:
    """Runs on a worker."""
    return await asyncio.to_thread(copies.complete, spec, delivery)
