"""Check the gates of a request before it runs: their columns, types and baselines."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

from scorer.arrow import decode_schema
from scorer.options import gates as grammar
from scorer.scoring.gates import baseline, names
from scorer.scoring.gates.judging import measures_for
from scorer.storage.footers import open_parquet

if TYPE_CHECKING:
    from scorer.errors import ScorerError
    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.gates import Gates


def bind_all(
    texts: tuple[str, ...], warnings: tuple[str, ...], frozen: FrozenPlan, input_columns: pa.Schema | None
) -> tuple[Gates, list[ScorerError]]:
    """Return the gates with what must be measured, and all problems.

    The columns of the input are those of the plan's first file if they are not known, because a run is resumed.
    """
    known = _columns_of(frozen) if input_columns is None else input_columns
    columns = names.Columns(output=decode_schema(frozen.output_schema), input=known, kept=frozen.kept)
    gates, problems = names.bind(grammar.parse_all(texts, warnings), columns)
    sources = []
    for gate in gates.gates:
        from_where = []
        for figure in gate.figures:
            if figure.baseline:
                measure = measures_for(gates, figure)[0]
                problem = baseline.problem(figure, gate, measure)
                problems += [] if problem is None else [problem]
                from_where += [] if problem is not None else [baseline.source(figure.baseline, measure)]
        sources.append("; ".join(dict.fromkeys(from_where)))
    return replace(gates, sources=tuple(sources)), problems


def _columns_of(frozen: FrozenPlan) -> pa.Schema:
    """Return the columns that a plan reads, and the others of its first file."""
    read = decode_schema(frozen.read_schema)
    if frozen.table is not None or not frozen.files:
        return read
    with open_parquet(frozen.files[0].id) as parquet:
        return pa.schema([*read, *(field for field in parquet.schema_arrow if field.name not in read.names)])
