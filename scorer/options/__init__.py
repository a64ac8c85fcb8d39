"""What was asked: one field per flag and TOML key, and the small language of their values.

grammar.py  The small language of --feed, --fetch and --keep: names, ranges, quotes, pipes, calls; read and written.
request.py  The request: frozen dataclasses, one field per flag; built from flags, TOML and Python, checked at once.
values.py   What each option's value may be, and how it is read.
"""
