"""The request: one field per flag and TOML key, and the small language of their values.

    request.py          Options: frozen dataclasses, built from flags, TOML or Python, and checked
    values.py           the allowed values of each option, and how they are parsed
    wrong_types.py      errors for frames, bytes and other Python values where a path belongs
    contradictions.py   options that cannot be combined
    grammar.py          takes the text of --feed, --fetch and --keep apart: names, quotes, pipes, calls; knows no column

Knows no input and no model: only the text of the request.
"""
