"""Tables of Delta Lake and Iceberg as input: which files hold the live rows, under which names, and which are deleted.

    snapshot.py    a table at one version, as plain data: its files, schema, keys and deleted rows
    columns.py     the columns of a table in one of its files: found by name or id, renamed, cast, or absent
    deleted.py     the numbers of deleted rows: one file beside the plan, of which a part reads what it needs
    clients.py     the options and credentials of stores, in the words of the libraries
    delta.py       the snapshot of a Delta table

Only these modules import deltalake, and only inside functions: an input of Parquet files needs no table library.
"""
