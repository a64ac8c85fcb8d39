"""Every check before a row is scored: the result is a plan, or all reasons against one.

    checks.py       runs the checks in order; each step gets the results of the steps before
    findings.py     the problems and notes that the checks collect
    earlier.py      finds an earlier run of the same request: complete, or to be resumed
    increment.py    --new-only: what is new since an output was scored, and the plan that adds it
    placement.py    where the output may be written: not over other files, with enough free space
    trial.py        scores the first rows: shapes and types of the outputs, independence of rows
    axes.py         the axis that holds the rows of each output, where it is not the first
    tuning.py       chooses the batch size by timing a few
    cutting.py      cuts the input's row groups into parts
    encodings.py    chooses encodings and compression of the output's columns
    forecast.py     estimates time, memory and disk space
    freeze.py       turns everything that was decided into one frozen plan
    models/         the models of a request: their files and options, their columns, their sessions

Writes nothing but caches: batch sizes, and packed weights.
"""
