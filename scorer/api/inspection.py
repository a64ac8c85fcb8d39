"""inspect: what a model needs; with data, also what is fed, what comes out, and whether rows are independent."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorer.api.execution import Run
from scorer.binding import advice
from scorer.cluster import readiness
from scorer.cluster.connect import connect
from scorer.errors import InputError, PreflightError
from scorer.events import Notice
from scorer.options.grammar import feed_line
from scorer.options.request import build
from scorer.preflight import checks
from scorer.storage import stores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scorer.binding.spec import Binding, Feed, Fetch
    from scorer.cluster.connect import Workers
    from scorer.errors import ScorerError
    from scorer.model.spec import ModelSpec
    from scorer.model.stages.cutting import Stages
    from scorer.options.fields import ClusterOptions, Options


def inspect_cluster(options: ClusterOptions, notify: Callable[[str], None]) -> dict[str, str]:
    """Start or connect to the workers, ask each what it has, and close them; return the answers in words."""
    with tempfile.TemporaryDirectory() as folder, connect(options, Path(folder), notify=notify) as workers:
        return _described(workers)


def inspect_workers(options: Options, notify: Callable[[str], None]) -> dict[str, str]:
    """Start the workers of a request, check that each can score it, and close them; return what they have in words.

    Every reason why a worker cannot score is raised as one `PreflightError`. Nothing is left beside the output.
    """
    run = Run(checks.prepare(options), [lambda event: notify(event.text) if isinstance(event, Notice) else None])
    try:
        with run.connect_workers(None) as workers, run.publishing.hold(run.place, notify) as held:
            run.publishing.probe(run.place, held)
            if workers.client is not None and workers.remote and workers.client.nthreads():
                readiness.refuse_unfit(workers.client, readiness.plan_for(workers, run.frozen, run.plan), run.place)
            return _described(workers)
    finally:
        with suppress(OSError):  # a run that is not finished is there
            run.place.local_folder.rmdir()


def _described(workers: Workers) -> dict[str, str]:
    remote = workers.client is not None and workers.remote
    return {"workers": workers.description, **(readiness.describe(workers.client) if remote else {})}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """The result of `scorer inspect`."""

    model: ModelSpec
    feeds: tuple[Feed, ...] = ()
    fetches: tuple[Fetch, ...] = ()
    rows: str = "not tested; pass --input DATA to score some rows"
    """Whether rows are scored independently of each other, in words."""
    notes: tuple[str, ...] = ()
    problems: tuple[ScorerError, ...] = ()
    stages: Stages | None = None
    """The stages of the model, if a number of them was given."""

    @property
    def feed_lines(self) -> list[str]:
        """The --feed flags to copy."""
        fed = {feed.tensor for feed in self.feeds}
        lines = [feed_line(feed.tensor, feed.columns) for feed in self.feeds if not feed.settings]
        return [*lines, *advice.feed_lines(self.model, fed)]

    @property
    def fetch_lines(self) -> list[str]:
        """The --fetch flags to copy."""
        return advice.fetch_lines(self.model)

    def to_dict(self) -> dict[str, Any]:
        """Return the inspection as data for JSON."""
        return {
            **self.model.to_dict(),
            "feed": [asdict(feed) for feed in self.feeds],
            "fetch": [asdict(fetch) for fetch in self.fetches],
            "feed_lines": self.feed_lines,
            "fetch_lines": self.fetch_lines,
            "rows": self.rows,
            "notes": list(self.notes),
            "problems": [problem.to_dict() for problem in self.problems],
            "stages": self.stages.to_dict() if self.stages is not None else None,
        }


def inspect(
    model: ModelSpec,
    inputs: Sequence[str],
    feed: Sequence[str] = (),
    fetch: Sequence[str] = (),
    *,
    by_position: bool = False,
    labels: Sequence[str] = (),
    batch_axis: Sequence[str] = (),
    given: str = "",
) -> Inspection:
    """Inspect a model; with inputs, also score some of their rows. Nothing is written.

    `given` is what --model would be, if that is not the model's file.
    """
    if not inputs:
        return Inspection(model=model)
    with tempfile.TemporaryDirectory() as folder:  # an output path that certainly does not exist
        output = str(Path(folder) / "out")
        plan = checks.prepare(build({
            "input": tuple(inputs), "model": given or model.path, "output": output, "feed": tuple(feed),
            "by_position": by_position, "fetch": tuple(fetch), "labels": tuple(labels),
            "batch_axis": tuple(batch_axis), "store_option": stores.options(given=True),
            "keep": "none", "tune": False, "max_bad_rows": "100%",
        }))  # fmt: skip
    frozen = plan.frozen
    if any(isinstance(problem, InputError) for problem in plan.problems):  # no rows to score
        raise PreflightError(plan.problems)
    if frozen is None:
        return Inspection(model=model, feeds=plan.matched, problems=plan.problems, notes=plan.notes)
    return Inspection(
        model=model,
        feeds=frozen.feeds,
        fetches=frozen.fetches,
        rows=plan.canary or _uncompared(frozen.scorers[0].binding),
        notes=tuple(note for note in (frozen.unused, *plan.notes) if note not in {"", plan.canary}),
    )


def with_stages(found: Inspection, count: int) -> Inspection:
    """Return the inspection with the model cut into `count` stages; raise if it cannot be cut."""
    from scorer.model.stages.cutting import cut_model  # noqa: PLC0415 - only with --stages

    return replace(found, stages=cut_model(found.model, count)[0])


def _uncompared(binding: Binding) -> str:
    """Return why no rows were compared."""
    if binding.any_size:
        return "independent: pictures of any size are scored one at a time"
    return "independent: the model takes one row at a time" if binding.fixed_batch == 1 else "too few to compare"
