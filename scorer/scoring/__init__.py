"""One part in one process: read it, score it, commit it.

    job.py        JOBS: the runs that this process scores parts for, each unpacked once
    part.py       reads, scores and commits one part: Arrow tables in, a receipt out
    batches.py    scores one table in batches; if a batch fails, finds the bad rows
    replay.py     one row again, with what the model is fed and returns
    content.py    what a part's file contains: scores, and kept columns encoded or copied
    compare.py    how much two scorings of the same rows may differ
    metrics.py    Prometheus counters of this process
    gates/        figures of the scores that decide whether an output is published

Knows no Dask: `cluster/tasks.py` passes tables through Dask as frames.
State: job.JOBS, metrics.driver, metrics.worker, part._ISOLATED.
"""
