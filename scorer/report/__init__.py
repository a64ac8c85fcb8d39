"""What is told of a run: while it goes on, when it is over, and from its files afterwards.

distributions.py  How the scores are distributed, from a bounded sample.
eventlog.py       events.jsonl: every event as a line of JSON.
live.py           A run while it goes on, on a terminal or in a log.
notebook.py       A run while it goes on, in the cell of a notebook.
outcome.py        What was done: counts, times, the bottleneck; folded from receipts.
pace.py           Speed now and on average, and the time left with its doubt.
page.py           report.html: gathered from the proof, written beside it.
progress.py       How far a run is: events folded into numbers.
sections.py       The sections of report.html, as blocks.
status.py         How far a run is, seen from outside by its files.
timeline.py       When parts were worked on, by whom, and which took oddly long.
"""
