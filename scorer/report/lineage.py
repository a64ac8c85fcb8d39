"""scorer lineage: where one file of an output is from, by its own metadata."""

from __future__ import annotations

import os

import pyarrow as pa

from scorer.display.words import cut
from scorer.errors import CommitError, InputError, InputNotFound, UnreadableFile
from scorer.locations import absolute, is_url
from scorer.plan.lineage import LINEAGE_KEY, Lineage
from scorer.storage.footers import open_parquet
from scorer.storage.refusals import explaining


def lineage_of(location: str) -> Lineage:
    """Return the lineage in a Parquet file, which may be on a store."""
    place = absolute(location)
    if not is_url(place) and os.path.isdir(place):
        first = next((one for one in sorted(os.listdir(place)) if one.endswith(".parquet")), "FILE.parquet")
        raise InputError(
            "lineage is in each file of an output", where=location, expected="a file", found="a folder",
            hint=f"scorer lineage {os.path.join(location, first)}",
        )  # fmt: skip
    try:
        with explaining(InputError), open_parquet(place) as parquet:
            found = Lineage.from_entries(parquet.metadata.metadata or {})
    except FileNotFoundError as error:
        raise InputNotFound(
            "the file does not exist", where=location, expected="a file of an output", found="nothing",
            hint="check the path",
        ) from error  # fmt: skip
    except (OSError, pa.ArrowException) as error:
        raise UnreadableFile(
            "the file cannot be read", where=location, expected="a Parquet file", found=cut(str(error)),
            hint="pass a file of an output",
        ) from error  # fmt: skip
    if found is None:
        raise CommitError(
            "the file has no lineage", where=location, expected=f"the key {LINEAGE_KEY.decode()!r} in its metadata",
            found="no such key, or damaged contents",
            hint="pass a file as scorer wrote it: other programs drop it when they write the file again",
        )  # fmt: skip
    return found
