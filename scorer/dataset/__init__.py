"""The input: which files, what is in them, and how a part's rows are read.

conditions.py  The row filter of --where: parsed, checked, applied, and used to skip row groups.
cursors.py     What the parts of one process share about the input: parsed footers, passes over large row groups.
listing.py     Which files the input means: paths, patterns and folders, in a fixed order.
quarantine.py  The columns that quarantine adds to a row.
reader.py      The rows of one part, or the first rows of all, with the columns that are asked for.
summary.py     What the footers of all files say together: schema, rows, bytes, nulls.
"""
