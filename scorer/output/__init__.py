"""The output and its proof on disk or on a store: locked, staged, committed, published.

    place.py            the folders of an output and of its proof, and the plan stored there
    existing.py         which files of an output a run published, and which no run may replace
    lock.py             one driver per output: the lock, its heartbeat, and when it may be taken over
    lease.py            the lock of an output on an object store, and when its holder stops
    staging.py          the staged parts: which are committed, and which files are left over
    attempts.py         which parts were in progress when a process died
    writer.py           writes one part's file and commits it under its final name; the first attempt wins
    quarantine.py       writes rows that could not be scored, with the reason
    ledger.py           the ledger (one row per part) and the manifest
    publish.py          makes the output appear, complete or not at all; chooses how, by where it is
    publish_objects.py  the same on an object store: copies, and the manifest last
    publish_table.py    the same for a table: one commit to its log

Knows no model runtime and no Dask.
State: lock._HELD_TOKENS.
"""
