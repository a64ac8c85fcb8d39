"""Dask DataFrame: read_parquet, map_partitions, to_parquet on a cluster of this machine.

    python plain_dask.py JOB.json

Dask's pages on Parquet and on best practices advise: read only needed columns, split files by row groups into a few
partitions per core of at most 100 MiB or so, use one process per core if Python holds the GIL, and put nothing large
into the graph. So every process creates its session once and keeps it.
"""

from __future__ import annotations

import json
from functools import cache

import _shared

PARTITION_BYTES = 100 * 2**20


@cache
def model(text):
    """Return the session of this process, created once."""
    return _shared.Model(json.loads(text))


def scored(frame, text):
    """Return the kept columns of one partition, with its scores."""
    import pandas as pd
    import pyarrow as pa

    job = json.loads(text)
    table = pa.Table.from_pandas(frame[_shared.fed(job)], preserve_index=False)
    scores = model(text)({name: _shared.to_numpy(table[name]) for name in table.column_names})
    types = _shared.arrow_types(job)
    return frame[job["keep"]].assign(
        **{name: pd.array(_shared.to_arrow(scores[name], kind), pd.ArrowDtype(kind)) for name, kind in types.items()}
    )


def groups(job, pieces):
    """Return the number of row groups in a partition, from the footer of the first file."""
    import pyarrow.parquet as pq

    first = pq.read_metadata(job["input"][0])
    most = PARTITION_BYTES // max(first.row_group(0).total_byte_size, 1) if first.num_row_groups else 1
    return max(1, min(first.num_row_groups * len(job["input"]) // pieces, most))


def main():
    """Read, score, write."""
    job = _shared.read_job("dask", "distributed", "pandas")
    import dask.dataframe as dd
    import pandas as pd
    from distributed import Client, LocalCluster

    text, cores = json.dumps(job), _shared.cores()
    pieces = cores * (8 if _shared.has_text(job) else 3)  # texts differ in length; a partition of numbers costs 30 ms
    with LocalCluster(n_workers=cores, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        split = groups(job, pieces)
        rows = dd.read_parquet(job["input"], columns=job["columns"], split_row_groups=split, dtype_backend="pyarrow")
        if _shared.uncut(job, pieces if _shared.has_text(job) else cores):
            rows = rows.repartition(npartitions=pieces)
        types = {name: pd.ArrowDtype(kind) for name, kind in _shared.arrow_types(job).items()}
        meta = rows._meta[job["keep"]].assign(**{name: pd.Series([], dtype=kind) for name, kind in types.items()})
        rows.map_partitions(scored, text, meta=meta).to_parquet(
            job["output"], write_index=False, compression=job["codec"], name_function="part-{:06}.parquet".format
        )
    _shared.done("dask", "distributed", "pandas")


if __name__ == "__main__":
    main()
