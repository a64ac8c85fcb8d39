"""The command line: parse, call, print, exit."""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import replace
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, NoReturn

import click

from scorer.cli.flags import HEADINGS, JSON, asking, asking_cluster, cluster_of, files, folders, options_of
from scorer.cli.startup import fast_imports
from scorer.display.words import did_you_mean
from scorer.errors import BatchStalled, CommitError, Interrupted, OptionsError, PreflightError, ScorerError
from scorer.options.values import QUEUES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scorer.display.terminal import Terminal


_WORK_DIR = click.option(
    "--work-dir", metavar="DIR", shell_complete=folders, help="Where the run kept its proof; default: OUT.scorer."
)
_OUT = click.argument("output", metavar="OUT", shell_complete=folders)
_WATCH_S = 2.0


class _Group(click.Group):
    """Knows what was meant."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, in our form; flags belong behind the command."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            hint = f"flags follow the command: scorer run INPUT --model FILE {error.option_name} ..."
            what = f"there is no option {error.option_name!r} before the command"
            _fail(OptionsError(what, "scorer", "a command", repr(error.option_name), hint), given)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with a suggestion."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in self.commands:
            what, hint = f"there is no command {name!r}", did_you_mean(name, sorted(self.commands))
            if os.path.exists(name):
                hint = f"scorer run {name} --model FILE"
            _fail(OptionsError(what, "scorer", "a command", repr(name), hint), args)
        return super().resolve_command(ctx, args)


class _Command(click.Command):
    """Click's usage errors in our form, and flags below what they decide."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """A section for each group of the options, in their words."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                sections.setdefault(HEADINGS.get(param.name or "", "Options"), []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, with our text for what does not parse."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            known = [option for p in self.params for option in p.opts if option.startswith("--")]
            what, hint = f"there is no option {error.option_name!r}", did_you_mean(error.option_name, known)
            _fail(OptionsError(what, f"scorer {self.name}", "a flag", repr(error.option_name), hint), given)
        except click.UsageError as error:
            what, hint = error.format_message().rstrip("."), f"scorer {self.name} --help"
            usage = self.get_usage(ctx).removeprefix("Usage: ")
            _fail(OptionsError(what, f"scorer {self.name}", usage, " ".join(given) or "nothing", hint), given)


def _fail(error: ScorerError, args: Sequence[str] = (), *, as_json: bool = False) -> NoReturn:
    if as_json or "--json" in args:
        click.echo(json.dumps({"error": error.to_dict()}))
    from scorer.display.terminal import error_text, terminal_of  # noqa: PLC0415 - only when something is wrong

    click.echo(error_text(str(error), terminal_of(sys.stderr)), err=True)
    sys.exit(error.exit_code)


def reporting(body: Callable[..., None]) -> Callable[..., None]:
    """Turn our errors into text and an exit code; anything else is a bug and looks like one."""

    @wraps(body)
    def wrapped(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - click's values
        try:
            body(*args, **kwargs)
        except ScorerError as error:
            if kwargs.get("debug"):
                raise
            try:
                _fail(error, as_json=kwargs.get("as_json", False))
            finally:
                if isinstance(error, BatchStalled):  # a thread is in native code for good
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(error.exit_code)
        except KeyboardInterrupt:
            from scorer.host.signals import AT_ONCE  # noqa: PLC0415 - start-up

            click.echo(AT_ONCE, err=True)
            sys.stderr.flush()
            os._exit(Interrupted.exit_code)  # threads of the runtime must not hold us back

    return wrapped


def _show(value: dict[str, Any], text: Callable[[Terminal], str], *, as_json: bool) -> None:
    from scorer.cli.text import printable  # noqa: PLC0415 - start-up
    from scorer.display.terminal import terminal_of  # noqa: PLC0415 - start-up

    here = terminal_of(sys.stdout)
    shown = json.dumps(value) if as_json else text(here)
    click.echo(shown if here.colours and not as_json else printable(shown))  # paint would not get through


@click.group(
    name="scorer", cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="dask-scorer", message="scorer %(version)s")
def main() -> None:
    """Score Parquet datasets with ONNX models, on Dask; and prove that no row was lost.

    \b
    Example:
      scorer run input.parquet --model m.onnx
    """


@main.command(cls=_Command)
@asking
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("-v", "--verbose", is_flag=True, help="Show the plan before the run.")
@reporting
def run(config: str | None, as_json: bool, quiet: bool, verbose: bool, debug: bool, **given: Any) -> None:  # noqa: ANN401, ARG001, FBT001 - click's values
    """Score INPUT (files, folders, globs) and publish the result.

    \b
    Examples:
      scorer run flights.parquet --model late.onnx
      scorer run data/ --model m.onnx --output scores --feed 'x=f0..f27' --keep id
    """
    options = options_of(config, given)
    with fast_imports():
        from scorer.api.pipeline import execute, prepare_options  # noqa: PLC0415 - start-up
        from scorer.cli.text import plan_text, report_text  # noqa: PLC0415 - start-up
        from scorer.display.terminal import terminal_of  # noqa: PLC0415 - start-up
        from scorer.report.live import watching  # noqa: PLC0415 - start-up

    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # a closing cluster's forgotten futures
    here, still = replace(terminal_of(sys.stderr), colours=False), options.cluster.cluster == "synchronous"
    with watching(sys.stderr, quiet=quiet, still=still) as observers:
        plan = prepare_options(options)
        if verbose and not plan.problems:
            click.echo(plan_text(plan, here), err=True)
        report = execute(plan, observers=observers, progress=False)
    _show(report.to_dict(), partial(report_text, report), as_json=as_json)


@main.command(cls=_Command)
@asking
@reporting
def plan(config: str | None, as_json: bool, debug: bool, **given: Any) -> None:  # noqa: ANN401, ARG001, FBT001 - click's values
    """Say what `run` with the same flags would do; write nothing.

    \b
    Example:
      scorer plan flights.parquet --model late.onnx
    """
    options = options_of(config, given)
    with fast_imports():
        from scorer.api.pipeline import prepare_options  # noqa: PLC0415 - start-up
        from scorer.cli.text import plan_text  # noqa: PLC0415 - start-up

    found = prepare_options(options)
    if found.problems:
        raise PreflightError(found.problems)
    _show(found.to_dict(), partial(plan_text, found), as_json=as_json)


@main.command(cls=_Command)
@asking
@click.option(
    "--turns", type=click.IntRange(min=1), default=5, metavar="N", help="How often everybody runs; default 5."
)
@click.option("--peers", type=click.Path(exists=True, file_okay=False), metavar="DIR", help="Scripts of other tools.")
@click.option("--peers-python", default=sys.executable, metavar="FILE", help="The Python that has the other tools.")
@reporting
def bench(
    config: str | None, as_json: bool, debug: bool, turns: int, peers: str | None, peers_python: str, **given: Any,  # noqa: ANN401, ARG001, FBT001
) -> None:  # fmt: skip
    """Measure what `run` with the same flags costs beside a loop written by hand, and beside other tools.

    Whole processes in turns, on a copy of the job beside the input (or --output); their scores are compared first.

    \b
    Example:
      scorer bench flights.parquet --model late.onnx --turns 15
    """
    options = options_of(config, given)
    from pathlib import Path  # noqa: PLC0415 - start-up

    from scorer.cli.bench import bench as measure  # noqa: PLC0415 - start-up
    from scorer.cli.text import bench_text  # noqa: PLC0415 - start-up

    found = measure(options, turns, Path(peers) if peers else None, peers_python)
    _show(found.to_dict(), partial(bench_text, found), as_json=as_json)


@main.command(cls=_Command)
@click.argument("model", metavar="MODEL", shell_complete=files)
@click.option(
    "--input", "input_", metavar="DATA", multiple=True, shell_complete=files, help="Try some rows of this input."
)
@click.option("--feed", multiple=True, metavar="TENSOR=COLUMNS", help="As for run.")
@click.option("--fetch", multiple=True, metavar="TENSOR[=COLUMN]", help="As for run.")
@JSON
@reporting
def inspect(
    model: str,
    input_: tuple[str, ...],
    feed: tuple[str, ...],
    fetch: tuple[str, ...],
    as_json: bool,  # noqa: FBT001 - click's value
) -> None:
    """Show what MODEL takes and gives, and lines to paste.

    With --input also what it would be fed, what would come out, and whether a row's score depends on its
    neighbours.

    \b
    Example:
      scorer inspect late.onnx --input flights.parquet
    """
    from scorer.cli.text import inspection_text  # noqa: PLC0415 - start-up
    from scorer.model.protobuf import inspect_model  # noqa: PLC0415 - start-up

    spec = inspect_model(model)
    from scorer.api import inspection  # noqa: PLC0415 - start-up

    found = inspection.inspect(spec, input_, feed, fetch)
    _show(found.to_dict(), partial(inspection_text, found), as_json=as_json)
    if found.problems:
        _fail(PreflightError(found.problems))


@main.command(cls=_Command)
@_OUT
@click.option("--deep", is_flag=True, help="Read every page and value, not only the footers.")
@click.option(
    "--rescore", type=click.IntRange(min=0), default=0, metavar="N",
    help="Score N random rows again, each with its part, and compare; needs the input and the model.",
)  # fmt: skip
@_WORK_DIR
@JSON
@reporting
def verify(output: str, deep: bool, rescore: int, work_dir: str | None, as_json: bool) -> None:  # noqa: FBT001 - click's values
    """Prove OUT again from its files: rows in = scored + quarantined + filtered.

    \b
    Example:
      scorer verify flights.scored.parquet --deep
    """
    from scorer.api.verification import verify as check  # noqa: PLC0415 - start-up
    from scorer.cli.text import verdict_text  # noqa: PLC0415 - start-up
    from scorer.output.place import Place  # noqa: PLC0415 - start-up

    verdict = check(Place.of(output, work_dir), deep=deep, rescore=rescore)
    _show(verdict.to_dict(), partial(verdict_text, verdict), as_json=as_json)
    if not verdict.whole:
        sys.exit(CommitError.exit_code)


@main.command(cls=_Command)
@_OUT
@click.option("--watch", is_flag=True, help="Look again every two seconds until the run ends.")
@_WORK_DIR
@JSON
@reporting
def status(output: str, watch: bool, work_dir: str | None, as_json: bool) -> None:  # noqa: FBT001 - click's values
    """Say how far the run that writes OUT is, from its files only: on this host or on any that sees them.

    \b
    Examples:
      scorer status scores
      scorer status scores --watch
    """
    from scorer.cli.text import status_lines, status_text  # noqa: PLC0415 - start-up
    from scorer.display.terminal import terminal_of  # noqa: PLC0415 - start-up
    from scorer.output.place import Place  # noqa: PLC0415 - start-up
    from scorer.report.live import follow  # noqa: PLC0415 - start-up
    from scorer.report.status import state_of  # noqa: PLC0415 - start-up

    place = Place.of(output, work_dir)
    value = state_of(place)
    if watch and value["state"] == "running":

        def again() -> list[str] | None:
            now = state_of(place)
            lines = [json.dumps(now)] if as_json else status_lines(now, terminal_of(sys.stdout))
            return lines if now["state"] == "running" else None

        follow(again, sys.stdout, _WATCH_S)
        value = state_of(place)
    _show(value, partial(status_text, value), as_json=as_json)


@main.command(cls=_Command)
@_OUT
@_WORK_DIR
@JSON
@reporting
def report(output: str, work_dir: str | None, as_json: bool) -> None:  # noqa: FBT001 - click's value
    """Make report.html of OUT again, from the proof beside it, and say where it is.

    \b
    Example:
      scorer report scores
    """
    from scorer.cli.text import facts_text  # noqa: PLC0415 - start-up
    from scorer.output.place import Place  # noqa: PLC0415 - start-up
    from scorer.report.page import write_again  # noqa: PLC0415 - start-up

    value = {"report": str(write_again(Place.of(output, work_dir)))}
    _show(value, partial(facts_text, value), as_json=as_json)


@main.command(cls=_Command)
@JSON
@reporting
def doctor(as_json: bool) -> None:  # noqa: FBT001 - click's value
    """Show what is installed, which devices are there and what to type where something is missing.

    \b
    Example:
      scorer doctor
    """
    from scorer.cli.doctor import examine  # noqa: PLC0415 - start-up
    from scorer.cli.text import facts_text  # noqa: PLC0415 - start-up

    value = examine()
    _show(value, partial(facts_text, value), as_json=as_json)


@main.command(cls=_Command)
@asking_cluster
@reporting
def cluster_script(**given: Any) -> None:  # noqa: ANN401 - click's values
    """Print what `run` would submit to a job queue for each of its jobs.

    \b
    Example:
      scorer cluster-script --cluster slurm --queue batch --threads 16 --memory 64GiB --walltime 02:00:00
    """
    options = cluster_of(given)
    if options.cluster not in QUEUES:
        what, hint = "only a job queue has a script", f"add --cluster {QUEUES[0]}, {QUEUES[1]}, ..."
        raise OptionsError(what, "--cluster", f"one of {', '.join(QUEUES)}", str(options.cluster), hint)
    from scorer.cluster.queues import script  # noqa: PLC0415 - start-up

    click.echo(script(options))
