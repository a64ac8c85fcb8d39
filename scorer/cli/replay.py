"""`scorer replay`: one row of an output, from the input to its scores."""

from __future__ import annotations

import sys
from functools import partial

import click

from scorer.cli.command import Command, reports_errors, show, store_flags
from scorer.cli.flags import JSON, OUT, WORK_DIR
from scorer.errors import CommitError


@click.command(cls=Command)
@OUT
@click.option("--row", type=click.IntRange(min=0), default=None, metavar="N", help="Number of the row; 0 is the first.")
@click.option(
    "--where", metavar="CONDITION", multiple=True,
    help="Take the first row that meets the condition, on columns of the output, such as 'id == 7'. Repeatable.",
)  # fmt: skip
@store_flags
@WORK_DIR
@JSON
@reports_errors
def replay(output: str, row: int | None, where: tuple[str, ...], work_dir: str | None, as_json: bool) -> None:  # noqa: FBT001 - click's values
    """Score one row of OUT again, and show its way from the input to its scores.

    You see the file and row that it came from, the tensors that the model is fed and returns, and the scores as stored
    and as computed again. replay needs the proof in OUT.scorer, the input and the model. It writes nothing.

    \b
    Examples:
      scorer replay scores --row 12
      scorer replay scores --where 'flight == "UA1545"'
    """
    from scorer.api.rescoring import replay as replay_row  # noqa: PLC0415 - start-up
    from scorer.cli.text import blocks_text  # noqa: PLC0415 - start-up
    from scorer.output.place import Place  # noqa: PLC0415 - start-up

    found = replay_row(Place.of(output, work_dir), row, where)
    show(found.to_dict(), partial(blocks_text, found.blocks()), as_json=as_json, acted=True)
    if found.faults:
        sys.exit(CommitError.exit_code)
