"""Read from stores what the rows of a part need, before they are decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scorer.dataset.fields import stored
from scorer.dataset.reader import naming_errors, own_columns, spans_of
from scorer.storage.fetched import Fetched, side_by_side
from scorer.storage.footers import chunk_ranges
from scorer.tables.columns import stored_names

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    from scorer.dataset.conditions import Condition
    from scorer.dataset.cursors import InputCache
    from scorer.dataset.reader import Source


_PROCEED_S = 1.0  # how often a part that waits for a store checks whether it is still needed


def fetch(
    sources: Sequence[Source], schema: pa.Schema, conditions: Sequence[Condition], cache: InputCache,
    proceed: Callable[[], object],
) -> dict[str, Fetched]:  # fmt: skip
    """Read from stores what `reader.read_all` needs of these sources; return it by path.

    `proceed` is called every second, and may raise. Of row groups that are read in slices, the first blocks are
    requested, not awaited.
    """
    remote = [source for source in sources if source.start < source.stop]

    def begin(source: Source) -> Fetched:
        with naming_errors(source, cache):
            return _begin(source, schema, conditions, cache)

    begun = [begin(source) for source in remote] if len(remote) < 2 else side_by_side(begin, remote)  # noqa: PLR2004
    try:
        for source, one in zip(remote, begun, strict=True):
            with naming_errors(source, cache):
                while not one.wait(_PROCEED_S):
                    proceed()
    except BaseException:
        for one in begun:
            one.cancel()
        raise
    return {source.path: one for source, one in zip(remote, begun, strict=True)}


def _begin(source: Source, schema: pa.Schema, conditions: Sequence[Condition], cache: InputCache) -> Fetched:
    """Request what a source needs."""
    file = cache.file(source.id)
    with file.parquet as parquet:
        there = set(parquet.schema_arrow.names)
        own = own_columns(schema.names, parquet.schema_arrow, there, dict(source.hive))
        spans = list(spans_of(source, file.starts, parquet, conditions, own, cache.deleted(source)))
        metadata, names = parquet.metadata, stored_names(parquet, stored(own, there))
    for span in spans:
        if not span.whole:
            cache.cursor(source.id, span.group, own).start()
    whole = [span.group for span in spans if span.whole]
    return Fetched(source.id, metadata, whole, chunk_ranges(metadata, whole, names))
