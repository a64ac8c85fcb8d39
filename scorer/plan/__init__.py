"""What was decided, as plain frozen data: written to plan.json, and only read after that.

    frozen.py       FrozenPlan: what decides the scores and the output; its hashes; the parts and their file names
    generations.py  what each generation of a growing output has scored, and what is new since then
    history.py      the plans of all generations together: which files and parts an output has now
    lineage.py      where a file of the output is from, as entries of its Parquet metadata
    parts.py        Part and PlannedFile: which rows are read from where
    gates.py        Gates: what is measured of the scores before they are published
    scorers.py      Scorer: one model, its columns, its session and its batches
    prepared.py     Plan: the result of `prepare`, with problems, notes and the forecast

Reads no input, starts nothing, and imports no runtime.
"""
