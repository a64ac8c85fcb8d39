"""How the columns of the input are matched to all models of a request, and the first rows that were tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scorer.binding import spec as spec_

if TYPE_CHECKING:
    import pyarrow as pa

    from scorer.binding.outputs import Kept
    from scorer.binding.spec import Binding, Fetch, Transform
    from scorer.dataset.joins.spec import Join
    from scorer.tables.target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """How columns are matched to tensors, and the schemas that follow."""

    bindings: tuple[Binding, ...]
    """One for each model; without fetches until the first rows have been scored."""
    kept: Kept
    transform: Transform | None
    read_schema: pa.Schema
    output_schema: pa.Schema
    """Empty until the first rows have been scored."""
    target: Target | None = None
    """The table that the output is; None for plain Parquet files."""
    joins: tuple[Join, ...] = ()

    @property
    def names(self) -> list[str]:
        """The columns that are read, and those of joined tables."""
        return [*self.read_schema.names, *(field.name for join in self.joins for field in join.added)]

    @property
    def reads(self) -> set[str]:
        """The columns that are decoded in any case: fed, or keys of joined tables."""
        return {*spec_.reads(self.transform, self.bindings), *(name for join in self.joins for name in join.left)}

    @property
    def fed(self) -> tuple[str, ...]:
        """The columns that feed at least one model, without duplicates."""
        return spec_.fed(self.bindings)

    @property
    def read(self) -> tuple[str, ...]:
        """The columns that are read to feed the models, or to be passed on by the transform."""
        return spec_.reads(None, self.bindings)

    @property
    def fetches(self) -> tuple[Fetch, ...]:
        """The output tensors of all models."""
        return tuple(fetch for binding in self.bindings for fetch in binding.fetches)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The columns that the models add."""
        return tuple(name for binding in self.bindings for name in binding.outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The first rows of the input."""

    rows: pa.Table
    """As they are read: columns that are fed, kept or filtered on, those of joined tables included."""
    fed: pa.Table
    """As they are fed: after the transform, if any."""
    scores: tuple[tuple[pa.Array, ...], ...] = ()
    """For each model, its output columns of the first of these rows, if some were scored."""
    first_row_bytes: tuple[float, ...] = ()
    """For each model, the memory for a row in its very first batch, which finds nothing left by earlier ones."""
