"""`scorer lineage`: which plan, model and input a file of an output is from."""

from __future__ import annotations

from functools import partial

import click

from scorer.cli.command import Command, reports_errors, show, store_flags
from scorer.cli.flags import JSON, complete_files


@click.command(cls=Command)
@click.argument("file", metavar="FILE", shell_complete=complete_files)
@store_flags
@JSON
@reports_errors
def lineage(file: str, as_json: bool) -> None:  # noqa: FBT001 - click's value
    """Show which plan, model and input a file of an output is from.

    FILE is one Parquet file of an output, or of a table that scorer wrote. Its metadata is enough: lineage reads no
    proof, no input and no model.

    \b
    Example:
      scorer lineage scores/part-00000.parquet
    """
    from scorer.cli.text import blocks_text  # noqa: PLC0415 - start-up
    from scorer.report.lineage import lineage_of  # noqa: PLC0415 - start-up

    found = lineage_of(file)
    show(found.to_dict(), partial(blocks_text, found.blocks()), as_json=as_json, acted=True)
