"""report.html, written from the proof of a run.

    page.py             reads the proof and writes the page
    sections.py         puts the sections together
    _distributions.py   draws the histograms and counts of the scores, from a bounded sample
    _gates.py           the section about gates: figures, drift, labels, rows that differ most
    _timeline.py        which worker scored which part when; slow parts

It needs no connection: style and scripts are in the page.
"""
