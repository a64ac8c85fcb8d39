"""Stages: a model's graph cut into pieces that run one after the other, each with a share of the weights.

    graph.py     the graph without external weights, its nodes in the order of use, and what each stage needs
    samples.py   made-up batches for a model of which only the inputs are known
    pieces.py    the protobuf of a stage, and a session for it
    walking.py   runs the graph piece by piece with few weights in memory, and measures every tensor
    choosing.py  the cuts whose slowest stage is fastest
    checking.py  compares the scores of the stages with those of the uncut model
    cutting.py   all of it: a model and a number of stages in, the stages out

Imported only where a model is cut.
"""
