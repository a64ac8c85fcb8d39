"""The models of a request, until they are part of a plan.

    requested.py    each model's file, and the options that are for it
    bound.py        which columns feed them, what the output has, and the first rows
    loading.py      the sessions that they need, and the models loaded into this process

With one model, all options are for it. With several, an option may name one: --feed challenger:X=a,b.
"""
