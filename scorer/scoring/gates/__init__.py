"""Gates: figures of the scores, measured part by part, that decide whether an output is published.

    sums.py        exact sums, which do not depend on the order of the numbers
    histogram.py   counts of numbers in fine bins, which can be added: quantiles, PSI and AUC
    columns.py     columns as numbers, texts or groups of equal values
    measures.py    what is measured of a part's rows, and how the results of parts are put together
    pairs.py       the same for two columns: equal rows, differences, correlation, ranks
    figures.py     the figures that follow from what was measured
    names.py       finds the columns that gates name, and what must be measured
    checks.py      checks the gates of a request before it runs
    baseline.py    what was measured of another output, from its proof or its files
    parts.py       measures the rows of a part, while it is scored or from its file
    judging.py     adds up the parts, and compares every figure with its limit

Imported only by a run that has gates.
"""
