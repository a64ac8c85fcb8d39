"""Tables whose columns are added to the rows of the input by key, as --join asks.

    spec.py      Join: one such table, as the plan has it
    requests.py  opens the tables before a run, and checks their keys
    lookup.py    a table in memory: read, loaded once per process, and mapped by all processes of a host
    index.py     finds the rows of a table by key

State: lookup._LOADED.
"""
