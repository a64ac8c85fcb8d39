"""The verbs: what a user can ask for, in Python or by a command.

execution.py     One execution of a plan, from the lock to the last rename.
failures.py      What a run that cannot publish says.
frames.py        score, release: a frame that somebody already has.
inspection.py    inspect: a model, and some data beside it.
pipeline.py      prepare, execute, run.
rescoring.py     Some rows of a finished output, scored again and compared.
verification.py  verify: an output proved again from its own files.
"""
