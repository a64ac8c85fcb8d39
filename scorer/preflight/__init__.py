"""Every check before a row is scored: the result is a plan, or all reasons against one.

    checks.py          runs the checks in order and collects the problems
    placement.py       where the output may be written: not over other files, with enough free space
    trial.py           scores the first rows to see the shapes and types of the outputs
    independence.py    whether a row's score depends on the other rows of its batch
    tuning.py          chooses the batch size by timing a few
    cutting.py         cuts the input's row groups into parts
    encodings.py       chooses encodings and compression of the output's columns
    forecast.py        estimates time, memory and disk space
    freeze.py          turns everything that was decided into one frozen plan

Writes nothing.
"""
