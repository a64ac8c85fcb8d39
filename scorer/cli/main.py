"""The commands of `scorer`: parse the flags, call the API, print the result, exit."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import click

from scorer.cli.command import Command, Group, fail, print_text, reports_errors, show, store_flags
from scorer.cli.flags import (
    JSON,
    OUT,
    WORK_DIR,
    bind_flags,
    cluster_flags,
    cluster_of,
    complete_files,
    options_of,
    request_flags,
)
from scorer.cli.lineage import lineage
from scorer.cli.replay import replay
from scorer.cli.startup import fast_imports
from scorer.errors import CommitError, OptionsError, PreflightError
from scorer.host import streams
from scorer.options.values import QUEUES

_WATCH_S = 2.0


@click.group(
    name="scorer", cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(None, "-V", "--version", package_name="dask-scorer", message="scorer %(version)s")
def main() -> None:
    """Score Parquet datasets with ONNX models on Dask, and prove that no row was lost.

    \b
    Example:
      scorer run input.parquet --model m.onnx
    """


@main.command(cls=Command)
@request_flags
@click.option("--quiet", is_flag=True, help="Show no progress, only the summary.")
@click.option("-v", "--verbose", is_flag=True, help="Show the plan before the run starts.")
@reports_errors
def run(config: str | None, as_json: bool, quiet: bool, verbose: bool, debug: bool, **given: Any) -> None:  # noqa: ANN401, ARG001, FBT001 - click's values
    """Score INPUT and publish the result.

    INPUT is one or more Parquet files, folders or glob patterns. The result is a folder of Parquet files. It
    appears only when it is complete. If a run is interrupted, the same command finishes it.

    \b
    Examples:
      scorer run flights.parquet --model late.onnx
      scorer run data/ --model m.onnx --output scores --feed 'x=f0..f27' --keep id
    """
    options = options_of(config, given)
    with fast_imports():
        from scorer.api.pipeline import execute_and_follow, prepare_options  # noqa: PLC0415 - start-up
        from scorer.cli.text import plan_text, report_text  # noqa: PLC0415 - start-up
        from scorer.display.terminal import terminal_of  # noqa: PLC0415 - start-up
        from scorer.report.live import watching  # noqa: PLC0415 - start-up

    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # futures that a closing cluster leaves behind
    terminal = replace(terminal_of(sys.stderr), colours=False)
    with watching(sys.stderr, quiet=quiet, still=options.cluster.cluster == "synchronous") as observers:
        plan = prepare_options(options)
        if verbose and not plan.problems:
            click.echo(plan_text(plan, terminal), err=True)
        report = execute_and_follow(plan, observers)
    show(report.to_dict(), partial(report_text, report), as_json=as_json, acted=True)


@main.command(cls=Command)
@request_flags
@reports_errors
def plan(config: str | None, as_json: bool, debug: bool, **given: Any) -> None:  # noqa: ANN401, ARG001, FBT001 - click's values
    """Show what `run` would do with the same flags.

    The plan shows which columns feed the model, what the output contains, and the estimated time, memory and
    disk space. If `run` would fail, you get every reason at once. Nothing is written.

    \b
    Example:
      scorer plan flights.parquet --model late.onnx
    """
    options = options_of(config, given)
    with fast_imports():
        from scorer.api.pipeline import prepare_options  # noqa: PLC0415 - start-up
        from scorer.cli.text import plan_text  # noqa: PLC0415 - start-up

    prepared = prepare_options(options)
    if prepared.problems:
        raise PreflightError(prepared.problems)
    show(prepared.to_dict(), partial(plan_text, prepared), as_json=as_json)


@main.command(cls=Command)
@request_flags
@click.option(
    "--turns", type=click.IntRange(min=1), default=5, metavar="N",
    help="How many times each contender is measured. Default: 5.",
)  # fmt: skip
@click.option(
    "--peers",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Folder with scripts that run other tools.",
)
@click.option(
    "--peers-python",
    default=sys.executable,
    metavar="FILE",
    help="Python interpreter that runs these scripts. Default: the one that runs scorer.",
)
@reports_errors
def bench(
    config: str | None, as_json: bool, debug: bool, turns: int, peers: str | None, peers_python: str, **given: Any,  # noqa: ANN401, ARG001, FBT001
) -> None:  # fmt: skip
    """Measure scorer against hand-written loops.

    bench runs the job that `run` would run with the same flags: with scorer, with hand-written loops, and with
    other tools (--peers). Each runs in its own process, in alternating order. Their scores are compared before
    any time is shown. Outputs go to a temporary folder beside --output or the input.

    \b
    Example:
      scorer bench flights.parquet --model late.onnx --turns 15
    """
    options = options_of(config, given)
    from pathlib import Path  # noqa: PLC0415 - start-up

    from scorer.cli.bench import bench as measure  # noqa: PLC0415 - start-up
    from scorer.cli.text import bench_text  # noqa: PLC0415 - start-up

    found = measure(options, turns, Path(peers) if peers else None, peers_python)
    show(found.to_dict(), partial(bench_text, found), as_json=as_json)


@main.command(cls=Command)
@click.argument("model", metavar="MODEL", shell_complete=complete_files)
@click.option(
    "--input", "input_", metavar="DATA", multiple=True, shell_complete=complete_files,
    help="Input to match with the model; a few rows of it are scored.",
)  # fmt: skip
@click.option(
    "--stages", type=click.IntRange(min=2, max=100), metavar="N",
    help="Cut the model into N stages and show the weights of each, what is handed on, and whether the scores stay "
    "the same.",
)  # fmt: skip
@bind_flags
@store_flags
@JSON
@reports_errors
def inspect(
    *, model: str, input_: tuple[str, ...], stages: int | None, as_json: bool, **request: Any,  # noqa: ANN401
) -> None:  # fmt: skip
    """Show a model's inputs and outputs.

    With --input, you also see which columns would feed the model, which columns it would write, and whether a
    row's score depends on the other rows in its batch. The --feed and --fetch lines at the end are ready to copy.
    With --stages, the model is cut into stages that could run one after the other, each with a share of the weights.

    \b
    Examples:
      scorer inspect late.onnx --input flights.parquet
      scorer inspect large.onnx --stages 3
    """
    from scorer.cli.text import inspection_text  # noqa: PLC0415 - start-up
    from scorer.model.protobuf import inspect_model  # noqa: PLC0415 - start-up

    spec = inspect_model(model)
    from scorer.api import inspection  # noqa: PLC0415 - start-up

    found = inspection.inspect(spec, input_, given=model, **request)
    if stages is not None:
        found = inspection.with_stages(found, stages)
    show(found.to_dict(), partial(inspection_text, found), as_json=as_json)
    if found.problems:
        fail(PreflightError(found.problems))


@main.command(cls=Command)
@click.argument("model", metavar="MODEL", shell_complete=complete_files)
@click.option(
    "-o", "--output", metavar="FILE", required=True, shell_complete=complete_files,
    help="Where to write the ONNX model.",
)  # fmt: skip
@click.option(
    "--check", metavar="DATA", multiple=True, required=True, shell_complete=complete_files,
    help="Parquet files with rows as the model will get them; both models score them. Repeatable.",
)  # fmt: skip
@click.option(
    "--features", metavar="COLUMNS", default="",
    help="Columns of DATA that feed the model, in its order: names, globs and ranges, such as f0..f27. "
    "Default: the names that the model knows.",
)  # fmt: skip
@click.option(
    "--rows", type=click.IntRange(min=1), default=10_000, metavar="N",
    help="How many rows of DATA both models score, and as many on thresholds of trees. Default: 10000.",
)  # fmt: skip
@click.option(
    "--tolerance", type=click.FloatRange(min=0, min_open=True), default=1e-5, metavar="X",
    help="Largest difference allowed: of a probability, or as a share of the largest score. Default: 1e-5.",
)  # fmt: skip
@click.option("--double", is_flag=True, help="Write a model that takes float64 instead of float32.")
@click.option(
    "--target-opset", type=click.IntRange(min=15), default=None, metavar="N",
    help="Version of ONNX's operators. Default: 18.",
)  # fmt: skip
@click.option("--trust", is_flag=True, help="Load a pickle, which runs the code in it.")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@store_flags
@JSON
@reports_errors
def convert(  # noqa: PLR0913 - click's values
    *, model: str, output: str, check: tuple[str, ...], features: str, rows: int, tolerance: float, double: bool,
    target_opset: int | None, trust: bool, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Convert a model of another library to ONNX.

    MODEL is a file of LightGBM, XGBoost or CatBoost, a pickle, joblib or skops file of scikit-learn, or an MLflow
    folder. Its library must be installed. The converted model is written only if it gives the scores of the
    original for the rows of DATA, and for rows on the thresholds of its trees.

    \b
    Examples:
      scorer convert model.txt -o m.onnx --check flights.parquet
      scorer convert forest.joblib -o m.onnx --check people.parquet --features age,income --trust
    """
    from scorer.api.conversion import convert as convert_model  # noqa: PLC0415 - start-up
    from scorer.cli.text import conversion_text  # noqa: PLC0415 - start-up

    found = convert_model(
        model, output, check, features=features, rows=rows, tolerance=tolerance, double=double,
        opset=target_opset or 0, trust=trust, overwrite=overwrite,
    )  # fmt: skip
    show(found.to_dict(), partial(conversion_text, found), as_json=as_json, acted=True)


@main.command(cls=Command)
@click.argument("model", metavar="MODEL", shell_complete=complete_files)
@click.option(
    "-o", "--output", metavar="FILE", required=True, shell_complete=complete_files,
    help="Where to write the faster model.",
)  # fmt: skip
@click.option(
    "--check", metavar="DATA", multiple=True, required=True, shell_complete=complete_files,
    help="Parquet files with rows as the model will get them; they judge every candidate. Repeatable.",
)  # fmt: skip
@click.option(
    "--rows", type=click.IntRange(min=10), default=None, metavar="N",
    help="How many rows judge. Default: 4096, or 256 of texts and pictures.",
)  # fmt: skip
@click.option(
    "--allow", type=click.FloatRange(min=0, max=1), default=0.01, metavar="X",
    help="Largest change of a score, as a share of the largest score; the cosine of embeddings is at least 1 - X. "
    "Default: 0.01.",
)  # fmt: skip
@click.option(
    "--keep-label", type=click.FloatRange(min=0, max=1), default=0.999, metavar="SHARE",
    help="Share of the labels that must stay the same. Default: 0.999.",
)  # fmt: skip
@click.option(
    "--at-least", type=click.FloatRange(min=0), default=1.3, metavar="X",
    help="How many times as fast a candidate must be. Default: 1.3.",
)  # fmt: skip
@click.option(
    "--dynamic", is_flag=True,
    help="Also try ranges computed from each batch: a row's score then depends on the other rows in its batch.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@bind_flags
@store_flags
@JSON
@reports_errors
def optimise(  # noqa: PLR0913 - click's values
    *, model: str, output: str, check: tuple[str, ...], rows: int | None, allow: float, keep_label: float,
    at_least: float, dynamic: bool, overwrite: bool, as_json: bool, **request: Any,  # noqa: ANN401
) -> None:  # fmt: skip
    """Write a faster form of a model, if its scores stay nearly the same.

    Candidates with 8-bit weights and 8-bit arithmetic are compared with MODEL: their speed, and their scores for
    rows of DATA that were not used to make them. The fastest one that is good enough is written. If none is,
    nothing is written, and the exit code is 1.

    \b
    Examples:
      scorer optimise m.onnx --check data.parquet -o faster.onnx
      scorer optimise m.onnx --check data.parquet -o faster.onnx --allow 0.05 --feed 'x=f0..f27'
    """
    from scorer.api.optimisation import Limits  # noqa: PLC0415 - start-up
    from scorer.api.optimisation import optimise as optimise_model  # noqa: PLC0415 - start-up
    from scorer.cli.text import blocks_text  # noqa: PLC0415 - start-up

    limits = Limits(allow=allow, keep_label=keep_label, at_least=at_least)
    found = optimise_model(
        model, output, check, limits, request=request, rows=rows, dynamic=dynamic, overwrite=overwrite
    )  # fmt: skip
    if found.candidates or as_json:
        show(found.to_dict(), partial(blocks_text, found.blocks()), as_json=as_json, acted=True)
    refusal = found.refusal(limits)
    if refusal is not None:
        fail(refusal)


@main.command(cls=Command)
@OUT
@store_flags
@click.option("--deep", is_flag=True, help="Read every page and value instead of the footers only.")
@click.option(
    "--rescore", type=click.IntRange(min=0), default=0, metavar="N",
    help="Score N random rows again and compare the scores. Needs the input and the model.",
)  # fmt: skip
@WORK_DIR
@JSON
@reports_errors
def verify(output: str, deep: bool, rescore: int, work_dir: str | None, as_json: bool) -> None:  # noqa: FBT001 - click's values
    """Check a finished output against its proof.

    The proof is the ledger and the manifest in OUT.scorer. verify checks every file of OUT and that
    rows in = scored + quarantined + filtered.

    \b
    Example:
      scorer verify flights.scored.parquet --deep
    """
    from scorer.api.verification import check  # noqa: PLC0415 - start-up
    from scorer.cli.text import verdict_text  # noqa: PLC0415 - start-up
    from scorer.output.place import Place  # noqa: PLC0415 - start-up

    verdict = check(Place.of(output, work_dir), deep=deep, rescore=rescore)
    show(verdict.to_dict(), partial(verdict_text, verdict), as_json=as_json, acted=True)
    if not verdict.whole:
        sys.exit(CommitError.exit_code)


@main.command(cls=Command)
@OUT
@store_flags
@click.option("--watch", is_flag=True, help="Refresh every two seconds until the run ends.")
@WORK_DIR
@JSON
@reports_errors
def status(output: str, watch: bool, work_dir: str | None, as_json: bool) -> None:  # noqa: FBT001 - click's values
    """Show the progress of the run that writes OUT.

    status reads only files. It works from another terminal, and on any host that sees OUT.scorer.

    \b
    Examples:
      scorer status scores
      scorer status scores --watch
    """
    from scorer.cli.text import status_lines, status_text  # noqa: PLC0415 - start-up
    from scorer.display.terminal import terminal_of  # noqa: PLC0415 - start-up
    from scorer.output.place import Place  # noqa: PLC0415 - start-up
    from scorer.report.live import follow  # noqa: PLC0415 - start-up
    from scorer.report.state import status_of  # noqa: PLC0415 - start-up

    place = Place.of(output, work_dir)
    found = status_of(place)
    if watch and found.state == "running":

        def refreshed() -> list[str] | None:
            now = status_of(place)
            lines = [json.dumps(now.to_dict())] if as_json else status_lines(now, terminal_of(sys.stdout))
            return lines if now.state == "running" and streams.lost() is None else None

        follow(refreshed, sys.stdout, _WATCH_S)
        found = status_of(place)
    show(found.to_dict(), partial(status_text, found), as_json=as_json)


@main.command(cls=Command)
@OUT
@click.option(
    "--to", metavar="FILE", shell_complete=complete_files,
    help="Where to write the page. Default: report.html in OUT.scorer.",
)  # fmt: skip
@store_flags
@WORK_DIR
@JSON
@reports_errors
def report(output: str, to: str | None, work_dir: str | None, as_json: bool) -> None:  # noqa: FBT001 - click's value
    """Write report.html for OUT again.

    report reads the proof in OUT.scorer and prints the path of the page.

    \b
    Examples:
      scorer report scores
      scorer report s3://bucket/scores --to scores.html
    """
    from scorer.cli.text import facts_text  # noqa: PLC0415 - start-up
    from scorer.output.place import Place  # noqa: PLC0415 - start-up
    from scorer.report.html.page import write_again  # noqa: PLC0415 - start-up

    value = {"report": str(write_again(Place.of(output, work_dir), to))}
    show(value, partial(facts_text, value), as_json=as_json, acted=True)


@main.command(cls=Command)
@OUT
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
@store_flags
@WORK_DIR
@JSON
@reports_errors
def clean(output: str, dry_run: bool, work_dir: str | None, as_json: bool) -> None:  # noqa: FBT001 - click's values
    """Remove what unfinished runs left beside OUT.

    These are scored parts that were not published, and locks and markers of processes that died. clean keeps OUT and
    its proof. A run that was not finished cannot be continued afterwards: it starts again.

    \b
    Example:
      scorer clean scores --dry-run
    """
    from scorer.api.cleaning import clean as remove_leftovers  # noqa: PLC0415 - start-up
    from scorer.cli.text import cleaned_text  # noqa: PLC0415 - start-up
    from scorer.output.place import Place  # noqa: PLC0415 - start-up

    def notify(text: str) -> None:
        click.echo(text, err=True)

    found = remove_leftovers(Place.of(output, work_dir), notify, dry_run=dry_run)
    show(found.to_dict(), partial(cleaned_text, found), as_json=as_json, acted=True)


@main.command(cls=Command)
@request_flags
@reports_errors
def doctor(config: str | None, as_json: bool, debug: bool, **given: Any) -> None:  # noqa: ANN401, ARG001, FBT001 - click's values
    """Check the installation and the devices, or the workers of a cluster.

    doctor shows the installed versions, the devices that work, and the command that installs what is missing. With
    flags, it starts the cluster that they name, asks each worker, and closes the cluster. With the flags of a run, each
    worker also checks that it can read the model and the input, and write the output.

    \b
    Examples:
      scorer doctor
      scorer doctor --cluster processes --workers 2
      scorer doctor flights.parquet --model late.onnx --cluster dask_gateway:GatewayCluster --workers 2
    """
    from scorer.cli.doctor import examine, examine_workers  # noqa: PLC0415 - start-up
    from scorer.cli.text import facts_text  # noqa: PLC0415 - start-up

    flags = config or any(value not in (None, ()) for value in given.values())
    value = examine_workers(config, given) if flags else examine()
    show(value, partial(facts_text, value), as_json=as_json)


@main.command(cls=Command)
@cluster_flags
@reports_errors
def cluster_script(**given: Any) -> None:  # noqa: ANN401 - click's values
    """Print the job script that `run` would submit.

    \b
    Example:
      scorer cluster-script --cluster slurm --queue batch --threads 16 --memory 64GiB --walltime 02:00:00
    """
    options = cluster_of(given)
    if options.cluster not in QUEUES:
        raise OptionsError(
            "cluster-script needs a job queue",
            where="--cluster",
            expected=f"one of {', '.join(QUEUES)}",
            found=str(options.cluster),
            hint=f"add --cluster {QUEUES[0]}, {QUEUES[1]}, ...",
        )
    from scorer.cluster.kinds.queues import script  # noqa: PLC0415 - start-up

    print_text(script(options))


main.add_command(replay)
main.add_command(lineage)
