"""What was decided, as plain frozen data; written to plan.json and loaded again, never made again.

frozen.py    The frozen plan: what decides the scores and the output's bytes, with its two hashes.
parts.py     A part, and a planned file: what is read where, as run lengths.
prepared.py  What `prepare` found: the plan, the problems, the notes, the forecast; as data and as a person reads it.
"""
