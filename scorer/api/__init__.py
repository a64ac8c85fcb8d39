"""The public functions: what a user can ask for, in Python or by a command.

    pipeline.py        prepare, execute and run
    execution.py       one execution of a plan, from taking the lock to publishing the output
    frames.py          score and release: score a frame in memory, or a Dask frame
    conversion.py      convert: a model of another library, compared before it is written
    optimisation.py    optimise: a faster form of a model, measured and compared before it is written
    inspection.py      inspect: what a model needs, beside some data
    verification.py    verify: check a published output against its proof
    rescoring.py       verify --rescore and replay: score rows again and compare
    cleaning.py        clean: remove what unfinished runs left
    _kinds.py          the kinds of frames that score takes: pandas, polars and Arrow
    _candidates.py     optimise: time the candidates, and compare their scores
    _failures.py       the errors of a run that cannot be published

Knows every package below; the command line is its first user.
"""
