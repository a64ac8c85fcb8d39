"""The input: which files, what they contain, and how the rows of a part are read.

    listing.py       the files of the input: paths, patterns and folders, in a fixed order
    trees.py         what is in folders, on a disk or on an object store
    tables.py        the snapshot of a table that is named as the input
    to_parquet.py    what converts an input of another format to Parquet
    keys.py          the Hive keys in paths: typed, and compared with --where before a file is opened
    summary.py       what all footers say together: schema, rows, bytes, nulls
    fields.py        fields of structs by path, such as geo.lat
    reader.py        reads the rows of one part, or the first rows of the input
    ahead.py         reads from stores what the rows of a part need, before they are decoded
    cursors.py       what the parts of a process share: parsed footers, open row groups
    conditions.py    the row filter of --where: parsed, checked, applied, used to skip row groups
    quarantine.py    the rows that go to quarantine, and the columns that quarantine adds
    joins/           tables whose columns are added to the rows of the input by key

Knows no model.
"""
