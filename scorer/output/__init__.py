"""Where a run's output and proof lie, and how they get there: staged, committed, published.

attempts.py    Which parts were being scored when a process died.
ledger.py      The ledger: a row per part, and the manifest over all of it.
lock.py        One driver per output: a lock with a heartbeat, and who may take it over.
place.py       The folders of an output and its proof, and the plans that lie there.
publish.py     The output appears, whole or not at all.
quarantine.py  Rows that could not be scored: written with their reason, and counted by it.
staging.py     The staged parts: begun, journalled, found again, swept.
writer.py      One part's file: written, checked, committed under its one name, first attempt wins.
"""
