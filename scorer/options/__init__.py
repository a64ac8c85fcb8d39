"""The request: one field per flag and TOML key, and the small language of their values.

    fields.py           Options: frozen dataclasses with one field for each flag: default, help and rule
    keywords.py         the same fields as keyword arguments, with the types that Python code may pass
    request.py          Options built from flags, TOML or Python, and checked; Options as flags
    values.py           the allowed values of each option, and how they are parsed
    cluster_options.py  options of the class of --cluster, without secrets
    store_options.py    options of object stores and names of variables, without secrets
    models.py           --model, and NAME: before a tensor of one of several models
    wrong_types.py      errors for frames, bytes and other Python values where a path belongs
    contradictions.py   options that cannot be combined
    gates.py            the grammar of --gate: figures, sums and one comparison; knows no column
    grammar.py          takes the text of --feed, --fetch and --keep apart: names, quotes, pipes, calls; knows no column

Knows no input and no model: only the text of the request.
"""
