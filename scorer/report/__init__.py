"""What is reported of a run: while it runs, at its end, and later from its files.

    progress.py          events counted into rows, parts and seconds
    live.py              progress on a terminal or in a log
    notebook.py          progress in a notebook cell
    eventlog.py          events.jsonl: every event as a line of JSON
    outcome.py           Report: counts, times and the bottleneck, from the receipts
    state.py             scorer status: how far a run is, from its files
    lineage.py           scorer lineage: where one file of an output is from
    html/                report.html: reads the proof and writes the page
    _pace.py             current and average speed, and the remaining time as an interval

Knows no model, no dataset and no Dask.
"""
