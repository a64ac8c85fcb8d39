"""Everything that is found out before a row is scored: the plan, or every reason against it.

canary.py     Whether a row's score depends on its neighbours.
checks.py     The checks in their order; what they find wrong is gathered, not raised.
cutting.py    How the input is cut into parts: numbers only.
encodings.py  How the output's columns are stored: an encoding where the first rows show that it pays.
forecast.py   What a run will take: time, memory and disk.
freeze.py     Once nothing is wrong: everything that was decided, frozen into a plan.
placement.py  Where the output may go: beside the input, writable, with room, over nothing that is not ours.
trial.py      The first rows through the model: what its outputs really look like.
tuning.py     The rows of a batch, by a short probe.
"""
