"""What is reported of a run: while it runs, at its end, and later from its files.

    progress.py          events counted into rows, parts and seconds
    live.py              progress on a terminal or in a log
    notebook.py          progress in a notebook cell
    eventlog.py          events.jsonl: every event as a line of JSON
    outcome.py           Report: counts, times and the bottleneck, from the receipts
    state.py             scorer status: how far a run is, from its files
    lineage.py           scorer lineage: where one file of an output is from
    page.py              report.html: reads the proof and writes the page
    sections.py          puts the sections of report.html together
    _distributions.py    draws the histograms and counts of the scores, from a bounded sample
    _gates.py            the section of report.html about gates: figures, drift, labels, rows that differ most
    _timeline.py         which worker scored which part when; slow parts
    _pace.py             current and average speed, and the remaining time as an interval

Knows no model, no dataset and no Dask.
"""
