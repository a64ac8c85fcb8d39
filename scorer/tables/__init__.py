"""Tables of Delta Lake and Iceberg: which files hold the live rows of one, and the commit that adds rows to one.

    snapshot.py            a table at one version, as plain data: its files, schema, keys and deleted rows
    columns.py             the columns of a table in one of its files: found by name or id, renamed, cast, or absent
    deleted.py             the numbers of deleted rows: one file beside the plan, of which a part reads what it needs
    clients.py             the options and credentials of stores, in the words of the libraries
    delta.py               the snapshot of a Delta table
    changes.py             what changed in a table between two versions
    iceberg.py             the snapshot of an Iceberg table
    iceberg_metadata.py    the metadata of an Iceberg table, found by catalog, folder or file
    _iceberg_files.py      the files of that metadata, read through scorer's own stores
    target.py              the table that a run writes: its kind and mode, its types, and what must fit
    delta_commit.py        adds files to a Delta table, in one commit that is made once
    iceberg_commit.py      the same for an Iceberg table

Only these modules import deltalake and pyiceberg, only inside functions: an input of Parquet files needs neither.
"""
