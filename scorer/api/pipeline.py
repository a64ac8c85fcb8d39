"""prepare, execute and run: plan a run, execute a plan, or do both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from scorer.api.execution import Run
from scorer.options.request import build
from scorer.preflight import checks
from scorer.report.notebook import watching

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scorer.cluster.connect import Client, Cluster
    from scorer.events import Observer
    from scorer.options.fields import Options
    from scorer.options.keywords import RequestArguments
    from scorer.plan.prepared import Plan
    from scorer.report.outcome import Report


def prepare(
    input: str | Path | Sequence[str | Path],  # noqa: A002 - the same name as the TOML key
    model: str | Path,
    output: str | Path | None = None,
    **options: Unpack[RequestArguments],  # one keyword per flag, checked by type checkers and at run time
) -> Plan:
    """Return what a run would do, or every reason why it cannot be done.

    Reads footers and a few hundred rows; writes nothing.

    Parameters
    ----------
    input
        Parquet files, folders or patterns, scored in this order: a path as text or ``Path``, or a list of paths.
        A frame in memory is scored by `score`.
    model
        The path of an ``.onnx`` file.
    output
        Folder for the result; by default beside the input.
    **options
        One keyword per flag of ``scorer run``, such as ``feed``, ``keep``, ``batch_rows``.

    Examples
    --------
    >>> plan = prepare("examples/flights/flights.parquet", "examples/flights/late.onnx")
    >>> plan.problems
    ()

    """
    return prepare_options(build({"input": input, "model": model, "output": output, **options}))


def execute(
    plan: Plan,
    *,
    client: Client | Cluster | None = None,
    observers: Sequence[Observer] = (),
    progress: bool | None = None,
) -> Report:
    """Score the parts of a plan and publish the output.

    Parameters
    ----------
    plan
        From `prepare`. Its problems, if any, are raised together.
    client
        A Dask client to use, or a cluster such as ``LocalCluster``; it is not closed. By default, scorer
        creates an embedded cluster and closes it.
    observers
        Functions that are called with each event, in the driver.
    progress
        Whether to show progress, in the cell of a notebook or else on stderr. By default it is shown in a
        cell if there are no observers.

    Examples
    --------
    >>> report = execute(plan)  # doctest: +SKIP

    """
    with watching(progress, observers) as watch:
        return watch.ended(Run(plan, watch.observers).execute(client))


def run(
    input: str | Path | Sequence[str | Path],  # noqa: A002 - the same name as the TOML key
    model: str | Path,
    output: str | Path | None = None,
    *,
    client: Client | Cluster | None = None,
    observers: Sequence[Observer] = (),
    progress: bool | None = None,
    **options: Unpack[RequestArguments],  # one keyword per flag, checked by type checkers and at run time
) -> Report:
    """Prepare, check and execute: what ``scorer run`` does.

    Parameters are those of `prepare` and `execute`.

    Examples
    --------
    >>> run("input.parquet", "m.onnx", keep="none").counts.scored  # doctest: +SKIP

    """
    with watching(progress, observers) as watch:
        plan = prepare(input, model, output, **options)
        return watch.ended(_execute_and_follow(plan, client, watch.observers))


def execute_and_follow(plan: Plan, observers: Sequence[Observer]) -> Report:
    """Execute a plan as ``scorer run`` does, which shows progress itself."""
    with watching(progress=False, observers=observers) as watch:
        return watch.ended(_execute_and_follow(plan, None, watch.observers))


def _execute_and_follow(plan: Plan, client: Client | Cluster | None, observers: Sequence[Observer]) -> Report:
    """Execute a plan. If it finished an earlier run with --new-only, score what is new since then, too."""
    first = Run(plan, observers)
    report = first.execute(client)
    if not (plan.resumes and plan.options.out.new_only):
        return report
    following = checks.prepare(plan.options)
    if following.done:
        return report
    first.emit_notice("the run that was unfinished is finished; now scoring the files that are new since then")
    return Run(following, observers).execute(client)


def prepare_options(options: Options) -> Plan:
    """Prepare a checked request."""
    return checks.prepare(options)
